// direct: max and average pooling, one thread per result.
//
//   max forward    a thread per output (n, c, p, q)    walks its window, keeps value and place
//   max backward   a thread per input (n, c, h, w)     walks the windows that hold it and adds
//                                                      the gradients of those it is maximum of
//   max gather     a thread per output                 reads the input that its maximum lies at
//   avg forward    a thread per output                 walks its window
//   avg backward   a thread per input                  walks the windows that hold it
//
// The windows are the Problem's: of a fixed size and distance, or adaptive ones, which cut the
// input into P x Q parts that may overlap by a pixel. Those over an input follow from its position.
//
// A maximum's place is kept as one byte up to windows of 254 elements, where torch keeps eight.
// Backward passes gather, so that each result is written once, by one thread, which adds in an
// order fixed by the problem: no atomics, the same bits every run.
//
// Cost: R*S comparisons or additions an output; each input is read once (from the caches where
// windows overlap), each output and code written once. Bound: memory traffic, in bytes
// sizeof(T) * N*C*(H*W + P*Q), and N*C*P*Q for the codes.
#pragma once

#include <limits>

#include "argmax.cuh"
#include "dtype.cuh"
#include "index.cuh"

namespace cnnkernels::CNN_TARGET {

// The thread's own output or input; n is N or more where it has none.
template <class Problem>
__device__ Position own_output(const Problem& problem) {
  return position_of(global_thread(), problem.C, problem.P, problem.Q, problem.output);
}

template <class Problem>
__device__ Position own_input(const Problem& problem) {
  return position_of(global_thread(), problem.C, problem.H, problem.W, problem.input);
}

template <class T, class Place, class Problem>
__global__ void max_pool2d_direct_forward(Problem problem, const T* __restrict__ input,
                                          T* __restrict__ output, Place argmax) {
  const Position at = own_output(problem);
  if (at.n >= problem.N) return;
  const T* plane = input + problem.input.at(at.n, at.c, 0, 0);
  const Range rows = problem.rows(at.h), columns = problem.columns(at.w);

  Accumulator<T> best = -std::numeric_limits<Accumulator<T>>::infinity();
  int best_r = rows.begin, best_s = columns.begin;
  for (int r = rows.begin; r < rows.end; ++r) {
    for (int s = columns.begin; s < columns.end; ++s) {
      const auto x = static_cast<Accumulator<T>>(
          plane[problem.input.at(0, 0, problem.input_h(at.h, r), problem.input_w(at.w, s))]);
      if (x > best || x != x) best = x, best_r = r, best_s = s;  // of NaNs, the last one stays
    }
  }
  output[problem.output.at(at.n, at.c, at.h, at.w)] = static_cast<T>(best);
  argmax.store(problem, at, best_r, best_s);
}

template <class T, class Place, class Problem>
__global__ void max_pool2d_direct_backward(Problem problem, const T* __restrict__ grad_output,
                                           Place argmax, T* __restrict__ grad_input) {
  const Position at = own_input(problem);
  if (at.n >= problem.N) return;
  const Range rows = problem.windows_over_row(at.h), columns = problem.windows_over_column(at.w);

  Accumulator<T> sum = 0;
  for (int p = rows.begin; p < rows.end; ++p) {
    const int r = problem.tap_row(at.h, p);
    if (r < 0) continue;
    for (int q = columns.begin; q < columns.end; ++q) {
      const int s = problem.tap_column(at.w, q);
      if (s >= 0 && argmax.is(problem, {at.n, at.c, p, q}, r, s))
        sum += static_cast<Accumulator<T>>(grad_output[problem.output.at(at.n, at.c, p, q)]);
    }
  }
  grad_input[problem.input.at(at.n, at.c, at.h, at.w)] = static_cast<T>(sum);
}

template <class T, class Place, class Problem>
__global__ void max_pool2d_direct_gather(Problem problem, const T* __restrict__ input, Place argmax,
                                         T* __restrict__ output) {
  const Position at = own_output(problem);
  if (at.n >= problem.N) return;
  T* to = output + problem.output.at(at.n, at.c, at.h, at.w);
  if (is_empty(problem.rows(at.h), problem.columns(at.w)))
    *to = static_cast<T>(Accumulator<T>(0));  // its maximum, minus infinity, is a constant
  else
    *to = input[problem.input.at(at.n, at.c, 0, 0) + argmax.offset(problem, at)];
}

template <class T, class Problem>
__global__ void avg_pool2d_direct_forward(Problem problem, const T* __restrict__ input,
                                          T* __restrict__ output) {
  const Position at = own_output(problem);
  if (at.n >= problem.N) return;
  const T* plane = input + problem.input.at(at.n, at.c, 0, 0);
  const Range rows = problem.rows(at.h), columns = problem.columns(at.w);

  Accumulator<T> sum = 0;
  for (int r = rows.begin; r < rows.end; ++r)
    for (int s = columns.begin; s < columns.end; ++s)
      sum += static_cast<Accumulator<T>>(
          plane[problem.input.at(0, 0, problem.input_h(at.h, r), problem.input_w(at.w, s))]);
  output[problem.output.at(at.n, at.c, at.h, at.w)] =
      static_cast<T>(is_empty(rows, columns) ? 0 : sum / problem.divisor(at.h, at.w));
}

template <class T, class Problem>
__global__ void avg_pool2d_direct_backward(Problem problem, const T* __restrict__ grad_output,
                                           T* __restrict__ grad_input) {
  const Position at = own_input(problem);
  if (at.n >= problem.N) return;
  const Range rows = problem.windows_over_row(at.h), columns = problem.windows_over_column(at.w);

  Accumulator<T> sum = 0;
  for (int p = rows.begin; p < rows.end; ++p)
    for (int q = columns.begin; q < columns.end; ++q)
      sum += static_cast<Accumulator<T>>(grad_output[problem.output.at(at.n, at.c, p, q)]) /
             problem.divisor(p, q);
  grad_input[problem.input.at(at.n, at.c, at.h, at.w)] = static_cast<T>(sum);
}

}  // namespace cnnkernels::CNN_TARGET
