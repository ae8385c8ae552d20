// The last step of every fprop kernel: add the bias, round to the output's type, apply ReLU.
#pragma once

#include "../registry.h"
#include "dtype.cuh"

namespace cnnkernels::CNN_TARGET {

// Rounds before the ReLU, as the sequence of the two modules would; NaN passes.
template <class T>
__device__ T finish(Accumulator<T> sum, const Epilogue& epilogue, int k) {
  if (epilogue.bias != nullptr)
    sum +=
        static_cast<Accumulator<T>>(static_cast<const T*>(epilogue.bias)[k * epilogue.bias_stride]);
  const T rounded = static_cast<T>(sum);
  const bool closed = epilogue.relu && static_cast<Accumulator<T>>(rounded) < 0;
  return closed ? static_cast<T>(Accumulator<T>(0)) : rounded;
}

}  // namespace cnnkernels::CNN_TARGET
