// What the matrix products have in common (gemm.cuh on the ordinary arithmetic units, mma_gemm.cuh
// on tensor cores): how they find the elements of operands that are stored nowhere as matrices.
//
// Addresses are sums: an element lies at its row's offset plus its depth's. A thread keeps the rows
// that it loads; the depths wait in a table in shared memory, which all threads fill ahead. Whether
// an element exists is told by bits: a bit `closed` by both its row and its depth makes it zero. So
// an element costs an addition, a test and a load, whatever the convolution.
#pragma once

#include <cstdint>

#include "reduce.cuh"

namespace cnnkernels::CNN_TARGET {

constexpr int kTableDepth = 128;  // entries of half the table

// Neighbours in memory that one request moves.
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Elements {
  T values[kWidth];
};

// As many as a request can.
template <class T>
constexpr int kPack = 16 / sizeof(T);

// ---- where the elements lie ----

// Of a row, a column or a depth: how far its elements are from the operand's first, and from the
// first of what masks it; the bits of the other side that close it.
struct Place {
  int64_t offset, mask_offset;
  unsigned closed;

  __device__ Place behind(const Place& other) const {
    return {offset - other.offset, mask_offset - other.mask_offset, closed};
  }
};

// Set in every row and column, and in the depths behind the last: those count as zero.
constexpr unsigned kBeyond = 1u << 31;

// An operand that is a tensor as it stands. Near is a place whose offsets fit 32 bits, Raw what
// load() leaves for value().
template <class T>
struct Plain {
  static constexpr bool kIsPlain = true;
  using Pointer = const T*;
  struct alignas(8) Near {
    int offset;
    unsigned closed;
  };
  template <int kWidth>
  using Raw = Elements<T, kWidth>;

  const T* data;

  __device__ Pointer at(const Place& place) const { return computed(data + place.offset); }
  __device__ static Near near(const Place& place) {
    return {static_cast<int>(place.offset), place.closed};
  }
  // What lies at both offsets from `origin`.
  template <int kWidth>
  __device__ static void load(Pointer origin, const Near& row, const Near& depth, bool open,
                              Raw<kWidth>& raw) {
    raw = open ? *reinterpret_cast<const Raw<kWidth>*>(origin + (row.offset + depth.offset))
               : Raw<kWidth>{};
  }
  template <int kWidth>
  __device__ static T value(const Raw<kWidth>& raw, int i) {
    return raw.values[i];
  }
};

// ---- the table of depths ----

// Where the depths lie, in two halves, by depth modulo both: one is filled while the other is read.
// An entry serves kUnit depths that are neighbours in memory. Depths are divided as an Index, int
// or unsigned: with the other one each of the two loops makes nvcc run out of registers.
template <class Rows, class Columns, class Index = int, int kUnit = 1>
struct DepthTable {
  static constexpr int kDepth = kTableDepth * kUnit;  // of a half

  typename Rows::Near rows[2 * kTableDepth];
  typename Columns::Near columns[2 * kTableDepth];

  __device__ static int entry(Index depth) { return depth / kUnit % (2 * kTableDepth); }

  // The half that begins with depth `first`. `shape` has depths up to `end`.
  template <class Shape>
  __device__ void fill(const Shape& shape, int first, int end, int threads) {
    for (int i = computed(threadIdx.x); i < kTableDepth; i += threads) {
      const int depth = first + i * kUnit;
      Place row = {0, 0, kBeyond}, column = row;
      if (depth < end) shape.depth(depth, row, column);
      rows[entry(depth)] = Rows::near(row);
      columns[entry(depth)] = Columns::near(column);
    }
  }
};

// ---- the sums' way out ----

// Sums leave a block through shared memory, by lines of neighbours along the rows or the columns:
// a thread takes kWidth of a line at a time. Lanes lie along the line, or, where kLanesAcross,
// along the lines.
template <bool kAlongRows_, int kWidth_ = 1, bool kLanesAcross_ = false>
struct DrainOrder {
  static constexpr bool kAlongRows = kAlongRows_, kLanesAcross = kLanesAcross_;
  static constexpr int kWidth = kWidth_;

  // Which line the access number i is to, and where it begins.
  struct Access {
    int line, first;
  };
  template <int kLines, int kLength>
  __device__ static Access access(int i) {
    constexpr int kAccesses = kLength / kWidth;  // of a line
    if (kLanesAcross) return {i % kLines, i / kLines * kWidth};
    return {i / kAccesses, i % kAccesses * kWidth};
  }
};

// Copies by 16 bytes, where kWidth allows.
template <class T, int kWidth>
__device__ void copy_packs(const T* from, T (&to)[kWidth]) {
  constexpr int kAccess = kWidth == 1 ? 1 : kPack<T>;
#pragma unroll
  for (int first = 0; first < kWidth; first += kAccess) {
    const auto access = *reinterpret_cast<const Elements<T, kAccess>*>(from + first);
#pragma unroll
    for (int i = 0; i < kAccess; ++i) to[first + i] = access.values[i];
  }
}

// ---- a block's tile ----

// Where the block's tile begins. Tiles lie side by side over the columns, then the rows: blocks
// that run at the same time share rows, of which there are more.
struct TileCorner {
  int row, column;
};

template <class Tile>
__device__ TileCorner tile_corner(int columns) {
  const int across = (columns + Tile::kColumns - 1) / Tile::kColumns;
  return {static_cast<int>(blockIdx.x / across) * Tile::kRows,
          static_cast<int>(blockIdx.x % across) * Tile::kColumns};
}

}  // namespace cnnkernels::CNN_TARGET
