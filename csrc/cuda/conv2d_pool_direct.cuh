// direct: conv + bias + ReLU + pool, one thread per pooled output. The convolution's output never
// reaches memory, and training keeps one byte a pooled output in its place.
//
//   fprop   a thread per pooled output (n, k, i, j)    walks its window; each tap of it is an
//                                                      output of the convolution, summed, rounded
//                                                      and cut off at zero as if it were stored
//   dgrad, wgrad, bgrad   those of conv2d_direct.cuh, whose gradient is gathered from the windows
//
// Cost: that of conv2d_direct; where windows overlap, the outputs they share are summed once for
// each. Saved: 2 * sizeof(T) * N*K*P*Q bytes forward (written and read) and as many backward.
#pragma once

#include "conv2d_direct.cuh"
#include "conv2d_pool.cuh"

namespace cnnkernels::CNN_TARGET {

template <class T, class Window>
__global__ void conv2d_pool_direct_fprop(Conv2dPoolProblem problem, const T* __restrict__ input,
                                         const T* __restrict__ weight, Epilogue epilogue,
                                         T* __restrict__ output, Codes codes) {
  const Pool2dProblem& pool = problem.pool;
  const auto [n, k, i, j] = position_of(global_thread(), pool.C, pool.P, pool.Q, pool.output);
  if (n >= pool.N) return;
  const Range rows = pool.rows(i), columns = pool.columns(j);

  Window window;
  for (int r = rows.begin; r < rows.end; ++r) {
    for (int s = columns.begin; s < columns.end; ++s) {
      const auto sum =
          direct_sum(problem.conv, input, weight, n, k, pool.input_h(i, r), pool.input_w(j, s));
      window.add(finish<T>(sum, epilogue, k), r * pool.S + s);
    }
  }
  output[pool.output.at(n, k, i, j)] = window.result(pool.divisor(i, j));
  codes.store(pool.argmax.at(n, k, i, j), window.code());
}

}  // namespace cnnkernels::CNN_TARGET
