// tensor_core: conv + bias + ReLU + pool. The product is that of conv2d_tensor_core.cuh, its rows
// in the order of windows (conv2d_pool_gemm.cuh).
#pragma once

#include "conv2d_pool_gemm.cuh"
#include "conv2d_tensor_core.cuh"

namespace cnnkernels::CNN_TARGET {

// Block y is group y.
template <class T, bool kIsLarge, bool kPacks>
__global__ void __launch_bounds__((TensorCore<T, kIsLarge, kPacks>::Tile::kThreads))
    conv2d_pool_tensor_core_fprop(Conv2dPoolProblem problem, const T* __restrict__ input,
                                  const T* __restrict__ weight, Epilogue epilogue,
                                  T* __restrict__ output, Codes codes) {
  using Types = typename TensorCore<T, kIsLarge, kPacks>::template Fprop<WindowOrder<kPacks>>;
  using Shape = WindowGemm<kPacks>;
  SHARED_ARRAY(Shape, shape, [1]);
  DYNAMIC_SHARED(T, stages);
  if (threadIdx.x == 0) shape[0].set_fprop(problem, blockIdx.y);
  __syncthreads();
  const PooledSums<T> pooled{problem, epilogue, output, codes};
  run_mma_gemm<Types>(shape[0], Plain<T>{input}, Plain<T>{weight}, 0, shape[0].end, stages,
                      [&](int64_t offset, int row, int column, const auto& sums) {
                        pooled.store(shape[0], offset, row, column, sums);
                      });
}

}  // namespace cnnkernels::CNN_TARGET
