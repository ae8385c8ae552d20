// CUDA's vector types. A vector is loaded and stored as a whole: one access of its full width,
// which must be aligned to that width, or the kernel ends with an error.
#pragma once

#include "memory.h"

namespace cnnkernels::emulator::cuda {

// Always inlined: a copy of it serves only the build, instrumented or not, that it was made in.
template <class Vector>
[[gnu::always_inline]] inline void copy_whole(Vector& to, const Vector& from, SourceLine line) {
  check_aligned<sizeof(Vector)>(&from, Access::read, line);
  check_aligned<sizeof(Vector)>(&to, Access::write, line);
  if constexpr (kInstrumented) {
    access(&from, sizeof(Vector), Access::read, line);
    access(&to, sizeof(Vector), Access::write, line);
  }
  copy_unseen<sizeof(Vector)>(&to, &from);
}

// The copies are written out, as the compiler's own may copy member by member.
template <class T, int kLanes>
struct Vector;

template <class T>
struct alignas(2 * sizeof(T)) Vector<T, 2> {
  T x, y;

  Vector() = default;
  Vector(T x, T y) : x(x), y(y) {}
  [[gnu::always_inline]] Vector(const Vector& from, SourceLine line = SourceLine::here()) {
    copy_whole(*this, from, line);
  }
  [[gnu::always_inline]] Vector& operator=(const Vector& from) {
    copy_whole(*this, from, kUnknownLine);
    return *this;
  }
};

template <class T>
struct alignas(4 * sizeof(T)) Vector<T, 4> {
  T x, y, z, w;

  Vector() = default;
  Vector(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
  [[gnu::always_inline]] Vector(const Vector& from, SourceLine line = SourceLine::here()) {
    copy_whole(*this, from, line);
  }
  [[gnu::always_inline]] Vector& operator=(const Vector& from) {
    copy_whole(*this, from, kUnknownLine);
    return *this;
  }
};

using char2 = Vector<signed char, 2>;
using char4 = Vector<signed char, 4>;
using uchar2 = Vector<unsigned char, 2>;
using uchar4 = Vector<unsigned char, 4>;
using short2 = Vector<short, 2>;
using short4 = Vector<short, 4>;
using ushort2 = Vector<unsigned short, 2>;
using ushort4 = Vector<unsigned short, 4>;
using int2 = Vector<int, 2>;
using int4 = Vector<int, 4>;
using uint2 = Vector<unsigned, 2>;
using uint4 = Vector<unsigned, 4>;
using longlong2 = Vector<long long, 2>;
using ulonglong2 = Vector<unsigned long long, 2>;
using float2 = Vector<float, 2>;
using float4 = Vector<float, 4>;
using double2 = Vector<double, 2>;

// The function make_<vector>, by a table that does without a function for each.
template <class T, int kLanes>
struct MakeVector {
  template <class... Elements>
  Vector<T, kLanes> operator()(Elements... elements) const {
    static_assert(sizeof...(Elements) == kLanes);
    return {static_cast<T>(elements)...};
  }
};

inline constexpr MakeVector<signed char, 2> make_char2;
inline constexpr MakeVector<signed char, 4> make_char4;
inline constexpr MakeVector<unsigned char, 2> make_uchar2;
inline constexpr MakeVector<unsigned char, 4> make_uchar4;
inline constexpr MakeVector<short, 2> make_short2;
inline constexpr MakeVector<short, 4> make_short4;
inline constexpr MakeVector<unsigned short, 2> make_ushort2;
inline constexpr MakeVector<unsigned short, 4> make_ushort4;
inline constexpr MakeVector<int, 2> make_int2;
inline constexpr MakeVector<int, 4> make_int4;
inline constexpr MakeVector<unsigned, 2> make_uint2;
inline constexpr MakeVector<unsigned, 4> make_uint4;
inline constexpr MakeVector<long long, 2> make_longlong2;
inline constexpr MakeVector<unsigned long long, 2> make_ulonglong2;
inline constexpr MakeVector<float, 2> make_float2;
inline constexpr MakeVector<float, 4> make_float4;
inline constexpr MakeVector<double, 2> make_double2;

}  // namespace cnnkernels::emulator::cuda
