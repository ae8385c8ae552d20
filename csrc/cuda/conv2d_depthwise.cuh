// depthwise: every channel has a filter of its own, groups == C == K. R * S multiply-adds a pixel
// are little work for its bytes, so all is about bringing each byte in once.
//
//   fprop  a block per some channels and a tile of outputs. The pixels under it wait in shared
//   memory,
//          zeros where there is padding, the filters beside them. An item is a column of 7 outputs
//          of a channel, as the sizes of most networks are multiples of 7; threads take one after
//          the other.
//
//            channel in shared memory            an item, tap column s
//          +------------------------+          pixels   taps      sums
//          | 0  0  0  0  0  0  0  0 |            |        |
//          | 0  .  .  .  |x|  .  .  |           6 * stride + 4 pixels, or + 8, slide through
//          | 0  .  .  .  |x|  .  .  |           registers: each is loaded once for all
//          | 0  .  .  .  |x|  .  .  |           7 * R products that it has a part in
//          +------------------------+
//
//   dgrad  the same with grad_output as pixels and the filters turned by 180 degrees. With stride
//   2,
//          gradients stand two pixels apart: an output with tap (r, s) reads one where it lies on
//          it, which is known when the kernel is compiled, but for the column's parity.
//   wgrad  a block per some channels and a chunk of tiles, pixels and gradients in shared memory. A
//          warp has a channel and a square of 4x4 or 7x7 taps, whose sums a lane keeps in registers
//          for the items that it walks. Lanes are added by shuffles, warps and chunks by a second
//          kernel, in an order fixed by the problem.
//   bgrad  is left to `direct`.
//
// Neighbouring threads have neighbours in memory: columns in NCHW, some channels of few columns in
// channels_last. Where a tile is as wide as the plane, NCHW's pixels are one run of memory; so are
// its outputs, which leave by way of shared memory where a thread has no more than one item, so
// that narrow planes do not leave parts of sectors.
//
// Cost: 2 * N*C*P*Q * R*S FLOP a pass, and the bytes of pixels and outputs once, but for the halo
// of R - stride rows that tiles share. An A100 issues 50 multiply-adds in the time of an output's 8
// bytes (float32, stride 1), so that 3x3 (9, and 6 loads from shared memory), 5x5 and just so 7x7
// are bound by memory, larger filters by FP32 issue: 8 taps are 22 loads from shared memory for 56
// multiply-adds.
#pragma once

#include <cstdint>

#include "conv2d.cuh"
#include "epilogue.cuh"
#include "reduce.cuh"

namespace cnnkernels::CNN_TARGET {

// Result t of an axis reads the source at (t * kStride + tap) / kUp, where kUp divides it, from
// where tile and padding begin: fprop, and dgrad with stride 1, of turned filters, are (1, 1);
// fprop with stride 2 is (2, 1), dgrad with stride 2 (1, 2).
template <int kStride, int kUp>
struct DepthwiseStep {
  static constexpr int kRun = kUp == 1 ? 7 : 8;  // results of an item; all begin alike

  static constexpr bool reaches(int t, int tap) { return (t * kStride + tap) % kUp == 0; }
  static constexpr int source(int t, int tap) { return (t * kStride + tap) / kUp; }

  // Source positions under so many results and taps.
  static constexpr int extent(int results, int taps) { return source(results - 1, taps - 1) + 1; }
};

// An axis of a pass. The results are numbers 0 to count; number t is position t + first of `size`.
struct DepthwiseAxis {
  int count, first, size;
  int offset, source_size;  // where in the source number 0 with tap 0 reads
  int taps;
  int tile = 0, tiles = 0;  // results of a block; blocks
  int source_extent = 0;    // of a tile
};

// How a pass is cut into blocks, and what their shared memory holds.
struct DepthwiseTiling {
  DepthwiseAxis rows, columns;
  int images, channels;  // of a block
  int channel_groups;    // of so many channels
  int lanes;             // channels that are neighbours among neighbouring threads
  int half;              // columns of an even place, behind which the odd ones stand (stride 2)
  int pitch, plane;      // elements from row to row and plane to plane
  int pixels;            // elements of all planes, and of what the last one's items read behind it
  bool staged;           // results leave by way of shared memory
};

// A part of a tensor: its first position along each axis, and how many.
struct DepthwiseBox {
  int n, c, h, w;
  int images, channels, rows, columns;

  __device__ int count() const { return images * channels * rows * columns; }
};

// How many elements of its line of memory lie before x.
template <class T>
__device__ int elements_before(const T* x) {
  constexpr int kLineBytes = 128;
  return static_cast<int>(reinterpret_cast<uintptr_t>(x) % kLineBytes / sizeof(T));
}

// What a tile is filled with: pixels, or gradients.
template <class T>
struct DepthwisePixels {
  const T* input;

  __device__ T at(const Conv2dProblem& problem, int n, int c, int h, int w) const {
    return input[problem.input.at(n, c, h, w)];
  }
  __device__ bool channels_fastest(const Conv2dProblem& problem) const {
    return CNN_TARGET::channels_fastest(problem.input);
  }
  __device__ int place_in_line(const Conv2dProblem& problem, const DepthwiseBox& box) const {
    return elements_before(input + problem.input.at(box.n, box.c, box.h, box.w));
  }
};

template <class T>
struct DepthwiseGradients {
  GradOutput<T> grad_output;

  __device__ T at(const Conv2dProblem& problem, int n, int k, int p, int q) const {
    return static_cast<T>(grad_output.at(problem, n, k, p, q));
  }
  __device__ bool channels_fastest(const Conv2dProblem& problem) const {
    return CNN_TARGET::channels_fastest(problem.output);
  }
  __device__ int place_in_line(const Conv2dProblem& problem, const DepthwiseBox& box) const {
    return elements_before(grad_output.grad + problem.output.at(box.n, box.c, box.h, box.w));
  }
};

// Walks a box from its place number `first` on, in steps of `step` places, without a division a
// step. The first coordinate runs fastest.
struct BoxWalk {
  static constexpr int kAxes = 4;
  int at[kAxes], step[kAxes], size[kAxes];

  __device__ BoxWalk(const int (&sizes)[kAxes], int first, int steps) {
#pragma unroll
    for (int i = 0; i < kAxes; ++i) {
      size[i] = sizes[i];
      at[i] = first % size[i], first /= size[i];
      step[i] = steps % size[i], steps /= size[i];
    }
  }

  __device__ void advance() {
    bool carry = false;
#pragma unroll
    for (int i = 0; i < kAxes; ++i) {
      at[i] += step[i] + carry;
      carry = at[i] >= size[i];
      if (carry) at[i] -= size[i];
    }
  }
};

// What of [begin, begin + extent) lies in [0, size).
__device__ inline Range clipped(int begin, int extent, int size) {
  return {max(begin, 0), max(min(begin + extent, size), max(begin, 0))};
}

// Stores the values of a box at place_of(image, channel, row, column), counted within the box, a
// few at a time, so that loads do not wait for each other. Thread 0 begins where the first one's
// line of memory does, so that requests of a warp are of whole sectors.
template <class T, class Source, class Place>
__device__ void depthwise_load(const Conv2dProblem& problem, const Source& source,
                               const DepthwiseBox& box, T* tile, const Place& place_of) {
  constexpr int kBatch = 4;
  const int count = box.count(), threads = blockDim.x;
  if (count == 0) return;
  // Selected by value, since registers have no index.
  const bool last = source.channels_fastest(problem);
  const int sizes[] = {last ? box.channels : box.columns, last ? box.columns : box.rows,
                       last ? box.rows : box.channels, box.images};
  const int start = threadIdx.x - source.place_in_line(problem, box) % threads;
  BoxWalk walk(sizes, start < 0 ? start + threads : start, threads);
  for (int i = start; i < count; i += kBatch * threads) {
    T values[kBatch] = {};
    int places[kBatch] = {};
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (!inside(i + j * threads, count)) continue;
      const int c = last ? walk.at[0] : walk.at[2], h = last ? walk.at[2] : walk.at[1];
      const int w = last ? walk.at[1] : walk.at[0], n = walk.at[3];
      values[j] = source.at(problem, box.n + n, box.c + c, box.h + h, box.w + w);
      places[j] = place_of(n, c, h, w);
      walk.advance();
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
      if (inside(i + j * threads, count)) tile[places[j]] = values[j];
  }
}

// Where a column of a tile stands in its row. With stride 2 the even ones come first, so that
// threads, whose pixels are 2 apart, read neighbours.
template <int kStride>
__device__ int depthwise_column(const DepthwiseTiling& tiling, int column) {
  return kStride == 1 ? column : column % 2 * tiling.half + column / 2;
}

// Tile number `index` of some groups of channels: where its images, channels and results begin.
struct DepthwiseTile {
  int n, c, row, column;

  __device__ DepthwiseTile(const DepthwiseTiling& tiling, int channel_groups, int index) {
    column = index % tiling.columns.tiles * tiling.columns.tile;
    index /= tiling.columns.tiles;
    row = index % tiling.rows.tiles * tiling.rows.tile;
    index /= tiling.rows.tiles;
    c = index % channel_groups * tiling.channels;
    n = index / channel_groups * tiling.images;
  }
};

// What there is of a tile's images and channels, of those rows and columns.
__device__ inline DepthwiseBox depthwise_box(const Conv2dProblem& problem,
                                             const DepthwiseTiling& tiling,
                                             const DepthwiseTile& tile, const Range& rows,
                                             const Range& columns) {
  const int images = min(tiling.images, problem.N - tile.n);
  const int channels = min(tiling.channels, problem.C - tile.c);
  return {tile.n,
          tile.c,
          rows.begin,
          columns.begin,
          images,
          channels,
          rows.end - rows.begin,
          columns.end - columns.begin};
}

// Brings what a tile's results read: zeros where there is padding, no such channel or image, or
// nothing that counts.
template <int kStride, int kUp, class T, class Source>
__device__ void depthwise_load_pixels(const Conv2dProblem& problem, const DepthwiseTiling& tiling,
                                      const DepthwiseTile& tile, const Source& source, T* pixels) {
  const int h0 = tile.row * kStride / kUp + tiling.rows.offset;
  const int w0 = tile.column * kStride / kUp + tiling.columns.offset;
  const Range rows = clipped(h0, tiling.rows.source_extent, tiling.rows.source_size);
  const Range columns = clipped(w0, tiling.columns.source_extent, tiling.columns.source_size);
  const DepthwiseBox box = depthwise_box(problem, tiling, tile, rows, columns);
  for (int i = threadIdx.x; i < tiling.pixels; i += blockDim.x) pixels[i] = static_cast<T>(0.0f);
  __syncthreads();
  const int first_row = rows.begin - h0, first_column = columns.begin - w0;
  depthwise_load(problem, source, box, pixels, [&](int n, int c, int h, int w) {
    return (n * tiling.channels + c) * tiling.plane + (first_row + h) * tiling.pitch +
           depthwise_column<kStride>(tiling, first_column + w);
  });
}

// ---- fprop and dgrad ----

// The filters of the block's channels, [channel][s][r], turned for dgrad. An odd pitch keeps
// channels apart in shared memory.
__device__ inline int depthwise_filter_pitch(const DepthwiseTiling& tiling) {
  return tiling.rows.taps * tiling.columns.taps | 1;
}

template <class T>
__device__ void depthwise_load_filters(const Conv2dProblem& problem, const DepthwiseTiling& tiling,
                                       int first_c, const T* __restrict__ weight, bool turned,
                                       T* filters) {
  const int R = problem.R, S = problem.S, pitch = depthwise_filter_pitch(tiling);
  const int channels = min(tiling.channels, problem.C - first_c);
  for (int i = threadIdx.x; i < channels * R * S; i += blockDim.x) {
    const int c = i / (R * S), r = i / S % R, s = i % S;
    const int place = turned ? (S - 1 - s) * R + R - 1 - r : s * R + r;
    filters[c * pitch + place] = weight[problem.weight.at(first_c + c, 0, r, s)];
  }
}

// A column of results of a channel.
struct DepthwiseItem {
  int channel, row, column;  // counted within the tile

  __device__ DepthwiseItem(const DepthwiseTiling& tiling, int strips, int run, int index) {
    const int inner = index % tiling.lanes;
    index /= tiling.lanes;
    column = index % tiling.columns.tile;
    index /= tiling.columns.tile;
    row = index % strips * run;
    channel = index / strips * tiling.lanes + inner;
  }
};

// The sums of an item.
template <int kTaps, int kStride, int kUp, class T>
__device__ void depthwise_sums(const DepthwiseTiling& tiling, const DepthwiseItem& item,
                               const T* pixels, const T* filters,
                               Accumulator<T> (&sums)[DepthwiseStep<kStride, kUp>::kRun]) {
  using A = Accumulator<T>;
  using Step = DepthwiseStep<kStride, kUp>;
  constexpr int kWindow = Step::extent(Step::kRun, kTaps);
  const int R = tiling.rows.taps, S = tiling.columns.taps;
  const T* plane = pixels + item.channel * tiling.plane + item.row * kStride / kUp * tiling.pitch;
  const T* filter = filters + item.channel * depthwise_filter_pitch(tiling);
  A part[Step::kRun] = {};
  for (int t = 0; t < Step::kRun; ++t) sums[t] = 0;
#pragma unroll 1
  for (int s = item.column % kUp; s < S; s += kUp) {
    const int column = depthwise_column<kStride>(tiling, (item.column * kStride + s) / kUp);
#pragma unroll 1
    for (int first = 0; first < R; first += kTaps) {
      const T* top = plane + first / kUp * tiling.pitch + column;
      A window[kWindow];
#pragma unroll
      for (int i = 0; i < kWindow; ++i) window[i] = static_cast<A>(top[i * tiling.pitch]);
#pragma unroll
      for (int r = 0; r < kTaps; ++r) {
        if (first + r >= R) break;
        const A tap = static_cast<A>(filter[s * R + first + r]);
#pragma unroll
        for (int t = 0; t < Step::kRun; ++t)
          if (Step::reaches(t, r)) part[t] = multiply_add(window[Step::source(t, r)], tap, part[t]);
      }
    }
    if (kTaps > 4 && s / kUp % 4 == 3) add_part(part, sums);
  }
  add_part(part, sums);
}

// Where the results go.
template <class T>
struct DepthwiseResult {
  T* output;
  Strides strides;
  Epilogue epilogue;
};

template <int kTaps, int kStride, int kUp, class T, class Source>
__device__ void depthwise_convolve(const Conv2dProblem& problem, const DepthwiseTiling& tiling,
                                   const Source& source, const T* weight, bool turned,
                                   const DepthwiseResult<T>& result) {
  using Step = DepthwiseStep<kStride, kUp>;
  using A = Accumulator<T>;
  DYNAMIC_SHARED(T, pixels);
  T* filters = pixels + tiling.pixels;
  const DepthwiseTile tile(tiling, tiling.channel_groups, blockIdx.x);
  const DepthwiseAxis &rows = tiling.rows, &columns = tiling.columns;
  depthwise_load_filters(problem, tiling, tile.c, weight, turned, filters);
  depthwise_load_pixels<kStride, kUp>(problem, tiling, tile, source, pixels);
  __syncthreads();

  const int first_row = tile.row + rows.first, first_column = tile.column + columns.first;
  const int strips = (rows.tile + Step::kRun - 1) / Step::kRun;
  const int channels = min(tiling.channels, problem.C - tile.c);
  const int items = tiling.channels * strips * columns.tile;
  // Stores what there is of an item from place_of(channel, row, column of the tensor) on.
  const auto store = [&](const DepthwiseItem& item, const A(&sums)[Step::kRun], int64_t row_step,
                         const auto& place_of) {
    const int w = first_column + item.column, h0 = first_row + item.row;
    if (item.channel >= channels || !inside(w, columns.size)) return;
    T results[Step::kRun];  // all of them before any is stored: the bias is then loaded once
#pragma unroll
    for (int t = 0; t < Step::kRun; ++t)
      results[t] = finish<T>(sums[t], result.epilogue, tile.c + item.channel);
    T* place = place_of(item.channel, h0, w);
    const int count = min(rows.tile - item.row, rows.size - h0);
#pragma unroll
    for (int t = 0; t < Step::kRun; ++t, place += row_step)
      if (t < count && h0 + t >= 0) *place = results[t];
  };

  A sums[Step::kRun] = {};
  for (int i = threadIdx.x; i < items; i += blockDim.x) {
    const DepthwiseItem item(tiling, strips, Step::kRun, i);
    if (item.channel < channels)
      depthwise_sums<kTaps, kStride, kUp>(tiling, item, pixels, filters, sums);
    if (tiling.staged) break;  // a thread has no more
    store(item, sums, result.strides.h, [&](int c, int h, int w) {
      return result.output + result.strides.at(tile.n, tile.c + c, h, w);
    });
  }
  if (!tiling.staged) return;

  // All results are one run of memory.
  const Range run = clipped(first_row, rows.tile, rows.size);
  const int plane = (run.end - run.begin) * columns.size, thread = threadIdx.x;
  __syncthreads();  // all have read the pixels, whose place the results take
  if (thread < items) {
    const DepthwiseItem item(tiling, strips, Step::kRun, thread);
    store(item, sums, columns.size, [&](int c, int h, int w) {
      return pixels + c * plane + (h - run.begin) * columns.size + w;
    });
  }
  __syncthreads();
  T* output = result.output + result.strides.at(tile.n, tile.c, run.begin, 0);
  const int threads = blockDim.x;
  for (int i = thread - elements_before(output) % threads; i < channels * plane; i += threads)
    if (i >= 0) output[i] = pixels[i];
}

// Threads of a block, at most, and blocks of an SM, at least: a thread can have 64 registers, or
// 128 in float64.
constexpr int kDepthwiseThreads = 256;
template <class T>
constexpr int kDepthwiseBlocks = sizeof(T) > sizeof(float) ? 2 : 4;

template <class T, int kTaps, int kStride>
__global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocks<T>)
    conv2d_depthwise_fprop(Conv2dProblem problem, DepthwiseTiling tiling,
                           const T* __restrict__ input, const T* __restrict__ weight,
                           DepthwiseResult<T> output) {
  depthwise_convolve<kTaps, kStride, 1>(problem, tiling, DepthwisePixels<T>{input}, weight, false,
                                        output);
}

template <class T, int kTaps, int kStride>
__global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocks<T>)
    conv2d_depthwise_dgrad(Conv2dProblem problem, DepthwiseTiling tiling, GradOutput<T> grad_output,
                           const T* __restrict__ weight, DepthwiseResult<T> grad_input) {
  depthwise_convolve<kTaps, 1, kStride>(problem, tiling, DepthwiseGradients<T>{grad_output}, weight,
                                        true, grad_input);
}

// ---- wgrad ----

// A square of taps of a channel, and which of the warps that share it this one is. Warps are
// numbered across the blocks of grid.z.
struct DepthwiseTask {
  int channel, r, s, share, shares;

  __device__ DepthwiseTask(int squares_down, int squares_across, int taps, int all_shares) {
    int index = (blockIdx.z * blockDim.x + threadIdx.x) / kWarpSize;
    shares = all_shares;
    share = index % shares, index /= shares;
    s = index % squares_across * taps, index /= squares_across;
    r = index % squares_down * taps, index /= squares_down;
    channel = index;
  }
};

// Adds the products of an item's gradients with the pixels under a square of taps.
template <int kTaps, int kStride, class T>
__device__ void depthwise_products(const DepthwiseTiling& tiling, int s_end, int rows, int column,
                                   int first_s, const T* pixels, const T* gradients,
                                   Accumulator<T> (&sums)[kTaps][kTaps]) {
  using A = Accumulator<T>;
  using Step = DepthwiseStep<kStride, 1>;
  constexpr int kWindow = Step::extent(Step::kRun, kTaps);
#pragma unroll
  for (int s = 0; s < kTaps; ++s) {
    if (first_s + s >= s_end) break;
    const T* top = pixels + depthwise_column<kStride>(tiling, column * kStride + first_s + s);
    A window[kWindow];
#pragma unroll
    for (int i = 0; i < kWindow; ++i) window[i] = static_cast<A>(top[i * tiling.pitch]);
#pragma unroll
    for (int t = 0; t < Step::kRun; ++t) {
      if (t >= rows) break;  // not 0 times a pixel, which may be infinite
      const A gradient = static_cast<A>(gradients[t * tiling.columns.tile]);
#pragma unroll
      for (int r = 0; r < kTaps; ++r)
        sums[s][r] = multiply_add(window[Step::source(t, r)], gradient, sums[s][r]);
    }
  }
}

// Warps of a block, at most: a thread can have 128 registers, or 255 in float64.
template <class T>
constexpr int kDepthwiseWarps = sizeof(T) > sizeof(float) ? 8 : 16;

// Block (x, y, z) has chunk x of the tiles of channel group y, and some of its tasks. `partials`
// are [chunk][share][c][r][s].
template <class T, int kTaps, int kStride>
__global__ void __launch_bounds__(kDepthwiseWarps<T>* kWarpSize, 1)
    conv2d_depthwise_wgrad(Conv2dProblem problem, DepthwiseTiling tiling, GradOutput<T> grad_output,
                           const T* __restrict__ input, Accumulator<T>* __restrict__ partials,
                           int tiles, int tiles_per_chunk, int shares) {
  using A = Accumulator<T>;
  using Step = DepthwiseStep<kStride, 1>;
  DYNAMIC_SHARED(T, pixels);
  T* gradients = pixels + tiling.pixels;
  const DepthwiseAxis &rows = tiling.rows, &columns = tiling.columns;
  const int R = rows.taps, S = columns.taps, gradient_plane = rows.tile * columns.tile;
  const int strips = (rows.tile + Step::kRun - 1) / Step::kRun;
  const DepthwiseTask task((R + kTaps - 1) / kTaps, (S + kTaps - 1) / kTaps, kTaps, shares);
  const int first_c = blockIdx.y * tiling.channels;
  const bool at_work = task.channel < tiling.channels && first_c + task.channel < problem.C;

  A sums[kTaps][kTaps] = {};
  const int begin = blockIdx.x * tiles_per_chunk, end = min(begin + tiles_per_chunk, tiles);
  for (int index = begin; index < end; ++index) {
    DepthwiseTile tile(tiling, 1, index);
    tile.c = first_c;
    __syncthreads();  // all have read the last one
    depthwise_load_pixels<kStride, 1>(problem, tiling, tile, DepthwisePixels<T>{input}, pixels);
    const DepthwiseBox box =
        depthwise_box(problem, tiling, tile, clipped(tile.row, rows.tile, rows.size),
                      clipped(tile.column, columns.tile, columns.size));
    depthwise_load(problem, DepthwiseGradients<T>{grad_output}, box, gradients,
                   [&](int n, int c, int p, int q) {
                     return (n * tiling.channels + c) * gradient_plane + p * columns.tile + q;
                   });
    __syncthreads();
    if (!at_work) continue;

    const int items = box.images * strips * box.columns;
    for (int i = task.share * kWarpSize + threadIdx.x % kWarpSize; i < items;
         i += task.shares * kWarpSize) {
      const int q = i % box.columns, row = i / box.columns % strips * Step::kRun;
      const int plane = i / box.columns / strips * tiling.channels + task.channel;
      const T* top = pixels + plane * tiling.plane + (row * kStride + task.r) * tiling.pitch;
      depthwise_products<kTaps, kStride>(
          tiling, S, box.rows - row, q, task.s, top,
          gradients + plane * gradient_plane + row * columns.tile + q, sums);
    }
  }

  if (!at_work) return;
  A* results =
      partials + ((static_cast<int64_t>(blockIdx.x) * task.shares + task.share) * problem.C +
                  first_c + task.channel) *
                     R * S;
  // Each lane stores one sum in 32, so that a request has many.
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int first = 0; first < kTaps * kTaps; first += kWarpSize) {
    A own = 0;
#pragma unroll
    for (int i = first; i < min(first + kWarpSize, kTaps * kTaps); ++i) {
      const A sum = __shfl_sync(kFullWarp, warp_sum(sums[i % kTaps][i / kTaps]), 0);
      if (lane == i - first) own = sum;
    }
    const int r = task.r + (first + lane) / kTaps, s = task.s + (first + lane) % kTaps;
    if (first + lane < kTaps * kTaps && r < R && s < S) results[r * S + s] = own;
  }
}

}  // namespace cnnkernels::CNN_TARGET
