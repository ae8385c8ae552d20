// block: adaptive average pooling of large windows, several threads per output.
//
//   NCHW            a block of kThreads threads per output (n, c, p, q). Thread t adds the window's
//                   elements t, t + kThreads, ... in row-major order: neighbours read neighbours.
//   channels_last   a block of 32 x 8 threads per output pixel (n, p, q) and 32 channels. Thread
//                   (i, j) adds the elements j, j + 8, ... of channel i: a warp reads the 32
//                   channels of one pixel.
//
//   input window -> a sum per thread -> warps' shuffles, shared memory -> output
//
// The threads' sums are added in an order fixed by the block: no atomics, the same bits every run.
//
// Cost: an addition an element. Adaptive windows overlap by a pixel at most, so that each input is
// read about once: bound by memory traffic, sizeof(T) * N*C*(H*W + P*Q) bytes. `direct` reads as
// much, but with a thread for N*C*P*Q results alone, each of which waits for R*S loads.
#pragma once

#include "../summation.h"
#include "dtype.cuh"
#include "index.cuh"
#include "reduce.cuh"

namespace cnnkernels::CNN_TARGET {

// Threads of a block in channels_last, along x and y.
constexpr int kBlockChannels = kWarpSize, kBlockPixels = 8;

// The sum of every `step`-th element of a window, from the `first` on.
template <class T>
__device__ Accumulator<T> sum_of_window(const AdaptivePool2dProblem& problem,
                                        const T* __restrict__ plane, int p, int q, unsigned first,
                                        unsigned step) {
  const T* window = plane + problem.input.at(0, 0, problem.input_h(p, 0), problem.input_w(q, 0));
  const unsigned width = problem.columns(q).end;
  const auto size = static_cast<unsigned>(problem.divisor(p, q));
  // Whole rows, as in global pooling, lie at equal distances: a division an element is spared.
  const bool is_run =
      static_cast<int>(width) == problem.W && problem.input.h == problem.W * problem.input.w;
  LongSum<Accumulator<T>> sum;
  for (unsigned i = first; i < size; i += step) {
    const int64_t offset =
        is_run ? i * problem.input.w : problem.input.at(0, 0, i / width, i % width);
    sum.add(static_cast<Accumulator<T>>(window[offset]));
  }
  return sum.value();
}

// NCHW; block x is output x.
template <class T, int kThreads>
__global__ void avg_pool2d_block_forward(AdaptivePool2dProblem problem, const T* __restrict__ input,
                                         T* __restrict__ output) {
  const Position at = position_of(blockIdx.x, problem.C, problem.P, problem.Q, problem.output);
  const T* plane = input + problem.input.at(at.n, at.c, 0, 0);
  const auto sum =
      block_sum<kThreads>(sum_of_window(problem, plane, at.h, at.w, threadIdx.x, kThreads));
  if (threadIdx.x == 0)
    output[problem.output.at(at.n, at.c, at.h, at.w)] =
        static_cast<T>(sum / problem.divisor(at.h, at.w));
}

// Channels_last; block x is output pixel x / groups and group x % groups of its channels.
template <class T>
__global__ void avg_pool2d_block_forward_channels_last(AdaptivePool2dProblem problem,
                                                       const T* __restrict__ input,
                                                       T* __restrict__ output) {
  SHARED_ARRAY(Accumulator<T>, sums, [kBlockPixels][kBlockChannels]);
  const int groups = (problem.C + kBlockChannels - 1) / kBlockChannels;
  const int c = static_cast<int>(blockIdx.x % groups) * kBlockChannels + threadIdx.x;
  int64_t pixel = blockIdx.x / groups;
  const int q = static_cast<int>(pixel % problem.Q);
  pixel /= problem.Q;
  const int p = static_cast<int>(pixel % problem.P), n = static_cast<int>(pixel / problem.P);

  if (c < problem.C) {
    const T* plane = input + problem.input.at(n, c, 0, 0);
    sums[threadIdx.y][threadIdx.x] = sum_of_window(problem, plane, p, q, threadIdx.y, kBlockPixels);
  }
  __syncthreads();
  if (c >= problem.C || threadIdx.y != 0) return;
  Accumulator<T> sum = 0;
  for (int i = 0; i < kBlockPixels; ++i) sum += sums[i][threadIdx.x];
  output[problem.output.at(n, c, p, q)] = static_cast<T>(sum / problem.divisor(p, q));
}

}  // namespace cnnkernels::CNN_TARGET
