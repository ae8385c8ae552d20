#include <type_traits>

#include "../registry.h"
#include "conv2d_gemm_launch.cuh"
#include "conv2d_implicit_gemm.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

// ---- which tile ----

template <int kRows_, int kColumns_>
struct TileSize {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
};

// Calls body(T(), TileSize()): these are all the tiles that kernels are compiled for, in float32
// each of them with and without packs, and for the gradients with and without a ReLU's mask. The
// largest loads least for a multiply-add; few columns want a narrow one, small problems many small
// ones.
template <class Body>
void with_tile(Dtype dtype, const GemmSize& size, const Body& body) {
  if (dtype == Dtype::float64) return body(double(), TileSize<64, 64>());
  if (size.columns <= 32) return body(float(), TileSize<128, 32>());
  using Large = TileSize<128, 128>;
  if (size.columns > 64 && tiles<Large>(size) * size.batch >= kManyBlocks)
    return body(float(), Large());
  body(float(), TileSize<64, 64>());
}

// Calls body(std::bool_constant); a pack of doubles would be another kernel.
template <class T, class Body>
void with_packs(bool packs, const Body& body) {
  if constexpr (std::is_same_v<T, float>)
    if (packs) return body(std::true_type());
  body(std::false_type());
}

// ---- the passes ----

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, Stream stream) {
  const GemmSize size = fprop_size(problem);
  constexpr int kFloats = kPack<float>;
  const bool packs = input_has_packs(problem, input, kFloats) &&
                     weight_has_packs(problem, weight, kFloats) &&
                     problem.group_channels() % kFloats == 0;
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
           const void* relu_output, const void* weight, void* grad_input, Stream stream) {
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
  return {"implicit_gemm", unsupported, fprop, dgrad, wgrad, nullptr, unsuited, wgrad_workspace};
}

}  // namespace cnnkernels::CNN_TARGET
