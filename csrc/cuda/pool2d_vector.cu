#include <initializer_list>

#include "../registry.h"
#include "pool2d_vector.cuh"

namespace cnnkernels::CNN_TARGET {

// Takes what is not laid out in vectors.
Pool2dAlgorithm pool2d_direct();
AdaptivePool2dAlgorithm adaptive_pool2d_direct();

namespace {

// Pixels that a thread stores in `backward` at most; beyond, there are too few threads.
constexpr int64_t kMostOwnPixels = 16;

PoolAlgorithm<Pool2dProblem> direct_of(const Pool2dProblem&) { return pool2d_direct(); }
PoolAlgorithm<AdaptivePool2dProblem> direct_of(const AdaptivePool2dProblem&) {
  return adaptive_pool2d_direct();
}

// Adaptive windows that are all alike are regular ones; the same codes name their pixels.
bool is_regular(const Pool2dProblem&) { return true; }
bool is_regular(const AdaptivePool2dProblem& problem) {
  return problem.P > 0 && problem.Q > 0 && problem.H % problem.P == 0 && problem.W % problem.Q == 0;
}

const Pool2dProblem& regular(const Pool2dProblem& problem) { return problem; }
Pool2dProblem regular(const AdaptivePool2dProblem& from) {
  Pool2dProblem problem{};
  problem.N = from.N, problem.C = from.C, problem.H = from.H, problem.W = from.W;
  problem.R = problem.stride_h = from.H / from.P, problem.S = problem.stride_w = from.W / from.Q;
  problem.P = from.P, problem.Q = from.Q;
  problem.dilation_h = problem.dilation_w = 1;
  problem.input = from.input, problem.output = from.output, problem.argmax = from.argmax;
  return problem;
}

// Whether the windows' columns go two by two through rows of whole vectors.
bool has_column_pairs(const Pool2dProblem& problem, int inputs) {
  return problem.S == AlongColumns::kStep && problem.stride_w == AlongColumns::kStep &&
         problem.pad_w == 0 && problem.dilation_w == 1 && problem.W % inputs == 0 &&
         problem.Q * AlongColumns::kStep == problem.W;
}

// Whether no pixel lies in two windows, and few lie from one window to the next.
bool has_windows_apart(const Pool2dProblem& problem) {
  return problem.R <= problem.stride_h && problem.S <= problem.stride_w &&
         problem.dilation_h == 1 && problem.dilation_w == 1 &&
         static_cast<int64_t>(problem.stride_h) * problem.stride_w <= kMostOwnPixels;
}

constexpr int inputs_of(Dtype dtype) {
  return kVectorBytes / (dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2);
}

// Strides may be unknown here.
template <class Problem>
const char* unsupported(const Problem& problem, Dtype dtype) {
  const int inputs = inputs_of(dtype);
  if (problem.C % inputs == 0) return nullptr;
  if (is_regular(problem) && has_column_pairs(regular(problem), inputs)) return nullptr;
  return "neither its channels nor pairs of its columns fill vectors";
}

// A tensor as the kernels address it: `lanes` neighbours at a time.
struct Operand {
  const void* data;
  const Strides& strides;
  size_t element;
  int lanes;
};

// Whether the neighbours along a dimension lie closest, and begin where a word of them may lie.
bool is_packed(const Operand& operand, int64_t Strides::* along) {
  if (operand.strides.*along != 1) return false;
  for (auto other : {&Strides::n, &Strides::c, &Strides::h, &Strides::w})
    if (other != along && operand.strides.*other % operand.lanes != 0) return false;
  return reinterpret_cast<uintptr_t>(operand.data) % (operand.element * operand.lanes) == 0;
}

template <class Along, class T, class Problem>
bool fits(const Problem& problem, const void* input, const void* output, const void* codes) {
  const auto along = Along::kChannels ? &Strides::c : &Strides::w;
  constexpr int kWindows = kOutputs<Along, T>;
  return is_packed({input, problem.input, sizeof(T), kInputs<T>}, along) &&
         is_packed({output, problem.output, sizeof(T), kWindows}, along) &&
         (codes == nullptr || is_packed({codes, problem.argmax, 1, kWindows}, along));
}

template <class T, class Problem>
bool fits_channels(const Problem& problem, const void* input, const void* output,
                   const void* codes = nullptr) {
  return problem.C % kInputs<T> == 0 && fits<AlongChannels, T>(problem, input, output, codes);
}

template <class T>
bool fits_columns(const Pool2dProblem& problem, const void* input, const void* output,
                  const void* codes = nullptr) {
  return has_column_pairs(problem, kInputs<T>) &&
         fits<AlongColumns, T>(problem, input, output, codes);
}

template <class Along, class T, class Problem>
dim3 grid_of_outputs(const Problem& problem) {
  return grid_for(static_cast<int64_t>(problem.N) * problem.C * problem.P * problem.Q /
                  kOutputs<Along, T>);
}

template <class T, class Problem>
dim3 grid_of_inputs(const Problem& problem) {
  return grid_for(static_cast<int64_t>(problem.N) * problem.C * problem.H * problem.W / kInputs<T>);
}

// Calls body(Along{}, problem) for the way in which the operands of a pass can be taken, and
// tells whether there is one.
template <class T, class Problem, class Body>
bool with_strips(const Problem& problem, const void* input, const void* output, const void* codes,
                 const Body& body) {
  if (is_regular(problem)) {
    const Pool2dProblem& same = regular(problem);
    if (fits_channels<T>(same, input, output, codes)) return body(AlongChannels{}, same), true;
    if (fits_columns<T>(same, input, output, codes)) return body(AlongColumns{}, same), true;
  } else if (fits_channels<T>(problem, input, output, codes)) {
    return body(AlongChannels{}, problem), true;
  }
  return false;
}

template <class Problem>
void max_forward(const Problem& problem, Dtype dtype, const void* input, void* output, void* argmax,
                 Argmax kind, Stream stream) {
  bool done = false;
  const auto run = [&](auto place) {
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      done = with_strips<T>(problem, input, output, argmax, [&](auto along, const auto& own) {
        using Along = decltype(along);
        using Own = std::decay_t<decltype(own)>;
        launch<max_pool2d_vector_forward<T, Along, decltype(place), Own>>(
            grid_of_outputs<Along, T>(own), kThreadsPerBlock, 0, stream, own,
            static_cast<const T*>(input), static_cast<T*>(output), place);
      });
    });
  };
  if (kind == Argmax::none) run(NoArgmax{});
  if (kind == Argmax::uint8) run(WindowCode<uint8_t>{static_cast<uint8_t*>(argmax)});
  if (!done) direct_of(problem).max_forward(problem, dtype, input, output, argmax, kind, stream);
}

template <class Problem>
void avg_forward(const Problem& problem, Dtype dtype, const void* input, void* output,
                 Stream stream) {
  bool done = false;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    done = with_strips<T>(problem, input, output, nullptr, [&](auto along, const auto& own) {
      using Along = decltype(along);
      using Own = std::decay_t<decltype(own)>;
      launch<avg_pool2d_vector_forward<T, Along, Own>>(
          grid_of_outputs<Along, T>(own), kThreadsPerBlock, 0, stream, own,
          static_cast<const T*>(input), static_cast<T*>(output));
    });
  });
  if (!done) direct_of(problem).avg_forward(problem, dtype, input, output, stream);
}

// As with_strips, for the kernels `backward`; `overlapping(problem)` is for the others.
template <class T, class Problem, class Apart, class Overlapping>
bool with_strips_backward(const Problem& problem, const void* grad_input, const void* grad_output,
                          const void* codes, const Apart& apart, const Overlapping& overlapping) {
  if (is_regular(problem) && has_windows_apart(regular(problem)))
    return with_strips<T>(regular(problem), grad_input, grad_output, codes, apart);
  if (!fits_channels<T>(problem, grad_input, grad_output, codes)) return false;
  return overlapping(problem), true;
}

template <class Problem>
void max_backward(const Problem& problem, Dtype dtype, const void* grad_output, const void* argmax,
                  Argmax kind, void* grad_input, Stream stream) {
  bool done = false;
  const WindowCode<uint8_t> codes{static_cast<uint8_t*>(const_cast<void*>(argmax))};
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto* gradients = static_cast<const T*>(grad_output);
    auto* results = static_cast<T*>(grad_input);
    done = with_strips_backward<T>(
        problem, grad_input, grad_output, argmax,
        [&](auto along, const Pool2dProblem& own) {
          using Along = decltype(along);
          launch<max_pool2d_vector_backward<T, Along>>(grid_of_outputs<Along, T>(own),
                                                       kThreadsPerBlock, 0, stream, own, gradients,
                                                       codes, results);
        },
        [&](const Problem& own) {
          launch<max_pool2d_vector_backward_overlapping<T, Problem>>(
              grid_of_inputs<T>(own), kThreadsPerBlock, 0, stream, own, gradients, codes, results);
        });
  };
  if (kind == Argmax::uint8) with_dtype(dtype, run);
  if (!done)
    direct_of(problem).max_backward(problem, dtype, grad_output, argmax, kind, grad_input, stream);
}

template <class Problem>
void avg_backward(const Problem& problem, Dtype dtype, const void* grad_output, void* grad_input,
                  Stream stream) {
  bool done = false;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto* gradients = static_cast<const T*>(grad_output);
    auto* results = static_cast<T*>(grad_input);
    done = with_strips_backward<T>(
        problem, grad_input, grad_output, nullptr,
        [&](auto along, const Pool2dProblem& own) {
          using Along = decltype(along);
          launch<avg_pool2d_vector_backward<T, Along>>(
              grid_of_outputs<Along, T>(own), kThreadsPerBlock, 0, stream, own, gradients, results);
        },
        [&](const Problem& own) {
          launch<avg_pool2d_vector_backward_overlapping<T, Problem>>(
              grid_of_inputs<T>(own), kThreadsPerBlock, 0, stream, own, gradients, results);
        });
  });
  if (!done) direct_of(problem).avg_backward(problem, dtype, grad_output, grad_input, stream);
}

template <class Problem>
PoolAlgorithm<Problem> vector() {
  return {"vector", unsupported<Problem>, max_forward<Problem>, max_backward<Problem>,
          nullptr,  avg_forward<Problem>, avg_backward<Problem>};
}

}  // namespace

Pool2dAlgorithm pool2d_vector() { return vector<Pool2dProblem>(); }
AdaptivePool2dAlgorithm adaptive_pool2d_vector() { return vector<AdaptivePool2dProblem>(); }

}  // namespace cnnkernels::CNN_TARGET
