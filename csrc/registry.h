// The kernels there are: per backend a list of algorithms, per algorithm a function a pass.
// ops.cpp picks from these lists; tests, benchmarks and `cnnkernels info` read them. To add an
// algorithm, write its file and add one line to the list of its backend: cuda/registry.cu
// (compiled for CUDA and for the emulator) or cpu/registry.cpp.
#pragma once

#include <vector>

#include "problem.h"
#include "stream.h"

namespace cnnkernels {

// What fprop does to a sum before it is stored.
struct Epilogue {
  const void* bias;  // K elements with stride bias_stride, or null
  int64_t bias_stride;
  bool relu;  // x < 0 ? 0 : x, so that NaN survives
};

// The `unsupported` of an algorithm without restrictions.
template <class Problem>
const char* runs_everything(const Problem&, Dtype) {
  return nullptr;
}

// Why a problem cannot be run or does not suit, or null.
template <class Problem>
using Objection = const char* (*)(const Problem&, Dtype);

// The passes of a convolution that may want scratch memory.
enum class ConvPass { fprop, dgrad, wgrad };

// One convolution algorithm. A null pass is not offered. Tensors are of the Dtype given (sums
// of 16-bit types are float32). Pointers may be anything where the tensor has no elements.
// In a backward pass of conv+ReLU, relu_output is the saved output: where it is <= 0 the
// gradient counts as zero; for a plain convolution it is null.
struct Conv2dAlgorithm {
  const char* name;

  // What it cannot run, whoever asks.
  Objection<Conv2dProblem> unsupported;

  void (*fprop)(const Conv2dProblem&, Dtype, const void* input, const void* weight, Epilogue,
                void* output, void* workspace, Stream);
  void (*dgrad)(const Conv2dProblem&, Dtype, const void* grad_output, const void* relu_output,
                const void* weight, void* grad_input, void* workspace, Stream);
  void (*wgrad)(const Conv2dProblem&, Dtype, const void* grad_output, const void* relu_output,
                const void* input, void* grad_weight, void* workspace, Stream);
  // grad_bias[k] = sum of grad_output over n, p, q; contiguous.
  void (*bgrad)(const Conv2dProblem&, Dtype, const void* grad_output, const void* relu_output,
                void* grad_bias, Stream);

  // What it can run, but should not where another one can; null where there is no such thing.
  Objection<Conv2dProblem> unsuited = nullptr;

  // The bytes of scratch memory that a pass works in, 16-byte aligned; null: none.
  int64_t (*workspace)(const Conv2dProblem&, Dtype, ConvPass) = nullptr;
};

// The same for conv + bias + ReLU + pool in one. `code` is null in an fprop without training; the
// epilogue's ReLU is on.
struct Conv2dPoolAlgorithm {
  const char* name;
  Objection<Conv2dPoolProblem> unsupported;

  void (*fprop)(const Conv2dPoolProblem&, Dtype, const void* input, const void* weight, Epilogue,
                void* output, void* code, void* workspace, Stream);
  void (*dgrad)(const Conv2dPoolProblem&, Dtype, const void* grad_output, const void* code,
                const void* weight, void* grad_input, void* workspace, Stream);
  void (*wgrad)(const Conv2dPoolProblem&, Dtype, const void* grad_output, const void* code,
                const void* input, void* grad_weight, void* workspace, Stream);
  void (*bgrad)(const Conv2dPoolProblem&, Dtype, const void* grad_output, const void* code,
                void* grad_bias, Stream);

  Objection<Conv2dPoolProblem> unsuited = nullptr;
  int64_t (*workspace)(const Conv2dPoolProblem&, Dtype, ConvPass) = nullptr;
};

// The same for pooling, regular or adaptive.
template <class Problem>
struct PoolAlgorithm {
  const char* name;
  Objection<Problem> unsupported;

  // argmax is null where its kind is none.
  void (*max_forward)(const Problem&, Dtype, const void* input, void* output, void* argmax, Argmax,
                      Stream);
  // grad_input[h, w] = sum of grad_output over the windows whose maximum lies at (h, w).
  void (*max_backward)(const Problem&, Dtype, const void* grad_output, const void* argmax, Argmax,
                       void* grad_input, Stream);
  // output[p, q] = input at the position that argmax names: the derivative of max_backward,
  // and the tangent of max_forward.
  void (*max_gather)(const Problem&, Dtype, const void* input, const void* argmax, Argmax,
                     void* output, Stream);
  void (*avg_forward)(const Problem&, Dtype, const void* input, void* output, Stream);
  void (*avg_backward)(const Problem&, Dtype, const void* grad_output, void* grad_input, Stream);

  Objection<Problem> unsuited = nullptr;
};

using Pool2dAlgorithm = PoolAlgorithm<Pool2dProblem>;
using AdaptivePool2dAlgorithm = PoolAlgorithm<AdaptivePool2dProblem>;

// `instrumented` are the emulated kernels, compiled so that the emulator can observe them.
enum class Backend { cpu, emulated, instrumented, cuda };

// The lists of a backend, in order of preference. CUDA's are empty in a build without nvcc.
const std::vector<Conv2dAlgorithm>& conv2d_algorithms(Backend);
const std::vector<Conv2dPoolAlgorithm>& conv2d_pool_algorithms(Backend);
const std::vector<Pool2dAlgorithm>& pool2d_algorithms(Backend);
const std::vector<AdaptivePool2dAlgorithm>& adaptive_pool2d_algorithms(Backend);

// What a pass of a convolution works in, alone or with a pool.
template <class Algorithm, class Problem>
int64_t workspace_bytes(const Algorithm& algorithm, const Problem& problem, Dtype dtype,
                        ConvPass pass) {
  return algorithm.workspace == nullptr ? 0 : algorithm.workspace(problem, dtype, pass);
}

namespace cpu {
std::vector<Conv2dAlgorithm> conv2d_algorithms();
std::vector<Conv2dPoolAlgorithm> conv2d_pool_algorithms();
std::vector<Pool2dAlgorithm> pool2d_algorithms();
std::vector<AdaptivePool2dAlgorithm> adaptive_pool2d_algorithms();
}  // namespace cpu

namespace emulated {
std::vector<Conv2dAlgorithm> conv2d_algorithms();
std::vector<Conv2dPoolAlgorithm> conv2d_pool_algorithms();
std::vector<Pool2dAlgorithm> pool2d_algorithms();
std::vector<AdaptivePool2dAlgorithm> adaptive_pool2d_algorithms();
}  // namespace emulated

namespace instrumented {
std::vector<Conv2dAlgorithm> conv2d_algorithms();
std::vector<Conv2dPoolAlgorithm> conv2d_pool_algorithms();
std::vector<Pool2dAlgorithm> pool2d_algorithms();
std::vector<AdaptivePool2dAlgorithm> adaptive_pool2d_algorithms();
}  // namespace instrumented

namespace cuda {
std::vector<Conv2dAlgorithm> conv2d_algorithms();
std::vector<Conv2dPoolAlgorithm> conv2d_pool_algorithms();
std::vector<Pool2dAlgorithm> pool2d_algorithms();
std::vector<AdaptivePool2dAlgorithm> adaptive_pool2d_algorithms();
}  // namespace cuda

}  // namespace cnnkernels
