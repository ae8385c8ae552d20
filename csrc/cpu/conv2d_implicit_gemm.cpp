// Convolution, alone and with ReLU and pool, by the matrix product of implicit_gemm.h.
#include "bias_gradient.h"
#include "implicit_gemm.h"
#include "isa.h"
#include "pooled.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void*, Stream) {
  if (problem.N == 0) return;
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    correlate(fprop_of<T>(problem, weight), input_of<T>(problem, input),
              TensorWriter<T>{static_cast<T*>(output), problem.output, epilogue});
  });
}

void fprop(const Conv2dPoolProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void* code, void*, Stream) {
  if (problem.conv.N == 0) return;
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    correlate(fprop_of<T>(problem.conv, weight), input_of<T>(problem.conv, input),
              PoolWriter<T>(problem, epilogue, output, code));
  });
}

template <class T, class Reader>
void dgrad(const Conv2dProblem& problem, const Reader& gradient, const void* weight,
           void* grad_input) {
  if (problem.N == 0 || problem.C == 0) return;
  const Strides& input = problem.input;
  const Strides spread{input.n, input.c, input.h * problem.stride_h, input.w * problem.stride_w};
  for (int y = 0; y < least(problem.stride_h, problem.H); ++y) {
    for (int x = 0; x < least(problem.stride_w, problem.W); ++x) {
      T* target = static_cast<T*>(grad_input) + input.at(0, 0, y, x);
      correlate(dgrad_of<T>(problem, weight, y, x), gradient,
                TensorWriter<T>{target, spread, {nullptr, 0, false}});
    }
  }
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, void*, Stream) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    dgrad<T>(problem, gradient_of<T>(problem, grad_output, relu_output), weight, grad_input);
  });
}

void dgrad(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output, const void* code,
           const void* weight, void* grad_input, void*, Stream) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    dgrad<T>(problem.conv, PooledReader<T>(problem, grad_output, code), weight, grad_input);
  });
}

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, void*, Stream) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    weight_gradient(problem, gradient_of<T>(problem, grad_output, relu_output), input,
                    static_cast<T*>(grad_weight));
  });
}

void wgrad(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output, const void* code,
           const void* input, void* grad_weight, void*, Stream) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    weight_gradient(problem.conv, PooledReader<T>(problem, grad_output, code), input,
                    static_cast<T*>(grad_weight));
  });
}

void bgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, void* grad_bias, Stream) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    bias_gradient(problem, gradient_of<T>(problem, grad_output, relu_output),
                  static_cast<T*>(grad_bias));
  });
}

void bgrad(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output, const void* code,
           void* grad_bias, Stream) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    bias_gradient(problem.conv, PooledReader<T>(problem, grad_output, code),
                  static_cast<T*>(grad_bias));
  });
}

}  // namespace

Conv2dAlgorithm conv2d_implicit_gemm() {
  return {"implicit_gemm", runs_everything<Conv2dProblem>, fprop, dgrad, wgrad, bgrad};
}

Conv2dPoolAlgorithm conv2d_pool_implicit_gemm() {
  return {"implicit_gemm", unfit_for_codes, fprop, dgrad, wgrad, bgrad};
}

}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
