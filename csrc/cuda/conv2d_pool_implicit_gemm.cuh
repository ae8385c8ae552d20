// implicit_gemm: conv + bias + ReLU + pool. The product is that of conv2d_implicit_gemm.cuh, its
// rows in the order of windows (conv2d_pool_gemm.cuh).
#pragma once

#include "conv2d_implicit_gemm.cuh"
#include "conv2d_pool_gemm.cuh"

namespace cnnkernels::CNN_TARGET {

// The parts of long sums wait in `parts`, [column][row].
template <class T, class Shape>
struct PooledSink {
  PooledSums<T> pooled;
  const Shape& shape;
  T* parts;

  __device__ T* waiting(int64_t, int row, int column) const {
    return parts + static_cast<int64_t>(shape.first_column + column) * shape.rows + row;
  }
  __device__ void store(bool are_whole, T* place, int64_t offset, int row, int column,
                        const T (&sums)[kWindowTaps]) const {
    if (are_whole)
      pooled.store(shape, offset, row, column, sums);
    else
      store_to(place, sums);
  }
};

// Block y is group y.
template <class T, int kRows, int kColumns, bool kPacks>
__global__ void __launch_bounds__(kBlockThreads<T, kRows, kColumns>,
                                  (kBlocks<T, kRows, kColumns, true>))
    conv2d_pool_implicit_gemm_fprop(Conv2dPoolProblem problem, const T* __restrict__ input,
                                    const T* __restrict__ weight, Epilogue epilogue,
                                    T* __restrict__ output, Codes codes, T* __restrict__ parts) {
  using Gemm = ImplicitGemm<T, kRows, kColumns, kPacks>;
  using Shape = WindowGemm<kPacks>;
  SHARED_ARRAY(Shape, shape, [1]);
  if (threadIdx.x == 0) shape[0].set_fprop(problem, blockIdx.y);
  __syncthreads();
  run_gemm<typename Gemm::template Fprop<WindowOrder<kPacks>>>(
      shape[0], Plain<T>{input}, Plain<T>{weight}, 0, shape[0].end,
      PooledSink<T, Shape>{{problem, epilogue, output, codes}, shape[0], parts});
}

}  // namespace cnnkernels::CNN_TARGET
