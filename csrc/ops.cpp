// The ops: schemas, argument checks, allocation, dispatch to a kernel. The only C++ that sees a
// Tensor. Checks come before any allocation, with torch's meaning; whatever is not an argument's
// value (types, rank of unbatched input, modes) is settled in functional.py.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <climits>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "emulator/emulator.h"
#include "selection.h"

// In libtorch_cuda: null beside a CPU-only torch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace cnnkernels {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::array<int64_t, 4>;
using Pair = std::array<int64_t, 2>;
using OptionalTensor = std::optional<Tensor>;

using Kernels = std::optional<std::string>;  // see Wanted

std::string text(IntHeaderOnlyArrayRef sizes) {
  std::string list;
  for (int64_t size : sizes) list += (list.empty() ? "" : ", ") + std::to_string(size);
  return "[" + list + "]";
}

// ---------------------------------------------------------------- tensors

Dtype dtype_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float) return Dtype::float32;
  if (type == ScalarType::Double) return Dtype::float64;
  if (type == ScalarType::Half) return Dtype::float16;
  STD_TORCH_CHECK(type == ScalarType::BFloat16, "cnnkernels: not implemented for '",
                  torch::headeronly::toString(type), "'");
  return Dtype::bfloat16;
}

Strides strides_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {strides[0], strides[1], strides[2], strides[3]};
}

// Of a tensor of four dimensions.
Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

// A size or an argument, or a sum of them, which kernels keep in an int.
int narrow(int64_t value, const char* what) {
  STD_TORCH_CHECK(value >= INT_MIN && value <= INT_MAX, "cnnkernels: ", what, " of ", value,
                  " is over the limit of 2^31 - 1");
  return static_cast<int>(value);
}

// torch's Tensor.suggest_memory_format() == channels_last (c10/core/MemoryFormat.h): strides
// descend in the order N, H, W, C; ambiguous cases count as NCHW.
bool is_channels_last(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  if (strides[1] == 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (sizes[d] == 0 || strides[d] < least) return false;
    if (d == 0 && least == strides[1]) return false;
    least = strides[d] * (sizes[d] > 1 ? sizes[d] : 1);
  }
  return true;
}

// Of one dimension or four.
Tensor empty(const Tensor& like, IntHeaderOnlyArrayRef sizes, bool channels_last,
             std::optional<int32_t> dtype = std::nullopt) {
  int32_t device_type, own_dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &own_dtype));
  Sizes strides;
  int64_t stride = 1;
  const auto place = [&](size_t d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  };
  if (channels_last) {
    for (size_t d : {1, 3, 2, 0}) place(d);
  } else {
    for (size_t d = sizes.size(); d-- > 0;) place(d);
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                                                         dtype.value_or(own_dtype), device_type,
                                                         like.get_device_index(), &handle));
  return Tensor(handle);
}

// ---------------------------------------------------------------- where it runs

// The bytes from a tensor's first element to the end of its last.
size_t extent(const Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) last += (sizes[d] - 1) * strides[d];
  return static_cast<size_t>(last + 1) * tensor.element_size();
}

// Which kernels are to run: "[emulated]:[algorithm]", or what suits best where nothing is given.
// Behind them may stand what they are allowed: ":tf32" and ":fast" (problem.h).
struct Wanted {
  bool emulated = false, tf32 = false, fast_math = false;
  std::string_view algorithm;

  explicit Wanted(const Kernels& kernels) {
    if (!kernels) return;
    std::string_view rest = *kernels;
    const auto next = [&] {
      const size_t end = rest.find(':');
      const std::string_view part = rest.substr(0, end);
      rest = end == rest.npos ? std::string_view() : rest.substr(end + 1);
      return part;
    };
    const bool has_parts = rest.find(':') != rest.npos;
    const std::string_view backend = next();
    emulated = backend == "emulated";
    algorithm = next();
    bool is_known = has_parts && (emulated || backend.empty());
    while (!rest.empty()) {
      const std::string_view allowed = next();
      tf32 |= allowed == "tf32", fast_math |= allowed == "fast";
      is_known &= allowed == "tf32" || allowed == "fast";
    }
    STD_TORCH_CHECK(is_known, "cnnkernels: kernels are [emulated]:[algorithm][:tf32][:fast], not ",
                    *kernels);
  }
};

// The backend of a call, with the tensors' device made current while it lives. Kernels get their
// pointers from in() and out(), which tell an observed emulator what memory there is.
class Placement {
 public:
  Placement(const Tensor& tensor, const Kernels& kernels) : wanted_(kernels) {
    if (!tensor.is_cuda()) {
      backend_ = wanted_.emulated ? emulated_backend() : Backend::cpu;
      if (backend_ == Backend::instrumented) known_.emplace();
      return;
    }
    STD_TORCH_CHECK(!wanted_.emulated, "cnnkernels: emulate_cuda() runs tensors on the CPU only");
    backend_ = Backend::cuda;
    guard_.emplace(tensor.get_device_index());
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "cnnkernels: this torch has no CUDA stream to launch on");
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  }

  // What the caller allows the convolution.
  void allow(Conv2dProblem& problem) const {
    problem.tf32 = wanted_.tf32, problem.fast_math = wanted_.fast_math;
  }

  const void* in(const char* name, const Tensor& tensor) {
    if (known_) known_->add({name, tensor.const_data_ptr(), extent(tensor), false});
    return tensor.const_data_ptr();
  }

  // Null where there is no such input.
  const void* in(const char* name, const OptionalTensor& tensor) {
    return tensor ? in(name, *tensor) : nullptr;
  }

  void* out(const char* name, const Tensor& tensor) {
    if (known_) known_->add({name, tensor.const_data_ptr(), extent(tensor), true});
    return tensor.mutable_data_ptr();
  }

  template <class Problem, class Algorithm, class Pass>
  const Algorithm& algorithm(const Problem& problem, Dtype dtype, Pass Algorithm::* pass) const {
    return cnnkernels::choose(backend_, wanted_.algorithm, problem, dtype, pass);
  }

  template <class Problem, class Algorithm, class Pass>
  Pass choose(const Problem& problem, Dtype dtype, Pass Algorithm::* pass) const {
    return algorithm(problem, dtype, pass).*pass;
  }

  Stream stream = nullptr;

 private:
  static Backend emulated_backend() {
    const emulator::Observation what = emulator::observation();
    return what.check || what.profile ? Backend::instrumented : Backend::emulated;
  }

  Wanted wanted_;
  Backend backend_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  std::optional<emulator::KnownMemory> known_;
};

// What a pass of a convolution works in.
class Workspace {
 public:
  template <class Algorithm, class Problem>
  Workspace(const Tensor& like, const Algorithm& algorithm, const Problem& problem, Dtype dtype,
            ConvPass pass, Placement& placement) {
    const int64_t bytes = workspace_bytes(algorithm, problem, dtype, pass);
    if (bytes == 0) return;
    memory_ = empty(like, {&bytes, 1}, false, aoti_torch_dtype_uint8());
    data_ = placement.out("workspace", memory_);
  }

  void* data() const { return data_; }

 private:
  Tensor memory_;
  void* data_ = nullptr;
};

void check_same(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  STD_TORCH_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(),
                  "Expected all tensors to be on the same device, but ", a_name, " and ", b_name,
                  " are not");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), a_name, " type (",
                  torch::headeronly::toString(a.scalar_type()), ") and ", b_name, " type (",
                  torch::headeronly::toString(b.scalar_type()), ") should be the same");
}

void check_rank(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4, "Expected 4D ", name, ", but got ", name,
                  " of size: ", text(tensor.sizes()));
}

// A tensor of a backward pass: as large as the problem says, and of a kind with the gradient.
void check_operand(const Tensor& tensor, const char* name, const Sizes& sizes,
                   const Tensor& grad_output) {
  STD_TORCH_CHECK(tensor.dim() == 4 && sizes_of(tensor) == sizes, "Expected ", name, " of size ",
                  text(sizes), ", but got ", text(tensor.sizes()));
  check_same(grad_output, "grad_output", tensor, name);
}

// ---------------------------------------------------------------- convolution

struct ConvArguments {
  Pair stride;
  Sizes padding;  // top, bottom, left, right
  Pair dilation;
  int64_t groups;
};

void check_conv(const Sizes& input, const Sizes& weight, const ConvArguments& arguments) {
  const int64_t groups = arguments.groups;
  STD_TORCH_CHECK(groups > 0, "non-positive groups is not supported");
  for (int i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(arguments.stride[i] > 0, "non-positive stride is not supported");
    STD_TORCH_CHECK(arguments.dilation[i] > 0, "dilation should be greater than zero");
  }
  for (int64_t padding : arguments.padding)
    STD_TORCH_CHECK(padding >= 0, "negative padding is not supported");
  STD_TORCH_CHECK(weight[0] > 0 && weight[2] > 0 && weight[3] > 0,
                  "non-empty 4D weight tensor expected, but got weight of size ", text(weight));
  STD_TORCH_CHECK(weight[0] >= groups, "Given groups=", groups, ", expected weight to be at least ",
                  groups, " at dimension 0, but got weight of size ", text(weight), " instead");
  STD_TORCH_CHECK(weight[0] % groups == 0, "Given groups=", groups,
                  ", expected weight to be divisible by ", groups,
                  " at dimension 0, but got weight of size ", text(weight), " instead");
  STD_TORCH_CHECK(input[1] == weight[1] * groups, "Given groups=", groups, ", weight of size ",
                  text(weight), ", expected input", text(input), " to have ", weight[1] * groups,
                  " channels, but got ", input[1], " channels instead");
}

// Sizes only; strides come from the tensors at hand. Every int in it is checked, so that sums
// such as p * stride + r * dilation cannot overflow.
Conv2dProblem conv_problem(const Sizes& input, const Sizes& weight,
                           const ConvArguments& arguments) {
  check_conv(input, weight, arguments);
  const auto& [stride, padding, dilation, groups] = arguments;
  Conv2dProblem problem{};
  problem.N = narrow(input[0], "N"), problem.C = narrow(input[1], "C");
  problem.H = narrow(input[2], "H"), problem.W = narrow(input[3], "W");
  problem.K = narrow(weight[0], "K");
  problem.R = narrow(weight[2], "R"), problem.S = narrow(weight[3], "S");
  problem.groups = narrow(groups, "groups");
  problem.stride_h = narrow(stride[0], "stride"), problem.stride_w = narrow(stride[1], "stride");
  problem.dilation_h = narrow(dilation[0], "dilation");
  problem.dilation_w = narrow(dilation[1], "dilation");
  problem.pad_top = narrow(padding[0], "padding"), problem.pad_left = narrow(padding[2], "padding");

  const int height = narrow(input[2] + padding[0] + padding[1], "padded input height");
  const int width = narrow(input[3] + padding[2] + padding[3], "padded input width");
  const int64_t filter_h = dilated_extent(problem.R, problem.dilation_h);
  const int64_t filter_w = dilated_extent(problem.S, problem.dilation_w);
  STD_TORCH_CHECK(filter_h <= height && filter_w <= width,
                  "Calculated padded input size per channel: (", height, " x ", width,
                  "). Kernel size: (", filter_h, " x ", filter_w,
                  "). Kernel size can't be greater than actual input size");
  problem.P = conv_output_size(height, problem.R, problem.stride_h, problem.dilation_h);
  problem.Q = conv_output_size(width, problem.S, problem.stride_w, problem.dilation_w);
  return problem;
}

Sizes output_sizes(const Conv2dProblem& problem) {
  return {problem.N, problem.K, problem.P, problem.Q};
}

// The problem of a forward pass, without the output's strides.
Conv2dProblem forward_problem(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                              const ConvArguments& arguments) {
  check_rank(input, "input");
  check_rank(weight, "weight");
  check_same(input, "Input", weight, "weight");
  Conv2dProblem problem = conv_problem(sizes_of(input), sizes_of(weight), arguments);
  problem.input = strides_of(input);
  problem.weight = strides_of(weight);
  if (bias) {
    check_same(input, "Input", *bias, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == problem.K, "Given weight of size ",
                    text(weight.sizes()), ", expected bias to be 1-dimensional with ", problem.K,
                    " elements, but got bias of size ", text(bias->sizes()), " instead");
  }
  return problem;
}

// Torch's rule; an empty batch is NCHW there too.
bool gives_channels_last(const Tensor& input, const Tensor& weight) {
  return input.size(0) > 0 && (is_channels_last(input) || is_channels_last(weight));
}

Epilogue epilogue_of(Placement& placement, const OptionalTensor& bias, bool relu) {
  return {placement.in("bias", bias), bias ? bias->stride(0) : 0, relu};
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
              int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_bottom,
              int64_t pad_left, int64_t pad_right, int64_t dilation_h, int64_t dilation_w,
              int64_t groups, bool relu, const Kernels& kernels) {
  Conv2dProblem problem = forward_problem(input, weight, bias,
                                          {{stride_h, stride_w},
                                           {pad_top, pad_bottom, pad_left, pad_right},
                                           {dilation_h, dilation_w},
                                           groups});
  Placement placement(input, kernels);
  placement.allow(problem);
  const Dtype dtype = dtype_of(input);
  const Conv2dAlgorithm& algorithm = placement.algorithm(problem, dtype, &Conv2dAlgorithm::fprop);

  const Tensor output = empty(input, output_sizes(problem), gives_channels_last(input, weight));
  problem.output = strides_of(output);
  if (output.numel() == 0) return output;
  const Workspace workspace(input, algorithm, problem, dtype, ConvPass::fprop, placement);
  algorithm.fprop(problem, dtype, placement.in("input", input), placement.in("weight", weight),
                  epilogue_of(placement, bias, relu), placement.out("output", output),
                  workspace.data(), placement.stream);
  return output;
}

Sizes input_sizes(const Conv2dProblem& problem) {
  return {problem.N, problem.C, problem.H, problem.W};
}

Sizes weight_sizes(const Conv2dProblem& problem) {
  return {problem.K, problem.group_channels(), problem.R, problem.S};
}

// The problem of a backward pass with the strides of what is given, without those of grad_output.
// Its sizes are arguments, since a caller need not keep what would not be read.
Conv2dProblem backward_problem(const Tensor& grad_output, const OptionalTensor& input,
                               const OptionalTensor& weight, int64_t C, int64_t H, int64_t W,
                               int64_t R, int64_t S, const ConvArguments& arguments) {
  check_rank(grad_output, "grad_output");
  STD_TORCH_CHECK(arguments.groups > 0, "non-positive groups is not supported");
  Conv2dProblem problem = conv_problem(
      {grad_output.size(0), C, H, W}, {grad_output.size(1), C / arguments.groups, R, S}, arguments);
  if (weight) {
    check_operand(*weight, "weight", weight_sizes(problem), grad_output);
    problem.weight = strides_of(*weight);
  }
  if (input) {
    check_operand(*input, "input", input_sizes(problem), grad_output);
    problem.input = strides_of(*input);
  }
  return problem;
}

Conv2dProblem& conv_of(Conv2dProblem& problem) { return problem; }
Conv2dProblem& conv_of(Conv2dPoolProblem& problem) { return problem.conv; }

// grad_input where the weight is given, grad_weight where the input is, grad_bias where asked for;
// the others stay undefined (None). `kept` is the forward pass's own, for where ReLUs are closed.
template <class Algorithm, class Problem>
std::tuple<Tensor, Tensor, Tensor> gradients(const Problem& problem, Placement& placement,
                                             const Tensor& grad_output, const void* kept,
                                             const OptionalTensor& input,
                                             const OptionalTensor& weight, bool channels_last,
                                             bool need_bias) {
  const Dtype dtype = dtype_of(grad_output);
  const void* grad = placement.in("grad_output", grad_output);
  Tensor grad_input, grad_weight, grad_bias;
  Problem own = problem;
  Conv2dProblem& conv = conv_of(own);
  const Conv2dProblem given = conv;
  if (weight) {
    const Algorithm& algorithm = placement.algorithm(problem, dtype, &Algorithm::dgrad);
    grad_input = empty(grad_output, input_sizes(conv), channels_last);
    conv.input = strides_of(grad_input);
    if (grad_input.numel() != 0) {
      const Workspace workspace(grad_output, algorithm, own, dtype, ConvPass::dgrad, placement);
      algorithm.dgrad(own, dtype, grad, kept, placement.in("weight", *weight),
                      placement.out("grad_input", grad_input), workspace.data(), placement.stream);
    }
  }
  if (input) {
    const Algorithm& algorithm = placement.algorithm(problem, dtype, &Algorithm::wgrad);
    grad_weight = empty(grad_output, weight_sizes(conv), channels_last);
    conv.input = given.input;
    conv.weight = strides_of(grad_weight);
    if (grad_weight.numel() != 0) {
      const Workspace workspace(grad_output, algorithm, own, dtype, ConvPass::wgrad, placement);
      algorithm.wgrad(own, dtype, grad, kept, placement.in("input", *input),
                      placement.out("grad_weight", grad_weight), workspace.data(),
                      placement.stream);
    }
  }
  if (need_bias) {
    const auto bgrad = placement.choose(problem, dtype, &Algorithm::bgrad);
    const int64_t filters = conv.K;
    grad_bias = empty(grad_output, {&filters, 1}, false);
    bgrad(problem, dtype, grad, kept, placement.out("grad_bias", grad_bias), placement.stream);
  }
  return {grad_input, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(
    const Tensor& grad_output, const OptionalTensor& relu_output, const OptionalTensor& input,
    const OptionalTensor& weight, int64_t C, int64_t H, int64_t W, int64_t R, int64_t S,
    bool channels_last, int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_bottom,
    int64_t pad_left, int64_t pad_right, int64_t dilation_h, int64_t dilation_w, int64_t groups,
    bool need_bias, const Kernels& kernels) {
  Conv2dProblem problem = backward_problem(grad_output, input, weight, C, H, W, R, S,
                                           {{stride_h, stride_w},
                                            {pad_top, pad_bottom, pad_left, pad_right},
                                            {dilation_h, dilation_w},
                                            groups});
  check_operand(grad_output, "grad_output", output_sizes(problem), grad_output);
  problem.output = strides_of(grad_output);
  if (relu_output) {
    check_operand(*relu_output, "output", output_sizes(problem), grad_output);
    problem.relu = strides_of(*relu_output);
  }
  Placement placement(grad_output, kernels);
  placement.allow(problem);
  return gradients<Conv2dAlgorithm>(problem, placement, grad_output,
                                    placement.in("relu_output", relu_output), input, weight,
                                    channels_last, need_bias);
}

// ---------------------------------------------------------------- pooling

struct PoolArguments {
  Pair kernel_size, stride, padding, dilation;
  bool ceil_mode;
};

template <class Problem>
Sizes output_sizes(const Problem& problem) {
  return {problem.N, problem.C, problem.P, problem.Q};
}

template <class Problem>
Sizes input_sizes(const Problem& problem) {
  return {problem.N, problem.C, problem.H, problem.W};
}

// Sizes only; strides come from the tensors at hand.
Pool2dProblem problem_of(const Sizes& sizes, const PoolArguments& arguments) {
  const auto &kernel = arguments.kernel_size, &stride = arguments.stride,
             &padding = arguments.padding, &dilation = arguments.dilation;
  int64_t output[2];
  for (int i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(kernel[i] > 0,
                    "kernel size should be greater than zero, but got kH: ", kernel[0],
                    " kW: ", kernel[1]);
    STD_TORCH_CHECK(stride[i] > 0, "stride should be greater than zero, but got dH: ", stride[0],
                    " dW: ", stride[1]);
    STD_TORCH_CHECK(dilation[i] > 0,
                    "dilation should be greater than zero, but got dilationH: ", dilation[0],
                    " dilationW: ", dilation[1]);
    const int64_t extent =
        narrow(dilated_extent(narrow(kernel[i], "kernel size"), narrow(dilation[i], "dilation")),
               "window extent");
    STD_TORCH_CHECK(padding[i] >= 0, "pad must be non-negative, but got pad: ", padding[i]);
    STD_TORCH_CHECK(padding[i] <= extent / 2,
                    "pad should be at most half of effective kernel size, but got pad=", padding[i],
                    ", kernel_size=", kernel[i], " and dilation=", dilation[i]);
    STD_TORCH_CHECK(padding[i] <= kernel[i] / 2,
                    "pad should be smaller than or equal to half of kernel size, but got pad=",
                    padding[i], " and kernel_size=", kernel[i]);
    narrow(sizes[2 + i] + 2 * padding[i] + narrow(stride[i], "stride") + extent,
           "padded input size");
    output[i] = pool_output_size(sizes[2 + i], padding[i], kernel[i], stride[i], dilation[i],
                                 arguments.ceil_mode);
  }
  STD_TORCH_CHECK(sizes[1] > 0 && sizes[2] > 0 && sizes[3] > 0,
                  "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for "
                  "input, but got: ",
                  text(sizes));
  STD_TORCH_CHECK(output[0] >= 1 && output[1] >= 1, "Given input size: (", sizes[1], "x", sizes[2],
                  "x", sizes[3], "). Calculated output size: (", sizes[1], "x", output[0], "x",
                  output[1], "). Output size is too small");
  Pool2dProblem problem{};
  problem.N = narrow(sizes[0], "N"), problem.C = narrow(sizes[1], "C");
  problem.H = narrow(sizes[2], "H"), problem.W = narrow(sizes[3], "W");
  problem.R = kernel[0], problem.S = kernel[1];
  problem.P = output[0], problem.Q = output[1];
  problem.stride_h = stride[0], problem.stride_w = stride[1];
  problem.pad_h = padding[0], problem.pad_w = padding[1];
  problem.dilation_h = dilation[0], problem.dilation_w = dilation[1];
  return problem;
}

struct AdaptiveArguments {
  Pair output_size;
};

AdaptivePool2dProblem problem_of(const Sizes& sizes, const AdaptiveArguments& arguments) {
  const Pair& output = arguments.output_size;
  for (int i = 2; i < 4; ++i)
    STD_TORCH_CHECK(sizes[i] > 0,
                    "Expected input to have non-zero size for non-batch dimensions, but input has "
                    "sizes ",
                    text(sizes), " with dimension ", i, " being empty");
  STD_TORCH_CHECK(output[0] >= 0 && output[1] >= 0,
                  "elements of output_size must be greater than or equal to 0 but received ",
                  text(output));
  AdaptivePool2dProblem problem{};
  problem.N = narrow(sizes[0], "N"), problem.C = narrow(sizes[1], "C");
  problem.H = narrow(sizes[2], "H"), problem.W = narrow(sizes[3], "W");
  problem.P = narrow(output[0], "output height"), problem.Q = narrow(output[1], "output width");
  problem.R = problem.P == 0 ? 0 : longest_adaptive_window(problem.H, problem.P);
  problem.S = problem.Q == 0 ? 0 : longest_adaptive_window(problem.W, problem.Q);
  return problem;
}

// The problem of a forward pass: `arguments` are PoolArguments or AdaptiveArguments.
template <class Arguments>
auto forward_problem(const Tensor& input, const Arguments& arguments) {
  check_rank(input, "input");
  auto problem = problem_of(sizes_of(input), arguments);
  problem.input = strides_of(input);
  return problem;
}

template <class Arguments>
auto backward_problem(const Tensor& grad_output, int64_t H, int64_t W, const Arguments& arguments) {
  check_rank(grad_output, "grad_output");
  auto problem = problem_of({grad_output.size(0), grad_output.size(1), H, W}, arguments);
  check_operand(grad_output, "grad_output", output_sizes(problem), grad_output);
  STD_TORCH_CHECK(problem.P > 0 && problem.Q > 0,
                  "Expected grad_output to have non-zero size for non-batch dimensions, but "
                  "grad_output has sizes ",
                  text(grad_output.sizes()));
  problem.output = strides_of(grad_output);
  return problem;
}

template <class Problem>
Argmax compact_argmax(const Problem& problem) {
  const int64_t window = static_cast<int64_t>(problem.R) * problem.S;
  narrow(window, "window");
  return window <= kMaxByteWindow ? Argmax::uint8 : Argmax::int32;
}

int32_t argmax_dtype(Argmax kind) {
  if (kind == Argmax::uint8) return aoti_torch_dtype_uint8();
  return kind == Argmax::int32 ? aoti_torch_dtype_int32() : aoti_torch_dtype_int64();
}

// The kind of a stored argmax, checked against the problem.
template <class Problem>
Argmax argmax_of(const Tensor& argmax, const Problem& problem) {
  const ScalarType type = argmax.scalar_type();
  const Argmax kind = type == ScalarType::Long ? Argmax::int64 : compact_argmax(problem);
  const ScalarType expected = kind == Argmax::int64   ? ScalarType::Long
                              : kind == Argmax::int32 ? ScalarType::Int
                                                      : ScalarType::Byte;
  STD_TORCH_CHECK(
      type == expected && argmax.dim() == 4 && sizes_of(argmax) == output_sizes(problem),
      "Expected an argmax of size ", text(output_sizes(problem)), " and type ",
      torch::headeronly::toString(expected), ", but got ", text(argmax.sizes()), " and ",
      torch::headeronly::toString(type));
  return kind;
}

// The passes of both kinds of pooling. Their problem has all but the strides of what they allocate
// and of the argmax.

template <class Problem>
std::tuple<Tensor, Tensor> max_forward(Problem problem, const Tensor& input, bool want_argmax,
                                       bool indices, const Kernels& kernels) {
  const Argmax compact = compact_argmax(problem);
  const Argmax kind = !want_argmax ? Argmax::none : indices ? Argmax::int64 : compact;
  Placement placement(input, kernels);
  const auto forward =
      placement.choose(problem, dtype_of(input), &PoolAlgorithm<Problem>::max_forward);

  const bool channels_last = is_channels_last(input);
  const Tensor output = empty(input, output_sizes(problem), channels_last);
  problem.output = problem.argmax = strides_of(output);
  const Tensor argmax = want_argmax
                            ? empty(input, output_sizes(problem), channels_last, argmax_dtype(kind))
                            : Tensor();
  if (output.numel() != 0)
    forward(problem, dtype_of(input), placement.in("input", input), placement.out("output", output),
            want_argmax ? placement.out("argmax", argmax) : nullptr, kind, placement.stream);
  return {output, argmax};
}

template <class Problem>
Tensor max_backward(Problem problem, const Tensor& grad_output, const Tensor& argmax,
                    bool channels_last, const Kernels& kernels) {
  const Argmax kind = argmax_of(argmax, problem);
  problem.argmax = strides_of(argmax);
  Placement placement(grad_output, kernels);
  const auto backward =
      placement.choose(problem, dtype_of(grad_output), &PoolAlgorithm<Problem>::max_backward);

  const Tensor grad_input = empty(grad_output, input_sizes(problem), channels_last);
  problem.input = strides_of(grad_input);
  if (grad_input.numel() != 0)
    backward(problem, dtype_of(grad_output), placement.in("grad_output", grad_output),
             placement.in("argmax", argmax), kind, placement.out("grad_input", grad_input),
             placement.stream);
  return grad_input;
}

template <class Problem>
Tensor max_gather(Problem problem, const Tensor& input, const Tensor& argmax,
                  const Kernels& kernels) {
  const Argmax kind = argmax_of(argmax, problem);
  problem.argmax = strides_of(argmax);
  Placement placement(input, kernels);
  const auto gather =
      placement.choose(problem, dtype_of(input), &PoolAlgorithm<Problem>::max_gather);

  const Tensor output = empty(input, output_sizes(problem), is_channels_last(argmax));
  problem.output = strides_of(output);
  if (output.numel() != 0)
    gather(problem, dtype_of(input), placement.in("input", input), placement.in("argmax", argmax),
           kind, placement.out("output", output), placement.stream);
  return output;
}

template <class Problem>
Tensor avg_forward(Problem problem, const Tensor& input, const Kernels& kernels) {
  Placement placement(input, kernels);
  const auto forward =
      placement.choose(problem, dtype_of(input), &PoolAlgorithm<Problem>::avg_forward);

  const Tensor output = empty(input, output_sizes(problem), is_channels_last(input));
  problem.output = strides_of(output);
  if (output.numel() != 0)
    forward(problem, dtype_of(input), placement.in("input", input), placement.out("output", output),
            placement.stream);
  return output;
}

template <class Problem>
Tensor avg_backward(Problem problem, const Tensor& grad_output, bool channels_last,
                    const Kernels& kernels) {
  Placement placement(grad_output, kernels);
  const auto backward =
      placement.choose(problem, dtype_of(grad_output), &PoolAlgorithm<Problem>::avg_backward);

  const Tensor grad_input = empty(grad_output, input_sizes(problem), channels_last);
  problem.input = strides_of(grad_input);
  if (grad_input.numel() != 0)
    backward(problem, dtype_of(grad_output), placement.in("grad_output", grad_output),
             placement.out("grad_input", grad_input), placement.stream);
  return grad_input;
}

// ---------------------------------------------------------------- regular pooling

Tensor max_pool2d(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                  int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                  int64_t dilation_w, bool ceil_mode, const Kernels& kernels) {
  const PoolArguments arguments{{kernel_h, kernel_w},
                                {stride_h, stride_w},
                                {pad_h, pad_w},
                                {dilation_h, dilation_w},
                                ceil_mode};
  return std::get<0>(max_forward(forward_problem(input, arguments), input, false, false, kernels));
}

std::tuple<Tensor, Tensor> max_pool2d_with_argmax(const Tensor& input, int64_t kernel_h,
                                                  int64_t kernel_w, int64_t stride_h,
                                                  int64_t stride_w, int64_t pad_h, int64_t pad_w,
                                                  int64_t dilation_h, int64_t dilation_w,
                                                  bool ceil_mode, bool indices,
                                                  const Kernels& kernels) {
  const PoolArguments arguments{{kernel_h, kernel_w},
                                {stride_h, stride_w},
                                {pad_h, pad_w},
                                {dilation_h, dilation_w},
                                ceil_mode};
  return max_forward(forward_problem(input, arguments), input, true, indices, kernels);
}

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, int64_t H, int64_t W,
                           bool channels_last, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                           int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                           int64_t dilation_w, bool ceil_mode, const Kernels& kernels) {
  const PoolArguments arguments{{kernel_h, kernel_w},
                                {stride_h, stride_w},
                                {pad_h, pad_w},
                                {dilation_h, dilation_w},
                                ceil_mode};
  return max_backward(backward_problem(grad_output, H, W, arguments), grad_output, argmax,
                      channels_last, kernels);
}

Tensor max_pool2d_gather(const Tensor& input, const Tensor& argmax, int64_t kernel_h,
                         int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                         int64_t pad_w, int64_t dilation_h, int64_t dilation_w, bool ceil_mode,
                         const Kernels& kernels) {
  const PoolArguments arguments{{kernel_h, kernel_w},
                                {stride_h, stride_w},
                                {pad_h, pad_w},
                                {dilation_h, dilation_w},
                                ceil_mode};
  return max_gather(forward_problem(input, arguments), input, argmax, kernels);
}

Pool2dProblem with_divisor(Pool2dProblem problem, bool count_include_pad,
                           const std::optional<int64_t>& divisor_override) {
  STD_TORCH_CHECK(!divisor_override || *divisor_override != 0, "divisor must be not zero");
  problem.count_include_pad = count_include_pad;
  problem.divisor_override = divisor_override.value_or(0);
  return problem;
}

Tensor avg_pool2d(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                  int64_t stride_w, int64_t pad_h, int64_t pad_w, bool ceil_mode,
                  bool count_include_pad, std::optional<int64_t> divisor_override,
                  const Kernels& kernels) {
  const PoolArguments arguments{
      {kernel_h, kernel_w}, {stride_h, stride_w}, {pad_h, pad_w}, {1, 1}, ceil_mode};
  const Pool2dProblem problem = forward_problem(input, arguments);
  return avg_forward(with_divisor(problem, count_include_pad, divisor_override), input, kernels);
}

Tensor avg_pool2d_backward(const Tensor& grad_output, int64_t H, int64_t W, bool channels_last,
                           int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                           int64_t pad_h, int64_t pad_w, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override, const Kernels& kernels) {
  const PoolArguments arguments{
      {kernel_h, kernel_w}, {stride_h, stride_w}, {pad_h, pad_w}, {1, 1}, ceil_mode};
  const Pool2dProblem problem = backward_problem(grad_output, H, W, arguments);
  return avg_backward(with_divisor(problem, count_include_pad, divisor_override), grad_output,
                      channels_last, kernels);
}

// ---------------------------------------------------------------- convolution, ReLU and pool

// Sizes only.
Conv2dPoolProblem conv_pool_problem(const Conv2dProblem& conv, const PoolArguments& arguments,
                                    bool average, bool count_include_pad,
                                    const std::optional<int64_t>& divisor_override) {
  const Pool2dProblem pool = problem_of(output_sizes(conv), arguments);
  return {conv, with_divisor(pool, count_include_pad, divisor_override), average};
}

int32_t code_dtype(const Conv2dPoolProblem& problem) {
  return problem.wide_code() ? aoti_torch_dtype_int32() : aoti_torch_dtype_uint8();
}

// The pooled output and, if it is asked for, what the backward pass needs in place of the
// convolution's output.
std::tuple<Tensor, Tensor> conv2d_relu_pool2d(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, int64_t stride_h,
    int64_t stride_w, int64_t pad_top, int64_t pad_bottom, int64_t pad_left, int64_t pad_right,
    int64_t dilation_h, int64_t dilation_w, int64_t groups, int64_t kernel_h, int64_t kernel_w,
    int64_t pool_stride_h, int64_t pool_stride_w, int64_t pool_pad_h, int64_t pool_pad_w,
    int64_t pool_dilation_h, int64_t pool_dilation_w, bool ceil_mode, bool average,
    bool count_include_pad, std::optional<int64_t> divisor_override, bool keep_code,
    const Kernels& kernels) {
  const Conv2dProblem conv = forward_problem(input, weight, bias,
                                             {{stride_h, stride_w},
                                              {pad_top, pad_bottom, pad_left, pad_right},
                                              {dilation_h, dilation_w},
                                              groups});
  Conv2dPoolProblem problem = conv_pool_problem(conv,
                                                {{kernel_h, kernel_w},
                                                 {pool_stride_h, pool_stride_w},
                                                 {pool_pad_h, pool_pad_w},
                                                 {pool_dilation_h, pool_dilation_w},
                                                 ceil_mode},
                                                average, count_include_pad, divisor_override);
  Placement placement(input, kernels);
  placement.allow(problem.conv);
  const Dtype dtype = dtype_of(input);
  const Conv2dPoolAlgorithm& algorithm =
      placement.algorithm(problem, dtype, &Conv2dPoolAlgorithm::fprop);

  const bool channels_last = gives_channels_last(input, weight);
  const Tensor output = empty(input, output_sizes(problem.pool), channels_last);
  const Tensor code =
      keep_code ? empty(input, output_sizes(problem.pool), channels_last, code_dtype(problem))
                : Tensor();
  problem.pool.output = problem.pool.argmax = strides_of(output);
  if (output.numel() == 0) return {output, code};
  const Workspace workspace(input, algorithm, problem, dtype, ConvPass::fprop, placement);
  algorithm.fprop(problem, dtype, placement.in("input", input), placement.in("weight", weight),
                  epilogue_of(placement, bias, true), placement.out("output", output),
                  keep_code ? placement.out("code", code) : nullptr, workspace.data(),
                  placement.stream);
  return {output, code};
}

// As conv2d_backward.
std::tuple<Tensor, Tensor, Tensor> conv2d_relu_pool2d_backward(
    const Tensor& grad_output, const Tensor& code, const OptionalTensor& input,
    const OptionalTensor& weight, int64_t C, int64_t H, int64_t W, int64_t R, int64_t S,
    bool channels_last, int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_bottom,
    int64_t pad_left, int64_t pad_right, int64_t dilation_h, int64_t dilation_w, int64_t groups,
    int64_t kernel_h, int64_t kernel_w, int64_t pool_stride_h, int64_t pool_stride_w,
    int64_t pool_pad_h, int64_t pool_pad_w, int64_t pool_dilation_h, int64_t pool_dilation_w,
    bool ceil_mode, bool average, bool count_include_pad, std::optional<int64_t> divisor_override,
    bool need_bias, const Kernels& kernels) {
  const Conv2dProblem conv = backward_problem(grad_output, input, weight, C, H, W, R, S,
                                              {{stride_h, stride_w},
                                               {pad_top, pad_bottom, pad_left, pad_right},
                                               {dilation_h, dilation_w},
                                               groups});
  Conv2dPoolProblem problem = conv_pool_problem(conv,
                                                {{kernel_h, kernel_w},
                                                 {pool_stride_h, pool_stride_w},
                                                 {pool_pad_h, pool_pad_w},
                                                 {pool_dilation_h, pool_dilation_w},
                                                 ceil_mode},
                                                average, count_include_pad, divisor_override);
  check_operand(grad_output, "grad_output", output_sizes(problem.pool), grad_output);
  problem.pool.output = strides_of(grad_output);
  STD_TORCH_CHECK(
      code.dim() == 4 && sizes_of(code) == output_sizes(problem.pool) &&
          code.scalar_type() == (problem.wide_code() ? ScalarType::Int : ScalarType::Byte),
      "Expected the code that the forward pass made, but got ",
      torch::headeronly::toString(code.scalar_type()), text(code.sizes()));
  problem.pool.argmax = strides_of(code);
  Placement placement(grad_output, kernels);
  placement.allow(problem.conv);
  return gradients<Conv2dPoolAlgorithm>(problem, placement, grad_output, placement.in("code", code),
                                        input, weight, channels_last, need_bias);
}

// ---------------------------------------------------------------- adaptive pooling

Tensor adaptive_max_pool2d(const Tensor& input, int64_t P, int64_t Q, const Kernels& kernels) {
  const AdaptiveArguments arguments{{P, Q}};
  return std::get<0>(max_forward(forward_problem(input, arguments), input, false, false, kernels));
}

std::tuple<Tensor, Tensor> adaptive_max_pool2d_with_argmax(const Tensor& input, int64_t P,
                                                           int64_t Q, bool indices,
                                                           const Kernels& kernels) {
  const AdaptiveArguments arguments{{P, Q}};
  return max_forward(forward_problem(input, arguments), input, true, indices, kernels);
}

Tensor adaptive_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, int64_t H,
                                    int64_t W, bool channels_last, int64_t P, int64_t Q,
                                    const Kernels& kernels) {
  const AdaptiveArguments arguments{{P, Q}};
  return max_backward(backward_problem(grad_output, H, W, arguments), grad_output, argmax,
                      channels_last, kernels);
}

Tensor adaptive_max_pool2d_gather(const Tensor& input, const Tensor& argmax, int64_t P, int64_t Q,
                                  const Kernels& kernels) {
  const AdaptiveArguments arguments{{P, Q}};
  return max_gather(forward_problem(input, arguments), input, argmax, kernels);
}

Tensor adaptive_avg_pool2d(const Tensor& input, int64_t P, int64_t Q, const Kernels& kernels) {
  const AdaptiveArguments arguments{{P, Q}};
  return avg_forward(forward_problem(input, arguments), input, kernels);
}

Tensor adaptive_avg_pool2d_backward(const Tensor& grad_output, int64_t H, int64_t W,
                                    bool channels_last, int64_t P, int64_t Q,
                                    const Kernels& kernels) {
  const AdaptiveArguments arguments{{P, Q}};
  return avg_backward(backward_problem(grad_output, H, W, arguments), grad_output, channels_last,
                      kernels);
}

template <class Library>
void register_kernels(Library& m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward));
  m.impl("conv2d_relu_pool2d", TORCH_BOX(&conv2d_relu_pool2d));
  m.impl("conv2d_relu_pool2d_backward", TORCH_BOX(&conv2d_relu_pool2d_backward));
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_with_argmax", TORCH_BOX(&max_pool2d_with_argmax));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward));
  m.impl("max_pool2d_gather", TORCH_BOX(&max_pool2d_gather));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d));
  m.impl("avg_pool2d_backward", TORCH_BOX(&avg_pool2d_backward));
  m.impl("adaptive_max_pool2d", TORCH_BOX(&adaptive_max_pool2d));
  m.impl("adaptive_max_pool2d_with_argmax", TORCH_BOX(&adaptive_max_pool2d_with_argmax));
  m.impl("adaptive_max_pool2d_backward", TORCH_BOX(&adaptive_max_pool2d_backward));
  m.impl("adaptive_max_pool2d_gather", TORCH_BOX(&adaptive_max_pool2d_gather));
  m.impl("adaptive_avg_pool2d", TORCH_BOX(&adaptive_avg_pool2d));
  m.impl("adaptive_avg_pool2d_backward", TORCH_BOX(&adaptive_avg_pool2d_backward));
}

}  // namespace
}  // namespace cnnkernels

// conv2d with its epilogue, conv2d_backward and the pools are each other's derivatives: see
// cnnkernels/autograd.py. The four paddings of a convolution serve 'same' with an even filter
// without a copy. `kernels` is an argument, and no ambient
// state, so that a backward pass or a captured graph keeps it. Pairs are two arguments each, since
// torch needs 0.2 us to take an int from Python and 1 us for a list of two.
STABLE_TORCH_LIBRARY(cnnkernels, m) {
  const std::string conv =
      "SymInt stride_h, SymInt stride_w, SymInt pad_top, SymInt pad_bottom, SymInt pad_left, "
      "SymInt pad_right, SymInt dilation_h, SymInt dilation_w, SymInt groups, ";
  const std::string window =
      "SymInt kernel_h, SymInt kernel_w, SymInt stride_h, SymInt stride_w, SymInt pad_h, "
      "SymInt pad_w, ";
  const std::string max_pool = window + "SymInt dilation_h, SymInt dilation_w, bool ceil_mode, ";
  const std::string avg_pool =
      window + "bool ceil_mode, bool count_include_pad, int? divisor_override, ";
  const std::string adaptive_pool = "SymInt P, SymInt Q, ";
  const auto def = [&](const std::string& schema) { m.def(schema.c_str()); };

  def("conv2d(Tensor input, Tensor weight, Tensor? bias, " + conv +
      "bool relu, str? kernels) -> Tensor");
  def("conv2d_backward(Tensor grad_output, Tensor? relu_output, Tensor? input, Tensor? weight, "
      "SymInt C, SymInt H, SymInt W, SymInt R, SymInt S, bool channels_last, " +
      conv + "bool need_bias, str? kernels) -> (Tensor, Tensor, Tensor)");

  const std::string pool =
      "SymInt kernel_h, SymInt kernel_w, SymInt pool_stride_h, SymInt pool_stride_w, "
      "SymInt pool_pad_h, SymInt pool_pad_w, SymInt pool_dilation_h, SymInt pool_dilation_w, "
      "bool ceil_mode, bool average, bool count_include_pad, int? divisor_override, ";
  def("conv2d_relu_pool2d(Tensor input, Tensor weight, Tensor? bias, " + conv + pool +
      "bool keep_code, str? kernels) -> (Tensor, Tensor)");
  def("conv2d_relu_pool2d_backward(Tensor grad_output, Tensor code, Tensor? input, "
      "Tensor? weight, SymInt C, SymInt H, SymInt W, SymInt R, SymInt S, bool channels_last, " +
      conv + pool + "bool need_bias, str? kernels) -> (Tensor, Tensor, Tensor)");

  const auto def_max_pool = [&](const std::string& name, const std::string& geometry) {
    def(name + "(Tensor input, " + geometry + "str? kernels) -> Tensor");
    def(name + "_with_argmax(Tensor input, " + geometry +
        "bool indices, str? kernels) -> (Tensor, Tensor)");
    def(name +
        "_backward(Tensor grad_output, Tensor argmax, SymInt H, SymInt W, "
        "bool channels_last, " +
        geometry + "str? kernels) -> Tensor");
    def(name + "_gather(Tensor input, Tensor argmax, " + geometry + "str? kernels) -> Tensor");
  };
  const auto def_avg_pool = [&](const std::string& name, const std::string& geometry) {
    def(name + "(Tensor input, " + geometry + "str? kernels) -> Tensor");
    def(name + "_backward(Tensor grad_output, SymInt H, SymInt W, bool channels_last, " + geometry +
        "str? kernels) -> Tensor");
  };
  def_max_pool("max_pool2d", max_pool);
  def_avg_pool("avg_pool2d", avg_pool);
  def_max_pool("adaptive_max_pool2d", adaptive_pool);
  def_avg_pool("adaptive_avg_pool2d", adaptive_pool);
}

STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CPU, m) { cnnkernels::register_kernels(m); }
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) { cnnkernels::register_kernels(m); }
