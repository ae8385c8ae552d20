// What the launchers of implicit GEMMs have in common: how large the products are, where wgrad's
// depth is cut, which tensors can be loaded by packs, and what offsets of 32 bits do not reach.
#pragma once

#include <algorithm>
#include <climits>

#include "conv2d_gemm.cuh"

namespace cnnkernels::CNN_TARGET {

constexpr int kMostBlocks = 65535;  // of a grid, along y or z

// ---- sizes ----

// The size of a product; `batch` is how many there are side by side, at most.
struct GemmSize {
  int64_t rows, columns, batch;
};

// A GPU of 100 to 150 multiprocessors is busy with so many blocks of 256 threads.
constexpr int64_t kManyBlocks = 192;

template <class Tile>
int64_t tiles(const GemmSize& size) {
  return ceil_divide(size.rows, Tile::kRows) * ceil_divide(size.columns, Tile::kColumns);
}

inline GemmSize fprop_size(const Conv2dProblem& problem) {
  return {static_cast<int64_t>(problem.N) * problem.P * problem.Q, problem.group_filters(),
          problem.groups};
}

// Of the pixels with remainders 0, of which there are most.
inline GemmSize dgrad_size(const Conv2dProblem& problem) {
  return {problem.N * ceil_divide(problem.H, problem.stride_h) *
              ceil_divide(problem.W, problem.stride_w),
          problem.group_channels(),
          static_cast<int64_t>(problem.groups) * problem.stride_h * problem.stride_w};
}

// Outputs are summed in chunks: as many as give the GPU blocks enough, none so short that the
// tile's sums take longer to store than to compute, none so long that rounding errors grow.
constexpr int64_t kLeastChunk = 256, kMostChunk = 4096, kMostChunks = 1024;

inline GemmSize wgrad_size(const Conv2dProblem& problem) {
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.P * problem.Q;
  return {static_cast<int64_t>(problem.group_channels()) * problem.R * problem.S,
          problem.group_filters(), problem.groups * std::max<int64_t>(1, outputs / kLeastChunk)};
}

template <class Tile>
int64_t wgrad_chunk(const Conv2dProblem& problem) {
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.P * problem.Q;
  const GemmSize size = wgrad_size(problem);
  const int64_t blocks = problem.groups * tiles<Tile>(size);
  const int64_t even = ceil_divide(outputs, ceil_divide(kManyBlocks, blocks));
  const int64_t chunk = std::clamp(even, kLeastChunk, kMostChunk);
  return ceil_divide(std::max(chunk, ceil_divide(outputs, kMostChunks)), kTableDepth) * kTableDepth;
}

template <class Tile>
int64_t wgrad_chunks(const Conv2dProblem& problem) {
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.P * problem.Q;
  return std::max<int64_t>(1, ceil_divide(outputs, wgrad_chunk<Tile>(problem)));
}

// ---- what can be loaded by 16 bytes ----

// Whether channels are neighbours, and groups of `pack` of them aligned. The sizes are those of the
// dimensions beside them: where one is 1, its stride says nothing.
inline bool has_packs(const void* data, const Strides& strides, int n, int h, int w, int pack) {
  const auto is_aligned = [&](int size, int64_t stride) { return size == 1 || stride % pack == 0; };
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && strides.c == 1 &&
         is_aligned(n, strides.n) && is_aligned(h, strides.h) && is_aligned(w, strides.w);
}

// Of input or grad_input, of weight or grad_weight, and of what lies where the output does.
inline bool input_has_packs(const Conv2dProblem& problem, const void* input, int pack) {
  return has_packs(input, problem.input, problem.N, problem.H, problem.W, pack);
}
inline bool weight_has_packs(const Conv2dProblem& problem, const void* weight, int pack) {
  return has_packs(weight, problem.weight, problem.K, problem.R, problem.S, pack);
}
inline bool output_has_packs(const Conv2dProblem& problem, const void* output, int pack) {
  return has_packs(output, problem.output, problem.N, problem.P, problem.Q, pack);
}

// Whether a pack holds channels, and filters, of one group.
inline bool groups_have_packs(const Conv2dProblem& problem, int pack) {
  return problem.group_channels() % pack == 0 && problem.group_filters() % pack == 0;
}

// A gradient, what masks it, and the groups.
// What fprop loads.
inline bool fprop_has_packs(const Conv2dProblem& problem, const void* input, const void* weight,
                            int pack) {
  return input_has_packs(problem, input, pack) && weight_has_packs(problem, weight, pack) &&
         problem.group_channels() % pack == 0;
}

inline bool gradient_has_packs(const Conv2dProblem& problem, const void* grad_output,
                               const void* relu_output, int pack) {
  return output_has_packs(problem, grad_output, pack) && groups_have_packs(problem, pack) &&
         (relu_output == nullptr ||
          has_packs(relu_output, problem.relu, problem.N, problem.P, problem.Q, pack));
}

template <class T, class Body>
void with_gradient(const void* grad_output, const void* relu_output, const Body& body) {
  const auto *grad = static_cast<const T*>(grad_output), *relu = static_cast<const T*>(relu_output);
  if (relu == nullptr)
    body(Plain<T>{grad});
  else
    body(Masked<T>{grad, relu});
}

// ---- what they are for ----

// Whether offsets between elements fit 32 bits that lie within `images` images of C x H x W.
inline bool is_near(const Strides& strides, int64_t images, int64_t C, int64_t H, int64_t W) {
  return strides.at(images, C, H, W) <= INT_MAX;
}

// What a thread addresses from one element: a tile's pixels or a chunk's, and a tap beside them.
inline bool is_near(const Conv2dProblem& problem) {
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

// Why a product's rows, columns or depths cannot be counted or found, or null.
inline const char* unreachable(const Conv2dProblem& problem) {
  constexpr int64_t kMostRows = INT_MAX - 2 * kMostChunk;  // rounded up to tiles and chunks
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
inline const char* mostly_empty(const Conv2dProblem& problem) {
  constexpr int kLeastFilters = 8, kLeastTaps = 16, kLeastOutputs = 32;
  if (problem.group_filters() < kLeastFilters) return "fewer than 8 filters a group";
  if (wgrad_size(problem).rows < kLeastTaps) return "filters of fewer than 16 taps";
  return fprop_size(problem).rows < kLeastOutputs ? "fewer than 32 outputs a filter" : nullptr;
}

}  // namespace cnnkernels::CNN_TARGET
