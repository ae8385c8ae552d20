// Kernels of CUDA's small functions of one thread, a thread per element.
#include "../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

__constant__ int kPrimes[5] = {2, 3, 5, 7, 11};

struct __align__(32) Aligned {
  char first;
};

__device__ __noinline__ int prime(int i) { return kPrimes[i]; }

// out[7 * i ..]: popc, clz, ffs, brev of a; mulhi, umulhi of a and b; a prime.
__global__ void integer_functions(const int* a, const int* b, int* out) {
  const int i = threadIdx.x, x = a[i], y = b[i];
  int* results = out + 7 * i;
  results[0] = __popc(x);
  results[1] = __clz(x);
  results[2] = __ffs(x);
  results[3] = static_cast<int>(__brev(x));
  results[4] = __mulhi(x, y);
  results[5] = static_cast<int>(__umulhi(x, y));
  results[6] = prime(i % 5);
}

// out[4 * i ..]: the same of 64 bits, but products.
__global__ void wide_functions(const long long* a, long long* out) {
  const long long x = a[threadIdx.x];
  long long* results = out + 4 * threadIdx.x;
  results[0] = __popcll(x);
  results[1] = __clzll(x);
  results[2] = __ffsll(x);
  results[3] = static_cast<long long>(__brevll(x));
}

// To another type of the same size and back by the other function, with a bit changed between.
__global__ void float_bits(const float* in, float* out, double* wide) {
  const float x = in[threadIdx.x];
  out[2 * threadIdx.x] = __int_as_float(__float_as_int(x) ^ 1);
  out[2 * threadIdx.x + 1] = __uint_as_float(__float_as_uint(x) ^ 0x80000000u);
  wide[threadIdx.x] = __longlong_as_double(__double_as_longlong(x) ^ 1);
}

// out[0 .. 18): min, max of mixed types, as double. The types are CUDA's.
__global__ void minima(int i, unsigned u, long long l, float f, double d, double* out) {
  static_assert(std::is_same_v<decltype(min(i, i)), int>);
  static_assert(std::is_same_v<decltype(min(i, u)), unsigned>);
  static_assert(std::is_same_v<decltype(max(f, f)), float>);
  static_assert(std::is_same_v<decltype(max(f, d)), double>);
  static_assert(std::is_same_v<decltype(max(l, l)), long long>);
  const short s = 3;
  const double results[18] = {double(min(i, 2)),
                              double(max(i, 2)),
                              double(min(i, u)),
                              double(max(i, u)),
                              double(min(l, 9ll)),
                              double(max(l, 9ll)),
                              double(min(f, 1.5f)),
                              double(max(f, 1.5f)),
                              min(d, 0.25),
                              max(d, 0.25),
                              min(f, d),
                              max(f, d),
                              double(min(s, s)),
                              double(max(u, 8u)),
                              min(nanf(""), f),
                              max(f, nanf("")),
                              double(__fmaf_rn(f, f, -1.0f)),
                              double(alignof(Aligned))};
  for (int k = 0; k < 18; ++k) out[k] = results[k];
}

template <class T>
__global__ void multiply_and_add(const T* a, const T* b, const T* c, T* out) {
  const int i = threadIdx.x;
  out[i] = multiply_add(a[i], b[i], c[i]);
}

template __global__ void multiply_and_add(const float*, const float*, const float*, float*);
template __global__ void multiply_and_add(const double*, const double*, const double*, double*);

}  // namespace cnnkernels::CNN_TARGET
