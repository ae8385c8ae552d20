#include "../registry.h"
#include "conv2d_tensor_core.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void*, Stream stream) {
  const GemmSize size = fprop_size(problem);
  const int pack = pack_of(dtype);
  const bool packs = fprop_has_packs(problem, input, weight, pack) &&
                     output_has_packs(problem, output, pack) && problem.group_filters() % pack == 0;
  with_instance(dtype, is_large(size), packs, [&](auto zero, auto large, auto packs) {
    using T = decltype(zero);
    using Tile = typename TensorCore<T, large.value, packs.value>::Tile;
    const dim3 grid(tiles<Tile>(size), problem.groups);
    launch<conv2d_tensor_core_fprop<T, large.value, packs.value>>(
        grid, Tile::kThreads, Tile::kSharedBytes, stream, problem, static_cast<const T*>(input),
        static_cast<const T*>(weight), epilogue, static_cast<T*>(output));
  });
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, void*, Stream stream) {
  const GemmSize size = dgrad_size(problem);
  const int pack = pack_of(dtype);
  const bool packs = gradient_has_packs(problem, grad_output, relu_output, pack) &&
                     weight_has_packs(problem, weight, pack) &&
                     input_has_packs(problem, grad_input, pack);
  with_instance(dtype, is_large(size), packs, [&](auto zero, auto large, auto packs) {
    using T = decltype(zero);
    with_gradient<T>(grad_output, relu_output, [&](const auto& gradient) {
      using Gradient = std::decay_t<decltype(gradient)>;
      using Tile = typename TensorCore<T, large.value, packs.value, Gradient>::Tile;
      const dim3 grid(tiles<Tile>(size), problem.groups, problem.stride_h * problem.stride_w);
      launch<conv2d_tensor_core_dgrad<T, large.value, packs.value, Gradient>>(
          grid, Tile::kThreads, Tile::kSharedBytes, stream, problem, gradient,
          static_cast<const T*>(weight), static_cast<T*>(grad_input));
    });
  });
}

// How wgrad's depth is cut, and whether the chunks' sums wait in scratch memory: those of a single
// one too where the gradient cannot be stored by packs.
struct Chunks {
  int64_t size, count;
  bool waits;
};

template <class Tile>
Chunks cut_wgrad(const Conv2dProblem& problem, Dtype dtype) {
  const int64_t count = wgrad_chunks<Tile>(problem);
  const bool waits = count > 1 || !weight_has_packs(problem, nullptr, pack_of(dtype));
  return {wgrad_chunk<Tile>(problem), count, waits};
}

Chunks cut_wgrad(const Conv2dProblem& problem, Dtype dtype) {
  return is_large(wgrad_size(problem)) ? cut_wgrad<LargeTile>(problem, dtype)
                                       : cut_wgrad<SmallTile>(problem, dtype);
}

int64_t workspace_of(const Conv2dProblem& problem, Dtype dtype, ConvPass pass) {
  if (pass != ConvPass::wgrad) return 0;
  const Chunks chunks = cut_wgrad(problem, dtype);
  return chunks.waits ? chunks.count * chunk_bytes(problem, dtype) : 0;
}

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, void* workspace,
           Stream stream) {
  const GemmSize size = wgrad_size(problem);
  const int pack = pack_of(dtype);
  const bool packs = gradient_has_packs(problem, grad_output, relu_output, pack) &&
                     input_has_packs(problem, input, pack);
  const Chunks chunks = cut_wgrad(problem, dtype);
  auto* partial = static_cast<float*>(chunks.waits ? workspace : nullptr);
  with_instance(dtype, is_large(size), packs, [&](auto zero, auto large, auto packs) {
    using T = decltype(zero);
    with_gradient<T>(grad_output, relu_output, [&](const auto& gradient) {
      using Gradient = std::decay_t<decltype(gradient)>;
      using Tile = typename TensorCore<T, large.value, packs.value, Gradient>::Tile;
      const dim3 grid(tiles<Tile>(size), problem.groups, chunks.count);
      launch<conv2d_tensor_core_wgrad<T, large.value, packs.value, Gradient>>(
          grid, Tile::kThreads, Tile::kSharedBytes, stream, problem, gradient,
          static_cast<const T*>(input), static_cast<int>(chunks.size), static_cast<T*>(grad_weight),
          partial);
    });
    if (chunks.waits)
      add_chunks<T, packs.value>(problem, partial, chunks.count, grad_weight, stream);
  });
}

const char* unsupported(const Conv2dProblem& problem, Dtype dtype) {
  if (dtype == Dtype::float64) return "float64";
  if (dtype == Dtype::float32 && !problem.tf32) return "float32, unless TF32 is allowed";
  if (compiled_for<conv2d_tensor_core_fprop<__half, false, true>>() < 80)
    return "GPUs, and builds, older than compute capability 8.0";
  return unreachable(problem);
}

const char* unsuited(const Conv2dProblem& problem, Dtype) { return mostly_empty(problem); }

}  // namespace

Conv2dAlgorithm conv2d_tensor_core() {
  return {"tensor_core", unsupported, fprop, dgrad, wgrad, nullptr, unsuited, workspace_of};
}

}  // namespace cnnkernels::CNN_TARGET
