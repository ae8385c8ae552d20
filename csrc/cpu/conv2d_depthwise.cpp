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
// A vector is of neighbours in memory: columns of one channel, whose factors in fprop are one
// number each, or, where channels lie closest, channels of one pixel. In wgrad the lanes of columns
// are added at the end.
//
// Cost: 2 * N*C*P*Q * R*S FLOP, a load for each multiply-add: half the FMA peak at most with two
// loads a cycle; every pixel is packed once, tiles share halos.
//
// Sums run over at most kDepth products in a register, then add up in memory in a fixed order.
#include "correlation.h"
#include "isa.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

constexpr int kVectors = 12;  // in registers; 9 taps are done at once
constexpr int kDepth = 128;
// Elements of a tile, at most: they stay in the level 1 or 2 cache.
constexpr int64_t kTileElements = 8192;

// What the tile is multiplied by: vectors; one number each; vectors of which some lanes, at the end
// of a row, stand for nothing, and so meet zeros, whatever the tile has there.
enum class Factors { vectors, numbers, part };

// Sums of kCount vectors over the depth.
template <int kCount, Factors kFactors, class S>
void multiply_vectors(const S* tile, const int32_t* outer, const int32_t* inner, int64_t depth,
                      const S* factors, int filled, S* sums, bool add) {
  constexpr int n = kLanes<S>;
  S lanes[n];
  for (int i = 0; i < n; ++i) lanes[i] = static_cast<S>(i);
  const auto exists = load(lanes) < static_cast<S>(filled);
  Vector<S> registers[kCount] = {};
  for (int64_t j = 0; j < depth; ++j) {
    const S* from = tile + inner[j];
    const Vector<S> factor =
        kFactors == Factors::numbers ? factors[j] - Vector<S>{} : load(factors + j * n);
#pragma GCC unroll 12
    for (int i = 0; i < kCount; ++i) {
      const Vector<S> value = load(from + outer[i]);
      registers[i] += (kFactors == Factors::part ? (exists ? value : Vector<S>{}) : value) * factor;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kCount; ++i) {
    store<S>(sums + i * n, add ? load(sums + i * n) + registers[i] : registers[i]);
  }
}

// Of fewer.
template <int kCount, Factors kFactors, class S>
void multiply_rest(const S* tile, const int32_t* outer, int64_t count, const int32_t* inner,
                   int64_t depth, const S* factors, int filled, S* sums, bool add) {
  if (count == kCount)
    return multiply_vectors<kCount, kFactors>(tile, outer, inner, depth, factors, filled, sums,
                                              add);
  if constexpr (kCount > 1)
    multiply_rest<kCount - 1, kFactors>(tile, outer, count, inner, depth, factors, filled, sums,
                                        add);
}

template <Factors kFactors, class S>
void multiply(const S* tile, const int32_t* outer, int64_t count, const int32_t* inner,
              int64_t depth, const S* factors, int filled, S* sums, bool add) {
  constexpr int n = kLanes<S>;
  for (int64_t j = 0; j < depth; j += kDepth) {
    const int64_t length = least<int64_t>(kDepth, depth - j);
    const S* own = factors + (kFactors == Factors::numbers ? j : j * n);
    const bool adds = add || j > 0;
    int64_t i = 0;
    for (; i + kVectors <= count; i += kVectors) {
      multiply_vectors<kVectors, kFactors>(tile, outer + i, inner + j, length, own, filled,
                                           sums + i * n, adds);
    }
    multiply_rest<kVectors - 1, kFactors>(tile, outer + i, count - i, inner + j, length, own,
                                          filled, sums + i * n, adds);
  }
}

// How a pass is cut: into blocks of channels, one or a vector of them, and tiles.
template <class S>
struct Cut {
  bool by_channels;
  Partition blocks;
  Tiling tiling;
  Layout layout;

  Cut(const Axis& y, const Axis& x, int64_t N, int64_t channels, bool by_channels)
      : by_channels(by_channels),
        blocks(ceil_div(channels, width()), 1),
        tiling(Tiling::make(N, y.outputs, x.outputs, kTileElements / width())),
        layout(Layout::make(y, x, tiling, width(), by_channels, width(), sizeof(S),
                            by_channels ? 0 : kLanes<S> - 1)) {}

  int width() const { return by_channels ? kLanes<S> : 1; }  // of a block
  int64_t items() const { return blocks.count * tiling.count(); }
  // Vectors of a row of a tile.
  int64_t row_vectors(const Tile& tile) const {
    return by_channels ? tile.columns : ceil_div(tile.columns, kLanes<S>);
  }
  int64_t vectors(const Tile& tile) const { return tile.images * tile.rows * row_vectors(tile); }
  int64_t most_vectors() const {
    return tiling.images.largest() * tiling.largest_rows() *
           (by_channels ? tiling.largest_columns() : ceil_div(tiling.largest_columns(), kLanes<S>));
  }
  // Vectors read, but do not use, what lies beyond a tile's columns.
  void clear(S* packed) const {
    for (int64_t i = 0; i < layout.elements(tiling); ++i) packed[i] = 0;
  }
  // Where they begin, row by row.
  void places(const Tile& tile, int32_t* offsets) const {
    place_vectors(tile, row_vectors(tile), offsets, nullptr);
  }
  // The same, but whole ones first; returns how many these are.
  int64_t places_by_kind(const Tile& tile, int32_t* offsets) const {
    const int64_t whole = by_channels ? tile.columns : tile.columns / kLanes<S>;
    const int64_t count = tile.images * tile.rows * whole;
    place_vectors(tile, whole, offsets, offsets + count);
    return count;
  }

 private:
  // Of each row the first `whole` and, where there are more, the last.
  void place_vectors(const Tile& tile, int64_t whole, int32_t* offsets, int32_t* last) const {
    const int64_t step = by_channels ? layout.column : kLanes<S>;
    for (int64_t n = 0; n < tile.images; ++n) {
      for (int64_t y = 0; y < tile.rows; ++y) {
        const int64_t row = n * layout.image + y * layout.row;
        for (int64_t v = 0; v < whole; ++v) *offsets++ = static_cast<int32_t>(row + v * step);
        if (whole < row_vectors(tile)) *last++ = static_cast<int32_t>(row + whole * step);
      }
    }
  }
};

// Calls body(first vector, n, y) for a tile's rows.
template <class S, class Body>
void for_rows(const Cut<S>& cut, const Tile& tile, const Body& body) {
  int64_t vector = 0;
  for (int64_t n = 0; n < tile.images; ++n) {
    for (int64_t y = 0; y < tile.rows; ++y, vector += cut.row_vectors(tile)) {
      body(vector, tile.n + n, tile.y + y);
    }
  }
}

// A row of sums as columns or, `by_channels`, as `channels` of each pixel; `sum` gives a vector's.
template <class T, class Value>
void store_row(T* to, const Strides& strides, bool by_channels, int64_t channels, int64_t columns,
               const Value& sum) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  const int64_t step = by_channels ? 1 : n, filled = by_channels ? channels : n;
  const int64_t lane = by_channels ? strides.c : strides.w;
  int64_t x = 0;
  const auto part = [&](int64_t count) {
    S values[n];
    store<S>(values, sum(x / step));
    store_run(to + x * strides.w, lane, count, values);
  };
  if constexpr (std::is_same_v<T, S>) {
    if (filled == n && lane == 1) {
      for (; x + step <= columns; x += step) store<S>(to + x * strides.w, sum(x / step));
    }
  }
  for (; x + step <= columns; x += step) part(filled);
  if (x < columns) part(columns - x);
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
  const Source<T> weight = problem.weight.at(0, 0, problem.y.first_tap, problem.x.first_tap);

  parallel_for(cut.items(), 1, [&](int64_t begin, int64_t end) {
    Workspace<S> packed(layout.elements(cut.tiling));
    cut.clear(packed.data());
    Workspace<S> factors(taps * cut.width());
    Workspace<S> sums(cut.most_vectors() * n);
    Workspace<int32_t> outer(cut.most_vectors());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / cut.tiling.count() * cut.width();
      const int64_t channels = least<int64_t>(cut.width(), problem.groups - first);
      const Tile tile = cut.tiling.outputs(item % cut.tiling.count());
      for (int64_t c = 0; c < cut.width(); ++c) {
        const T* filter = weight.data + (first + c) * problem.weight_group;
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t r = tap / problem.x.taps, s = tap % problem.x.taps;
          factors[tap * cut.width() + c] =
              c < channels ? static_cast<S>(filter[r * problem.y.tap_step * weight.strides.h +
                                                   s * problem.x.tap_step * weight.strides.w])
                           : S(0);
        }
      }
      const int64_t count = cut.vectors(tile);
      reader.pack(layout, tile, first, channels, packed.data());
      cut.places(tile, outer.data());
      const auto multiply_tile =
          cut.by_channels ? multiply<Factors::vectors, S> : multiply<Factors::numbers, S>;
      multiply_tile(packed.data(), outer.data(), count, inner.data(), taps, factors.data(), n,
                    sums.data(), false);
      Vector<S> bias = load_bias<T>(epilogue, first, static_cast<int>(channels));
      if (!cut.by_channels) bias = bias[0] - Vector<S>{};
      for_rows(cut, tile, [&](int64_t vector, int64_t image, int64_t y) {
        const S* row = sums.data() + vector * n;
        store_row(target + strides.at(image, first, y, tile.x), strides, cut.by_channels, channels,
                  tile.columns, [&](int64_t i) {
                    const Vector<S> value = load(row + i * n) + bias;
                    return epilogue.relu ? relu<S>(value) : value;
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

// A row of gradients, in vectors: whole ones to `to`, a last part to `end`, which move on.
template <class T>
void load_row(Sum<T>*& to, Sum<T>*& end, const Source<T>& row, bool by_channels, int64_t channels,
              int64_t columns) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  const int64_t step = by_channels ? 1 : n;
  for (int64_t x = 0; x < columns; x += step) {
    S*& place = x + step <= columns ? to : end;
    const int64_t filled = by_channels ? channels : least(step, columns - x);
    store<S>(place, load_run(filled, row.at(0, 0, 0, x), by_channels ? &Strides::c : &Strides::w));
    place += n;
  }
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
  const Source<T>& source = gradient.source;

  parallel_for(cut.blocks.count, 1, [&](int64_t begin, int64_t end) {
    Workspace<S> packed(layout.elements(cut.tiling));
    cut.clear(packed.data());
    Workspace<S> factors(cut.most_vectors() * n);
    Workspace<S> sums(taps * n);
    Workspace<double> totals(taps * cut.width());
    Workspace<int32_t> inner(cut.most_vectors());
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * cut.width();
      const int64_t channels = least<int64_t>(cut.width(), problem.C - first);
      for (int64_t i = 0; i < taps * cut.width(); ++i) totals[i] = 0;
      for (int64_t index = 0; index < cut.tiling.count(); ++index) {
        const Tile tile = cut.tiling.outputs(index);
        input.pack(layout, tile, first, channels, packed.data());
        const int64_t whole = cut.places_by_kind(tile, inner.data());
        S* to = factors.data();
        S* end = to + whole * n;
        for_rows(cut, tile, [&](int64_t, int64_t image, int64_t y) {
          load_row(to, end, source.at(image, first, y, tile.x), cut.by_channels, channels,
                   tile.columns);
        });
        multiply<Factors::vectors>(packed.data(), outer.data(), taps, inner.data(), whole,
                                   factors.data(), n, sums.data(), false);
        multiply<Factors::part>(packed.data(), outer.data(), taps, inner.data() + whole,
                                cut.vectors(tile) - whole, factors.data() + whole * n,
                                static_cast<int>(tile.columns % n), sums.data(), whole > 0);
        for (int64_t i = 0; i < taps * n; ++i)
          totals[i / n * cut.width() + i % cut.width()] += sums[i];
      }
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          grad_weight[problem.weight.at(first + c, 0, tap / problem.S, tap % problem.S)] =
              static_cast<T>(static_cast<S>(totals[tap * cut.width() + c]));
        }
      }
    }
  });
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
