// The one file that knows which compiler is at work. Every .cu is compiled by nvcc for the GPU
// (namespace cnnkernels::cuda) and twice by the host compiler for the emulator: as it is (namespace
// cnnkernels::emulated), and instrumented, to be observed (cnnkernels::instrumented). What all of
// them get from here reads the same:
//
//   CNN_TARGET              the name of the namespace that kernels and launchers stand in
//   __global__ ... dim3     CUDA's own spelling: function attributes, threadIdx and friends,
//                           warp and block synchronisation, atomics, vector types, __half ...
//   SHARED_ARRAY(float, tile, [16][17]);   a static shared array, 16-byte aligned
//   DYNAMIC_SHARED(float, buffer);         float* buffer: the launch's dynamic shared memory
//   launch<kernel>(grid, block, shared_bytes, stream, arguments...)
//   compiled_for<kernel>()   80 for compute capability 8.0, of the code that would run
//   copy_async<16>(shared, global, valid);  cp.async of 4, 8 or 16 bytes, those behind `valid` zero
//   commit_copies(); wait_copies<1>();      its groups: wait for all but the last one
//   sync_named(number, threads);            barriers 1 to 15, for some whole warps of the block;
//   arrive_named(number, threads);          to arrive is not to wait
//
// and instructions for which CUDA C++ has no function of its own:
//
//   multiply_add(a, b, c)            a * b + c, rounded once on a GPU
//   computed(x)                      x, a pointer to global memory or an int. nvcc keeps it as it
//                                    is, neither computing it again from its parts at each use nor,
//                                    what follows from it, ahead of the loop that it stands in
//   ldmatrix(matrices, row)          unsigned matrices[1, 2 or 4]: so many 8x8 matrices of 16-bit
//   ldmatrix_transposed(...)         elements of shared memory; lane 8 * i + j gives the address
//                                    of row j of matrix i, a multiple of 16
//   to_tf32(x)                       unsigned: the float x rounded to tf32
//   tf32_operand(bits)               unsigned: what an mma, which ignores the low 13 bits, takes
//   for
//                                    the float of these bits, rounded to tf32; NaNs are quiet ones
//   mma_m16n8k8_tf32(d, a, b, c)     float d[4] = unsigned a[4] * unsigned b[2] + float c[4]
//   mma_m16n8k16<T>(d, a, b, c)      the same for T = __half or __nv_bfloat16
//
// ldmatrix and mma want all lanes of a warp; emulator/tensor_core.h tells which lane holds what.
// tf32 and mma begin with sm_80.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../stream.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define CNN_TARGET cuda
#else
#include "../emulator/cuda.h"
#include "../emulator/tensor_core.h"
#ifndef CNN_TARGET
#define CNN_TARGET emulated
#endif
#endif

namespace cnnkernels::CNN_TARGET {

// The kernel in the __PRETTY_FUNCTION__ of a template whose first parameter is `Kernel`, as gcc
// and clang write it: "... [with auto Kernel = ns::kernel<float>; Args = ...]".
inline std::string kernel_name(std::string_view signature) {
  constexpr std::string_view kKey = "Kernel = ";
  const std::size_t key = signature.find(kKey);
  if (key == std::string_view::npos) return std::string(signature);
  const std::string_view rest = signature.substr(key + kKey.size());
  return std::string(rest.substr(0, rest.find_first_of(";]")));
}

// The arguments as the kernel's own parameter types, as if the kernel were called with them.
template <class... Parameters, class... Args>
std::tuple<Parameters...> kernel_arguments(void (*)(Parameters...), const Args&... args) {
  static_assert(sizeof...(Parameters) == sizeof...(Args), "a kernel takes all its parameters");
  return std::tuple<Parameters...>(args...);
}

}  // namespace cnnkernels::CNN_TARGET

#ifdef __CUDACC__

#define SHARED_ARRAY(type, name, extents) __shared__ __align__(16) type name extents

// One symbol for all types: an extern array may not be declared with two.
#define DYNAMIC_SHARED(type, name)                                           \
  extern __shared__ __align__(16) unsigned char cnnkernels_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(cnnkernels_dynamic_shared)

#ifndef CNNKERNELS_CUDA_ARCHS
#define CNNKERNELS_CUDA_ARCHS "nvcc's default"
#endif

namespace cnnkernels::cuda {

inline void check_launch(cudaError_t status, std::string_view signature) {
  if (status == cudaSuccess) return;
  std::string what = "kernel " + kernel_name(signature) + ": " + cudaGetErrorString(status);
  if (status == cudaErrorNoKernelImageForDevice) {
    what += " (compiled for: " CNNKERNELS_CUDA_ARCHS ")";
  }
  throw std::runtime_error(what);
}

// Throws std::runtime_error if the kernel cannot be launched; errors while it runs show later.
template <auto Kernel, class... Args>
void launch(dim3 grid, dim3 block, std::size_t shared_bytes, Stream stream, Args... args) {
  constexpr std::size_t kFreeOfOptIn = 48 << 10;
  const void* kernel = reinterpret_cast<const void*>(Kernel);
  if (shared_bytes > kFreeOfOptIn) {
    check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared_bytes)),
                 __PRETTY_FUNCTION__);
  }
  auto arguments = kernel_arguments(Kernel, args...);
  std::apply(
      [&](auto&... converted) {
        void* pointers[] = {&converted..., nullptr};
        cudaLaunchKernel(kernel, grid, block, pointers, shared_bytes,
                         static_cast<cudaStream_t>(stream));
      },
      arguments);
  check_launch(cudaGetLastError(), __PRETTY_FUNCTION__);
}

// The compute capability, times 10, whose code runs on the current device: what __CUDA_ARCH__, a
// tenth of it, was. 0 where there is none.
template <auto Kernel>
int compiled_for() {
  cudaFuncAttributes attributes;
  const bool known = cudaFuncGetAttributes(&attributes, Kernel) == cudaSuccess;
  if (!known) static_cast<void>(cudaGetLastError());  // forgotten
  return known ? attributes.ptxVersion : 0;
}

// cp.async came with sm_80; before, the copy is made at once.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const auto from = __cvta_generic_to_global(global);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
                 "r"(valid)
                 : "memory");
  }
#else
  for (int i = 0; i < kBytes; ++i) {
    static_cast<char*>(shared)[i] = i < valid ? static_cast<const char*>(global)[i] : 0;
  }
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kPending>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

__device__ __forceinline__ void sync_named(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

__device__ __forceinline__ void arrive_named(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

template <int kMatrices>
__device__ __forceinline__ void ldmatrix(unsigned (&matrices)[kMatrices], const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(matrices[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
  }
}

template <int kMatrices>
__device__ __forceinline__ void ldmatrix_transposed(unsigned (&matrices)[kMatrices],
                                                    const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(matrices[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
  }
}

// Code for a GPU without the instruction is compiled too, and must not be run.
#if __CUDA_ARCH__ >= 800

__device__ __forceinline__ unsigned to_tf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// Half a unit in the last place that counts, whose carry rounds: two instructions, where cvt makes
// three. NaN must not overflow.
__device__ __forceinline__ unsigned tf32_operand(unsigned bits) {
  return fabsf(__uint_as_float(bits)) < INFINITY ? bits + 0x1000 : bits;
}

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4],
                                                 const unsigned (&b)[2], const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]));
}

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2], const float (&c)[4]) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  }
}

#else

__device__ __forceinline__ unsigned to_tf32(float) {
  __trap();
  return 0;
}

__device__ __forceinline__ unsigned tf32_operand(unsigned bits) { return bits; }

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&)[4], const unsigned (&)[4],
                                                 const unsigned (&)[2], const float (&)[4]) {
  __trap();
}

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&)[4], const unsigned (&)[4],
                                             const unsigned (&)[2], const float (&)[4]) {
  __trap();
}

#endif

template <class T>
__device__ __forceinline__ T multiply_add(T a, T b, T c) {
  return fma(a, b, c);
}

template <class T>
__device__ __forceinline__ T* computed(T* global) {
  asm volatile("" : "+l"(global));
  __builtin_assume(__isGlobal(global));
  return global;
}

__device__ __forceinline__ int computed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace cnnkernels::cuda

#else

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// Read by kernels alone; CUDA has it written from the host by cudaMemcpyToSymbol, which has no
// like here.
#define __constant__

// <memory>, above, uses the same name within an attribute and must come first; so must any header
// that does.
#define __noinline__ __attribute__((noinline))

#define SHARED_ARRAY(type, name, extents)                                                       \
  using name##_array = type extents;                                                            \
  static_assert(std::is_trivially_default_constructible_v<type> && alignof(type) <= 16);        \
  static constexpr ::cnnkernels::emulator::SharedArray name##_key{#name, sizeof(name##_array)}; \
  name##_array& name = *static_cast<name##_array*>(::cnnkernels::emulator::shared_array(name##_key))

#define DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(::cnnkernels::emulator::dynamic_shared())

namespace cnnkernels::CNN_TARGET {

using namespace emulator::cuda;
using emulator::SourceLine;

template <int kBytes>
void copy_async(void* shared, const void* global, int valid = kBytes,
                SourceLine line = SourceLine::here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::copy_async(shared, global, kBytes, valid, line);
}

using emulator::commit_copies;

template <int kPending>
void wait_copies() {
  emulator::wait_copies(kPending);
}

inline void sync_named(int number, int threads, SourceLine line = SourceLine::here()) {
  emulator::named_barrier(number, threads, true, line);
}

inline void arrive_named(int number, int threads, SourceLine line = SourceLine::here()) {
  emulator::named_barrier(number, threads, false, line);
}

using emulator::ldmatrix;
using emulator::ldmatrix_transposed;
using emulator::mma_m16n8k16;
using emulator::mma_m16n8k8_tf32;
using emulator::multiply_add;
using emulator::tf32_operand;
using emulator::to_tf32;

template <class T>
T computed(T x) {
  return x;
}

template <auto Kernel>
constexpr int compiled_for() {
  return 90;
}

// Runs the kernel; returns when it is done. Throws std::runtime_error for all that CUDA forbids.
template <auto Kernel, class... Args>
void launch(dim3 grid, dim3 block, std::size_t shared_bytes, Stream, Args... args) {
  const auto arguments = kernel_arguments(Kernel, args...);
  using Arguments = decltype(arguments);
  emulator::run_grid(
      {kernel_name(__PRETTY_FUNCTION__), grid, block, shared_bytes,
       [](const void* opaque) { std::apply(Kernel, *static_cast<Arguments*>(opaque)); }, &arguments,
       sizeof arguments, emulator::kInstrumented});
}

}  // namespace cnnkernels::CNN_TARGET

#endif
