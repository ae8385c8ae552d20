// The matrix product at the core of the CPU convolutions, and the copies that feed it.
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

#include <utility>

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

// Interleaves the lower halves of a and b ({a0, b0, a1, b1, ...}) or the upper ones.
template <class T, int... kLane>
Vector<T> zip(Vector<T> a, Vector<T> b, bool upper, std::integer_sequence<int, kLane...>) {
  using Index = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;
  constexpr int n = kLanes<T>;
  constexpr Vector<Index> low = {(kLane / 2 + kLane % 2 * n)...};
  return upper ? __builtin_shuffle(a, b, low + n / 2) : __builtin_shuffle(a, b, low);
}

// Transposes a square of vectors: log2(lanes) perfect shuffles of its elements.
template <class T>
void transpose(Vector<T> (&rows)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  constexpr auto lanes = std::make_integer_sequence<int, n>{};
#pragma GCC unroll 4
  for (int step = 1; step < n; step *= 2) {
    Vector<T> shuffled[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      shuffled[2 * i] = zip<T>(rows[i], rows[i + n / 2], false, lanes);
      shuffled[2 * i + 1] = zip<T>(rows[i], rows[i + n / 2], true, lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = shuffled[i];
  }
}

// A tensor read through strides. Where `relu` is given (the saved output of a ReLU, shaped alike)
// and is <= 0, the element counts as zero.
template <class T>
struct Source {
  const T* data;
  Strides strides;
  const T* relu;
  Strides relu_strides;

  Source at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return {data + strides.at(n, c, h, w), strides,
            relu == nullptr ? nullptr : relu + relu_strides.at(n, c, h, w), relu_strides};
  }
  // Whether rows of this length follow each other without a gap, so that they can be read as one.
  bool joined(int64_t columns) const {
    return strides.h == columns * strides.w &&
           (relu == nullptr || relu_strides.h == columns * relu_strides.w);
  }
};

// to[i] = from[i * stride], i < count.
template <class T>
void copy_run(Sum<T>* __restrict to, int64_t count, const T* __restrict from, int64_t stride) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Sum<T>>(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Sum<T>>(from[i * stride]);
  }
}

// The same along one dimension of a source; every `step`-th element.
template <class T>
void copy_run(Sum<T>* to, int64_t count, const Source<T>& from, int64_t Strides::* dimension,
              int64_t step = 1) {
  copy_run(to, count, from.data, from.strides.*dimension * step);
  if (from.relu == nullptr) return;
  const int64_t stride = from.relu_strides.*dimension * step;
  for (int64_t i = 0; i < count; ++i) {
    if (static_cast<Sum<T>>(from.relu[i * stride]) <= 0) to[i] = 0;
  }
}

// The first `count` elements along one dimension of a source, then zeros.
template <class T>
Vector<Sum<T>> load_run(int64_t count, const Source<T>& from, int64_t Strides::* dimension) {
  constexpr int n = kLanes<Sum<T>>;
  if constexpr (std::is_same_v<T, Sum<T>>) {
    if (count == n && from.strides.*dimension == 1 && from.relu == nullptr) return load(from.data);
  }
  Sum<T> run[n] = {};
  copy_run(run, count, from, dimension);
  return load(run);
}

// Packs one vector's width of a panel: to[i * pitch + lane] = element i along `run` and `lane`
// along `across` of the source. Lanes beyond `lanes` become zero.
template <class T>
void pack_lanes(Sum<T>* to, int64_t pitch, int64_t count, int lanes, const Source<T>& from,
                int64_t Strides::* run, int64_t Strides::* across) {
  constexpr int n = kLanes<Sum<T>>;
  const auto shifted = [&](int64_t i, int64_t lane) {
    Source<T> source = from;
    source.data += i * from.strides.*run + lane * from.strides.*across;
    if (from.relu != nullptr) {
      source.relu += i * from.relu_strides.*run + lane * from.relu_strides.*across;
    }
    return source;
  };
  int64_t first = 0;
  // What is left of a square may be so little that it is quicker element by element.
  for (; from.strides.*across != 1 && count - first > 2; first += n) {
    Vector<Sum<T>> square[n] = {};
    const int64_t filled = least<int64_t>(n, count - first);
    for (int lane = 0; lane < lanes; ++lane) {
      square[lane] = load_run(filled, shifted(first, lane), run);
    }
    transpose<Sum<T>>(square);
    for (int64_t i = 0; i < filled; ++i) store<Sum<T>>(to + (first + i) * pitch, square[i]);
  }
  for (; first < count; ++first) {
    store<Sum<T>>(to + first * pitch, load_run(lanes, shifted(first, 0), across));
  }
}

}  // namespace
}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
