// What the emulator is told of a kernel beyond its results: its accesses to memory, for the
// checker of races and bounds, and its operations, for the profiler.
#pragma once

#include <cstddef>

#include "emulator.h"

namespace cnnkernels::emulator {

#ifdef CNNKERNELS_INSTRUMENTED
inline constexpr bool kInstrumented = true;
#else
inline constexpr bool kInstrumented = false;
#endif

enum class Access { read, write, atomic };

// The running thread accesses these bytes, all at once.
inline void access(const void*, std::size_t, Access, SourceLine) {}

// In fused multiply-adds of a thread, and in floating-point operations of a tensor core.
enum class Counter { fma, mma_flop };

inline void count(Counter, unsigned) {}

}  // namespace cnnkernels::emulator
