// Which piece of the work is this thread's: a linear index, and its coordinates.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "device.h"

namespace cnnkernels::CNN_TARGET {

// Threads of a block in kernels that give each result a thread of its own.
constexpr int kThreadsPerBlock = 256;

// A grid of such blocks with a thread for each of `items`.
inline dim3 grid_for(int64_t items) {
  return dim3(static_cast<unsigned>((items + kThreadsPerBlock - 1) / kThreadsPerBlock));
}

__device__ inline int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

struct Position {
  int n, c, h, w;
};

// The coordinates of a linear index into a tensor of those strides: neighbouring indices are
// neighbours in memory, in NCHW (w runs fastest) and in channels_last (c does).
__device__ inline Position position_of(int64_t index, int C, int H, int W, const Strides& strides) {
  const bool channels_first = strides.c >= strides.w;
  const int64_t channel = channels_first ? 0 : index % C;
  if (!channels_first) index /= C;
  const int w = index % W;
  index /= W;
  const int h = index % H;
  index /= H;
  if (!channels_first) return {static_cast<int>(index), static_cast<int>(channel), h, w};
  return {static_cast<int>(index / C), static_cast<int>(index % C), h, w};
}

}  // namespace cnnkernels::CNN_TARGET
