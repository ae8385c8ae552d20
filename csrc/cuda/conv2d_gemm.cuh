// Convolutions as matrix products (gemm.cuh, mma_gemm.cuh): which element of which tensor a row, a
// column and a depth meet in. One product a group.
//
//            rows                     columns     depth                      gathered from
//   fprop    N*P*Q outputs            filters     channels x taps            input
//   dgrad    N*H*W pixels, those of   channels    filters x taps that        grad_output
//            the same remainders by               reach those remainders
//            the strides together
//   wgrad    channels x taps          filters     N*P*Q outputs, in chunks   input
//
// What is gathered, the rows' operand, is the im2col matrix, which exists nowhere: a pixel's row
// has the elements that the filter lies on. Its element is at the offset of the pixel plus that of
// the tap; padding is told by bits, one for each row and column of taps: the pixel closes those
// whose row or column lies outside of the input, the tap has its own. In wgrad the matrix is
// transposed.
#pragma once

#include "conv2d.cuh"
#include "dtype.cuh"
#include "gemm_operands.cuh"

namespace cnnkernels::CNN_TARGET {

// Bits for rows of taps, then for columns, then kBeyond.
constexpr int kMostGatherTaps = 15;

// The gradient of the convolution's sum behind a ReLU: GradOutput, by offsets.
template <class T>
struct Masked {
  static constexpr bool kIsPlain = false;
  struct Pointer {
    const T *grad, *relu;
  };
  struct alignas(16) Near {
    int offset, mask_offset;
    unsigned closed, unused;  // 16 bytes, that a request moves
  };
  template <int kWidth>
  struct Raw {
    Elements<T, kWidth> grad, relu;
  };

  const T *grad, *relu;

  __device__ Pointer at(const Place& place) const {
    return {computed(grad + place.offset), computed(relu + place.mask_offset)};
  }
  __device__ static Near near(const Place& place) {
    return {static_cast<int>(place.offset), static_cast<int>(place.mask_offset), place.closed, 0};
  }
  // What does not exist is zero, behind a ReLU that is closed.
  template <int kWidth>
  __device__ static void load(const Pointer& origin, const Near& row, const Near& depth, bool open,
                              Raw<kWidth>& raw) {
    using Access = Elements<T, kWidth>;
    const T* grad = origin.grad + (row.offset + depth.offset);
    const T* relu = origin.relu + (row.mask_offset + depth.mask_offset);
    raw.grad = open ? *reinterpret_cast<const Access*>(grad) : Access{};
    raw.relu = open ? *reinterpret_cast<const Access*>(relu) : Access{};
  }
  template <int kWidth>
  __device__ static T value(const Raw<kWidth>& raw, int i) {
    using A = Accumulator<T>;
    const bool closed = static_cast<A>(raw.relu.values[i]) <= 0;
    return closed ? static_cast<T>(A(0)) : raw.grad.values[i];
  }
};

// Taps along one dimension, for results that are `step` apart from `first` on: tap t of result i
// reads the source's position origin + i * stride + t * distance, by the filter's tap number
// first_tap + t * tap_step.
struct GatherAxis {
  int results, first, step;
  int size, origin, stride, distance;
  int taps, first_tap, tap_step;

  __device__ int start(int i) const { return origin + i * stride; }

  // A bit for each tap that reads beyond the source.
  __device__ unsigned closed(int i) const {
    unsigned bits = 0;
    for (int t = 0; t < taps; ++t) {
      const int position = start(i) + t * distance;
      if (position < 0 || position >= size) bits |= 1u << t;
    }
    return bits;
  }
};

__device__ inline GatherAxis fprop_axis(int outputs, int size, int taps, int pad, int stride,
                                        int dilation) {
  return {outputs, 0, 1, size, -pad, stride, dilation, taps, 0, 1};
}

// The pixels with remainder `first` by the stride. Tap r reaches them where first + pad - r *
// dilation is a multiple of it: every so many taps, or never.
__device__ inline GatherAxis dgrad_axis(int first, int pixels, int size, int taps, int pad,
                                        int stride, int dilation) {
  int64_t tap_step = 1;
  while (tap_step * dilation % stride != 0) ++tap_step;
  int first_tap = 0;
  while (first_tap < taps && (first + pad - first_tap * dilation) % stride != 0) ++first_tap;
  const int reached = (taps - first_tap + tap_step - 1) / tap_step;
  const int origin = (first + pad - first_tap * dilation) / stride;
  const int distance = -tap_step * dilation / stride;
  return {(pixels - first + stride - 1) / stride,
          first,
          stride,
          size,
          origin,
          1,
          distance,
          reached,
          first_tap,
          static_cast<int>(tap_step)};
}

struct Tap {
  int c, r, s;
};

// Taps in the order of a weight in memory: of the channels r and s, or the other way round.
template <bool kChannelsFastest>
__device__ Tap tap_of(int index, int channels, int R, int S) {
  const int c = kChannelsFastest ? index % channels : index / (R * S);
  const int tap = kChannelsFastest ? index / channels : index % (R * S);
  return {c, tap / S, tap % S};
}

// The product of fprop and dgrad.
template <bool kChannelsFastest>
struct PixelGemm {
  GatherAxis h, w;
  int rows, columns, channels, end;      // channels: of the source, in the depth
  int first_column;                      // of the group
  Strides source, mask, weight, result;  // weight: {column, channel, r, s}
  int64_t first_source, first_mask, first_weight, first_result;  // of the group

  __device__ void set_fprop(const Conv2dProblem& problem, int group) {
    h = fprop_axis(problem.P, problem.H, problem.R, problem.pad_top, problem.stride_h,
                   problem.dilation_h);
    w = fprop_axis(problem.Q, problem.W, problem.S, problem.pad_left, problem.stride_w,
                   problem.dilation_w);
    columns = problem.group_filters(), channels = problem.group_channels();
    source = problem.input, mask = Strides{0, 0, 0, 0}, result = problem.output;
    weight = problem.weight;
    set_group(problem.N, group);
    first_weight = problem.weight.at(first_column, 0, 0, 0);
  }

  // Of the pixels with the remainders number `remainder`.
  __device__ void set_dgrad(const Conv2dProblem& problem, int group, int remainder) {
    h = dgrad_axis(remainder / problem.stride_w, problem.H, problem.P, problem.R, problem.pad_top,
                   problem.stride_h, problem.dilation_h);
    w = dgrad_axis(remainder % problem.stride_w, problem.W, problem.Q, problem.S, problem.pad_left,
                   problem.stride_w, problem.dilation_w);
    columns = problem.group_channels(), channels = problem.group_filters();
    source = problem.output, mask = problem.relu, result = problem.input;
    weight = {problem.weight.c, problem.weight.n, problem.weight.h, problem.weight.w};
    set_group(problem.N, group);
    first_weight = problem.weight.at(group * channels, 0, 0, 0);
  }

  // What follows from the rest.
  __device__ void set_group(int N, int group) {
    rows = N * h.results * w.results;
    end = channels * h.taps * w.taps;
    first_column = group * columns;
    first_source = source.at(0, group * channels, 0, 0);
    first_mask = mask.at(0, group * channels, 0, 0);
    first_result = result.at(0, first_column, 0, 0);
  }

  // Pixel `row` is (n, i, j) of the results.
  struct Pixel {
    int n, i, j;
  };
  __device__ Pixel pixel(int row) const {
    const int line = row / w.results;
    return {line / h.results, line % h.results, row % w.results};
  }

  __device__ Place row(int index) const { return place(pixel(index)); }
  __device__ Place place(const Pixel& at) const {
    const auto [n, i, j] = at;
    return {first_source + source.at(n, 0, h.start(i), w.start(j)),
            first_mask + mask.at(n, 0, h.start(i), w.start(j)),
            h.closed(i) | w.closed(j) << kMostGatherTaps};
  }
  // `depth` channels further.
  __device__ Place column(int index, int depth = 0) const {
    return {first_weight + index * weight.n + depth * weight.c, 0, 0};
  }

  __device__ void depth(int index, Place& row, Place& column) const {
    const auto [c, r, s] = tap_of<kChannelsFastest>(index, channels, h.taps, w.taps);
    row = {source.at(0, c, r * h.distance, s * w.distance),
           mask.at(0, c, r * h.distance, s * w.distance), 1u << r | 1u << (kMostGatherTaps + s)};
    column = {weight.at(0, c, h.first_tap + r * h.tap_step, w.first_tap + s * w.tap_step), 0, 0};
  }

  __device__ int64_t result_row(int index) const {
    const auto [n, i, j] = pixel(index);
    return first_result + result.at(n, 0, h.first + i * h.step, w.first + j * w.step);
  }
  __device__ int64_t result_column() const { return result.c; }
};

// The product of wgrad: depths are outputs, counted over all images.
template <bool kChannelsFastest>
struct FilterGemm {
  GatherAxis h, w;
  int rows, columns, channels;
  int first_image;  // of the chunk: the depths' offsets count from here
  Strides source, gradient, mask, result;
  int64_t first_source, first_gradient, first_mask;  // of the group and the chunk
  int64_t first_result;

  // For the depths from `begin` on.
  __device__ void set_wgrad(const Conv2dProblem& problem, int group, int begin) {
    h = fprop_axis(problem.P, problem.H, problem.R, problem.pad_top, problem.stride_h,
                   problem.dilation_h);
    w = fprop_axis(problem.Q, problem.W, problem.S, problem.pad_left, problem.stride_w,
                   problem.dilation_w);
    columns = problem.group_filters(), channels = problem.group_channels();
    rows = channels * problem.R * problem.S;
    first_image = begin / (problem.P * problem.Q);
    source = problem.input, gradient = problem.output, mask = problem.relu;
    result = problem.weight;
    const int first_column = group * columns;
    first_source = source.at(first_image, group * channels, 0, 0);
    first_gradient = gradient.at(first_image, first_column, 0, 0);
    first_mask = mask.at(first_image, first_column, 0, 0);
    first_result = result.at(first_column, 0, 0, 0);
  }

  __device__ Place row(int index) const {
    const auto [c, r, s] = tap_of<kChannelsFastest>(index, channels, h.taps, w.taps);
    return {first_source + source.at(0, c, r * h.distance, s * w.distance), 0,
            1u << r | 1u << (kMostGatherTaps + s)};
  }
  __device__ Place column(int index, int = 0) const {
    return {first_gradient + index * gradient.c, first_mask + index * mask.c, 0};
  }

  __device__ void depth(int index, Place& row, Place& column) const {
    const int line = index / w.results, j = index % w.results;
    const int n = line / h.results - first_image, i = line % h.results;
    row = {source.at(n, 0, h.start(i), w.start(j)), 0,
           h.closed(i) | w.closed(j) << kMostGatherTaps};
    column = {gradient.at(n, 0, i, j), mask.at(n, 0, i, j), 0};
  }

  __device__ int64_t result_row(int index) const {
    const auto [c, r, s] = tap_of<kChannelsFastest>(index, channels, h.taps, w.taps);
    return first_result + result.at(0, c, r, s);
  }
  __device__ int64_t result_column() const { return result.n; }
};

}  // namespace cnnkernels::CNN_TARGET
