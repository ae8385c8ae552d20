#include "../registry.h"
#include "conv2d_gemm_launch.cuh"
#include "conv2d_implicit_gemm.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void*, Stream stream) {
  const GemmSize size = fprop_size(problem);
  const bool packs = fprop_has_packs(problem, input, weight, kPack<float>);
  with_tile(dtype, size, [&](auto zero, auto tile) {
    using T = decltype(zero);
    using Tile = decltype(tile);
    with_packs<T>(packs, [&](auto packs) {
      const dim3 grid(tiles<Tile>(size), problem.groups);
      launch<conv2d_implicit_gemm_fprop<T, Tile::kRows, Tile::kColumns, packs.value>>(
          grid, kBlockThreads<T, Tile::kRows, Tile::kColumns>, 0, stream, problem,
          static_cast<const T*>(input), static_cast<const T*>(weight), epilogue,
          static_cast<T*>(output));
    });
  });
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, void*, Stream stream) {
  const GemmSize size = dgrad_size(problem);
  constexpr int kFloats = kPack<float>;
  const bool packs = gradient_has_packs(problem, grad_output, relu_output, kFloats) &&
                     weight_has_packs(problem, weight, kFloats);
  with_tile(dtype, size, [&](auto zero, auto tile) {
    using T = decltype(zero);
    using Tile = decltype(tile);
    with_gradient<T>(grad_output, relu_output, [&](const auto& gradient) {
      with_packs<T>(packs, [&](auto packs) {
        using Gradient = std::decay_t<decltype(gradient)>;
        const dim3 grid(tiles<Tile>(size), problem.groups, problem.stride_h * problem.stride_w);
        launch<conv2d_implicit_gemm_dgrad<T, Gradient, Tile::kRows, Tile::kColumns, packs.value>>(
            grid, kBlockThreads<T, Tile::kRows, Tile::kColumns>, 0, stream, problem, gradient,
            static_cast<const T*>(weight), static_cast<T*>(grad_input));
      });
    });
  });
}

int64_t workspace_of(const Conv2dProblem& problem, Dtype dtype, ConvPass pass) {
  if (pass != ConvPass::wgrad) return 0;
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
  constexpr int kFloats = kPack<float>;
  const bool packs = gradient_has_packs(problem, grad_output, relu_output, kFloats) &&
                     input_has_packs(problem, input, kFloats);
  with_tile(dtype, size, [&](auto zero, auto tile) {
    using T = decltype(zero);
    using Tile = decltype(tile);
    const int chunk = wgrad_chunk<Tile>(problem), chunks = wgrad_chunks<Tile>(problem);
    auto* partial = static_cast<T*>(workspace);
    auto* result = static_cast<T*>(grad_weight);
    with_gradient<T>(grad_output, relu_output, [&](const auto& gradient) {
      with_packs<T>(packs, [&](auto packs) {
        using Gradient = std::decay_t<decltype(gradient)>;
        const dim3 grid(tiles<Tile>(size), problem.groups, chunks);
        launch<conv2d_implicit_gemm_wgrad<T, Gradient, Tile::kRows, Tile::kColumns, packs.value>>(
            grid, kBlockThreads<T, Tile::kRows, Tile::kColumns>, 0, stream, problem, gradient,
            static_cast<const T*>(input), chunk, result, partial);
        if (chunks > 1) add_chunks<T, packs.value>(problem, partial, chunks, grad_weight, stream);
      });
    });
  });
}

const char* unsupported(const Conv2dProblem& problem, Dtype dtype) {
  if (dtype == Dtype::float16 || dtype == Dtype::bfloat16) return "16-bit types";
  return unreachable(problem);
}

const char* unsuited(const Conv2dProblem& problem, Dtype) { return mostly_empty(problem); }

}  // namespace

Conv2dAlgorithm conv2d_implicit_gemm() {
  return {"implicit_gemm", unsupported, fprop, dgrad, wgrad, nullptr, unsuited, workspace_of};
}

}  // namespace cnnkernels::CNN_TARGET
