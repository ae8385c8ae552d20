// Where kernels run in order: of its own, so that device.h does without the registry.
#pragma once

namespace cnnkernels {

using Stream = void*;  // a cudaStream_t; null off CUDA

}  // namespace cnnkernels
