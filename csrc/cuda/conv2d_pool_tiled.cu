#include "../registry.h"
#include "conv2d_pool_scratch.cuh"
#include "conv2d_pool_tiled.cuh"

namespace cnnkernels::CNN_TARGET {

Conv2dAlgorithm conv2d_tiled();

namespace {

using ByScratch = PoolByScratch<conv2d_tiled>;

int64_t tiles_of(const Pool2dProblem& pool) {
  return pool.N * ceil_divide(pool.P, windows_down(pool)) *
         ceil_divide(pool.Q, windows_across(pool));
}

const char* unsupported(const Conv2dPoolProblem& problem, Dtype dtype) {
  const Pool2dProblem& pool = problem.pool;
  if (const char* reason = unfit_for_tiles(problem.conv, dtype)) return reason;
  if (const char* reason = unfit_for_codes(problem, dtype)) return reason;
  if (dilated_extent(pool.R, pool.dilation_h) > kThreadRows ||
      dilated_extent(pool.S, pool.dilation_w) > kWarpSize)
    return "windows larger than a tile of 8x32 outputs";
  return tiles_of(pool) > INT_MAX ? "more tiles than a grid has blocks" : nullptr;
}

void fprop(const Conv2dPoolProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void* code, void*, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const PooledOutput<T> pooled{
        problem.pool, problem.average, static_cast<T*>(output), {code, problem.wide_code()}};
    launch_fprop<T>(problem.conv, tiles_of(problem.pool), input, weight, epilogue, pooled, stream);
  });
}

int64_t workspace(const Conv2dPoolProblem& problem, Dtype dtype, ConvPass pass) {
  return pass == ConvPass::fprop ? 0 : ByScratch::workspace(problem, dtype, pass);
}

}  // namespace

Conv2dPoolAlgorithm conv2d_pool_tiled() {
  return {"tiled",          unsupported, fprop,   ByScratch::dgrad,
          ByScratch::wgrad, nullptr,     nullptr, workspace};
}

}  // namespace cnnkernels::CNN_TARGET
