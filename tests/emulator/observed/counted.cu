#include "counted.h"

namespace cnnkernels::CNN_TARGET {
namespace {

template <class T>
__global__ void shared_strided(int stride, T* out) {
  DYNAMIC_SHARED(T, tile);
  for (int i = threadIdx.x; i < 32 * stride; i += 32) tile[i] = static_cast<T>(i);
  __syncthreads();
  out[threadIdx.x] = tile[stride * threadIdx.x];
}

__global__ void global_strided(int stride, const float* in, float* out) {
  out[threadIdx.x] = in[stride * threadIdx.x];
}

__global__ void loops(const float* in, float* out) {
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < static_cast<int>(threadIdx.x) % 4 + 1; ++j) sum += in[4 * i + j];
  }
  out[threadIdx.x] = sum;
}

__global__ void copies(const float* in, float* out) {
  SHARED_ARRAY(float, tile, [4 * 32]);
  const int first = 4 * threadIdx.x;
  copy_async<16>(&tile[first], in + first, threadIdx.x == 31 ? 4 : 16);
  commit_copies();
  wait_copies<0>();
  out[threadIdx.x] = tile[first];
}

__global__ void barriers() {
  for (int i = 0; i < 3; ++i) __syncthreads();
}

}  // namespace

template <class T>
void read_shared_strided(int stride, T* out) {
  launch<shared_strided<T>>(1, 32, 32 * stride * sizeof(T), nullptr, stride, out);
}

template void read_shared_strided(int, unsigned char*);
template void read_shared_strided(int, float*);
template void read_shared_strided(int, double*);

void read_global_strided(int stride, const float* in, float* out) {
  launch<global_strided>(1, 32, 0, nullptr, stride, in, out);
}

void read_in_loops(const float* in, float* out) { launch<loops>(1, 32, 0, nullptr, in, out); }

void copy_all_but_three(const float* in, float* out) { launch<copies>(1, 32, 0, nullptr, in, out); }

void meet_thrice() { launch<barriers>(2, 64, 0, nullptr); }

}  // namespace cnnkernels::CNN_TARGET
