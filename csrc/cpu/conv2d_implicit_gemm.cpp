// Convolution as a matrix product whose im2col matrix is never stored.
//
// A tile of the source (some images x all channels of a block x some rows and columns, with its
// halo) is copied into cache once: zeros where the padding is, converted to the type of sums, and
// sorted by (position modulo stride), so that neighbours in the output are neighbours in the tile
// whatever the stride. Then
//
//     im2col[pixel, tap] = tile[pixel_offset[pixel] + tap_offset[tap]],   tap = (channel, r, s)
//
// and all three passes are one micro-kernel (microkernel.h) with the two tables in either role:
//
//     fprop  output[pixel, k]    = sum over taps    of im2col[pixel, tap] * weight[tap, k]
//     dgrad  the same, from grad_output and the weight transposed; with stride 1 that is a
//            correlation with a flipped filter, else one for each residue (h, w) modulo stride
//     wgrad  grad_weight[tap, k] = sum over pixels of im2col[pixel, tap] * grad_output[pixel, k]
//
// The filters k lie along the vectors, packed once a call (wgrad: once a tile). Tiles in which
// channels lie closest (channels_last) keep that order, others have columns innermost.
//
// Cost: 2 * N * P * Q * K * C / groups * R * S FLOP; the copy into the tile is one load and store
// per source element and block of kFilterVectors vectors of filters: bound by the multiply-adds,
// but for few filters a group (K / groups below a vector's width wastes lanes).
//
// Sums run over at most kDepth products in a register, then add up in memory in a fixed order:
// the bits depend on the problem and the instruction set, never on the number of threads.
#include "../parallel.h"
#include "isa.h"
#include "microkernel.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

// Products summed in a register; a panel of this depth stays in the level 1 cache.
constexpr int kDepth = 128;
// Pixels of a tile, at most, and the tile's size in bytes, where more than one channel fits.
constexpr int kTilePixels = 256;
constexpr int64_t kTileBytes = 256 << 10;
// Vectors of filters that share a tile: with kTilePixels they bound the sums to 192 KiB.
constexpr int kFilterVectors = 4 * kMaxVectors;
// Pieces of work that a problem is cut into, where it is large enough.
constexpr int kPieces = 16;
constexpr int64_t kPartialBytes = 32 << 20;

int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }

// One spatial axis of a correlation: output i and tap t meet at source position
// i * step + start + t * delta. The taps are t = first_tap + u * tap_step of the filter.
//
// In a tile, source positions are sorted into slots by their residue modulo step; within a slot
// they are `step` apart and so follow each other as outputs do. Only residues that a tap reads
// have a slot.
struct Axis {
  int outputs, sources, taps;
  int step, start, delta;
  int first_tap, tap_step;

  int64_t position(int u) const { return start + static_cast<int64_t>(u) * delta; }
  int period() const { return step / gcd(step, delta < 0 ? -delta : delta); }
  int slots() const { return least(taps, period()); }
  int slot(int u) const { return u % period(); }
  int64_t residue(int slot) const {
    return position(slot) - floor_div(position(slot), step) * step;
  }
  int64_t shift(int u) const { return floor_div(position(u), step); }
  int64_t least_shift() const { return least(shift(0), shift(taps - 1)); }
  // Positions of a slot that `count` neighbouring outputs read.
  int64_t extent(int64_t count) const {
    return count + greatest(shift(0), shift(taps - 1)) - least_shift();
  }
  // The source position at place `place` of a slot, in a tile that begins with output `first`.
  int64_t source(int64_t first, int slot, int64_t place) const {
    return (first + least_shift() + place) * step + residue(slot);
  }
};

Axis forward_axis(int outputs, int sources, int taps, int stride, int pad, int dilation) {
  return {outputs, sources, taps, stride, -pad, dilation, 0, 1};
}

// The input positions h = residue + i * stride as outputs of a correlation over grad_output:
// tap r of the filter contributes where h + pad - r * dilation is a multiple of stride.
Axis backward_axis(int residue, int inputs, int outputs, int taps, int stride, int pad,
                   int dilation) {
  const int common = gcd(stride, dilation);
  Axis axis{static_cast<int>(ceil_div(inputs - residue, stride)),
            outputs,
            0,
            1,
            0,
            -(dilation / common),
            0,
            stride / common};
  while (axis.first_tap < taps && (residue + pad - axis.first_tap * dilation) % stride != 0) {
    ++axis.first_tap;
  }
  if (axis.first_tap < taps) {
    axis.taps = (taps - 1 - axis.first_tap) / axis.tap_step + 1;
    axis.start = (residue + pad - axis.first_tap * dilation) / stride;
  }
  return axis;
}

// Some images x rows x columns of the output.
struct Tile {
  int64_t n, images, y, rows, x, columns;

  int64_t pixels() const { return images * rows * columns; }
};

// How the output is cut into tiles: whole images where several fit, else rows of one image, else
// a part of one row.
struct Tiling {
  Partition images, rows, columns;

  static Tiling make(int64_t N, int64_t rows, int64_t columns, int64_t pixels) {
    return {Partition(N, greatest<int64_t>(1, pixels / (rows * columns))),
            Partition(rows, greatest<int64_t>(1, pixels / columns)), Partition(columns, pixels)};
  }
  int64_t count() const { return images.count * rows.count * columns.count; }
  int64_t largest() const { return images.largest() * rows.largest() * columns.largest(); }
  Tile tile(int64_t index) const {
    const int64_t column = index % columns.count;
    const int64_t row = index / columns.count % rows.count;
    const int64_t image = index / columns.count / rows.count;
    return {images.begin(image), images.size(image),    rows.begin(row),
            rows.size(row),      columns.begin(column), columns.size(column)};
  }
};

// Where the elements of the source lie in a packed tile.
struct Layout {
  Axis y, x;
  int64_t rows, columns;  // places of a slot
  bool channels_last;
  int64_t channels;                                     // of a block
  int64_t image, channel, slot_y, slot_x, row, column;  // distances

  static Layout make(const Axis& y, const Axis& x, const Tiling& tiling, int64_t channels,
                     bool channels_last, int64_t element_bytes) {
    Layout layout{y,
                  x,
                  y.extent(tiling.rows.largest()),
                  x.extent(tiling.columns.largest()),
                  channels_last,
                  0,
                  0,
                  0,
                  0,
                  0,
                  0,
                  0};
    const int64_t plane = layout.rows * layout.columns * y.slots() * x.slots();
    const int64_t images = tiling.images.largest();
    layout.channels =
        Partition(channels,
                  clamp<int64_t>(kTileBytes / (plane * images * element_bytes), 1, channels))
            .largest();
    layout.channel = channels_last ? 1 : spread(plane);
    layout.column = channels_last ? layout.channels : 1;
    layout.row = layout.columns * layout.column;
    layout.slot_x = layout.rows * layout.row;
    layout.slot_y = x.slots() * layout.slot_x;
    layout.image = channels_last ? y.slots() * layout.slot_y : layout.channels * layout.channel;
    return layout;
  }
  int64_t elements(const Tiling& tiling) const { return tiling.images.largest() * image; }
  int taps() const { return y.taps * x.taps; }

  // An odd number of cache lines, so that channels do not compete for the same cache sets.
  static int64_t spread(int64_t plane) { return plane < 256 ? plane : (plane / 16 | 1) * 16 + 16; }

  // Offsets of the block's taps, in the order channel, r, s.
  void tap_offsets(int32_t* offsets) const {
    for (int64_t c = 0; c < channels; ++c) {
      for (int r = 0; r < y.taps; ++r) {
        for (int s = 0; s < x.taps; ++s) {
          *offsets++ = static_cast<int32_t>(
              c * channel + y.slot(r) * slot_y + (y.shift(r) - y.least_shift()) * row +
              x.slot(s) * slot_x + (x.shift(s) - x.least_shift()) * column);
        }
      }
    }
  }
  // Offsets of a tile's pixels, in the order image, row, column.
  void pixel_offsets(const Tile& tile, int32_t* offsets) const {
    for (int64_t n = 0; n < tile.images; ++n) {
      for (int64_t p = 0; p < tile.rows; ++p) {
        for (int64_t q = 0; q < tile.columns; ++q) {
          *offsets++ = static_cast<int32_t>(n * image + p * row + q * column);
        }
      }
    }
  }
};

// One line of a slot: `count` channels of each place, or each place of one channel.
template <class T>
void pack_line(const Layout& layout, const Tile& tile, int slot, const Source<T>& line,
               int64_t count, Sum<T>* to) {
  const Axis& x = layout.x;
  const int64_t places = x.extent(tile.columns);
  const int64_t first = x.source(tile.x, slot, 0);
  const int64_t begin = clamp<int64_t>(ceil_div(-first, x.step), 0, places);
  const int64_t end = clamp<int64_t>(ceil_div(x.sources - first, x.step), begin, places);
  const auto zero = [&](int64_t from, int64_t until) {
    for (int64_t i = from * layout.column; i < until * layout.column; ++i) to[i] = 0;
  };
  zero(0, begin);
  zero(end, places);
  if (!layout.channels_last) {
    if (begin < end) {
      copy_run(to + begin, end - begin, line.at(0, 0, 0, first + begin * x.step), &Strides::w,
               x.step);
    }
    return;
  }
  for (int64_t place = begin; place < end; ++place) {
    copy_run(to + place * layout.column, count, line.at(0, 0, 0, first + place * x.step),
             &Strides::c);
  }
}

// Copies a tile of `count` channels; the source begins with the first of them.
template <class T>
void pack_tile(const Layout& layout, const Tile& tile, const Source<T>& source, int64_t count,
               Sum<T>* packed) {
  const int64_t lines = layout.channels_last ? 1 : count;
  const int64_t places = layout.y.extent(tile.rows);
  const int64_t width = layout.x.extent(tile.columns) * layout.column;
  for (int64_t n = 0; n < tile.images; ++n) {
    for (int64_t c = 0; c < lines; ++c) {
      for (int slot_y = 0; slot_y < layout.y.slots(); ++slot_y) {
        for (int64_t place = 0; place < places; ++place) {
          const int64_t h = layout.y.source(tile.y, slot_y, place);
          const bool inside = h >= 0 && h < layout.y.sources;
          for (int slot_x = 0; slot_x < layout.x.slots(); ++slot_x) {
            Sum<T>* to = packed + n * layout.image + c * layout.channel + slot_y * layout.slot_y +
                         slot_x * layout.slot_x + place * layout.row;
            if (inside) {
              pack_line(layout, tile, slot_x, source.at(tile.n + n, c, h, 0), count, to);
            } else {
              for (int64_t i = 0; i < width; ++i) to[i] = 0;
            }
          }
        }
      }
    }
  }
}

// How the filters of a group are cut into panels of up to kMaxVectors vectors, and these into
// ranges that share a tile. A panel of depth d that begins with vector v lies at v * lanes * d.
struct Panels {
  int filters, lanes;
  Partition panels, ranges;

  Panels(int filters, int lanes)
      : filters(filters),
        lanes(lanes),
        panels(ceil_div(filters, lanes), kMaxVectors),
        ranges(panels.count, kFilterVectors / kMaxVectors) {}

  int64_t padded() const { return panels.total * lanes; }
  // The first filter of a panel, and of a range.
  int64_t panel_begin(int64_t panel) const { return panels.begin(panel) * lanes; }
  int64_t range_begin(int64_t range) const { return panel_begin(ranges.begin(range)); }
  int64_t range_padded(int64_t range) const { return range_begin(range + 1) - range_begin(range); }
  int64_t largest_range() const { return ranges.largest() * kMaxVectors * lanes; }
  // How many of the lanes from `filter` on are filters.
  int filled(int64_t filter) const {
    return static_cast<int>(clamp<int64_t>(filters - filter, 0, lanes));
  }
};

// target[n, f, y, x] = sum over channels c and taps of weight * source: fprop, or one residue of
// dgrad. Sizes are those of a group.
template <class T>
struct Correlation {
  int64_t N, groups, channels, filters;
  Axis y, x;
  Source<T> source;
  Source<T> weight;      // n: filters, c: channels, h and w: taps
  int64_t weight_group;  // distance between groups
  T* target;
  Strides target_strides;
  Epilogue epilogue;
};

// The weights of all groups: [group][panel][channel][r][s][filter of the panel].
template <class T>
void pack_weights(const Correlation<T>& problem, const Panels& panels, Sum<T>* packed) {
  const Strides& strides = problem.weight.strides;
  const int64_t step_h = problem.y.tap_step, step_w = problem.x.tap_step;
  const bool joined = strides.h * step_h == strides.w * step_w * problem.x.taps;
  const int64_t runs = joined ? 1 : problem.y.taps;
  const int64_t length = joined ? problem.y.taps * problem.x.taps : problem.x.taps;
  Source<T> weight = problem.weight;
  weight.strides.w *= step_w;
  const int64_t depth = problem.channels * runs * length;
  const int64_t lines = panels.panels.total * problem.channels;
  parallel_for(problem.groups * lines, 64, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / lines, vector = item % lines / problem.channels;
      const int64_t c = item % problem.channels;
      int64_t panel = panels.panels.count - 1;
      while (panels.panels.begin(panel) > vector) --panel;
      const int64_t pitch = panels.panels.size(panel) * panels.lanes;
      const int64_t filter = vector * panels.lanes;
      Sum<T>* to = packed + (group * panels.padded() + panels.panel_begin(panel)) * depth +
                   c * runs * length * pitch + filter - panels.panel_begin(panel);
      for (int64_t r = 0; r < runs; ++r) {
        Source<T> line = weight.at(filter, c, problem.y.first_tap + r * step_h, 0);
        line.data += group * problem.weight_group + problem.x.first_tap * problem.weight.strides.w;
        pack_lanes(to + r * length * pitch, pitch, length, panels.filled(filter), line, &Strides::w,
                   &Strides::n);
      }
    }
  });
}

template <class T>
Vector<T> relu(Vector<T> values) {
  return values < 0 ? Vector<T>{} : values;
}

template <class T>
void store_run(T* __restrict to, int64_t stride, int64_t count, const Sum<T>* __restrict values) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i * stride] = static_cast<T>(values[i]);
  }
}

// Stores `count` pixels x `filled` filters (one vector of them) from sums[pixel * pitch + filter].
template <class T>
void store_lanes(const Sum<T>* sums, int64_t pitch, int64_t count, int filled, const T* bias,
                 const Epilogue& epilogue, T* to, int64_t pixel_stride, int64_t filter_stride) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  Vector<S> added = {};
  for (int f = 0; f < filled && bias != nullptr; ++f) {
    added[f] = static_cast<S>(bias[f * epilogue.bias_stride]);
  }
  for (int64_t first = 0; first < count; first += n) {
    const int64_t pixels = least<int64_t>(n, count - first);
    Vector<S> square[n] = {};
    for (int64_t i = 0; i < pixels; ++i) {
      square[i] = load(sums + (first + i) * pitch) + added;
      if (epilogue.relu) square[i] = relu<S>(square[i]);
    }
    S values[n];
    if (filter_stride == 1) {
      for (int64_t i = 0; i < pixels; ++i) {
        store<S>(values, square[i]);
        store_run(to + (first + i) * pixel_stride, 1, filled, values);
      }
      continue;
    }
    transpose<S>(square);
    for (int f = 0; f < filled; ++f) {
      store<S>(values, square[f]);
      T* line = to + f * filter_stride + first * pixel_stride;
      if (pixels == n) {
        store_run(line, pixel_stride, n, values);
      } else {
        store_run(line, pixel_stride, pixels, values);
      }
    }
  }
}

// Bias, ReLU and the way out for a tile's sums over the filters of a range.
template <class T>
void store_tile(const Correlation<T>& problem, const Panels& panels, const Tile& tile,
                int64_t group, int64_t range, const Sum<T>* sums) {
  const Strides& strides = problem.target_strides;
  const int64_t pitch = panels.range_padded(range);
  const int64_t first = panels.range_begin(range);
  // Rows that follow each other without a gap are stored as one.
  const bool joined = strides.h == tile.columns * strides.w;
  const int64_t runs = tile.images * (joined ? 1 : tile.rows);
  const int64_t length = tile.pixels() / runs;
  const T* bias = static_cast<const T*>(problem.epilogue.bias);
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t n = joined ? run : run / tile.rows;
    const int64_t y = joined ? 0 : run % tile.rows;
    for (int64_t f = first; f < first + pitch && f < panels.filters; f += panels.lanes) {
      const int64_t filter = group * panels.filters + f;
      store_lanes(sums + run * length * pitch + f - first, pitch, length, panels.filled(f),
                  bias == nullptr ? nullptr : bias + filter * problem.epilogue.bias_stride,
                  problem.epilogue,
                  problem.target + strides.at(tile.n + n, filter, tile.y + y, tile.x), strides.w,
                  strides.c);
    }
  }
}

template <class T>
void correlate(const Correlation<T>& problem) {
  using S = Sum<T>;
  const Panels panels(static_cast<int>(problem.filters), kLanes<S>);
  const int64_t pixels = problem.N * problem.y.outputs * problem.x.outputs;
  const Tiling tiling =
      Tiling::make(problem.N, problem.y.outputs, problem.x.outputs,
                   clamp<int64_t>(pixels * problem.groups * panels.ranges.count / kPieces,
                                  8 * kRows, kTilePixels));
  const int64_t depth = problem.channels * problem.y.taps * problem.x.taps;
  const Strides& strides = problem.source.strides;
  Workspace<S> weights(problem.groups * panels.padded() * depth);
  Layout layout{};
  if (depth > 0) {
    pack_weights(problem, panels, weights.data());
    layout = Layout::make(problem.y, problem.x, tiling, problem.channels,
                          strides.c == 1 && strides.w != 1, sizeof(S));
  }
  const int64_t taps = problem.y.taps * problem.x.taps;
  Workspace<int32_t> tap_offsets(layout.channels * taps);
  if (depth > 0) layout.tap_offsets(tap_offsets.data());

  const int64_t items = tiling.count() * panels.ranges.count;
  parallel_for(problem.groups * items, 1, [&](int64_t begin, int64_t end) {
    Workspace<S> packed(depth == 0 ? 0 : layout.elements(tiling));
    Workspace<S> sums(tiling.largest() * panels.largest_range());
    Workspace<int32_t> pixel_offsets(tiling.largest());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / items, range = item % items / tiling.count();
      const Tile tile = tiling.tile(item % tiling.count());
      const int64_t pitch = panels.range_padded(range);
      if (depth == 0) {
        for (int64_t i = 0; i < tile.pixels() * pitch; ++i) sums[i] = 0;
      } else {
        layout.pixel_offsets(tile, pixel_offsets.data());
      }
      for (int64_t c = 0; c < problem.channels && taps > 0; c += layout.channels) {
        const int64_t count = least(layout.channels, problem.channels - c);
        pack_tile(layout, tile, problem.source.at(0, group * problem.channels + c, 0, 0), count,
                  packed.data());
        for (int64_t d = 0; d < count * taps; d += kDepth) {
          for (int64_t i = 0; i < panels.ranges.size(range); ++i) {
            const int64_t panel = panels.ranges.begin(range) + i;
            const int64_t vectors = panels.panels.size(panel), first = panels.panel_begin(panel);
            multiply(vectors, packed.data(), pixel_offsets.data(), tile.pixels(),
                     tap_offsets.data() + d, least<int64_t>(kDepth, count * taps - d),
                     weights.data() + (group * panels.padded() + first) * depth +
                         (c * taps + d) * vectors * panels.lanes,
                     sums.data() + first - panels.range_begin(range), pitch, c + d > 0);
          }
        }
      }
      store_tile(problem, panels, tile, group, range, sums.data());
    }
  });
}

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, Stream) {
  if (problem.N == 0) return;
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t filters = problem.group_filters();
    correlate<T>({problem.N,
                  problem.groups,
                  problem.group_channels(),
                  filters,
                  forward_axis(problem.P, problem.H, problem.R, problem.stride_h, problem.pad_top,
                               problem.dilation_h),
                  forward_axis(problem.Q, problem.W, problem.S, problem.stride_w, problem.pad_left,
                               problem.dilation_w),
                  {static_cast<const T*>(input), problem.input, nullptr, {}},
                  {static_cast<const T*>(weight), problem.weight, nullptr, {}},
                  filters * problem.weight.n,
                  static_cast<T*>(output),
                  problem.output,
                  epilogue});
  });
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, Stream) {
  if (problem.N == 0 || problem.C == 0) return;
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const Strides& filter = problem.weight;
    const Strides& input = problem.input;
    const Strides spread{input.n, input.c, input.h * problem.stride_h, input.w * problem.stride_w};
    const int64_t filters = problem.group_filters();
    for (int y = 0; y < least(problem.stride_h, problem.H); ++y) {
      for (int x = 0; x < least(problem.stride_w, problem.W); ++x) {
        correlate<T>(
            {problem.N,
             problem.groups,
             filters,
             problem.group_channels(),
             backward_axis(y, problem.H, problem.P, problem.R, problem.stride_h, problem.pad_top,
                           problem.dilation_h),
             backward_axis(x, problem.W, problem.Q, problem.S, problem.stride_w, problem.pad_left,
                           problem.dilation_w),
             {static_cast<const T*>(grad_output), problem.output,
              static_cast<const T*>(relu_output), problem.relu},
             {static_cast<const T*>(weight), {filter.c, filter.n, filter.h, filter.w}, nullptr, {}},
             filters * filter.n,
             static_cast<T*>(grad_input) + input.at(0, 0, y, x),
             spread,
             {nullptr, 0, false}});
      }
    }
  });
}

// The gradients of a tile's pixels by the filters of a range: a panel after the other.
template <class T>
void pack_gradients(const Tile& tile, const Panels& panels, int64_t range,
                    const Source<T>& gradient, Sum<T>* packed) {
  const int64_t rows = gradient.joined(tile.columns) ? 1 : tile.rows;
  const int64_t length = tile.rows * tile.columns / rows;
  for (int64_t i = 0; i < panels.ranges.size(range); ++i) {
    const int64_t panel = panels.ranges.begin(range) + i;
    const int64_t pitch = panels.panels.size(panel) * panels.lanes;
    Sum<T>* to = packed + (panels.panel_begin(panel) - panels.range_begin(range)) * tile.pixels();
    for (int64_t run = 0; run < tile.images * rows; ++run) {
      for (int64_t lane = 0; lane < pitch; lane += panels.lanes) {
        const int64_t filter = panels.panel_begin(panel) + lane;
        pack_lanes(to + run * length * pitch + lane, pitch, length, panels.filled(filter),
                   gradient.at(tile.n + run / rows, filter, tile.y + run % rows, tile.x),
                   &Strides::w, &Strides::c);
      }
    }
  }
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

template <class T>
void wgrad(const Conv2dProblem& problem, const Source<T>& gradient, const Source<T>& input,
           T* grad_weight) {
  using S = Sum<T>;
  const Tiling tiling = Tiling::make(problem.N, problem.P, problem.Q, kTilePixels);
  const Panels panels(problem.group_filters(), kLanes<S>);
  if (problem.N == 0) return add_partials<T>(problem, panels, 0, nullptr, grad_weight);
  const int64_t channels = problem.group_channels();
  const Layout layout =
      Layout::make(forward_axis(problem.P, problem.H, problem.R, problem.stride_h, problem.pad_top,
                                problem.dilation_h),
                   forward_axis(problem.Q, problem.W, problem.S, problem.stride_w, problem.pad_left,
                                problem.dilation_w),
                   tiling, channels, input.strides.c == 1 && input.strides.w != 1, sizeof(S));
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
        const Tile tile = tiling.tile(index);
        layout.pixel_offsets(tile, pixel_offsets.data());
        pack_tile(layout, tile, input.at(0, c, 0, 0), blocks.size(block), packed.data());
        pack_gradients(tile, panels, range, gradient.at(0, group * panels.filters, 0, 0),
                       gradients.data());
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

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, void*, Stream) {
  if (problem.C == 0) return;
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    wgrad<T>(problem,
             {static_cast<const T*>(grad_output), problem.output,
              static_cast<const T*>(relu_output), problem.relu},
             {static_cast<const T*>(input), problem.input, nullptr, {}},
             static_cast<T*>(grad_weight));
  });
}

// Elements of a plane that are summed at a time.
constexpr int64_t kRun = 512;

// The sum of an image's plane: of its runs, each of which is the sum of vector lanes.
template <class T>
double plane_sum(const Conv2dProblem& problem, const Source<T>& plane, Sum<T>* line) {
  constexpr int n = kLanes<double>;
  const int64_t rows = plane.joined(problem.Q) ? 1 : problem.P;
  const int64_t length = static_cast<int64_t>(problem.P) * problem.Q / rows;
  double total = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < length; first += kRun) {
      const int64_t count = least(kRun, length - first);
      copy_run(line, count, plane.at(0, 0, row, first), &Strides::w);
      for (int64_t i = count; i < ceil_div(count, n) * n; ++i) line[i] = 0;
      Vector<double> lanes = {};
      for (int64_t i = 0; i < count; i += n) {
        Vector<double> values;
        for (int lane = 0; lane < n; ++lane) values[lane] = static_cast<double>(line[i + lane]);
        lanes += values;
      }
      for (int lane = 0; lane < n; ++lane) total += lanes[lane];
    }
  }
  return total;
}

// The sums of all planes of an image whose channels lie closest, `pitch` apart: of rows as well.
template <class T>
void image_sums(const Conv2dProblem& problem, const Source<T>& image, Sum<T>* line, double* rows,
                double* totals, int64_t pitch) {
  for (int k = 0; k < problem.K; ++k) totals[k * pitch] = 0;
  for (int p = 0; p < problem.P; ++p) {
    for (int k = 0; k < problem.K; ++k) rows[k] = 0;
    for (int q = 0; q < problem.Q; ++q) {
      copy_run(line, problem.K, image.at(0, 0, p, q), &Strides::c);
      for (int k = 0; k < problem.K; ++k) rows[k] += static_cast<double>(line[k]);
    }
    for (int k = 0; k < problem.K; ++k) totals[k * pitch] += rows[k];
  }
}

double pairwise_sum(const double* values, int64_t count) {
  if (count == 0) return 0;
  if (count == 1) return values[0];
  return pairwise_sum(values, count / 2) + pairwise_sum(values + count / 2, count - count / 2);
}

void bgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, void* grad_bias, Stream) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const Source<T> gradient{static_cast<const T*>(grad_output), problem.output,
                             static_cast<const T*>(relu_output), problem.relu};
    const int64_t K = problem.K, N = problem.N;
    Workspace<double> planes(K * N);
    if (problem.output.c == 1 && problem.output.w != 1) {
      parallel_for(N, 1, [&](int64_t begin, int64_t end) {
        Workspace<Sum<T>> line(K);
        Workspace<double> rows(K);
        for (int64_t n = begin; n < end; ++n) {
          image_sums(problem, gradient.at(n, 0, 0, 0), line.data(), rows.data(), planes.data() + n,
                     N);
        }
      });
    } else {
      parallel_for(K * N, 16, [&](int64_t begin, int64_t end) {
        Workspace<Sum<T>> line(kRun);
        for (int64_t item = begin; item < end; ++item) {
          planes[item] = plane_sum(problem, gradient.at(item % N, item / N, 0, 0), line.data());
        }
      });
    }
    for (int64_t k = 0; k < K; ++k) {
      const double sum = pairwise_sum(planes.data() + k * N, N);
      static_cast<T*>(grad_bias)[k] = static_cast<T>(static_cast<Sum<T>>(sum));
    }
  });
}

}  // namespace

Conv2dAlgorithm conv2d_implicit_gemm() {
  return {"implicit_gemm", runs_everything<Conv2dProblem>, fprop, dgrad, wgrad, bgrad};
}

}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
