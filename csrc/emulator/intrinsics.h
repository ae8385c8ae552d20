// CUDA's small functions of one thread: integers, bits, minima, loads and stores with cache hints.
#pragma once

#include <cmath>
#include <type_traits>

#include "memory.h"

namespace cnnkernels::emulator::cuda {

// ---- Integers ----

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }

// Leading zeros: all of them if x is 0.
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}

// The position of the lowest bit that is set, from 1; 0 if there is none.
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

template <class T>
T reverse_bits(T x) {
  T reversed = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); ++i) reversed |= (x >> i & 1) << (8 * sizeof(T) - 1 - i);
  return reversed;
}
inline unsigned __brev(unsigned x) { return reverse_bits(x); }
inline unsigned long long __brevll(unsigned long long x) { return reverse_bits(x); }

// The upper half of the product.
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<long long>(x) * y >> 32); }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<unsigned long long>(x) * y >> 32);
}

// ---- Bits of floating-point numbers ----

inline int __float_as_int(float x) { return reinterpret_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return reinterpret_bits<unsigned>(x); }
inline float __int_as_float(int x) { return reinterpret_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return reinterpret_bits<float>(x); }
inline long long __double_as_longlong(double x) { return reinterpret_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return reinterpret_bits<double>(x); }

// ---- Arithmetic ----

inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }

// The overloads' result types follow from the usual arithmetic conversions; of a number and a
// NaN, the number is the result.
template <class A, class B>
using Both = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>,
                              decltype(std::declval<A>() + std::declval<B>())>;

template <class A, class B>
Both<A, B> min(A a, B b) {
  const Both<A, B> x = a, y = b;
  if constexpr (std::is_floating_point_v<Both<A, B>>) return std::fmin(x, y);
  return x < y ? x : y;
}

template <class A, class B>
Both<A, B> max(A a, B b) {
  const Both<A, B> x = a, y = b;
  if constexpr (std::is_floating_point_v<Both<A, B>>) return std::fmax(x, y);
  return x > y ? x : y;
}

// ---- Loads and stores with cache hints ----

template <class T>
T load(const T* address, SourceLine line) {
  touch<sizeof(T)>(address, Access::read, line);
  T value;
  copy_unseen<sizeof(T)>(&value, address);
  return value;
}

template <class T>
void store(T* address, const T& value, SourceLine line) {
  touch<sizeof(T)>(address, Access::write, line);
  copy_unseen<sizeof(T)>(address, &value);
}

template <class T>
T __ldg(const T* address, SourceLine line = SourceLine::here()) {
  return load(address, line);
}
template <class T>
T __ldca(const T* address, SourceLine line = SourceLine::here()) {
  return load(address, line);
}
template <class T>
T __ldcg(const T* address, SourceLine line = SourceLine::here()) {
  return load(address, line);
}
template <class T>
T __ldcs(const T* address, SourceLine line = SourceLine::here()) {
  return load(address, line);
}

template <class T>
void __stcg(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  store(address, value, line);
}
template <class T>
void __stcs(T* address, Operand<T> value, SourceLine line = SourceLine::here()) {
  store(address, value, line);
}

}  // namespace cnnkernels::emulator::cuda
