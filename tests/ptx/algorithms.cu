// A C interface to the launchers in the CUDA registry: algorithm number `index`, one function a
// pass. Whatever is in the registry can be called, without an edit here.
#include "../../csrc/registry.h"
#include "attempt.h"

namespace cnnkernels::ptx {
namespace {

const std::vector<Conv2dAlgorithm>& convolutions() {
  static const auto algorithms = cuda::conv2d_algorithms();
  return algorithms;
}

const std::vector<Conv2dPoolAlgorithm>& conv_poolings() {
  static const auto algorithms = cuda::conv2d_pool_algorithms();
  return algorithms;
}

const std::vector<Pool2dAlgorithm>& poolings() {
  static const auto algorithms = cuda::pool2d_algorithms();
  return algorithms;
}

const std::vector<AdaptivePool2dAlgorithm>& adaptive_poolings() {
  static const auto algorithms = cuda::adaptive_pool2d_algorithms();
  return algorithms;
}

// Calls body with pooling algorithm number `index` and its problem.
template <class Body>
Status with_pooling(bool adaptive, int64_t index, const void* problem, const Body& body) {
  if (adaptive)
    return body(adaptive_poolings()[index], *static_cast<const AdaptivePool2dProblem*>(problem));
  return body(poolings()[index], *static_cast<const Pool2dProblem*>(problem));
}

template <class Algorithm>
const char* name(const std::vector<Algorithm>& algorithms, int64_t index) {
  return index < static_cast<int64_t>(algorithms.size()) ? algorithms[index].name : nullptr;
}

template <class Algorithm, class Problem>
Status takes(const Algorithm& algorithm, const Problem& problem, Dtype dtype) {
  const char* reason = algorithm.unsupported(problem, dtype);
  return reason == nullptr ? Status::ran : refuse(reason);
}

template <class Algorithm, class Pass, class Problem, class... Args>
Status run(const Algorithm& algorithm, Pass Algorithm::* pass, const Problem& problem, Dtype dtype,
           Args... args) {
  if (algorithm.*pass == nullptr) return refuse("not offered");
  if (takes(algorithm, problem, dtype) != Status::ran) return Status::refused;
  return attempt([&] {
    (algorithm.*pass)(problem, dtype, args..., nullptr);
    return Status::ran;
  });
}

}  // namespace

extern "C" {

const char* last_message() { return message.c_str(); }

int64_t conv2d_problem_bytes() { return sizeof(Conv2dProblem); }
int64_t conv2d_relu_pool2d_problem_bytes() { return sizeof(Conv2dPoolProblem); }
int64_t pool2d_problem_bytes() { return sizeof(Pool2dProblem); }
int64_t adaptive_pool2d_problem_bytes() { return sizeof(AdaptivePool2dProblem); }

// Null behind the last.
const char* conv2d_name(int64_t index) { return name(convolutions(), index); }
const char* conv2d_relu_pool2d_name(int64_t index) { return name(conv_poolings(), index); }
const char* pool2d_name(int64_t index) { return name(poolings(), index); }
const char* adaptive_pool2d_name(int64_t index) { return name(adaptive_poolings(), index); }

// Whether the algorithm can run the problem; nothing is run.
Status conv2d_takes(int64_t index, const Conv2dProblem& problem, Dtype dtype) {
  return takes(convolutions()[index], problem, dtype);
}
Status conv2d_relu_pool2d_takes(int64_t index, const Conv2dPoolProblem& problem, Dtype dtype) {
  return takes(conv_poolings()[index], problem, dtype);
}
Status pool2d_takes(bool adaptive, int64_t index, const void* problem, Dtype dtype) {
  return with_pooling(adaptive, index, problem, [&](const auto& algorithm, const auto& own) {
    return takes(algorithm, own, dtype);
  });
}

Status conv2d_fprop(int64_t index, const Conv2dProblem& problem, Dtype dtype, const void* input,
                    const void* weight, const void* bias, int64_t bias_stride, bool relu,
                    void* output, void* workspace) {
  return run(convolutions()[index], &Conv2dAlgorithm::fprop, problem, dtype, input, weight,
             Epilogue{bias, bias_stride, relu}, output, workspace);
}

Status conv2d_dgrad(int64_t index, const Conv2dProblem& problem, Dtype dtype,
                    const void* grad_output, const void* relu_output, const void* weight,
                    void* grad_input, void* workspace) {
  return run(convolutions()[index], &Conv2dAlgorithm::dgrad, problem, dtype, grad_output,
             relu_output, weight, grad_input, workspace);
}

// The bytes that a pass works in.
int64_t conv2d_workspace(int64_t index, const Conv2dProblem& problem, Dtype dtype, ConvPass pass) {
  return workspace_bytes(convolutions()[index], problem, dtype, pass);
}
int64_t conv2d_relu_pool2d_workspace(int64_t index, const Conv2dPoolProblem& problem, Dtype dtype,
                                     ConvPass pass) {
  return workspace_bytes(conv_poolings()[index], problem, dtype, pass);
}

Status conv2d_wgrad(int64_t index, const Conv2dProblem& problem, Dtype dtype,
                    const void* grad_output, const void* relu_output, const void* input,
                    void* grad_weight, void* workspace) {
  return run(convolutions()[index], &Conv2dAlgorithm::wgrad, problem, dtype, grad_output,
             relu_output, input, grad_weight, workspace);
}

Status conv2d_bgrad(int64_t index, const Conv2dProblem& problem, Dtype dtype,
                    const void* grad_output, const void* relu_output, void* grad_bias) {
  return run(convolutions()[index], &Conv2dAlgorithm::bgrad, problem, dtype, grad_output,
             relu_output, grad_bias);
}

Status conv2d_relu_pool2d_fprop(int64_t index, const Conv2dPoolProblem& problem, Dtype dtype,
                                const void* input, const void* weight, const void* bias,
                                int64_t bias_stride, void* output, void* code, void* workspace) {
  return run(conv_poolings()[index], &Conv2dPoolAlgorithm::fprop, problem, dtype, input, weight,
             Epilogue{bias, bias_stride, true}, output, code, workspace);
}

Status conv2d_relu_pool2d_dgrad(int64_t index, const Conv2dPoolProblem& problem, Dtype dtype,
                                const void* grad_output, const void* code, const void* weight,
                                void* grad_input, void* workspace) {
  return run(conv_poolings()[index], &Conv2dPoolAlgorithm::dgrad, problem, dtype, grad_output, code,
             weight, grad_input, workspace);
}

Status conv2d_relu_pool2d_wgrad(int64_t index, const Conv2dPoolProblem& problem, Dtype dtype,
                                const void* grad_output, const void* code, const void* input,
                                void* grad_weight, void* workspace) {
  return run(conv_poolings()[index], &Conv2dPoolAlgorithm::wgrad, problem, dtype, grad_output, code,
             input, grad_weight, workspace);
}

Status conv2d_relu_pool2d_bgrad(int64_t index, const Conv2dPoolProblem& problem, Dtype dtype,
                                const void* grad_output, const void* code, void* grad_bias) {
  return run(conv_poolings()[index], &Conv2dPoolAlgorithm::bgrad, problem, dtype, grad_output, code,
             grad_bias);
}

Status pool2d_max_forward(bool adaptive, int64_t index, const void* problem, Dtype dtype,
                          const void* input, Argmax kind, void* output, void* argmax) {
  return with_pooling(adaptive, index, problem, [&](const auto& algorithm, const auto& own) {
    using Algorithm = std::decay_t<decltype(algorithm)>;
    return run(algorithm, &Algorithm::max_forward, own, dtype, input, output, argmax, kind);
  });
}

Status pool2d_max_backward(bool adaptive, int64_t index, const void* problem, Dtype dtype,
                           const void* grad_output, const void* argmax, Argmax kind,
                           void* grad_input) {
  return with_pooling(adaptive, index, problem, [&](const auto& algorithm, const auto& own) {
    using Algorithm = std::decay_t<decltype(algorithm)>;
    return run(algorithm, &Algorithm::max_backward, own, dtype, grad_output, argmax, kind,
               grad_input);
  });
}

Status pool2d_max_gather(bool adaptive, int64_t index, const void* problem, Dtype dtype,
                         const void* input, const void* argmax, Argmax kind, void* output) {
  return with_pooling(adaptive, index, problem, [&](const auto& algorithm, const auto& own) {
    using Algorithm = std::decay_t<decltype(algorithm)>;
    return run(algorithm, &Algorithm::max_gather, own, dtype, input, argmax, kind, output);
  });
}

Status pool2d_avg_forward(bool adaptive, int64_t index, const void* problem, Dtype dtype,
                          const void* input, void* output) {
  return with_pooling(adaptive, index, problem, [&](const auto& algorithm, const auto& own) {
    using Algorithm = std::decay_t<decltype(algorithm)>;
    return run(algorithm, &Algorithm::avg_forward, own, dtype, input, output);
  });
}

Status pool2d_avg_backward(bool adaptive, int64_t index, const void* problem, Dtype dtype,
                           const void* grad_output, void* grad_input) {
  return with_pooling(adaptive, index, problem, [&](const auto& algorithm, const auto& own) {
    using Algorithm = std::decay_t<decltype(algorithm)>;
    return run(algorithm, &Algorithm::avg_backward, own, dtype, grad_output, grad_input);
  });
}

}  // extern "C"
}  // namespace cnnkernels::ptx
