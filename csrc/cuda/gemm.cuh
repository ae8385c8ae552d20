// A matrix product on the ordinary arithmetic units, whose operands are stored nowhere as matrices:
//
//   sums[row, column] = sum over depth of rows[row, depth] * columns[column, depth]
//
// What the elements are and where they lie tells a `Shape`, what becomes of the sums a sink: this
// file knows of neither. A block owns a tile of sums, a thread 8 x 8 of them (4 x 4 in float64):
//
//          columns, 8 deep, in shared memory
//         +----------------------------------+
//         |   . . x x x x . . . x x x x . .  |   A thread's rows and columns come in two halves:
//   +---+ +----------------------------------+   so the 16 bytes that it reads at once lie beside
//   | x | |       o o o o       o o o o      |   its neighbours', and no quarter of a warp meets a
//   | x | |       o o o o       o o o o      |   bank twice. 4 such reads for each depth make 64
//   | . | |                                  |   multiply-adds.
//   | x | |       o o o o       o o o o      |
//   +---+ +----------------------------------+
//   rows, likewise
//
// While a stage of 8 depths is multiplied, the next is on its way from global memory to registers;
// then it is stored to the other one of two buffers, and a barrier ends the stage. cp.async would
// take more issue slots: nvcc pads each copy, of 4 bytes, with 3 instructions that do nothing.
//
// How elements are found: gemm_operands.cuh.
#pragma once

#include "gemm_operands.cuh"

namespace cnnkernels::CNN_TARGET {

constexpr int kStageDepth = 8;  // of a buffer

// The tile of a block; A is the type of its elements and sums.
template <class A_, int kRows_, int kColumns_>
struct GemmTile {
  using A = A_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kBlock = 2 * kPack<A>;  // rows and columns of a thread
  static constexpr int kThreadsAcross = kColumns / kBlock;
  static constexpr int kThreads = kRows / kBlock * kThreadsAcross;

  // From one depth to the next. The 16 bytes more keep lanes that store neighbouring depths of
  // neighbouring rows out of each other's banks.
  static constexpr int kRowPitch = kRows + kPack<A>, kColumnPitch = kColumns + kPack<A>;
  static constexpr int kRowBuffer = kStageDepth * kRowPitch;
  static constexpr int kBuffer = kRowBuffer + kStageDepth * kColumnPitch;

  using Sums = A[kBlock][kBlock];

  // Threads lie in warps of 8 columns, or of all where there are fewer.
  static constexpr int kWarpColumns = kThreadsAcross < 8 ? kThreadsAcross : 8;
  static constexpr int kWarpRows = kWarpSize / kWarpColumns;
  static constexpr int kWarpsAcross = kThreadsAcross / kWarpColumns;
  static_assert(kThreads % kWarpSize == 0 && kThreadsAcross % kWarpColumns == 0);

  __device__ static int thread_row() {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    return warp / kWarpsAcross * kWarpRows + lane / kWarpColumns;
  }
  __device__ static int thread_column() {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    return warp % kWarpsAcross * kWarpColumns + lane % kWarpColumns;
  }
};

// ---- which elements a thread loads ----

// A loader's pattern: kRows x kDepths accesses of a thread, to kWidth neighbours each, along the
// rows or along the depth. kSize is the tile's rows or columns.

// For elements that are neighbours in memory along the rows.
template <int kSize, int kThreads>
struct LanesAlongRows {
  static constexpr int kLanes = kSize < kThreads ? kSize : kThreads;
  static constexpr int kRows = kSize / kLanes, kDepths = kStageDepth * kLanes / kThreads;
  static constexpr int kWidth = 1;
  static constexpr bool kWideRows = false;

  __device__ static int row(int i) { return threadIdx.x % kLanes + i * kLanes; }
  __device__ static int depth(int j) { return threadIdx.x / kLanes * kDepths + j; }
};

// Along the depth.
template <int kSize, int kThreads>
struct LanesAlongDepth {
  static constexpr int kLanes = kThreads / kStageDepth;  // that share a depth
  static constexpr int kRows = kSize / kLanes, kDepths = 1;
  static constexpr int kWidth = 1;
  static constexpr bool kWideRows = false;

  __device__ static int row(int i) { return threadIdx.x / kStageDepth + i * kLanes; }
  __device__ static int depth(int) { return threadIdx.x % kStageDepth; }
};

// Along the rows, 16 bytes a thread.
template <int kSize, int kThreads>
struct PacksAlongRows {
  static constexpr int kWidth = 4;
  static constexpr int kLanes = kSize / kWidth;
  static constexpr int kRows = 1, kDepths = kStageDepth * kLanes / kThreads;
  static constexpr bool kWideRows = true;

  __device__ static int row(int) { return threadIdx.x % kLanes * kWidth; }
  __device__ static int depth(int j) { return threadIdx.x / kLanes + j * (kThreads / kLanes); }
};

// Along the depth, 16 bytes a thread.
template <int kSize, int kThreads>
struct PacksAlongDepth {
  static constexpr int kWidth = 4;
  static constexpr int kLanes = kStageDepth / kWidth;
  static constexpr int kRows = kSize * kLanes / kThreads, kDepths = 1;
  static constexpr bool kWideRows = false;

  __device__ static int row(int i) { return threadIdx.x / kLanes + i * (kThreads / kLanes); }
  __device__ static int depth(int) { return threadIdx.x % kLanes * kWidth; }
};

// Takes a thread's part of one operand from global memory to a stage. Where kGathers is not set,
// rows close no bits but kBeyond.
template <class Operand, class Pattern, int kPitch, bool kGathers>
class Loader {
 public:
  // place_of(i) is where row i of the tile lies.
  template <class PlaceOf>
  __device__ Loader(const Operand& operand, const PlaceOf& place_of) {
    const Place first = place_of(Pattern::row(0));
    origin_ = operand.at(first);
#pragma unroll
    for (int i = 0; i < Pattern::kRows; ++i) {
      const Place place = i == 0 ? first : place_of(Pattern::row(i));
      rows_[i] = Operand::near(place.behind(first));
      rows_[i].closed = kGathers ? rows_[i].closed | kBeyond : kBeyond;
    }
  }

  // Loads the stage whose depths begin at `table`, for store().
  __device__ void load(const typename Operand::Near* table) {
#pragma unroll
    for (int j = 0; j < Pattern::kDepths; ++j) {
      const typename Operand::Near depth = table[Pattern::depth(j)];
#pragma unroll
      for (int i = 0; i < Pattern::kRows; ++i) {
        const bool open = (rows_[i].closed & depth.closed) == 0;
        Operand::load(origin_, rows_[i], depth, open, raw_[i][j]);
      }
    }
  }

  template <class A>
  __device__ void store(A* stage) const {
    constexpr int kWidth = Pattern::kWidth, kStored = Pattern::kWideRows ? kWidth : 1;
#pragma unroll
    for (int j = 0; j < Pattern::kDepths; ++j) {
#pragma unroll
      for (int i = 0; i < Pattern::kRows; ++i) {
        A* place = stage + Pattern::depth(j) * kPitch + Pattern::row(i);
#pragma unroll
        for (int first = 0; first < kWidth; first += kStored) {
          Elements<A, kStored> pack;
#pragma unroll
          for (int k = 0; k < kStored; ++k) pack.values[k] = Operand::value(raw_[i][j], first + k);
          *reinterpret_cast<Elements<A, kStored>*>(place + first * kPitch) = pack;
        }
      }
    }
  }

 private:
  typename Operand::Pointer origin_;  // of the first row
  typename Operand::Near rows_[Pattern::kRows];
  typename Operand::template Raw<Pattern::kWidth> raw_[Pattern::kRows][Pattern::kDepths];
};

// ---- the product ----

// A thread's half-and-half of `size` rows or columns at one depth.
template <class A>
__device__ void read_halves(const A* line, int thread, int size, A (&values)[2 * kPack<A>]) {
  using Access = Elements<A, kPack<A>>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Access pack = reinterpret_cast<const Access*>(line + half * size / 2)[thread];
#pragma unroll
    for (int i = 0; i < kPack<A>; ++i) values[half * kPack<A> + i] = pack.values[i];
  }
}

template <class Tile, class A>
__device__ void multiply_stage(const A* stage, typename Tile::Sums& sums) {
#pragma unroll
  for (int depth = 0; depth < kStageDepth; ++depth) {
    A rows[Tile::kBlock], columns[Tile::kBlock];
    read_halves(stage + depth * Tile::kRowPitch, Tile::thread_row(), Tile::kRows, rows);
    read_halves(stage + Tile::kRowBuffer + depth * Tile::kColumnPitch, Tile::thread_column(),
                Tile::kColumns, columns);
#pragma unroll
    for (int i = 0; i < Tile::kBlock; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kBlock; ++j)
        sums[i][j] = multiply_add(rows[i], columns[j], sums[i][j]);
    }
  }
}

// Adds the products of the depths [begin, end), where `begin` is a multiple of kTableDepth.
template <class Tile, class Shape, class RowLoader, class ColumnLoader, class Table, class A>
__device__ void multiply(const Shape& shape, RowLoader& rows, ColumnLoader& columns, Table& table,
                         int begin, int end, A (&buffers)[2][Tile::kBuffer],
                         typename Tile::Sums& sums) {
  const auto load = [&](int depth) {
    rows.load(table.rows + table.entry(depth));
    columns.load(table.columns + table.entry(depth));
  };
  const auto store = [&](A* stage) {
    rows.store(stage);
    columns.store(stage + Tile::kRowBuffer);
  };

  table.fill(shape, begin, end, Tile::kThreads);
  __syncthreads();
  load(begin);
  store(buffers[0]);
  for (int first = begin; first < end; first += kTableDepth) {
    table.fill(shape, first + kTableDepth, end, Tile::kThreads);
    __syncthreads();
    const int last = end - first < kTableDepth ? end : first + kTableDepth;
#pragma unroll 1
    for (int depth = first; depth < last; depth += 2 * kStageDepth) {
#pragma unroll
      for (int buffer = 0; buffer < 2; ++buffer) {
        load(depth + (buffer + 1) * kStageDepth);
        multiply_stage<Tile>(buffers[buffer], sums);
        store(buffers[1 - buffer]);
        __syncthreads();
      }
    }
  }
}

// ---- the sums' way out ----

// Hands the sums to sink(row of the tile, column of the tile, sums): a shared buffer turns them, in
// rounds of a row or column a thread.
template <class Tile, class Drain, class A, class Sink>
__device__ void drain(const typename Tile::Sums& sums, A* buffer, const Sink& sink) {
  using Access = Elements<A, kPack<A>>;
  constexpr bool kAlongRows = Drain::kAlongRows;
  constexpr int kBlock = Tile::kBlock;
  constexpr int kLines = (kAlongRows ? Tile::kColumns : Tile::kRows) / kBlock;  // a round
  constexpr int kLength = kAlongRows ? Tile::kRows : Tile::kColumns;
  constexpr int kPitch = kLength + kPack<A>;
  static_assert(kLines * kPitch <= 2 * Tile::kBuffer);
  const int line = kAlongRows ? Tile::thread_column() : Tile::thread_row();
  const int pack = kAlongRows ? Tile::thread_row() : Tile::thread_column();

#pragma unroll
  for (int round = 0; round < kBlock; ++round) {
    __syncthreads();  // the buffer is free
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Access values;
#pragma unroll
      for (int i = 0; i < kPack<A>; ++i) {
        const int other = half * kPack<A> + i;
        values.values[i] = kAlongRows ? sums[other][round] : sums[round][other];
      }
      reinterpret_cast<Access*>(buffer + line * kPitch + half * kLength / 2)[pack] = values;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = computed(threadIdx.x); i < kLines * kLength / Drain::kWidth; i += Tile::kThreads) {
      const auto [own_line, along] = Drain::template access<kLines, kLength>(i);
      const int across =
          own_line * kPack<A> + round % kPack<A> + round / kPack<A> * kLines * kPack<A>;
      A values[Drain::kWidth];
      copy_packs(buffer + own_line * kPitch + along, values);
      if (kAlongRows)
        sink(along, across, values);
      else
        sink(across, along, values);
    }
  }
}

// ---- a block's work ----

// The types that make up a product: its tile, the operands, the patterns that they are loaded in,
// and how sums leave.
template <class Tile_, class Rows_, class RowPattern_, class Columns_, class ColumnPattern_,
          class Drain_>
struct GemmTypes {
  using Tile = Tile_;
  using Rows = Rows_;
  using Columns = Columns_;
  using RowLoader = Loader<Rows, RowPattern_, Tile::kRowPitch, true>;
  using ColumnLoader = Loader<Columns, ColumnPattern_, Tile::kColumnPitch, false>;
  using Drain = Drain_;
};

// Sums are kept in parts of so many products, which are then added: rounding errors grow with the
// length of a chain of additions. The registers hold one part only; the others wait in memory.
constexpr int kPartDepth = 3 * kTableDepth;

template <class A, int kWidth>
__device__ void add_to(A (&sums)[kWidth], const A* others) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sums[i] += others[i];
}

template <class A, int kWidth>
__device__ void store_to(A* place, const A (&sums)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) place[i] = sums[i];
}

// Computes the block's tile over the depths [begin, end). For neighbours among the sums
// sink.store(are they whole?, place, offset of their result_row, row, column, sums) is called,
// where place = sink.waiting(offset, row, column) is where they wait that are not. All threads see
// `shape`, in shared memory.
template <class Types, class Shape, class Sink>
__device__ void run_gemm(const Shape& shape, const typename Types::Rows& rows,
                         const typename Types::Columns& columns, int begin, int end,
                         const Sink& sink) {
  using Tile = typename Types::Tile;
  using A = typename Tile::A;
  using Table = DepthTable<typename Types::Rows, typename Types::Columns>;
  SHARED_ARRAY(A, buffers, [2][Tile::kBuffer]);
  SHARED_ARRAY(Table, table, [1]);
  SHARED_ARRAY(int64_t, result_rows, [Tile::kRows]);
  SHARED_ARRAY(TileCorner, corners, [1]);
  const TileCorner corner = tile_corner<Tile>(shape.columns);
  if (threadIdx.x == 0) corners[0] = corner;

  for (int i = threadIdx.x; i < Tile::kRows && corner.row + i < shape.rows; i += Tile::kThreads)
    result_rows[i] = shape.result_row(corner.row + i);

  // Rows and columns beyond the last repeat the first of the tile; nobody wants their sums.
  typename Types::RowLoader row_loader(
      rows, [&](int i) { return shape.row(corner.row + (corner.row + i < shape.rows ? i : 0)); });
  typename Types::ColumnLoader column_loader(columns, [&](int i) {
    return shape.column(corner.column + (corner.column + i < shape.columns ? i : 0));
  });

  for (int part = begin; part == begin || part < end; part += kPartDepth) {
    const bool is_last = end - part <= kPartDepth;
    typename Tile::Sums sums = {};
    multiply<Tile>(shape, row_loader, column_loader, table[0], part,
                   is_last ? end : part + kPartDepth, buffers, sums);
    // Read from shared memory once, but not before: registers are scarce while the loop runs.
    const int first_column = corners[0].column, last_column = shape.columns - first_column;
    const int last_row = shape.rows - corners[0].row;
    drain<Tile, typename Types::Drain>(sums, buffers[0], [&](int i, int j, auto& values) {
      if (i >= last_row || j >= last_column) return;
      const int64_t offset = result_rows[i];
      const int row = corners[0].row + i, column = first_column + j;
      A* const waiting = sink.waiting(offset, row, column);
      if (part != begin) add_to(values, waiting);
      sink.store(is_last, waiting, offset, row, column, values);
    });
  }
}

}  // namespace cnnkernels::CNN_TARGET
