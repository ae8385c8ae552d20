#include "../registry.h"
#include "conv2d_pool_implicit_gemm.cuh"

namespace cnnkernels::CNN_TARGET {

Conv2dAlgorithm conv2d_implicit_gemm();

namespace {

using ByScratch = PoolByScratch<conv2d_implicit_gemm>;

void fprop(const Conv2dPoolProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void* code, void* workspace, Stream stream) {
  if (!has_whole_windows(problem))
    return ByScratch::fprop(problem, dtype, input, weight, epilogue, output, code, workspace,
                            stream);
  const GemmSize size = window_size(problem);
  const bool packs = fprop_has_packs(problem.conv, input, weight, kPack<float>);
  with_tile(dtype, size, [&](auto zero, auto tile) {
    using T = decltype(zero);
    using Tile = decltype(tile);
    with_packs<T>(packs, [&](auto packs) {
      const dim3 grid(tiles<Tile>(size), problem.conv.groups);
      launch<conv2d_pool_implicit_gemm_fprop<T, Tile::kRows, Tile::kColumns, packs.value>>(
          grid, kBlockThreads<T, Tile::kRows, Tile::kColumns>, 0, stream, problem,
          static_cast<const T*>(input), static_cast<const T*>(weight), epilogue,
          static_cast<T*>(output), Codes{code, problem.wide_code()}, static_cast<T*>(workspace));
    });
  });
}

int64_t workspace_of(const Conv2dPoolProblem& problem, Dtype dtype, ConvPass pass) {
  if (pass != ConvPass::fprop || !has_whole_windows(problem))
    return ByScratch::workspace(problem, dtype, pass);
  const bool is_one_part = wgrad_size(problem.conv).rows <= kPartDepth;
  return is_one_part ? 0 : output_bytes(problem.conv, dtype);
}

const char* unsuited(const Conv2dPoolProblem& problem, Dtype) { return mostly_empty(problem.conv); }

}  // namespace

Conv2dPoolAlgorithm conv2d_pool_implicit_gemm() {
  return {"implicit_gemm",
          ByScratch::unsupported,
          fprop,
          ByScratch::dgrad,
          ByScratch::wgrad,
          nullptr,
          unsuited,
          workspace_of};
}

}  // namespace cnnkernels::CNN_TARGET
