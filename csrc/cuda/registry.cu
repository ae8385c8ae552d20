// The CUDA algorithms, in order of preference; the emulator's list is this same file, compiled
// for the CPU. A new algorithm is its own file, a declaration and a line here.
#include "../registry.h"
#include "device.h"

namespace cnnkernels::CNN_TARGET {

Conv2dAlgorithm conv2d_depthwise();
Conv2dAlgorithm conv2d_tiled();
Conv2dAlgorithm conv2d_tensor_core();
Conv2dAlgorithm conv2d_winograd_4x4();
Conv2dAlgorithm conv2d_winograd();
Conv2dAlgorithm conv2d_implicit_gemm();
Conv2dAlgorithm conv2d_direct();
Conv2dPoolAlgorithm conv2d_pool_tiled();
Conv2dPoolAlgorithm conv2d_pool_tensor_core();
Conv2dPoolAlgorithm conv2d_pool_implicit_gemm();
Conv2dPoolAlgorithm conv2d_pool_direct();
Pool2dAlgorithm pool2d_vector();
Pool2dAlgorithm pool2d_direct();
AdaptivePool2dAlgorithm adaptive_pool2d_block();
AdaptivePool2dAlgorithm adaptive_pool2d_vector();
AdaptivePool2dAlgorithm adaptive_pool2d_direct();

std::vector<Conv2dAlgorithm> conv2d_algorithms() {
  return {conv2d_depthwise(), conv2d_tiled(),         conv2d_tensor_core(), conv2d_winograd_4x4(),
          conv2d_winograd(),  conv2d_implicit_gemm(), conv2d_direct()};
}
std::vector<Conv2dPoolAlgorithm> conv2d_pool_algorithms() {
  return {conv2d_pool_tiled(), conv2d_pool_tensor_core(), conv2d_pool_implicit_gemm(),
          conv2d_pool_direct()};
}
std::vector<Pool2dAlgorithm> pool2d_algorithms() { return {pool2d_vector(), pool2d_direct()}; }
std::vector<AdaptivePool2dAlgorithm> adaptive_pool2d_algorithms() {
  return {adaptive_pool2d_block(), adaptive_pool2d_vector(), adaptive_pool2d_direct()};
}

}  // namespace cnnkernels::CNN_TARGET
