// Convolution and pooling by their definitions, in double, on dense values.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>

#include "problems.h"
#include "tensor.h"

namespace cnnkernels {

// ---- Convolution ----

// The operands of a convolution and its results.
struct Conv2dData {
  struct Gradients {
    Values input, weight, bias;
  };

  Conv2dData(const Conv2dCase& chosen, bool planes_equal, double weight_scale = 1)
      : name(chosen.name),
        problem(chosen.problem()),
        input_sizes{problem.N, problem.C, problem.H, problem.W},
        weight_sizes{problem.K, problem.group_channels(), problem.R, problem.S},
        output_sizes{problem.N, problem.K, problem.P, problem.Q},
        input(small_integers(input_sizes, 1, planes_equal)),
        weight(small_integers(weight_sizes, 2, planes_equal, weight_scale)),
        bias(small_integers(bias_sizes(), 3, planes_equal)),
        grad_output(small_integers(output_sizes, 4, planes_equal)),
        relu_output(small_integers(output_sizes, 5, planes_equal)),
        output(convolve()),
        gradients(differentiate(grad_output)),
        gradients_of_relu(differentiate(open_gradient())) {}

  Sizes bias_sizes() const { return {problem.K, 1, 1, 1}; }

  // output + bias, then ReLU; both are optional.
  Values finished(bool with_bias, bool relu) const {
    Values result = output;
    std::size_t i = 0;
    for_each_element(output_sizes, [&](int, int k, int, int) {
      if (with_bias) result[i] += bias[static_cast<std::size_t>(k)];
      if (relu && result[i] < 0) result[i] = 0;
      ++i;
    });
    return result;
  }

  // What the gradient of the output gives.
  Gradients differentiate(const Values& gradient) const {
    Gradients result = {Values(input.size(), 0), Values(weight.size(), 0), Values(bias.size(), 0)};
    for_each_product([&](auto o, auto f, auto i) {
      result.input[i] += gradient[o] * weight[f];
      result.weight[f] += gradient[o] * input[i];
    });
    std::size_t i = 0;
    for_each_element(output_sizes, [&](int, int k, int, int) {
      result.bias[static_cast<std::size_t>(k)] += gradient[i++];
    });
    return result;
  }

  const char* name;
  Conv2dProblem problem;
  Sizes input_sizes, weight_sizes, output_sizes;
  Values input, weight, bias, grad_output, relu_output;
  Values output;  // without bias
  Gradients gradients, gradients_of_relu;

 private:
  // Calls body(output, weight, input) with the places of the factors of each product.
  template <class Body>
  void for_each_product(const Body& body) const {
    const Strides in = dense_strides(input_sizes), filter = dense_strides(weight_sizes);
    int64_t out = -1;
    for_each_element(output_sizes, [&](int n, int k, int p, int q) {
      ++out;
      const int first_c = k / problem.group_filters() * problem.group_channels();
      for_each_element({1, weight_sizes.c, problem.R, problem.S}, [&](int, int c, int r, int s) {
        const int h = p * problem.stride_h - problem.pad_top + r * problem.dilation_h;
        const int w = q * problem.stride_w - problem.pad_left + s * problem.dilation_w;
        if (h < 0 || h >= problem.H || w < 0 || w >= problem.W) return;
        body(static_cast<std::size_t>(out), static_cast<std::size_t>(filter.at(k, c, r, s)),
             static_cast<std::size_t>(in.at(n, first_c + c, h, w)));
      });
    });
  }

  Values convolve() const {
    Values result(grad_output.size(), 0);
    for_each_product([&](auto o, auto f, auto i) { result[o] += weight[f] * input[i]; });
    return result;
  }

  Values open_gradient() const {
    Values open = grad_output;
    for (std::size_t i = 0; i < open.size(); ++i) open[i] = relu_output[i] <= 0 ? 0 : open[i];
    return open;
  }
};

// ---- Pooling ----

// The average poolings of a window: the members of Pool2dProblem.
struct Average {
  bool count_include_pad;
  int64_t divisor_override;
};

// Where a tap of a window lies; `inside`: the window has it, and it is a pixel.
struct WindowTap {
  int h, w;
  bool inside;
};

inline WindowTap tap_of(const Pool2dProblem& problem, int p, int q, int r, int s) {
  const int h = p * problem.stride_h - problem.pad_h + r * problem.dilation_h;
  const int w = q * problem.stride_w - problem.pad_w + s * problem.dilation_w;
  return {h, w, h >= 0 && h < problem.H && w >= 0 && w < problem.W};
}

inline WindowTap tap_of(const AdaptivePool2dProblem& problem, int p, int q, int r, int s) {
  const auto begin = [](double i, int size, int count) { return std::floor(i * size / count); };
  const auto end = [](double i, int size, int count) { return std::ceil((i + 1) * size / count); };
  const double h = begin(p, problem.H, problem.P) + r, w = begin(q, problem.W, problem.Q) + s;
  return {static_cast<int>(h), static_cast<int>(w),
          h < end(p, problem.H, problem.P) && w < end(q, problem.W, problem.Q)};
}

// How many of `size` positions from `first` on lie in [0, count), or there and in the padding.
inline int64_t counted(int first, int size, int count, int pad, bool padding_counts) {
  int64_t found = 0;
  for (int x = first; x < first + size; ++x)
    found += padding_counts ? x < count + pad : x >= 0 && x < count;
  return found;
}

inline int64_t divisor_of(const Pool2dProblem& problem, const Average& average, int p, int q) {
  if (average.divisor_override != 0) return average.divisor_override;
  return counted(p * problem.stride_h - problem.pad_h, problem.R, problem.H, problem.pad_h,
                 average.count_include_pad) *
         counted(q * problem.stride_w - problem.pad_w, problem.S, problem.W, problem.pad_w,
                 average.count_include_pad);
}

inline int64_t divisor_of(const AdaptivePool2dProblem& problem, const Average&, int p, int q) {
  int64_t pixels = 0;
  for (int r = 0; r < problem.R; ++r)
    for (int s = 0; s < problem.S; ++s) pixels += tap_of(problem, p, q, r, s).inside;
  return pixels;
}

template <class Problem>
class PoolData {
 public:
  template <class Case>
  PoolData(const Case& chosen, bool planes_equal)
      : PoolData(chosen.name, chosen.problem(),
                 small_integers(sizes_of_input(chosen.problem()), 1, planes_equal), planes_equal) {}

  PoolData(const char* its_name, const Problem& its_problem, Values its_input, bool planes_equal)
      : name(its_name),
        problem(its_problem),
        input_sizes(sizes_of_input(problem)),
        output_sizes{problem.N, problem.C, problem.P, problem.Q},
        input(std::move(its_input)),
        grad_output(small_integers(output_sizes, 2, planes_equal)),
        planes_equal_(planes_equal) {
    find_maxima();
  }

  // The positions of the maxima, stored as `kind`.
  const Values& argmax(Argmax kind) const { return kind == Argmax::int64 ? indices_ : codes_; }

  // Operands that the divisors of all windows divide, so that results are exact, or none where
  // such numbers would not fit bfloat16.
  struct Averages {
    Values input, grad_output;
    Values output, grad_input;
  };
  bool averages_are_exact(const Average& average) const {
    int64_t odd = common_multiple(average);
    while (odd % 2 == 0) odd /= 2;
    return 3 * odd < 256;
  }
  Averages averages(const Average& average) const {
    const auto scale = static_cast<double>(common_multiple(average));
    return averages_of(small_integers(input_sizes, 3, planes_equal_, scale), average);
  }
  // Of a given input, whose averages are rounded.
  Averages averages_of(const Values& pixels, const Average& average) const {
    const auto scale = static_cast<double>(common_multiple(average));
    Averages result = {pixels, small_integers(output_sizes, 4, planes_equal_, scale),
                       Values(grad_output.size(), 0), Values(pixels.size(), 0)};
    for_each_tap([&](std::size_t out, std::size_t in, int p, int q, int, int) {
      result.output[out] += result.input[in];
      result.grad_input[in] +=
          result.grad_output[out] / static_cast<double>(divisor_of(problem, average, p, q));
    });
    std::size_t out = 0;
    for_each_element(output_sizes, [&](int, int, int p, int q) {
      const auto divisor = static_cast<double>(divisor_of(problem, average, p, q));
      result.output[out++] /= divisor == 0 ? 1 : divisor;
    });
    return result;
  }

  // Calls body(output, input, p, q, r, s) for each pixel of each window.
  template <class Body>
  void for_each_tap(const Body& body) const {
    const Strides in = dense_strides(input_sizes);
    int64_t out = -1;
    for_each_element(output_sizes, [&](int n, int c, int p, int q) {
      ++out;
      for_each_element({1, 1, problem.R, problem.S}, [&](int, int, int r, int s) {
        const WindowTap tap = tap_of(problem, p, q, r, s);
        if (!tap.inside) return;
        body(static_cast<std::size_t>(out), static_cast<std::size_t>(in.at(n, c, tap.h, tap.w)), p,
             q, r, s);
      });
    });
  }

  const char* name;
  Problem problem;
  Sizes input_sizes, output_sizes;
  Values input, grad_output;
  Values maxima, grad_input, gathered;  // gathered: input where the maxima lie

 private:
  static Sizes sizes_of_input(const Problem& problem) {
    return {problem.N, problem.C, problem.H, problem.W};
  }

  void find_maxima() {
    constexpr double kNone = -std::numeric_limits<double>::infinity();
    const std::size_t outputs = grad_output.size();
    maxima.assign(outputs, kNone), gathered.assign(outputs, 0);
    codes_.assign(outputs, 0), indices_.assign(outputs, 0);
    grad_input.assign(input.size(), 0);
    std::vector<std::size_t> places(outputs);
    for_each_tap([&](std::size_t out, std::size_t in, int, int, int r, int s) {
      if (input[in] <= maxima[out]) return;
      maxima[out] = gathered[out] = input[in];
      codes_[out] = r * problem.S + s;
      indices_[out] = static_cast<double>(in % static_cast<std::size_t>(problem.H * problem.W));
      places[out] = in;
    });
    for (std::size_t out = 0; out < outputs; ++out)
      if (maxima[out] != kNone) grad_input[places[out]] += grad_output[out];
    place_maxima_of_empty_windows();
  }

  // Where all of a window is padding, torch names the first tap that is not before the input.
  void place_maxima_of_empty_windows() {
    std::size_t out = 0;
    for_each_element(output_sizes, [&](int, int, int p, int q) {
      if (std::isinf(maxima[out])) {
        const int r = problem.rows(p).begin, s = problem.columns(q).begin;
        codes_[out] = r * problem.S + s;
        indices_[out] =
            static_cast<double>(problem.input_h(p, r)) * problem.W + problem.input_w(q, s);
      }
      ++out;
    });
  }

  int64_t common_multiple(const Average& average) const {
    int64_t multiple = 1;
    for_each_tap([&](std::size_t, std::size_t, int p, int q, int, int) {
      multiple = std::lcm(multiple, divisor_of(problem, average, p, q));
    });
    return multiple;
  }

  bool planes_equal_;
  Values codes_, indices_;
};

using Pool2dData = PoolData<Pool2dProblem>;
using AdaptivePool2dData = PoolData<AdaptivePool2dProblem>;

// ---- Convolution, ReLU and pool ----

// The pool of Conv2dData's output. ReLU passes the gradient of positive pixels alone.
struct Conv2dPoolData {
  Conv2dPoolData(const Conv2dPoolCase& chosen, bool planes_equal, double weight_scale = 1)
      : name(chosen.name),
        problem(chosen.problem()),
        conv(chosen.conv, planes_equal, weight_scale) {
    const Pool2dData pool(name, problem.pool, conv.finished(true, true), planes_equal);
    output_sizes = pool.output_sizes;
    if (problem.average)
      set_averages(pool);
    else
      set_maxima(pool);
  }

  const char* name;
  Conv2dPoolProblem problem;
  Conv2dData conv;
  Sizes output_sizes;
  Values output, code, grad_output;
  Conv2dData::Gradients gradients;

 private:
  void set_maxima(const Pool2dData& pool) {
    output = pool.maxima;
    code = pool.argmax(Argmax::int32);
    for (std::size_t i = 0; i < code.size(); ++i)
      if (output[i] <= 0) code[i] = problem.wide_code() ? -1 : 255;  // kReluClosed
    grad_output = pool.grad_output;
    gradients = conv.differentiate(of_positive(pool.input, pool.grad_input));
  }

  void set_averages(const Pool2dData& pool) {
    const auto averages = pool.averages_of(pool.input, {false, 0});
    output = averages.output;
    code.assign(output.size(), 0);
    pool.for_each_tap([&](std::size_t out, std::size_t in, int, int, int r, int s) {
      if (pool.input[in] > 0) code[out] += 1u << (r * problem.pool.S + s);
    });
    grad_output = averages.grad_output;
    gradients = conv.differentiate(of_positive(pool.input, averages.grad_input));
  }

  static Values of_positive(const Values& pixels, Values gradient) {
    for (std::size_t i = 0; i < pixels.size(); ++i)
      if (pixels[i] <= 0) gradient[i] = 0;
    return gradient;
  }
};

}  // namespace cnnkernels
