// tiled: direct convolution for few input channels, where a GEMM has no depth to work with: first
// layers. Pixels and filters wait in shared memory, results grow in registers.
//
//   fprop  a warp per 8 filters and 8 x 32 outputs; up to 4 warps with 8 filters each share a tile
//          of pixels. A lane owns a column: 8 rows x 8 filters of sums.
//
//          tile of one channel, in shared memory      filters of that channel, likewise
//          0       32 lanes       31  halo               [s][r][k]
//        +------------------------+---+                +---+---+-- - -
//        | .  .  |x|  .  .  .  .  |   |  8 rows,       |8 k|8 k| ...    read by a whole warp at
//        |       |x|              |   |  read as a     +---+---+-- - -  once: a broadcast
//        |       |x|  <- a lane's |   |  column of
//        +-------|x|--------------+---+  8 + R - 1     64 sums += 8 filters x 8 pixels,
//        |  halo |x|              |   |  pixels,       R times for each column of pixels
//        +------------------------+---+  once per s
//
//   dgrad  the same with pixels and outputs exchanged: a warp per channel and 8 x 32 pixels (8 x 64
//          where the stride is 2), 4 warps below each other. Of each filter's gradient a tile with
//          its halo is staged.
//   wgrad  a block per chunk of a few such tiles of outputs, whose warps have some filters each. A
//          lane keeps all taps' sums of its filters (2 x 7x7, 4 x 5x5 or 8 x 3x3) in registers, and
//          lays the gradients of its column by in shared memory; down the column, R x S pixels
//          slide through registers. At the end of a chunk lanes add up, and a second kernel adds
//          the chunks: both in an order fixed by the problem, so that the bits are the same every
//          run.
//   bgrad  is left to `direct`.
//
// Cost: 2 * N*K*P*Q * C*R*S FLOP a pass. In fprop, a column of 12 pixels and 5 x 8 taps are 12 + 10
// loads (16 bytes hold 4 taps) for 5 * 64 multiply-adds of a 5x5 filter: 15 a load, where `direct`
// makes half of one. Global memory sees each output once and, for every 32 filters, each pixel
// (8 + R - 1) / 8 * (32 + S - 1) / 32 times: little beside 4 * N*K*P*Q bytes of outputs, so that
// there are about C*R*S / 2 FLOP a byte. An A100's FP32 units do 9.6 in the time of a byte: 3x3 of
// one channel (4.5) is bound by writing the outputs, 5x5 of one (12.5), 3x3 of three (13.5) and
// all beyond by FP32 issue. dgrad makes 8 * R multiply-adds of 8 + 2 * R - 1 loads from shared
// memory, which is what bounds it. wgrad loads S pixels from shared memory and a gradient
// of each of its filters, brought there from global memory, for 100 multiply-adds of 5x5;
// it reads all gradients C times.
//
// What is lost: outputs beyond the last row and column of a tile are computed in vain (28 x 28 of
// 32 x 32: 23 %), as are filters beyond a multiple of 8.
#pragma once

#include <climits>
#include <type_traits>

#include "conv2d.cuh"
#include "epilogue.cuh"
#include "reduce.cuh"

namespace cnnkernels::CNN_TARGET {

// What the tiles are made for.
constexpr int kMostChannels = 4, kMostTaps = 7, kMostStride = 2;

constexpr int kThreadRows = 8;
constexpr int kTileWarps = 4;  // of a block, at most, in fprop and dgrad

// Columns of a tile with the same remainder by the stride stand side by side, so that lanes, whose
// pixels are `stride` apart, read neighbours. 16 more than a warp has: the remainders 0 and 1 then
// start in opposite halves of the banks, and the lanes that fill a row do not collide.
constexpr int kColumnsPerRemainder = kWarpSize + kWarpSize / 2;
static_assert(kColumnsPerRemainder >= kWarpSize + kMostTaps - 1);

__device__ inline int place_of_column(int column, int stride) {
  return column % stride * kColumnsPerRemainder + column / stride;
}

// The rows of a filter and both strides, where a kernel is compiled for them; 0: any up to the
// most.
template <int kR, int kStride>
struct TiledSize {
  static constexpr int kMostRows = kR > 0 ? kR : kMostTaps;
  static constexpr int kMostSteps = kStride > 0 ? kStride : kMostStride;

  // Of the pixels that a warp of fprop reads, with the halo.
  static constexpr int kTileRows = (kThreadRows - 1) * kMostSteps + kMostRows;
  static constexpr int kTilePitch = kMostSteps * kColumnsPerRemainder;

  int R, stride_h, stride_w;

  __device__ explicit TiledSize(const Conv2dProblem& problem)
      : R(kR > 0 ? kR : problem.R),
        stride_h(kStride > 0 ? kStride : problem.stride_h),
        stride_w(kStride > 0 ? kStride : problem.stride_w) {}
};

// Tiles lie side by side over the columns, then the rows, then the images.
struct TilePosition {
  int n, row, column;

  __device__ TilePosition(int index, int rows, int columns, int tile_rows, int tile_columns) {
    const int across = (columns + tile_columns - 1) / tile_columns;
    const int down = (rows + tile_rows - 1) / tile_rows;
    column = index % across * tile_columns;
    row = index / across % down * tile_rows;
    n = index / across / down;
  }
};

// Sets a tile to values_of(column)(row), a warp a row. Lane 0 begins at `first`, from where on
// memory is likely to be aligned; the columns before it come last. Values are stored a few at a
// time, so that the loads do not wait for each other.
template <class A, class Values>
__device__ void fill_tile(A* tile, int pitch, int rows, int columns, int stride, int first,
                          const Values& values_of) {
  constexpr int kBatch = 4;
  const int step = blockDim.y;
  for (int i = threadIdx.x; i < columns; i += kWarpSize) {
    const int column = i + first < columns ? i + first : i + first - columns;
    A* place = tile + place_of_column(column, stride);
    const auto value = values_of(column);
    for (int row = threadIdx.y; row < rows; row += kBatch * step) {
      A values[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        values[j] = row + j * step < rows ? value(row + j * step) : A(0);
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        if (row + j * step < rows) place[(row + j * step) * pitch] = values[j];
    }
  }
}

// ---- fprop ----

// 16 bytes of shared memory, which one request reads.
template <class A>
struct alignas(16) Pack {
  static constexpr int kValues = 16 / sizeof(A);
  A values[kValues];
};

// 8 filters, or 4 in float64.
template <class A>
constexpr int kThreadFilters = 2 * Pack<A>::kValues;

template <class A>
using ThreadSums = A[kThreadFilters<A>][kThreadRows];

// From one tap to the next of the filters in shared memory. The 4 more keep the lanes of a warp,
// which store 8 taps of 4 filters, out of each other's banks.
template <class A>
constexpr int kFilterPitch = kTileWarps * kThreadFilters<A> + 4;

// The pixels of channel c under a tile of outputs.
template <class T, class Size, class A>
__device__ void load_pixels(const Conv2dProblem& problem, const Size& size,
                            const TilePosition& outputs, int c, const T* __restrict__ input,
                            A* pixels) {
  const int h0 = outputs.row * size.stride_h - problem.pad_top;
  const int w0 = outputs.column * size.stride_w - problem.pad_left;
  const int rows = (kThreadRows - 1) * size.stride_h + size.R;
  const int columns = (kWarpSize - 1) * size.stride_w + problem.S;
  const T* plane = input + problem.input.at(outputs.n, c, 0, 0);
  const int first = problem.pad_left < columns ? problem.pad_left : 0;
  fill_tile(pixels, Size::kTilePitch, rows, columns, size.stride_w, first, [&](int j) {
    const int w = w0 + j;
    const T* column = plane + problem.input.at(0, 0, h0, w);
    const bool in_image = inside(w, problem.W);
    return [&problem, column, h0, in_image](int i) {
      const bool is_pixel = in_image && inside(h0 + i, problem.H);
      return is_pixel ? static_cast<A>(column[i * problem.input.h]) : A(0);
    };
  });
}

// Channel c of the block's filters, from first_k on; beyond the last they are zero.
template <class T, class Size, class A>
__device__ void load_filters(const Conv2dProblem& problem, const Size& size, int first_k, int c,
                             const T* __restrict__ weight, A* filters) {
  constexpr int kLaneTaps = 8, kLaneFilters = kWarpSize / kLaneTaps;
  constexpr int kRounds = kThreadFilters<A> / kLaneFilters;
  const int first = threadIdx.y * kLaneFilters + threadIdx.x / kLaneTaps;
  const int step = blockDim.y * kLaneFilters;
#pragma unroll 2
  for (int tap = threadIdx.x % kLaneTaps; tap < size.R * problem.S; tap += kLaneTaps) {
    const int r = tap / problem.S, s = tap % problem.S;
    A values[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int k = first_k + first + i * step;
      values[i] = k < problem.K ? static_cast<A>(weight[problem.weight.at(k, c, r, s)]) : A(0);
    }
    A* place = filters + (s * size.R + r) * kFilterPitch<A> + first;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) place[i * step] = values[i];
  }
}

// Adds a channel's products to the thread's sums.
template <int kR, class Size, class A>
__device__ void add_channel(const Conv2dProblem& problem, const Size& size, const A* pixels,
                            const A* filters, ThreadSums<A>& sums) {
  constexpr int kFilters = kThreadFilters<A>, kPacks = kFilters / Pack<A>::kValues;
#pragma unroll 1
  for (int s = 0; s < problem.S; ++s) {
    const A* column = pixels + place_of_column(s, size.stride_w) + threadIdx.x;
    // Unrolled, so that a pixel which several taps want is loaded once.
#pragma unroll(kR > 0 ? kR : 1)
    for (int r = 0; r < size.R; ++r) {
      Pack<A> taps[kPacks];
      const A* first = filters + (s * size.R + r) * kFilterPitch<A> + threadIdx.y * kFilters;
      for (int i = 0; i < kPacks; ++i) taps[i] = reinterpret_cast<const Pack<A>*>(first)[i];
#pragma unroll
      for (int row = 0; row < kThreadRows; ++row) {
        const A pixel = column[(row * size.stride_h + r) * Size::kTilePitch];
#pragma unroll
        for (int k = 0; k < kFilters; ++k) {
          const A tap = taps[k / Pack<A>::kValues].values[k % Pack<A>::kValues];
          sums[k][row] = multiply_add(tap, pixel, sums[k][row]);
        }
      }
    }
  }
}

// Where fprop's tiles lie and what becomes of their sums. This one covers the outputs with tiles
// and stores each; conv2d_pool_tiled.cuh has one that pools.
template <class T>
struct StoredOutput {
  T* output;

  __device__ TilePosition position(const Conv2dProblem& problem, int tile) const {
    return TilePosition(tile, problem.P, problem.Q, kThreadRows, kWarpSize);
  }

  // Takes the thread's sums: filters from first_k on, at this lane's column of the tile.
  template <class A>
  __device__ void take(const Conv2dProblem& problem, const Epilogue& epilogue, int tile,
                       int first_k, const ThreadSums<A>& sums) const {
    const TilePosition at = position(problem, tile);
    const int q = at.column + threadIdx.x;
    if (q >= problem.Q) return;
    T* filter = output + problem.output.at(at.n, first_k, at.row, q);
#pragma unroll
    for (int k = 0; k < kThreadFilters<A>; ++k, filter += problem.output.c) {
      if (first_k + k >= problem.K) return;
      T results[kThreadRows];  // all of them before any is stored: the bias is then loaded once
#pragma unroll
      for (int row = 0; row < kThreadRows; ++row)
        results[row] = finish<T>(sums[k][row], epilogue, first_k + k);
      T* place = filter;
#pragma unroll
      for (int row = 0; row < kThreadRows; ++row, place += problem.output.h)
        if (at.row + row < problem.P) *place = results[row];
    }
  }
};

// Blocks of an SM, at least: a thread can have 128 registers, or 168 in float64.
template <class A>
constexpr int kTiledBlocks = sizeof(A) > sizeof(float) ? 3 : 4;

template <class T, class Output, int kR, int kStride>
__global__ void __launch_bounds__(kWarpSize* kTileWarps, kTiledBlocks<Accumulator<T>>)
    conv2d_tiled_fprop(Conv2dProblem problem, const T* __restrict__ input,
                       const T* __restrict__ weight, Epilogue epilogue, Output output) {
  using A = Accumulator<T>;
  using Size = TiledSize<kR, kStride>;
  SHARED_ARRAY(A, pixels, [Size::kTileRows * Size::kTilePitch]);
  SHARED_ARRAY(A, filters, [Size::kMostRows * kMostTaps * kFilterPitch<A>]);
  const Size size(problem);
  const TilePosition outputs = output.position(problem, blockIdx.x);
  const int first_k = blockIdx.y * blockDim.y * kThreadFilters<A>;

  ThreadSums<A> sums = {};
  for (int c = 0; c < problem.C; ++c) {
    load_pixels(problem, size, outputs, c, input, pixels);
    load_filters(problem, size, first_k, c, weight, filters);
    __syncthreads();
    add_channel<kR>(problem, size, pixels, filters, sums);
    __syncthreads();  // all have read before the next channel is written
  }
  output.take(problem, epilogue, blockIdx.x, first_k + threadIdx.y * kThreadFilters<A>, sums);
}

// ---- dgrad ----

// A pixel's coordinates count from where the padding begins, so that tap (r, s) of filter k reads
// pixel (row, column) for output (row - r) / stride_h, (column - s) / stride_w, where both divide.
// So a tile begins at multiples of the strides, and which of a thread's pixels a tap reaches is
// known when the kernel is compiled. A lane has stride_w neighbouring columns.

// Strides are 1 or 2: no division is needed.
__device__ constexpr bool divides(int stride, int distance) {
  return distance % 2 == 0 || stride == 1;
}
__device__ constexpr int quotient(int distance, int stride) {
  return stride == 1 ? distance : distance / 2;
}

// The gradient of filter k under a tile of pixels, with its halo before it.
template <class Size, class Gradient, class A>
__device__ void load_gradient(const Conv2dProblem& problem, const Size& size,
                              const Gradient& grad_output, const TilePosition& pixels, int k,
                              A* gradient) {
  const int halo_p = (size.R - 1) / size.stride_h, halo_q = (problem.S - 1) / size.stride_w;
  const int p0 = quotient(pixels.row, size.stride_h) - halo_p;
  const int q0 = quotient(pixels.column, size.stride_w) - halo_q;
  const int rows = quotient(kTileWarps * kThreadRows, size.stride_h) + halo_p;
  const int columns = kWarpSize + halo_q;
  fill_tile(gradient, kColumnsPerRemainder, rows, columns, 1, halo_q, [&](int j) {
    const int q = q0 + j;
    const auto column = grad_output.column(problem, pixels.n, k, q);
    const bool in_image = inside(q, problem.Q);
    return [&problem, column, p0, in_image](int i) {
      const bool is_output = in_image && inside(p0 + i, problem.P);
      return is_output ? column.at(p0 + i) : A(0);
    };
  });
}

// Adds a filter's products to the thread's sums, of stride_w columns of pixels.
template <int kR, class Size, class A>
__device__ void add_filter(const Conv2dProblem& problem, const Size& size, const A* gradient,
                           const A* taps, A (&sums)[Size::kMostSteps][kThreadRows]) {
  const int halo_p = (size.R - 1) / size.stride_h, halo_q = (problem.S - 1) / size.stride_w;
  const int first_row = quotient(threadIdx.y * kThreadRows, size.stride_h) + halo_p;
  const A* of_warp = gradient + first_row * kColumnsPerRemainder + threadIdx.x + halo_q;
#pragma unroll
  for (int side = 0; side < Size::kMostSteps; ++side) {
    if (side >= size.stride_w) break;
#pragma unroll 1
    for (int s = side; s < problem.S; s += size.stride_w) {
      const A* column = of_warp - quotient(s, size.stride_w);
#pragma unroll(kR > 0 ? kR : 1)
      for (int r = 0; r < size.R; ++r) {
        const A tap = taps[s * size.R + r];
#pragma unroll
        for (int row = 0; row < kThreadRows; ++row) {
          if (!divides(size.stride_h, row - r)) continue;
          const A grad = column[quotient(row - r, size.stride_h) * kColumnsPerRemainder];
          sums[side][row] = multiply_add(grad, tap, sums[side][row]);
        }
      }
    }
  }
}

// Block y is channel y.
template <class T, class Gradient, int kR, int kStride>
__global__ void __launch_bounds__(kWarpSize* kTileWarps, kTiledBlocks<Accumulator<T>>)
    conv2d_tiled_dgrad(Conv2dProblem problem, Gradient grad_output, const T* __restrict__ weight,
                       T* __restrict__ grad_input) {
  using A = Accumulator<T>;
  using Size = TiledSize<kR, kStride>;
  constexpr int kRows = kTileWarps * kThreadRows, kColumns = Size::kMostSteps;
  SHARED_ARRAY(A, gradient, [(kRows + Size::kMostRows - 1) * kColumnsPerRemainder]);
  SHARED_ARRAY(A, taps, [Size::kMostRows * kMostTaps]);
  const Size size(problem);
  const int c = blockIdx.y;
  const int hidden_rows = problem.pad_top / size.stride_h * size.stride_h;
  const int hidden_columns = problem.pad_left / size.stride_w * size.stride_w;
  TilePosition pixels(blockIdx.x, problem.H + problem.pad_top - hidden_rows,
                      problem.W + problem.pad_left - hidden_columns, kRows,
                      kWarpSize * size.stride_w);
  pixels.row += hidden_rows;
  pixels.column += hidden_columns;

  A sums[kColumns][kThreadRows] = {}, part[kColumns][kThreadRows] = {};
  for (int k = 0; k < problem.K; ++k) {
    load_gradient(problem, size, grad_output, pixels, k, gradient);
    const int thread = threadIdx.y * kWarpSize + threadIdx.x;
    if (thread < size.R * problem.S) {
      const int s = thread / size.R, r = thread % size.R;
      taps[thread] = static_cast<A>(weight[problem.weight.at(k, c, r, s)]);
    }
    __syncthreads();
    add_filter<kR>(problem, size, gradient, taps, part);
    __syncthreads();  // all have read before the next filter is written
    if ((k + 1) % kChannelsPerPart == 0) add_part(part, sums);
  }
  add_part(part, sums);

  const int h0 = pixels.row + threadIdx.y * kThreadRows - problem.pad_top;
  const int w0 = pixels.column + threadIdx.x * size.stride_w - problem.pad_left;
#pragma unroll
  for (int side = 0; side < kColumns; ++side) {
    const int w = w0 + side;
    if (side >= size.stride_w || !inside(w, problem.W)) continue;
#pragma unroll
    for (int row = 0; row < kThreadRows; ++row) {
      const int h = h0 + row;
      if (inside(h, problem.H))
        grad_input[problem.input.at(pixels.n, c, h, w)] = static_cast<T>(sums[side][row]);
    }
  }
}

// ---- wgrad ----

// The taps whose sums a thread keeps for each of its filters: all where their number is compiled
// in, else one.
template <int kR>
constexpr int kSumTaps = kR > 0 ? kR* kR : 1;

// The filters of a thread, in as many registers as there are.
template <int kR, class A>
constexpr int kSumFilters = (kSumTaps<kR> > 25  ? 2
                             : kSumTaps<kR> > 9 ? 4
                                                : 8) *
                            sizeof(float) / sizeof(A);

// Tiles of outputs from `first` on, one after the other.
struct Chunk {
  int first, end;

  __device__ Chunk(int index, int tiles_per_chunk, int tiles)
      : first(index * tiles_per_chunk), end(min(first + tiles_per_chunk, tiles)) {}
};

// Where in a warp's shared memory the lane's gradient of a filter and a row is.
__device__ inline int place_of_gradient(int k, int row) {
  return (k * kThreadRows + row) * kWarpSize + threadIdx.x;
}

// The lane's column of gradients, of each of the thread's filters; zero where there is none. They
// wait in shared memory, since the code that gathers a pooled one is too long to be unrolled.
template <int kFilters, class Gradient, class A>
__device__ void load_column(const Conv2dProblem& problem, const Gradient& grad_output,
                            const TilePosition& at, int first_k, A* of_warp) {
  const int q = at.column + threadIdx.x;
#pragma unroll 1
  for (int k = 0; k < kFilters; ++k) {
    const auto column = grad_output.column(problem, at.n, first_k + k, q);
    const bool in_image = inside(q, problem.Q) && first_k + k < problem.K;
#pragma unroll(Gradient::kUnroll)
    for (int row = 0; row < kThreadRows; ++row) {
      const bool is_output = in_image && at.row + row < problem.P;
      of_warp[place_of_gradient(k, row)] = is_output ? column.at(at.row + row) : A(0);
    }
  }
}

// Adds the products of the gradients and the pixels that they meet, for the taps from (r, s) on.
template <int kR, class Size, class A, int kFilters>
__device__ void add_products(const Size& size, const A* pixels, int rows, int r, int s,
                             const A* gradients, A (&sums)[kFilters][kSumTaps<kR>]) {
  constexpr int kTaps = kR > 0 ? kR : 1;
  A window[kTaps][kTaps] = {};
#pragma unroll
  for (int row = 0; row < kThreadRows; ++row) {
    if (row >= rows) break;  // not 0 times a pixel, which may be infinite
    const int kept = row > 0 && kTaps > Size::kMostSteps ? kTaps - Size::kMostSteps : 0;
#pragma unroll
    for (int i = 0; i < kept; ++i) {
#pragma unroll
      for (int j = 0; j < kTaps; ++j) window[i][j] = window[i + Size::kMostSteps][j];
    }
#pragma unroll
    for (int i = kept; i < kTaps; ++i) {
#pragma unroll
      for (int j = 0; j < kTaps; ++j)
        window[i][j] = pixels[(row * size.stride_h + r + i) * Size::kTilePitch +
                              place_of_column(s + j, size.stride_w) + threadIdx.x];
    }
#pragma unroll
    for (int k = 0; k < kFilters; ++k) {
      const A gradient = gradients[place_of_gradient(k, row)];
#pragma unroll
      for (int tap = 0; tap < kTaps * kTaps; ++tap)
        sums[k][tap] = multiply_add(gradient, window[tap / kTaps][tap % kTaps], sums[k][tap]);
    }
  }
}

// From one tap to the next of the lanes' sums: lanes that read a tap each stay in banks of their
// own.
constexpr int kLaneSumPitch = kWarpSize + 1;

// Warps of a block, at most, and blocks of an SM, at least: a thread can have 168 registers, or 255
// in float64.
template <class A>
constexpr int kWgradWarps = sizeof(A) > sizeof(float) ? 2 : 4;
template <class A>
constexpr int kWgradBlocks = sizeof(A) > sizeof(float) ? 4 : 3;

// Adds what the lanes of a warp have of each sum, by way of shared memory, and stores it.
template <int kCount, class A>
__device__ void add_lanes(const A (&sums)[kCount], A* of_warp, A* results) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) of_warp[i * kLaneSumPitch + threadIdx.x] = sums[i];
  __syncwarp();
  for (int first = 0; first < kCount; first += kWarpSize) {
    const int i = first + threadIdx.x;
    if (i >= kCount) return;
    A sum = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) sum += of_warp[i * kLaneSumPitch + lane];
    results[i] = sum;
  }
}

// Block (x, y, z) has chunk x of the outputs, its share y of the filters, channel z % C and, where
// the filter's size is not compiled in, tap z / C. `partials` are [chunk][k][c][r][s].
template <class T, class Gradient, int kR, int kStride>
__global__ void __launch_bounds__(kWarpSize* kWgradWarps<Accumulator<T>>,
                                  kWgradBlocks<Accumulator<T>>)
    conv2d_tiled_wgrad(Conv2dProblem problem, Gradient grad_output, const T* __restrict__ input,
                       Accumulator<T>* __restrict__ partials, int tiles, int tiles_per_chunk) {
  using A = Accumulator<T>;
  using Size = TiledSize<kR, kStride>;
  constexpr int kFilters = kSumFilters<kR, A>, kTaps = kSumTaps<kR>;
  constexpr int kGradients = kFilters * kThreadRows * kWarpSize, kSums = kTaps * kLaneSumPitch;
  SHARED_ARRAY(A, pixels, [Size::kTileRows * Size::kTilePitch]);
  SHARED_ARRAY(A, of_warps, [kWgradWarps<A>][kGradients > kSums ? kGradients : kSums]);
  A* of_warp = of_warps[threadIdx.y];  // gradients, and in the end its sums
  const Size size(problem);
  const int first_k = (blockIdx.y * blockDim.y + threadIdx.y) * kFilters;
  const int c = blockIdx.z % problem.C, first_tap = blockIdx.z / problem.C;
  const int r = first_tap / problem.S, s = first_tap % problem.S;

  A sums[kFilters][kTaps] = {};
  const Chunk chunk(blockIdx.x, tiles_per_chunk, tiles);
  for (int tile = chunk.first; tile < chunk.end; ++tile) {
    const TilePosition at(tile, problem.P, problem.Q, kThreadRows, kWarpSize);
    load_column<kFilters>(problem, grad_output, at, first_k, of_warp);
    load_pixels(problem, size, at, c, input, pixels);
    __syncthreads();
    if (inside(at.column + threadIdx.x, problem.Q))
      add_products<kR>(size, pixels, problem.P - at.row, r, s, of_warp, sums);
    __syncthreads();  // all have read before the next tile is written
  }

  const int64_t filter = static_cast<int64_t>(blockIdx.x) * problem.K + first_k;
  A* results = partials + (filter * problem.C + c) * problem.R * problem.S + first_tap;
#pragma unroll
  for (int k = 0; k < kFilters; ++k, results += problem.C * problem.R * problem.S) {
    if (first_k + k < problem.K) add_lanes(sums[k], of_warp, results);
    __syncwarp();  // all have read before the next filter's are written
  }
}

// ---- for launchers ----

inline int64_t output_tiles(const Conv2dProblem& problem) {
  return problem.N * ceil_divide(problem.P, kThreadRows) * ceil_divide(problem.Q, kWarpSize);
}

// Of dgrad; they begin where the padding does, or up to a stride later.
inline int64_t input_tiles(const Conv2dProblem& problem) {
  const int height = problem.H + problem.pad_top % problem.stride_h;
  const int width = problem.W + problem.pad_left % problem.stride_w;
  return problem.N * ceil_divide(height, kTileWarps * kThreadRows) *
         ceil_divide(width, kWarpSize * problem.stride_w);
}

// Chunks of wgrad: so many that they fill a GPU, but none so small that adding up its sums takes
// longer than making them, nor so large that its sums become long chains.
struct Chunks {
  static constexpr int kEnough = 256, kFewestTiles = 4, kMostTiles = 16;
  int tiles, tiles_per_chunk, count;

  explicit Chunks(const Conv2dProblem& problem) : tiles(output_tiles(problem)) {
    const int64_t wanted = ceil_divide(tiles, kEnough);
    tiles_per_chunk = wanted < kFewestTiles ? kFewestTiles
                      : wanted > kMostTiles ? kMostTiles
                                            : wanted;
    count = ceil_divide(tiles, tiles_per_chunk);
  }
};

inline const char* unfit_for_tiles(const Conv2dProblem& problem, Dtype) {
  constexpr int kMostBlocksDown = 65535;
  if (problem.groups != 1) return "groups";
  if (problem.C > kMostChannels) return "more than 4 input channels";
  if (problem.R > kMostTaps || problem.S > kMostTaps) return "filters larger than 7x7";
  if (problem.stride_h > kMostStride || problem.stride_w > kMostStride)
    return "strides larger than 2";
  if (problem.dilation_h != 1 || problem.dilation_w != 1) return "dilation";
  if (problem.K > kMostBlocksDown) return "more filters than a grid has blocks";
  return output_tiles(problem) > INT_MAX || input_tiles(problem) > INT_MAX
             ? "more tiles than a grid has blocks"
             : nullptr;
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls body(R, stride) with those constants that the kernel for a filter of `rows` is compiled
// with, or zeros.
template <class Body>
void with_size(const Conv2dProblem& problem, int rows, const Body& body) {
  const auto with_stride = [&](auto stride) {
    if (rows == 3) return body(Constant<3>(), stride);
    if (rows == 5) return body(Constant<5>(), stride);
    if (rows == 7) return body(Constant<7>(), stride);
    body(Constant<0>(), Constant<0>());
  };
  if (problem.stride_h != problem.stride_w) return body(Constant<0>(), Constant<0>());
  if (problem.stride_h == 1) return with_stride(Constant<1>());
  with_stride(Constant<2>());
}

template <class T, class Output>
void launch_fprop(const Conv2dProblem& problem, int64_t tiles, const void* input,
                  const void* weight, const Epilogue& epilogue, const Output& output,
                  Stream stream) {
  const auto warps = ceil_divide(problem.K, kThreadFilters<Accumulator<T>>);
  const auto blocks = ceil_divide(warps, kTileWarps);
  const dim3 grid(tiles, blocks), block(kWarpSize, ceil_divide(warps, blocks));
  with_size(problem, problem.R, [&](auto R, auto stride) {
    launch<conv2d_tiled_fprop<T, Output, R.value, stride.value>>(
        grid, block, 0, stream, problem, static_cast<const T*>(input),
        static_cast<const T*>(weight), epilogue, output);
  });
}

template <class T, class Gradient>
void launch_dgrad(const Conv2dProblem& problem, const Gradient& grad_output, const void* weight,
                  void* grad_input, Stream stream) {
  const dim3 grid(input_tiles(problem), problem.C), block(kWarpSize, kTileWarps);
  with_size(problem, problem.R, [&](auto R, auto stride) {
    launch<conv2d_tiled_dgrad<T, Gradient, R.value, stride.value>>(
        grid, block, 0, stream, problem, grad_output, static_cast<const T*>(weight),
        static_cast<T*>(grad_input));
  });
}

template <class T, class Gradient>
void launch_wgrad(const Conv2dProblem& problem, const Gradient& grad_output, const void* input,
                  void* grad_weight, void* workspace, Stream stream) {
  using A = Accumulator<T>;
  const Chunks chunks(problem);
  auto* partials = static_cast<A*>(workspace);
  with_size(problem, problem.R == problem.S ? problem.R : 0, [&](auto R, auto stride) {
    if (chunks.count == 0) return;
    const auto warps = ceil_divide(problem.K, kSumFilters<R.value, A>);
    const auto blocks = ceil_divide(warps, kWgradWarps<A>);
    const int taps = problem.R * problem.S / kSumTaps<R.value>;
    const dim3 grid(chunks.count, blocks, problem.C * taps);
    const dim3 block(kWarpSize, ceil_divide(warps, blocks));
    launch<conv2d_tiled_wgrad<T, Gradient, R.value, stride.value>>(
        grid, block, 0, stream, problem, grad_output, static_cast<const T*>(input), partials,
        chunks.tiles, chunks.tiles_per_chunk);
  });
  add_chunks<T>(problem, partials, chunks.count, grad_weight, stream);
}

inline int64_t bytes_of_chunks(const Conv2dProblem& problem, Dtype dtype) {
  return chunk_bytes(problem, dtype) * Chunks(problem).count;
}

}  // namespace cnnkernels::CNN_TARGET
