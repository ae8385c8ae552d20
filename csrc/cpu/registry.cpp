// The list of CPU algorithms, in the variant that suits the machine. Compiled once, without
// vector flags, since it runs before the machine is known.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "isa.h"

namespace cnnkernels::cpu {
namespace {

struct Variant {
  const char* name;
  bool (*supported)();
  Conv2dAlgorithm (*conv2d_depthwise)();
  Conv2dAlgorithm (*conv2d_winograd_4x4)();
  Conv2dPoolAlgorithm (*conv2d_pool_winograd_4x4)();
  Conv2dAlgorithm (*conv2d_winograd)();
  Conv2dPoolAlgorithm (*conv2d_pool_winograd)();
  Conv2dAlgorithm (*conv2d_implicit_gemm)();
  Conv2dPoolAlgorithm (*conv2d_pool_implicit_gemm)();
  Pool2dAlgorithm (*pool2d_direct)();
  AdaptivePool2dAlgorithm (*adaptive_pool2d_direct)();
};

// Widest first.
const Variant kVariants[] = {
#if defined(__x86_64__)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     },
     avx512::conv2d_depthwise, avx512::conv2d_winograd_4x4, avx512::conv2d_pool_winograd_4x4,
     avx512::conv2d_winograd, avx512::conv2d_pool_winograd, avx512::conv2d_implicit_gemm,
     avx512::conv2d_pool_implicit_gemm, avx512::pool2d_direct, avx512::adaptive_pool2d_direct},
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     },
     avx2::conv2d_depthwise, avx2::conv2d_winograd_4x4, avx2::conv2d_pool_winograd_4x4,
     avx2::conv2d_winograd, avx2::conv2d_pool_winograd, avx2::conv2d_implicit_gemm,
     avx2::conv2d_pool_implicit_gemm, avx2::pool2d_direct, avx2::adaptive_pool2d_direct},
#endif
    {"portable", [] { return true; }, portable::conv2d_depthwise, portable::conv2d_winograd_4x4,
     portable::conv2d_pool_winograd_4x4, portable::conv2d_winograd, portable::conv2d_pool_winograd,
     portable::conv2d_implicit_gemm, portable::conv2d_pool_implicit_gemm, portable::pool2d_direct,
     portable::adaptive_pool2d_direct},
};

const Variant& choose() {
  const char* wanted = std::getenv("CNNKERNELS_CPU_ISA");
  if (wanted != nullptr && *wanted == '\0') wanted = nullptr;
  for (const Variant& variant : kVariants) {
    if (wanted != nullptr && std::string(wanted) != variant.name) continue;
    if (variant.supported()) return variant;
    if (wanted != nullptr) {
      throw std::runtime_error("CNNKERNELS_CPU_ISA=" + std::string(wanted) +
                               ": this machine does not support it");
    }
  }
  std::string names;
  for (const Variant& variant : kVariants) names += std::string(" ") + variant.name;
  throw std::runtime_error("CNNKERNELS_CPU_ISA=" + std::string(wanted) +
                           ": unknown; this build has" + names);
}

// Read once: a process uses one variant throughout.
const Variant& variant() {
  static const Variant& chosen = choose();
  return chosen;
}

}  // namespace

const char* isa() { return variant().name; }

std::vector<Conv2dAlgorithm> conv2d_algorithms() {
  return {variant().conv2d_depthwise(), variant().conv2d_winograd_4x4(),
          variant().conv2d_winograd(), variant().conv2d_implicit_gemm()};
}

std::vector<Conv2dPoolAlgorithm> conv2d_pool_algorithms() {
  return {variant().conv2d_pool_winograd_4x4(), variant().conv2d_pool_winograd(),
          variant().conv2d_pool_implicit_gemm()};
}

std::vector<Pool2dAlgorithm> pool2d_algorithms() { return {variant().pool2d_direct()}; }

std::vector<AdaptivePool2dAlgorithm> adaptive_pool2d_algorithms() {
  return {variant().adaptive_pool2d_direct()};
}

}  // namespace cnnkernels::cpu
