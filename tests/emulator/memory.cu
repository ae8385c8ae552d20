// Kernels on how single threads access memory: vectors, atomics, loads and stores with cache
// hints, fences.
#include "../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

// ---- Vectors ----

template <class Vector, size_t kBytes, size_t kAlignment>
constexpr bool has_layout = sizeof(Vector) == kBytes && alignof(Vector) == kAlignment;

static_assert(has_layout<char2, 2, 2> && has_layout<uchar2, 2, 2>);
static_assert(has_layout<char4, 4, 4> && has_layout<uchar4, 4, 4>);
static_assert(has_layout<short2, 4, 4> && has_layout<ushort2, 4, 4>);
static_assert(has_layout<short4, 8, 8> && has_layout<ushort4, 8, 8>);
static_assert(has_layout<int2, 8, 8> && has_layout<uint2, 8, 8> && has_layout<float2, 8, 8>);
static_assert(has_layout<int4, 16, 16> && has_layout<uint4, 16, 16> && has_layout<float4, 16, 16>);
static_assert(has_layout<longlong2, 16, 16> && has_layout<ulonglong2, 16, 16>);
static_assert(has_layout<double2, 16, 16>);
static_assert(has_layout<__half, 2, 2> && has_layout<__nv_bfloat16, 2, 2>);
static_assert(has_layout<__half2, 4, 4> && has_layout<__nv_bfloat162, 4, 4>);

// Of the threads, number `odd` alone reads `read_offset` and writes `write_offset` bytes beside its
// element.
template <class Vector>
__global__ void copy_vectors(const char* in, char* out, int odd, int read_offset,
                             int write_offset) {
  const int thread = threadIdx.x;
  const char* from = in + thread * sizeof(Vector) + (thread == odd ? read_offset : 0);
  char* to = out + thread * sizeof(Vector) + (thread == odd ? write_offset : 0);
  const Vector value = *reinterpret_cast<const Vector*>(from);
  *reinterpret_cast<Vector*>(to) = value;
}

template __global__ void copy_vectors<char2>(const char*, char*, int, int, int);
template __global__ void copy_vectors<uchar4>(const char*, char*, int, int, int);
template __global__ void copy_vectors<short4>(const char*, char*, int, int, int);
template __global__ void copy_vectors<__half2>(const char*, char*, int, int, int);
template __global__ void copy_vectors<__nv_bfloat162>(const char*, char*, int, int, int);
template __global__ void copy_vectors<float2>(const char*, char*, int, int, int);
template __global__ void copy_vectors<float4>(const char*, char*, int, int, int);
template __global__ void copy_vectors<uint4>(const char*, char*, int, int, int);
template __global__ void copy_vectors<double2>(const char*, char*, int, int, int);

// As vectors are used: made, held in registers and shared memory, passed and returned.
__device__ float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__global__ void sum_neighbours(const float* in, float* out) {
  SHARED_ARRAY(float4, tile, [32]);
  const int thread = threadIdx.x;
  float4 sums[2] = {float4{1, 2, 3, 4}, {}};
  tile[thread] = reinterpret_cast<const float4*>(in)[thread];
  __syncthreads();
  const float4 next = tile[(thread + 1) % 32];
  sums[0] = add(sums[0], tile[thread]);
  sums[1] = add(sums[1], next);
  sums[0].x += 0.5f;
  const float4 total = add(sums[0], sums[1]);
  reinterpret_cast<float4*>(out)[thread] = total;
}

__global__ void make_vectors(int* out) {
  const char2 a = make_char2(1, -2);
  const uchar4 b = make_uchar4(3, 4, 5, 6);
  const short2 c = make_short2(-7, 8);
  const ushort4 d = make_ushort4(9, 10, 11, 12);
  const int4 e = make_int4(13, 14, 15, -16);
  const uint2 f = make_uint2(17, 18);
  const longlong2 g = make_longlong2(-19, 20);
  const double2 h = make_double2(21, 22);
  const int values[22] = {a.x,
                          a.y,
                          b.x,
                          b.y,
                          b.z,
                          b.w,
                          c.x,
                          c.y,
                          d.x,
                          d.y,
                          d.z,
                          d.w,
                          e.x,
                          e.y,
                          e.z,
                          e.w,
                          static_cast<int>(f.x),
                          static_cast<int>(f.y),
                          static_cast<int>(g.x),
                          static_cast<int>(g.y),
                          static_cast<int>(h.x),
                          static_cast<int>(h.y)};
  for (int i = 0; i < 22; ++i) out[i] = values[i];
}

// ---- Cache hints ----

__global__ void copy_with_hints(const float4* in, float4* out) {
  const int thread = threadIdx.x;
  const float4* from = in + thread;
  const float4 value = thread % 4 == 0   ? __ldg(from)
                       : thread % 4 == 1 ? __ldcs(from)
                       : thread % 4 == 2 ? __ldcg(from)
                                         : __ldca(from);
  if (thread % 2 == 0)
    __stcs(out + thread, value);
  else
    __stcg(out + thread, value);
}

__global__ void load_misaligned(const char* in, float* out) {
  out[0] = __ldg(reinterpret_cast<const float*>(in));
}

// ---- Atomics ----

enum class Atomic { add, sub, exchange, min, max, bit_and, bit_or, bit_xor, increment, decrement };

// Thread i does one operation on cells[i].
template <class T>
__global__ void apply_atomic(Atomic operation, T* cells, const T* values, T* before) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  T* cell = cells + i;
  const T value = values[i];
  if (operation == Atomic::min) before[i] = atomicMin(cell, value);
  if (operation == Atomic::max) before[i] = atomicMax(cell, value);
  if (operation == Atomic::bit_and) before[i] = atomicAnd(cell, value);
  if (operation == Atomic::bit_or) before[i] = atomicOr(cell, value);
  if (operation == Atomic::bit_xor) before[i] = atomicXor(cell, value);
  if constexpr (!std::is_same_v<T, long long>) {
    if (operation == Atomic::add) before[i] = atomicAdd(cell, value);
    if (operation == Atomic::exchange) before[i] = atomicExch(cell, value);
  }
  if constexpr (sizeof(T) == 4) {
    if (operation == Atomic::sub) before[i] = atomicSub(cell, value);
  }
  if constexpr (std::is_same_v<T, unsigned>) {
    if (operation == Atomic::increment) before[i] = atomicInc(cell, value);
    if (operation == Atomic::decrement) before[i] = atomicDec(cell, value);
  }
}

template __global__ void apply_atomic(Atomic, int*, const int*, int*);
template __global__ void apply_atomic(Atomic, unsigned*, const unsigned*, unsigned*);
template __global__ void apply_atomic(Atomic, long long*, const long long*, long long*);
template __global__ void apply_atomic(Atomic, unsigned long long*, const unsigned long long*,
                                      unsigned long long*);

// All threads add one to the same total; before[i] = what thread i found.
template <class T>
__global__ void add_ones(T* total, T* before) {
  before[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(total, T(1));
}

template __global__ void add_ones(int*, int*);
template __global__ void add_ones(unsigned*, unsigned*);
template __global__ void add_ones(unsigned long long*, unsigned long long*);
template __global__ void add_ones(float*, float*);
template __global__ void add_ones(double*, double*);
template __global__ void add_ones(__half*, __half*);
template __global__ void add_ones(__nv_bfloat16*, __nv_bfloat16*);

__global__ void add_pairs(__half2* total, __nv_bfloat162* btotal) {
  atomicAdd(total, __floats2half2_rn(1, 2));
  atomicAdd(btotal, __floats2bfloat162_rn(1, -1));
}

// The same by compare and swap.
template <class T>
__global__ void swap_ones(T* total, T* before) {
  T seen = *static_cast<volatile T*>(total), expected;
  do {
    expected = seen;
    seen = atomicCAS(total, expected, static_cast<T>(expected + 1));
  } while (seen != expected);
  before[blockIdx.x * blockDim.x + threadIdx.x] = seen;
}

template __global__ void swap_ones(int*, int*);
template __global__ void swap_ones(unsigned*, unsigned*);
template __global__ void swap_ones(unsigned long long*, unsigned long long*);
template __global__ void swap_ones(unsigned short*, unsigned short*);

// Every thread hands in its number, from 1, and takes what the one before it has left.
__global__ void pass_on(int* place, int* taken) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  taken[i] = atomicExch(place, i + 1);
}

constexpr int kBins = 16;

__global__ void count_values(const int* values, int* counts) {
  SHARED_ARRAY(int, bins, [kBins]);
  const int thread = threadIdx.x;
  if (thread < kBins) bins[thread] = 0;
  __syncthreads();
  atomicAdd(&bins[values[blockIdx.x * blockDim.x + thread]], 1);
  __syncthreads();
  if (thread < kBins) atomicAdd(&counts[thread], bins[thread]);
}

// The last block to have stored its part adds all parts.
__global__ void sum_in_last_block(const int* values, int* parts, unsigned* done, int* sum) {
  SHARED_ARRAY(bool, is_last, [1]);
  const int blocks = gridDim.x;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = values[blockIdx.x];
    __threadfence();
    is_last[0] = atomicInc(done, blocks - 1) == blocks - 1u;
  }
  __syncthreads();
  if (!is_last[0] || threadIdx.x != 0) return;
  __threadfence_block();
  __threadfence_system();
  int total = 0;
  for (int i = 0; i < blocks; ++i) total += static_cast<volatile int*>(parts)[i];
  *sum = total;
}

__global__ void add_misaligned(char* bytes, int offset) {
  if (threadIdx.x == 3) atomicAdd(reinterpret_cast<int*>(bytes + offset), 1);
}

}  // namespace cnnkernels::CNN_TARGET
