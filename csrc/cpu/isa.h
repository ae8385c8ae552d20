// The instruction sets that the CPU kernels are compiled for. Every file of this folder but
// registry.cpp is compiled once for each, into a namespace of its own; which one runs is decided
// at run time.
#pragma once

#include "../registry.h"

namespace cnnkernels::cpu {

// "avx512", "avx2" or "portable": the widest that this machine has, unless the environment
// variable CNNKERNELS_CPU_ISA names a narrower one. Throws std::runtime_error if the variable
// names something unknown, or something that this machine lacks.
const char* isa();

namespace portable {
Conv2dAlgorithm conv2d_depthwise();
Conv2dAlgorithm conv2d_winograd_4x4();
Conv2dPoolAlgorithm conv2d_pool_winograd_4x4();
Conv2dAlgorithm conv2d_winograd();
Conv2dPoolAlgorithm conv2d_pool_winograd();
Conv2dAlgorithm conv2d_implicit_gemm();
Conv2dPoolAlgorithm conv2d_pool_implicit_gemm();
Pool2dAlgorithm pool2d_direct();
AdaptivePool2dAlgorithm adaptive_pool2d_direct();
}  // namespace portable

namespace avx2 {
Conv2dAlgorithm conv2d_depthwise();
Conv2dAlgorithm conv2d_winograd_4x4();
Conv2dPoolAlgorithm conv2d_pool_winograd_4x4();
Conv2dAlgorithm conv2d_winograd();
Conv2dPoolAlgorithm conv2d_pool_winograd();
Conv2dAlgorithm conv2d_implicit_gemm();
Conv2dPoolAlgorithm conv2d_pool_implicit_gemm();
Pool2dAlgorithm pool2d_direct();
AdaptivePool2dAlgorithm adaptive_pool2d_direct();
}  // namespace avx2

namespace avx512 {
Conv2dAlgorithm conv2d_depthwise();
Conv2dAlgorithm conv2d_winograd_4x4();
Conv2dPoolAlgorithm conv2d_pool_winograd_4x4();
Conv2dAlgorithm conv2d_winograd();
Conv2dPoolAlgorithm conv2d_pool_winograd();
Conv2dAlgorithm conv2d_implicit_gemm();
Conv2dPoolAlgorithm conv2d_pool_implicit_gemm();
Pool2dAlgorithm pool2d_direct();
AdaptivePool2dAlgorithm adaptive_pool2d_direct();
}  // namespace avx512

}  // namespace cnnkernels::cpu
