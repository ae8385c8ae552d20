// Runs every kernel of the CPU and the emulator over the problems of problems.h, in every dtype and
// layout, and compares exactly with reference.h. To be compiled with a sanitizer.
//
//   kernel_grid [--small] [text]
//
// --small takes the problems and layouts meant for TSan; with `text` only the kernels run whose
// line ("emulated conv2d direct fprop") contains it. Exits with 0 if all is well, with 77 if the
// instruction set that CNNKERNELS_CPU_ISA names is not to be had.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "../../csrc/registry.h"
#include "problems.h"
#include "reference.h"
#include "tensor.h"
#include "threads.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 2;
constexpr int kNoSuchIsa = 77;

constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float64, Dtype::float16, Dtype::bfloat16};
constexpr const char* kDtypeNames[] = {"float32", "float64", "float16", "bfloat16"};

// Of the input, the weight, and the output and what has its size; results cannot be expanded.
struct Layouts {
  const char* name;
  Layout input, weight, output;
  bool every_dtype;  // else float32 alone
};

const std::vector<Layouts> kSmallLayouts = {
    {"nchw", Layout::nchw, Layout::nchw, Layout::nchw, true},
    {"channels_last", Layout::channels_last, Layout::channels_last, Layout::channels_last, true},
    {"sliced", Layout::sliced, Layout::sliced, Layout::sliced, true}};
const std::vector<Layouts> kLayouts = {
    kSmallLayouts[0],
    kSmallLayouts[1],
    kSmallLayouts[2],
    {"mixed", Layout::channels_last, Layout::nchw, Layout::nchw, false},
    {"mixed the other way", Layout::nchw, Layout::channels_last, Layout::channels_last, false}};
const std::vector<Layouts> kExpanded = {
    {"expanded", Layout::expanded, Layout::expanded, Layout::expanded, false}};

constexpr Layout result(Layout layout) {
  return layout == Layout::expanded ? Layout::nchw : layout;
}

// The problems, and the layouts that their operands can take.
template <class Data>
struct Setting {
  Data data;
  std::vector<Layouts> layouts;
};

template <class Data, class Cases, class... Scale>
std::vector<Setting<Data>> settings_of(const Cases& cases, bool small, Scale... scale) {
  std::vector<Setting<Data>> settings;
  for (const auto& chosen : cases) {
    settings.push_back({Data(chosen, false, scale...), small ? kSmallLayouts : kLayouts});
    if (!small) settings.push_back({Data(chosen, true, scale...), kExpanded});
  }
  return settings;
}

// Those of convolutions. Winograd's transform for 4x4 outputs divides weights by 24 twice.
template <class Data>
struct ConvSettings {
  std::vector<Setting<Data>> plain, divisible;

  template <class Cases>
  ConvSettings(const Cases& cases, bool small)
      : plain(settings_of<Data>(cases, small)),
        divisible(settings_of<Data>(cases, small, 24.0 * 24.0)) {}
};

template <class Data>
const std::vector<Setting<Data>>& settings_for(const ConvSettings<Data>& settings,
                                               const std::string& algorithm) {
  return algorithm == "winograd_4x4" ? settings.divisible : settings.plain;
}
template <class Data>
const std::vector<Setting<Data>>& settings_for(const std::vector<Setting<Data>>& settings,
                                               const std::string&) {
  return settings;
}

// What one line of output tells: how often a pass of an algorithm ran, and what went wrong.
class Tally {
 public:
  explicit Tally(std::string name) : name_(std::move(name)) {}

  void begin_case(std::string description) { case_ = std::move(description); }
  void refuse() { ++refused_; }

  // Runs the kernel, then compares each result with what it should be.
  template <class Kernel>
  void run(const std::string& variant, const Kernel& kernel,
           const std::vector<std::pair<const Tensor*, const Values*>>& results) {
    ++cases_;
    std::string wrong;
    try {
      kernel();
      for (const auto& [actual, expected] : results) {
        if (wrong.empty()) wrong = actual->difference(*expected);
      }
    } catch (const std::exception& error) {
      wrong = error.what();
    }
    if (wrong.empty()) return;
    constexpr int kShown = 5;
    if (++failures_ <= kShown)
      std::printf("%s, %s%s: %s\n", name_.c_str(), case_.c_str(), variant.c_str(), wrong.c_str());
  }

  // Prints the line. A pass that nothing ran has failed too.
  bool report() const {
    std::printf("%s: %d cases", name_.c_str(), cases_);
    if (refused_ > 0) std::printf(", %d not supported", refused_);
    if (failures_ > 0) std::printf(", %d FAILED", failures_);
    std::printf("\n");
    std::fflush(stdout);
    return failures_ == 0 && cases_ > 0;
  }

 private:
  std::string name_, case_;
  int cases_ = 0, refused_ = 0, failures_ = 0;
};

// ---- Convolution ----

// One place to run a convolution: what to compute, of which dtype, in which layouts.
template <class Algorithm, class Data>
struct ConvRun {
  const Algorithm& algorithm;
  const Data& data;
  Dtype dtype;
  const Layouts& layouts;
  Tally& tally;

  Tensor operand(const Sizes& sizes, Layout layout, const Values& values) const {
    return {element_of(dtype), sizes, layout, values};
  }
  Tensor empty(const Sizes& sizes, Layout layout) const {
    return {element_of(dtype), sizes, result(layout)};
  }
  template <class Problem>
  std::vector<char> workspace(const Problem& problem, ConvPass pass) const {
    return std::vector<char>(workspace_bytes(algorithm, problem, dtype, pass));
  }
};

using Conv2dRun = ConvRun<Conv2dAlgorithm, Conv2dData>;
using Conv2dPoolRun = ConvRun<Conv2dPoolAlgorithm, Conv2dPoolData>;

// Gives the pass grad_output alone, and with the output of a ReLU.
template <class Body>
void with_gradient(const Conv2dRun& run, const Body& body) {
  const Conv2dData& data = run.data;
  const Tensor grad = run.operand(data.output_sizes, run.layouts.output, data.grad_output);
  const Tensor relu = run.operand(data.output_sizes, run.layouts.output, data.relu_output);
  Conv2dProblem problem = data.problem;
  problem.output = grad.strides();
  body("", problem, grad.data(), nullptr, data.gradients);
  problem.relu = relu.strides();
  body(", relu", problem, grad.data(), relu.data(), data.gradients_of_relu);
}

void fprop(const Conv2dRun& run) {
  const Conv2dData& data = run.data;
  if (data.output_sizes.count() == 0) return;
  const Tensor input = run.operand(data.input_sizes, run.layouts.input, data.input);
  const Tensor weight = run.operand(data.weight_sizes, run.layouts.weight, data.weight);
  struct Variant {
    const char* name;
    Layout bias;
    bool with_bias, relu;
  };
  constexpr Variant kVariants[] = {{"", Layout::nchw, false, false},
                                   {", bias", Layout::nchw, true, false},
                                   {", strided bias, relu", Layout::sliced, true, true}};
  for (const Variant& variant : kVariants) {
    const Tensor bias = run.operand(data.bias_sizes(), variant.bias, data.bias);
    const Tensor output = run.empty(data.output_sizes, run.layouts.output);
    const Values expected = data.finished(variant.with_bias, variant.relu);
    Conv2dProblem problem = data.problem;
    problem.input = input.strides();
    problem.weight = weight.strides();
    problem.output = output.strides();
    const Epilogue epilogue = {variant.with_bias ? bias.data() : nullptr, bias.strides().n,
                               variant.relu};
    std::vector<char> workspace = run.workspace(problem, ConvPass::fprop);
    run.tally.run(variant.name,
                  [&] {
                    run.algorithm.fprop(problem, run.dtype, input.data(), weight.data(), epilogue,
                                        output.data(), workspace.data(), nullptr);
                  },
                  {{&output, &expected}});
  }
}

void dgrad(const Conv2dRun& run) {
  const Conv2dData& data = run.data;
  if (data.input_sizes.count() == 0) return;
  const Tensor weight = run.operand(data.weight_sizes, run.layouts.weight, data.weight);
  with_gradient(run, [&](const char* variant, Conv2dProblem problem, const void* grad,
                         const void* relu, const Conv2dData::Gradients& expected) {
    const Tensor grad_input = run.empty(data.input_sizes, run.layouts.input);
    problem.weight = weight.strides();
    problem.input = grad_input.strides();
    std::vector<char> workspace = run.workspace(problem, ConvPass::dgrad);
    run.tally.run(variant,
                  [&] {
                    run.algorithm.dgrad(problem, run.dtype, grad, relu, weight.data(),
                                        grad_input.data(), workspace.data(), nullptr);
                  },
                  {{&grad_input, &expected.input}});
  });
}

void wgrad(const Conv2dRun& run) {
  const Conv2dData& data = run.data;
  if (data.weight_sizes.count() == 0) return;
  const Tensor input = run.operand(data.input_sizes, run.layouts.input, data.input);
  with_gradient(run, [&](const char* variant, Conv2dProblem problem, const void* grad,
                         const void* relu, const Conv2dData::Gradients& expected) {
    const Tensor grad_weight = run.empty(data.weight_sizes, run.layouts.weight);
    problem.input = input.strides();
    problem.weight = grad_weight.strides();
    std::vector<char> workspace = run.workspace(problem, ConvPass::wgrad);
    run.tally.run(variant,
                  [&] {
                    run.algorithm.wgrad(problem, run.dtype, grad, relu, input.data(),
                                        grad_weight.data(), workspace.data(), nullptr);
                  },
                  {{&grad_weight, &expected.weight}});
  });
}

void bgrad(const Conv2dRun& run) {
  with_gradient(run, [&](const char* variant, const Conv2dProblem& problem, const void* grad,
                         const void* relu, const Conv2dData::Gradients& expected) {
    const Tensor grad_bias = run.empty(run.data.bias_sizes(), Layout::nchw);
    run.tally.run(
        variant,
        [&] { run.algorithm.bgrad(problem, run.dtype, grad, relu, grad_bias.data(), nullptr); },
        {{&grad_bias, &expected.bias}});
  });
}

// ---- Convolution, ReLU and pool ----

void fprop(const Conv2dPoolRun& run) {
  const Conv2dPoolData& data = run.data;
  if (data.output_sizes.count() == 0) return;
  const Tensor input = run.operand(data.conv.input_sizes, run.layouts.input, data.conv.input);
  const Tensor weight = run.operand(data.conv.weight_sizes, run.layouts.weight, data.conv.weight);
  const Tensor bias = run.operand(data.conv.bias_sizes(), Layout::sliced, data.conv.bias);
  const Epilogue epilogue = {bias.data(), bias.strides().n, true};
  for (const bool training : {false, true}) {
    const Tensor output = run.empty(data.output_sizes, run.layouts.output);
    const Tensor code(element_of_code(data.problem), data.output_sizes, result(run.layouts.output));
    Conv2dPoolProblem problem = data.problem;
    problem.conv.input = input.strides();
    problem.conv.weight = weight.strides();
    problem.pool.output = output.strides();
    problem.pool.argmax = code.strides();
    std::vector<std::pair<const Tensor*, const Values*>> results = {{&output, &data.output}};
    if (training) results.emplace_back(&code, &data.code);
    std::vector<char> workspace = run.workspace(problem, ConvPass::fprop);
    run.tally.run(
        training ? ", training" : "",
        [&] {
          run.algorithm.fprop(problem, run.dtype, input.data(), weight.data(), epilogue,
                              output.data(), training ? code.data() : nullptr, workspace.data(),
                              nullptr);
        },
        results);
  }
}

// Gives the pass the gradient of the pooled output, and its code.
template <class Body>
void with_gradient(const Conv2dPoolRun& run, const Body& body) {
  const Conv2dPoolData& data = run.data;
  const Tensor grad = run.operand(data.output_sizes, run.layouts.output, data.grad_output);
  const Tensor code(element_of_code(data.problem), data.output_sizes, run.layouts.output,
                    data.code);
  Conv2dPoolProblem problem = data.problem;
  problem.pool.output = grad.strides();
  problem.pool.argmax = code.strides();
  body(problem, grad.data(), code.data());
}

void dgrad(const Conv2dPoolRun& run) {
  const Conv2dData& conv = run.data.conv;
  if (conv.input_sizes.count() == 0) return;
  const Tensor weight = run.operand(conv.weight_sizes, run.layouts.weight, conv.weight);
  const Tensor grad_input = run.empty(conv.input_sizes, run.layouts.input);
  with_gradient(run, [&](Conv2dPoolProblem problem, const void* grad, const void* code) {
    problem.conv.weight = weight.strides();
    problem.conv.input = grad_input.strides();
    std::vector<char> workspace = run.workspace(problem, ConvPass::dgrad);
    run.tally.run("",
                  [&] {
                    run.algorithm.dgrad(problem, run.dtype, grad, code, weight.data(),
                                        grad_input.data(), workspace.data(), nullptr);
                  },
                  {{&grad_input, &run.data.gradients.input}});
  });
}

void wgrad(const Conv2dPoolRun& run) {
  const Conv2dData& conv = run.data.conv;
  const Tensor input = run.operand(conv.input_sizes, run.layouts.input, conv.input);
  const Tensor grad_weight = run.empty(conv.weight_sizes, run.layouts.weight);
  with_gradient(run, [&](Conv2dPoolProblem problem, const void* grad, const void* code) {
    problem.conv.input = input.strides();
    problem.conv.weight = grad_weight.strides();
    std::vector<char> workspace = run.workspace(problem, ConvPass::wgrad);
    run.tally.run("",
                  [&] {
                    run.algorithm.wgrad(problem, run.dtype, grad, code, input.data(),
                                        grad_weight.data(), workspace.data(), nullptr);
                  },
                  {{&grad_weight, &run.data.gradients.weight}});
  });
}

void bgrad(const Conv2dPoolRun& run) {
  const Tensor grad_bias = run.empty(run.data.conv.bias_sizes(), Layout::nchw);
  with_gradient(run, [&](const Conv2dPoolProblem& problem, const void* grad, const void* code) {
    run.tally.run(
        "", [&] { run.algorithm.bgrad(problem, run.dtype, grad, code, grad_bias.data(), nullptr); },
        {{&grad_bias, &run.data.gradients.bias}});
  });
}

// ---- Pooling ----

template <class Problem>
struct PoolRun {
  const PoolAlgorithm<Problem>& algorithm;
  const PoolData<Problem>& data;
  Dtype dtype;
  const Layouts& layouts;
  Tally& tally;

  Tensor input(const Values& values) const {
    return {element_of(dtype), data.input_sizes, layouts.input, values};
  }
  Tensor grad_output(const Values& values) const {
    return {element_of(dtype), data.output_sizes, layouts.output, values};
  }
  Tensor empty_input() const {
    return {element_of(dtype), data.input_sizes, result(layouts.input)};
  }
  Tensor empty_output() const {
    return {element_of(dtype), data.output_sizes, result(layouts.output)};
  }

  template <class Body>
  void for_each_argmax(const Body& body) const {
    const int64_t window = static_cast<int64_t>(data.problem.R) * data.problem.S;
    if (window <= kMaxByteWindow) body(", one byte", Argmax::uint8);
    body(", four bytes", Argmax::int32);
    body(", eight bytes", Argmax::int64);
  }
  Tensor argmax(Argmax kind) const {
    return {element_of(kind), data.output_sizes, result(layouts.output), data.argmax(kind)};
  }

  // Adaptive pools have but one average.
  template <class Body>
  void for_each_average(const Body& body) const {
    if constexpr (std::is_same_v<Problem, Pool2dProblem>) {
      for_each_divisor(body);
    } else if (data.averages_are_exact({})) {
      body(std::string(), data.problem, data.averages({}));
    }
  }
  template <class Body>
  void for_each_divisor(const Body& body) const {
    if (data.problem.dilation_h != 1 || data.problem.dilation_w != 1) return;
    for (bool count_include_pad : {false, true}) {
      for (int64_t divisor_override : {0, 3, -2}) {
        const Average average = {count_include_pad, divisor_override};
        if (!data.averages_are_exact(average)) continue;
        Pool2dProblem problem = data.problem;
        problem.count_include_pad = count_include_pad;
        problem.divisor_override = divisor_override;
        body(std::string(count_include_pad ? ", counting padding" : "") + ", divisor " +
                 std::to_string(divisor_override),
             problem, data.averages(average));
      }
    }
  }
};

template <class Problem>
void max_forward(const PoolRun<Problem>& run) {
  const Tensor input = run.input(run.data.input);
  const auto check = [&](const char* variant, Argmax kind) {
    const Tensor output = run.empty_output();
    const Tensor argmax(element_of(kind), run.data.output_sizes, result(run.layouts.output));
    Problem problem = run.data.problem;
    problem.input = input.strides();
    problem.output = output.strides();
    problem.argmax = argmax.strides();
    std::vector<std::pair<const Tensor*, const Values*>> results = {{&output, &run.data.maxima}};
    if (kind != Argmax::none) results.emplace_back(&argmax, &run.data.argmax(kind));
    run.tally.run(
        variant,
        [&] {
          run.algorithm.max_forward(problem, run.dtype, input.data(), output.data(),
                                    kind == Argmax::none ? nullptr : argmax.data(), kind, nullptr);
        },
        results);
  };
  check("", Argmax::none);
  run.for_each_argmax(check);
}

template <class Problem>
void max_backward(const PoolRun<Problem>& run) {
  const Tensor grad = run.grad_output(run.data.grad_output);
  run.for_each_argmax([&](const char* variant, Argmax kind) {
    const Tensor argmax = run.argmax(kind), grad_input = run.empty_input();
    Problem problem = run.data.problem;
    problem.output = grad.strides();
    problem.argmax = argmax.strides();
    problem.input = grad_input.strides();
    run.tally.run(variant,
                  [&] {
                    run.algorithm.max_backward(problem, run.dtype, grad.data(), argmax.data(), kind,
                                               grad_input.data(), nullptr);
                  },
                  {{&grad_input, &run.data.grad_input}});
  });
}

template <class Problem>
void max_gather(const PoolRun<Problem>& run) {
  const Tensor input = run.input(run.data.input);
  run.for_each_argmax([&](const char* variant, Argmax kind) {
    const Tensor argmax = run.argmax(kind), output = run.empty_output();
    Problem problem = run.data.problem;
    problem.input = input.strides();
    problem.argmax = argmax.strides();
    problem.output = output.strides();
    run.tally.run(variant,
                  [&] {
                    run.algorithm.max_gather(problem, run.dtype, input.data(), argmax.data(), kind,
                                             output.data(), nullptr);
                  },
                  {{&output, &run.data.gathered}});
  });
}

template <class Problem>
void avg_forward(const PoolRun<Problem>& run) {
  run.for_each_average([&](const std::string& variant, Problem problem, const auto& averages) {
    const Tensor input = run.input(averages.input), output = run.empty_output();
    problem.input = input.strides();
    problem.output = output.strides();
    run.tally.run(variant,
                  [&] {
                    run.algorithm.avg_forward(problem, run.dtype, input.data(), output.data(),
                                              nullptr);
                  },
                  {{&output, &averages.output}});
  });
}

template <class Problem>
void avg_backward(const PoolRun<Problem>& run) {
  run.for_each_average([&](const std::string& variant, Problem problem, const auto& averages) {
    const Tensor grad = run.grad_output(averages.grad_output), grad_input = run.empty_input();
    problem.output = grad.strides();
    problem.input = grad_input.strides();
    run.tally.run(variant,
                  [&] {
                    run.algorithm.avg_backward(problem, run.dtype, grad.data(), grad_input.data(),
                                               nullptr);
                  },
                  {{&grad_input, &averages.grad_input}});
  });
}

// ---- All of them ----

template <class Algorithm, class Run>
struct Pass {
  const char* name;
  bool (*offered)(const Algorithm&);
  void (*check)(const Run&);
};

template <class Algorithm, class Run>
const std::vector<Pass<Algorithm, Run>> kConvPasses = {
    {"fprop", [](const Algorithm& a) { return a.fprop != nullptr; }, fprop},
    {"dgrad", [](const Algorithm& a) { return a.dgrad != nullptr; }, dgrad},
    {"wgrad", [](const Algorithm& a) { return a.wgrad != nullptr; }, wgrad},
    {"bgrad", [](const Algorithm& a) { return a.bgrad != nullptr; }, bgrad},
};

template <class Problem>
const std::vector<Pass<PoolAlgorithm<Problem>, PoolRun<Problem>>> kPoolPasses = {
    {"max_forward", [](const PoolAlgorithm<Problem>& a) { return a.max_forward != nullptr; },
     max_forward},
    {"max_backward", [](const PoolAlgorithm<Problem>& a) { return a.max_backward != nullptr; },
     max_backward},
    {"max_gather", [](const PoolAlgorithm<Problem>& a) { return a.max_gather != nullptr; },
     max_gather},
    {"avg_forward", [](const PoolAlgorithm<Problem>& a) { return a.avg_forward != nullptr; },
     avg_forward},
    {"avg_backward", [](const PoolAlgorithm<Problem>& a) { return a.avg_backward != nullptr; },
     avg_backward},
};

// With the strides that an algorithm may turn down.
Conv2dProblem laid_out(const Conv2dData& data, const Layouts& layouts) {
  Conv2dProblem problem = data.problem;
  problem.input = strides_of(data.input_sizes, layouts.input);
  problem.weight = strides_of(data.weight_sizes, layouts.weight);
  problem.output = strides_of(data.output_sizes, layouts.output);
  return problem;
}

Conv2dPoolProblem laid_out(const Conv2dPoolData& data, const Layouts& layouts) {
  Conv2dPoolProblem problem = data.problem;
  problem.conv.input = strides_of(data.conv.input_sizes, layouts.input);
  problem.conv.weight = strides_of(data.conv.weight_sizes, layouts.weight);
  problem.pool.output = problem.pool.argmax = strides_of(data.output_sizes, layouts.output);
  return problem;
}

template <class Problem>
Problem laid_out(const PoolData<Problem>& data, const Layouts& layouts) {
  Problem problem = data.problem;
  problem.input = strides_of(data.input_sizes, layouts.input);
  problem.output = problem.argmax = strides_of(data.output_sizes, layouts.output);
  return problem;
}

// How many lines were printed, and whether all were good.
struct Outcome {
  int lines = 0;
  bool good = true;
};

template <class Algorithm, class Run, class Settings>
void check_algorithms(const std::string& heading, const std::vector<Algorithm>& algorithms,
                      const std::vector<Pass<Algorithm, Run>>& passes, const Settings& settings,
                      const std::string& wanted, Outcome& outcome) {
  for (const Algorithm& algorithm : algorithms) {
    for (const auto& pass : passes) {
      const std::string name = heading + " " + algorithm.name + " " + pass.name;
      if (!pass.offered(algorithm) || name.find(wanted) == std::string::npos) continue;
      Tally tally(name);
      for (const auto& [data, layouts] : settings_for(settings, algorithm.name)) {
        for (Dtype dtype : kDtypes) {
          for (const Layouts& layout : layouts) {
            if (dtype != Dtype::float32 && !layout.every_dtype) continue;
            tally.begin_case(std::string(data.name) + ", " + kDtypeNames[static_cast<int>(dtype)] +
                             ", " + layout.name);
            if (algorithm.unsupported(laid_out(data, layout), dtype) == nullptr) {
              pass.check({algorithm, data, dtype, layout, tally});
            } else {
              tally.refuse();
            }
          }
        }
      }
      outcome.good &= tally.report();
      ++outcome.lines;
    }
  }
}

int run_grid(bool small, const std::string& wanted) {
  try {
    cpu::conv2d_algorithms();
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return kNoSuchIsa;
  }
  start_threads(kThreads);
  const ConvSettings<Conv2dData> convs(small ? kSmallConv2dCases : kConv2dCases, small);
  const ConvSettings<Conv2dPoolData> conv_pools(small ? kSmallConv2dPoolCases : kConv2dPoolCases,
                                                small);
  const auto pools = settings_of<Pool2dData>(small ? kSmallPool2dCases : kPool2dCases, small);
  const auto adaptive_pools = settings_of<AdaptivePool2dData>(
      small ? kSmallAdaptivePool2dCases : kAdaptivePool2dCases, small);
  Outcome outcome;
  const auto check_backend = [&](const std::string& name, const auto& conv2d, const auto& pool2d,
                                 const auto& adaptive_pool2d) {
    check_algorithms(name + " conv2d", conv2d, kConvPasses<Conv2dAlgorithm, Conv2dRun>, convs,
                     wanted, outcome);
    check_algorithms(name + " pool2d", pool2d, kPoolPasses<Pool2dProblem>, pools, wanted, outcome);
    check_algorithms(name + " adaptive_pool2d", adaptive_pool2d, kPoolPasses<AdaptivePool2dProblem>,
                     adaptive_pools, wanted, outcome);
  };
  check_backend("cpu", cpu::conv2d_algorithms(), cpu::pool2d_algorithms(),
                cpu::adaptive_pool2d_algorithms());
  check_backend("emulated", emulated::conv2d_algorithms(), emulated::pool2d_algorithms(),
                emulated::adaptive_pool2d_algorithms());
  check_algorithms("cpu conv2d_relu_pool2d", cpu::conv2d_pool_algorithms(),
                   kConvPasses<Conv2dPoolAlgorithm, Conv2dPoolRun>, conv_pools, wanted, outcome);
  check_algorithms("emulated conv2d_relu_pool2d", emulated::conv2d_pool_algorithms(),
                   kConvPasses<Conv2dPoolAlgorithm, Conv2dPoolRun>, conv_pools, wanted, outcome);
  if (outcome.lines == 0) std::printf("no kernel is called %s\n", wanted.c_str());
  return outcome.good && outcome.lines > 0 ? 0 : 1;
}

}  // namespace
}  // namespace cnnkernels

int main(int argc, char** argv) {
  bool small = false;
  std::string wanted;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--small") {
      small = true;
    } else {
      wanted = argv[i];
    }
  }
  return cnnkernels::run_grid(small, wanted);
}
