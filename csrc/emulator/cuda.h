// CUDA's own names for what the emulator does, so that a kernel's source reads the same to nvcc and
// to the host compiler. Errors name the line that stands in `line`, the caller's.
#pragma once

#include "atomic.h"
#include "emulator.h"
#include "half.h"
#include "intrinsics.h"
#include "vector_types.h"
#include "warp.h"

namespace cnnkernels::emulator::cuda {

using emulator::blockDim;
using emulator::blockIdx;
using emulator::dim3;
using emulator::gridDim;
using emulator::threadIdx;
using emulator::uint3;

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

// ---- Among the lanes of a warp. The unary plus makes an int of smaller integers, which CUDA's
// overloads take as such. ----

template <class T>
auto __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
                 SourceLine line = SourceLine::here()) {
  return shuffle(Shuffle::index, mask, +value, source, width, line);
}

template <class T>
auto __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                    SourceLine line = SourceLine::here()) {
  return shuffle(Shuffle::up, mask, +value, delta, width, line);
}

template <class T>
auto __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                      SourceLine line = SourceLine::here()) {
  return shuffle(Shuffle::down, mask, +value, delta, width, line);
}

template <class T>
auto __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,
                     SourceLine line = SourceLine::here()) {
  return shuffle(Shuffle::exclusive_or, mask, +value, lanes, width, line);
}

// The caller alone: CUDA promises no more than that the caller is among the active lanes, and
// here no other lane runs at the same time. Code that goes on with this mask is right with any.
inline unsigned __activemask() { return 1u << lane_index(); }

inline unsigned __ballot_sync(unsigned mask, int predicate, SourceLine line = SourceLine::here()) {
  return vote(Vote::ballot, mask, predicate != 0, line);
}

inline int __any_sync(unsigned mask, int predicate, SourceLine line = SourceLine::here()) {
  return vote(Vote::any, mask, predicate != 0, line) != 0;
}

inline int __all_sync(unsigned mask, int predicate, SourceLine line = SourceLine::here()) {
  return vote(Vote::all, mask, predicate != 0, line) == mask;
}

inline int __uni_sync(unsigned mask, int predicate, SourceLine line = SourceLine::here()) {
  const unsigned ballot = vote(Vote::uniform, mask, predicate != 0, line);
  return ballot == 0 || ballot == mask;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, SourceLine line = SourceLine::here()) {
  return match(kMatchAny, mask, +value, line);
}

template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* predicate,
                          SourceLine line = SourceLine::here()) {
  *predicate = match(kMatchAll, mask, +value, line) == mask;
  return *predicate ? mask : 0;
}

template <class T>
auto __reduce_add_sync(unsigned mask, T value, SourceLine line = SourceLine::here()) {
  return reduce<ReduceAdd>(mask, +value, line);
}

template <class T>
auto __reduce_min_sync(unsigned mask, T value, SourceLine line = SourceLine::here()) {
  return reduce<ReduceMin>(mask, +value, line);
}

template <class T>
auto __reduce_max_sync(unsigned mask, T value, SourceLine line = SourceLine::here()) {
  return reduce<ReduceMax>(mask, +value, line);
}

inline unsigned __reduce_and_sync(unsigned mask, unsigned value,
                                  SourceLine line = SourceLine::here()) {
  return reduce<ReduceAnd>(mask, value, line);
}

inline unsigned __reduce_or_sync(unsigned mask, unsigned value,
                                 SourceLine line = SourceLine::here()) {
  return reduce<ReduceOr>(mask, value, line);
}

inline unsigned __reduce_xor_sync(unsigned mask, unsigned value,
                                  SourceLine line = SourceLine::here()) {
  return reduce<ReduceXor>(mask, value, line);
}

}  // namespace cnnkernels::emulator::cuda
