// What every fused conv + ReLU + pool has in common: how a window takes in the convolution's
// outputs and what code it leaves, and how the gradient of the convolution's output follows from
// the pooled gradient and the codes (problem.h, Conv2dPoolProblem).
#pragma once

#include <limits>

#include "../problem.h"
#include "dtype.cuh"
#include "reduce.cuh"

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
  // What stands in a tile for a tap outside: never a maximum.
  static constexpr Accumulator<T> kOutside = -std::numeric_limits<Accumulator<T>>::infinity();

  Accumulator<T> best = kOutside;
  unsigned place = 0;

  __device__ void add(T value, unsigned tap) {
    const auto x = static_cast<Accumulator<T>>(value);
    if (x > best || x != x) best = x, place = tap;
  }
  __device__ T result(int64_t) const { return static_cast<T>(best); }
  __device__ unsigned code() const { return best <= 0 ? kReluClosed : place; }

  // Of the gradient of a window's result, the part that is its tap's.
  __device__ static Accumulator<T> share(Accumulator<T> gradient, unsigned code, unsigned tap) {
    return code == tap ? gradient : Accumulator<T>(0);
  }
};

template <class T>
struct AverageWindow {
  static constexpr Accumulator<T> kOutside = 0;

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
// as the pool's own backward pass would store it. The parts are those of GradOutput (conv2d.cuh).
template <class T>
struct PooledGradOutput {
  Pool2dProblem pool;
  bool average;
  const T* grad;
  Codes codes;

  static constexpr int kUnroll = 1;

  struct Column {
    const PooledGradOutput& of;
    Range windows;
    int q;
    int64_t grad, code;  // where the plane begins

    __device__ Accumulator<T> at(int p) const {
      const Pool2dProblem& pool = of.pool;
      const Range rows = pool.windows_over_row(p);
      Accumulator<T> sum = 0;
      for (int i = rows.begin; i < rows.end; ++i) {
        const int r = pool.tap_row(p, i);
        for (int j = windows.begin; j < windows.end; ++j) {
          const int s = pool.tap_column(q, j);
          if (r < 0 || s < 0) continue;
          const auto gradient =
              static_cast<Accumulator<T>>(of.grad[grad + i * pool.output.h + j * pool.output.w]);
          const unsigned its = of.codes.load(code + i * pool.argmax.h + j * pool.argmax.w);
          const unsigned tap = r * pool.S + s;
          sum += of.average ? AverageWindow<T>::share(gradient, its, tap, pool.divisor(i, j))
                            : MaxWindow<T>::share(gradient, its, tap);
        }
      }
      return static_cast<Accumulator<T>>(static_cast<T>(sum));
    }
  };

  __device__ Column column(const Conv2dProblem&, int n, int k, int q) const {
    return {*this, pool.windows_over_column(q), q, pool.output.at(n, k, 0, 0),
            pool.argmax.at(n, k, 0, 0)};
  }
  __device__ Accumulator<T> at(const Conv2dProblem& problem, int n, int k, int p, int q) const {
    return column(problem, n, k, q).at(p);
  }
};

// ---- a tile of the convolution's outputs, pooled by a warp ----

// Whole windows in so many outputs.
constexpr int whole_windows(int outputs, int64_t extent, int stride) {
  return static_cast<int>((outputs - extent) / stride + 1);
}

// A tile of kRows x kColumns outputs of the convolution, in shared memory, for every one of
// kFilters. With a stride of 2 even columns stand before odd ones, so that lanes, whose windows are
// neighbours, read neighbours; the pitch then keeps the two rows of windows that they read apart.
template <class T, int kFilters, int kRows, int kColumns>
struct PoolTile {
  static constexpr int kPitch = kColumns + 8, kPlane = kRows * kPitch;
  static constexpr int kSize = kFilters * kPlane;

  const Pool2dProblem& pool;
  T* values;

  __device__ int place(int row, int column) const {
    const int in_row = pool.stride_w == 2 ? column % 2 * (kColumns / 2) + column / 2 : column;
    return row * kPitch + in_row;
  }

  // Pools the windows that begin at (first_row, first_column) of the pooled output, for `filters`
  // filters from k on.
  template <class Window>
  __device__ void take_windows(int n, int k, int filters, int first_row, int first_column,
                               T* __restrict__ output, const Codes& codes) const {
    const int across =
        whole_windows(kColumns, dilated_extent(pool.S, pool.dilation_w), pool.stride_w);
    const int down = whole_windows(kRows, dilated_extent(pool.R, pool.dilation_h), pool.stride_h);
    for (int index = threadIdx.x; index < down * across; index += kWarpSize) {
      const int i = index / across, j = index % across;
      const int p = first_row + i, q = first_column + j;
      if (p >= pool.P || q >= pool.Q) continue;
      const int64_t divisor = pool.divisor(p, q);
      for (int filter = 0; filter < filters; ++filter) {
        Window window;
        for (int r = 0; r < pool.R; ++r) {
          for (int s = 0; s < pool.S; ++s) {
            const int from = place(i * pool.stride_h + r * pool.dilation_h,
                                   j * pool.stride_w + s * pool.dilation_w);
            window.add(values[filter * kPlane + from], r * pool.S + s);
          }
        }
        output[pool.output.at(n, k + filter, p, q)] = window.result(divisor);
        codes.store(pool.argmax.at(n, k + filter, p, q), window.code());
      }
    }
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

template <class T>
PooledGradOutput<T> pooled_grad_of(const Conv2dPoolProblem& problem, const void* grad_output,
                                   const void* code) {
  return {problem.pool,
          problem.average,
          static_cast<const T*>(grad_output),
          {const_cast<void*>(code), problem.wide_code()}};
}

inline const char* unfit_for_codes(const Conv2dPoolProblem& problem, Dtype) {
  const int64_t taps = static_cast<int64_t>(problem.pool.R) * problem.pool.S;
  return problem.average && taps > Conv2dPoolProblem::kMostAverageTaps
             ? "an average of more than 32 taps, whose ReLUs fit no code"
             : nullptr;
}

}  // namespace cnnkernels::CNN_TARGET
