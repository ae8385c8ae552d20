#include <climits>
#include <type_traits>

#include "../registry.h"
#include "conv2d_tiled.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t output_tiles(const Conv2dProblem& problem) {
  return problem.N * ceil_divide(problem.P, kThreadRows) * ceil_divide(problem.Q, kWarpSize);
}

// Of dgrad; they begin where the padding does, or up to a stride later.
int64_t input_tiles(const Conv2dProblem& problem) {
  const int height = problem.H + problem.pad_top % problem.stride_h;
  const int width = problem.W + problem.pad_left % problem.stride_w;
  return problem.N * ceil_divide(height, kTileWarps * kThreadRows) *
         ceil_divide(width, kWarpSize * problem.stride_w);
}

const char* unsupported(const Conv2dProblem& problem, Dtype) {
  constexpr int kMostBlocksDown = 65535;
  if (problem.groups != 1) return "groups";
  if (problem.C > kMostChannels) return "more than 4 input channels";
  if (problem.R > kMostTaps || problem.S > kMostTaps) return "filters larger than 7x7";
  if (problem.stride_h > kMostStride || problem.stride_w > kMostStride)
    return "strides larger than 2";
  if (problem.dilation_h != 1 || problem.dilation_w != 1) return "dilation";
  if (problem.K > kMostBlocksDown) return "more filters than a grid has blocks";
  return output_tiles(problem) > INT_MAX || input_tiles(problem) > INT_MAX
             ? "more tiles than a grid has blocks"
             : nullptr;
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls body(R, stride) with those constants that the kernel for the problem is compiled with.
template <class Body>
void with_size(const Conv2dProblem& problem, const Body& body) {
  const auto with_stride = [&](auto stride) {
    if (problem.R == 3) return body(Constant<3>(), stride);
    if (problem.R == 5) return body(Constant<5>(), stride);
    if (problem.R == 7) return body(Constant<7>(), stride);
    body(Constant<0>(), Constant<0>());
  };
  if (problem.stride_h != problem.stride_w) return body(Constant<0>(), Constant<0>());
  if (problem.stride_h == 1) return with_stride(Constant<1>());
  with_stride(Constant<2>());
}

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto warps = ceil_divide(problem.K, kThreadFilters<Accumulator<T>>);
    const auto blocks = ceil_divide(warps, kTileWarps);
    const dim3 grid(output_tiles(problem), blocks), block(kWarpSize, ceil_divide(warps, blocks));
    with_size(problem, [&](auto R, auto stride) {
      launch<conv2d_tiled_fprop<T, R.value, stride.value>>(
          grid, block, 0, stream, problem, static_cast<const T*>(input),
          static_cast<const T*>(weight), epilogue, static_cast<T*>(output));
    });
  });
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, Stream stream) {
  const dim3 grid(input_tiles(problem), problem.C), block(kWarpSize, kTileWarps);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_size(problem, [&](auto R, auto stride) {
      launch<conv2d_tiled_dgrad<T, GradOutput<T>, R.value, stride.value>>(
          grid, block, 0, stream, problem, grad_output_of<T>(grad_output, relu_output),
          static_cast<const T*>(weight), static_cast<T*>(grad_input));
    });
  });
}

// From so many pairs of filter and channel on, a block has all columns of taps; else one.
constexpr int kManyBlocks = 96;

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, void*, Stream stream) {
  const int pairs = problem.K * problem.C;
  const int columns = pairs >= kManyBlocks ? problem.S : 1;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const dim3 block(kWarpSize, kWgradWarps<Accumulator<T>> / columns * columns);
    with_size(problem, [&](auto R, auto stride) {
      const dim3 grid(pairs, problem.S / columns, R.value > 0 ? 1 : problem.R);
      launch<conv2d_tiled_wgrad<T, GradOutput<T>, R.value, stride.value>>(
          grid, block, 0, stream, problem, grad_output_of<T>(grad_output, relu_output),
          static_cast<const T*>(input), static_cast<T*>(grad_weight));
    });
  });
}

}  // namespace

Conv2dAlgorithm conv2d_tiled() { return {"tiled", unsupported, fprop, dgrad, wgrad, nullptr}; }

}  // namespace cnnkernels::CNN_TARGET
