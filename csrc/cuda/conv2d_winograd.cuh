// winograd: 3x3 filters with stride 1 by Winograd's minimal filtering (../winograd.h) of 2x2
// outputs and, as winograd_4x4, of 4x4 (what differs stands in brackets). float32, fprop and
// dgrad, which is the fprop of the gradient by filters turned by 180 degrees; wgrad and bgrad are
// left to others.
//
// A first kernel transforms the filters, once a call, into scratch memory: as the blocks of the
// second one will read them, 4 channels in one piece, rounded up with zeros. A block of that has
// 32 patches, numbered through all images, and 64 filters (32): 16 products (36) of 32 x 64 sums
// (32 x 32).
//
//   4 warps load                     shared memory: 3 stages (2)     16 warps (12) multiply
//                                    of 4 channels
//   a thread has a patch of 4 x 4   +----------------------------+   a warp has a product (3),
//   pixels of a channel, from       | [channel][product][patch]  |   a lane of each the sums of
//   global memory to registers;     |                            |   8 patches by 8 filters (4)
//   the next is on its way          | [channel][product][filter] |   in registers: 4 reads (3)
//   while it is transformed         +----------------------------+   of 16 bytes for 64
//                                                                    multiply-adds (32)
//   transformed filters: cp.async
//
// Named barriers hand the stages over, full and empty again. In the end the sums pass through
// shared memory, one filter of each lane column a round: a thread collects all products of a
// patch, transforms them and stores the outputs. That some warps only load is for the registers: a
// transform wants 16 (36), which lanes full of sums do not have; so all fit in 96 (128).
//
// Cost: 2 * N*P*Q*K*C * 4 FLOP instead of 9 (2.25), a bound 2.25 times as high (4), FP32 issue. For
// each channel a block issues 1,024 multiply-adds of warps (1,152), 64 reads for them (108), which
// are 256 passes over the banks (432) without conflict, and some 200 instructions of one warp that
// loads (490). The multiply-adds take an A100's FP32 units 512 cycles (576), which bounds it, and
// an H100's 256 (288): there shared memory takes as long (1.5 times as long). From the L2 cache
// come 4 KB of filters (4.5), and the patches, whose neighbours share 3 of 4 pixels (5 of 9).
// Beside that, 16/9 times the weights (36/9) are written and read.
//
// What is lost: outputs beyond the last in a patch, patches beyond a multiple of 32, filters beyond
// one of 64 (32), channels beyond one of 4. A NaN or infinity spreads over the patches that read
// it.
#pragma once

#include <cstdint>

#include "../winograd.h"
#include "conv2d.cuh"
#include "epilogue.cuh"
#include "gemm_operands.cuh"

namespace cnnkernels::CNN_TARGET {

// ---- sizes ----

// A block's tile and how it is shared out, for Winograd2x2 and Winograd4x4. The first warps
// multiply, the last ones load.
template <class F>
struct WinogradTile {
  static constexpr bool kIsSmall = F::kOut <= Winograd2x2::kOut;
  static constexpr int kProducts = kWinogradProducts<F>;
  static constexpr int kPatches = 32, kFilters = kIsSmall ? 64 : 32;
  static constexpr int kDepth = 4, kStages = kIsSmall ? 3 : 2;  // channels of a stage

  static constexpr int kWarpProducts = kIsSmall ? 1 : 3;
  // Channels, at once: of more, nvcc moves registers about.
  static constexpr int kUnrolled = kIsSmall ? 2 : 1;
  static constexpr int kMultipliers = kProducts / kWarpProducts * kWarpSize;
  static constexpr int kLoaders = kPatches * kDepth;
  static constexpr int kThreads = kMultipliers + kLoaders;

  // The lanes of a warp that multiplies, and what a lane has of each product.
  static constexpr int kLaneRows = 4, kLaneColumns = 8;
  static constexpr int kLanePatches = kPatches / kLaneRows;
  static constexpr int kLaneFilters = kFilters / kLaneColumns;
  using Sums = float[kWarpProducts][kLanePatches][kLaneFilters];

  // A channel's [product][patch] and [product][filter] in a stage. Behind the patches is room that
  // keeps lanes apart which store neighbouring channels.
  static constexpr int kPatchLine = kProducts * kPatches + kWarpSize / kDepth;
  static constexpr int kFilterLine = kProducts * kFilters;
  static constexpr int kPatchStage = kDepth * kPatchLine, kFilterStage = kDepth * kFilterLine;
  static constexpr int kStage = kPatchStage + kFilterStage;

  // The sums leave in rounds, of [product][lane column][patch], by two buffers.
  static constexpr int kRoundPitch = kPatches + kPack<float>;
  static constexpr int kRound = kProducts * kLaneColumns * kRoundPitch;

  static constexpr int kShared = kStages * kStage > 2 * kRound ? kStages* kStage : 2 * kRound;

  // Named barriers. A stage's: loaded, and free to be loaded again.
  static constexpr int kDrained = 1;
  __device__ static int full(int stage) { return 2 + stage; }
  __device__ static int empty(int stage) { return 2 + kStages + stage; }
};

// The filter of a block at a place of a stage's line. A lane column's filters, two packs apart, are
// those with the same remainder: so the sums of a round, one of each column, are neighbours.
template <class F>
__device__ int filter_at(int place) {
  using Tile = WinogradTile<F>;
  constexpr int kTurn = Tile::kLaneColumns * kPack<float>;
  const int number = place / kTurn * kPack<float> + place % kPack<float>;
  return number * Tile::kLaneColumns + place % kTurn / kPack<float>;
}

// Fprop, or dgrad as the fprop that it is: of the gradient, by filters turned by 180 degrees, of as
// many channels as there were filters.
struct WinogradShape {
  int rows, columns;      // of the results
  int height, width;      // of the source
  int top, left;          // the padding before it
  int channels, filters;  // of a group
  int patches_down, patches_across, patches;
  int blocks, depth;                       // blocks of filters; channels, rounded up to stages
  bool channels_fastest, filters_fastest;  // in memory
  Strides source, mask, result;
  Strides weight;        // {filter, channel, r, s}, from the first tap on
  int64_t group_weight;  // from a group's weights to the next one's

  __device__ __host__ int64_t lines() const {  // of a group's transformed filters
    return static_cast<int64_t>(blocks) * depth;
  }
};

// ---- transforms ----

// Both axes of a square: transform() takes kFrom values and makes kTo.
template <int kFrom, int kTo, class Transform>
__device__ void transform_square(const float (&from)[kFrom][kFrom], float (&to)[kTo][kTo],
                                 const Transform& transform) {
  float half[kTo][kFrom];
#pragma unroll
  for (int x = 0; x < kFrom; ++x) {
    float column[kFrom], changed[kTo];
#pragma unroll
    for (int y = 0; y < kFrom; ++y) column[y] = from[y][x];
    transform(column, changed);
#pragma unroll
    for (int y = 0; y < kTo; ++y) half[y][x] = changed[y];
  }
#pragma unroll
  for (int y = 0; y < kTo; ++y) transform(half[y], to[y]);
}

// Stores a square, with so much between its elements.
template <int kSize>
__device__ void store_square(const float (&square)[kSize][kSize], float* to, int distance) {
#pragma unroll
  for (int i = 0; i < kSize * kSize; ++i) to[i * distance] = square[i / kSize][i % kSize];
}

// transformed[group][block of filters][channel][product][place of a filter]; a thread has a filter
// of a channel. Zeros stand for channels and filters beyond the last.
template <class F>
__global__ void conv2d_winograd_filters(WinogradShape shape, int groups,
                                        const float* __restrict__ weight,
                                        float* __restrict__ transformed) {
  using Tile = WinogradTile<F>;
  const int64_t index = global_thread(), line = index / Tile::kFilters;
  const int place = index % Tile::kFilters;
  if (line >= groups * shape.lines()) return;
  const int64_t group = line / shape.lines();
  const int c = line % shape.depth;
  const int k = line / shape.depth % shape.blocks * Tile::kFilters + filter_at<F>(place);

  float taps[kWinogradTaps][kWinogradTaps] = {};
  if (c < shape.channels && k < shape.filters) {
    const float* first = weight + group * shape.group_weight + shape.weight.at(k, c, 0, 0);
#pragma unroll
    for (int r = 0; r < kWinogradTaps; ++r) {
#pragma unroll
      for (int s = 0; s < kWinogradTaps; ++s) taps[r][s] = first[shape.weight.at(0, 0, r, s)];
    }
  }
  float square[F::kIn][F::kIn];
  transform_square(taps, square, [](const auto& from, auto& to) { F::filter(from, to); });
  store_square(square, transformed + line * Tile::kFilterLine + place, Tile::kFilters);
}

// ---- a patch on its way ----

// Of the results; patches lie side by side over the columns, then the rows, then the images.
struct Patch {
  int n, row, column;  // n < 0: there is none

  template <class F>
  __device__ static Patch number(const WinogradShape& shape, int index) {
    if (index >= shape.patches) return {-1, 0, 0};
    const int line = index / shape.patches_across;
    return {line / shape.patches_down, line % shape.patches_down * F::kOut,
            index % shape.patches_across * F::kOut};
  }
};

// Loads a patch of the source. Behind a ReLU, the gradient counts as zero where the ReLU's output
// is not positive.
template <class F, bool kMasked>
class PatchLoader {
 public:
  static constexpr int kIn = F::kIn;
  using Square = float[kIn][kIn];

  // Of channel c.
  __device__ PatchLoader(const WinogradShape& shape, const float* source, const float* mask,
                         const Patch& patch, int64_t c) {
    const int h = patch.row - shape.top, w = patch.column - shape.left;
    source_ = source + shape.source.at(patch.n, c, h, w);
    if (kMasked) mask_ = mask + shape.mask.at(patch.n, c, h, w);
#pragma unroll
    for (int i = 0; i < kIn; ++i) {
      rows_ |= unsigned{patch.n >= 0 && inside(h + i, shape.height)} << i;
      columns_ |= unsigned{inside(w + i, shape.width)} << i;
    }
  }

  // Begins to load the patch, or what tells where it is open; then moves on by so many channels.
  __device__ void load(const WinogradShape& shape, bool is_there, int channels) {
#pragma unroll
    for (int y = 0; y < kIn; ++y) open_[y] = is_there && rows_ >> y & 1 ? columns_ : 0;
    if constexpr (kMasked)
      read(mask_, shape.mask, channels);
    else
      read(source_, shape.source, channels);
  }

  __device__ void transform(const WinogradShape& shape, int channels, Square& square) {
    if constexpr (kMasked) {
#pragma unroll
      for (int i = 0; i < kIn * kIn; ++i)
        if (pixels_[i / kIn][i % kIn] <= 0) open_[i / kIn] &= ~(1u << i % kIn);
      read(source_, shape.source, channels);
    }
    transform_square(pixels_, square, [](const auto& from, auto& to) { F::input(from, to); });
  }

 private:
  // What is not open is zero.
  __device__ void read(const float*& corner, const Strides& strides, int channels) {
    const int down = static_cast<int>(strides.h), across = static_cast<int>(strides.w);
#pragma unroll
    for (int y = 0; y < kIn; ++y) {
      const float* line = computed(corner + y * down);
#pragma unroll
      for (int x = 0; x < kIn; ++x) pixels_[y][x] = open_[y] >> x & 1 ? line[x * across] : 0.f;
    }
    corner += channels * strides.c;
  }

  const float *source_, *mask_;
  unsigned rows_ = 0, columns_ = 0;  // bits: which of the patch lie inside
  unsigned open_[kIn];               // bits of each row: which are to be read
  Square pixels_;
};

// ---- the products ----

// kCount numbers in packs, each `distance` behind the one before.
template <int kCount>
__device__ void read_packs(const float* from, int distance, float (&to)[kCount]) {
  using Access = Elements<float, kPack<float>>;
#pragma unroll
  for (int pack = 0; pack < kCount / kPack<float>; ++pack) {
    const Access access = *reinterpret_cast<const Access*>(from + pack * distance);
#pragma unroll
    for (int i = 0; i < kPack<float>; ++i) to[pack * kPack<float> + i] = access.values[i];
  }
}

// Adds the products of a stage's channels to the lane's sums.
template <class F>
__device__ void multiply_stage(const float* patches, const float* filters,
                               typename WinogradTile<F>::Sums& sums) {
  using Tile = WinogradTile<F>;
#pragma unroll(Tile::kUnrolled)
  for (int c = 0; c < Tile::kDepth; ++c) {
#pragma unroll
    for (int product = 0; product < Tile::kWarpProducts; ++product) {
      float rows[Tile::kLanePatches], columns[Tile::kLaneFilters];
      read_packs(patches + c * Tile::kPatchLine + product * Tile::kPatches,
                 Tile::kLaneRows * kPack<float>, rows);
      read_packs(filters + c * Tile::kFilterLine + product * Tile::kFilters,
                 Tile::kLaneColumns * kPack<float>, columns);
#pragma unroll
      for (int i = 0; i < Tile::kLanePatches; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kLaneFilters; ++j)
          sums[product][i][j] = multiply_add(rows[i], columns[j], sums[product][i][j]);
      }
    }
  }
}

// What the warps that multiply do: stage by stage, as they are loaded.
template <class F>
__device__ void multiply(const WinogradShape& shape, const float* shared,
                         typename WinogradTile<F>::Sums& sums) {
  using Tile = WinogradTile<F>;
  const int product = threadIdx.x / kWarpSize * Tile::kWarpProducts;
  const int row = threadIdx.x % kWarpSize / Tile::kLaneColumns;
  const int column = threadIdx.x % Tile::kLaneColumns;
  const float* patches = shared + product * Tile::kPatches + row * kPack<float>;
  const float* filters =
      shared + Tile::kPatchStage + product * Tile::kFilters + column * kPack<float>;
  int stage = 0;
#pragma unroll 1
  for (int left = shape.depth / Tile::kDepth; left > 0; --left) {
    sync_named(Tile::full(stage), Tile::kThreads);
    multiply_stage<F>(patches + stage * Tile::kStage, filters + stage * Tile::kStage, sums);
    if (left > Tile::kStages) arrive_named(Tile::empty(stage), Tile::kThreads);
    stage = stage + 1 < Tile::kStages ? stage + 1 : 0;
  }
}

// Begins to copy a stage's transformed filters, as they are.
template <class F>
__device__ void copy_filters(const float* from, float* to, int thread) {
  using Tile = WinogradTile<F>;
  constexpr int kStep = Tile::kLoaders * kPack<float>;
  static_assert(Tile::kFilterStage % kStep == 0);
#pragma unroll
  for (int i = 0; i < Tile::kFilterStage; i += kStep)
    copy_async<16>(to + i + thread * kPack<float>, from + i + thread * kPack<float>);
  commit_copies();
}

// What the warps that load do: of each stage the filters and, a thread each, the patches, of which
// the next is on its way meanwhile. Lanes lie along what are neighbours in memory.
template <class F, bool kMasked>
__device__ void load(const WinogradShape& shape, const float* source, const float* mask,
                     const float* transformed, int first_patch, float* shared) {
  using Tile = WinogradTile<F>;
  const int thread = threadIdx.x - Tile::kMultipliers;
  const bool along = shape.channels_fastest;
  const int patch = along ? thread / Tile::kDepth : thread % Tile::kPatches;
  const int channel = along ? thread % Tile::kDepth : thread / Tile::kPatches;
  PatchLoader<F, kMasked> loader(shape, source, mask, Patch::number<F>(shape, first_patch + patch),
                                 static_cast<int64_t>(blockIdx.y) * shape.channels + channel);
  loader.load(shape, channel < shape.channels, Tile::kDepth);
  float* const place = shared + channel * Tile::kPatchLine + patch;
  int stage = 0;
#pragma unroll 1
  for (int first = 0; first < shape.depth; first += Tile::kDepth) {
    if (first >= Tile::kStages * Tile::kDepth) sync_named(Tile::empty(stage), Tile::kThreads);
    copy_filters<F>(transformed, shared + stage * Tile::kStage + Tile::kPatchStage, thread);
    transformed += Tile::kFilterStage;
    float square[F::kIn][F::kIn];
    loader.transform(shape, Tile::kDepth, square);
    loader.load(shape, first + Tile::kDepth + channel < shape.channels, Tile::kDepth);
    store_square(square, place + stage * Tile::kStage, Tile::kPatches);
    wait_copies<0>();
    arrive_named(Tile::full(stage), Tile::kThreads);
    stage = stage + 1 < Tile::kStages ? stage + 1 : 0;
  }
}

// ---- the sums' way out ----

// Hands each square of sums, of one filter of one patch, to sink(patch, filter, square), both
// numbers of the tile. For the warps that multiply; a round is of a filter of each lane column.
template <class F, class Sink>
__device__ void drain(const typename WinogradTile<F>::Sums& sums, float* buffers,
                      bool filters_fastest, const Sink& sink) {
  using Tile = WinogradTile<F>;
  using Access = Elements<float, kPack<float>>;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;

  sync_named(Tile::kDrained, Tile::kMultipliers);  // the last stage is read
#pragma unroll
  for (int round = 0; round < Tile::kLaneFilters; ++round) {
    float* buffer = buffers + round % 2 * Tile::kRound;
#pragma unroll
    for (int i = 0; i < Tile::kWarpProducts; ++i) {
      const int product = warp * Tile::kWarpProducts + i;
      float* line =
          buffer + (product * Tile::kLaneColumns + lane % Tile::kLaneColumns) * Tile::kRoundPitch;
#pragma unroll
      for (int first = 0; first < Tile::kLanePatches; first += kPack<float>) {
        Access pack;
#pragma unroll
        for (int j = 0; j < kPack<float>; ++j) pack.values[j] = sums[i][first + j][round];
        reinterpret_cast<Access*>(line + first * Tile::kLaneRows)[lane / Tile::kLaneColumns] = pack;
      }
    }
    // Whoever still reads the other buffer arrives before it is written again.
    sync_named(Tile::kDrained, Tile::kMultipliers);
    // Computed here: registers are scarce while sums wait.
    const int thread = computed(threadIdx.x);
    if (thread < Tile::kPatches * Tile::kLaneColumns) {
      const int patch = filters_fastest ? thread / Tile::kLaneColumns : thread % Tile::kPatches;
      const int column = filters_fastest ? thread % Tile::kLaneColumns : thread / Tile::kPatches;
      float square[F::kIn][F::kIn];
#pragma unroll
      for (int product = 0; product < Tile::kProducts; ++product) {
        square[product / F::kIn][product % F::kIn] =
            buffer[(product * Tile::kLaneColumns + column) * Tile::kRoundPitch + patch];
      }
      sink(patch, round * Tile::kLaneColumns + column, square);
    }
  }
}

// ---- a block's work ----

// Blocks lie side by side over the blocks of filters, then the patches: those that run at the same
// time share patches.
struct WinogradCorner {
  int first_patch, block;

  // Computed at each use: registers are scarce in between.
  template <class F>
  __device__ static WinogradCorner of(const WinogradShape& shape) {
    const int index = computed(blockIdx.x);
    return {index / shape.blocks * WinogradTile<F>::kPatches, index % shape.blocks};
  }
};

// Group y is block y's.
template <class F, bool kMasked>
__global__ void __launch_bounds__(WinogradTile<F>::kThreads)
    conv2d_winograd(WinogradShape shape, const float* __restrict__ source,
                    const float* __restrict__ mask, const float* __restrict__ transformed,
                    Epilogue epilogue, float* __restrict__ result) {
  using Tile = WinogradTile<F>;
  DYNAMIC_SHARED(float, shared);
  if (threadIdx.x >= Tile::kMultipliers) {
    const auto [first_patch, block] = WinogradCorner::of<F>(shape);
    const int64_t line = blockIdx.y * shape.lines() + static_cast<int64_t>(block) * shape.depth;
    load<F, kMasked>(shape, source, mask, transformed + line * Tile::kFilterLine, first_patch,
                     shared);
    return;
  }
  typename Tile::Sums sums = {};
  multiply<F>(shape, shared, sums);
  drain<F>(sums, shared, shape.filters_fastest, [&](int patch, int filter, const auto& square) {
    const auto [first_patch, block] = WinogradCorner::of<F>(shape);
    const int k = block * Tile::kFilters + filter;
    const auto [n, row, column] = Patch::number<F>(shape, first_patch + patch);
    if (n < 0 || k >= shape.filters) return;
    float outputs[F::kOut][F::kOut];
    transform_square(square, outputs, [](const auto& from, auto& to) { F::output(from, to); });
    const int of_all = blockIdx.y * shape.filters + k;
    float* corner = result + shape.result.at(n, of_all, row, column);
#pragma unroll
    for (int i = 0; i < F::kOut * F::kOut; ++i) {
      const int y = i / F::kOut, x = i % F::kOut;
      if (row + y < shape.rows && column + x < shape.columns)
        corner[shape.result.at(0, 0, y, x)] = finish<float>(outputs[y][x], epilogue, of_all);
    }
  });
}

}  // namespace cnnkernels::CNN_TARGET
