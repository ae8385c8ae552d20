// The one file that knows which compiler is at work. Every .cu is compiled by nvcc for the GPU
// (namespace cnnkernels::cuda) and twice by the host compiler for the emulator: as it is (namespace
// cnnkernels::emulated), and instrumented, to be observed (cnnkernels::instrumented). What all of
// them get from here reads the same:
//
//   CNN_TARGET              the name of the namespace that kernels and launchers stand in
//   __global__ ... dim3     CUDA's own spelling: function attributes, threadIdx and friends,
//                           __syncthreads, __syncwarp, __shfl_*_sync, __half, __nv_bfloat16
//   SHARED_ARRAY(float, tile, [16][17]);   a static shared array, 16-byte aligned
//   DYNAMIC_SHARED(float, buffer);         float* buffer: the launch's dynamic shared memory
//   launch<kernel>(grid, block, shared_bytes, stream, arguments...)
//   copy_async<16>(shared, global, valid);  cp.async of 4, 8 or 16 bytes, those behind `valid` zero
//   commit_copies(); wait_copies<1>();      its groups: wait for all but the last one
//   sync_named(number, threads);            barriers 1 to 15, for some whole warps of the block;
//   arrive_named(number, threads);          to arrive is not to wait
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "../registry.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define CNN_TARGET cuda
#else
#include "../emulator/cuda.h"
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

}  // namespace cnnkernels::cuda

#else

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

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
