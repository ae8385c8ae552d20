// tiled: conv + bias + ReLU + pool. The convolution is that of conv2d_tiled.cuh; its tiles of 8 x
// 32 outputs lie so that they hold whole windows of the pool, and a warp pools its own from shared
// memory:
//
//      8 x 32 sums of 8 filters,      bias, ReLU,           windows side by side, one a lane:
//      a column a lane                rounded to T          2 x 2 with stride 2: 4 x 16 of them
//    +--+--+--+--+-  -+           +--+--+--+--+-  -+        +-----+-----+-
//    |  |  |  |  | .. |  ------>  |  .  |  .  | .. |  --->  | max | max | ..   and their codes
//    |  |  |  |  |    |           |     |     |    |        +-----+-----+-
//    +--+--+--+--+-  -+           +--+--+--+--+-  -+
//     registers, 4 filters         shared memory            global memory
//     at a time
//
//   dgrad, wgrad   those of conv2d_tiled.cuh, on the gradient that conv2d_pool_scratch.cuh spreads
//   bgrad          is left to `direct`
//
// Cost: that of conv2d_tiled, plus 8 stores to and R*S loads a window from shared memory for the
// 64 * C*R*S multiply-adds of a lane. The convolution's output never reaches global memory: 4 bytes
// an output are not written and 4 not read again, and with a 2 x 2 pool a quarter of them, and a
// byte of code each, take their place. Windows that overlap are computed once for every tile that
// holds one whole: (8 * 32) / (6 * 30) times for 3 x 3 with stride 2.
#pragma once

#include "conv2d_pool.cuh"
#include "conv2d_tiled.cuh"

namespace cnnkernels::CNN_TARGET {

// Windows that a tile holds.
constexpr int windows_down(const Pool2dProblem& pool) {
  return whole_windows(kThreadRows, dilated_extent(pool.R, pool.dilation_h), pool.stride_h);
}
constexpr int windows_across(const Pool2dProblem& pool) {
  return whole_windows(kWarpSize, dilated_extent(pool.S, pool.dilation_w), pool.stride_w);
}

// fprop's tiles hold whole windows, which are pooled.
template <class T>
struct PooledOutput {
  Pool2dProblem pool;
  bool average;
  T* output;
  Codes codes;

  // Of the windows, in the pooled output.
  __device__ TilePosition windows(int tile) const {
    return TilePosition(tile, pool.P, pool.Q, windows_down(pool), windows_across(pool));
  }
  __device__ TilePosition position(const Conv2dProblem&, int tile) const {
    TilePosition at = windows(tile);
    at.row = pool.input_h(at.row, 0), at.column = pool.input_w(at.column, 0);
    return at;
  }

  template <class A>
  __device__ void take(const Conv2dProblem& problem, const Epilogue& epilogue, int tile,
                       int first_k, const ThreadSums<A>& sums) const {
    constexpr int kFilters = kThreadFilters<A> / 2;
    using Tile = PoolTile<T, kFilters, kThreadRows, kWarpSize>;
    SHARED_ARRAY(T, values, [kTileWarps][Tile::kSize]);
    const Tile staged{pool, values[threadIdx.y]};
    const TilePosition at = position(problem, tile), first = windows(tile);
    const bool in_image = inside(at.column + threadIdx.x, problem.Q);
    const T outside = static_cast<T>(average ? AverageWindow<T>::kOutside : MaxWindow<T>::kOutside);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = first_k + half * kFilters;
      const int filters = min(kFilters, problem.K - k);
#pragma unroll
      for (int i = 0; i < kFilters; ++i) {
        if (i >= filters) break;
#pragma unroll
        for (int row = 0; row < kThreadRows; ++row) {
          const bool is_output = in_image && inside(at.row + row, problem.P);
          const T value = finish<T>(sums[half * kFilters + i][row], epilogue, k + i);
          staged.values[i * Tile::kPlane + staged.place(row, threadIdx.x)] =
              is_output ? value : outside;
        }
      }
      __syncwarp();
      if (average)
        staged.template take_windows<AverageWindow<T>>(at.n, k, filters, first.row, first.column,
                                                       output, codes);
      else
        staged.template take_windows<MaxWindow<T>>(at.n, k, filters, first.row, first.column,
                                                   output, codes);
      __syncwarp();  // all have read before the other filters are written
    }
  }
};

}  // namespace cnnkernels::CNN_TARGET
