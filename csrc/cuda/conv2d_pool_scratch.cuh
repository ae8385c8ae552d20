// conv + bias + ReLU + pool by way of scratch memory, for an algorithm that has the convolution
// alone.
//
//   fprop          the convolution's fprop leaves its output in scratch memory; a second kernel
//                  pools it
//   dgrad, wgrad   a kernel spreads the pooled gradient: that of the convolution's output, ReLU
//                  included, lies in scratch memory for the convolution's own passes. To look each
//                  gradient's windows up where it is used, as `direct` does, takes more
//                  instructions than the products; and a matrix product finds its elements by sums
//                  of offsets, which a window's is not.
//   bgrad          is left to `direct`
//
// Cost: that of the passes; the convolution's output or its gradient, N*K*P*Q, is written and read
// once more by each, as the modules would one after the other. Scratch memory is gone when the pass
// is: training still keeps the codes alone.
#pragma once

#include "../registry.h"
#include "conv2d.cuh"
#include "conv2d_pool.cuh"
#include "index.cuh"

namespace cnnkernels::CNN_TARGET {

// Pools the convolution's output, a thread per pooled output.
template <class T, class Window>
__global__ void conv2d_pool_outputs(Conv2dPoolProblem problem, const T* __restrict__ outputs,
                                    T* __restrict__ output, Codes codes) {
  const Pool2dProblem& pool = problem.pool;
  const auto [n, k, i, j] = position_of(global_thread(), pool.C, pool.P, pool.Q, pool.output);
  if (n >= pool.N) return;
  const Range rows = pool.rows(i), columns = pool.columns(j);
  Window window;
  for (int r = rows.begin; r < rows.end; ++r)
    for (int s = columns.begin; s < columns.end; ++s)
      window.add(outputs[problem.conv.output.at(n, k, pool.input_h(i, r), pool.input_w(j, s))],
                 r * pool.S + s);
  output[pool.output.at(n, k, i, j)] = window.result(pool.divisor(i, j));
  codes.store(pool.argmax.at(n, k, i, j), window.code());
}

// The gradient of the convolution's output, a thread per output.
template <class T>
__global__ void conv2d_pool_spread(Conv2dProblem problem, PooledGradOutput<T> grad_output,
                                   T* __restrict__ spread) {
  const auto [n, k, p, q] =
      position_of(global_thread(), problem.K, problem.P, problem.Q, problem.output);
  if (n >= problem.N) return;
  spread[problem.output.at(n, k, p, q)] = static_cast<T>(grad_output.at(problem, n, k, p, q));
}

// ---- for launchers ----

// The convolution with its output in scratch memory, laid out like the pooled one.
inline Conv2dProblem unpooled(const Conv2dPoolProblem& problem) {
  Conv2dProblem conv = problem.conv;
  const Strides& pooled = problem.pool.output;
  const int64_t K = conv.K, P = conv.P, Q = conv.Q;
  conv.output =
      pooled.c < pooled.w ? Strides{P * Q * K, 1, Q * K, K} : Strides{K * P * Q, P * Q, Q, 1};
  conv.relu = Strides{};
  return conv;
}

// Its bytes, 16-byte aligned.
inline int64_t output_bytes(const Conv2dProblem& conv, Dtype dtype) {
  int64_t bytes = static_cast<int64_t>(conv.N) * conv.K * conv.P * conv.Q;
  with_dtype(dtype, [&](auto zero) { bytes *= sizeof(zero); });
  return ceil_divide(bytes, 16) * 16;
}

// Pools outputs, or spreads a pooled gradient; problem.conv is unpooled().
void pool_outputs(const Conv2dPoolProblem& problem, Dtype dtype, const void* outputs, void* output,
                  void* code, Stream stream);
void spread_gradient(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output,
                     const void* code, void* spread, Stream stream);

// The passes of the algorithm that kConv2d is.
template <Conv2dAlgorithm (*kConv2d)()>
struct PoolByScratch {
  static void fprop(const Conv2dPoolProblem& problem, Dtype dtype, const void* input,
                    const void* weight, Epilogue epilogue, void* output, void* code,
                    void* workspace, Stream stream) {
    const Conv2dPoolProblem own = {unpooled(problem), problem.pool, problem.average};
    kConv2d().fprop(own.conv, dtype, input, weight, epilogue, workspace, nullptr, stream);
    pool_outputs(own, dtype, workspace, output, code, stream);
  }

  static void dgrad(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output,
                    const void* code, const void* weight, void* grad_input, void* workspace,
                    Stream stream) {
    const Conv2dProblem conv = spread(problem, dtype, grad_output, code, workspace, stream);
    kConv2d().dgrad(conv, dtype, workspace, nullptr, weight, grad_input, nullptr, stream);
  }

  static void wgrad(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output,
                    const void* code, const void* input, void* grad_weight, void* workspace,
                    Stream stream) {
    const Conv2dProblem conv = spread(problem, dtype, grad_output, code, workspace, stream);
    void* rest = static_cast<char*>(workspace) + output_bytes(conv, dtype);
    kConv2d().wgrad(conv, dtype, workspace, nullptr, input, grad_weight, rest, stream);
  }

  static int64_t workspace(const Conv2dPoolProblem& problem, Dtype dtype, ConvPass pass) {
    const Conv2dProblem conv = unpooled(problem);
    return output_bytes(conv, dtype) + workspace_bytes(kConv2d(), conv, dtype, pass);
  }

  static const char* unsupported(const Conv2dPoolProblem& problem, Dtype dtype) {
    if (const char* reason = unfit_for_codes(problem, dtype)) return reason;
    return kConv2d().unsupported(unpooled(problem), dtype);
  }

 private:
  static Conv2dProblem spread(const Conv2dPoolProblem& problem, Dtype dtype,
                              const void* grad_output, const void* code, void* workspace,
                              Stream stream) {
    const Conv2dPoolProblem own = {unpooled(problem), problem.pool, problem.average};
    spread_gradient(own, dtype, grad_output, code, workspace, stream);
    return own.conv;
  }
};

}  // namespace cnnkernels::CNN_TARGET
