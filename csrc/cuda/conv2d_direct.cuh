// direct: the definition of a convolution, one thread per result. The first rung of the ladder:
// right, readable, and the yardstick of all the others.
//
//   fprop  a thread per output pixel (n, k, p, q)      walks c, r, s
//   dgrad  a thread per input pixel (n, c, h, w)       walks r, s, k over the outputs that read it
//   wgrad  a block per weight (k, c, r, s)             its threads share n, p, q; block_sum
//          (a thread per weight where there are few outputs to share)
//   bgrad  a block per filter k                        likewise
//
//        input plane c            output plane k
//      +--------------+          +------------+
//      |   [R x S]    |  ----->  |     o      |    neighbouring threads own neighbours in memory,
//      |    window    |          |            |    so their loads of a tap and stores coalesce
//      +--------------+          +------------+
//
// Cost: 2 * N*K*P*Q * C/groups*R*S FLOP in each of fprop, dgrad and wgrad. No result is shared:
// each multiply-add loads both of its operands (8 bytes in float32), from the caches at best, so
// the bound is the caches' load rate, about 1/10 of the FP32 peak. All sums are kept in the
// Accumulator type and are added in an order fixed by the problem.
#pragma once

#include "conv2d.cuh"
#include "epilogue.cuh"
#include "index.cuh"
#include "reduce.cuh"

namespace cnnkernels::CNN_TARGET {

constexpr int kThreadsPerSum = 128;

// wgrad: up to this many outputs a thread sums them alone.
constexpr int64_t kOutputsOfOneThread = 64;

// Walks the outputs (n, p, q) from the one numbered `first` on, in steps of `step` outputs,
// without a division a step.
struct OutputWalk {
  int n, p, q;
  int step_n, step_p, step_q;

  __device__ OutputWalk(const Conv2dProblem& problem, int first, int step) {
    const int64_t pixels = static_cast<int64_t>(problem.P) * problem.Q;
    const int pixel = first % pixels, step_pixel = step % pixels;
    n = first / pixels, p = pixel / problem.Q, q = pixel % problem.Q;
    step_n = step / pixels, step_p = step_pixel / problem.Q, step_q = step_pixel % problem.Q;
  }

  __device__ void advance(const Conv2dProblem& problem) {
    q += step_q, p += step_p, n += step_n;
    if (q >= problem.Q) q -= problem.Q, ++p;
    if (p >= problem.P) p -= problem.P, ++n;
  }
};

// The sum of output (n, k, p, q).
template <class T>
__device__ Accumulator<T> direct_sum(const Conv2dProblem& problem, const T* __restrict__ input,
                                     const T* __restrict__ weight, int n, int k, int p, int q) {
  const int first_c = k / problem.group_filters() * problem.group_channels();
  const int h0 = p * problem.stride_h - problem.pad_top;
  const int w0 = q * problem.stride_w - problem.pad_left;
  const Range rows = taps_inside(h0, problem.R, problem.dilation_h, problem.H);
  const Range columns = taps_inside(w0, problem.S, problem.dilation_w, problem.W);

  Accumulator<T> sum = 0, part = 0;
  for (int c = 0; c < problem.group_channels(); ++c) {
    for (int r = rows.begin; r < rows.end; ++r) {
      const T* in = input + problem.input.at(n, first_c + c, h0 + r * problem.dilation_h, w0);
      const T* filter = weight + problem.weight.at(k, c, r, 0);
      for (int s = columns.begin; s < columns.end; ++s) {
        const T x = in[s * problem.dilation_w * problem.input.w];
        const T tap = filter[s * problem.weight.w];
        part = multiply_add(Accumulator<T>(x), Accumulator<T>(tap), part);
      }
    }
    if ((c + 1) % kChannelsPerPart == 0) sum += part, part = 0;
  }
  return sum + part;
}

template <class T>
__global__ void conv2d_direct_fprop(Conv2dProblem problem, const T* __restrict__ input,
                                    const T* __restrict__ weight, Epilogue epilogue,
                                    T* __restrict__ output) {
  const int64_t outputs = static_cast<int64_t>(problem.N) * problem.K * problem.P * problem.Q;
  if (global_thread() >= outputs) return;
  const auto [n, k, p, q] =
      position_of(global_thread(), problem.K, problem.P, problem.Q, problem.output);
  const Accumulator<T> sum = direct_sum(problem, input, weight, n, k, p, q);
  output[problem.output.at(n, k, p, q)] = finish<T>(sum, epilogue, k);
}

template <class T, class Gradient>
__global__ void conv2d_direct_dgrad(Conv2dProblem problem, Gradient grad_output,
                                    const T* __restrict__ weight, T* __restrict__ grad_input) {
  const int64_t inputs = static_cast<int64_t>(problem.N) * problem.C * problem.H * problem.W;
  if (global_thread() >= inputs) return;
  const auto [n, c, h, w] =
      position_of(global_thread(), problem.C, problem.H, problem.W, problem.input);

  const int first_k = c / problem.group_channels() * problem.group_filters();
  const int weight_c = c % problem.group_channels();

  Accumulator<T> sum = 0, part = 0;
  for (int r = 0; r < problem.R; ++r) {
    const int p =
        reader_of(h, r * problem.dilation_h - problem.pad_top, problem.stride_h, problem.P);
    if (p < 0) continue;
    for (int s = 0; s < problem.S; ++s) {
      const int q =
          reader_of(w, s * problem.dilation_w - problem.pad_left, problem.stride_w, problem.Q);
      if (q < 0) continue;
      for (int k = 0; k < problem.group_filters(); ++k) {
        const T tap = weight[problem.weight.at(first_k + k, weight_c, r, s)];
        part =
            multiply_add(grad_output.at(problem, n, first_k + k, p, q), Accumulator<T>(tap), part);
        if ((k + 1) % kChannelsPerPart == 0) sum += part, part = 0;
      }
    }
  }
  sum += part;
  grad_input[problem.input.at(n, c, h, w)] = static_cast<T>(sum);
}

// kThreads is how many threads share the sum of a weight: a block's, or 1.
template <class T, class Gradient, int kThreads>
__global__ void __launch_bounds__(kThreadsPerBlock, 1)
    conv2d_direct_wgrad(Conv2dProblem problem, Gradient grad_output, const T* __restrict__ input,
                        T* __restrict__ grad_weight) {
  const auto [k, c, r, s] = position_of(global_thread() / kThreads, problem.group_channels(),
                                        problem.R, problem.S, problem.weight);
  if (k >= problem.K) return;
  const int input_c = k / problem.group_filters() * problem.group_channels() + c;
  const int h0 = r * problem.dilation_h - problem.pad_top;
  const int w0 = s * problem.dilation_w - problem.pad_left;
  const int lane = threadIdx.x % kThreads;

  Accumulator<T> sum = 0;
  for (OutputWalk at(problem, lane, kThreads); at.n < problem.N; at.advance(problem)) {
    const int h = at.p * problem.stride_h + h0, w = at.q * problem.stride_w + w0;
    if (h < 0 || h >= problem.H || w < 0 || w >= problem.W) continue;
    const T x = input[problem.input.at(at.n, input_c, h, w)];
    sum = multiply_add(grad_output.at(problem, at.n, k, at.p, at.q), Accumulator<T>(x), sum);
  }
  if constexpr (kThreads > 1) sum = block_sum<kThreads>(sum);
  if (lane == 0) grad_weight[problem.weight.at(k, c, r, s)] = static_cast<T>(sum);
}

template <class T, class Gradient>
__global__ void __launch_bounds__(kThreadsPerSum, 1)
    conv2d_direct_bgrad(Conv2dProblem problem, Gradient grad_output, T* __restrict__ grad_bias) {
  const int k = blockIdx.x;
  Accumulator<T> sum = 0;
  for (OutputWalk at(problem, threadIdx.x, kThreadsPerSum); at.n < problem.N; at.advance(problem))
    sum += grad_output.at(problem, at.n, k, at.p, at.q);
  sum = block_sum<kThreadsPerSum>(sum);
  if (threadIdx.x == 0) grad_bias[k] = static_cast<T>(sum);
}

}  // namespace cnnkernels::CNN_TARGET
