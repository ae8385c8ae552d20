// Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2015): 3x3 filters with stride 1, fprop and dgrad, alone and with ReLU and
// pool.
//
//   output of 2x2 = A^T [ (G weight G^T) * (B^T input of 4x4 B) ] A,   * element by element
//
// so that a sum over channels is 16 products of matrices, one for each element of the 4x4:
//
//     tile of the source          V[16][patch][channel]      M[16][patch][filter]
//     with halo, channels   --->  patches of 4x4, each  ---> V * U, summed over     --->  sums
//     innermost (packed)          2 from its neighbours      blocks of channels [pixel][filter]
//
// U[16][panel][channel][filter], the transformed weights, is made once a call. The products run by
// the micro-kernel (microkernel.h); sums leave as those of implicit_gemm do, a pool's windows
// included.
//
// Cost: 2 * N*P*Q*K*C * 4 FLOP instead of 9, a bound 2.25 times as high; beside them 32 additions a
// patch and channel for each range of filters, 24 a patch and filter, and U's 16 * K * C * 4 bytes
// written and read, which few patches do not pay back.
//
// Error: the transforms add some 3 times what the direct sum rounds, at most (docs/performance.md);
// a NaN or infinity spreads over the patch that reads it.
#include "implicit_gemm.h"
#include "isa.h"
#include "pooled.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

constexpr int kIn = 4, kOut = 2, kTaps = 3, kProducts = kIn * kIn;
// Channels of a block, so that V stays in the level 2 cache.
constexpr int kBlockChannels = 64;
// Below these a transform costs more than it saves.
constexpr int kFewestChannels = 32, kFewestPatches = 128, kWidest = 512;

// to = B^T from, along one axis.
template <class V>
void transform_input(const V (&from)[kIn], V (&to)[kIn]) {
  to[0] = from[0] - from[2];
  to[1] = from[1] + from[2];
  to[2] = from[2] - from[1];
  to[3] = from[1] - from[3];
}

// G from.
template <class V>
void transform_filter(const V (&from)[kTaps], V (&to)[kIn]) {
  const V ends = from[0] + from[2];
  to[0] = from[0];
  to[1] = (ends + from[1]) / 2;
  to[2] = (ends - from[1]) / 2;
  to[3] = from[2];
}

// A^T from.
template <class V>
void transform_output(const V (&from)[kIn], V (&to)[kOut]) {
  to[0] = from[0] + from[1] + from[2];
  to[1] = from[1] - from[2] - from[3];
}

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
template <class T>
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
      T* to = transformed + group * kProducts * product + first * problem.channels + c * pitch +
              filter - first;
      for (int64_t i = 0; i < blocks.size(block); ++i) {
        Vector<T> taps[kTaps][kTaps], square[kIn][kIn];
        for (int r = 0; r < kTaps; ++r) {
          for (int s = 0; s < kTaps; ++s) {
            const int64_t tap = (flip_y ? kTaps - 1 - r : r) * kTaps + (flip_x ? kTaps - 1 - s : s);
            taps[r][s] = load(packed.data() + (i * kTaps * kTaps + tap) * n);
          }
        }
        transform_square(taps, square,
                         [](const auto& from, auto& out) { transform_filter(from, out); });
        for (int k = 0; k < kProducts; ++k) {
          store<T>(to + k * product + i * pitch, square[k / kIn][k % kIn]);
        }
      }
    }
  });
}

// The patches of a tile, and how V and M, of `width` numbers a patch, lie.
struct Patches {
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
template <class T>
void transform_tile(const Layout& layout, const Patches& patches, int64_t channels, const T* packed,
                    T* transformed) {
  constexpr int n = kLanes<T>;
  const int64_t product = Patches::product(patches.count(), layout.column);
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
      transform_square(pixels, square,
                       [](const auto& from, auto& out) { transform_input(from, out); });
#pragma GCC unroll 16
      for (int k = 0; k < kProducts; ++k) {
        store<T>(to + k * product + c, square[k / kIn][k % kIn]);
      }
    }
  });
}

// sums[pixel][filter] of a tile from M, whose patches have `pitch` filters.
template <class T>
void transform_sums(const Tile& tile, const Patches& patches, int64_t pitch, const T* products,
                    T* sums) {
  constexpr int n = kLanes<T>;
  const int64_t product = Patches::product(patches.count(), pitch);
  patches.for_all([&](int64_t patch, int64_t image, int64_t row, int64_t column) {
    T* to = sums + ((image * tile.rows + row) * tile.columns + column) * pitch;
    for (int64_t f = 0; f < pitch; f += n) {
      Vector<T> square[kIn][kIn], outputs[kOut][kOut];
#pragma GCC unroll 16
      for (int k = 0; k < kProducts; ++k) {
        square[k / kIn][k % kIn] = load(products + k * product + patch * pitch + f);
      }
      transform_square(square, outputs,
                       [](const auto& from, auto& out) { transform_output(from, out); });
      for (int y = 0; y < kOut && row + y < tile.rows; ++y) {
        for (int x = 0; x < kOut && column + x < tile.columns; ++x) {
          store<T>(to + (y * tile.columns + x) * pitch + f, outputs[y][x]);
        }
      }
    }
  });
}

template <class T, class Reader, class Writer>
void correlate_by_patches(const Correlation<T>& problem, const Reader& reader,
                          const Writer& writer) {
  const Panels panels(static_cast<int>(problem.filters), kLanes<T>);
  // Two rows at least, so that patches are whole.
  const Tiling tiling =
      writer.tiling(problem, greatest<int64_t>(kTilePixels, kOut * problem.x.outputs));
  const int64_t product = panels.padded() * problem.channels;
  Workspace<T> weights(problem.groups * kProducts * product);
  transform_weights(problem, panels, weights.data());

  const int64_t block = least<int64_t>(kBlockChannels, problem.channels);
  const Tile largest{0, tiling.images.largest(), 0, tiling.largest_rows(),
                     0, tiling.largest_columns()};
  const int64_t most = Patches(largest).count();
  // Patches at a tile's end may read one row or column more than its outputs do.
  const Layout layout =
      Layout::make(problem.y, problem.x, tiling, block, true, kLanes<T>, sizeof(T), 1);
  Workspace<int32_t> channels(block);
  for (int32_t c = 0; c < block; ++c) channels[c] = c;

  const int64_t items = tiling.count() * panels.ranges.count;
  parallel_for(problem.groups * items, 1, [&](int64_t begin, int64_t end) {
    Workspace<T> packed(layout.elements(tiling));
    for (int64_t i = 0; i < layout.elements(tiling); ++i) packed[i] = 0;
    Workspace<T> transformed(kProducts * Patches::product(most, layout.column));
    Workspace<T> products(kProducts * Patches::product(most, panels.largest_range()));
    Workspace<T> sums(tiling.largest() * panels.largest_range());
    Workspace<int32_t> places(most);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / items, range = item % items / tiling.count();
      const int64_t index = item % tiling.count();
      const Tile tile = tiling.outputs(index);
      const Patches patches(tile);
      const int64_t pitch = panels.range_padded(range);
      for (int64_t i = 0; i < patches.count(); ++i) {
        places[i] = static_cast<int32_t>(i * layout.column);
      }
      for (int64_t c = 0; c < problem.channels; c += layout.channels) {
        const int64_t count = least(layout.channels, problem.channels - c);
        reader.pack(layout, tile, group * problem.channels + c, count, packed.data());
        transform_tile(layout, patches, count, packed.data(), transformed.data());
        for (int k = 0; k < kProducts; ++k) {
          for (int64_t i = 0; i < panels.ranges.size(range); ++i) {
            const int64_t panel = panels.ranges.begin(range) + i;
            const int64_t vectors = panels.panels.size(panel), first = panels.panel_begin(panel);
            multiply(vectors,
                     transformed.data() + k * Patches::product(patches.count(), layout.column),
                     places.data(), patches.count(), channels.data(), count,
                     weights.data() + (group * kProducts + k) * product + first * problem.channels +
                         c * vectors * panels.lanes,
                     products.data() + k * Patches::product(patches.count(), pitch) + first -
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

void fprop(const Conv2dProblem& problem, Dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, Stream) {
  correlate_by_patches(fprop_of<float>(problem, weight), input_of<float>(problem, input),
                       TensorWriter<float>{static_cast<float*>(output), problem.output, epilogue});
}

void fprop(const Conv2dPoolProblem& problem, Dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void* code, Stream) {
  correlate_by_patches(fprop_of<float>(problem.conv, weight), input_of<float>(problem.conv, input),
                       PoolWriter<float>(problem, epilogue, output, code));
}

TensorWriter<float> grad_input_of(const Conv2dProblem& problem, void* grad_input) {
  return {static_cast<float*>(grad_input), problem.input, {nullptr, 0, false}};
}

void dgrad(const Conv2dProblem& problem, Dtype, const void* grad_output, const void* relu_output,
           const void* weight, void* grad_input, Stream) {
  correlate_by_patches(dgrad_of<float>(problem, weight, 0, 0),
                       gradient_of<float>(problem, grad_output, relu_output),
                       grad_input_of(problem, grad_input));
}

void dgrad(const Conv2dPoolProblem& problem, Dtype, const void* grad_output, const void* code,
           const void* weight, void* grad_input, Stream) {
  correlate_by_patches(dgrad_of<float>(problem.conv, weight, 0, 0),
                       PooledReader<float>(problem, grad_output, code),
                       grad_input_of(problem.conv, grad_input));
}

const char* unsupported(const Conv2dProblem& problem, Dtype dtype) {
  if (dtype != Dtype::float32) return "for float32 alone";
  if (problem.R != kTaps || problem.S != kTaps) return "for 3x3 filters alone";
  if (problem.stride_h != 1 || problem.stride_w != 1) return "for a stride of 1 alone";
  if (problem.dilation_h != 1 || problem.dilation_w != 1) return "for filters without dilation";
  return problem.N == 0 || problem.C == 0 ? "an empty input" : nullptr;
}

const char* unsuited(const Conv2dProblem& problem, Dtype) {
  const int64_t patches =
      static_cast<int64_t>(problem.N) * ceil_div(problem.P, kOut) * ceil_div(problem.Q, kOut);
  if (least(problem.group_channels(), problem.group_filters()) < kFewestChannels) {
    return "few channels or filters, whose transforms cost more than they save";
  }
  if (patches < kFewestPatches) return "few pixels, which do not pay for transforming the weight";
  return greatest(problem.Q, problem.W) > kWidest ? "rows too long for the cache" : nullptr;
}

}  // namespace

Conv2dAlgorithm conv2d_winograd() {
  return {"winograd", unsupported, fprop, dgrad, nullptr, nullptr, unsuited};
}

Conv2dPoolAlgorithm conv2d_pool_winograd() {
  return {
      "winograd",
      [](const Conv2dPoolProblem& problem, Dtype dtype) {
        const char* reason = unsupported(problem.conv, dtype);
        return reason != nullptr ? reason : unfit_for_codes(problem, dtype);
      },
      fprop,
      dgrad,
      nullptr,
      nullptr,
      [](const Conv2dPoolProblem& problem, Dtype dtype) { return unsuited(problem.conv, dtype); }};
}

}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
