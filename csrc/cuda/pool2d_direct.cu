#include "../registry.h"
#include "pool2d_direct.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

template <class Problem>
dim3 grid_of_outputs(const Problem& problem) {
  return grid_for(static_cast<int64_t>(problem.N) * problem.C * problem.P * problem.Q);
}

template <class Problem>
dim3 grid_of_inputs(const Problem& problem) {
  return grid_for(static_cast<int64_t>(problem.N) * problem.C * problem.H * problem.W);
}

template <class Problem>
void max_forward(const Problem& problem, Dtype dtype, const void* input, void* output, void* argmax,
                 Argmax kind, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_argmax(kind, argmax, [&](auto place) {
      launch<max_pool2d_direct_forward<T, decltype(place), Problem>>(
          grid_of_outputs(problem), kThreadsPerBlock, 0, stream, problem,
          static_cast<const T*>(input), static_cast<T*>(output), place);
    });
  });
}

template <class Problem>
void max_backward(const Problem& problem, Dtype dtype, const void* grad_output, const void* argmax,
                  Argmax kind, void* grad_input, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_stored_argmax(kind, argmax, [&](auto place) {
      launch<max_pool2d_direct_backward<T, decltype(place), Problem>>(
          grid_of_inputs(problem), kThreadsPerBlock, 0, stream, problem,
          static_cast<const T*>(grad_output), place, static_cast<T*>(grad_input));
    });
  });
}

template <class Problem>
void max_gather(const Problem& problem, Dtype dtype, const void* input, const void* argmax,
                Argmax kind, void* output, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_stored_argmax(kind, argmax, [&](auto place) {
      launch<max_pool2d_direct_gather<T, decltype(place), Problem>>(
          grid_of_outputs(problem), kThreadsPerBlock, 0, stream, problem,
          static_cast<const T*>(input), place, static_cast<T*>(output));
    });
  });
}

template <class Problem>
void avg_forward(const Problem& problem, Dtype dtype, const void* input, void* output,
                 Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<avg_pool2d_direct_forward<T, Problem>>(grid_of_outputs(problem), kThreadsPerBlock, 0,
                                                  stream, problem, static_cast<const T*>(input),
                                                  static_cast<T*>(output));
  });
}

template <class Problem>
void avg_backward(const Problem& problem, Dtype dtype, const void* grad_output, void* grad_input,
                  Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<avg_pool2d_direct_backward<T, Problem>>(
        grid_of_inputs(problem), kThreadsPerBlock, 0, stream, problem,
        static_cast<const T*>(grad_output), static_cast<T*>(grad_input));
  });
}

template <class Problem>
PoolAlgorithm<Problem> direct() {
  return {"direct",
          runs_everything<Problem>,
          max_forward<Problem>,
          max_backward<Problem>,
          max_gather<Problem>,
          avg_forward<Problem>,
          avg_backward<Problem>};
}

}  // namespace

Pool2dAlgorithm pool2d_direct() { return direct<Pool2dProblem>(); }
AdaptivePool2dAlgorithm adaptive_pool2d_direct() { return direct<AdaptivePool2dProblem>(); }

}  // namespace cnnkernels::CNN_TARGET
