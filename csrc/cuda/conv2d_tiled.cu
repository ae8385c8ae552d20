#include "../registry.h"
#include "conv2d_tiled.cuh"

namespace cnnkernels::CNN_TARGET {
namespace {

void fprop(const Conv2dProblem& problem, Dtype dtype, const void* input, const void* weight,
           Epilogue epilogue, void* output, void*, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_fprop<T>(problem, output_tiles(problem), input, weight, epilogue,
                    StoredOutput<T>{static_cast<T*>(output)}, stream);
  });
}

void dgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* weight, void* grad_input, void*, Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_dgrad<T>(problem, grad_output_of<T>(grad_output, relu_output), weight, grad_input,
                    stream);
  });
}

void wgrad(const Conv2dProblem& problem, Dtype dtype, const void* grad_output,
           const void* relu_output, const void* input, void* grad_weight, void* workspace,
           Stream stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_wgrad<T>(problem, grad_output_of<T>(grad_output, relu_output), input, grad_weight,
                    workspace, stream);
  });
}

int64_t workspace(const Conv2dProblem& problem, Dtype dtype, ConvPass pass) {
  return pass == ConvPass::wgrad ? bytes_of_chunks(problem, dtype) : 0;
}

}  // namespace

Conv2dAlgorithm conv2d_tiled() {
  return {"tiled", unfit_for_tiles, fprop, dgrad, wgrad, nullptr, nullptr, workspace};
}

}  // namespace cnnkernels::CNN_TARGET
