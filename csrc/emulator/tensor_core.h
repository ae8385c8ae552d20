// The tensor cores' instructions.
//
// Numerics. NVIDIA leaves open in which order and with how many bits the products of an mma are
// added; GPUs align them to the largest and drop the bits beyond. Here products are exact and
// added in the order of k, from C on, in float64, and the sum is rounded once to float32: expect
// a GPU to differ in the last bits, and GPUs from each other. tf32 operands are float32 whose low
// 13 bits do not count.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../float16.h"
#include "half.h"
#include "memory.h"
#include "warp.h"

namespace cnnkernels::emulator {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// ---- Which lane holds which element (PTX ISA: ldmatrix; matrix fragments for mma.m16n8k8 and
// mma.m16n8k16) ----

struct Place {
  int row, column;
};

// Element e (from the low half) of register r. `width` elements fill a register: two of 16 bits,
// one of 32.
constexpr Place place_in_a(int width, int lane, int r, int e) {
  return {lane / 4 + 8 * (r % 2), width * (lane % 4 + 4 * (r / 2)) + e};
}
constexpr Place place_in_b(int width, int lane, int r, int e) {
  return {width * (lane % 4 + 4 * r) + e, lane / 4};
}
// Of C and D alike, which are float32.
constexpr Place place_in_c(int lane, int r) {
  return {lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2};
}
// Of an 8x8 matrix that ldmatrix loads; register r holds the r-th, and its row i lies where lane
// 8 * r + i tells.
constexpr Place place_in_8x8(bool transposed, int lane, int e) {
  const int i = lane / 4, j = 2 * (lane % 4) + e;
  return transposed ? Place{j, i} : Place{i, j};
}

// ---- ldmatrix ----

struct LdmatrixPayload {
  const char* row;
  unsigned* matrices;
};

template <int kMatrices, bool kTransposed>
[[gnu::no_sanitize_thread, gnu::no_sanitize_coverage]] void distribute_rows(unsigned lanes,
                                                                            void* const* payloads) {
  for (int lane : Lanes{lanes}) {
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
      std::uint16_t elements[2];
      for (int e = 0; e < 2; ++e) {
        const auto [row, column] = place_in_8x8(kTransposed, lane, e);
        const auto& giver = payload_of<LdmatrixPayload>(8 * matrix + row, payloads);
        std::memcpy(&elements[e], giver.row + 2 * column, 2);
      }
      payload_of<LdmatrixPayload>(lane, payloads).matrices[matrix] =
          elements[0] | unsigned{elements[1]} << 16;
    }
  }
}

template <int kMatrices, bool kTransposed>
inline constexpr WarpOperation kLdmatrix = {kTransposed ? "ldmatrix.trans" : "ldmatrix", true,
                                            distribute_rows<kMatrices, kTransposed>};

template <bool kTransposed, int kMatrices>
void load_matrices(unsigned (&matrices)[kMatrices], const void* row, SourceLine line) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  if (lane_index() < 8 * kMatrices) {
    check_shared("ldmatrix", row, 16, line);
    touch<16>(row, Access::read, line);
  }
  LdmatrixPayload payload = {static_cast<const char*>(row), matrices};
  warp_rendezvous(kLdmatrix<kMatrices, kTransposed>, kWholeWarp, &payload, line);
}

template <int kMatrices>
void ldmatrix(unsigned (&matrices)[kMatrices], const void* row,
              SourceLine line = SourceLine::here()) {
  load_matrices<false>(matrices, row, line);
}

template <int kMatrices>
void ldmatrix_transposed(unsigned (&matrices)[kMatrices], const void* row,
                         SourceLine line = SourceLine::here()) {
  load_matrices<true>(matrices, row, line);
}

// ---- mma ----

// tf32 keeps the upper 19 bits of a float32.
constexpr unsigned kTf32Dropped = (1u << 13) - 1;

// Rounded to nearest, ties away from zero, as by cvt.rna.tf32.f32.
inline unsigned to_tf32(float value) {
  constexpr unsigned kNaN = 0x7fffffff;
  const unsigned bits = bits_of(value), size = bits & 0x7fffffff;
  if (size >= kFloatInfinity) return size == kFloatInfinity ? bits : kNaN;
  return (bits + (kTf32Dropped + 1) / 2) & ~kTf32Dropped;
}

inline unsigned tf32_operand(unsigned bits) { return to_tf32(float_of(bits)); }

// What a register of A or B holds.
struct Tf32Format {
  static constexpr const char* kName = "mma.m16n8k8.tf32";
  static constexpr int kWidth = 1;
  static double element(unsigned bits, int) { return float_of(bits & ~kTf32Dropped); }
};

template <class T>
struct Format16 {
  static_assert(kIsOneOf<T, cuda::__half, cuda::__nv_bfloat16>);
  static constexpr const char* kName =
      std::is_same_v<T, cuda::__half> ? "mma.m16n8k16.f16" : "mma.m16n8k16.bf16";
  static constexpr int kWidth = 2;
  static double element(unsigned bits, int e) {
    return static_cast<float>(T::from_bits(bits >> 16 * e));
  }
};

struct MmaPayload {
  const unsigned* a;
  const unsigned* b;
  const float* c;
  float* d;
};

template <class Format>
[[gnu::no_sanitize_thread, gnu::no_sanitize_coverage]] void multiply_matrices(
    unsigned lanes, void* const* payloads) {
  constexpr int kWidth = Format::kWidth, kM = 16, kN = 8, kK = 8 * kWidth;
  double a[kM][kK], b[kK][kN], sum[kM][kN];
  for (int lane : Lanes{lanes}) {
    const auto& from = payload_of<const MmaPayload>(lane, payloads);
    for (int r = 0; r < 4; ++r) {
      for (int e = 0; e < kWidth; ++e) {
        const auto [m, k] = place_in_a(kWidth, lane, r, e);
        a[m][k] = Format::element(from.a[r], e);
      }
    }
    for (int r = 0; r < 2; ++r) {
      for (int e = 0; e < kWidth; ++e) {
        const auto [k, n] = place_in_b(kWidth, lane, r, e);
        b[k][n] = Format::element(from.b[r], e);
      }
    }
    for (int r = 0; r < 4; ++r) {
      const auto [m, n] = place_in_c(lane, r);
      sum[m][n] = from.c[r];
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < kN; ++n) sum[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane : Lanes{lanes}) {
    for (int r = 0; r < 4; ++r) {
      const auto [m, n] = place_in_c(lane, r);
      payload_of<MmaPayload>(lane, payloads).d[r] = static_cast<float>(sum[m][n]);
    }
  }
  count(Counter::mma_flop, 2 * kM * kN * kK);
}

template <class Format>
inline constexpr WarpOperation kMma = {Format::kName, true, multiply_matrices<Format>};

template <class Format>
void multiply_accumulate(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                         const float (&c)[4], SourceLine line) {
  MmaPayload payload = {a, b, c, d};
  warp_rendezvous(kMma<Format>, kWholeWarp, &payload, line);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                             const float (&c)[4], SourceLine line = SourceLine::here()) {
  multiply_accumulate<Tf32Format>(d, a, b, c, line);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                  const float (&c)[4], SourceLine line = SourceLine::here()) {
  multiply_accumulate<Format16<T>>(d, a, b, c, line);
}

// ---- Beside the tensor cores ----

// a * b + c, which a GPU rounds once, but the host, for its speed, twice. Always inlined: see
// copy_whole.
template <class T>
[[gnu::always_inline]] inline T multiply_add(T a, T b, T c) {
  if constexpr (kInstrumented) count(Counter::fma, 1);
  return a * b + c;
}

}  // namespace cnnkernels::emulator
