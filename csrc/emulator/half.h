// CUDA's 16-bit floating-point types, with the operators and functions of cuda_fp16.h and
// cuda_bf16.h. Every operation rounds once, to nearest, ties to even; a NaN result is CUDA's,
// 0x7fff.
//
// Sums, products and quotients are computed in float32 and rounded again: with 24 digits, more
// than twice 11 and two, the second rounding cannot err (S. Figueroa, When is double rounding
// innocuous?, 1995). Where more digits come in, they are first rounded to odd, which keeps what
// the last rounding needs (S. Boldo and G. Melquiond, Emulation of FMA and correctly rounded
// sums, 2008).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../float16.h"
#include "memory.h"
#include "vector_types.h"

namespace cnnkernels::emulator::cuda {

// ---- Rounding to odd: where a result is inexact, of its two neighbours the one with an odd
// last digit ----

inline double add_to_odd(double a, double b) {
  const double sum = a + b, b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);  // exact: Knuth's TwoSum
  const auto bits = reinterpret_bits<std::uint64_t>(sum);
  if (!(std::abs(error) > 0) || !std::isfinite(sum) || bits % 2 == 1) return sum;
  return reinterpret_bits<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

inline float narrow_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  if (nearest == value || value != value) return nearest;
  const bool too_large = std::abs(static_cast<double>(nearest)) > std::abs(value);
  return float_of((bits_of(nearest) - too_large) | 1);
}

template <class Integer>
float narrow_to_odd_integer(Integer value) {
  if constexpr (sizeof(Integer) < 8) {
    return narrow_to_odd(value);
  } else {
    const auto low = static_cast<double>(value & 0xffff);
    const auto rest = static_cast<double>(value & ~Integer{0xffff});  // 48 digits
    return narrow_to_odd(add_to_odd(rest, low));
  }
}

// The integer that PTX's cvt makes of an integral number: out of range, the nearest; of NaN, 0 or
// in 64 bits the highest bit alone.
template <class Integer>
Integer saturate(float integral) {
  using Limits = std::numeric_limits<Integer>;
  constexpr float kBeyond = 2.0f * static_cast<float>(Limits::max() / 2 + 1);
  if (integral != integral)
    return sizeof(Integer) == 8 ? static_cast<Integer>(std::uint64_t{1} << 63) : 0;
  if (integral >= kBeyond) return Limits::max();
  if (integral <= static_cast<float>(Limits::min())) return Limits::min();
  return static_cast<Integer>(integral);
}

// ---- One number ----

// The base of T, which is __half or __nv_bfloat16. Storage knows the format. Functions are friends
// so that they take all that converts to T, but only where there is a T.
template <class T, class Storage>
class Scalar16 {
 public:
  Scalar16() = default;
  Scalar16(float value) : bits_(value == value ? Storage(value).bits : kNaN) {}
  Scalar16(double value) : Scalar16(narrow_to_odd(value)) {}
  template <class Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
  Scalar16(Integer value) : Scalar16(narrow_to_odd_integer(value)) {}
  template <class Other, class OtherStorage>
  explicit Scalar16(const Scalar16<Other, OtherStorage>& value)
      : Scalar16(static_cast<float>(value)) {}

  operator float() const { return static_cast<float>(storage()); }
  operator bool() const { return (bits_ & 0x7fff) != 0; }
  template <class Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
  operator Integer() const {
    return saturate<Integer>(std::trunc(static_cast<float>(storage())));
  }

  std::uint16_t bits() const { return bits_; }
  static T from_bits(unsigned bits) {
    T value;
    value.bits_ = static_cast<std::uint16_t>(bits);
    return value;
  }

  friend T __hadd(T a, T b) { return float(a) + float(b); }
  friend T __hsub(T a, T b) { return float(a) - float(b); }
  friend T __hmul(T a, T b) { return float(a) * float(b); }
  friend T __hdiv(T a, T b) { return float(a) / float(b); }
  friend T __hadd_rn(T a, T b) { return __hadd(a, b); }
  friend T __hsub_rn(T a, T b) { return __hsub(a, b); }
  friend T __hmul_rn(T a, T b) { return __hmul(a, b); }
  friend T __hfma(T a, T b, T c) {
    return narrow_to_odd(add_to_odd(double(float(a)) * double(float(b)), double(float(c))));
  }
  friend T __hneg(T a) { return from_bits(a.bits_ ^ 0x8000u); }
  friend T __habs(T a) { return from_bits(a.bits_ & 0x7fffu); }

  friend bool __hisnan(T a) { return float(a) != float(a); }
  friend int __hisinf(T a) { return std::isinf(float(a)) ? (float(a) < 0 ? -1 : 1) : 0; }

  // False where an operand is NaN; with a u, true.
  friend bool __heq(T a, T b) { return float(a) == float(b); }
  friend bool __hne(T a, T b) { return float(a) < float(b) || float(a) > float(b); }
  friend bool __hlt(T a, T b) { return float(a) < float(b); }
  friend bool __hle(T a, T b) { return float(a) <= float(b); }
  friend bool __hgt(T a, T b) { return float(a) > float(b); }
  friend bool __hge(T a, T b) { return float(a) >= float(b); }
  friend bool __hequ(T a, T b) { return !__hne(a, b); }
  friend bool __hneu(T a, T b) { return !__heq(a, b); }
  friend bool __hltu(T a, T b) { return !__hge(a, b); }
  friend bool __hleu(T a, T b) { return !__hgt(a, b); }
  friend bool __hgtu(T a, T b) { return !__hle(a, b); }
  friend bool __hgeu(T a, T b) { return !__hlt(a, b); }

  // Of a number and a NaN, the number; with _nan, the NaN. +0 is greater than -0.
  friend T __hmax_nan(T a, T b) {
    if (__hisnan(a) || __hisnan(b)) return from_bits(kNaN);
    if (__heq(a, b)) return from_bits(a.bits_ & b.bits_);
    return __hgt(a, b) ? a : b;
  }
  friend T __hmin_nan(T a, T b) {
    if (__hisnan(a) || __hisnan(b)) return from_bits(kNaN);
    if (__heq(a, b)) return from_bits(a.bits_ | b.bits_);
    return __hlt(a, b) ? a : b;
  }
  friend T __hmax(T a, T b) { return __hisnan(a) ? __hmax_nan(b, b) : __hmax_nan(a, number(b, a)); }
  friend T __hmin(T a, T b) { return __hisnan(a) ? __hmin_nan(b, b) : __hmin_nan(a, number(b, a)); }

  friend T operator+(T a) { return a; }
  friend T operator-(T a) { return __hneg(a); }
  friend T operator+(T a, T b) { return __hadd(a, b); }
  friend T operator-(T a, T b) { return __hsub(a, b); }
  friend T operator*(T a, T b) { return __hmul(a, b); }
  friend T operator/(T a, T b) { return __hdiv(a, b); }
  friend T& operator+=(T& a, T b) { return a = a + b; }
  friend T& operator-=(T& a, T b) { return a = a - b; }
  friend T& operator*=(T& a, T b) { return a = a * b; }
  friend T& operator/=(T& a, T b) { return a = a / b; }
  friend bool operator==(T a, T b) { return __heq(a, b); }
  friend bool operator!=(T a, T b) { return __hneu(a, b); }
  friend bool operator<(T a, T b) { return __hlt(a, b); }
  friend bool operator<=(T a, T b) { return __hle(a, b); }
  friend bool operator>(T a, T b) { return __hgt(a, b); }
  friend bool operator>=(T a, T b) { return __hge(a, b); }

 private:
  static constexpr std::uint16_t kNaN = 0x7fff;

  Storage storage() const { return reinterpret_bits<Storage>(bits_); }
  static T number(T value, T other) { return __hisnan(value) ? other : value; }

  std::uint16_t bits_;
};

struct __half : Scalar16<__half, Float16> {
  using Scalar16::Scalar16;
};

struct __nv_bfloat16 : Scalar16<__nv_bfloat16, BFloat16> {
  using Scalar16::Scalar16;
};

// ---- A pair of numbers, in one register ----

// For Pair, whose x and y are of type T; each function does to both of them what T's does.
template <class Pair, class T>
struct PairFunctions {
  friend Pair __hadd2(Pair a, Pair b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
  friend Pair __hsub2(Pair a, Pair b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
  friend Pair __hmul2(Pair a, Pair b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
  friend Pair __h2div(Pair a, Pair b) { return {__hdiv(a.x, b.x), __hdiv(a.y, b.y)}; }
  friend Pair __hadd2_rn(Pair a, Pair b) { return __hadd2(a, b); }
  friend Pair __hsub2_rn(Pair a, Pair b) { return __hsub2(a, b); }
  friend Pair __hmul2_rn(Pair a, Pair b) { return __hmul2(a, b); }
  friend Pair __hfma2(Pair a, Pair b, Pair c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
  }
  friend Pair __hneg2(Pair a) { return {__hneg(a.x), __hneg(a.y)}; }
  friend Pair __habs2(Pair a) { return {__habs(a.x), __habs(a.y)}; }

  friend Pair __hmax2(Pair a, Pair b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
  friend Pair __hmin2(Pair a, Pair b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
  friend Pair __hmax2_nan(Pair a, Pair b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }
  friend Pair __hmin2_nan(Pair a, Pair b) { return {__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)}; }

  // 1 for true and 0 for false.
  friend Pair __hisnan2(Pair a) { return {__hisnan(a.x), __hisnan(a.y)}; }
  friend Pair __heq2(Pair a, Pair b) { return {__heq(a.x, b.x), __heq(a.y, b.y)}; }
  friend Pair __hne2(Pair a, Pair b) { return {__hne(a.x, b.x), __hne(a.y, b.y)}; }
  friend Pair __hlt2(Pair a, Pair b) { return {__hlt(a.x, b.x), __hlt(a.y, b.y)}; }
  friend Pair __hle2(Pair a, Pair b) { return {__hle(a.x, b.x), __hle(a.y, b.y)}; }
  friend Pair __hgt2(Pair a, Pair b) { return {__hgt(a.x, b.x), __hgt(a.y, b.y)}; }
  friend Pair __hge2(Pair a, Pair b) { return {__hge(a.x, b.x), __hge(a.y, b.y)}; }

  friend Pair operator+(Pair a) { return a; }
  friend Pair operator-(Pair a) { return __hneg2(a); }
  friend Pair operator+(Pair a, Pair b) { return __hadd2(a, b); }
  friend Pair operator-(Pair a, Pair b) { return __hsub2(a, b); }
  friend Pair operator*(Pair a, Pair b) { return __hmul2(a, b); }
  friend Pair operator/(Pair a, Pair b) { return __h2div(a, b); }
  friend Pair& operator+=(Pair& a, Pair b) { return a = a + b; }
  friend Pair& operator-=(Pair& a, Pair b) { return a = a - b; }
  friend Pair& operator*=(Pair& a, Pair b) { return a = a * b; }
  friend Pair& operator/=(Pair& a, Pair b) { return a = a / b; }

  // Whether it holds for both.
  friend bool operator==(Pair a, Pair b) { return a.x == b.x && a.y == b.y; }
  friend bool operator!=(Pair a, Pair b) { return a.x != b.x && a.y != b.y; }
  friend bool operator<(Pair a, Pair b) { return a.x < b.x && a.y < b.y; }
  friend bool operator<=(Pair a, Pair b) { return a.x <= b.x && a.y <= b.y; }
  friend bool operator>(Pair a, Pair b) { return a.x > b.x && a.y > b.y; }
  friend bool operator>=(Pair a, Pair b) { return a.x >= b.x && a.y >= b.y; }

  friend float __low2float(Pair a) { return a.x; }
  friend float __high2float(Pair a) { return a.y; }
  friend Pair __lowhigh2highlow(Pair a) { return {a.y, a.x}; }
};

struct __half2 : Vector<__half, 2>, PairFunctions<__half2, __half> {
  using Vector::Vector;
};

struct __nv_bfloat162 : Vector<__nv_bfloat16, 2>, PairFunctions<__nv_bfloat162, __nv_bfloat16> {
  using Vector::Vector;
};

using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

// ---- Conversions ----

enum class Rounding { toward_zero, up, down };

// One step from the nearest, where that lies on the wrong side.
template <class T>
T round_directed(float value, Rounding rounding) {
  const T nearest = value;
  const float excess = static_cast<float>(nearest) - value;  // NaN of an infinite or NaN value
  const bool negative = value < 0;
  const bool down = rounding == Rounding::toward_zero ? !negative : rounding == Rounding::down;
  if (down ? !(excess > 0) : !(excess < 0)) return nearest;
  return T::from_bits(down == negative ? nearest.bits() + 1u : nearest.bits() - 1u);
}

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __float2half_rz(float x) { return round_directed<__half>(x, Rounding::toward_zero); }
inline __half __float2half_ru(float x) { return round_directed<__half>(x, Rounding::up); }
inline __half __float2half_rd(float x) { return round_directed<__half>(x, Rounding::down); }
inline __half __double2half(double x) { return x; }
inline __half __int2half_rn(int x) { return x; }
inline __half __uint2half_rn(unsigned x) { return x; }
inline __half __ll2half_rn(long long x) { return x; }
inline __half __ull2half_rn(unsigned long long x) { return x; }
inline float __half2float(__half x) { return x; }
inline int __half2int_rn(__half x) { return saturate<int>(std::nearbyint(float(x))); }
inline int __half2int_rz(__half x) { return saturate<int>(std::trunc(float(x))); }
inline int __half2int_ru(__half x) { return saturate<int>(std::ceil(float(x))); }
inline int __half2int_rd(__half x) { return saturate<int>(std::floor(float(x))); }
inline unsigned __half2uint_rz(__half x) { return saturate<unsigned>(std::trunc(float(x))); }
inline unsigned short __half_as_ushort(__half x) { return x.bits(); }
inline short __half_as_short(__half x) { return static_cast<short>(x.bits()); }
inline __half __ushort_as_half(unsigned short x) { return __half::from_bits(x); }
inline __half __short_as_half(short x) { return __half::from_bits(static_cast<unsigned>(x)); }

inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline __half2 __low2half2(__half2 v) { return {v.x, v.x}; }
inline __half2 __high2half2(__half2 v) { return {v.y, v.y}; }
inline __half2 __lows2half2(__half2 u, __half2 v) { return {u.x, v.x}; }
inline __half2 __highs2half2(__half2 u, __half2 v) { return {u.y, v.y}; }

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rz(float x) {
  return round_directed<__nv_bfloat16>(x, Rounding::toward_zero);
}
inline __nv_bfloat16 __float2bfloat16_ru(float x) {
  return round_directed<__nv_bfloat16>(x, Rounding::up);
}
inline __nv_bfloat16 __float2bfloat16_rd(float x) {
  return round_directed<__nv_bfloat16>(x, Rounding::down);
}
inline __nv_bfloat16 __double2bfloat16(double x) { return x; }
inline __nv_bfloat16 __int2bfloat16_rn(int x) { return x; }
inline __nv_bfloat16 __uint2bfloat16_rn(unsigned x) { return x; }
inline __nv_bfloat16 __ll2bfloat16_rn(long long x) { return x; }
inline __nv_bfloat16 __ull2bfloat16_rn(unsigned long long x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline int __bfloat162int_rn(__nv_bfloat16 x) { return saturate<int>(std::nearbyint(float(x))); }
inline int __bfloat162int_rz(__nv_bfloat16 x) { return saturate<int>(std::trunc(float(x))); }
inline int __bfloat162int_ru(__nv_bfloat16 x) { return saturate<int>(std::ceil(float(x))); }
inline int __bfloat162int_rd(__nv_bfloat16 x) { return saturate<int>(std::floor(float(x))); }
inline unsigned __bfloat162uint_rz(__nv_bfloat16 x) {
  return saturate<unsigned>(std::trunc(float(x)));
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits(); }
inline short __bfloat16_as_short(__nv_bfloat16 x) { return static_cast<short>(x.bits()); }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16::from_bits(x); }
inline __nv_bfloat16 __short_as_bfloat16(short x) {
  return __nv_bfloat16::from_bits(static_cast<unsigned>(x));
}

inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline __nv_bfloat162 __low2bfloat162(__nv_bfloat162 v) { return {v.x, v.x}; }
inline __nv_bfloat162 __high2bfloat162(__nv_bfloat162 v) { return {v.y, v.y}; }
inline __nv_bfloat162 __lows2bfloat162(__nv_bfloat162 u, __nv_bfloat162 v) { return {u.x, v.x}; }
inline __nv_bfloat162 __highs2bfloat162(__nv_bfloat162 u, __nv_bfloat162 v) { return {u.y, v.y}; }

}  // namespace cnnkernels::emulator::cuda
