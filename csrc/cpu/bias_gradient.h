// The gradient of a convolution's bias: sums of planes, in double.
#pragma once

#include "pooled.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

// Elements of a plane that are summed at a time.
constexpr int64_t kRun = 512;

// The sum of an image's plane: of its runs, each of which is the sum of vector lanes.
template <class T>
double plane_sum(const Conv2dProblem& problem, const Source<T>& plane, Sum<T>* line) {
  constexpr int n = kLanes<double>;
  const int64_t rows = plane.joined(problem.Q) ? 1 : problem.P;
  const int64_t length = static_cast<int64_t>(problem.P) * problem.Q / rows;
  double total = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < length; first += kRun) {
      const int64_t count = least(kRun, length - first);
      copy_run(line, count, plane.at(0, 0, row, first), &Strides::w);
      for (int64_t i = count; i < ceil_div(count, n) * n; ++i) line[i] = 0;
      Vector<double> lanes = {};
      for (int64_t i = 0; i < count; i += n) {
        Vector<double> values;
        for (int lane = 0; lane < n; ++lane) values[lane] = static_cast<double>(line[i + lane]);
        lanes += values;
      }
      for (int lane = 0; lane < n; ++lane) total += lanes[lane];
    }
  }
  return total;
}

// The sums of all planes of an image whose channels lie closest, `pitch` apart: of rows as well.
template <class T>
void image_sums(const Conv2dProblem& problem, const Source<T>& image, Sum<T>* line, double* rows,
                double* totals, int64_t pitch) {
  for (int k = 0; k < problem.K; ++k) totals[k * pitch] = 0;
  for (int p = 0; p < problem.P; ++p) {
    for (int k = 0; k < problem.K; ++k) rows[k] = 0;
    for (int q = 0; q < problem.Q; ++q) {
      copy_run(line, problem.K, image.at(0, 0, p, q), &Strides::c);
      for (int k = 0; k < problem.K; ++k) rows[k] += static_cast<double>(line[k]);
    }
    for (int k = 0; k < problem.K; ++k) totals[k * pitch] += rows[k];
  }
}

inline double pairwise_sum(const double* values, int64_t count) {
  if (count == 0) return 0;
  if (count == 1) return values[0];
  return pairwise_sum(values, count / 2) + pairwise_sum(values + count / 2, count - count / 2);
}

// grad_bias[k] = the sum of planes[k][n].
template <class T>
void add_planes(const double* planes, int64_t N, int64_t K, T* grad_bias) {
  for (int64_t k = 0; k < K; ++k) {
    grad_bias[k] = static_cast<T>(static_cast<Sum<T>>(pairwise_sum(planes + k * N, N)));
  }
}

template <class T>
void bias_gradient(const Conv2dProblem& problem, const TensorReader<T>& gradient, T* grad_bias) {
  const Source<T>& source = gradient.source;
  const int64_t K = problem.K, N = problem.N;
  Workspace<double> planes(K * N);
  if (gradient.channels_last()) {
    parallel_for(N, 1, [&](int64_t begin, int64_t end) {
      Workspace<Sum<T>> line(K);
      Workspace<double> rows(K);
      for (int64_t n = begin; n < end; ++n) {
        image_sums(problem, source.at(n, 0, 0, 0), line.data(), rows.data(), planes.data() + n, N);
      }
    });
  } else {
    parallel_for(K * N, 16, [&](int64_t begin, int64_t end) {
      Workspace<Sum<T>> line(kRun);
      for (int64_t item = begin; item < end; ++item) {
        planes[item] = plane_sum(problem, source.at(item % N, item / N, 0, 0), line.data());
      }
    });
  }
  add_planes(planes.data(), N, K, grad_bias);
}

// Of a pooled gradient, spread over some rows of a vector of planes at a time.
template <class T>
void bias_gradient(const Conv2dProblem& problem, const PooledReader<T>& gradient, T* grad_bias) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  const int64_t K = problem.K, N = problem.N;
  const Partition rows(problem.P, greatest<int64_t>(1, kRun / problem.Q));
  const int64_t vectors = ceil_div(K, n);
  Workspace<double> planes(K * N);
  parallel_for(vectors * N, 1, [&](int64_t begin, int64_t end) {
    Workspace<S> spread(rows.largest() * problem.Q * n);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item % N, k = item / N * n;
      const int filled = static_cast<int>(least<int64_t>(n, K - k));
      double totals[n] = {};
      for (int64_t part = 0; part < rows.count; ++part) {
        const Tile tile{image, 1, rows.begin(part), rows.size(part), 0, problem.Q};
        gradient.spread(tile, k, filled, spread.data(), {0, 0, problem.Q * n, n});
        double sums[n] = {};
        for (int64_t i = 0; i < tile.pixels(); ++i) {
          for (int lane = 0; lane < n; ++lane)
            sums[lane] += static_cast<double>(spread[i * n + lane]);
        }
        for (int lane = 0; lane < n; ++lane) totals[lane] += sums[lane];
      }
      for (int lane = 0; lane < filled; ++lane) planes[(k + lane) * N + image] = totals[lane];
    }
  });
  add_planes(planes.data(), N, K, grad_bias);
}

}  // namespace
}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
