// What the convolutions' kernels have in common: where gradients come from, how long a sum may get.
#pragma once

#include "../problem.h"
#include "dtype.cuh"

namespace cnnkernels::CNN_TARGET {

// Sums over many channels are kept in parts of this many, which are then added: rounding errors
// grow with the length of a chain of additions, and two short chains err less than a long one.
constexpr int kChannelsPerPart = 16;

// The gradient of the convolution's sum: grad_output itself, or zero where a fused ReLU was
// closed. NaN counts as open, as in torch.
template <class T>
struct GradOutput {
  const T* grad;
  const T* relu;  // saved output of conv+ReLU, or null

  __device__ Accumulator<T> at(const Conv2dProblem& problem, int n, int k, int p, int q) const {
    using A = Accumulator<T>;
    // Both are loaded at once: a load that waits for the other would take twice as long.
    const A gradient = static_cast<A>(grad[problem.output.at(n, k, p, q)]);
    if (relu == nullptr) return gradient;
    return static_cast<A>(relu[problem.relu.at(n, k, p, q)]) <= 0 ? A(0) : gradient;
  }
};

template <class T>
GradOutput<T> grad_output_of(const void* grad_output, const void* relu_output) {
  return {static_cast<const T*>(grad_output), static_cast<const T*>(relu_output)};
}

}  // namespace cnnkernels::CNN_TARGET
