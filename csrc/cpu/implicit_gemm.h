// Convolution as a matrix product whose im2col matrix is never stored:
//
//     im2col[pixel, tap] = tile[pixel_offset[pixel] + tap_offset[tap]],   tap = (channel, r, s)
//
// where the tile is a packed one (correlation.h). All three passes are one micro-kernel
// (microkernel.h) with the two tables in either role:
//
//     fprop  output[pixel, k]    = sum over taps    of im2col[pixel, tap] * weight[tap, k]
//     dgrad  the same, from grad_output and the weight transposed; with stride 1 that is a
//            correlation with a flipped filter, else one for each residue (h, w) modulo stride
//     wgrad  grad_weight[tap, k] = sum over pixels of im2col[pixel, tap] * grad_output[pixel, k]
//
// The filters k lie along the vectors, packed once a call (wgrad: once a tile).
//
// Cost: 2 * N * P * Q * K * C / groups * R * S FLOP; the copy into the tile is one load and store
// per source element and block of kFilterVectors vectors of filters: bound by the multiply-adds,
// but for few filters a group (K / groups below a vector's width wastes lanes).
//
// Sums run over at most kDepth products in a register, then add up in memory in a fixed order:
// the bits depend on the problem and the instruction set, never on the number of threads.
#pragma once

#include "correlation.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

// Products summed in a register; a panel of this depth stays in the level 1 cache.
constexpr int kDepth = 128;
constexpr int64_t kPartialBytes = 32 << 20;

// The weights of all groups: [group][panel][channel][r][s][filter of the panel].
template <class T>
void pack_weights(const Correlation<T>& problem, const Panels& panels, Sum<T>* packed) {
  constexpr int kChannels = 16;  // that are packed at a time
  const FilterReader<T> filters(problem);
  const int64_t depth = problem.channels * filters.taps;
  const Partition blocks(problem.channels, kChannels);
  const int64_t lines = panels.panels.total * blocks.count;
  parallel_for(problem.groups * lines, 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / lines, vector = item % lines / blocks.count;
      const int64_t block = item % blocks.count, c = blocks.begin(block);
      const int64_t panel = panels.panel_of(vector);
      const int64_t pitch = panels.panels.size(panel) * panels.lanes;
      const int64_t filter = vector * panels.lanes, first = panels.panel_begin(panel);
      filters.pack(group, filter, panels.filled(filter), c, blocks.size(block),
                   packed + (group * panels.padded() + first) * depth + c * filters.taps * pitch +
                       filter - first,
                   pitch);
    }
  });
}

// Of the source that `reader` has, into what `writer` writes.
template <class T, class Reader, class Writer>
void correlate(const Correlation<T>& problem, const Reader& reader, const Writer& writer) {
  using S = Sum<T>;
  const Panels panels(static_cast<int>(problem.filters), kLanes<S>);
  const Tiling tiling = writer.tiling(
      problem, clamp<int64_t>(problem.pixels() * problem.groups * panels.ranges.count / kPieces,
                              8 * kRows, kTilePixels));
  const int64_t taps = problem.y.taps * problem.x.taps;
  const int64_t depth = problem.channels * taps;
  Workspace<S> weights(problem.groups * panels.padded() * depth);
  if (depth > 0) pack_weights(problem, panels, weights.data());
  Layout layout = Layout::in_place(problem.y, problem.x, reader.strides(), problem.channels);
  const bool in_place = depth > 0 && tiling.within(problem.y.outputs, problem.x.outputs) &&
                        reader.in_place(problem.y, problem.x) && layout.fits_offsets(tiling);
  if (depth > 0 && !in_place) {
    layout = Layout::make(problem.y, problem.x, tiling, problem.channels, reader.channels_last(),
                          Reader::kMultiple, kTileBytes / sizeof(S));
  }
  Workspace<int32_t> tap_offsets(layout.channels * taps);
  if (depth > 0) layout.tap_offsets(tap_offsets.data());

  const int64_t items = tiling.count() * panels.ranges.count;
  parallel_for(problem.groups * items, 1, [&](int64_t begin, int64_t end) {
    Workspace<S> packed(depth == 0 || in_place ? 0 : layout.elements(tiling));
    Workspace<S> sums(tiling.largest() * panels.largest_range());
    Workspace<int32_t> pixel_offsets(tiling.largest());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / items, range = item % items / tiling.count();
      const int64_t index = item % tiling.count();
      const Tile tile = tiling.outputs(index);
      const int64_t pitch = panels.range_padded(range);
      if (depth == 0) {
        for (int64_t i = 0; i < tile.pixels() * pitch; ++i) sums[i] = 0;
      } else {
        layout.pixel_offsets(tile, pixel_offsets.data());
      }
      for (int64_t c = 0; c < problem.channels && taps > 0; c += layout.channels) {
        const int64_t count = least(layout.channels, problem.channels - c);
        const int64_t first_channel = group * problem.channels + c;
        const S* source = packed.data();
        if (in_place) {
          source = reader.find(problem.y, problem.x, tile, first_channel);
        } else {
          reader.pack(layout, tile, first_channel, count, packed.data());
        }
        for (int64_t d = 0; d < count * taps; d += kDepth) {
          for (int64_t i = 0; i < panels.ranges.size(range); ++i) {
            const int64_t panel = panels.ranges.begin(range) + i;
            const int64_t vectors = panels.panels.size(panel), first = panels.panel_begin(panel);
            multiply(vectors, source, pixel_offsets.data(), tile.pixels(), tap_offsets.data() + d,
                     least<int64_t>(kDepth, count * taps - d),
                     weights.data() + (group * panels.padded() + first) * depth +
                         (c * taps + d) * vectors * panels.lanes,
                     sums.data() + first - panels.range_begin(range), pitch, c + d > 0);
          }
        }
      }
      writer.write(tiling, index, panels, group, range, sums.data());
    }
  });
}

// Adds up partial[chunk][tap][filter] in the order of chunks, into grad_weight.
template <class T>
void add_partials(const Conv2dProblem& problem, const Panels& panels, int64_t chunks,
                  const Sum<T>* partials, T* grad_weight) {
  using S = Sum<T>;
  const int64_t taps = problem.R * problem.S;
  const int64_t rows = problem.C * taps;
  parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t c = row / taps, r = row % taps / problem.S, s = row % problem.S;
      const int64_t filter = c / problem.group_channels() * panels.filters;
      for (int64_t f = 0; f < panels.filters; f += panels.lanes) {
        Vector<S> total = {};
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          total += load(partials + (chunk * rows + row) * panels.padded() + f);
        }
        S values[kLanes<S>];
        store<S>(values, total);
        store_run(grad_weight + problem.weight.at(filter + f, c % problem.group_channels(), r, s),
                  problem.weight.n, panels.filled(f), values);
      }
    }
  });
}

// `gradient` reads that of the convolution's output.
template <class T, class Reader>
void weight_gradient(const Conv2dProblem& problem, const Reader& gradient, const void* data,
                     T* grad_weight) {
  using S = Sum<T>;
  if (problem.C == 0) return;
  const TensorReader<T> input{{static_cast<const T*>(data), problem.input, nullptr, {}}};
  const Tiling tiling = Tiling::make(problem.N, problem.P, problem.Q, kTilePixels);
  const Panels panels(problem.group_filters(), kLanes<S>);
  if (problem.N == 0) return add_partials<T>(problem, panels, 0, nullptr, grad_weight);
  const int64_t channels = problem.group_channels();
  const Layout layout = Layout::make(forward_axis(problem.P, problem.H, problem.R, problem.stride_h,
                                                  problem.pad_top, problem.dilation_h),
                                     forward_axis(problem.Q, problem.W, problem.S, problem.stride_w,
                                                  problem.pad_left, problem.dilation_w),
                                     tiling, channels, input.channels_last(), input.kMultiple,
                                     kTileBytes / sizeof(S));
  Workspace<int32_t> tap_offsets(layout.channels * layout.taps());
  layout.tap_offsets(tap_offsets.data());

  const Partition blocks(channels, layout.channels);
  const int64_t units = problem.groups * blocks.count * panels.ranges.count;
  const int64_t partial = problem.C * layout.taps() * panels.padded();
  const int64_t chunks = clamp<int64_t>(
      least<int64_t>(kPieces / units, kPartialBytes / (partial * sizeof(S))), 1, tiling.count());
  Workspace<S> partials(chunks * partial);
  parallel_for(units * chunks, 1, [&](int64_t begin, int64_t end) {
    Workspace<S> packed(layout.elements(tiling));
    Workspace<S> gradients(tiling.largest() * panels.largest_range());
    Workspace<int32_t> pixel_offsets(tiling.largest());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item % chunks, unit = item / chunks;
      const int64_t range = unit % panels.ranges.count;
      const int64_t block = unit / panels.ranges.count % blocks.count;
      const int64_t group = unit / panels.ranges.count / blocks.count;
      const int64_t c = group * channels + blocks.begin(block);
      const int64_t first_tile = chunk * tiling.count() / chunks;
      const int64_t last_tile = (chunk + 1) * tiling.count() / chunks;
      for (int64_t index = first_tile; index < last_tile; ++index) {
        const Tile tile = tiling.outputs(index);
        layout.pixel_offsets(tile, pixel_offsets.data());
        input.pack(layout, tile, c, blocks.size(block), packed.data());
        gradient.pack(tile, panels, range, group * panels.filters, gradients.data());
        for (int64_t i = 0; i < panels.ranges.size(range); ++i) {
          const int64_t panel = panels.ranges.begin(range) + i;
          const int64_t first = panels.panel_begin(panel);
          multiply(panels.panels.size(panel), packed.data(), tap_offsets.data(),
                   blocks.size(block) * layout.taps(), pixel_offsets.data(), tile.pixels(),
                   gradients.data() + (first - panels.range_begin(range)) * tile.pixels(),
                   partials.data() + chunk * partial + c * layout.taps() * panels.padded() + first,
                   panels.padded(), index > first_tile);
        }
      }
    }
  });
  add_partials(problem, panels, chunks, partials.data(), grad_weight);
}

}  // namespace
}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
