// What the convolutions' kernels have in common: where gradients come from, how long a sum may get,
// how the partial sums of wgrad become one.
#pragma once

#include "../problem.h"
#include "dtype.cuh"
#include "index.cuh"
#include "reduce.cuh"

namespace cnnkernels::CNN_TARGET {

// Sums over many channels are kept in parts of this many, which are then added: rounding errors
// grow with the length of a chain of additions, and two short chains err less than a long one.
constexpr int kChannelsPerPart = 16;

// Adds a part to the sums and begins the next one.
template <class A, int kCount>
__device__ void add_part(A (&part)[kCount], A (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] += part[i], part[i] = A(0);
}

template <class A, int kRows, int kCount>
__device__ void add_part(A (&part)[kRows][kCount], A (&sums)[kRows][kCount]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) add_part(part[i], sums[i]);
}

// The gradient of the convolution's sum: grad_output itself, or zero where a fused ReLU was
// closed. NaN counts as open, as in torch.
//
// Every kind of gradient has a column(), from which the kernels take one gradient after the other,
// and at(), for one alone.
template <class T>
struct GradOutput {
  const T* grad;
  const T* relu;  // saved output of conv+ReLU, or null

  static constexpr int kUnroll = 8;  // where a loop over gradients should be unrolled

  struct Column {
    const T* grad;
    const T* relu;
    int64_t grad_step, relu_step;

    __device__ Accumulator<T> at(int p) const {
      using A = Accumulator<T>;
      // Both are loaded at once: a load that waits for the other would take twice as long.
      const A gradient = static_cast<A>(grad[p * grad_step]);
      const A output = relu == nullptr ? A(1) : static_cast<A>(relu[p * relu_step]);
      return output <= 0 ? A(0) : gradient;
    }
  };

  // Of image n and filter k; q may lie outside, where nothing may be read.
  __device__ Column column(const Conv2dProblem& problem, int n, int k, int q) const {
    return {grad + problem.output.at(n, k, 0, q),
            relu == nullptr ? relu : relu + problem.relu.at(n, k, 0, q), problem.output.h,
            problem.relu.h};
  }
  __device__ Accumulator<T> at(const Conv2dProblem& problem, int n, int k, int p, int q) const {
    return column(problem, n, k, q).at(p);
  }
};

template <class T>
GradOutput<T> grad_output_of(const void* grad_output, const void* relu_output) {
  return {static_cast<const T*>(grad_output), static_cast<const T*>(relu_output)};
}

constexpr int64_t weights_of(const Conv2dProblem& problem) {
  return static_cast<int64_t>(problem.K) * problem.group_channels() * problem.R * problem.S;
}

constexpr int kChunkWarps = 8;

// Where wgrad is cut into chunks of the outputs, each has partial sums [k][c][r][s] of its own, or
// [k][r][s][c], and this adds them. A block has 32 weights; each of its warps adds every
// kChunkWarps-th chunk.
template <class T, bool kChannelsFastest>
__global__ void conv2d_add_chunks(Conv2dProblem problem,
                                  const Accumulator<T>* __restrict__ partials, int chunks,
                                  T* __restrict__ grad_weight) {
  using A = Accumulator<T>;
  SHARED_ARRAY(A, warp_sums, [kChunkWarps][kWarpSize]);
  const int64_t weights = weights_of(problem);
  const int64_t weight = static_cast<int64_t>(blockIdx.x) * kWarpSize + threadIdx.x;
  A sum = 0;
  if (weight < weights)
    for (int chunk = threadIdx.y; chunk < chunks; chunk += kChunkWarps)
      sum += partials[chunk * weights + weight];
  warp_sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || weight >= weights) return;
  for (int warp = 1; warp < kChunkWarps; ++warp) sum += warp_sums[warp][threadIdx.x];
  const int C = problem.group_channels();
  const auto [k, c, r, s] = kChannelsFastest
                                ? position_channels_last(weight, C, problem.R, problem.S)
                                : position_nchw(weight, C, problem.R, problem.S);
  grad_weight[problem.weight.at(k, c, r, s)] = static_cast<T>(sum);
}

// ---- for launchers ----

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The bytes of a chunk's partial sums.
inline int64_t chunk_bytes(const Conv2dProblem& problem, Dtype dtype) {
  return weights_of(problem) * (dtype == Dtype::float64 ? sizeof(double) : sizeof(float));
}

template <class T, bool kChannelsFastest = false>
void add_chunks(const Conv2dProblem& problem, const Accumulator<T>* partials, int chunks,
                void* grad_weight, Stream stream) {
  const dim3 grid(ceil_divide(weights_of(problem), kWarpSize)), block(kWarpSize, kChunkWarps);
  launch<conv2d_add_chunks<T, kChannelsFastest>>(grid, block, 0, stream, problem, partials, chunks,
                                                 static_cast<T*>(grad_weight));
}

}  // namespace cnnkernels::CNN_TARGET
