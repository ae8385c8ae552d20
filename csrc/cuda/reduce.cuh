// Sum over the threads of a block, in an order fixed by the block's size: shuffles halve each
// warp's values, then the first warp adds the warps' sums. Same inputs, same bits.
#pragma once

#include "device.h"

namespace cnnkernels::CNN_TARGET {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

template <class T>
__device__ T warp_sum(T value) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
    value += __shfl_down_sync(kFullWarp, value, distance);
  return value;  // complete in lane 0
}

// To be called once, by all kThreads threads of a one-dimensional block; complete in thread 0.
template <int kThreads, class T>
__device__ T block_sum(T value) {
  static_assert(kThreads % kWarpSize == 0 && kThreads <= kWarpSize * kWarpSize);
  constexpr int kWarps = kThreads / kWarpSize;
  SHARED_ARRAY(T, warp_sums, [kWarps]);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;

  value = warp_sum(value);
  if (lane == 0) warp_sums[warp] = value;
  __syncthreads();
  if (warp == 0) value = warp_sum(lane < kWarps ? warp_sums[lane] : T(0));
  return value;
}

}  // namespace cnnkernels::CNN_TARGET
