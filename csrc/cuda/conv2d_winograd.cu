#include <algorithm>
#include <climits>

#include "../registry.h"
#include "conv2d_gemm_launch.cuh"
#include "conv2d_winograd.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

// Below these the transforms cost more than they save, or most of a GPU has no block.
constexpr int kFewestChannels = 32, kFewestPatches = 128, kFewestBlocks = 64;

// What follows from the rest.
template <class F>
WinogradShape completed(WinogradShape shape, int images) {
  using Tile = WinogradTile<F>;
  shape.patches_down = ceil_divide(shape.rows, F::kOut);
  shape.patches_across = ceil_divide(shape.columns, F::kOut);
  shape.patches = images * shape.patches_down * shape.patches_across;
  shape.blocks = ceil_divide(shape.filters, Tile::kFilters);
  shape.depth = ceil_divide(shape.channels, Tile::kDepth) * Tile::kDepth;
  shape.channels_fastest = channels_fastest(shape.source);
  shape.filters_fastest = channels_fastest(shape.result);
  return shape;
}

template <class F>
WinogradShape fprop_shape(const Conv2dProblem& problem) {
  WinogradShape shape{};
  shape.rows = problem.P, shape.columns = problem.Q;
  shape.height = problem.H, shape.width = problem.W;
  shape.top = problem.pad_top, shape.left = problem.pad_left;
  shape.channels = problem.group_channels(), shape.filters = problem.group_filters();
  shape.source = problem.input, shape.result = problem.output;
  shape.weight = problem.weight;
  shape.group_weight = problem.group_filters() * problem.weight.n;
  return completed<F>(shape, problem.N);
}

template <class F>
WinogradShape dgrad_shape(const Conv2dProblem& problem) {
  WinogradShape shape{};
  shape.rows = problem.H, shape.columns = problem.W;
  shape.height = problem.P, shape.width = problem.Q;
  shape.top = kWinogradTaps - 1 - problem.pad_top;
  shape.left = kWinogradTaps - 1 - problem.pad_left;
  shape.channels = problem.group_filters(), shape.filters = problem.group_channels();
  shape.source = problem.output, shape.mask = problem.relu, shape.result = problem.input;
  const Strides& weight = problem.weight;
  shape.weight = {weight.c, weight.n, -weight.h, -weight.w};  // from the last tap on
  shape.group_weight = problem.group_filters() * weight.n;
  return completed<F>(shape, problem.N);
}

template <class F>
int64_t workspace_of(const Conv2dProblem& problem, Dtype, ConvPass pass) {
  const auto shape = pass == ConvPass::fprop ? fprop_shape<F>(problem) : dgrad_shape<F>(problem);
  return problem.groups * shape.lines() * WinogradTile<F>::kFilterLine * sizeof(float);
}

template <class F, bool kMasked>
void run(const WinogradShape& shape, int groups, const float* source, const float* mask,
         const float* weight, const Epilogue& epilogue, void* result, void* workspace,
         Stream stream) {
  using Tile = WinogradTile<F>;
  auto* transformed = static_cast<float*>(workspace);
  launch<conv2d_winograd_filters<F>>(grid_for(groups * shape.lines() * Tile::kFilters),
                                     kThreadsPerBlock, 0, stream, shape, groups, weight,
                                     transformed);
  const dim3 grid(ceil_divide(shape.patches, Tile::kPatches) * shape.blocks, groups);
  launch<conv2d_winograd<F, kMasked>>(grid, Tile::kThreads, Tile::kShared * sizeof(float), stream,
                                      shape, source, mask, transformed, epilogue,
                                      static_cast<float*>(result));
}

template <class F>
void fprop(const Conv2dProblem& problem, Dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void* workspace, Stream stream) {
  run<F, false>(fprop_shape<F>(problem), problem.groups, static_cast<const float*>(input), nullptr,
                static_cast<const float*>(weight), epilogue, output, workspace, stream);
}

template <class F>
void dgrad(const Conv2dProblem& problem, Dtype, const void* grad_output, const void* relu_output,
           const void* weight, void* grad_input, void* workspace, Stream stream) {
  constexpr int kLast = kWinogradTaps - 1;
  const auto* last_tap = static_cast<const float*>(weight) + problem.weight.at(0, 0, kLast, kLast);
  const auto run_this = relu_output == nullptr ? run<F, false> : run<F, true>;
  run_this(dgrad_shape<F>(problem), problem.groups, static_cast<const float*>(grad_output),
           static_cast<const float*>(relu_output), last_tap, {nullptr, 0, false}, grad_input,
           workspace, stream);
}

template <class F>
const char* unsupported(const Conv2dProblem& problem, Dtype dtype) {
  using Tile = WinogradTile<F>;
  if (const char* reason = unfit_for_winograd(problem, dtype)) return reason;
  if (compiled_for<conv2d_winograd<F, false>>() < 80)
    return "GPUs, and builds, older than compute capability 8.0";
  if (problem.groups > kMostBlocks) return "more groups than a grid has blocks";
  for (const Strides& strides : {problem.input, problem.output, problem.relu})
    if (!is_near(strides, 0, 0, F::kIn, F::kIn))
      return "elements too far apart for offsets of 32 bits";
  const int64_t pixels = static_cast<int64_t>(problem.N) * std::max(problem.H, problem.P) *
                         std::max(problem.W, problem.Q);
  const int64_t channels = std::max(problem.group_channels(), problem.group_filters());
  const bool is_large =
      pixels > INT_MAX ||
      ceil_divide(pixels, Tile::kPatches) * ceil_divide(channels, Tile::kFilters) > INT_MAX;
  return is_large ? "more than 2^31 pixels or blocks" : nullptr;
}

template <class F>
const char* unsuited(const Conv2dProblem& problem, Dtype) {
  if (const char* reason = forgoes_winograd<F>(problem)) return reason;
  const int channels = problem.group_channels(), filters = problem.group_filters();
  if (std::min(channels, filters) < kFewestChannels)
    return "few channels or filters, whose transforms cost more than they save";
  const int64_t patches = winograd_patches<F>(problem);
  if (patches < kFewestPatches) return "few pixels, which do not pay for transforming the weight";
  using Tile = WinogradTile<F>;
  const int64_t blocks =
      ceil_divide(patches, Tile::kPatches) * ceil_divide(filters, Tile::kFilters);
  return blocks * problem.groups < kFewestBlocks ? "too few blocks to fill a GPU" : nullptr;
}

template <class F>
Conv2dAlgorithm conv2d(const char* name) {
  return {name, unsupported<F>, fprop<F>, dgrad<F>, nullptr, nullptr, unsuited<F>, workspace_of<F>};
}

}  // namespace

Conv2dAlgorithm conv2d_winograd() { return conv2d<Winograd2x2>("winograd"); }
Conv2dAlgorithm conv2d_winograd_4x4() { return conv2d<Winograd4x4>("winograd_4x4"); }

}  // namespace cnnkernels::CNN_TARGET
