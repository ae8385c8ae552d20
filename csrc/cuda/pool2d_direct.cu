#include "../registry.h"
#include "pool2d_direct.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

dim3 grid_of_outputs(const Pool2dProblem& problem) {
  return grid_for(static_cast<int64_t>(problem.N) * problem.C * problem.P * problem.Q);
}

dim3 grid_of_inputs(const Pool2dProblem& problem) {
  return grid_for(static_cast<int64_t>(problem.N) * problem.C * problem.H * problem.W);
}

void max_forward(const Pool2dProblem& problem, Dtype dtype, const void* input, void* output,
                 void* argmax, Argmax kind, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_argmax(kind, argmax, [&](auto place) {
      launch<max_pool2d_direct_forward<T, decltype(place)>>(
          grid_of_outputs(problem), kThreadsPerBlock, 0, stream, problem,
          static_cast<const T*>(input), static_cast<T*>(output), place);
    });
  });
}

void max_backward(const Pool2dProblem& problem, Dtype dtype, const void* grad_output,
                  const void* argmax, Argmax kind, void* grad_input, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_stored_argmax(kind, argmax, [&](auto place) {
      launch<max_pool2d_direct_backward<T, decltype(place)>>(
          grid_of_inputs(problem), kThreadsPerBlock, 0, stream, problem,
          static_cast<const T*>(grad_output), place, static_cast<T*>(grad_input));
    });
  });
}

void max_gather(const Pool2dProblem& problem, Dtype dtype, const void* input, const void* argmax,
                Argmax kind, void* output, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_stored_argmax(kind, argmax, [&](auto place) {
      launch<max_pool2d_direct_gather<T, decltype(place)>>(
          grid_of_outputs(problem), kThreadsPerBlock, 0, stream, problem,
          static_cast<const T*>(input), place, static_cast<T*>(output));
    });
  });
}

void avg_forward(const Pool2dProblem& problem, Dtype dtype, const void* input, void* output,
                 Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<avg_pool2d_direct_forward<T>>(grid_of_outputs(problem), kThreadsPerBlock, 0, stream,
                                         problem, static_cast<const T*>(input),
                                         static_cast<T*>(output));
  });
}

void avg_backward(const Pool2dProblem& problem, Dtype dtype, const void* grad_output,
                  void* grad_input, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<avg_pool2d_direct_backward<T>>(grid_of_inputs(problem), kThreadsPerBlock, 0, stream,
                                          problem, static_cast<const T*>(grad_output),
                                          static_cast<T*>(grad_input));
  });
}

}  // namespace

Pool2dAlgorithm pool2d_direct() {
  return {"direct",    runs_everything<Pool2dProblem>,
          max_forward, max_backward,
          max_gather,  avg_forward,
          avg_backward};
}

}  // namespace cnnkernels::CNN_TARGET
