// The C++ type of each Dtype, and the type that its sums are kept in.
#pragma once

#include "../problem.h"
#include "device.h"

namespace cnnkernels::CNN_TARGET {

template <class T>
struct AccumulatorOf {
  using type = float;
};

template <>
struct AccumulatorOf<double> {
  using type = double;
};

template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// Calls body(T()) with the C++ type of `dtype`.
template <class Body>
void with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float32:
      return body(float());
    case Dtype::float64:
      return body(double());
    case Dtype::float16:
      return body(__half());
    case Dtype::bfloat16:
      return body(__nv_bfloat16());
  }
}

}  // namespace cnnkernels::CNN_TARGET
