#include "conv2d_direct.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, Stream stream) {
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.K * problem.P * problem.Q;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<conv2d_direct_fprop<T>>(grid_for(outputs), kThreadsPerBlock, 0, stream, problem,
                                   static_cast<const T*>(input), static_cast<const T*>(weight),
                                   epilogue, static_cast<T*>(output));
  });
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, Stream stream) {
  const int64_t inputs = static_cast<int64_t>(problem.N) * problem.C * problem.H * problem.W;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<conv2d_direct_dgrad<T>>(grid_for(inputs), kThreadsPerBlock, 0, stream, problem,
                                   grad_output_of<T>(grad_output, relu_output),
                                   static_cast<const T*>(weight), static_cast<T*>(grad_input));
  });
}

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, Stream stream) {
  const int64_t weights =
      static_cast<int64_t>(problem.K) * problem.group_channels() * problem.R * problem.S;
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.P * problem.Q;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto grad = grad_output_of<T>(grad_output, relu_output);
    const auto* in = static_cast<const T*>(input);
    auto* out = static_cast<T*>(grad_weight);
    if (outputs <= kOutputsOfOneThread)
      launch<conv2d_direct_wgrad<T, 1>>(grid_for(weights), kThreadsPerBlock, 0, stream, problem,
                                        grad, in, out);
    else
      launch<conv2d_direct_wgrad<T, kThreadsPerSum>>(
          dim3(static_cast<unsigned>(weights)), kThreadsPerSum, 0, stream, problem, grad, in, out);
  });
}

void bgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, void* grad_bias, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<conv2d_direct_bgrad<T>>(dim3(problem.K), kThreadsPerSum, 0, stream, problem,
                                   grad_output_of<T>(grad_output, relu_output),
                                   static_cast<T*>(grad_bias));
  });
}

}  // namespace

Conv2dAlgorithm conv2d_direct() {
  return {"direct", runs_everything<Conv2dProblem>, fprop, dgrad, wgrad, bgrad};
}

}  // namespace cnnkernels::CNN_TARGET
