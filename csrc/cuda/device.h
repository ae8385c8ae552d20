// The one file that knows which compiler is at work. Every .cu is compiled twice, by nvcc for
// the GPU (namespace cnnkernels::cuda) and by the host compiler for the emulator (namespace
// cnnkernels::emulated); what both of them get from here reads the same:
//
//   CNN_TARGET              the name of the namespace that kernels and launchers stand in
//   kTargetName             that name as a string
//   __global__ ... dim3     CUDA's own spelling: function attributes, threadIdx and friends,
//                           __syncthreads, __syncwarp, __shfl_*_sync, __half, __nv_bfloat16
//   SHARED_ARRAY(float, tile, [16][17]);   a static shared array, 16-byte aligned
//   DYNAMIC_SHARED(float, buffer);         float* buffer: the launch's dynamic shared memory
//   launch<kernel>(grid, block, shared_bytes, stream, arguments...)
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

constexpr const char* kTargetName = "cuda";

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

namespace cnnkernels::emulated {

constexpr const char* kTargetName = "emulated";

using namespace emulator::cuda;

// Runs the kernel; returns when it is done. Throws std::runtime_error for all that CUDA forbids.
template <auto Kernel, class... Args>
void launch(dim3 grid, dim3 block, std::size_t shared_bytes, Stream, Args... args) {
  const auto arguments = kernel_arguments(Kernel, args...);
  using Arguments = decltype(arguments);
  emulator::run_grid(
      {kernel_name(__PRETTY_FUNCTION__), grid, block, shared_bytes,
       [](const void* opaque) { std::apply(Kernel, *static_cast<Arguments*>(opaque)); },
       &arguments});
}

}  // namespace cnnkernels::emulated

#endif
