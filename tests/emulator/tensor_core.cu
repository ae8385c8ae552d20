// Kernels of one warp with the tensor cores' instructions.
#include "../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

// 32 rows of 8 elements come to shared memory; lane i gives ldmatrix the address of row rows[i],
// which is `offset` bytes off for the lane number `odd`. out[kMatrices * lane ..] = its registers.
template <int kMatrices, bool kTransposed>
__global__ void load_matrices(const unsigned short* in, const int* rows, int odd, int offset,
                              unsigned* out) {
  SHARED_ARRAY(unsigned short, tile, [33][8]);
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) tile[lane][i] = in[8 * lane + i];
  __syncthreads();
  const char* row = reinterpret_cast<const char*>(tile[rows[lane]]) + (lane == odd ? offset : 0);
  unsigned matrices[kMatrices];
  if constexpr (kTransposed)
    ldmatrix_transposed(matrices, row);
  else
    ldmatrix(matrices, row);
  for (int i = 0; i < kMatrices; ++i) out[kMatrices * lane + i] = matrices[i];
}

template __global__ void load_matrices<1, false>(const unsigned short*, const int*, int, int,
                                                 unsigned*);
template __global__ void load_matrices<2, false>(const unsigned short*, const int*, int, int,
                                                 unsigned*);
template __global__ void load_matrices<4, false>(const unsigned short*, const int*, int, int,
                                                 unsigned*);
template __global__ void load_matrices<1, true>(const unsigned short*, const int*, int, int,
                                                unsigned*);
template __global__ void load_matrices<2, true>(const unsigned short*, const int*, int, int,
                                                unsigned*);
template __global__ void load_matrices<4, true>(const unsigned short*, const int*, int, int,
                                                unsigned*);

enum class Mma { tf32, half, bfloat16 };

// Each lane's fragments lie in a row, a[4 * lane ..], b[2 * lane ..], c[4 * lane ..]; the product
// is accumulated `times` times.
template <Mma kMma>
__global__ void multiply_fragments(const unsigned* a, const unsigned* b, const float* c, float* d,
                                   int times, int lanes) {
  const int lane = threadIdx.x;
  unsigned a_fragment[4], b_fragment[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) a_fragment[i] = a[4 * lane + i];
  for (int i = 0; i < 2; ++i) b_fragment[i] = b[2 * lane + i];
  for (int i = 0; i < 4; ++i) sum[i] = c[4 * lane + i];
  if (lane >= lanes) return;
  for (int i = 0; i < times; ++i) {
    if constexpr (kMma == Mma::tf32)
      mma_m16n8k8_tf32(sum, a_fragment, b_fragment, sum);
    else if constexpr (kMma == Mma::half)
      mma_m16n8k16<__half>(sum, a_fragment, b_fragment, sum);
    else
      mma_m16n8k16<__nv_bfloat16>(sum, a_fragment, b_fragment, sum);
  }
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = sum[i];
}

template __global__ void multiply_fragments<Mma::tf32>(const unsigned*, const unsigned*,
                                                       const float*, float*, int, int);
template __global__ void multiply_fragments<Mma::half>(const unsigned*, const unsigned*,
                                                       const float*, float*, int, int);
template __global__ void multiply_fragments<Mma::bfloat16>(const unsigned*, const unsigned*,
                                                           const float*, float*, int, int);

// product[16][8] = a[16][16] * b[16][8], all row-major: A's four 8x8 matrices by one ldmatrix, B's
// two, which mma wants by columns, by a transposing one.
__global__ void multiply_from_shared(const __half* a, const __half* b, float* product) {
  SHARED_ARRAY(__half, a_tile, [16][16]);
  SHARED_ARRAY(__half, b_tile, [16][8]);
  const int lane = threadIdx.x;
  for (int i = lane; i < 16 * 16; i += 32) a_tile[i / 16][i % 16] = a[i];
  for (int i = lane; i < 16 * 8; i += 32) b_tile[i / 8][i % 8] = b[i];
  __syncwarp();
  unsigned a_fragment[4], b_fragment[2];
  float sum[4] = {0, 0, 0, 0};
  ldmatrix(a_fragment, &a_tile[lane % 16][lane / 16 * 8]);
  ldmatrix_transposed(b_fragment, &b_tile[lane % 16][0]);
  mma_m16n8k16<__half>(sum, a_fragment, b_fragment, sum);
  float* row = product + lane / 4 * 8 + lane % 4 * 2;
  *reinterpret_cast<float2*>(row) = make_float2(sum[0], sum[1]);
  *reinterpret_cast<float2*>(row + 8 * 8) = make_float2(sum[2], sum[3]);
}

__global__ void convert_to_tf32(const float* in, unsigned* out, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = to_tf32(in[i]);
}

}  // namespace cnnkernels::CNN_TARGET
