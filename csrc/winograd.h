// Winograd's minimal filtering F(m x m, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2015): m x m outputs of a 3x3 filter with stride 1 are
//
//   A^T [ (G weight G^T) * (B^T input of (m+2) x (m+2) B) ] A,
//
// element by element, so that a sum over channels is (m+2)^2 products of matrices, one for each
// element of the square. Here are the transforms along one axis, to = B^T from, G from and A^T
// from, for every kind of kernel; V may be a vector.
#pragma once

#include "problem.h"

namespace cnnkernels {

constexpr int kWinogradTaps = 3;

struct Winograd2x2 {
  static constexpr int kOut = 2, kIn = kOut + kWinogradTaps - 1;

  template <class V>
  static constexpr void input(const V (&from)[kIn], V (&to)[kIn]) {
    to[0] = from[0] - from[2];
    to[1] = from[1] + from[2];
    to[2] = from[2] - from[1];
    to[3] = from[1] - from[3];
  }
  template <class V>
  static constexpr void filter(const V (&from)[kWinogradTaps], V (&to)[kIn]) {
    const V ends = from[0] + from[2];
    to[0] = from[0];
    to[1] = (ends + from[1]) / 2;
    to[2] = (ends - from[1]) / 2;
    to[3] = from[2];
  }
  template <class V>
  static constexpr void output(const V (&from)[kIn], V (&to)[kOut]) {
    to[0] = from[0] + from[1] + from[2];
    to[1] = from[1] - from[2] - from[3];
  }
};

// Of the points 0, 1, -1, 2, -2 and infinity.
struct Winograd4x4 {
  static constexpr int kOut = 4, kIn = kOut + kWinogradTaps - 1;

  template <class V>
  static constexpr void input(const V (&from)[kIn], V (&to)[kIn]) {
    const V even = from[4] - 4 * from[2], odd = from[3] - 4 * from[1];
    const V far = from[4] - from[2], wide = 2 * (from[3] - from[1]);
    to[0] = 4 * from[0] - 5 * from[2] + from[4];
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = far + wide;
    to[4] = far - wide;
    to[5] = 4 * from[1] - 5 * from[3] + from[5];
  }
  template <class V>
  static constexpr void filter(const V (&from)[kWinogradTaps], V (&to)[kIn]) {
    const V ends = (from[0] + from[2]) / -6, middle = from[1] / 6;
    const V far = from[0] / 24 + from[2] / 6, wide = from[1] / 12;
    to[0] = from[0] / 4;
    to[1] = ends - middle;
    to[2] = ends + middle;
    to[3] = far + wide;
    to[4] = far - wide;
    to[5] = from[2];
  }
  template <class V>
  static constexpr void output(const V (&from)[kIn], V (&to)[kOut]) {
    const V near = from[1] + from[2], slope = from[1] - from[2];
    const V far = from[3] + from[4], steep = from[3] - from[4];
    to[0] = from[0] + near + far;
    to[1] = slope + 2 * steep;
    to[2] = near + 4 * far;
    to[3] = slope + 8 * steep + from[5];
  }
};

template <class F>
constexpr int kWinogradProducts = F::kIn * F::kIn;

// The squares of m x m outputs that cover all of them.
template <class F>
int64_t winograd_patches(const Conv2dProblem& problem) {
  return static_cast<int64_t>(problem.N) * ((problem.P + F::kOut - 1) / F::kOut) *
         ((problem.Q + F::kOut - 1) / F::kOut);
}

// Why it cannot be filtered so, or null.
inline const char* unfit_for_winograd(const Conv2dProblem& problem, Dtype dtype) {
  if (dtype != Dtype::float32) return "for float32 alone";
  if (problem.R != kWinogradTaps || problem.S != kWinogradTaps) return "for 3x3 filters alone";
  if (problem.stride_h != 1 || problem.stride_w != 1) return "for a stride of 1 alone";
  if (problem.dilation_h != 1 || problem.dilation_w != 1) return "for filters without dilation";
  return problem.N == 0 || problem.C == 0 ? "an empty input" : nullptr;
}

// Why the sums themselves are to be preferred, or null. The transforms of 4x4 outputs add some 10
// times what the sums round (docs/performance.md), and save nothing on patches half empty.
template <class F>
const char* forgoes_winograd(const Conv2dProblem& problem) {
  if (F::kOut <= Winograd2x2::kOut) return nullptr;
  if (!problem.fast_math) return "rounds more than the sums do, without fast_math";
  const int64_t products = kWinogradProducts<F> * winograd_patches<F>(problem);
  const int64_t of_2x2 = kWinogradProducts<Winograd2x2> * winograd_patches<Winograd2x2>(problem);
  return products * 5 / 4 > of_2x2 ? "sizes that leave patches half empty" : nullptr;
}

}  // namespace cnnkernels
