// Kernels with one planted bug each, and without it. planted.cu is compiled so that the emulator
// can observe it, and by nvcc to prove that it is CUDA.
#pragma once

#include <vector>

#include "../../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

constexpr int kPlantedThreads = 64;  // of a block

// What a kernel without its bug leaves in out, of as many elements as threads.
enum class Result { copy, neighbours, sum };  // in[i]; in[i ^ 1]; in out[0] the sum of in

struct Planted {
  const char* name;
  Result result;
  const char* error;  // that the bug gives when checked: a part of its text
  void (*buggy)(int blocks, const float* in, float* out);
  void (*repaired)(int blocks, const float* in, float* out);
};

std::vector<Planted> planted();

}  // namespace cnnkernels::CNN_TARGET
