// implicit_gemm: a convolution as a matrix product whose im2col matrix is stored nowhere. For many
// channels and filters: float32 and float64, any strides, padding, dilation and groups.
//
//   fprop  rows are outputs, columns filters, the depth is channels x taps
//   dgrad  rows are pixels, columns channels, the depth is filters x taps. A stride divides the
//          pixels by their remainders: to each kind belong other taps, and a product of its own,
//          so that no zero is multiplied.
//   wgrad  rows are channels x taps, columns filters, the depth is the outputs of all images, cut
//          into chunks; a second kernel adds the chunks' sums in their order.
//   bgrad  is left to `direct`.
//
// One loop serves all (gemm.cuh); which element is where tells conv2d_gemm.cuh.
//
//        input, as if gathered (im2col)      a block of 256 threads, stage by stage of depth 8:
//        depth 8: channels x taps            128 x 8 pixels and 8 x 128 weights to registers, from
//       +--------+                           there to shared memory, while the stage before is
//  128  | a row a|   x  8 x 128 weights      multiplied; a thread loads 4 of each:
//  rows | thread |      = 128 x 128 sums       NCHW           a pixel's 4 depths; of 4 filters one
//       +--------+                             channels_last  4 channels at once, 16 bytes, of each
//
// Tiles, rows x columns: 128 x 128; 64 x 64 (64 threads) where 128 x 128 are too few blocks to fill
// a GPU, or columns too few; 128 x 32 (64 threads) for up to 32 columns. In float64 64 x 64, of 256
// threads with 4 x 4 sums each. conv2d_implicit_gemm.cu has the rule, a function of the problem.
//
// Cost: 2 * N*K*P*Q * C/groups*R*S FLOP a pass. For each depth a tile of 128 x 128 loads 256
// elements and makes 16,384 multiply-adds: 32 FLOP a byte (64 x 64: 16; 128 x 32: 12.8). Most of it
// comes from the caches: taps share pixels, blocks that run at the same time share rows. What
// global memory has to move is each tensor once, so that the bound is FP32 issue. 86 % of what a
// 128 x 128 tile issues are multiply-adds (channels_last: 89 %), 5 % read shared memory, whose
// banks do not conflict; the rest loads. 64 x 64 has 79 %, 128 x 32 76 % (86 and 85 %): a pixel
// serves fewer columns. Sums are kept in parts of 384 products that wait in the result: from the
// second part on it is read and written once more for each. wgrad writes and reads the sums of each
// chunk.
//
// What is lost: rows and columns that a tile has beyond the last, and up to 15 depths.
#pragma once

#include <type_traits>

#include "conv2d_gemm_launch.cuh"
#include "epilogue.cuh"
#include "gemm.cuh"
#include "index.cuh"

namespace cnnkernels::CNN_TARGET {

// How the passes load their operands: by 16 bytes where channels are neighbours in memory and their
// number allows (kPacks), or else element by element, for any strides, with lanes along what is
// contiguous in NCHW: pixels, and a filter's taps.
template <class T, int kRows, int kColumns, bool kPacks>
struct ImplicitGemm {
  using Tile = GemmTile<T, kRows, kColumns>;
  static constexpr int kThreads = Tile::kThreads;

  using PixelRows =
      std::conditional_t<kPacks, PacksAlongDepth<kRows, kThreads>, LanesAlongRows<kRows, kThreads>>;
  // LanesAlongDepth touch the fewest sectors, but keep registers for each of their rows.
  template <class Gradient>
  static constexpr bool kHasRoom = kRows * kStageDepth / kThreads <= 4 && Gradient::kIsPlain;
  template <class Gradient>
  using TapRows =
      std::conditional_t<kPacks, PacksAlongRows<kRows, kThreads>,
                         std::conditional_t<kHasRoom<Gradient>, LanesAlongDepth<kRows, kThreads>,
                                            LanesAlongRows<kRows, kThreads>>>;
  using WideColumns = std::conditional_t<kPacks, PacksAlongRows<kColumns, kThreads>,
                                         LanesAlongDepth<kColumns, kThreads>>;
  using DeepColumns = std::conditional_t<kPacks, PacksAlongDepth<kColumns, kThreads>,
                                         LanesAlongDepth<kColumns, kThreads>>;

  template <class Order = DrainOrder<!kPacks>>
  using Fprop = GemmTypes<Tile, Plain<T>, PixelRows, Plain<T>, DeepColumns, Order>;
  template <class Gradient>
  using Dgrad = GemmTypes<Tile, Gradient, PixelRows, Plain<T>, WideColumns, DrainOrder<!kPacks>>;
  template <class Gradient>
  using Wgrad =
      GemmTypes<Tile, Plain<T>, TapRows<Gradient>, Gradient, WideColumns, DrainOrder<true>>;
};

template <class T, int kRows, int kColumns>
constexpr int kBlockThreads = GemmTile<T, kRows, kColumns>::kThreads;

// Of a multiprocessor, at least. 512 threads can have 128 registers each, which are enough for
// most; where a block is small and a thread has to hold more of the next stage, 384 can have 168.
template <class T, int kRows, int kColumns, bool kHoldsMore>
constexpr int kBlocks = (kHoldsMore && kBlockThreads<T, kRows, kColumns> < 256 ? 384 : 512) /
                        kBlockThreads<T, kRows, kColumns>;

// Sums of fprop.
template <class T, class Shape>
struct OutputSink {
  T* output;
  int64_t column_step;
  Epilogue epilogue;
  const Shape& shape;

  __device__ T* waiting(int64_t offset, int, int k) const {
    return output + offset + k * column_step;
  }
  __device__ void store(bool is_whole, T* place, int64_t, int, int k, const T (&sum)[1]) const {
    *place = is_whole ? finish<T>(sum[0], epilogue, shape.first_column + k) : sum[0];
  }
};

// Of dgrad and, where the depth is not cut into chunks, of wgrad. A chunk's are [column][row].
template <class T>
struct GradientSink {
  T* gradient;
  int64_t column_step;
  bool is_chunk;

  __device__ T* waiting(int64_t offset, int row, int column) const {
    return gradient + (is_chunk ? row : offset) + column * column_step;
  }
  __device__ void store(bool, T* place, int64_t, int, int, const T (&sum)[1]) const {
    *place = sum[0];
  }
};

// Block y is group y.
template <class T, int kRows, int kColumns, bool kPacks>
__global__ void __launch_bounds__(kBlockThreads<T, kRows, kColumns>,
                                  (kBlocks<T, kRows, kColumns, kPacks>))
    conv2d_implicit_gemm_fprop(Conv2dProblem problem, const T* __restrict__ input,
                               const T* __restrict__ weight, Epilogue epilogue,
                               T* __restrict__ output) {
  using Gemm = ImplicitGemm<T, kRows, kColumns, kPacks>;
  using Shape = PixelGemm<kPacks>;
  SHARED_ARRAY(Shape, shape, [1]);
  if (threadIdx.x == 0) shape[0].set_fprop(problem, blockIdx.y);
  __syncthreads();
  run_gemm<typename Gemm::template Fprop<>>(
      shape[0], Plain<T>{input}, Plain<T>{weight}, 0, shape[0].end,
      OutputSink<T, Shape>{output, problem.output.c, epilogue, shape[0]});
}

// Block z has the pixels of remainder z by the strides.
template <class T, class Gradient, int kRows, int kColumns, bool kPacks>
__global__ void __launch_bounds__(kBlockThreads<T, kRows, kColumns>,
                                  (kBlocks<T, kRows, kColumns, kPacks || !Gradient::kIsPlain>))
    conv2d_implicit_gemm_dgrad(Conv2dProblem problem, Gradient grad_output,
                               const T* __restrict__ weight, T* __restrict__ grad_input) {
  using Gemm = ImplicitGemm<T, kRows, kColumns, kPacks>;
  using Shape = PixelGemm<kPacks>;
  SHARED_ARRAY(Shape, shape, [1]);
  if (threadIdx.x == 0) shape[0].set_dgrad(problem, blockIdx.y, blockIdx.z);
  __syncthreads();
  // The grid is made for the remainder that most pixels have.
  if (tile_corner<typename Gemm::Tile>(shape[0].columns).row >= shape[0].rows) return;
  run_gemm<typename Gemm::template Dgrad<Gradient>>(
      shape[0], grad_output, Plain<T>{weight}, 0, shape[0].end,
      GradientSink<T>{grad_input, problem.input.c, false});
}

// Block z has chunk z of the outputs, `chunk` of them. Where there are several chunks, sums go to
// partial[z][filter][row].
template <class T, class Gradient, int kRows, int kColumns, bool kPacks>
__global__ void __launch_bounds__(kBlockThreads<T, kRows, kColumns>,
                                  (kBlocks<T, kRows, kColumns, true>))
    conv2d_implicit_gemm_wgrad(Conv2dProblem problem, Gradient grad_output,
                               const T* __restrict__ input, int chunk, T* __restrict__ grad_weight,
                               T* __restrict__ partial) {
  using Gemm = ImplicitGemm<T, kRows, kColumns, kPacks>;
  using Shape = FilterGemm<kPacks>;
  SHARED_ARRAY(Shape, shape, [1]);
  const int outputs = problem.N * problem.P * problem.Q;
  const int begin = blockIdx.z * chunk;
  const int end = outputs - begin < chunk ? outputs : begin + chunk;
  if (threadIdx.x == 0) shape[0].set_wgrad(problem, blockIdx.y, begin);
  __syncthreads();
  const int64_t filters =
      static_cast<int64_t>(blockIdx.z) * problem.K + blockIdx.y * problem.group_filters();
  GradientSink<T> sink = {grad_weight, problem.weight.n, false};
  if (gridDim.z > 1) sink = {partial + filters * shape[0].rows, shape[0].rows, true};
  run_gemm<typename Gemm::template Wgrad<Gradient>>(shape[0], Plain<T>{input}, grad_output, begin,
                                                    end, sink);
}

// ---- for launchers ----

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

}  // namespace cnnkernels::CNN_TARGET
