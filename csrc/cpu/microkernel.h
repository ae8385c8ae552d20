// The matrix product at the core of the CPU convolutions.
//
//     sums[m, f] (+)= sum over d of left[m][offsets[d]] * panel[d, f]
//
// The left matrix is never stored: element (m, d) is found at a row's pointer plus a column's
// offset. The right one is packed into panels of 1 to kMaxVectors vectors. A block of kRows rows
// by one panel stays in registers: each step of d loads the panel's vectors, broadcasts one
// number per row, and issues rows * vectors multiply-adds.
//
// Cost of a full block: kRows * kMaxVectors multiply-adds for kRows + kMaxVectors + 1 loads. With
// two of each a cycle (AVX-512: 24 for 12, AVX2: 12 for 9) the multiply-adds are the bound.
#pragma once

#include "types.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

// The registers bound rows * vectors: 32 of them with AVX-512, else 16. Eight row pointers are
// what the integer registers hold.
#if defined(__AVX512F__)
constexpr int kRows = 8;
constexpr int kMaxVectors = 3;
#else
constexpr int kRows = 6;
constexpr int kMaxVectors = 2;
#endif

// One block: the first `rows` of kRows rows are stored, `pitch` apart, or added to what is there.
template <class T, int kVectors>
void multiply_block(const T* const* left, int rows, const int32_t* offsets, int64_t depth,
                    const T* panel, T* sums, int64_t pitch, bool add) {
  constexpr int kWidth = kLanes<T>;
  const T* pointers[kRows];
  Vector<T> block[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    pointers[m] = left[m];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) block[m][v] = Vector<T>{};
  }
  for (int64_t d = 0; d < depth; ++d) {
    const int64_t offset = offsets[d];
    Vector<T> right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = load(panel + (d * kVectors + v) * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) block[m][v] += pointers[m][offset] * right[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    if (m >= rows) break;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      T* to = sums + m * pitch + v * kWidth;
      store<T>(to, add ? load(to) + block[m][v] : block[m][v]);
    }
  }
}

// All blocks of `count` rows, which lie at base + row_offsets[m].
template <class T, int kVectors>
void multiply_rows(const T* base, const int32_t* row_offsets, int64_t count, const int32_t* offsets,
                   int64_t depth, const T* panel, T* sums, int64_t pitch, bool add) {
  for (int64_t first = 0; first < count; first += kRows) {
    const int rows = static_cast<int>(least<int64_t>(kRows, count - first));
    const T* left[kRows];
    for (int m = 0; m < kRows; ++m) left[m] = base + row_offsets[first + least(m, rows - 1)];
    multiply_block<T, kVectors>(left, rows, offsets, depth, panel, sums + first * pitch, pitch,
                                add);
  }
}

// The same for a panel of `vectors` vectors.
template <class T>
void multiply(int64_t vectors, const T* base, const int32_t* row_offsets, int64_t count,
              const int32_t* offsets, int64_t depth, const T* panel, T* sums, int64_t pitch,
              bool add) {
  auto* rows = multiply_rows<T, 1>;
  if (vectors == 2) rows = multiply_rows<T, 2>;
  if constexpr (kMaxVectors >= 3) {
    if (vectors == 3) rows = multiply_rows<T, 3>;
  }
  rows(base, row_offsets, count, offsets, depth, panel, sums, pitch, add);
}

}  // namespace
}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
