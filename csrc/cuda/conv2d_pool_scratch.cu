#include "conv2d_pool_scratch.cuh"

namespace cnnkernels::CNN_TARGET {

void pool_outputs(const Conv2dPoolProblem& problem, Dtype dtype, const void* outputs, void* output,
                  void* code, Stream stream) {
  const Pool2dProblem& pool = problem.pool;
  const int64_t windows = static_cast<int64_t>(pool.N) * pool.C * pool.P * pool.Q;
  with_window(problem, dtype, [&](auto zero, auto window) {
    using T = decltype(zero);
    launch<conv2d_pool_outputs<T, decltype(window)>>(
        grid_for(windows), kThreadsPerBlock, 0, stream, problem, static_cast<const T*>(outputs),
        static_cast<T*>(output), Codes{code, problem.wide_code()});
  });
}

void spread_gradient(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output,
                     const void* code, void* spread, Stream stream) {
  const Conv2dProblem& conv = problem.conv;
  const int64_t outputs = static_cast<int64_t>(conv.N) * conv.K * conv.P * conv.Q;
  if (outputs == 0) return;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<conv2d_pool_spread<T>>(grid_for(outputs), kThreadsPerBlock, 0, stream, conv,
                                  pooled_grad_of<T>(problem, grad_output, code),
                                  static_cast<T*>(spread));
  });
}

}  // namespace cnnkernels::CNN_TARGET
