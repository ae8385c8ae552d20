// CUDA's atomic operations on global and shared memory, and its fences. Blocks run on several OS
// threads, so the host's atomics do the work; like CUDA's they order no other accesses.
//
// Float additions keep subnormal numbers, where a GPU's on global memory flush them to zero (PTX
// ISA, atom).
#pragma once

#include "half.h"
#include "memory.h"

namespace cnnkernels::emulator {

// *address = update(*address), in one step; returns the value before.
template <class T, class Update>
[[gnu::no_sanitize_thread, gnu::no_sanitize_coverage]] T update_atomically(T* address,
                                                                           SourceLine line,
                                                                           const Update& update) {
  touch<sizeof(T)>(address, Access::atomic, line);
  auto* word = reinterpret_cast<Bits<T>*>(address);
  Bits<T> before = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (;;) {
    const T value = reinterpret_bits<T>(before);
    const auto after = reinterpret_bits<Bits<T>>(T(update(value)));
    if (__atomic_compare_exchange_n(word, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
      return value;
  }
}

namespace cuda {

using Word64 = unsigned long long;

template <class T>
inline constexpr bool kIsAtomicInteger = kIsOneOf<T, int, unsigned, long long, Word64>;

template <class T>
T atomicAdd(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  static_assert(kIsOneOf<T, int, unsigned, Word64, float, double, __half, __half2, __nv_bfloat16,
                         __nv_bfloat162>);
  // Signed sums wrap around.
  using Sum = std::conditional_t<std::is_same_v<T, int>, unsigned, T>;
  return update_atomically(address, line, [&](const T& old) {
    return static_cast<T>(static_cast<Sum>(old) + static_cast<Sum>(value));
  });
}

template <class T>
T atomicSub(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  static_assert(kIsOneOf<T, int, unsigned>);
  return update_atomically(address, line, [&](T old) {
    return static_cast<T>(static_cast<unsigned>(old) - static_cast<unsigned>(value));
  });
}

template <class T>
T atomicExch(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  static_assert(kIsOneOf<T, int, unsigned, Word64, float>);
  return update_atomically(address, line, [&](T) { return value; });
}

template <class T>
T atomicMin(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  static_assert(kIsAtomicInteger<T>);
  return update_atomically(address, line, [&](T old) { return old < value ? old : value; });
}

template <class T>
T atomicMax(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  static_assert(kIsAtomicInteger<T>);
  return update_atomically(address, line, [&](T old) { return old > value ? old : value; });
}

template <class T>
T atomicAnd(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  static_assert(kIsAtomicInteger<T>);
  return update_atomically(address, line, [&](T old) { return old & value; });
}

template <class T>
T atomicOr(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  static_assert(kIsAtomicInteger<T>);
  return update_atomically(address, line, [&](T old) { return old | value; });
}

template <class T>
T atomicXor(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  static_assert(kIsAtomicInteger<T>);
  return update_atomically(address, line, [&](T old) { return old ^ value; });
}

template <class T>
T atomicCAS(T* address, Operand<T> expected, Operand<T> value,
            SourceLine line = SourceLine::here()) {
  static_assert(kIsOneOf<T, int, unsigned, Word64, unsigned short>);
  return update_atomically(address, line, [&](T old) { return old == expected ? value : old; });
}

// Counts up to `last`, then from 0 again.
inline unsigned atomicInc(unsigned* address, unsigned last, SourceLine line = SourceLine::here()) {
  return update_atomically(address, line, [&](unsigned old) { return old >= last ? 0 : old + 1; });
}

// Counts down to 0, then from `first` again.
inline unsigned atomicDec(unsigned* address, unsigned first, SourceLine line = SourceLine::here()) {
  return update_atomically(address, line,
                           [&](unsigned old) { return old == 0 || old > first ? first : old - 1; });
}

[[gnu::no_sanitize_thread, gnu::no_sanitize_coverage]] inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  fence();
}
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }

}  // namespace cuda
}  // namespace cnnkernels::emulator
