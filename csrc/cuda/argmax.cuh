// Where the position of a window's maximum is kept. The kinds of Argmax, with one interface:
//   store(problem, at, r, s)   the maximum of the window of output `at` is its tap (r, s)
//   is(problem, at, r, s)      is it?
//   offset(problem, at)        its element offset within the input plane
#pragma once

#include "../problem.h"
#include "index.cuh"

namespace cnnkernels::CNN_TARGET {

struct NoArgmax {
  template <class Problem>
  __device__ void store(const Problem&, const Position&, int, int) const {}
};

// The place in the window, r * S + s, in one byte or four. (Where windows vary in size, S is the
// width of the largest.)
template <class Code>
struct WindowCode {
  Code* data;

  template <class Problem>
  __device__ Code& of(const Problem& problem, const Position& at) const {
    return data[problem.argmax.at(at.n, at.c, at.h, at.w)];
  }
  template <class Problem>
  __device__ void store(const Problem& problem, const Position& at, int r, int s) const {
    of(problem, at) = static_cast<Code>(r * problem.S + s);
  }
  template <class Problem>
  __device__ bool is(const Problem& problem, const Position& at, int r, int s) const {
    return of(problem, at) == static_cast<Code>(r * problem.S + s);
  }
  template <class Problem>
  __device__ int64_t offset(const Problem& problem, const Position& at) const {
    const int r = of(problem, at) / problem.S, s = of(problem, at) % problem.S;
    return problem.input.at(0, 0, problem.input_h(at.h, r), problem.input_w(at.w, s));
  }
};

// torch's index in the input plane, h * W + w.
struct PlaneIndex {
  int64_t* data;

  template <class Problem>
  __device__ int64_t& of(const Problem& problem, const Position& at) const {
    return data[problem.argmax.at(at.n, at.c, at.h, at.w)];
  }
  template <class Problem>
  __device__ static int64_t index(const Problem& problem, const Position& at, int r, int s) {
    return static_cast<int64_t>(problem.input_h(at.h, r)) * problem.W + problem.input_w(at.w, s);
  }
  template <class Problem>
  __device__ void store(const Problem& problem, const Position& at, int r, int s) const {
    of(problem, at) = index(problem, at, r, s);
  }
  template <class Problem>
  __device__ bool is(const Problem& problem, const Position& at, int r, int s) const {
    return of(problem, at) == index(problem, at, r, s);
  }
  template <class Problem>
  __device__ int64_t offset(const Problem& problem, const Position& at) const {
    return problem.input.at(0, 0, of(problem, at) / problem.W, of(problem, at) % problem.W);
  }
};

// Calls body with the kind's accessor over `data`, which a backward pass only reads.
template <class Body>
void with_stored_argmax(Argmax kind, const void* data, const Body& body) {
  void* codes = const_cast<void*>(data);
  if (kind == Argmax::uint8) return body(WindowCode<uint8_t>{static_cast<uint8_t*>(codes)});
  if (kind == Argmax::int32) return body(WindowCode<int32_t>{static_cast<int32_t*>(codes)});
  return body(PlaneIndex{static_cast<int64_t*>(codes)});
}

template <class Body>
void with_argmax(Argmax kind, void* data, const Body& body) {
  if (kind == Argmax::none) return body(NoArgmax{});
  with_stored_argmax(kind, data, body);
}

}  // namespace cnnkernels::CNN_TARGET
