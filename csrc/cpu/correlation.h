// What the convolutions of this folder share: how a problem is cut into tiles, how a tile's sources
// and a range of filters are packed, how its sums leave.
//
// A tile of the source (some images x all channels of a block x some rows and columns, with its
// halo) is copied into cache once: zeros where the padding is, converted to the type of sums, and
// sorted by (position modulo stride), so that neighbours in the output are neighbours in the tile
// whatever the stride. Tiles in which channels lie closest (channels_last) keep that order, others
// have columns innermost.
//
// An algorithm computes sums[pixel][filter] of a tile for a range of filters. Where its source
// comes from is a Reader's business, where the sums go a Writer's:
//
//     Reader   TensorReader: a tensor; PooledReader (pooled.h): a pooled gradient, spread
//              over its windows tile by tile
//     Writer   TensorWriter: bias, ReLU, the tensor; PoolWriter: bias, ReLU, pool, the tensor
//
// so that the un-pooled output of a fused convolution, and its gradient, exist in cache alone.
#pragma once

#include <limits>

#include "../parallel.h"
#include "lanes.h"
#include "microkernel.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

// Pixels of a tile, at most, and the tile's size in bytes, where more than one channel fits.
constexpr int kTilePixels = 256;
constexpr int64_t kTileBytes = 256 << 10;
// Vectors of filters that share a tile: with kTilePixels they bound the sums to 192 KiB.
constexpr int kFilterVectors = 4 * kMaxVectors;
// Pieces of work that a problem is cut into, where it is large enough.
constexpr int kPieces = 16;

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
  // The first source position that output i reads, and whether all positions that any output reads
  // lie within the source.
  int64_t begin(int64_t i) const { return i * step + least(position(0), position(taps - 1)); }
  bool inside() const {
    return begin(0) >= 0 &&
           greatest(position(0), position(taps - 1)) + (outputs - 1) * int64_t{step} < sources;
  }
  // The same outputs and taps as neighbours.
  Axis close() const { return {outputs, sources, taps, 1, 0, delta, first_tap, tap_step}; }
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

// Some images x rows x columns.
struct Tile {
  int64_t n, images, y, rows, x, columns;

  int64_t pixels() const { return images * rows * columns; }
};

// What a result covers of the convolution's outputs along an axis: one of them, or a pool's window.
struct Cover {
  int64_t extent = 1, stride = 1, pad = 0;

  int64_t begin(int64_t result) const { return result * stride - pad; }
  int64_t of(int64_t results) const { return (results - 1) * stride + extent; }
  // The most results, but one at least, that cover no more than so many outputs.
  int64_t fitting(int64_t outputs) const {
    return greatest<int64_t>(1, (outputs - extent) / stride + 1);
  }
};

// How the results, N x rows x columns, are cut into tiles: whole images where several fit, else
// rows of one image, else a part of one row.
struct Tiling {
  Cover y, x;
  Partition images, rows, columns;

  // With at most so many of the convolution's outputs to a tile.
  static Tiling make(int64_t N, int64_t rows, int64_t columns, int64_t pixels, Cover y = {},
                     Cover x = {}) {
    const int64_t row = x.of(columns);
    return {y, x, Partition(N, greatest<int64_t>(1, pixels / (y.of(rows) * row))),
            Partition(rows, y.fitting(pixels / row)), Partition(columns, x.fitting(pixels))};
  }
  int64_t count() const { return images.count * rows.count * columns.count; }
  // Whether all that results cover are outputs, of so many rows and columns: a pool's padding is
  // not.
  bool within(int64_t output_rows, int64_t output_columns) const {
    const auto inside = [](const Cover& cover, const Partition& results, int64_t outputs) {
      return cover.begin(0) >= 0 && cover.begin(results.total - 1) + cover.extent <= outputs;
    };
    return inside(y, rows, output_rows) && inside(x, columns, output_columns);
  }
  int64_t largest_rows() const { return y.of(rows.largest()); }
  int64_t largest_columns() const { return x.of(columns.largest()); }
  int64_t largest() const { return images.largest() * largest_rows() * largest_columns(); }

  // The results of a tile.
  Tile results(int64_t index) const {
    const int64_t column = index % columns.count;
    const int64_t row = index / columns.count % rows.count;
    const int64_t image = index / columns.count / rows.count;
    return {images.begin(image), images.size(image),    rows.begin(row),
            rows.size(row),      columns.begin(column), columns.size(column)};
  }
  // The convolution's outputs under them.
  Tile outputs(const Tile& of) const {
    return {of.n, of.images, y.begin(of.y), y.of(of.rows), x.begin(of.x), x.of(of.columns)};
  }
  Tile outputs(int64_t index) const { return outputs(results(index)); }
};

// Where the elements of the source lie in a packed tile.
struct Layout {
  Axis y, x;
  int64_t rows, columns;  // places of a slot
  bool channels_last;
  int64_t channels;                                     // of a block
  int64_t image, channel, slot_y, slot_x, row, column;  // distances

  // Of at most so many elements, where more than one channel fits. `multiple`: what channels_last
  // pads a pixel's channels to; `spare`: places that nothing is packed into, at the end of rows
  // and columns.
  static Layout make(const Axis& y, const Axis& x, const Tiling& tiling, int64_t channels,
                     bool channels_last, int multiple, int64_t elements, int spare = 0) {
    Layout layout{y,
                  x,
                  y.extent(tiling.largest_rows()) + spare,
                  x.extent(tiling.largest_columns()) + spare,
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
        Partition(channels, clamp<int64_t>(elements / (plane * images), 1, channels)).largest();
    layout.channel = channels_last ? 1 : spread(plane);
    layout.column = channels_last ? ceil_div(layout.channels, multiple) * multiple : 1;
    layout.row = layout.columns * layout.column;
    layout.slot_x = layout.rows * layout.row;
    layout.slot_y = x.slots() * layout.slot_x;
    layout.image = channels_last ? y.slots() * layout.slot_y : layout.channels * layout.channel;
    return layout;
  }
  // Of the source itself, where it need not be packed.
  static Layout in_place(const Axis& y, const Axis& x, const Strides& strides, int64_t channels) {
    Layout layout{};
    layout.y = y.close(), layout.x = x.close();
    layout.channels = channels;
    layout.image = strides.n, layout.channel = strides.c;
    layout.row = strides.h * y.step, layout.column = strides.w * x.step;
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
  // Offsets of a tile's pixels, in the order image, row, column, of which neighbours are so many
  // places apart.
  void pixel_offsets(const Tile& tile, int32_t* offsets, int step_y = 1, int step_x = 1) const {
    for (int64_t n = 0; n < tile.images; ++n) {
      for (int64_t p = 0; p < tile.rows; ++p) {
        for (int64_t q = 0; q < tile.columns; ++q) {
          *offsets++ = static_cast<int32_t>(n * image + p * step_y * row + q * step_x * column);
        }
      }
    }
  }
  // Whether 32 bits hold the offsets of all that a tile reads: of a tensor's elements they may not.
  bool fits_offsets(const Tiling& tiling) const {
    const auto reach = [](const Axis& axis, int64_t results, int64_t distance) {
      return (results + axis.extent(1)) * distance;
    };
    return tiling.images.largest() * image + channels * channel +
               reach(y, tiling.largest_rows(), row) + reach(x, tiling.largest_columns(), column) <=
           std::numeric_limits<int32_t>::max();
  }
};

// What a slot's lines have in common: the source position of their first place, and which places
// lie within the source.
struct LinePlaces {
  int64_t places, first, begin, end;

  LinePlaces(const Axis& x, const Tile& tile, int slot)
      : places(x.extent(tile.columns)),
        first(x.source(tile.x, slot, 0)),
        begin(clamp<int64_t>(ceil_div(-first, x.step), 0, places)),
        end(clamp<int64_t>(ceil_div(x.sources - first, x.step), begin, places)) {}
};

// One line of a slot: `count` channels of each place, or each place of one channel.
template <class T>
void pack_line(const Layout& layout, const LinePlaces& on_line, const Source<T>& line,
               int64_t count, Sum<T>* to) {
  const Axis& x = layout.x;
  const auto [places, first, begin, end] = on_line;
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
  constexpr int n = kLanes<Sum<T>>;
  if (layout.column % n == 0) {
    Source<T> places = line.at(0, 0, 0, first + begin * x.step);
    places.strides.w *= x.step;
    places.relu_strides.w *= x.step;
    for (int64_t c = 0; c < count && begin < end; c += n) {
      pack_lanes(to + begin * layout.column + c, layout.column, end - begin,
                 static_cast<int>(least<int64_t>(n, count - c)), places.at(0, c, 0, 0), &Strides::w,
                 &Strides::c);
    }
    return;
  }
  for (int64_t place = begin; place < end; ++place) {
    copy_run(to + place * layout.column, count, line.at(0, 0, 0, first + place * x.step),
             &Strides::c);
  }
}

// Asks for the rows of a tile, plane by plane: they come faster so than in the order in which they
// are transposed, which is a piece of each plane in turn.
template <class T>
void prefetch_planes(const Layout& layout, const Tile& tile, const Source<T>& source,
                     int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const Axis &y = layout.y, &x = layout.x;
  const int64_t h = clamp<int64_t>(y.source(tile.y, 0, 0), 0, y.sources);
  const int64_t end =
      clamp<int64_t>(y.source(tile.y, y.slots() - 1, y.extent(tile.rows)), h, y.sources);
  const int64_t w = clamp<int64_t>(x.source(tile.x, 0, 0), 0, x.sources);
  const int64_t columns =
      clamp<int64_t>(x.source(tile.x, x.slots() - 1, x.extent(tile.columns)), w, x.sources) - w;
  const bool joined = source.strides.h == columns;
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t row = h; row < (joined ? least(h + 1, end) : end); ++row) {
      const T* line = source.data + source.strides.at(0, c, row, w);
      const int64_t length = joined ? columns * (end - h) : columns;
      for (int64_t i = 0; i < length; i += kLine) __builtin_prefetch(line + i);
    }
  }
}

// Copies a tile of `count` channels; the source begins with the first of them.
template <class T>
void pack_tile(const Layout& layout, const Tile& tile, const Source<T>& source, int64_t count,
               Sum<T>* packed) {
  const int64_t lines = layout.channels_last ? 1 : count;
  const int64_t places = layout.y.extent(tile.rows);
  const int64_t width = layout.x.extent(tile.columns) * layout.column;
  if (layout.channels_last && source.strides.w == 1) {
    for (int64_t n = 0; n < tile.images; ++n) {
      prefetch_planes(layout, tile, source.at(tile.n + n, 0, 0, 0), count);
    }
  }
  for (int slot_x = 0; slot_x < layout.x.slots(); ++slot_x) {
    const LinePlaces on_line(layout.x, tile, slot_x);
    for (int slot_y = 0; slot_y < layout.y.slots(); ++slot_y) {
      const int64_t first = layout.y.source(tile.y, slot_y, 0);
      for (int64_t n = 0; n < tile.images; ++n) {
        for (int64_t c = 0; c < lines; ++c) {
          Sum<T>* to = packed + n * layout.image + c * layout.channel + slot_y * layout.slot_y +
                       slot_x * layout.slot_x;
          for (int64_t place = 0; place < places; ++place, to += layout.row) {
            const int64_t h = first + place * layout.y.step;
            if (h >= 0 && h < layout.y.sources) {
              pack_line(layout, on_line, source.at(tile.n + n, c, h, 0), count, to);
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
  int64_t panel_of(int64_t vector) const {
    int64_t panel = panels.count - 1;
    while (panels.begin(panel) > vector) --panel;
    return panel;
  }
  // How many of the lanes from `filter` on are filters.
  int filled(int64_t filter) const {
    return static_cast<int>(clamp<int64_t>(filters - filter, 0, lanes));
  }
};

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

// A tensor as a correlation's source, or as the gradient of the convolution's output.
template <class T>
struct TensorReader {
  Source<T> source;

  // How tiles of it are laid out best, and what its pack() needs there.
  bool channels_last() const { return source.strides.c == 1 && source.strides.w != 1; }
  static constexpr int kMultiple = 1;

  // Whether a product can do without a packed tile: what it reads lies close, inside, and as sums
  // do, and taps are as far apart as outputs.
  bool in_place(const Axis& y, const Axis& x) const {
    return std::is_same_v<T, Sum<T>> && source.relu == nullptr && channels_last() && y.inside() &&
           x.inside() && (y.step == 1 || y.taps == 1) && (x.step == 1 || x.taps == 1);
  }
  const Strides& strides() const { return source.strides; }
  // Where it then finds a tile.
  const Sum<T>* find(const Axis& y, const Axis& x, const Tile& tile, int64_t c) const {
    if constexpr (std::is_same_v<T, Sum<T>>) {
      return source.at(tile.n, c, y.begin(tile.y), x.begin(tile.x)).data;
    }
    return nullptr;
  }
  // A tile of `count` channels from c on.
  void pack(const Layout& layout, const Tile& tile, int64_t c, int64_t count,
            Sum<T>* packed) const {
    pack_tile(layout, tile, source.at(0, c, 0, 0), count, packed);
  }
  // The channels of the panels of a range, the first of which is c: a panel after the other.
  void pack(const Tile& tile, const Panels& panels, int64_t range, int64_t c,
            Sum<T>* packed) const {
    pack_gradients(tile, panels, range, source.at(0, c, 0, 0), packed);
  }
};

template <class T>
TensorReader<T> input_of(const Conv2dProblem& problem, const void* input) {
  return {{static_cast<const T*>(input), problem.input, nullptr, {}}};
}

template <class T>
TensorReader<T> gradient_of(const Conv2dProblem& problem, const void* grad_output,
                            const void* relu_output) {
  return {{static_cast<const T*>(grad_output), problem.output, static_cast<const T*>(relu_output),
           problem.relu}};
}

// result[n, f, y, x] = sum over channels c and taps of weight * source: fprop, or one residue of
// dgrad. Sizes are those of a group.
template <class T>
struct Correlation {
  int64_t N, groups, channels, filters;
  Axis y, x;
  Source<T> weight;      // n: filters, c: channels, h and w: taps
  int64_t weight_group;  // distance between groups

  int64_t pixels() const { return N * y.outputs * x.outputs; }
};

// The weight of a correlation.
template <class T>
class FilterReader {
 public:
  int64_t taps;

  explicit FilterReader(const Correlation<T>& problem)
      : taps(problem.y.taps * problem.x.taps), problem_(problem), weight_(problem.weight) {
    Strides& strides = weight_.strides;
    weight_.data += problem.y.first_tap * strides.h + problem.x.first_tap * strides.w;
    strides.h *= problem.y.tap_step;
    strides.w *= problem.x.tap_step;
    // Taps, or all of a filter, may follow each other at one distance.
    const bool joined = strides.h == strides.w * problem.x.taps;
    whole_ = joined && strides.c == strides.w * taps;
    runs_ = joined ? 1 : problem.y.taps;
  }

  // to[(channel * taps + tap) * pitch + lane], of `count` channels from c on and a vector of
  // filters from `filter` on, of which `filled` are there; zeros in its other lanes.
  void pack(int64_t group, int64_t filter, int filled, int64_t c, int64_t count, Sum<T>* to,
            int64_t pitch) const {
    const int64_t length = taps / runs_;
    for (int64_t channel = 0; channel < (whole_ ? 1 : count); ++channel) {
      for (int64_t run = 0; run < runs_; ++run) {
        Source<T> line = weight_.at(filter, c + channel, run, 0);
        line.data += group * problem_.weight_group;
        pack_lanes(to + (channel * taps + run * length) * pitch, pitch,
                   whole_ ? length * count : length, filled, line, &Strides::w, &Strides::n);
      }
    }
  }

 private:
  const Correlation<T>& problem_;
  Source<T> weight_;
  bool whole_;
  int64_t runs_;
};

template <class T>
Correlation<T> fprop_of(const Conv2dProblem& problem, const void* weight) {
  const int64_t filters = problem.group_filters();
  return {problem.N,
          problem.groups,
          problem.group_channels(),
          filters,
          forward_axis(problem.P, problem.H, problem.R, problem.stride_h, problem.pad_top,
                       problem.dilation_h),
          forward_axis(problem.Q, problem.W, problem.S, problem.stride_w, problem.pad_left,
                       problem.dilation_w),
          {static_cast<const T*>(weight), problem.weight, nullptr, {}},
          filters * problem.weight.n};
}

// Of the input positions (y, x) modulo stride.
template <class T>
Correlation<T> dgrad_of(const Conv2dProblem& problem, const void* weight, int y, int x) {
  const Strides& strides = problem.weight;
  const int64_t filters = problem.group_filters();
  return {
      problem.N,
      problem.groups,
      filters,
      problem.group_channels(),
      backward_axis(y, problem.H, problem.P, problem.R, problem.stride_h, problem.pad_top,
                    problem.dilation_h),
      backward_axis(x, problem.W, problem.Q, problem.S, problem.stride_w, problem.pad_left,
                    problem.dilation_w),
      {static_cast<const T*>(weight), {strides.c, strides.n, strides.h, strides.w}, nullptr, {}},
      filters * strides.n};
}

// Calls body(first pixel, length, n, y) for the rows of a tile or, where its rows are `joined`, for
// each image.
template <class Body>
void for_pixel_runs(const Tile& tile, bool joined, const Body& body) {
  const int64_t rows = joined ? 1 : tile.rows;
  const int64_t length = tile.rows * tile.columns / rows;
  for (int64_t run = 0; run < tile.images * rows; ++run) {
    body(run * length, length, tile.n + run / rows, tile.y + run % rows);
  }
}

// Calls body(at, length, filter, filled, place) for all runs of a tile's results that follow each
// other without a gap in the tensor they go to, and for each vector of a range's filters: numbers
// [result][filter] from `at` on go to the tensor's element `place` and those `strides` apart.
template <class Body>
void for_runs(const Tile& tile, const Strides& strides, const Panels& panels, int64_t group,
              int64_t range, const Body& body) {
  const int64_t pitch = panels.range_padded(range);
  const int64_t begin = panels.range_begin(range);
  for_pixel_runs(tile, strides.h == tile.columns * strides.w,
                 [&](int64_t pixel, int64_t length, int64_t n, int64_t y) {
                   for (int64_t f = begin; f < begin + pitch && f < panels.filters;
                        f += panels.lanes) {
                     const int64_t filter = group * panels.filters + f;
                     body(pixel * pitch + f - begin, length, filter, panels.filled(f),
                          strides.at(n, filter, y, tile.x));
                   }
                 });
}

// Bias, ReLU and the way out for a tile's sums.
template <class T>
struct TensorWriter {
  T* target;
  Strides strides;
  Epilogue epilogue;

  static Tiling tiling(const Correlation<T>& problem, int64_t pixels) {
    return Tiling::make(problem.N, problem.y.outputs, problem.x.outputs, pixels);
  }

  // Of the filters of a range.
  void write(const Tiling& tiling, int64_t index, const Panels& panels, int64_t group,
             int64_t range, const Sum<T>* sums) const {
    for_runs(tiling.results(index), strides, panels, group, range,
             [&](int64_t at, int64_t length, int64_t filter, int filled, int64_t place) {
               store_lanes(sums + at, panels.range_padded(range), length, filled, filter, epilogue,
                           target + place, strides.w, strides.c);
             });
  }
};

}  // namespace
}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
