// What every fused conv + ReLU + pool has in common: how a window takes in the convolution's
// outputs and what code it leaves, and how the gradient of the convolution's output follows from
// the pooled gradient and the codes (problem.h, Conv2dPoolProblem).
#pragma once

#include <limits>

#include "../problem.h"
#include "dtype.cuh"

namespace cnnkernels::CNN_TARGET {

// Codes of one byte or four; no data, no codes.
struct Codes {
  void* data;
  bool wide;

  __device__ void store(int64_t i, unsigned code) const {
    if (data == nullptr) return;
    if (wide)
      static_cast<unsigned*>(data)[i] = code;
    else
      static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(code);
  }
  __device__ unsigned load(int64_t i) const {
    return wide ? static_cast<const unsigned*>(data)[i] : static_cast<const uint8_t*>(data)[i];
  }
};

// A window takes its taps in row-major order. Of equals the first is the maximum, of NaNs the last.
template <class T>
struct MaxWindow {
  Accumulator<T> best = -std::numeric_limits<Accumulator<T>>::infinity();
  unsigned place = 0;

  __device__ void add(T value, unsigned tap) {
    const auto x = static_cast<Accumulator<T>>(value);
    if (x > best || x != x) best = x, place = tap;
  }
  __device__ T result(int64_t) const { return static_cast<T>(best); }
  __device__ unsigned code() const { return best <= 0 ? kReluClosed : place; }

  // Of the gradient of a window's result, the part that is its tap's.
  __device__ static Accumulator<T> share(Accumulator<T> gradient, unsigned code, unsigned tap,
                                         int64_t) {
    return code == tap ? gradient : Accumulator<T>(0);
  }
};

template <class T>
struct AverageWindow {
  Accumulator<T> sum = 0;
  unsigned open = 0;

  __device__ void add(T value, unsigned tap) {
    const auto x = static_cast<Accumulator<T>>(value);
    sum += x;
    open |= (x <= 0 ? 0u : 1u) << tap;  // NaN is open
  }
  __device__ T result(int64_t divisor) const {
    return static_cast<T>(divisor == 0 ? Accumulator<T>(0) : sum / divisor);
  }
  __device__ unsigned code() const { return open; }

  __device__ static Accumulator<T> share(Accumulator<T> gradient, unsigned code, unsigned tap,
                                         int64_t divisor) {
    return code >> tap & 1 ? gradient / divisor : Accumulator<T>(0);
  }
};

// The gradient of the convolution's sum, gathered from the windows that it went into. Rounded to T,
// as the pool's own backward pass would store it.
template <class T, class Window>
struct PooledGradOutput {
  Pool2dProblem pool;
  const T* grad;
  Codes codes;

  __device__ Accumulator<T> at(const Conv2dProblem&, int n, int k, int p, int q) const {
    const Range rows = pool.windows_over_row(p), columns = pool.windows_over_column(q);
    Accumulator<T> sum = 0;
    for (int i = rows.begin; i < rows.end; ++i) {
      const int r = pool.tap_row(p, i);
      for (int j = columns.begin; j < columns.end; ++j) {
        const int s = pool.tap_column(q, j);
        if (r < 0 || s < 0) continue;
        const auto gradient = static_cast<Accumulator<T>>(grad[pool.output.at(n, k, i, j)]);
        const unsigned code = codes.load(pool.argmax.at(n, k, i, j));
        sum += Window::share(gradient, code, r * pool.S + s, pool.divisor(i, j));
      }
    }
    return static_cast<Accumulator<T>>(static_cast<T>(sum));
  }
};

// ---- for launchers ----

// Calls body(T(), Window()) with the dtype's type and the kind of pool.
template <class Body>
void with_window(const Conv2dPoolProblem& problem, Dtype dtype, const Body& body) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    if (problem.average)
      body(zero, AverageWindow<T>());
    else
      body(zero, MaxWindow<T>());
  });
}

// Calls body(T(), gradient of the convolution's sum).
template <class Body>
void with_pooled_gradient(const Conv2dPoolProblem& problem, Dtype dtype, const void* grad_output,
                          const void* code, const Body& body) {
  const Codes codes{const_cast<void*>(code), problem.wide_code()};
  with_window(problem, dtype, [&](auto zero, auto window) {
    using T = decltype(zero);
    body(zero, PooledGradOutput<T, decltype(window)>{problem.pool,
                                                     static_cast<const T*>(grad_output), codes});
  });
}

inline const char* unfit_for_codes(const Conv2dPoolProblem& problem, Dtype) {
  const int64_t taps = static_cast<int64_t>(problem.pool.R) * problem.pool.S;
  return problem.average && taps > Conv2dPoolProblem::kMostAverageTaps
             ? "an average of more than 32 taps, whose ReLUs fit no code"
             : nullptr;
}

}  // namespace cnnkernels::CNN_TARGET
