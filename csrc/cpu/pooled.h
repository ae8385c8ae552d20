// What a convolution with ReLU and pool in one has to do beside the convolution, tile by tile: pool
// its sums on their way out, and spread a pooled gradient over the windows (problem.h,
// Conv2dPoolProblem). Both work on vectors of filters.
//
//   PoolWriter     sums[pixel][filter] of whole windows: bias, rounding to T, ReLU, maximum or
//                  average, code; then the pooled tile goes out as any tile does. Windows that
//                  overlap at a tile's edge are computed for each tile that holds one
//   PooledReader   for a window: its gradient where its code says so, zero elsewhere
//
// Cost: some 2 loads, 8 operations a vector of the convolution's outputs, beside the
// C * R * S / groups multiply-adds that made it; 1 / stride^2 of its bytes go to memory and come
// back.
#pragma once

#include <limits>

#include "correlation.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

// A sum as the convolution would store it.
template <class T>
Vector<Sum<T>> rounded(Vector<Sum<T>> sums) {
  if constexpr (!std::is_same_v<T, Sum<T>>) {
    for (int lane = 0; lane < kLanes<Sum<T>>; ++lane) {
      sums[lane] = static_cast<Sum<T>>(static_cast<T>(sums[lane]));
    }
  }
  return sums;
}

// What a window makes of its taps, which come in row-major order: of equals the first is the
// maximum, of NaNs the last.
template <class S>
class MaxWindow {
 public:
  void add(Vector<S> value, int tap) {
    const Vector<Index<S>> wins = (value > best_) | (value != value);
    best_ = wins ? value : best_;
    place_ = wins ? Vector<Index<S>>{} + tap : place_;
  }
  // ReLU keeps the order, so it comes last; a window without taps has none.
  Vector<S> result(int64_t, bool none) const { return none ? best_ : relu<S>(best_); }
  Vector<Index<S>> code() const {
    return best_ <= 0 ? ~Vector<Index<S>>{} : place_;  // kReluClosed
  }

 private:
  Vector<S> best_ = Vector<S>{} - std::numeric_limits<S>::infinity();
  Vector<Index<S>> place_ = {};
};

template <class S>
class AverageWindow {
 public:
  void add(Vector<S> value, int tap) {
    sum_ += relu<S>(value);
    const Vector<Index<S>> bit = Vector<Index<S>>{} + static_cast<Index<S>>(1u << tap);
    open_ |= value <= 0 ? Vector<Index<S>>{} : bit;  // NaN is open
  }
  Vector<S> result(int64_t divisor, bool none) const {
    return none || divisor == 0 ? Vector<S>{} : sum_ / static_cast<S>(divisor);
  }
  Vector<Index<S>> code() const { return open_; }

 private:
  Vector<S> sum_ = {};
  Vector<Index<S>> open_ = {};
};

inline const char* unfit_for_codes(const Conv2dPoolProblem& problem, Dtype) {
  const int64_t taps = static_cast<int64_t>(problem.pool.R) * problem.pool.S;
  return problem.average && taps > Conv2dPoolProblem::kMostAverageTaps
             ? "an average of more than 32 taps, whose ReLUs fit no code"
             : nullptr;
}

inline Cover rows_of(const Pool2dProblem& pool) {
  return {dilated_extent(pool.R, pool.dilation_h), pool.stride_h, pool.pad_h};
}
inline Cover columns_of(const Pool2dProblem& pool) {
  return {dilated_extent(pool.S, pool.dilation_w), pool.stride_w, pool.pad_w};
}
inline bool overlapping(const Pool2dProblem& pool) {
  const Cover rows = rows_of(pool), columns = columns_of(pool);
  return rows.extent > rows.stride || columns.extent > columns.stride;
}

// ---- forward ----

template <class T>
class PoolWriter {
  using S = Sum<T>;

 public:
  PoolWriter(const Conv2dPoolProblem& problem, Epilogue epilogue, void* output, void* code)
      : problem_(problem),
        pool_(problem.pool),
        epilogue_(epilogue),
        output_(static_cast<T*>(output)),
        code_(code) {}

  // Tiles of overlapping windows are larger, so that less of them is computed twice.
  Tiling tiling(const Correlation<T>&, int64_t pixels) const {
    return Tiling::make(pool_.N, pool_.P, pool_.Q, overlapping(pool_) ? 4 * pixels : pixels,
                        rows_of(pool_), columns_of(pool_));
  }

  void write(const Tiling& tiling, int64_t index, const Panels& panels, int64_t group,
             int64_t range, const S* sums) const {
    const Tile results = tiling.results(index);
    const int64_t pitch = panels.range_padded(range);
    Workspace<S> pooled(results.pixels() * pitch);
    Workspace<Index<S>> codes(code_ == nullptr ? 0 : results.pixels() * pitch);
    const Part part{results, tiling.outputs(results),
                    pitch,   group * panels.filters + panels.range_begin(range),
                    sums,    panels.filters - panels.range_begin(range)};
    if (problem_.average) {
      take_windows<AverageWindow<S>>(part, pooled.data(), codes.data());
    } else {
      take_windows<MaxWindow<S>>(part, pooled.data(), codes.data());
    }
    for_runs(results, pool_.output, panels, group, range,
             [&](int64_t at, int64_t length, int64_t filter, int filled, int64_t place) {
               store_lanes(pooled.data() + at, pitch, length, filled, filter, {nullptr, 0, false},
                           output_ + place, pool_.output.w, pool_.output.c);
             });
    if (code_ == nullptr) return;
    for_runs(results, pool_.argmax, panels, group, range,
             [&](int64_t at, int64_t length, int64_t, int filled, int64_t place) {
               const auto write_to = [&](auto* to) {
                 store_codes<S>(codes.data() + at, pitch, length, filled, to + place,
                                pool_.argmax.w, pool_.argmax.c);
               };
               if (problem_.wide_code()) {
                 write_to(static_cast<int32_t*>(code_));
               } else {
                 write_to(static_cast<uint8_t*>(code_));
               }
             });
  }

 private:
  // A tile, and a range of filters from `filter` on, of which there are `filters`.
  struct Part {
    Tile results, outputs;
    int64_t pitch, filter;
    const S* sums;
    int64_t filters;
  };

  template <class Window>
  void take_windows(const Part& part, S* pooled, Index<S>* codes) const {
    constexpr int n = kLanes<S>;
    for (int64_t v = 0; v < part.pitch && v < part.filters; v += n) {
      const Vector<S> bias = load_bias<T>(epilogue_, part.filter + v,
                                          static_cast<int>(least<int64_t>(n, part.filters - v)));
      int64_t result = v;
      for (int64_t image = 0; image < part.results.images; ++image) {
        const S* plane = part.sums + image * part.outputs.rows * part.outputs.columns * part.pitch;
        for (int64_t i = 0; i < part.results.rows; ++i) {
          const int p = static_cast<int>(part.results.y + i);
          const Range rows = pool_.rows(p);
          for (int64_t j = 0; j < part.results.columns; ++j, result += part.pitch) {
            const int q = static_cast<int>(part.results.x + j);
            const Range columns = pool_.columns(q);
            const S* first =
                plane + v +
                (i * pool_.stride_h * part.outputs.columns + j * pool_.stride_w) * part.pitch;
            Window window;
            for (int r = rows.begin; r < rows.end; ++r) {
              const S* row = first + r * pool_.dilation_h * part.outputs.columns * part.pitch;
              for (int s = columns.begin; s < columns.end; ++s) {
                const Vector<S> sum = load(row + s * pool_.dilation_w * part.pitch);
                window.add(rounded<T>(sum + bias), r * pool_.S + s);
              }
            }
            const bool none = rows.begin >= rows.end || columns.begin >= columns.end;
            const int64_t divisor = problem_.average ? pool_.divisor(p, q) : 1;
            store<S>(pooled + result, window.result(divisor, none));
            if (codes != nullptr && code_ != nullptr) {
              store<Index<S>>(codes + result, window.code());
            }
          }
        }
      }
    }
  }

  const Conv2dPoolProblem& problem_;
  const Pool2dProblem& pool_;
  Epilogue epilogue_;
  T* output_;
  void* code_;
};

// ---- backward ----

template <class T>
class PooledReader {
  using S = Sum<T>;
  static constexpr int n = kLanes<S>;

 public:
  PooledReader(const Conv2dPoolProblem& problem, const void* grad_output, const void* code)
      : problem_(problem),
        pool_(problem.pool),
        grad_{static_cast<const T*>(grad_output), problem.pool.output, nullptr, {}},
        code_(code),
        overlapping_(overlapping(problem.pool)) {}

  static constexpr int kMultiple = n;
  bool channels_last() const { return true; }  // whatever the tensors are
  bool in_place(const Axis&, const Axis&) const { return false; }
  const Strides& strides() const { return grad_.strides; }
  const S* find(const Axis&, const Axis&, const Tile&, int64_t) const { return nullptr; }

  void pack(const Layout& layout, const Tile& tile, int64_t c, int64_t count, S* packed) const {
    // The tile of the convolution's outputs, which are the source, with its halo.
    const Axis &y = layout.y, &x = layout.x;
    const Tile region{tile.n,
                      tile.images,
                      y.source(tile.y, 0, 0),
                      y.extent(tile.rows),
                      x.source(tile.x, 0, 0),
                      x.extent(tile.columns)};
    for (int64_t k = 0; k < count; k += n) {
      spread(region, c + k, static_cast<int>(least<int64_t>(n, count - k)), packed + k,
             {layout.image, 0, layout.row, layout.column});
    }
  }
  void pack(const Tile& tile, const Panels& panels, int64_t range, int64_t c, S* packed) const {
    for (int64_t i = 0; i < panels.ranges.size(range); ++i) {
      const int64_t panel = panels.ranges.begin(range) + i;
      const int64_t pitch = panels.panels.size(panel) * panels.lanes;
      const int64_t first = panels.panel_begin(panel);
      S* to = packed + (first - panels.range_begin(range)) * tile.pixels();
      const int64_t row = tile.columns * pitch;
      for (int64_t lane = 0; lane < pitch; lane += n) {
        spread(tile, c + first + lane, panels.filled(first + lane), to + lane,
               {tile.rows * row, 0, row, pitch});
      }
    }
  }

  // The gradients of the convolution's outputs in a region, zeros beyond them, for `filled`
  // channels from k on and zeros for the rest of their vector; elements lie `strides` apart.
  void spread(const Tile& region, int64_t k, int filled, S* to, const Strides& strides) const {
    for (int64_t image = 0; image < region.images; ++image) {
      S* plane = to + image * strides.n;
      const auto for_all = [&](const auto& change) {
        for (int64_t y = 0; y < region.rows; ++y) {
          for (int64_t x = 0; x < region.columns; ++x) {
            S* at = plane + y * strides.h + x * strides.w;
            store<S>(at, change(at));
          }
        }
      };
      for_all([](const S*) { return Vector<S>{}; });
      if (filled > 0) add_windows(region, region.n + image, k, filled, plane, strides);
      if constexpr (!std::is_same_v<T, S>) {
        if (overlapping_ || problem_.average) {
          for_all([](const S* at) { return rounded<T>(load(at)); });
        }
      }
    }
  }

 private:
  // Up to n windows for a vector of channels.
  struct Square {
    Vector<S> gradients[n];
    Vector<Index<S>> codes[n];
  };

  // Of `count` windows from (i, j) on, for `filled` channels from k on.
  template <class Code>
  void load_square(const Code* codes, int64_t image, int64_t k, int filled, int64_t i, int64_t j,
                   int64_t count, Square& square) const {
    const Strides& strides = pool_.argmax;
    const Source<T> grad = grad_.at(image, k, i, j);
    codes += strides.at(image, k, i, j);
    S gradients[n * n];
    Index<S> window_codes[n * n];
    pack_lanes(gradients, n, count, filled, grad, &Strides::w, &Strides::c);
    pack_codes<S>(window_codes, n, count, filled, codes, strides.w, strides.c);
    for (int64_t window = 0; window < count; ++window) {
      square.gradients[window] = load(gradients + window * n);
      square.codes[window] = load(window_codes + window * n);
    }
  }

  // The windows over [begin, begin + count), clipped to `size` positions.
  template <class Over>
  static Range windows(int64_t begin, int64_t count, int64_t size, const Over& over) {
    const int64_t first = greatest<int64_t>(begin, 0), last = least(begin + count, size) - 1;
    if (first > last) return {0, 0};
    return {over(static_cast<int>(first)).begin, over(static_cast<int>(last)).end};
  }

  void add_windows(const Tile& region, int64_t image, int64_t k, int filled, S* plane,
                   const Strides& strides) const {
    const Range rows =
        windows(region.y, region.rows, pool_.H, [&](int h) { return pool_.windows_over_row(h); });
    const Range columns = windows(region.x, region.columns, pool_.W,
                                  [&](int w) { return pool_.windows_over_column(w); });
    if (rows.begin >= rows.end || columns.begin >= columns.end) return;
    const int64_t width = columns.end - columns.begin;
    const bool one_run =
        width == pool_.Q && grad_.joined(width) && pool_.argmax.h == width * pool_.argmax.w;
    const int64_t runs = one_run ? 1 : rows.end - rows.begin;
    const int64_t length = one_run ? (rows.end - rows.begin) * width : width;
    for (int64_t run = 0; run < runs; ++run) {
      int64_t i = rows.begin + run, j = columns.begin;
      for (int64_t first = 0; first < length; first += n) {
        const int64_t count = least<int64_t>(n, length - first);
        Square square;
        if (problem_.wide_code()) {
          load_square(static_cast<const int32_t*>(code_), image, k, filled, i, j, count, square);
        } else {
          load_square(static_cast<const uint8_t*>(code_), image, k, filled, i, j, count, square);
        }
        for (int64_t window = 0; window < count; ++window) {
          add_window(region, static_cast<int>(i), static_cast<int>(j), square.gradients[window],
                     square.codes[window], plane, strides);
          if (++j == columns.end) j = columns.begin, ++i;
        }
      }
    }
  }

  void add_window(const Tile& region, int i, int j, Vector<S> gradient, Vector<Index<S>> code,
                  S* plane, const Strides& strides) const {
    if (problem_.average) gradient = gradient / static_cast<S>(pool_.divisor(i, j));
    const Range rows = pool_.rows(i), columns = pool_.columns(j);
    for (int r = rows.begin; r < rows.end; ++r) {
      const int64_t y = pool_.input_h(i, r) - region.y;
      if (y < 0 || y >= region.rows) continue;
      for (int s = columns.begin; s < columns.end; ++s) {
        const int64_t x = pool_.input_w(j, s) - region.x;
        if (x < 0 || x >= region.columns) continue;
        const Index<S> tap = r * pool_.S + s;
        const Vector<Index<S>> passes = problem_.average ? ((code >> tap) & 1) != 0 : code == tap;
        const Vector<S> part = (Vector<S>)((Vector<Index<S>>)gradient & passes);
        S* at = plane + y * strides.h + x * strides.w;
        store<S>(at, overlapping_ ? load(at) + part : part);
      }
    }
  }

  const Conv2dPoolProblem& problem_;
  const Pool2dProblem& pool_;
  Source<T> grad_;
  const void* code_;
  bool overlapping_;
};

}  // namespace
}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
