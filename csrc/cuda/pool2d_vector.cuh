// vector: max and average pooling, 16 bytes of neighbours at a time.
//
//   AlongChannels   channels_last: a thread takes the same window of 16 bytes of channels. A tap is
//                   a load of 16 bytes; 16 bytes of outputs and a code each are stored at once.
//   AlongColumns    NCHW, windows of two columns every two columns: a thread takes the windows of
//                   16 bytes of columns. A row of taps is a load; half as many outputs are stored.
//
//                       w     0   1   2   3           float32: two windows a thread
//                     r = 0 [ x   x | x   x ]  16 B
//                     r = 1 [ x   x | x   x ]  16 B   ->  [ y   y ]  8 B,  [ c   c ]  2 B
//
// In a warp the loads of a tap, the outputs and the codes lie side by side: a request moves no byte
// that nobody asked for.
//
// Backward, a thread takes the same windows where these have no pixel in common: it loads their
// gradients and codes once, and stores the pixels from their first one to the next window's.
//
//   backward               windows apart    a thread a strip of outputs
//   backward_overlapping   any, AlongChannels: a thread a strip of inputs walks the windows over it
//                          and adds up in their order
//
// Each result is written once, by one thread: no atomics, the same bits every run, and those of
// `direct`.
//
// Cost: R*S comparisons or additions an output. Bound: memory traffic, in bytes
// sizeof(T) * N*C*(H*W + P*Q), and N*C*P*Q for the codes; with windows apart no byte is asked for
// twice, overlapping ones meet in the caches.
#pragma once

#include <cstring>
#include <limits>

#include "argmax.cuh"
#include "dtype.cuh"
#include "index.cuh"

namespace cnnkernels::CNN_TARGET {

struct AlongChannels {
  static constexpr bool kChannels = true;
  static constexpr int kStep = 1;  // neighbours a window
};

struct AlongColumns {
  static constexpr bool kChannels = false;
  static constexpr int kStep = 2;
};

constexpr int kVectorBytes = 16;

// Inputs and outputs of a strip, a thread's share.
template <class T>
constexpr int kInputs = kVectorBytes / static_cast<int>(sizeof(T));
template <class Along, class T>
constexpr int kOutputs = kInputs<T> / Along::kStep;

template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = unsigned char;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<8> {
  using type = unsigned long long;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// Neighbours that are loaded and stored as one word.
template <class T, int kCount>
struct Pack {
  using Word = typename WordOf<kCount * sizeof(T)>::type;

  T lane[kCount];

  __device__ static Pack load(const T* from) {
    const Word word = *reinterpret_cast<const Word*>(from);
    Pack pack;
    memcpy(static_cast<void*>(pack.lane), &word, sizeof word);
    return pack;
  }
  __device__ void store(T* to) const {
    Word word;
    memcpy(static_cast<void*>(&word), lane, sizeof word);
    *reinterpret_cast<Word*>(to) = word;
  }
};

// The first element of the thread's own strip of outputs or inputs; n is N or more where it has
// none.
template <class Along, class T, class Problem>
__device__ Position own_outputs(const Problem& problem) {
  constexpr int kCount = kOutputs<Along, T>;
  if constexpr (Along::kChannels) {
    Position at = position_channels_last(global_thread(), problem.C / kCount, problem.P, problem.Q);
    at.c *= kCount;
    return at;
  } else {
    Position at = position_nchw(global_thread(), problem.C, problem.P, problem.Q / kCount);
    at.w *= kCount;
    return at;
  }
}

template <class T, class Problem>
__device__ Position own_inputs(const Problem& problem) {
  constexpr int kCount = kInputs<T>;
  Position at = position_channels_last(global_thread(), problem.C / kCount, problem.H, problem.W);
  at.c *= kCount;
  return at;
}

__device__ inline int64_t offset_of(const Strides& strides, const Position& at) {
  return strides.at(at.n, at.c, at.h, at.w);
}

// Calls body(window, x, tap) for the taps of the strip's windows, each window's in row-major order.
template <class Along, class T, class Problem, class Body>
__device__ void for_taps(const Problem& problem, const Position& at, const T* __restrict__ input,
                         const Body& body) {
  const Range rows = problem.rows(at.h);
  const Range columns = Along::kChannels ? problem.columns(at.w) : Range{0, 1};
  const int64_t down = problem.dilation_h * problem.input.h;
  const int64_t right = problem.dilation_w * problem.input.w;
  const T* window =
      input + problem.input.at(at.n, at.c, problem.input_h(at.h, 0), problem.input_w(at.w, 0));
  // One loop, so that the loads of a whole small window are on their way together.
  int left = is_empty(rows, columns) ? 0 : (rows.end - rows.begin) * (columns.end - columns.begin);
  for (int r = rows.begin, s = columns.begin; left > 0; --left) {
    const auto taps = Pack<T, kInputs<T>>::load(window + r * down + s * right);
    const int tap = r * problem.S + s;
#pragma unroll
    for (int i = 0; i < kInputs<T>; ++i)
      body(i / Along::kStep, static_cast<Accumulator<T>>(taps.lane[i]), tap + i % Along::kStep);
    const bool row_ends = ++s == columns.end;
    r += row_ends, s = row_ends ? columns.begin : s;
  }
}

template <class Along, class T, class Problem>
__device__ void store_codes(NoArgmax, const Problem&, const Position&, const int*) {}

template <class Along, class T, class Problem>
__device__ void store_codes(WindowCode<uint8_t> argmax, const Problem& problem, const Position& at,
                            const int* taps) {
  Pack<uint8_t, kOutputs<Along, T>> codes;
#pragma unroll
  for (int i = 0; i < kOutputs<Along, T>; ++i) codes.lane[i] = static_cast<uint8_t>(taps[i]);
  codes.store(argmax.data + offset_of(problem.argmax, at));
}

template <class T, class Along, class Place, class Problem>
__global__ void max_pool2d_vector_forward(Problem problem, const T* __restrict__ input,
                                          T* __restrict__ output, Place argmax) {
  constexpr int kWindows = kOutputs<Along, T>;
  const Position at = own_outputs<Along, T>(problem);
  if (at.n >= problem.N) return;

  const int first = problem.rows(at.h).begin * problem.S + problem.columns(at.w).begin;
  Accumulator<T> best[kWindows];
  int places[kWindows];
#pragma unroll
  for (int i = 0; i < kWindows; ++i)
    best[i] = -std::numeric_limits<Accumulator<T>>::infinity(), places[i] = first;
  for_taps<Along>(problem, at, input, [&](int window, Accumulator<T> x, int tap) {
    const bool wins = x > best[window] || x != x;  // of NaNs, the last one stays
    best[window] = wins ? x : best[window];
    places[window] = wins ? tap : places[window];
  });

  Pack<T, kWindows> results;
#pragma unroll
  for (int i = 0; i < kWindows; ++i) results.lane[i] = static_cast<T>(best[i]);
  results.store(output + offset_of(problem.output, at));
  store_codes<Along, T>(argmax, problem, at, places);
}

template <class T, class Along, class Problem>
__global__ void avg_pool2d_vector_forward(Problem problem, const T* __restrict__ input,
                                          T* __restrict__ output) {
  constexpr int kWindows = kOutputs<Along, T>;
  const Position at = own_outputs<Along, T>(problem);
  if (at.n >= problem.N) return;

  Accumulator<T> sums[kWindows] = {};
  for_taps<Along>(problem, at, input,
                  [&](int window, Accumulator<T> x, int) { sums[window] += x; });

  const bool empty = is_empty(problem.rows(at.h), problem.columns(at.w));
  Pack<T, kWindows> results;
#pragma unroll
  for (int i = 0; i < kWindows; ++i) {
    const int q = at.w + (Along::kChannels ? 0 : i);
    results.lane[i] = static_cast<T>(empty ? 0 : sums[i] / problem.divisor(at.h, q));
  }
  results.store(output + offset_of(problem.output, at));
}

// The positions from window i's first to the next one's, or to the ends of the input: `size`
// positions are cut among `count` windows that start every `stride` from -pad on.
__device__ inline Range own_positions(int i, int stride, int pad, int count, int size) {
  const int begin = i * stride - pad, end = begin + stride;
  return {i == 0 || begin < 0 ? 0 : begin, i == count - 1 ? size : end < 0 ? 0 : end};
}

// Stores the pixels that belong to the strip's windows, and to no others: gradient(window, tap) of
// a window's tap, zero between the windows. Dilation is 1.
template <class Along, class T, class Gradient>
__device__ void store_own_pixels(const Pool2dProblem& problem, const Position& at,
                                 T* __restrict__ grad_input, const Gradient& gradient) {
  const int top = problem.input_h(at.h, 0), left = problem.input_w(at.w, 0);
  const Range rows = own_positions(at.h, problem.stride_h, problem.pad_h, problem.P, problem.H);
  Range columns = {left, left + 1};
  if (Along::kChannels)
    columns = own_positions(at.w, problem.stride_w, problem.pad_w, problem.Q, problem.W);
  T* row = grad_input + problem.input.at(at.n, at.c, rows.begin, columns.begin);
  for (int h = rows.begin; h < rows.end; ++h, row += problem.input.h) {
    T* to = row;
    for (int w = columns.begin; w < columns.end; ++w, to += problem.input.w) {
      const int r = h - top, s = w - left;
      Pack<T, kInputs<T>> pixels;
#pragma unroll
      for (int i = 0; i < kInputs<T>; ++i) {
        const bool is_tap = r < problem.R && s < problem.S;
        const int tap = r * problem.S + s + i % Along::kStep;
        pixels.lane[i] =
            static_cast<T>(is_tap ? gradient(i / Along::kStep, tap) : Accumulator<T>(0));
      }
      pixels.store(to);
    }
  }
}

template <class T, class Along>
__global__ void max_pool2d_vector_backward(Pool2dProblem problem, const T* __restrict__ grad_output,
                                           WindowCode<uint8_t> argmax, T* __restrict__ grad_input) {
  constexpr int kWindows = kOutputs<Along, T>;
  const Position at = own_outputs<Along, T>(problem);
  if (at.n >= problem.N) return;
  const auto gradients = Pack<T, kWindows>::load(grad_output + offset_of(problem.output, at));
  const auto codes = Pack<uint8_t, kWindows>::load(argmax.data + offset_of(problem.argmax, at));
  store_own_pixels<Along>(problem, at, grad_input, [&](int window, int tap) {
    return codes.lane[window] == tap ? static_cast<Accumulator<T>>(gradients.lane[window])
                                     : Accumulator<T>(0);
  });
}

template <class T, class Along>
__global__ void avg_pool2d_vector_backward(Pool2dProblem problem, const T* __restrict__ grad_output,
                                           T* __restrict__ grad_input) {
  constexpr int kWindows = kOutputs<Along, T>;
  const Position at = own_outputs<Along, T>(problem);
  if (at.n >= problem.N) return;
  const auto gradients = Pack<T, kWindows>::load(grad_output + offset_of(problem.output, at));
  Accumulator<T> shares[kWindows];
#pragma unroll
  for (int i = 0; i < kWindows; ++i)
    shares[i] = static_cast<Accumulator<T>>(gradients.lane[i]) /
                problem.divisor(at.h, at.w + (Along::kChannels ? 0 : i));
  store_own_pixels<Along>(problem, at, grad_input, [&](int window, int) { return shares[window]; });
}

// Stores the sums of what the windows over the thread's own strip of inputs give it. Calls
// add(output, tap, sums) for each, with its position and the tap that reads the strip.
template <class T, class Problem, class Add>
__device__ void store_sums_over_windows(const Problem& problem, T* __restrict__ grad_input,
                                        const Add& add) {
  const Position at = own_inputs<T>(problem);
  if (at.n >= problem.N) return;
  const Range rows = problem.windows_over_row(at.h), columns = problem.windows_over_column(at.w);

  Accumulator<T> sums[kInputs<T>] = {};
  for (int p = rows.begin; p < rows.end; ++p) {
    const int r = problem.tap_row(at.h, p);
    if (r < 0) continue;
    for (int q = columns.begin; q < columns.end; ++q) {
      const int s = problem.tap_column(at.w, q);
      if (s >= 0) add(Position{at.n, at.c, p, q}, r * problem.S + s, sums);
    }
  }
  Pack<T, kInputs<T>> pixels;
#pragma unroll
  for (int i = 0; i < kInputs<T>; ++i) pixels.lane[i] = static_cast<T>(sums[i]);
  pixels.store(grad_input + offset_of(problem.input, at));
}

template <class T, class Problem>
__global__ void max_pool2d_vector_backward_overlapping(Problem problem,
                                                       const T* __restrict__ grad_output,
                                                       WindowCode<uint8_t> argmax,
                                                       T* __restrict__ grad_input) {
  constexpr int kCount = kInputs<T>;
  store_sums_over_windows(
      problem, grad_input, [&](const Position& at, int tap, Accumulator<T>* sums) {
        const auto codes = Pack<uint8_t, kCount>::load(argmax.data + offset_of(problem.argmax, at));
        const auto gradients = Pack<T, kCount>::load(grad_output + offset_of(problem.output, at));
#pragma unroll
        for (int i = 0; i < kCount; ++i)
          if (codes.lane[i] == tap) sums[i] += static_cast<Accumulator<T>>(gradients.lane[i]);
      });
}

template <class T, class Problem>
__global__ void avg_pool2d_vector_backward_overlapping(Problem problem,
                                                       const T* __restrict__ grad_output,
                                                       T* __restrict__ grad_input) {
  constexpr int kCount = kInputs<T>;
  store_sums_over_windows(problem, grad_input, [&](const Position& at, int, Accumulator<T>* sums) {
    const auto gradients = Pack<T, kCount>::load(grad_output + offset_of(problem.output, at));
    const auto divisor = static_cast<Accumulator<T>>(problem.divisor(at.h, at.w));
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      sums[i] += static_cast<Accumulator<T>>(gradients.lane[i]) / divisor;
  });
}

}  // namespace cnnkernels::CNN_TARGET
