// conv + bias + ReLU + pool as a matrix product: fprop of the two implicit GEMMs where windows are
// of four outputs, side by side (2 x 2 with stride 2, say). The product's rows are the outputs in
// the order of their windows. So four sums that are neighbours along the rows are a window: a
// thread takes them on their way out and pools them, and the convolution's output reaches no
// memory.
//
//      outputs, by rows           rows of a tile
//      0 1 | 4 5 |                0 1 2 3    ->  a thread: max, code
//      2 3 | 6 7 |         ->     4 5 6 7    ->  the next
//      ----+-----+                8 9 ..
//      8 9 | ..
//
// Other windows share outputs, or lie across tiles: see conv2d_pool_scratch.cuh, which has the
// gradients too.
//
// Cost: that of the product, less 2 * sizeof(T) * N*K*P*Q bytes, which are neither written nor
// read; a quarter of them, and a byte of code each, take their place. implicit_gemm's parts of long
// sums wait in scratch memory, as they do in the output otherwise.
#pragma once

#include "conv2d_gemm_launch.cuh"
#include "conv2d_pool.cuh"
#include "conv2d_pool_scratch.cuh"
#include "epilogue.cuh"

namespace cnnkernels::CNN_TARGET {

constexpr int kWindowTaps = 4;

// Sums leave by windows, with lanes along what is contiguous in the pooled output.
template <bool kChannelsFastest>
using WindowOrder = DrainOrder<true, kWindowTaps, kChannelsFastest>;

// fprop's product, with the windows' outputs one after the other.
template <bool kChannelsFastest>
struct WindowGemm : PixelGemm<kChannelsFastest> {
  int R, S, P, Q;  // of the windows, and of the pooled output
  Strides pooled;

  __device__ void set_fprop(const Conv2dPoolProblem& problem, int group) {
    PixelGemm<kChannelsFastest>::set_fprop(problem.conv, group);
    const Pool2dProblem& pool = problem.pool;
    R = pool.R, S = pool.S, P = pool.P, Q = pool.Q, pooled = pool.output;
    this->rows = pool.N * P * Q * kWindowTaps;
  }

  // (n, i, j) of the pooled output.
  __device__ typename PixelGemm<kChannelsFastest>::Pixel window(int row) const {
    const int index = row / kWindowTaps, line = index / Q;
    return {line / P, line % P, index % Q};
  }
  __device__ Place row(int index) const {
    const auto [n, i, j] = window(index);
    const int tap = index % kWindowTaps;
    return this->place({n, i * R + tap / S, j * S + tap % S});
  }
  __device__ int64_t result_row(int index) const {
    const auto [n, i, j] = window(index);
    return pooled.at(n, this->first_column, i, j);
  }
};

// Pools the sums of windows.
template <class T>
struct PooledSums {
  const Conv2dPoolProblem& problem;
  const Epilogue& epilogue;
  T* output;
  Codes codes;

  template <class Window, class Shape>
  __device__ void take(const Shape& shape, int64_t offset, int row, int column,
                       const Accumulator<T> (&sums)[kWindowTaps]) const {
    const Pool2dProblem& pool = problem.pool;
    const int k = shape.first_column + column;
    Window window;
#pragma unroll
    for (int tap = 0; tap < kWindowTaps; ++tap) window.add(finish<T>(sums[tap], epilogue, k), tap);
    output[offset + column * pool.output.c] = window.result(pool.divisor(0, 0));  // all are whole
    const auto [n, i, j] = shape.window(row);
    codes.store(pool.argmax.at(n, k, i, j), window.code());
  }

  template <class Shape>
  __device__ void store(const Shape& shape, int64_t offset, int row, int column,
                        const Accumulator<T> (&sums)[kWindowTaps]) const {
    if (problem.average)
      take<AverageWindow<T>>(shape, offset, row, column, sums);
    else
      take<MaxWindow<T>>(shape, offset, row, column, sums);
  }
};

// ---- for launchers ----

inline bool has_whole_windows(const Conv2dPoolProblem& problem) {
  const Pool2dProblem& pool = problem.pool;
  return pool.R * pool.S == kWindowTaps && pool.stride_h == pool.R && pool.stride_w == pool.S &&
         pool.pad_h == 0 && pool.pad_w == 0 && pool.dilation_h == 1 && pool.dilation_w == 1 &&
         pool.P * pool.R <= pool.H && pool.Q * pool.S <= pool.W;
}

inline GemmSize window_size(const Conv2dPoolProblem& problem) {
  const Pool2dProblem& pool = problem.pool;
  return {static_cast<int64_t>(pool.N) * pool.P * pool.Q * kWindowTaps,
          problem.conv.group_filters(), problem.conv.groups};
}

}  // namespace cnnkernels::CNN_TARGET
