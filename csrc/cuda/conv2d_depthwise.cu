#include <algorithm>
#include <climits>

#include "../registry.h"
#include "conv2d_depthwise.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

constexpr int kMostFilter = 31, kMostStride = 2;
constexpr int kMostBlocksDown = 65535;  // of a grid, along y or z
constexpr int kSectorBytes = 32;
constexpr int kManyBlocks = 432;  // keep a GPU of 108 multiprocessors busy

// Four blocks of the smaller size fit an SM of an A100 and leave room; both need no opt-in.
constexpr int64_t kSharedBytes[] = {24 << 10, 48 << 10};
// What of the source is read more than once, at most, where there is a choice.
constexpr double kMostReread = 1.125;

// wgrad: warps wanted in a block, channels of narrow NCHW planes, and additions of a lane, which
// bound the error.
constexpr int kWgradWarps = 8, kWgradChannels = 8, kMostAdditions = 256;

// Taps that meet pixels in registers: of a filter's column, in even numbers, since dgrad with
// stride 2 tells them apart; or of a square of a filter in wgrad, whose sums want a register each.
constexpr int kFewTaps = 4, kManyTaps = 8, kManySquareTaps = 7;

constexpr int taps_of(const Conv2dProblem& problem, int many) {
  return std::max(problem.R, problem.S) <= kFewTaps ? kFewTaps : many;
}

// ---- how a pass is cut ----

DepthwiseAxis fprop_axis(int size, int outputs, int taps, int pad) {
  return {outputs, 0, outputs, -pad, size, taps};
}

// Its numbers begin where tap taps - 1 reads a gradient: up to a stride before the first pixel.
DepthwiseAxis dgrad_axis(int size, int outputs, int taps, int pad, int stride) {
  const int distance = pad - (taps - 1);
  const int before = (distance % stride + stride) % stride;
  return {size + before, -before, size, (distance - before) / stride, outputs, taps};
}

// Finds a tiling of a pass whose results read the source at (t * stride + tap) / up.
class Cut {
 public:
  Cut(const Conv2dProblem& problem, DepthwiseAxis rows, DepthwiseAxis columns, int stride, int up,
      int run, int64_t element, const Strides& source, const Strides& result, bool wgrad)
      : problem_(problem),
        stride_(stride),
        up_(up),
        run_(run),
        taps_(taps_of(problem, wgrad ? kManySquareTaps : kManyTaps)),
        element_(element),
        wgrad_(wgrad),
        nearest_(channels_fastest(source) || channels_fastest(result)
                     ? std::min<int>(problem.C, kSectorBytes / element)
                     : 1) {
    best_.rows = rows, best_.columns = columns;
    best_.images = best_.channels = 1;
    choose_tile();
    add_channels();
    if (wgrad) add_images();
    const bool is_dense = result.w == 1 && result.h == columns.size &&
                          result.c == static_cast<int64_t>(rows.size) * columns.size;
    const bool is_run = best_.columns.tiles == 1 && (best_.channels == 1 || best_.rows.tiles == 1);
    best_.staged = !wgrad && is_dense && is_run && items(best_) <= kDepthwiseThreads;
    best_ = laid_out(best_);
  }

  const DepthwiseTiling& tiling() const { return best_; }

  int64_t bytes(const DepthwiseTiling& tiling) const {
    const int64_t planes = static_cast<int64_t>(tiling.images) * tiling.channels;
    const int64_t gradients = planes * tiling.rows.tile * tiling.columns.tile;
    const int64_t filters = tiling.channels * (tiling.rows.taps * tiling.columns.taps | 1);
    return (tiling.pixels + (wgrad_ ? gradients : filters)) * element_;
  }

  int64_t items(const DepthwiseTiling& tiling) const {
    return static_cast<int64_t>(tiling.images) * tiling.channels *
           ceil_divide(tiling.rows.tile, run_) * tiling.columns.tile;
  }

  int64_t blocks(const DepthwiseTiling& tiling) const {
    return ceil_divide(problem_.N, tiling.images) * tiling.channel_groups *
           static_cast<int64_t>(tiling.rows.tiles) * tiling.columns.tiles;
  }

 private:
  const Conv2dProblem& problem_;
  int stride_, up_, run_, taps_;
  int64_t element_;
  bool wgrad_;
  int nearest_;  // channels that fill a sector
  DepthwiseTiling best_ = {};

  int extent(int results, int taps) const { return ((results - 1) * stride_ + taps - 1) / up_ + 1; }

  void cut(DepthwiseAxis& axis, int tile) const {
    axis.tile = std::max(1, std::min(tile, axis.count));
    axis.tiles = ceil_divide(axis.count, axis.tile);
    axis.source_extent = extent(axis.tile, axis.taps);
  }

  // Fills in what follows from the tile and the channels.
  DepthwiseTiling laid_out(DepthwiseTiling t) const {
    const int banks = 128 / element_, shift = 4;  // planes begin 4 elements apart, in banks
    t.channel_groups = ceil_divide(problem_.C, t.channels);
    t.lanes = std::min(t.channels, nearest_);
    t.half = (t.columns.source_extent + 1) / 2;
    t.pitch = stride_ == 1 ? t.columns.source_extent : 2 * t.half;
    t.plane = t.rows.source_extent * t.pitch;
    if (t.lanes > 1) t.plane += ((shift - t.plane) % banks + banks) % banks;
    const int read =
        extent(ceil_divide(t.rows.tile, run_) * run_, ceil_divide(t.rows.taps, taps_) * taps_);
    t.pixels = t.images * t.channels * t.plane + (read - t.rows.source_extent) * t.pitch;
    if (t.staged)
      t.pixels =
          std::max(t.pixels, t.channels * std::min(t.rows.tile, t.rows.size) * t.columns.size);
    return t;
  }

  // How often an axis' source is read.
  static double reread(const DepthwiseAxis& axis) {
    const double read = std::min(axis.source_extent, axis.source_size);
    return read * axis.tiles / std::max(axis.source_size, 1);
  }

  // The most rows that fit, of as many columns and channels as that allows.
  void choose_tile() {
    double least = 0;
    for (const int64_t most : kSharedBytes) {
      for (int channels = nearest_; channels > 0; channels /= 2) {
        for (int columns = best_.columns.count;; columns = (columns / 2 + 1) / 2 * 2) {
          DepthwiseTiling t = best_;
          t.channels = channels;
          cut(t.columns, columns);
          if (!fit_rows(t, most)) {
            if (columns > 2) continue;
            break;
          }
          const double cost = std::max(reread(t.rows), 1.0) * std::max(reread(t.columns), 1.0) *
                              nearest_ / channels;
          if (least == 0 || cost < least) least = cost, best_ = t;
          break;
        }
      }
      if (least > 0 && least <= kMostReread) return;
    }
  }

  bool fit_rows(DepthwiseTiling& t, int64_t most) const {
    bool fits = false;
    for (int rows = run_;; rows += run_) {
      DepthwiseTiling more = t;
      cut(more.rows, rows);
      more = laid_out(more);
      if (bytes(more) > most) return fits;
      t = more, fits = true;
      if (rows >= t.rows.count) return true;
    }
  }

  // Of small planes a block takes several: as many as give each lane of a warp an item, more where
  // there are blocks enough.
  void add_channels() {
    if (best_.rows.tiles > 1 || best_.columns.tiles > 1) return;
    while (true) {
      DepthwiseTiling more = best_;
      more.channels *= 2;
      more = laid_out(more);
      if (more.channels > problem_.C || (wgrad_ && more.channels > kWgradChannels) ||
          bytes(more) > kSharedBytes[0] || items(more) > kDepthwiseThreads ||
          (!wgrad_ && blocks(more) < kManyBlocks && items(best_) >= kWarpSize))
        return;
      best_ = more;
    }
  }

  // Of planes that leave a warp's lanes without work, those of several images.
  void add_images() {
    while (items(best_) < 2 * kWarpSize * best_.channels) {
      DepthwiseTiling more = best_;
      more.images *= 2;
      more = laid_out(more);
      if (more.images > problem_.N || bytes(more) > kSharedBytes[0]) return;
      best_ = more;
    }
  }
};

Cut cut_fprop(const Conv2dProblem& problem, int64_t element) {
  return Cut(problem, fprop_axis(problem.H, problem.P, problem.R, problem.pad_top),
             fprop_axis(problem.W, problem.Q, problem.S, problem.pad_left), problem.stride_h, 1,
             DepthwiseStep<1, 1>::kRun, element, problem.input, problem.output, false);
}

Cut cut_dgrad(const Conv2dProblem& problem, int64_t element) {
  const int stride = problem.stride_h;
  return Cut(problem, dgrad_axis(problem.H, problem.P, problem.R, problem.pad_top, stride),
             dgrad_axis(problem.W, problem.Q, problem.S, problem.pad_left, stride), 1, stride,
             stride == 1 ? DepthwiseStep<1, 1>::kRun : DepthwiseStep<1, 2>::kRun, element,
             problem.output, problem.input, false);
}

// wgrad's tiles, and how they and the taps are shared.
struct WgradCut {
  Cut cut;
  int tiles, tiles_per_chunk, chunks;
  int squares, shares, warps, blocks;  // of a channel; of a square; of a block; side by side

  WgradCut(const Conv2dProblem& problem, int64_t element)
      : cut(problem, fprop_axis(problem.H, problem.P, problem.R, problem.pad_top),
            fprop_axis(problem.W, problem.Q, problem.S, problem.pad_left), problem.stride_h, 1,
            DepthwiseStep<1, 1>::kRun, element, problem.input, problem.output, true) {
    const DepthwiseTiling& tiling = cut.tiling();
    const int taps = taps_of(problem, kManySquareTaps);
    squares = ceil_divide(problem.R, taps) * ceil_divide(problem.S, taps);
    const int64_t items = ceil_divide(cut.items(tiling), tiling.channels);
    shares = std::max<int64_t>(1, std::min<int64_t>(kWgradWarps / (tiling.channels * squares),
                                                    ceil_divide(items, kWarpSize)));
    const int tasks = tiling.channels * squares * shares;
    blocks = ceil_divide(tasks, element > 4 ? kDepthwiseWarps<double> : kDepthwiseWarps<float>);
    warps = ceil_divide(tasks, blocks);

    tiles = ceil_divide(problem.N, tiling.images) * tiling.rows.tiles * tiling.columns.tiles;
    const int64_t additions = ceil_divide(items, shares * kWarpSize) * DepthwiseStep<1, 1>::kRun;
    const int64_t wanted =
        tiles * static_cast<int64_t>(tiling.channel_groups) * blocks / kManyBlocks;
    tiles_per_chunk = std::max<int64_t>(1, std::min(wanted, kMostAdditions / additions));
    chunks = ceil_divide(tiles, tiles_per_chunk);
  }
};

// ---- the passes ----

// Calls body(T, taps, stride) with constants, of which taps is kFewTaps or kMany.
template <int kMany, class Body>
void with_size(const Conv2dProblem& problem, Dtype dtype, const Body& body) {
  const auto with_stride = [&](auto zero, auto taps) {
    if (problem.stride_h == 1) return body(zero, taps, std::integral_constant<int, 1>());
    body(zero, taps, std::integral_constant<int, 2>());
  };
  with_dtype(dtype, [&](auto zero) {
    if (taps_of(problem, kMany) == kFewTaps)
      return with_stride(zero, std::integral_constant<int, kFewTaps>());
    with_stride(zero, std::integral_constant<int, kMany>());
  });
}

int threads_of(const Cut& cut) {
  const int64_t warps = ceil_divide(cut.items(cut.tiling()), kWarpSize);
  return std::min<int64_t>(warps * kWarpSize, kDepthwiseThreads);
}

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void*, Stream stream) {
  with_size<kManyTaps>(problem, dtype, [&](auto zero, auto taps, auto stride) {
    using T = decltype(zero);
    const Cut cut = cut_fprop(problem, sizeof(T));
    launch<conv2d_depthwise_fprop<T, taps.value, stride.value>>(
        dim3(cut.blocks(cut.tiling())), threads_of(cut), cut.bytes(cut.tiling()), stream, problem,
        cut.tiling(), static_cast<const T*>(input), static_cast<const T*>(weight),
        DepthwiseResult<T>{static_cast<T*>(output), problem.output, epilogue});
  });
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, void*, Stream stream) {
  with_size<kManyTaps>(problem, dtype, [&](auto zero, auto taps, auto stride) {
    using T = decltype(zero);
    const Cut cut = cut_dgrad(problem, sizeof(T));
    launch<conv2d_depthwise_dgrad<T, taps.value, stride.value>>(
        dim3(cut.blocks(cut.tiling())), threads_of(cut), cut.bytes(cut.tiling()), stream, problem,
        cut.tiling(), grad_output_of<T>(grad_output, relu_output), static_cast<const T*>(weight),
        DepthwiseResult<T>{static_cast<T*>(grad_input), problem.input, Epilogue{}});
  });
}

int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float64 ? sizeof(double) : dtype == Dtype::float32 ? sizeof(float) : 2;
}

int64_t workspace(const Conv2dProblem& problem, Dtype dtype, ConvPass pass) {
  if (pass != ConvPass::wgrad) return 0;
  const WgradCut cut(problem, size_of(dtype));
  return chunk_bytes(problem, dtype) * cut.chunks * cut.shares;
}

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, void* workspace,
           Stream stream) {
  with_size<kManySquareTaps>(problem, dtype, [&](auto zero, auto taps, auto stride) {
    using T = decltype(zero);
    const WgradCut cut(problem, sizeof(T));
    const DepthwiseTiling& tiling = cut.cut.tiling();
    auto* partials = static_cast<Accumulator<T>*>(workspace);
    if (cut.chunks > 0) {
      const dim3 grid(cut.chunks, tiling.channel_groups, cut.blocks);
      launch<conv2d_depthwise_wgrad<T, taps.value, stride.value>>(
          grid, cut.warps * kWarpSize, cut.cut.bytes(tiling), stream, problem, tiling,
          grad_output_of<T>(grad_output, relu_output), static_cast<const T*>(input), partials,
          cut.tiles, cut.tiles_per_chunk, cut.shares);
    }
    add_chunks<T>(problem, partials, cut.chunks * cut.shares, grad_weight, stream);
  });
}

const char* unsupported(const Conv2dProblem& problem, Dtype) {
  if (problem.groups != problem.C || problem.K != problem.C)
    return "for groups of one channel and one filter alone";
  if (problem.R > kMostFilter || problem.S > kMostFilter) return "filters larger than 31x31";
  if (problem.stride_h != problem.stride_w || problem.stride_h > kMostStride)
    return "strides other than 1 and 2";
  if (problem.dilation_h != 1 || problem.dilation_w != 1) return "dilation";
  const int64_t planes = static_cast<int64_t>(problem.N) * problem.C;
  if (problem.C > kMostBlocksDown || planes * std::max(problem.H, problem.P) > INT_MAX ||
      planes * std::max(problem.W, problem.Q) > INT_MAX)
    return "more tiles than a grid has blocks";
  return nullptr;
}

}  // namespace

Conv2dAlgorithm conv2d_depthwise() {
  return {"depthwise", unsupported, fprop, dgrad, wgrad, nullptr, nullptr, workspace};
}

}  // namespace cnnkernels::CNN_TARGET
