#include "../registry.h"
#include "conv2d_pool_tensor_core.cuh"

namespace cnnkernels::CNN_TARGET {

Conv2dAlgorithm conv2d_tensor_core();

namespace {

using ByScratch = PoolByScratch<conv2d_tensor_core>;

void fprop(const Conv2dPoolProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void* code, void* workspace, Stream stream) {
  if (!has_whole_windows(problem))
    return ByScratch::fprop(problem, dtype, input, weight, epilogue, output, code, workspace,
                            stream);
  const GemmSize size = window_size(problem);
  const bool packs = fprop_has_packs(problem.conv, input, weight, pack_of(dtype));
  with_instance(dtype, is_large(size), packs, [&](auto zero, auto large, auto packs) {
    using T = decltype(zero);
    using Tile = typename TensorCore<T, large.value, packs.value>::Tile;
    const dim3 grid(tiles<Tile>(size), problem.conv.groups);
    launch<conv2d_pool_tensor_core_fprop<T, large.value, packs.value>>(
        grid, Tile::kThreads, Tile::kSharedBytes, stream, problem, static_cast<const T*>(input),
        static_cast<const T*>(weight), epilogue, static_cast<T*>(output),
        Codes{code, problem.wide_code()});
  });
}

int64_t workspace_of(const Conv2dPoolProblem& problem, Dtype dtype, ConvPass pass) {
  const bool needs_none = pass == ConvPass::fprop && has_whole_windows(problem);
  return needs_none ? 0 : ByScratch::workspace(problem, dtype, pass);
}

const char* unsuited(const Conv2dPoolProblem& problem, Dtype) { return mostly_empty(problem.conv); }

}  // namespace

Conv2dPoolAlgorithm conv2d_pool_tensor_core() {
  return {"tensor_core",
          ByScratch::unsupported,
          fprop,
          ByScratch::dgrad,
          ByScratch::wgrad,
          nullptr,
          unsuited,
          workspace_of};
}

}  // namespace cnnkernels::CNN_TARGET
