// Depthwise convolution: as many groups as channels and filters, so that an output reads one
// channel. All three passes are one loop over vectors of the packed tile (correlation.h):
//
//     sums[i] += tile[outer[i] + inner[j]] * factors[j]
//
// for 12 vectors i, which stay in registers, and the depths j:
//
//              outer               inner               factors
//     fprop    vectors of outputs  taps                the filter's
//     dgrad    the same, of grad_output and the filter turned; one for each residue of the stride
//     wgrad    taps                vectors of outputs  grad_output's
//
// The lanes of a vector are channels, whatever the layout: a tile is transposed, where need be, as
// it is packed, and so are its sums on their way out.
//
// Cost: 2 * N*C*P*Q * R*S FLOP, a load for each multiply-add: half the FMA peak at most with two
// loads a cycle; every pixel is packed once, tiles share halos.
//
// Sums run over at most kDepth products in a register, then add up in memory in a fixed order.
#include <limits>

#include "correlation.h"
#include "isa.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

constexpr int kVectors = 12;  // in registers; 9 taps are done at once
constexpr int kDepth = 128;
// Pixels times vectors of channels of a tile: with its halo and sums it stays in the level 2 cache.
constexpr int kTileVectors = 2048;
// Vectors of channels of a tile where these lie closest: some cache lines.
constexpr int kMostVectors = 4;

// Sums of kCount vectors over the depth.
template <int kCount, class S>
void multiply_vectors(const S* tile, const int32_t* outer, const int32_t* inner, int64_t depth,
                      const S* factors, S* sums, bool add) {
  constexpr int n = kLanes<S>;
  Vector<S> registers[kCount] = {};
  for (int64_t j = 0; j < depth; ++j) {
    const S* from = tile + inner[j];
    const Vector<S> factor = load(factors + j * n);
#pragma GCC unroll 12
    for (int i = 0; i < kCount; ++i) registers[i] += load(from + outer[i]) * factor;
  }
#pragma GCC unroll 12
  for (int i = 0; i < kCount; ++i) {
    store<S>(sums + i * n, add ? load(sums + i * n) + registers[i] : registers[i]);
  }
}

// Of fewer.
template <int kCount, class S>
void multiply_rest(const S* tile, const int32_t* outer, int64_t count, const int32_t* inner,
                   int64_t depth, const S* factors, S* sums, bool add) {
  if (count == kCount) {
    return multiply_vectors<kCount>(tile, outer, inner, depth, factors, sums, add);
  }
  if constexpr (kCount > 1) {
    multiply_rest<kCount - 1>(tile, outer, count, inner, depth, factors, sums, add);
  }
}

template <class S>
void multiply(const S* tile, const int32_t* outer, int64_t count, const int32_t* inner,
              int64_t depth, const S* factors, S* sums) {
  constexpr int n = kLanes<S>;
  for (int64_t j = 0; j < depth; j += kDepth) {
    const int64_t length = least<int64_t>(kDepth, depth - j);
    int64_t i = 0;
    for (; i + kVectors <= count; i += kVectors) {
      multiply_vectors<kVectors>(tile, outer + i, inner + j, length, factors + j * n, sums + i * n,
                                 j > 0);
    }
    multiply_rest<kVectors - 1>(tile, outer + i, count - i, inner + j, length, factors + j * n,
                                sums + i * n, j > 0);
  }
}

// How a pass is cut: into blocks of channels, some vectors of them, and tiles. These are packed as
// if the stride were 1: results need not be neighbours, as their vectors are of one pixel each.
template <class S>
struct Cut {
  int64_t channels;
  Axis y, x;
  Partition blocks;
  Tiling tiling;
  Layout layout;

  Cut(const Axis& y, const Axis& x, int64_t N, int64_t channels, bool channels_last)
      : channels(channels),
        y(y),
        x(x),
        blocks(ceil_div(channels, kLanes<S>), channels_last ? kMostVectors : 1),
        tiling(Tiling::make(N, y.outputs, x.outputs, kTileVectors / blocks.largest(),
                            {1, y.step, 0}, {1, x.step, 0})),
        layout(Layout::make(dense(y), dense(x), tiling, blocks.largest() * kLanes<S>, true,
                            kLanes<S>, std::numeric_limits<int64_t>::max())) {}

  int64_t begin(int64_t block) const { return blocks.begin(block) * kLanes<S>; }
  int64_t size(int64_t block) const { return least(begin(block + 1), channels) - begin(block); }

  // Pixels of a tile's results.
  int64_t largest() const {
    return tiling.images.largest() * tiling.rows.largest() * tiling.columns.largest();
  }
  void pixel_offsets(const Tile& results, int32_t* offsets) const {
    layout.pixel_offsets(results, offsets, y.step, x.step);
  }

 private:
  static Axis dense(const Axis& axis) {
    Axis all = axis;
    all.outputs = (axis.outputs - 1) * axis.step + 1, all.step = 1;
    return all;
  }
};

// Calls body(v, count) for the vectors of `channels` channels, the last of which may have fewer.
template <class S, class Body>
void for_vectors(int64_t channels, const Body& body) {
  constexpr int64_t n = kLanes<S>;
  for (int64_t c = 0; c < channels; c += n) body(c / n, static_cast<int>(least(n, channels - c)));
}

// Where a stride is larger than the filter, some pixels are read by no output.
template <class T>
void clear_planes(const Correlation<T>& problem, T* target, const Strides& strides) {
  for (int64_t n = 0; n < problem.N; ++n)
    for (int64_t c = 0; c < problem.groups; ++c)
      for (int64_t y = 0; y < problem.y.outputs; ++y)
        for (int64_t x = 0; x < problem.x.outputs; ++x)
          target[strides.at(n, c, y, x)] = static_cast<T>(Sum<T>(0));
}

// fprop, or one residue of dgrad: the results of `problem`, whose groups are the channels.
template <class T, class Reader>
void correlate_planes(const Correlation<T>& problem, const Reader& reader, T* target,
                      const Strides& strides, const Epilogue& epilogue) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  const int64_t taps = problem.y.taps * problem.x.taps;
  if (taps == 0) return clear_planes(problem, target, strides);
  const Cut<S> cut(problem.y, problem.x, problem.N, problem.groups, reader.channels_last());
  const Layout& layout = cut.layout;
  Workspace<int32_t> inner(layout.channels * taps);  // the first channel's come first
  layout.tap_offsets(inner.data());
  Correlation<T> by_lanes = problem;
  by_lanes.weight.strides.n = problem.weight_group;
  const FilterReader<T> filters(by_lanes);
  const int64_t tiles = cut.tiling.count();

  parallel_for(cut.blocks.count * tiles, 1, [&](int64_t begin, int64_t end) {
    Workspace<S> packed(layout.elements(cut.tiling));
    Workspace<S> factors(taps * n);
    Workspace<S> sums(cut.largest() * layout.channels);
    Workspace<int32_t> outer(cut.largest());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / tiles, channels = cut.size(block);
      const Tile tile = cut.tiling.results(item % tiles);
      reader.pack(layout, cut.tiling.outputs(tile), cut.begin(block), channels, packed.data());
      cut.pixel_offsets(tile, outer.data());
      for_vectors<S>(channels, [&](int64_t v, int filled) {
        filters.pack(0, cut.begin(block) + v * n, filled, 0, 1, factors.data(), n);
        multiply(packed.data() + v * n, outer.data(), tile.pixels(), inner.data(), taps,
                 factors.data(), sums.data() + v * n * tile.pixels());
      });
      for_pixel_runs(tile, strides.h == tile.columns * strides.w,
                     [&](int64_t pixel, int64_t count, int64_t image, int64_t y) {
                       for_vectors<S>(channels, [&](int64_t v, int filled) {
                         const int64_t first = cut.begin(block) + v * n;
                         store_lanes(sums.data() + (v * tile.pixels() + pixel) * n, n, count,
                                     filled, first, epilogue,
                                     target + strides.at(image, first, y, tile.x), strides.w,
                                     strides.c);
                       });
                     });
    }
  });
}

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void*, Stream) {
  if (problem.N == 0) return;
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    correlate_planes(fprop_of<T>(problem, weight), input_of<T>(problem, input),
                     static_cast<T*>(output), problem.output, epilogue);
  });
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, void*, Stream) {
  if (problem.N == 0) return;
  const Strides& input = problem.input;
  const Strides spread{input.n, input.c, input.h * problem.stride_h, input.w * problem.stride_w};
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    for (int y = 0; y < least(problem.stride_h, problem.H); ++y) {
      for (int x = 0; x < least(problem.stride_w, problem.W); ++x) {
        correlate_planes(
            dgrad_of<T>(problem, weight, y, x), gradient_of<T>(problem, grad_output, relu_output),
            static_cast<T*>(grad_input) + input.at(0, 0, y, x), spread, {nullptr, 0, false});
      }
    }
  });
}

template <class T>
void weight_gradient(const Conv2dProblem& problem, const TensorReader<T>& input,
                     const TensorReader<T>& gradient, T* grad_weight) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  if (problem.N == 0) {
    for (int64_t c = 0; c < problem.C; ++c)
      for (int64_t tap = 0; tap < static_cast<int64_t>(problem.R) * problem.S; ++tap)
        grad_weight[problem.weight.at(c, 0, tap / problem.S, tap % problem.S)] =
            static_cast<T>(S(0));
    return;
  }
  const Cut<S> cut(forward_axis(problem.P, problem.H, problem.R, problem.stride_h, problem.pad_top,
                                problem.dilation_h),
                   forward_axis(problem.Q, problem.W, problem.S, problem.stride_w, problem.pad_left,
                                problem.dilation_w),
                   problem.N, problem.C, input.channels_last());
  const Layout& layout = cut.layout;
  const int64_t taps = layout.taps();
  Workspace<int32_t> outer(layout.channels * taps);
  layout.tap_offsets(outer.data());

  // Few blocks are cut into chunks of tiles, whose sums are added in their order.
  const int64_t tiles = cut.tiling.count();
  const int64_t chunks = clamp<int64_t>(kPieces / cut.blocks.count, 1, tiles);
  const int64_t size = taps * ceil_div(problem.C, n) * n;  // of all channels
  Workspace<double> partials(chunks * size);
  parallel_for(cut.blocks.count * chunks, 1, [&](int64_t begin, int64_t end) {
    Workspace<S> packed(layout.elements(cut.tiling));
    Workspace<S> factors(cut.largest() * n);
    Workspace<S> sums(taps * n);
    Workspace<int32_t> inner(cut.largest());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / chunks, chunk = item % chunks, channels = cut.size(block);
      double* totals = partials.data() + chunk * size + cut.begin(block) * taps;
      for (int64_t i = 0; i < ceil_div(channels, n) * n * taps; ++i) totals[i] = 0;
      for (int64_t index = chunk * tiles / chunks; index < (chunk + 1) * tiles / chunks; ++index) {
        const Tile tile = cut.tiling.results(index);
        input.pack(layout, cut.tiling.outputs(tile), cut.begin(block), channels, packed.data());
        cut.pixel_offsets(tile, inner.data());
        for_vectors<S>(channels, [&](int64_t v, int filled) {
          const int64_t first = cut.begin(block) + v * n;
          for_pixel_runs(tile, gradient.source.joined(tile.columns),
                         [&](int64_t pixel, int64_t count, int64_t image, int64_t y) {
                           pack_lanes(factors.data() + pixel * n, n, count, filled,
                                      gradient.source.at(image, first, y, tile.x), &Strides::w,
                                      &Strides::c);
                         });
          multiply(packed.data() + v * n, outer.data(), taps, inner.data(), tile.pixels(),
                   factors.data(), sums.data());
          for (int64_t i = 0; i < taps * n; ++i) totals[v * n * taps + i] += sums[i];
        });
      }
    }
  });
  for (int64_t c = 0; c < problem.C; ++c) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      double total = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        total += partials[chunk * size + (c / n * taps + tap) * n + c % n];
      }
      grad_weight[problem.weight.at(c, 0, tap / problem.S, tap % problem.S)] =
          static_cast<T>(static_cast<S>(total));
    }
  }
}

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, void*, Stream) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    weight_gradient(problem, input_of<T>(problem, input),
                    gradient_of<T>(problem, grad_output, relu_output),
                    static_cast<T*>(grad_weight));
  });
}

const char* unsupported(const Conv2dProblem& problem, Dtype) {
  const bool is_depthwise = problem.group_channels() == 1 && problem.group_filters() == 1;
  return is_depthwise ? nullptr : "for groups of one channel and one filter alone";
}

const char* unsuited(const Conv2dProblem& problem, Dtype) {
  return problem.groups == 1 ? "a single channel" : nullptr;
}

}  // namespace

Conv2dAlgorithm conv2d_depthwise() {
  return {"depthwise", unsupported, fprop, dgrad, wgrad, nullptr, unsuited};
}

}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
