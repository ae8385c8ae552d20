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

// Is x in [0, size)? One comparison: as unsigned, negative numbers are large.
__device__ inline bool inside(int x, int size) {
  return static_cast<unsigned>(x) < static_cast<unsigned>(size);
}

// Whether neighbours in memory are channels (channels_last), rather than columns.
constexpr bool channels_fastest(const Strides& strides) { return strides.c < strides.w; }

struct Position {
  int n, c, h, w;
};

// The coordinates of a linear index into a tensor of that memory format. Where 32 bits hold the
// index, they are enough for its divisions, which take several times as long in 64 bits.
template <class Index>
__device__ Position position_nchw_of(Index index, int C, int H, int W) {
  const int w = static_cast<int>(index % W);
  index /= W;
  const int h = static_cast<int>(index % H);
  index /= H;
  return {static_cast<int>(index / C), static_cast<int>(index % C), h, w};
}

__device__ inline Position position_nchw(int64_t index, int C, int H, int W) {
  if (index > UINT32_MAX) return position_nchw_of<uint64_t>(index, C, H, W);
  return position_nchw_of<uint32_t>(static_cast<uint32_t>(index), C, H, W);
}

__device__ inline Position position_channels_last(int64_t index, int C, int H, int W) {
  const Position at = position_nchw(index, H, W, C);
  return {at.n, at.w, at.c, at.h};
}

// The same for strides: neighbouring indices are neighbours in memory, in NCHW (w runs fastest) and
// in channels_last (c does).
__device__ inline Position position_of(int64_t index, int C, int H, int W, const Strides& strides) {
  return channels_fastest(strides) ? position_channels_last(index, C, H, W)
                                   : position_nchw(index, C, H, W);
}

// Whether a window has no pixel: dilation can put all of its taps into padding.
__device__ inline bool is_empty(const Range& rows, const Range& columns) {
  return rows.begin >= rows.end || columns.begin >= columns.end;
}

}  // namespace cnnkernels::CNN_TARGET
