#include "registry.h"

namespace cnnkernels {

#ifndef CNNKERNELS_WITH_CUDA
namespace cuda {
std::vector<Conv2dAlgorithm> conv2d_algorithms() { return {}; }
std::vector<Conv2dPoolAlgorithm> conv2d_pool_algorithms() { return {}; }
std::vector<Pool2dAlgorithm> pool2d_algorithms() { return {}; }
std::vector<AdaptivePool2dAlgorithm> adaptive_pool2d_algorithms() { return {}; }
}  // namespace cuda
#endif

const std::vector<Conv2dAlgorithm>& conv2d_algorithms(Backend backend) {
  static const std::vector<Conv2dAlgorithm> lists[] = {
      cpu::conv2d_algorithms(), emulated::conv2d_algorithms(), instrumented::conv2d_algorithms(),
      cuda::conv2d_algorithms()};
  return lists[static_cast<int>(backend)];
}

const std::vector<Conv2dPoolAlgorithm>& conv2d_pool_algorithms(Backend backend) {
  static const std::vector<Conv2dPoolAlgorithm> lists[] = {
      cpu::conv2d_pool_algorithms(), emulated::conv2d_pool_algorithms(),
      instrumented::conv2d_pool_algorithms(), cuda::conv2d_pool_algorithms()};
  return lists[static_cast<int>(backend)];
}

const std::vector<Pool2dAlgorithm>& pool2d_algorithms(Backend backend) {
  static const std::vector<Pool2dAlgorithm> lists[] = {
      cpu::pool2d_algorithms(), emulated::pool2d_algorithms(), instrumented::pool2d_algorithms(),
      cuda::pool2d_algorithms()};
  return lists[static_cast<int>(backend)];
}

const std::vector<AdaptivePool2dAlgorithm>& adaptive_pool2d_algorithms(Backend backend) {
  static const std::vector<AdaptivePool2dAlgorithm> lists[] = {
      cpu::adaptive_pool2d_algorithms(), emulated::adaptive_pool2d_algorithms(),
      instrumented::adaptive_pool2d_algorithms(), cuda::adaptive_pool2d_algorithms()};
  return lists[static_cast<int>(backend)];
}

}  // namespace cnnkernels
