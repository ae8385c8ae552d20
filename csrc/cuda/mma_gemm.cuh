// A matrix product on tensor cores, whose operands are stored nowhere as matrices:
//
//   sums[row, column] = sum over depth of rows[row, depth] * columns[column, depth]
//
// Elements are float16 or bfloat16, or float32 that counts as tf32; sums are float32. As in
// gemm.cuh, a `Shape` tells where the elements lie, a sink what becomes of the sums.
//
// A block owns a tile of sums, a warp a part of it, 16 x 8 by 16 x 8: so many an mma makes, of
// operands that all lanes hold together. They come from shared memory by stages, each 64 bytes of
// depth, two steps of mma; of 3 or 4 stages one is multiplied while the others are on their way:
//
//              stage 0      stage 1      stage 2      stage 3
//             +--------+   +--------+   +--------+   +--------+    rows, then columns
//   lines     | step 0 |   | arrived|   | on its |   | on its |
//             | step 1 |   |        |   |   way  |   |   way  |
//             +--------+   +--------+   +--------+   +--------+
//             multiplied                              cp.async
//
// The operands of the next step are read while the tensor cores work on this one's.
//
// What are neighbours in memory are neighbours in shared memory, 16 bytes at a time, a pack:
//
//   Deep  [line][depth]  where depths are neighbours. ldmatrix hands a lane what it needs.
//   Wide  [depth][line]  where lines are. ldmatrix transposes elements of 16 bits. It cannot those
//                        of 32: there the lines of two fragments are dealt out in turns, so that a
//                        lane's are neighbours and it reads 8 bytes; the sums' lines follow.
//
// In both a pack's place is XORed with bits of its line or depth, so that the 8 packs that shared
// memory serves at a time, one way or the other, lie in different banks.
#pragma once

#include "gemm_operands.cuh"

namespace cnnkernels::CNN_TARGET {

constexpr int kLineBytes = 64;  // of a stage's depth
constexpr int kSteps = 2;       // of an mma, in a stage

template <class T>
constexpr int kStepDepth = kLineBytes / kSteps / sizeof(T);

// ---- the tile ----

// The sums of a block, in warps of kWarpRows x kWarpColumns of them.
template <class T_, int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_, int kStages_>
struct MmaTile {
  using T = T_;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kStages = kStages_;
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr int kWarpsDown = kRows / kWarpRows, kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kThreads = kWarpsDown * kWarpsAcross * kWarpSize;
  static constexpr int kDepth = kLineBytes / sizeof(T);  // of a stage
  static constexpr int kRowElements = kRows * kDepth;
  static constexpr int kElements = kRowElements + kColumns * kDepth;  // of a stage
  static constexpr int kSharedBytes = kStages * kElements * sizeof(T);

  // By fragments of 16 rows and of 8 columns.
  using Sums = float[kWarpRows / 16][kWarpColumns / 8][4];

  __device__ static int warp_row() { return threadIdx.x / kWarpSize / kWarpsAcross * kWarpRows; }
  __device__ static int warp_column() {
    return threadIdx.x / kWarpSize % kWarpsAcross * kWarpColumns;
  }
};

__device__ inline int lane() { return threadIdx.x % kWarpSize; }

// ---- a side of the tile in shared memory ----

// A side has kLines rows or columns; a warp's fragments count 8 lines each. Reader hands a lane its
// elements of kPairs pairs of fragments: low lines and depths, then those that are high in one,
// then in the other; of kLinesFirst the lines come first. So the mma wants rows and columns.

template <class T, int kLines>
struct Deep {
  static constexpr bool kIsDeep = true;
  static constexpr int kDepth = kLineBytes / sizeof(T);

  // Where the pack of that line and depth lies.
  __device__ static int place(int line, int depth) {
    return line * kDepth + (depth / kPack<T> ^ line / 2 % 4) * kPack<T>;
  }

  // The line of a warp that its fragments know as number `index` of fragment `fragment`.
  __device__ static int line(int fragment, int index) { return 8 * fragment + index; }

  template <bool kLinesFirst, int kPairs>
  class Reader {
   public:
    __device__ explicit Reader(int first_line) {
      const int eighth = lane() / 8;
      const int high_line = kLinesFirst ? eighth % 2 : eighth / 2;
      const int high_depth = kLinesFirst ? eighth / 2 : eighth % 2;
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        places_[step] = computed(place(first_line + 8 * high_line + lane() % 8,
                                       step * kStepDepth<T> + high_depth * kPack<T>));
    }
    __device__ void read(const T* side, int step, unsigned (&values)[kPairs][4]) const {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) ldmatrix(values[i], side + places_[step] + 16 * i * kDepth);
    }

   private:
    int places_[kSteps];
  };
};

template <class T, int kLines>
struct Wide {
  static constexpr bool kIsDeep = false;
  static constexpr bool kTransposes = sizeof(T) == 2;  // as ldmatrix can

  __device__ static int place(int line, int depth) {
    return depth * kLines + (line / kPack<T> ^ swizzle(depth)) * kPack<T>;
  }

  // Of 8 depths that are neighbours all differ. Elements of 32 bits are read at 4 depths at a time,
  // in 2 packs each.
  __device__ static int swizzle(int depth) {
    return kTransposes ? depth % 8 : depth % 4 * 2 | depth / 4 % 2;
  }

  __device__ static int line(int fragment, int index) {
    return kTransposes ? 8 * fragment + index : fragment / 2 * 16 + 2 * index + fragment % 2;
  }

  template <bool kLinesFirst, int kPairs>
  class Reader {
   public:
    __device__ explicit Reader(int first_line) {
      const int eighth = lane() / 8, index = lane() / 4;
      const int high_line = kLinesFirst ? eighth % 2 : eighth / 2;
      const int high_depth = kLinesFirst ? eighth / 2 : eighth % 2;
#pragma unroll
      for (int i = 0; i < kPlaces; ++i) {
        if (kTransposes)
          places_[i] =
              computed(place(first_line + 16 * i + 8 * high_line, 8 * high_depth + lane() % 8));
        else
          places_[i] = computed(
              place(first_line + 16 * (i % 2) + index / 2 * kPack<T>, 4 * (i / 2) + lane() % 4) +
              index % 2 * 2);
      }
    }
    __device__ void read(const T* side, int step, unsigned (&values)[kPairs][4]) const {
      const T* from = side + step * kStepDepth<T> * kLines;
      if constexpr (kTransposes) {
#pragma unroll
        for (int i = 0; i < kPairs; ++i) ldmatrix_transposed(values[i], from + places_[i]);
      } else {
#pragma unroll
        for (int high = 0; high < 2; ++high) {
#pragma unroll
          for (int i = 0; i < kPairs; ++i) {
            const T* place = from + places_[2 * high + i % 2] + i / 2 * 32;
            const auto pair = *reinterpret_cast<const Elements<unsigned, 2>*>(place);
#pragma unroll
            for (int odd = 0; odd < 2; ++odd)
              values[i][kLinesFirst ? odd + 2 * high : 2 * odd + high] = pair.values[odd];
          }
        }
      }
    }

   private:
    static constexpr int kPlaces = kTransposes ? kPairs : 4;
    int places_[kPlaces];
  };
};

// ---- which elements a thread loads ----

// A thread's packs: kLines x kDepths of them, at line(i) and depth(j).

// Lanes along the depth, then along the lines: for packs that are neighbours in memory.
template <class T, int kSize, int kThreads>
struct DeepPacks {
  static constexpr int kLanes = kLineBytes / 16;
  static constexpr int kLines = kSize * kLanes / kThreads, kDepths = 1;

  __device__ static int line(int i) { return threadIdx.x / kLanes + i * (kThreads / kLanes); }
  __device__ static int depth(int) { return threadIdx.x % kLanes * kPack<T>; }
};

// Lanes along the lines, for elements that are: a thread turns its elements into packs.
template <class T, int kSize, int kThreads>
struct DeepElements {
  static constexpr int kLanes = kSize < kThreads ? kSize : kThreads;
  static constexpr int kLines = kSize / kLanes;
  static constexpr int kDepths = kLineBytes / 16 * kLanes / kThreads;

  __device__ static int line(int i) { return threadIdx.x % kLanes + i * kLanes; }
  __device__ static int depth(int j) { return (threadIdx.x / kLanes * kDepths + j) * kPack<T>; }
};

// Lanes along the lines' packs.
template <class T, int kSize, int kThreads>
struct WidePacks {
  static constexpr int kLanes = kSize / kPack<T>;
  static constexpr int kLines = 1;
  static constexpr int kDepths = kLineBytes / static_cast<int>(sizeof(T)) * kLanes / kThreads;

  __device__ static int line(int) { return threadIdx.x % kLanes * kPack<T>; }
  __device__ static int depth(int j) { return threadIdx.x / kLanes + j * (kThreads / kLanes); }
};

// Lanes along the depth, which is contiguous in memory; a thread's elements of a pack are lines.
template <class T, int kSize, int kThreads>
struct WideElements {
  static constexpr int kLanes = kLineBytes / sizeof(T);
  static constexpr int kLines = kSize / kPack<T> * kLanes / kThreads, kDepths = 1;

  __device__ static int line(int i) {
    return (threadIdx.x / kLanes + i * (kThreads / kLanes)) * kPack<T>;
  }
  __device__ static int depth(int) { return threadIdx.x % kLanes; }
};

// Takes a thread's part of one operand from global memory to a stage. kWidth is 1 or a pack: how
// many neighbours a request moves. Where kGathers is not set, lines close no bits but kBeyond.
template <class T, class Operand, class Side, class Pattern, int kWidth, bool kGathers>
class MmaLoader {
 public:
  // place_of(line, depth) is where the line's element lies that is `depth` behind an entry of the
  // table, whose entries are `unit` deep.
  template <class PlaceOf>
  __device__ MmaLoader(const Operand& operand, int unit, const PlaceOf& place_of) {
    const int depth = Pattern::depth(0) % unit;
    const Place first = place_of(Pattern::line(0), depth);
    origin_ = operand.at(first);
#pragma unroll
    for (int i = 0; i < Pattern::kLines; ++i) {
#pragma unroll
      for (int e = 0; e < kPerLine; ++e) {
        const Place place = i + e == 0 ? first : place_of(Pattern::line(i) + e, depth);
        lines_[i][e] = Operand::near(place.behind(first));
        lines_[i][e].closed |= kBeyond;
      }
    }
  }

  // Where the depths of a stage lie, of which the first is `entries`.
  template <int kUnit>
  __device__ void find(const typename Operand::Near* entries) {
#pragma unroll
    for (int j = 0; j < Pattern::kDepths; ++j) {
#pragma unroll
      for (int e = 0; e < kPerDepth; ++e) depths_[j][e] = entries[Pattern::depth(j) / kUnit + e];
    }
  }

  // Loads that stage for store(), or, where nothing is left to be done with the elements, sets out
  // to copy them.
  __device__ void load(T* side) {
#pragma unroll
    for (int j = 0; j < Pattern::kDepths; ++j) {
#pragma unroll
      for (int access = 0; access < kAccesses; ++access) {
        const auto& depth = depths_[j][Side::kIsDeep ? access : 0];
#pragma unroll
        for (int i = 0; i < Pattern::kLines; ++i) {
          const auto& line = lines_[i][Side::kIsDeep ? 0 : access];
          const bool open = kGathers ? (line.closed & depth.closed) == 0 : depth.closed == 0;
          if constexpr (kIsCopied)
            copy_async<16>(side + Side::place(Pattern::line(i), Pattern::depth(j)),
                           origin_ + (line.offset + depth.offset), open ? 16 : 0);
          else
            Operand::load(origin_, line, depth, open, raw_[i][j][access]);
        }
      }
    }
  }

  __device__ void store(T* side) const {
    if constexpr (!kIsCopied) {
#pragma unroll
      for (int j = 0; j < Pattern::kDepths; ++j) {
#pragma unroll
        for (int i = 0; i < Pattern::kLines; ++i) {
          Elements<T, kPack<T>> pack;
#pragma unroll
          for (int e = 0; e < kPack<T>; ++e)
            pack.values[e] = Operand::value(raw_[i][j][e / kWidth], e % kWidth);
          T* place = side + Side::place(Pattern::line(i), Pattern::depth(j));
          *reinterpret_cast<Elements<T, kPack<T>>*>(place) = pack;
        }
      }
    }
  }

 private:
  static constexpr bool kIsCopied = kWidth > 1 && Operand::kIsPlain;
  static constexpr int kAccesses = kPack<T> / kWidth;                // of a pack
  static constexpr int kPerLine = Side::kIsDeep ? 1 : kAccesses;     // lines that a pack is of
  static constexpr int kPerDepth = Side::kIsDeep ? kAccesses : 1;    // and depths
  static constexpr int kRawLines = kIsCopied ? 1 : Pattern::kLines;  // nothing is held of copies
  static constexpr int kRawDepths = kIsCopied ? 1 : Pattern::kDepths;

  typename Operand::Pointer origin_;  // of the first line
  typename Operand::Near lines_[Pattern::kLines][kPerLine];
  typename Operand::Near depths_[Pattern::kDepths][kPerDepth];
  typename Operand::template Raw<kWidth> raw_[kRawLines][kRawDepths][kAccesses];
};

// ---- the product ----

// The types that make up a product: its tile, operands, sides and patterns; how many depths an
// entry of the table serves; the elements that a request moves of the operands; how sums leave.
template <class Tile_, class Rows_, class RowSide_, class RowPattern_, class Columns_,
          class ColumnSide_, class ColumnPattern_, int kUnit_, int kWidth_, class Drain_>
struct MmaTypes {
  using Tile = Tile_;
  using Rows = Rows_;
  using Columns = Columns_;
  using RowSide = RowSide_;
  using ColumnSide = ColumnSide_;
  using RowLoader = MmaLoader<typename Tile::T, Rows, RowSide, RowPattern_, kWidth_, true>;
  using ColumnLoader =
      MmaLoader<typename Tile::T, Columns, ColumnSide, ColumnPattern_, kWidth_, false>;
  using Table = DepthTable<Rows, Columns, unsigned, kUnit_>;
  using Drain = Drain_;
  static constexpr int kUnit = kUnit_;
};

// A warp's operands of one step: of 16 rows, and of twice 8 columns.
template <class Tile>
struct Fragments {
  unsigned rows[Tile::kWarpRows / 16][4];
  unsigned columns[Tile::kWarpColumns / 16][4];
};

template <class Types>
class FragmentReader {
 public:
  using Tile = typename Types::Tile;

  __device__ FragmentReader() : rows_(Tile::warp_row()), columns_(Tile::warp_column()) {}

  __device__ void read(const typename Tile::T* stage, int step, Fragments<Tile>& values) const {
    rows_.read(stage, step, values.rows);
    columns_.read(stage + Tile::kRowElements, step, values.columns);
    if constexpr (sizeof(typename Tile::T) == 4) {
#pragma unroll
      for (auto& fragment : values.rows)
#pragma unroll
        for (unsigned& value : fragment) value = tf32_operand(value);
#pragma unroll
      for (auto& fragment : values.columns)
#pragma unroll
        for (unsigned& value : fragment) value = tf32_operand(value);
    }
  }

 private:
  typename Types::RowSide::template Reader<true, Tile::kWarpRows / 16> rows_;
  typename Types::ColumnSide::template Reader<false, Tile::kWarpColumns / 16> columns_;
};

template <class Tile>
__device__ void multiply_fragments(Fragments<Tile>& values, typename Tile::Sums& sums) {
  using T = typename Tile::T;
#pragma unroll
  for (int i = 0; i < Tile::kWarpRows / 16; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kWarpColumns / 8; ++j) {
      const unsigned columns[2] = {values.columns[j / 2][j % 2 * 2],
                                   values.columns[j / 2][j % 2 * 2 + 1]};
      if constexpr (sizeof(T) == 4)
        mma_m16n8k8_tf32(sums[i][j], values.rows[i], columns, sums[i][j]);
      else
        mma_m16n8k16<T>(sums[i][j], values.rows[i], columns, sums[i][j]);
    }
  }
}

// Adds the products of the depths [begin, end), where `begin` is a multiple of the table's half.
template <class Types, class Shape, class T>
__device__ void multiply(const Shape& shape, typename Types::RowLoader& rows,
                         typename Types::ColumnLoader& columns, typename Types::Table& table,
                         int begin, int end, T* stages, typename Types::Tile::Sums& sums) {
  using Tile = typename Types::Tile;
  using Table = typename Types::Table;
  const auto load = [&](int depth, T* stage) {
    const int entry = table.entry(depth);
    rows.template find<Types::kUnit>(table.rows + entry);
    columns.template find<Types::kUnit>(table.columns + entry);
    rows.load(stage);
    columns.load(stage + Tile::kRowElements);
    commit_copies();
  };
  const auto store = [&](T* stage) {
    rows.store(stage);
    columns.store(stage + Tile::kRowElements);
  };
  T* const last_stage = stages + (Tile::kStages - 1) * Tile::kElements;
  const auto advance = [&](T*& stage) {
    stage = stage == last_stage ? stages : stage + Tile::kElements;
  };

  table.fill(shape, begin, end, Tile::kThreads);
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    load(begin + i * Tile::kDepth, stages + i * Tile::kElements);
    store(stages + i * Tile::kElements);
  }
  wait_copies<Tile::kStages - 2>();
  __syncthreads();

  const FragmentReader<Types> reader;
  Fragments<Tile> fragments[kSteps];
  T *read = stages, *written = last_stage;
  reader.read(read, 0, fragments[0]);
  for (int first = begin; first < end; first += Table::kDepth) {
    table.fill(shape, first + Table::kDepth, end, Tile::kThreads);
    __syncthreads();
    const int last = end - first < Table::kDepth ? end : first + Table::kDepth;
#pragma unroll 1
    for (int depth = first; depth < last; depth += Tile::kDepth) {
      reader.read(read, 1, fragments[1]);
      load(depth + (Tile::kStages - 1) * Tile::kDepth, written);
      multiply_fragments<Tile>(fragments[0], sums);
      store(written);
      advance(written);
      advance(read);
      wait_copies<Tile::kStages - 2>();
      __syncthreads();
      reader.read(read, 0, fragments[0]);
      multiply_fragments<Tile>(fragments[1], sums);
    }
  }
  wait_copies<0>();
}

// ---- the sums' way out ----

// Hands the sums to sink(row of the tile, column of the tile, sums): a shared buffer turns them, in
// rounds of 8 lines a warp.
template <class Types, class Sink>
__device__ void drain(const typename Types::Tile::Sums& sums, float* buffer, const Sink& sink) {
  using Tile = typename Types::Tile;
  using Drain = typename Types::Drain;
  constexpr bool kAlongRows = Drain::kAlongRows;
  constexpr int kRounds = (kAlongRows ? Tile::kWarpColumns : Tile::kWarpRows) / 8;
  constexpr int kWarps = kAlongRows ? Tile::kWarpsAcross : Tile::kWarpsDown;
  constexpr int kLength = kAlongRows ? Tile::kRows : Tile::kColumns;
  constexpr int kPitch = kLength + 8;
  static_assert(8 * kWarps * kPitch * sizeof(float) <= Tile::kSharedBytes);
  const int group = lane() / 4, pair = lane() % 4 * 2;

#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    __syncthreads();  // the buffer is free
#pragma unroll
    for (int i = 0; i < Tile::kWarpRows / 8; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kWarpColumns / 8; ++j) {
        if ((kAlongRows ? j : i) != round) continue;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = Tile::warp_row() + Types::RowSide::line(i, group);
          const int column = Tile::warp_column() + Types::ColumnSide::line(j, pair + e);
          const int line = kAlongRows ? Tile::warp_column() / Tile::kWarpColumns * 8 + pair + e
                                      : Tile::warp_row() / Tile::kWarpRows * 8 + group;
          buffer[line * kPitch + (kAlongRows ? row : column)] = sums[i / 2][j][i % 2 * 2 + e];
        }
      }
    }
    __syncthreads();
    constexpr int kAccesses = 8 * kWarps * kLength / Drain::kWidth;
#pragma unroll 1
    for (int k = computed(threadIdx.x); k < kAccesses; k += Tile::kThreads) {
      const auto [line, along] = Drain::template access<8 * kWarps, kLength>(k);
      float values[Drain::kWidth];
      copy_packs(buffer + line * kPitch + along, values);
      const int warp = line / 8, index = line % 8;
      if constexpr (kAlongRows)
        sink(along, warp * Tile::kWarpColumns + Types::ColumnSide::line(round, index), values);
      else
        sink(warp * Tile::kWarpRows + Types::RowSide::line(round, index), along, values);
    }
  }
}

// ---- a block's work ----

// Computes the block's tile over the depths [begin, end). For neighbours among the sums
// sink(offset of their result_row, row, column, sums) is called. All threads see `shape`, in
// shared memory; `stages` has Tile::kSharedBytes.
template <class Types, class Shape, class T, class Sink>
__device__ void run_mma_gemm(const Shape& shape, const typename Types::Rows& rows,
                             const typename Types::Columns& columns, int begin, int end, T* stages,
                             const Sink& sink) {
  using Tile = typename Types::Tile;
  using Table = typename Types::Table;
  SHARED_ARRAY(Table, table, [1]);
  SHARED_ARRAY(int64_t, result_rows, [Tile::kRows]);
  const TileCorner corner = tile_corner<Tile>(shape.columns);

  for (int i = threadIdx.x; i < Tile::kRows && corner.row + i < shape.rows; i += Tile::kThreads)
    result_rows[i] = shape.result_row(corner.row + i);

  // Rows and columns beyond the last repeat the first of the tile; nobody wants their sums.
  typename Types::RowLoader row_loader(rows, Types::kUnit, [&](int i, int) {
    return shape.row(corner.row + (corner.row + i < shape.rows ? i : 0));
  });
  typename Types::ColumnLoader column_loader(columns, Types::kUnit, [&](int i, int depth) {
    return shape.column(corner.column + (corner.column + i < shape.columns ? i : 0), depth);
  });

  typename Tile::Sums sums = {};
  multiply<Types>(shape, row_loader, column_loader, table[0], begin, end, stages, sums);

  const TileCorner again = tile_corner<Tile>(shape.columns);  // registers are scarce in between
  drain<Types>(sums, reinterpret_cast<float*>(stages), [&](int i, int j, const auto& values) {
    if (again.row + i < shape.rows && again.column + j < shape.columns)
      sink(result_rows[i], again.row + i, again.column + j, values);
  });
}

}  // namespace cnnkernels::CNN_TARGET
