// Winograd's minimal filtering (winograd.h) of 2x2 and of 4x4 outputs: 3x3 filters with stride 1,
// fprop and dgrad, alone and with ReLU and pool.
//
//     tile of the source          V[product][patch][channel]   M[product][patch][filter]
//     with halo, channels   --->  patches of 4x4, each    ---> V * U, summed over      --->  sums
//     innermost (packed)          2 from its neighbours        blocks of channels [pixel][filter]
//
// U[product][panel][channel][filter], the transformed weights, is made once a call. The products
// run by the micro-kernel (microkernel.h); sums leave as those of implicit_gemm do, a pool's
// windows included.
//
// Cost: 2 * N*P*Q*K*C * 4 FLOP instead of 9, a bound 2.25 times as high, or 2.25 instead of 9, 4
// times as high. Beside them, for 2x2, 32 additions a patch and channel for each range of filters,
// 24 a patch and filter; for 4x4 some 4 times as many, for 4 times as many outputs; and U's bytes
// written and read, which few patches do not pay back.
//
// Error: the transforms of 2x2 add some 3 times what the direct sum rounds, at most, those of 4x4
// some 10 times (docs/performance.md), so that they run under fast_math alone; a NaN or infinity
// spreads over the patch that reads it.
#include "../winograd.h"
#include "implicit_gemm.h"
#include "isa.h"
#include "pooled.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

constexpr int kTaps = kWinogradTaps;
// Below these a transform costs more than it saves.
constexpr int kFewestChannels = 32, kFewestPatches = 128, kWidest = 512;
// Each tile reads U: beyond this it comes from memory, and 4x4's takes longer than its products.
constexpr int64_t kMostWeightBytes = 12 << 20;

// Outputs of a tile, and channels of a block, so that V and M stay near.
template <class F>
constexpr int kPixels = F::kOut / 2 * kTilePixels;
constexpr int kBlockChannels = 64;

template <class F>
constexpr int kProducts = kWinogradProducts<F>;

// Both axes of a square: transform() takes kFrom values and makes kTo.
template <int kFrom, int kTo, class V, class Transform>
void transform_square(const V (&from)[kFrom][kFrom], V (&to)[kTo][kTo],
                      const Transform& transform) {
  V half[kTo][kFrom];
#pragma GCC unroll 8
  for (int x = 0; x < kFrom; ++x) {
    V column[kFrom], changed[kTo];
#pragma GCC unroll 8
    for (int y = 0; y < kFrom; ++y) column[y] = from[y][x];
    transform(column, changed);
#pragma GCC unroll 8
    for (int y = 0; y < kTo; ++y) half[y][x] = changed[y];
  }
#pragma GCC unroll 8
  for (int y = 0; y < kTo; ++y) transform(half[y], to[y]);
}

// U, of which element [product] of a group begins at (group * kProducts + product) * padded * C.
template <class F, class T>
void transform_weights(const Correlation<T>& problem, const Panels& panels, T* transformed) {
  constexpr int n = kLanes<T>, kChannels = 16;
  const FilterReader<T> filters(problem);
  const Partition blocks(problem.channels, kChannels);
  const int64_t lines = panels.panels.total * blocks.count;
  const int64_t product = panels.padded() * problem.channels;
  // Taps of dgrad come in the order of falling positions.
  const bool flip_y = problem.y.delta < 0, flip_x = problem.x.delta < 0;
  parallel_for(problem.groups * lines, 1, [&](int64_t begin, int64_t end) {
    Workspace<T> packed(kChannels * kTaps * kTaps * n);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / lines, vector = item % lines / blocks.count;
      const int64_t block = item % blocks.count, c = blocks.begin(block);
      const int64_t panel = panels.panel_of(vector);
      const int64_t pitch = panels.panels.size(panel) * n;
      const int64_t filter = vector * n, first = panels.panel_begin(panel);
      filters.pack(group, filter, panels.filled(filter), c, blocks.size(block), packed.data(), n);
      T* to = transformed + group * kProducts<F> * product + first * problem.channels + c * pitch +
              filter - first;
      for (int64_t i = 0; i < blocks.size(block); ++i) {
        Vector<T> taps[kTaps][kTaps], square[F::kIn][F::kIn];
        for (int r = 0; r < kTaps; ++r) {
          for (int s = 0; s < kTaps; ++s) {
            const int64_t tap = (flip_y ? kTaps - 1 - r : r) * kTaps + (flip_x ? kTaps - 1 - s : s);
            taps[r][s] = load(packed.data() + (i * kTaps * kTaps + tap) * n);
          }
        }
        transform_square(taps, square, [](const auto& from, auto& out) { F::filter(from, out); });
        for (int k = 0; k < kProducts<F>; ++k) {
          store<T>(to + k * product + i * pitch, square[k / F::kIn][k % F::kIn]);
        }
      }
    }
  });
}

// The patches of a tile, and how V and M, of `width` numbers a patch, lie.
template <class F>
struct Patches {
  static constexpr int kOut = F::kOut;

  int64_t images, rows, columns;

  explicit Patches(const Tile& tile)
      : images(tile.images),
        rows(ceil_div(tile.rows, kOut)),
        columns(ceil_div(tile.columns, kOut)) {}

  int64_t count() const { return images * rows * columns; }
  // Between products: an odd number of cache lines, so that they do not compete for the same sets.
  static int64_t product(int64_t patches, int64_t width) { return Layout::spread(patches * width); }

  // Calls body(patch, image, row, column of its first output).
  template <class Body>
  void for_all(const Body& body) const {
    int64_t patch = 0;
    for (int64_t n = 0; n < images; ++n) {
      for (int64_t y = 0; y < rows; ++y) {
        for (int64_t x = 0; x < columns; ++x) body(patch++, n, y * kOut, x * kOut);
      }
    }
  }
};

// V of `channels` channels, from a tile packed with channels innermost.
template <class F, class T>
void transform_tile(const Layout& layout, const Patches<F>& patches, int64_t channels,
                    const T* packed, T* transformed) {
  constexpr int n = kLanes<T>, kIn = F::kIn;
  const int64_t product = patches.product(patches.count(), layout.column);
  patches.for_all([&](int64_t patch, int64_t image, int64_t row, int64_t column) {
    const T* corner = packed + image * layout.image + row * layout.row + column * layout.column;
    T* to = transformed + patch * layout.column;
    for (int64_t c = 0; c < channels; c += n) {
      Vector<T> pixels[kIn][kIn], square[kIn][kIn];
#pragma GCC unroll 8
      for (int y = 0; y < kIn; ++y) {
#pragma GCC unroll 8
        for (int x = 0; x < kIn; ++x) {
          pixels[y][x] = load(corner + y * layout.row + x * layout.column + c);
        }
      }
      transform_square(pixels, square, [](const auto& from, auto& out) { F::input(from, out); });
#pragma GCC unroll 36
      for (int k = 0; k < kProducts<F>; ++k) {
        store<T>(to + k * product + c, square[k / kIn][k % kIn]);
      }
    }
  });
}

// sums[pixel][filter] of a tile from M, whose patches have `pitch` filters.
template <class F, class T>
void transform_sums(const Tile& tile, const Patches<F>& patches, int64_t pitch, const T* products,
                    T* sums) {
  constexpr int n = kLanes<T>, kIn = F::kIn, kOut = F::kOut;
  const int64_t product = patches.product(patches.count(), pitch);
  patches.for_all([&](int64_t patch, int64_t image, int64_t row, int64_t column) {
    T* to = sums + ((image * tile.rows + row) * tile.columns + column) * pitch;
    for (int64_t f = 0; f < pitch; f += n) {
      Vector<T> square[kIn][kIn], outputs[kOut][kOut];
#pragma GCC unroll 36
      for (int k = 0; k < kProducts<F>; ++k) {
        square[k / kIn][k % kIn] = load(products + k * product + patch * pitch + f);
      }
      transform_square(square, outputs, [](const auto& from, auto& out) { F::output(from, out); });
      for (int y = 0; y < kOut && row + y < tile.rows; ++y) {
        for (int x = 0; x < kOut && column + x < tile.columns; ++x) {
          store<T>(to + (y * tile.columns + x) * pitch + f, outputs[y][x]);
        }
      }
    }
  });
}

// Nothing is packed into what patches at a tile's end read beyond it: zeros stand there, since what
// an earlier tile left would be rounded with.
template <class F, class T>
void clear_margin(const Layout& layout, const Tile& tile, const Patches<F>& patches, T* packed) {
  const int64_t rows = tile.rows + kTaps - 1, all_rows = patches.rows * F::kOut + kTaps - 1;
  const int64_t columns = (tile.columns + kTaps - 1) * layout.column;
  const int64_t all_columns = (patches.columns * F::kOut + kTaps - 1) * layout.column;
  for (int64_t n = 0; n < tile.images; ++n) {
    for (int64_t y = 0; y < all_rows; ++y) {
      T* row = packed + n * layout.image + y * layout.row;
      for (int64_t i = y < rows ? columns : 0; i < all_columns; ++i) row[i] = 0;
    }
  }
}

// The tiling, of those with at most kPixels<F> outputs a tile, with the fewest patches, and of
// those the one with the fewest tiles. Of F::kOut rows at least, so that patches are whole.
template <class F, class T, class Writer>
Tiling tiling_of(const Correlation<T>& problem, const Writer& writer) {
  const auto make = [&](int64_t rows) {
    return writer.tiling(problem, rows * F::kOut * problem.x.outputs);
  };
  const auto patch_rows = [](const Tiling& tiling) {
    int64_t sum = 0;
    for (int64_t i = 0; i < tiling.rows.count; ++i)
      sum += ceil_div(tiling.y.of(tiling.rows.size(i)), F::kOut);
    return sum;
  };
  const int64_t most = greatest<int64_t>(1, kPixels<F> / (F::kOut * problem.x.outputs));
  Tiling best = make(most);
  for (int64_t rows = most - 1; rows > 0; --rows) {
    const Tiling other = make(rows);
    if (patch_rows(other) < patch_rows(best)) best = other;
  }
  return best;
}

template <class F, class T, class Reader, class Writer>
void correlate_by_patches(const Correlation<T>& problem, const Reader& reader,
                          const Writer& writer) {
  const Panels panels(static_cast<int>(problem.filters), kLanes<T>);
  const Tiling tiling = tiling_of<F>(problem, writer);
  const int64_t product = panels.padded() * problem.channels;
  Workspace<T> weights(problem.groups * kProducts<F> * product);
  transform_weights<F>(problem, panels, weights.data());

  const int64_t block = least<int64_t>(kBlockChannels, problem.channels);
  const Tile largest{0, tiling.images.largest(), 0, tiling.largest_rows(),
                     0, tiling.largest_columns()};
  const int64_t most = Patches<F>(largest).count();
  // Patches at a tile's end may read rows and columns beyond those of its outputs.
  const Layout layout = Layout::make(problem.y, problem.x, tiling, block, true, kLanes<T>,
                                     kTileBytes / sizeof(T), F::kOut - 1);
  Workspace<int32_t> channels(block);
  for (int32_t c = 0; c < block; ++c) channels[c] = c;

  const int64_t items = tiling.count() * panels.ranges.count;
  parallel_for(problem.groups * items, 1, [&](int64_t begin, int64_t end) {
    Workspace<T> packed(layout.elements(tiling));
    for (int64_t i = 0; i < layout.elements(tiling); ++i) packed[i] = 0;
    Workspace<T> transformed(kProducts<F> * Patches<F>::product(most, layout.column));
    Workspace<T> products(kProducts<F> * Patches<F>::product(most, panels.largest_range()));
    Workspace<T> sums(tiling.largest() * panels.largest_range());
    Workspace<int32_t> places(most);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / items, range = item % items / tiling.count();
      const int64_t index = item % tiling.count();
      const Tile tile = tiling.outputs(index);
      const Patches<F> patches(tile);
      const int64_t pitch = panels.range_padded(range);
      for (int64_t i = 0; i < patches.count(); ++i) {
        places[i] = static_cast<int32_t>(i * layout.column);
      }
      for (int64_t c = 0; c < problem.channels; c += layout.channels) {
        const int64_t count = least(layout.channels, problem.channels - c);
        reader.pack(layout, tile, group * problem.channels + c, count, packed.data());
        clear_margin(layout, tile, patches, packed.data());
        transform_tile(layout, patches, count, packed.data(), transformed.data());
        for (int k = 0; k < kProducts<F>; ++k) {
          for (int64_t i = 0; i < panels.ranges.size(range); ++i) {
            const int64_t panel = panels.ranges.begin(range) + i;
            const int64_t vectors = panels.panels.size(panel), first = panels.panel_begin(panel);
            multiply(vectors,
                     transformed.data() + k * Patches<F>::product(patches.count(), layout.column),
                     places.data(), patches.count(), channels.data(), count,
                     weights.data() + (group * kProducts<F> + k) * product +
                         first * problem.channels + c * vectors * panels.lanes,
                     products.data() + k * Patches<F>::product(patches.count(), pitch) + first -
                         panels.range_begin(range),
                     pitch, c > 0);
          }
        }
      }
      transform_sums(tile, patches, pitch, products.data(), sums.data());
      writer.write(tiling, index, panels, group, range, sums.data());
    }
  });
}

template <class F>
void fprop(const Conv2dProblem& problem, Dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void*, Stream) {
  correlate_by_patches<F>(
      fprop_of<float>(problem, weight), input_of<float>(problem, input),
      TensorWriter<float>{static_cast<float*>(output), problem.output, epilogue});
}

template <class F>
void fprop(const Conv2dPoolProblem& problem, Dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void* code, void*, Stream) {
  correlate_by_patches<F>(fprop_of<float>(problem.conv, weight),
                          input_of<float>(problem.conv, input),
                          PoolWriter<float>(problem, epilogue, output, code));
}

TensorWriter<float> grad_input_of(const Conv2dProblem& problem, void* grad_input) {
  return {static_cast<float*>(grad_input), problem.input, {nullptr, 0, false}};
}

template <class F>
void dgrad(const Conv2dProblem& problem, Dtype, const void* grad_output, const void* relu_output,
           const void* weight, void* grad_input, void*, Stream) {
  correlate_by_patches<F>(dgrad_of<float>(problem, weight, 0, 0),
                          gradient_of<float>(problem, grad_output, relu_output),
                          grad_input_of(problem, grad_input));
}

template <class F>
void dgrad(const Conv2dPoolProblem& problem, Dtype, const void* grad_output, const void* code,
           const void* weight, void* grad_input, void*, Stream) {
  correlate_by_patches<F>(dgrad_of<float>(problem.conv, weight, 0, 0),
                          PooledReader<float>(problem, grad_output, code),
                          grad_input_of(problem.conv, grad_input));
}

template <class F>
const char* unsuited(const Conv2dProblem& problem, Dtype) {
  if (const char* reason = forgoes_winograd<F>(problem)) return reason;
  const int64_t weights =
      static_cast<int64_t>(problem.group_filters()) * problem.group_channels() * kProducts<F>;
  if (F::kOut > Winograd2x2::kOut &&
      weights * static_cast<int64_t>(sizeof(float)) > kMostWeightBytes)
    return "transformed weights that leave the cache";
  if (least(problem.group_channels(), problem.group_filters()) < kFewestChannels) {
    return "few channels or filters, whose transforms cost more than they save";
  }
  if (winograd_patches<Winograd2x2>(problem) < kFewestPatches) {
    return "few pixels, which do not pay for transforming the weight";
  }
  return greatest(problem.Q, problem.W) > kWidest ? "rows too long for the cache" : nullptr;
}

template <class F>
Conv2dAlgorithm conv2d(const char* name) {
  return {name, unfit_for_winograd, fprop<F>, dgrad<F>, nullptr, nullptr, unsuited<F>};
}

template <class F>
Conv2dPoolAlgorithm conv2d_pool(const char* name) {
  return {name,
          [](const Conv2dPoolProblem& problem, Dtype dtype) {
            const char* reason = unfit_for_winograd(problem.conv, dtype);
            return reason != nullptr ? reason : unfit_for_codes(problem, dtype);
          },
          fprop<F>,
          dgrad<F>,
          nullptr,
          nullptr,
          [](const Conv2dPoolProblem& problem, Dtype dtype) {
            return unsuited<F>(problem.conv, dtype);
          }};
}

}  // namespace

Conv2dAlgorithm conv2d_winograd() { return conv2d<Winograd2x2>("winograd"); }
Conv2dAlgorithm conv2d_winograd_4x4() { return conv2d<Winograd4x4>("winograd_4x4"); }
Conv2dPoolAlgorithm conv2d_pool_winograd() { return conv2d_pool<Winograd2x2>("winograd"); }
Conv2dPoolAlgorithm conv2d_pool_winograd_4x4() { return conv2d_pool<Winograd4x4>("winograd_4x4"); }

}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
