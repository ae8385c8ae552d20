#include "kernels.h"

namespace cnnkernels::CNN_TARGET {
namespace {

constexpr int kTile = 16;
constexpr unsigned kFullWarp = 0xffffffffu;

__global__ void __launch_bounds__(kTile* kTile)
    multiply_tiled(const float* a, const float* b, float* product, int n) {
  SHARED_ARRAY(float, a_tile, [kTile][kTile]);
  SHARED_ARRAY(float, b_tile, [kTile][kTile + 1]);
  const int x = threadIdx.x, y = threadIdx.y;
  const int row = blockIdx.y * kTile + y, column = blockIdx.x * kTile + x;
  float sum = 0;
  for (int k = 0; k < n; k += kTile) {
    a_tile[y][x] = a[row * n + k + x];
    b_tile[y][x] = b[(k + y) * n + column];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTile; ++i) sum += a_tile[y][i] * b_tile[i][x];
    __syncthreads();
  }
  product[row * n + column] = sum;
}

__global__ void number(int64_t* out) {
  const int64_t block =
      (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int64_t index = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  out[index] += index;
}

__device__ __forceinline__ float sum_warp(float value) {
  for (int distance = warpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_down_sync(kFullWarp, value, distance);
  }
  return value;
}

__global__ void sum_block(const float* values, float* sums) {
  SHARED_ARRAY(float, warp_sums, [32]);
  const int lane = threadIdx.x % warpSize, warp = threadIdx.x / warpSize;
  const float sum = sum_warp(values[blockIdx.x * blockDim.x + threadIdx.x]);
  if (lane == 0) warp_sums[warp] = sum;
  __syncthreads();
  if (warp != 0) return;
  const int warps = blockDim.x / warpSize;
  const float total = sum_warp(lane < warps ? warp_sums[lane] : 0);
  if (lane == 0) sums[blockIdx.x] = total;
}

template <class T>
__global__ void shuffle_lanes(int kind, const T* in, T* out, int operand, int width) {
  const int lane = threadIdx.x;
  const T value = in[lane];
  if (kind == 0) out[lane] = __shfl_sync(kFullWarp, value, operand, width);
  if (kind == 1) out[lane] = __shfl_up_sync(kFullWarp, value, operand, width);
  if (kind == 2) out[lane] = __shfl_down_sync(kFullWarp, value, operand, width);
  if (kind == 3) out[lane] = __shfl_xor_sync(kFullWarp, value, operand, width);
}

__global__ void shuffle_eight(const float* in, float* out) {
  const int lane = threadIdx.x;
  if (lane < 8) out[lane] = __shfl_down_sync(0xffu, in[lane], 1);
}

__global__ void sum_by_parity(const int* in, int* out) {
  const int lane = threadIdx.x;
  int sum = in[lane];
  if (lane % 2 == 0) {
    for (int i = 2; i < 32; i *= 2) sum += __shfl_xor_sync(0x55555555u, sum, i);
  } else {
    for (int i = 2; i < 32; i *= 2) sum += __shfl_xor_sync(0xaaaaaaaau, sum, i);
  }
  out[lane] = sum;
}

__global__ void add_neighbours(int* out, int rounds) {
  SHARED_ARRAY(int, value, [32]);
  const int lane = threadIdx.x;
  value[lane] = lane;
  for (int i = 0; i < rounds; ++i) {
    __syncwarp();
    const int next = value[(lane + 1) % 32];
    __syncwarp();
    value[lane] += next;
  }
  out[lane] = value[lane];
}

__global__ void barrier_after_exit() {
  if (blockIdx.x == 1 && threadIdx.x >= 32) return;
  __syncthreads();
}

__global__ void barriers_apart() {
  if (threadIdx.x >= 32 && threadIdx.x != 40) __syncwarp();
  __syncthreads();
}

__global__ void shuffle_masked(unsigned mask, int callers, bool late) {
  const int thread = threadIdx.x;
  if (late && thread >= callers) __syncwarp();
  if (thread >= callers) return;
  if (late) __syncwarp();
  __shfl_sync(mask, thread, 0);
}

__global__ void sync_remaining(int* out) {
  if (threadIdx.x >= 8 && threadIdx.x < 32) return;
  __syncwarp();
  out[threadIdx.x] = 1;
}

__global__ void touch_static_array(int index, bool write, float value, float* out) {
  SHARED_ARRAY(float, tile, [16]);
  float* element = &tile[0] + index;
  out[blockIdx.x] = *element;
  if (write && blockIdx.x == 2) *element = value;
}

__global__ void touch_dynamic_buffer(int index, bool write, float value, float* out) {
  DYNAMIC_SHARED(float, buffer);
  out[blockIdx.x] = buffer[index];
  if (write && blockIdx.x == 2) buffer[index] = value;
}

template <int kFloats>
__global__ void use_shared() {
  SHARED_ARRAY(float, array, [kFloats]);
  array[threadIdx.x] = 1;
}

template <int kUser>
__device__ float* scratch() {
  SHARED_ARRAY(float, array, [4]);
  return array;
}

__global__ void compare_scratch(int* out) {
  out[0] = scratch<0>() == scratch<0>();
  out[1] = scratch<0>() != scratch<1>();
}

__device__ int64_t descend_frames(int depth) {
  volatile int frame[256];
  for (int i = 0; i < 256; ++i) frame[i] = depth + i + threadIdx.x;
  int64_t sum = 0;
  if (depth > 1) {
    sum = descend_frames(depth - 1);
  } else {
    __syncthreads();
  }
  for (int i = 0; i < 256; ++i) sum += frame[i];
  return sum;
}

__global__ void descend_stack(int depth, int64_t* out) { out[threadIdx.x] = descend_frames(depth); }

__global__ void store_arguments(int64_t a, double b, const float* c, double* out) {
  out[0] = static_cast<double>(a);
  out[1] = b;
  out[2] = *c;
}

__global__ void divide_by_three(const volatile float* three, float* out) {
  out[2 * threadIdx.x] = 1 / *three;
  __syncthreads();
  out[2 * threadIdx.x + 1] = 1 / *three;
}

}  // namespace

void multiply(const float* a, const float* b, float* product, int n) {
  launch<multiply_tiled>(dim3(n / kTile, n / kTile), dim3(kTile, kTile), 0, nullptr, a, b, product,
                         n);
}

void number_threads(dim3 grid, dim3 block, int64_t* out) {
  launch<number>(grid, block, 0, nullptr, out);
}

void sum_blocks(const float* values, float* sums, int blocks, int threads) {
  launch<sum_block>(blocks, threads, 0, nullptr, values, sums);
}

template <class T>
void shuffle_warp(int kind, const T* in, T* out, int operand, int width) {
  launch<shuffle_lanes<T>>(1, 32, 0, nullptr, kind, in, out, operand, width);
}

template void shuffle_warp(int, const int*, int*, int, int);
template void shuffle_warp(int, const unsigned*, unsigned*, int, int);
template void shuffle_warp(int, const float*, float*, int, int);
template void shuffle_warp(int, const double*, double*, int, int);
template void shuffle_warp(int, const long long*, long long*, int, int);

void shuffle_down_eight(const float* in, float* out) {
  launch<shuffle_eight>(1, 32, 0, nullptr, in, out);
}

void sum_diverged(const int* in, int* out) { launch<sum_by_parity>(1, 32, 0, nullptr, in, out); }

void sync_warp_rounds(int* out, int rounds) {
  launch<add_neighbours>(1, 32, 0, nullptr, out, rounds);
}

void exit_before_barrier(int blocks) { launch<barrier_after_exit>(blocks, 64, 0, nullptr); }

void wait_apart() { launch<barriers_apart>(1, 64, 0, nullptr); }

void shuffle_with_mask(unsigned mask, int threads, int callers, bool late) {
  launch<shuffle_masked>(1, threads, 0, nullptr, mask, callers, late);
}

void sync_warp_after_exit(int* out) { launch<sync_remaining>(1, 40, 0, nullptr, out); }

void touch_static(int index, bool write, float value, float* out) {
  launch<touch_static_array>(3, 1, 0, nullptr, index, write, value, out);
}

void touch_dynamic(int index, bool write, float value, float* out) {
  launch<touch_dynamic_buffer>(3, 1, 16 * sizeof(float), nullptr, index, write, value, out);
}

void use_4k(size_t dynamic_bytes) { launch<use_shared<1024>>(1, 1, dynamic_bytes, nullptr); }

void use_48k(size_t dynamic_bytes) { launch<use_shared<12288>>(1, 1, dynamic_bytes, nullptr); }

void compare_arrays(int* out) { launch<compare_scratch>(1, 1, 0, nullptr, out); }

void descend(int depth, int threads, int64_t* out) {
  launch<descend_stack>(1, threads, 0, nullptr, depth, out);
}

void convert_arguments(int a, float b, float* c, double* out) {
  launch<store_arguments>(1, 1, 0, nullptr, a, b, c, out);
}

void divide(int threads, float* three, float* out) {
  launch<divide_by_three>(1, threads, 0, nullptr, three, out);
}

}  // namespace cnnkernels::CNN_TARGET
