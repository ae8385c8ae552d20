#include <type_traits>

#include "../registry.h"
#include "conv2d_gemm_launch.cuh"
#include "conv2d_tensor_core.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

// Calls body(T()) with the type of the elements.
template <class Body>
void with_elements(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float32) return body(float());
  if (dtype == Dtype::float16) return body(__half());
  body(__nv_bfloat16());
}

int pack_of(Dtype dtype) { return dtype == Dtype::float32 ? kPack<float> : kPack<__half>; }

template <class Body>
void with_flag(bool flag, const Body& body) {
  if (flag) return body(std::true_type());
  body(std::false_type());
}

using LargeTile = TensorCoreTile<float, true, true>;
using SmallTile = TensorCoreTile<float, false, true>;

// The large tile loads least for a multiply-add; few columns and small problems want the small one.
bool is_large(const GemmSize& size) {
  return size.columns > SmallTile::kColumns && tiles<LargeTile>(size) * size.batch >= kManyBlocks;
}

// Calls body(T(), is it large?, are there packs?), the last two as std::bool_constant: with a Plain
// and a Masked gradient these are the instances.
template <class Body>
void with_instance(Dtype dtype, bool large, bool packs, const Body& body) {
  with_elements(dtype, [&](auto zero) {
    with_flag(large,
              [&](auto large) { with_flag(packs, [&](auto packs) { body(zero, large, packs); }); });
  });
}

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, Stream stream) {
  const GemmSize size = fprop_size(problem);
  const int pack = pack_of(dtype);
  const bool packs = input_has_packs(problem, input, pack) &&
                     weight_has_packs(problem, weight, pack) &&
                     output_has_packs(problem, output, pack) && groups_have_packs(problem, pack);
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
           const void* relu_output, const void* weight, void* grad_input, Stream stream) {
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

int64_t wgrad_workspace(const Conv2dProblem& problem, Dtype dtype) {
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
  return {"tensor_core", unsupported, fprop, dgrad, wgrad, nullptr, unsuited, wgrad_workspace};
}

}  // namespace cnnkernels::CNN_TARGET
