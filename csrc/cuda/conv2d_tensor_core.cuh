// tensor_core: the implicit GEMM (conv2d_implicit_gemm.cuh has the idea) on tensor cores: float16,
// bfloat16, and float32 where TF32 is allowed. fprop, dgrad and wgrad are the same products; the
// loop is mma_gemm.cuh's.
//
//                    rows (shared memory)    columns              sums leave along
//   fprop            pixels    Deep          filters    Deep      channels; NCHW: pixels
//   dgrad            pixels    Deep          channels   Wide      likewise
//   wgrad            taps      Wide          filters    Wide      taps
//
// Deep and Wide follow channels_last with channels in packs of 16 bytes: one cp.async a pack, with
// no register held. Where a ReLU masks the gradient, it passes through registers. In NCHW, or where
// packs are not aligned, a thread gathers the elements of a pack one by one, with lanes along what
// is contiguous, and so turns the tile while it loads.
//
// Tiles: 128 x 128, by 4 warps of 64 x 64, or of what goes through registers by 8 of 64 x 32; where
// those would be too few blocks or columns 64 x 64, by 4 warps of 32 x 32.
//
// Cost: 2 * N*K*P*Q * C/groups*R*S FLOP a pass. For each pack of depth a tile of 128 x 128 loads 4
// KiB and makes 128 * 128 * 8 multiply-adds (tf32: 4): 64 FLOP a byte (32). An A100's tensor cores
// make 312 TFLOP/s (156), and its L2 moves 5,120 bytes a cycle, 7.2 TB/s: 43 FLOP a byte (22). So
// the bound is the tensor pipe; for 64 x 64, which has half the FLOP a byte, it is L2.
#pragma once

#include <type_traits>

#include "conv2d_gemm_launch.cuh"
#include "epilogue.cuh"
#include "index.cuh"
#include "mma_gemm.cuh"

namespace cnnkernels::CNN_TARGET {

template <class T, bool kIsLarge, bool kIsCopied>
using TensorCoreTile =
    std::conditional_t<!kIsLarge, MmaTile<T, 64, 64, 32, 32, 4>,
                       std::conditional_t<kIsCopied, MmaTile<T, 128, 128, 64, 64, 4>,
                                          MmaTile<T, 128, 128, 64, 32, 3>>>;

// The products of an instance: with the large tile or the small one, loaded by packs or by
// elements; Gradient is Plain or Masked.
template <class T, bool kIsLarge, bool kPacks, class Gradient = Plain<T>>
struct TensorCore {
  static constexpr int kWidth = kPacks ? kPack<T> : 1;
  using Tile = TensorCoreTile<T, kIsLarge, kPacks && Gradient::kIsPlain>;

  template <int kSize>
  using DeepPattern = std::conditional_t<kPacks, DeepPacks<T, kSize, Tile::kThreads>,
                                         DeepElements<T, kSize, Tile::kThreads>>;
  template <int kSize>
  using WidePattern = std::conditional_t<kPacks, WidePacks<T, kSize, Tile::kThreads>,
                                         WideElements<T, kSize, Tile::kThreads>>;
  using DeepRows = Deep<T, Tile::kRows>;
  using WideRows = Wide<T, Tile::kRows>;
  using DeepColumns = Deep<T, Tile::kColumns>;
  using WideColumns = Wide<T, Tile::kColumns>;

  template <class Order = DrainOrder<!kPacks, kWidth>>
  using Fprop = MmaTypes<Tile, Plain<T>, DeepRows, DeepPattern<Tile::kRows>, Plain<T>, DeepColumns,
                         DeepPattern<Tile::kColumns>, kWidth, kWidth, Order>;
  using Dgrad = MmaTypes<Tile, Gradient, DeepRows, DeepPattern<Tile::kRows>, Plain<T>, WideColumns,
                         WidePattern<Tile::kColumns>, kWidth, kWidth, DrainOrder<!kPacks, kWidth>>;
  using Wgrad = MmaTypes<Tile, Plain<T>, WideRows, WidePattern<Tile::kRows>, Gradient, WideColumns,
                         WidePattern<Tile::kColumns>, 1, kWidth, DrainOrder<true, kWidth>>;
};

// Stores neighbours, by 16 bytes where there are several.
template <class T, int kWidth>
__device__ void store_packs(T* to, const T (&values)[kWidth]) {
  constexpr int kAccess = kWidth == 1 ? 1 : kPack<T>;
#pragma unroll
  for (int first = 0; first < kWidth; first += kAccess) {
    Elements<T, kAccess> access;
#pragma unroll
    for (int i = 0; i < kAccess; ++i) access.values[i] = values[first + i];
    *reinterpret_cast<Elements<T, kAccess>*>(to + first) = access;
  }
}

template <class T, int kWidth>
__device__ void store_sums(T* to, const float (&sums)[kWidth]) {
  T values[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values[i] = static_cast<T>(sums[i]);
  store_packs(to, values);
}

// Block y is group y.
template <class T, bool kIsLarge, bool kPacks>
__global__ void __launch_bounds__((TensorCore<T, kIsLarge, kPacks>::Tile::kThreads))
    conv2d_tensor_core_fprop(Conv2dProblem problem, const T* __restrict__ input,
                             const T* __restrict__ weight, Epilogue epilogue,
                             T* __restrict__ output) {
  using Types = typename TensorCore<T, kIsLarge, kPacks>::template Fprop<>;
  using Shape = PixelGemm<kPacks>;
  SHARED_ARRAY(Shape, shape, [1]);
  DYNAMIC_SHARED(T, stages);
  if (threadIdx.x == 0) shape[0].set_fprop(problem, blockIdx.y);
  __syncthreads();
  run_mma_gemm<Types>(shape[0], Plain<T>{input}, Plain<T>{weight}, 0, shape[0].end, stages,
                      [&](int64_t offset, int, int column, const auto& sums) {
                        constexpr int kWidth = Types::Drain::kWidth;
                        T values[kWidth];
#pragma unroll
                        for (int i = 0; i < kWidth; ++i)
                          values[i] =
                              finish<T>(sums[i], epilogue, shape[0].first_column + column + i);
                        store_packs(output + offset + column * problem.output.c, values);
                      });
}

// Block z has the pixels of remainder z by the strides.
template <class T, bool kIsLarge, bool kPacks, class Gradient>
__global__ void __launch_bounds__((TensorCore<T, kIsLarge, kPacks, Gradient>::Tile::kThreads))
    conv2d_tensor_core_dgrad(Conv2dProblem problem, Gradient grad_output,
                             const T* __restrict__ weight, T* __restrict__ grad_input) {
  using Types = typename TensorCore<T, kIsLarge, kPacks, Gradient>::Dgrad;
  using Shape = PixelGemm<kPacks>;
  SHARED_ARRAY(Shape, shape, [1]);
  DYNAMIC_SHARED(T, stages);
  if (threadIdx.x == 0) shape[0].set_dgrad(problem, blockIdx.y, blockIdx.z);
  __syncthreads();
  // The grid is made for the remainder that most pixels have.
  if (tile_corner<typename Types::Tile>(shape[0].columns).row >= shape[0].rows) return;
  run_mma_gemm<Types>(shape[0], grad_output, Plain<T>{weight}, 0, shape[0].end, stages,
                      [&](int64_t offset, int, int column, const auto& sums) {
                        store_sums(grad_input + offset + column * problem.input.c, sums);
                      });
}

// Block z has chunk z of the outputs, `chunk` of them. Sums go to partial[z][filter][row], if that
// is not null.
template <class T, bool kIsLarge, bool kPacks, class Gradient>
__global__ void __launch_bounds__((TensorCore<T, kIsLarge, kPacks, Gradient>::Tile::kThreads))
    conv2d_tensor_core_wgrad(Conv2dProblem problem, Gradient grad_output,
                             const T* __restrict__ input, int chunk, T* __restrict__ grad_weight,
                             float* __restrict__ partial) {
  using Types = typename TensorCore<T, kIsLarge, kPacks, Gradient>::Wgrad;
  using Shape = FilterGemm<kPacks>;
  SHARED_ARRAY(Shape, shape, [1]);
  DYNAMIC_SHARED(T, stages);
  const int outputs = problem.N * problem.P * problem.Q;
  const int begin = blockIdx.z * chunk;
  const int end = outputs - begin < chunk ? outputs : begin + chunk;
  if (threadIdx.x == 0) shape[0].set_wgrad(problem, blockIdx.y, begin);
  __syncthreads();
  run_mma_gemm<Types>(shape[0], Plain<T>{input}, grad_output, begin, end, stages,
                      [&](int64_t offset, int row, int column, const auto& sums) {
                        const int64_t filter = static_cast<int64_t>(blockIdx.z) * problem.K +
                                               blockIdx.y * problem.group_filters() + column;
                        if (partial != nullptr)
                          store_sums(partial + filter * shape[0].rows + row, sums);
                        else
                          store_sums(grad_weight + offset + column * problem.weight.n, sums);
                      });
}

// ---- for launchers ----

// Calls body(T()) with the type of the elements.
template <class Body>
void with_elements(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float32) return body(float());
  if (dtype == Dtype::float16) return body(__half());
  body(__nv_bfloat16());
}

inline int pack_of(Dtype dtype) { return dtype == Dtype::float32 ? kPack<float> : kPack<__half>; }

template <class Body>
void with_flag(bool flag, const Body& body) {
  if (flag) return body(std::true_type());
  body(std::false_type());
}

using LargeTile = TensorCoreTile<float, true, true>;
using SmallTile = TensorCoreTile<float, false, true>;

// The large tile loads least for a multiply-add; few columns and small problems want the small one.
inline bool is_large(const GemmSize& size) {
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

}  // namespace cnnkernels::CNN_TARGET
