#include <algorithm>
#include <climits>
#include <type_traits>

#include "../registry.h"
#include "conv2d_implicit_gemm.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

constexpr int kMostBlocks = 65535;  // of a grid, along y or z

// ---- which tile ----

template <int kRows_, int kColumns_>
struct TileSize {
  static constexpr int kRows = kRows_, kColumns = kColumns_;

  static int64_t tiles(int64_t rows, int64_t columns) {
    return ceil_divide(rows, kRows) * ceil_divide(columns, kColumns);
  }
};

// The size of a product; `batch` is how many there are side by side, at most.
struct GemmSize {
  int64_t rows, columns, batch;
};

// A GPU of 100 to 150 multiprocessors is busy with so many blocks of 256 threads.
constexpr int64_t kManyBlocks = 192;

// Calls body(T(), TileSize()): these are all the tiles that kernels are compiled for, in float32
// each of them with and without packs, and for the gradients with and without a ReLU's mask. The
// largest loads least for a multiply-add; few columns want a narrow one, small problems many small
// ones.
template <class Body>
void with_tile(Dtype dtype, const GemmSize& size, const Body& body) {
  if (dtype == Dtype::float64) return body(double(), TileSize<64, 64>());
  if (size.columns <= 32) return body(float(), TileSize<128, 32>());
  using Large = TileSize<128, 128>;
  if (size.columns > 64 && Large::tiles(size.rows, size.columns) * size.batch >= kManyBlocks)
    return body(float(), Large());
  body(float(), TileSize<64, 64>());
}

// ---- what can be loaded by 16 bytes ----

// Channels are neighbours, and groups of 4 of them aligned.
bool has_packs(const void* data, const Strides& strides) {
  const auto is_multiple = [](int64_t stride) { return stride % 4 == 0; };
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && strides.c == 1 &&
         is_multiple(strides.n) && is_multiple(strides.h) && is_multiple(strides.w);
}

bool has_packs(const Conv2dProblem& problem, const void* grad_output, const void* relu_output) {
  return has_packs(grad_output, problem.output) &&
         (relu_output == nullptr || has_packs(relu_output, problem.relu)) &&
         problem.group_channels() % 4 == 0 && problem.group_filters() % 4 == 0;
}

// Calls body(std::bool_constant); a pack of doubles would be another kernel.
template <class T, class Body>
void with_packs(bool packs, const Body& body) {
  if constexpr (std::is_same_v<T, float>)
    if (packs) return body(std::true_type());
  body(std::false_type());
}

template <class T, class Body>
void with_gradient(const void* grad_output, const void* relu_output, const Body& body) {
  const auto *grad = static_cast<const T*>(grad_output), *relu = static_cast<const T*>(relu_output);
  if (relu == nullptr)
    body(Plain<T>{grad});
  else
    body(Masked<T>{grad, relu});
}

// ---- the passes ----

GemmSize fprop_size(const Conv2dProblem& problem) {
  return {static_cast<int64_t>(problem.N) * problem.P * problem.Q, problem.group_filters(),
          problem.groups};
}

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, Stream stream) {
  const GemmSize size = fprop_size(problem);
  const bool packs = has_packs(input, problem.input) && has_packs(weight, problem.weight) &&
                     problem.group_channels() % 4 == 0;
  with_tile(dtype, size, [&](auto zero, auto tile) {
    using T = decltype(zero);
    using Tile = decltype(tile);
    with_packs<T>(packs, [&](auto packs) {
      const dim3 grid(Tile::tiles(size.rows, size.columns), problem.groups);
      launch<conv2d_implicit_gemm_fprop<T, Tile::kRows, Tile::kColumns, packs.value>>(
          grid, kBlockThreads<T, Tile::kRows, Tile::kColumns>, 0, stream, problem,
          static_cast<const T*>(input), static_cast<const T*>(weight), epilogue,
          static_cast<T*>(output));
    });
  });
}

// Of the pixels with remainders 0, of which there are most.
GemmSize dgrad_size(const Conv2dProblem& problem) {
  return {problem.N * ceil_divide(problem.H, problem.stride_h) *
              ceil_divide(problem.W, problem.stride_w),
          problem.group_channels(),
          static_cast<int64_t>(problem.groups) * problem.stride_h * problem.stride_w};
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, Stream stream) {
  const GemmSize size = dgrad_size(problem);
  const bool packs =
      has_packs(problem, grad_output, relu_output) && has_packs(weight, problem.weight);
  with_tile(dtype, size, [&](auto zero, auto tile) {
    using T = decltype(zero);
    using Tile = decltype(tile);
    with_gradient<T>(grad_output, relu_output, [&](const auto& gradient) {
      with_packs<T>(packs, [&](auto packs) {
        using Gradient = std::decay_t<decltype(gradient)>;
        const dim3 grid(Tile::tiles(size.rows, size.columns), problem.groups,
                        problem.stride_h * problem.stride_w);
        launch<conv2d_implicit_gemm_dgrad<T, Gradient, Tile::kRows, Tile::kColumns, packs.value>>(
            grid, kBlockThreads<T, Tile::kRows, Tile::kColumns>, 0, stream, problem, gradient,
            static_cast<const T*>(weight), static_cast<T*>(grad_input));
      });
    });
  });
}

// Outputs are summed in chunks: as many as give the GPU blocks enough, none so short that the
// tile's sums take longer to store than to compute, none so long that rounding errors grow.
constexpr int64_t kLeastChunk = 256, kMostChunk = 4096, kMostChunks = 1024;

GemmSize wgrad_size(const Conv2dProblem& problem) {
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.P * problem.Q;
  return {static_cast<int64_t>(problem.group_channels()) * problem.R * problem.S,
          problem.group_filters(), problem.groups * std::max<int64_t>(1, outputs / kLeastChunk)};
}

template <class Tile>
int64_t wgrad_chunk(const Conv2dProblem& problem) {
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.P * problem.Q;
  const GemmSize size = wgrad_size(problem);
  const int64_t tiles = problem.groups * Tile::tiles(size.rows, size.columns);
  const int64_t even = ceil_divide(outputs, ceil_divide(kManyBlocks, tiles));
  const int64_t chunk = std::clamp(even, kLeastChunk, kMostChunk);
  return ceil_divide(std::max(chunk, ceil_divide(outputs, kMostChunks)), kTableDepth) * kTableDepth;
}

template <class Tile>
int64_t wgrad_chunks(const Conv2dProblem& problem) {
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.P * problem.Q;
  return std::max<int64_t>(1, ceil_divide(outputs, wgrad_chunk<Tile>(problem)));
}

int64_t wgrad_workspace(const Conv2dProblem& problem, Dtype dtype) {
  const GemmSize size = wgrad_size(problem);
  int64_t bytes = 0;
  with_tile(dtype, size, [&](auto zero, auto tile) {
    const int64_t chunks = wgrad_chunks<decltype(tile)>(problem);
    if (chunks > 1) bytes = chunks * problem.K * size.rows * sizeof(zero);
  });
  return bytes;
}

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, void* workspace,
           Stream stream) {
  const GemmSize size = wgrad_size(problem);
  const bool packs =
      has_packs(problem, grad_output, relu_output) && has_packs(input, problem.input);
  with_tile(dtype, size, [&](auto zero, auto tile) {
    using T = decltype(zero);
    using Tile = decltype(tile);
    const int chunk = wgrad_chunk<Tile>(problem), chunks = wgrad_chunks<Tile>(problem);
    auto* partial = static_cast<T*>(workspace);
    auto* result = static_cast<T*>(grad_weight);
    with_gradient<T>(grad_output, relu_output, [&](const auto& gradient) {
      with_packs<T>(packs, [&](auto packs) {
        using Gradient = std::decay_t<decltype(gradient)>;
        const dim3 grid(Tile::tiles(size.rows, size.columns), problem.groups, chunks);
        launch<conv2d_implicit_gemm_wgrad<T, Gradient, Tile::kRows, Tile::kColumns, packs.value>>(
            grid, kBlockThreads<T, Tile::kRows, Tile::kColumns>, 0, stream, problem, gradient,
            static_cast<const T*>(input), chunk, result, partial);
        if (chunks > 1) add_chunks<T, packs.value>(problem, partial, chunks, grad_weight, stream);
      });
    });
  });
}

// ---- what it is for ----

// Whether offsets between elements fit 32 bits that lie within `images` images of C x H x W.
bool is_near(const Strides& strides, int64_t images, int64_t C, int64_t H, int64_t W) {
  return strides.at(images, C, H, W) <= INT_MAX;
}

// What a thread addresses from one element: a tile's pixels or a chunk's, and a tap beside them.
bool is_near(const Conv2dProblem& problem) {
  const int64_t outputs = fprop_size(problem).rows;
  const int64_t chunk = std::max(kMostChunk, outputs / kMostChunks) + kTableDepth;
  const int64_t smallest =
      std::max<int64_t>(1, std::min(static_cast<int64_t>(problem.P) * problem.Q,
                                    static_cast<int64_t>(problem.H) * problem.W));
  const int64_t images = std::min<int64_t>(problem.N, chunk / smallest + 2);
  const int64_t tall = dilated_extent(problem.R, problem.dilation_h);
  const int64_t wide = dilated_extent(problem.S, problem.dilation_w);
  const auto near_output = [&](const Strides& strides) {
    return is_near(strides, images, problem.group_filters(), problem.P + tall, problem.Q + wide);
  };
  return is_near(problem.input, images, problem.group_channels(), problem.H + tall,
                 problem.W + wide) &&
         near_output(problem.output) && near_output(problem.relu) &&
         is_near(problem.weight, problem.group_filters(), problem.group_channels(), problem.R,
                 problem.S);
}

const char* unsupported(const Conv2dProblem& problem, Dtype dtype) {
  constexpr int64_t kMostRows = INT_MAX - 2 * kMostChunk;  // rounded up to tiles and chunks
  if (dtype == Dtype::float16 || dtype == Dtype::bfloat16) return "16-bit types";
  if (problem.R > kMostGatherTaps || problem.S > kMostGatherTaps)
    return "filters larger than 15x15";
  if (problem.groups > kMostBlocks) return "more groups than a grid has blocks";
  if (static_cast<int64_t>(problem.stride_h) * problem.stride_w > kMostBlocks)
    return "strides larger than a grid";
  const int64_t pixels = static_cast<int64_t>(problem.N) * problem.H * problem.W;
  if (fprop_size(problem).rows > kMostRows || pixels > kMostRows ||
      wgrad_size(problem).rows > kMostRows ||
      static_cast<int64_t>(problem.K) * problem.R * problem.S > kMostRows)
    return "more than 2^31 pixels or taps";
  return is_near(problem) ? nullptr : "elements too far apart for offsets of 32 bits";
}

// A tile is mostly empty there, and a thread a result does more at once.
const char* unsuited(const Conv2dProblem& problem, Dtype) {
  constexpr int kLeastFilters = 8, kLeastTaps = 16, kLeastOutputs = 32;
  if (problem.group_filters() < kLeastFilters) return "fewer than 8 filters a group";
  if (wgrad_size(problem).rows < kLeastTaps) return "filters of fewer than 16 taps";
  return fprop_size(problem).rows < kLeastOutputs ? "fewer than 32 outputs a filter" : nullptr;
}

}  // namespace

Conv2dAlgorithm conv2d_implicit_gemm() {
  return {"implicit_gemm", unsupported, fprop, dgrad, wgrad, nullptr, unsuited, wgrad_workspace};
}

}  // namespace cnnkernels::CNN_TARGET
