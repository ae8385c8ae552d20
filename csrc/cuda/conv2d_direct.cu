#include "../registry.h"
#include "conv2d_pool_direct.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

// ---- the backward passes, for any source of the gradient ----

template <class T, class Gradient>
void launch_dgrad(const Conv2dProblem& problem, const Gradient& grad_output, const void* weight,
                  void* grad_input, Stream stream) {
  const int64_t inputs = static_cast<int64_t>(problem.N) * problem.C * problem.H * problem.W;
  launch<conv2d_direct_dgrad<T, Gradient>>(grid_for(inputs), kThreadsPerBlock, 0, stream, problem,
                                           grad_output, static_cast<const T*>(weight),
                                           static_cast<T*>(grad_input));
}

template <class T, class Gradient>
void launch_wgrad(const Conv2dProblem& problem, const Gradient& grad_output, const void* input,
                  void* grad_weight, Stream stream) {
  const int64_t weights =
      static_cast<int64_t>(problem.K) * problem.group_channels() * problem.R * problem.S;
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.P * problem.Q;
  const auto* in = static_cast<const T*>(input);
  auto* out = static_cast<T*>(grad_weight);
  if (outputs <= kOutputsOfOneThread)
    launch<conv2d_direct_wgrad<T, Gradient, 1>>(grid_for(weights), kThreadsPerBlock, 0, stream,
                                                problem, grad_output, in, out);
  else
    launch<conv2d_direct_wgrad<T, Gradient, kThreadsPerSum>>(dim3(static_cast<unsigned>(weights)),
                                                             kThreadsPerSum, 0, stream, problem,
                                                             grad_output, in, out);
}

template <class T, class Gradient>
void launch_bgrad(const Conv2dProblem& problem, const Gradient& grad_output, void* grad_bias,
                  Stream stream) {
  launch<conv2d_direct_bgrad<T, Gradient>>(dim3(problem.K), kThreadsPerSum, 0, stream, problem,
                                           grad_output, static_cast<T*>(grad_bias));
}

// ---- conv, conv + ReLU ----

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void*, Stream stream) {
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.K * problem.P * problem.Q;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<conv2d_direct_fprop<T>>(grid_for(outputs), kThreadsPerBlock, 0, stream, problem,
                                   static_cast<const T*>(input), static_cast<const T*>(weight),
                                   epilogue, static_cast<T*>(output));
  });
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, void*, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_dgrad<T>(problem, grad_output_of<T>(grad_output, relu_output), weight, grad_input,
                    stream);
  });
}

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, void*, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_wgrad<T>(problem, grad_output_of<T>(grad_output, relu_output), input, grad_weight,
                    stream);
  });
}

void bgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, void* grad_bias, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_bgrad<T>(problem, grad_output_of<T>(grad_output, relu_output), grad_bias, stream);
  });
}

// ---- conv + ReLU + pool ----

void pool_fprop(const Conv2dPoolProblem& problem, Dtype dtype, const void* input,
                const void* weight, Epilogue epilogue, void* output, void* code, void*,
                Stream stream) {
  const Pool2dProblem& pool = problem.pool;
  const int64_t outputs = static_cast<int64_t>(pool.N) * pool.C * pool.P * pool.Q;
  with_window(problem, dtype, [&](auto zero, auto window) {
    using T = decltype(zero);
    launch<conv2d_pool_direct_fprop<T, decltype(window)>>(
        grid_for(outputs), kThreadsPerBlock, 0, stream, problem, static_cast<const T*>(input),
        static_cast<const T*>(weight), epilogue, static_cast<T*>(output),
        Codes{code, problem.wide_code()});
  });
}

void pool_dgrad(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output,
                const void* code, const void* weight, void* grad_input, void*, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_dgrad<T>(problem.conv, pooled_grad_of<T>(problem, grad_output, code), weight, grad_input,
                    stream);
  });
}

void pool_wgrad(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output,
                const void* code, const void* input, void* grad_weight, void*, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_wgrad<T>(problem.conv, pooled_grad_of<T>(problem, grad_output, code), input, grad_weight,
                    stream);
  });
}

void pool_bgrad(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output,
                const void* code, void* grad_bias, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_bgrad<T>(problem.conv, pooled_grad_of<T>(problem, grad_output, code), grad_bias, stream);
  });
}

}  // namespace

Conv2dAlgorithm conv2d_direct() {
  return {"direct", runs_everything<Conv2dProblem>, fprop, dgrad, wgrad, bgrad};
}

Conv2dPoolAlgorithm conv2d_pool_direct() {
  return {"direct", unfit_for_codes, pool_fprop, pool_dgrad, pool_wgrad, pool_bgrad};
}

}  // namespace cnnkernels::CNN_TARGET
