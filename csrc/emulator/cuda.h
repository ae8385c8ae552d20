// CUDA's own names for what the emulator does, so that a kernel's source reads the same to nvcc and
// to the host compiler. Errors name the line that stands in `line`, the caller's.
#pragma once

#include "../float16.h"
#include "emulator.h"
#include "warp.h"

namespace cnnkernels::emulator::cuda {

using emulator::blockDim;
using emulator::blockIdx;
using emulator::dim3;
using emulator::gridDim;
using emulator::threadIdx;
using emulator::uint3;

using __half = Float16;
using __nv_bfloat16 = BFloat16;

constexpr int warpSize = kWarpSize;

inline void __syncthreads(SourceLine line = SourceLine::here()) {
  sync_block(BlockSync::plain, false, line);
}

inline int __syncthreads_count(int predicate, SourceLine line = SourceLine::here()) {
  return sync_block(BlockSync::count, predicate, line);
}

inline int __syncthreads_and(int predicate, SourceLine line = SourceLine::here()) {
  return sync_block(BlockSync::all, predicate, line);
}

inline int __syncthreads_or(int predicate, SourceLine line = SourceLine::here()) {
  return sync_block(BlockSync::any, predicate, line);
}

inline void __syncwarp(unsigned mask = 0xffffffff, SourceLine line = SourceLine::here()) {
  warp_rendezvous(kSyncWarp, mask, nullptr, line);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              SourceLine line = SourceLine::here()) {
  return shuffle(Shuffle::index, mask, value, source, width, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 SourceLine line = SourceLine::here()) {
  return shuffle(Shuffle::up, mask, value, delta, width, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   SourceLine line = SourceLine::here()) {
  return shuffle(Shuffle::down, mask, value, delta, width, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,
                  SourceLine line = SourceLine::here()) {
  return shuffle(Shuffle::exclusive_or, mask, value, lanes, width, line);
}

}  // namespace cnnkernels::emulator::cuda
