#include <climits>

#include "../registry.h"
#include "pool2d_block.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

// Elements of the largest window: from so many on a warp takes one, or a larger block.
constexpr int64_t kLeastWindow = 33, kLeastWindowOfABlock = 1024;

int64_t window_size(const AdaptivePool2dProblem& problem) {
  return static_cast<int64_t>(problem.R) * problem.S;
}

int64_t output_pixels(const AdaptivePool2dProblem& problem) {
  return static_cast<int64_t>(problem.N) * problem.P * problem.Q;
}

const char* unsupported(const AdaptivePool2dProblem& problem, Dtype) {
  if (window_size(problem) > INT_MAX) return "more elements in a window than an int counts";
  return output_pixels(problem) * problem.C > INT_MAX ? "more outputs than a grid has blocks"
                                                      : nullptr;
}

const char* unsuited(const AdaptivePool2dProblem& problem, Dtype) {
  return window_size(problem) < kLeastWindow ? "a window this small suits a thread" : nullptr;
}

template <class T>
void forward_nchw(const AdaptivePool2dProblem& problem, const T* input, T* output, Stream stream) {
  const dim3 grid(static_cast<unsigned>(output_pixels(problem) * problem.C));
  const auto run = [&](auto threads) {
    launch<avg_pool2d_block_forward<T, threads.value>>(grid, threads.value, 0, stream, problem,
                                                       input, output);
  };
  if (window_size(problem) < kLeastWindowOfABlock)
    run(std::integral_constant<int, kWarpSize>());
  else
    run(std::integral_constant<int, kThreadsPerBlock>());
}

template <class T>
void forward_channels_last(const AdaptivePool2dProblem& problem, const T* input, T* output,
                           Stream stream) {
  const int groups = (problem.C + kBlockChannels - 1) / kBlockChannels;
  launch<avg_pool2d_block_forward_channels_last<T>>(
      dim3(static_cast<unsigned>(output_pixels(problem) * groups)),
      dim3(kBlockChannels, kBlockPixels), 0, stream, problem, input, output);
}

void avg_forward(const AdaptivePool2dProblem& problem, Dtype dtype, const void* input, void* output,
                 Stream stream) {
  const bool channels_last = problem.input.c < problem.input.w;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto forward = channels_last ? forward_channels_last<T> : forward_nchw<T>;
    forward(problem, static_cast<const T*>(input), static_cast<T*>(output), stream);
  });
}

}  // namespace

AdaptivePool2dAlgorithm adaptive_pool2d_block() {
  return {"block", unsupported, nullptr, nullptr, nullptr, avg_forward, nullptr, unsuited};
}

}  // namespace cnnkernels::CNN_TARGET
