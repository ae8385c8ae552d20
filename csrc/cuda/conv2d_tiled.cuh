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
//   wgrad  a warp per column of taps (k, c, *, s). Its lanes walk the columns of the output, 8 rows
//          at a time: 8 gradients and 8 + R - 1 pixels in registers make 8 * R multiply-adds. The
//          warps of a block are the S columns of a filter, which read the same gradients and nearly
//          the same pixels at the same time (the L1 cache is their tile), times a few slots that
//          share the rows. The slots' sums are added in order, then the lanes' by shuffles: chunks
//          and order are the problem's, so the bits are the same every run.
//   bgrad  is left to `direct`.
//
// Cost: 2 * N*K*P*Q * C*R*S FLOP a pass. In fprop, a column of 12 pixels and 5 x 8 taps are 12 + 10
// loads (16 bytes hold 4 taps) for 5 * 64 multiply-adds of a 5x5 filter: 15 a load, where `direct`
// makes half of one. Global memory sees each output once and, for every 32 filters, each pixel
// (8 + R - 1) / 8 * (32 + S - 1) / 32 times: little beside 4 * N*K*P*Q bytes of outputs, so that
// there are about C*R*S / 2 FLOP a byte. An A100's FP32 units do 9.6 in the time of a byte: 3x3 of
// one channel (4.5) is bound by writing the outputs, 5x5 of one (12.5), 3x3 of three (13.5) and
// all beyond by FP32 issue. dgrad makes 8 * R multiply-adds of 8 + 2 * R - 1 loads from shared
// memory, wgrad of 16 + R - 1 from the L1 cache, which is what bounds them.
//
// What is lost: outputs beyond the last row and column of a tile are computed in vain (28 x 28 of
// 32 x 32: 23 %), as are filters beyond a multiple of 8. wgrad has K*C to K*C*S blocks, whatever N:
// fewer than the GPU has room for where filters are few.
#pragma once

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

// Is x in [0, size)? One comparison: as unsigned, negative numbers are large.
__device__ inline bool inside(int x, int size) {
  return static_cast<unsigned>(x) < static_cast<unsigned>(size);
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

// Sets a tile to value(row, column), a warp a row. Lane 0 begins at `first`, from where on memory
// is likely to be aligned; the columns before it come last. Values are stored a few at a time, so
// that the loads do not wait for each other.
template <class A, class Value>
__device__ void fill_tile(A* tile, int pitch, int rows, int columns, int stride, int first,
                          const Value& value) {
  constexpr int kBatch = 4;
  const int step = blockDim.y;
  for (int i = threadIdx.x; i < columns; i += kWarpSize) {
    const int column = i + first < columns ? i + first : i + first - columns;
    A* place = tile + place_of_column(column, stride);
    for (int row = threadIdx.y; row < rows; row += kBatch * step) {
      A values[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        values[j] = row + j * step < rows ? value(row + j * step, column) : A(0);
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        if (row + j * step < rows) place[(row + j * step) * pitch] = values[j];
    }
  }
}

// Sums of many terms are kept in parts, whose errors grow less than those of one long chain.
template <class A, int kCount>
__device__ void add_part(A (&part)[kCount], A (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] += part[i], part[i] = A(0);
}

template <class A, int kRows, int kCount>
__device__ void add_part(A (&part)[kRows][kCount], A (&sums)[kRows][kCount]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) add_part(part[i], sums[i]);
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
  fill_tile(pixels, Size::kTilePitch, rows, columns, size.stride_w, first, [&](int i, int j) {
    const int h = h0 + i, w = w0 + j;
    const bool is_pixel = inside(h, problem.H) && inside(w, problem.W);
    return is_pixel ? static_cast<A>(plane[problem.input.at(0, 0, h, w)]) : A(0);
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

// The thread's block of results: filters from first_k on, at the rows of `at` and this lane's
// column.
template <class T, class A>
__device__ void store_block(const Conv2dProblem& problem, const Epilogue& epilogue,
                            const TilePosition& at, int first_k, const ThreadSums<A>& sums,
                            T* __restrict__ output) {
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

// Blocks of an SM, at least: a thread can have 128 registers, or 168 in float64.
template <class A>
constexpr int kFpropBlocks = sizeof(A) > sizeof(float) ? 3 : 4;

template <class T, int kR, int kStride>
__global__ void __launch_bounds__(kWarpSize* kTileWarps, kFpropBlocks<Accumulator<T>>)
    conv2d_tiled_fprop(Conv2dProblem problem, const T* __restrict__ input,
                       const T* __restrict__ weight, Epilogue epilogue, T* __restrict__ output) {
  using A = Accumulator<T>;
  using Size = TiledSize<kR, kStride>;
  SHARED_ARRAY(A, pixels, [Size::kTileRows * Size::kTilePitch]);
  SHARED_ARRAY(A, filters, [Size::kMostRows * kMostTaps * kFilterPitch<A>]);
  const Size size(problem);
  const TilePosition outputs(blockIdx.x, problem.P, problem.Q, kThreadRows, kWarpSize);
  const int first_k = blockIdx.y * blockDim.y * kThreadFilters<A>;

  ThreadSums<A> sums = {};
  for (int c = 0; c < problem.C; ++c) {
    load_pixels(problem, size, outputs, c, input, pixels);
    load_filters(problem, size, first_k, c, weight, filters);
    __syncthreads();
    add_channel<kR>(problem, size, pixels, filters, sums);
    __syncthreads();  // all have read before the next channel is written
  }
  store_block(problem, epilogue, outputs, first_k + threadIdx.y * kThreadFilters<A>, sums, output);
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
  fill_tile(gradient, kColumnsPerRemainder, rows, columns, 1, halo_q, [&](int i, int j) {
    const int p = p0 + i, q = q0 + j;
    const bool is_output = inside(p, problem.P) && inside(q, problem.Q);
    return is_output ? grad_output.at(problem, pixels.n, k, p, q) : A(0);
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
__global__ void __launch_bounds__(kWarpSize* kTileWarps, 4)
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

// Warps of a block, at most, no fewer than a filter has columns: a thread can have 168 registers,
// or 255 in float64.
template <class A>
constexpr int kWgradWarps = sizeof(A) > sizeof(float) ? 8 : 12;

// Adds, for the kTaps rows of the filter from r on, the products of 8 gradients below each other,
// at (p, q), and the pixels that they meet.
template <int kTaps, class T, class Size, class Gradient, class A>
__device__ void add_column(const Conv2dProblem& problem, const Size& size,
                           const Gradient& grad_output, const T* __restrict__ column, int n, int k,
                           int p, int q, int r, A (&sums)[kTaps]) {
  // Between outputs below each other: where the stride is not compiled in, the pixels between them
  // are no tap's.
  constexpr int kStep = kTaps > 1 ? Size::kMostSteps : 1;
  constexpr int kPixels = (kThreadRows - 1) * kStep + kTaps;
  const int h0 = p * size.stride_h - problem.pad_top + r;
  const int step = kTaps > 1 ? 1 : size.stride_h;
  const T* pixel = column + h0 * problem.input.h;
  A pixels[kPixels], gradient[kThreadRows];
#pragma unroll
  for (int i = 0; i < kPixels; ++i, pixel += step * problem.input.h) {
    const int h = h0 + i * step;
    pixels[i] = inside(h, problem.H) ? static_cast<A>(*pixel) : A(0);
  }
#pragma unroll
  for (int row = 0; row < kThreadRows; ++row)
    gradient[row] = p + row < problem.P ? grad_output.at(problem, n, k, p + row, q) : A(0);
#pragma unroll
  for (int row = 0; row < kThreadRows; ++row) {
    if (p + row >= problem.P) break;  // not 0 times a pixel, which may be infinite
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      sums[i] = multiply_add(gradient[row], pixels[row * kStep + i], sums[i]);
  }
}

// Block (x, y, z) has filter x / C and channel x % C, of their columns of taps part y (a
// gridDim.y-th) and, where R is not compiled in, of their rows row z. Its warps are those columns
// times slots; slot i takes strip i of 8 output rows and each slots-th behind it.
template <class T, class Gradient, int kR, int kStride>
__global__ void __launch_bounds__(kWarpSize* kWgradWarps<Accumulator<T>>)
    conv2d_tiled_wgrad(Conv2dProblem problem, Gradient grad_output, const T* __restrict__ input,
                       T* __restrict__ grad_weight) {
  using A = Accumulator<T>;
  constexpr int kTaps = kR > 0 ? kR : 1;
  SHARED_ARRAY(A, lane_sums, [kWgradWarps<A>][kTaps][kWarpSize]);
  const TiledSize<kR, kStride> size(problem);
  const int columns = problem.S / gridDim.y, slots = blockDim.y / columns;
  const int column = threadIdx.y % columns, slot = threadIdx.y / columns;
  const int k = blockIdx.x / problem.C, c = blockIdx.x % problem.C;
  const int r = blockIdx.z, s = blockIdx.y * columns + column;

  A sums[kTaps] = {};
  const int strips = (problem.P + kThreadRows - 1) / kThreadRows;
  for (int strip = slot; strip < problem.N * strips; strip += slots) {
    const int n = strip / strips, p = strip % strips * kThreadRows;
    A part[kTaps] = {};
    for (int q = threadIdx.x; q < problem.Q; q += kWarpSize) {
      const int w = q * size.stride_w - problem.pad_left + s;
      if (!inside(w, problem.W)) continue;
      const T* pixels = input + problem.input.at(n, c, 0, w);
      add_column(problem, size, grad_output, pixels, n, k, p, q, r, part);
    }
    add_part(part, sums);
  }

  for (int i = 0; i < kTaps; ++i) lane_sums[threadIdx.y][i][threadIdx.x] = sums[i];
  __syncthreads();
  if (slot > 0) return;
  for (int i = 0; i < kTaps; ++i) {
    A sum = 0;
    for (int j = 0; j < slots; ++j) sum += lane_sums[j * columns + column][i][threadIdx.x];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) grad_weight[problem.weight.at(k, c, r + i, s)] = static_cast<T>(sum);
  }
}

}  // namespace cnnkernels::CNN_TARGET
