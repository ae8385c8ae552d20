// What is not an op: facts about this build, for cnnkernels/_C.py. Plain C functions, called
// through ctypes, so that one library serves every Python and needs no Python headers.
#include <string>

#include "build_info.h"
#include "cpu/isa.h"
#include "emulator/emulator.h"
#include "registry.h"

namespace cnnkernels {
namespace {

std::string quoted(const std::string& text) { return '"' + text + '"'; }

std::string object(const std::string& members) { return "{" + members + "}"; }

// {"algorithm": ["pass", ...], ...} for the passes that are not null.
template <class Algorithm, class Passes>
std::string list(const std::vector<Algorithm>& algorithms, const Passes& passes_of) {
  std::string members;
  for (const Algorithm& algorithm : algorithms) {
    std::string names;
    for (const auto& [name, offered] : passes_of(algorithm))
      if (offered) names += (names.empty() ? "" : ", ") + quoted(name);
    members += (members.empty() ? "" : ", ") + quoted(algorithm.name) + ": [" + names + "]";
  }
  return object(members);
}

using Passes = std::vector<std::pair<std::string, bool>>;

std::string algorithms_json(Backend backend) {
  const auto conv = [](const Conv2dAlgorithm& algorithm) {
    return Passes{{"fprop", algorithm.fprop != nullptr},
                  {"dgrad", algorithm.dgrad != nullptr},
                  {"wgrad", algorithm.wgrad != nullptr},
                  {"bgrad", algorithm.bgrad != nullptr}};
  };
  const auto pool = [](const auto& algorithm) {
    return Passes{{"max_forward", algorithm.max_forward != nullptr},
                  {"max_backward", algorithm.max_backward != nullptr},
                  {"max_gather", algorithm.max_gather != nullptr},
                  {"avg_forward", algorithm.avg_forward != nullptr},
                  {"avg_backward", algorithm.avg_backward != nullptr}};
  };
  return object(quoted("conv2d") + ": " + list(conv2d_algorithms(backend), conv) + ", " +
                quoted("pool2d") + ": " + list(pool2d_algorithms(backend), pool) + ", " +
                quoted("adaptive_pool2d") + ": " + list(adaptive_pool2d_algorithms(backend), pool));
}

}  // namespace
}  // namespace cnnkernels

// JSON: {"build": {...}, "cpu_isa": "...", "algorithms": {backend: {op: {algorithm: [pass]}}}}.
extern "C" __attribute__((visibility("default"))) const char* cnnkernels_info() {
  using namespace cnnkernels;
  static const std::string json =
      object("\"build\": " + std::string(kBuildInfoJson) + ", \"cpu_isa\": " + quoted(cpu::isa()) +
             ", \"algorithms\": " +
             object("\"cpu\": " + algorithms_json(Backend::cpu) +
                    ", \"emulated\": " + algorithms_json(Backend::emulated) +
                    ", \"cuda\": " + algorithms_json(Backend::cuda)));
  return json.c_str();
}

// What the emulator does with the kernels that it runs: cnnkernels/emulation.py.
extern "C" __attribute__((visibility("default"))) void cnnkernels_observe(int check, int profile) {
  cnnkernels::emulator::observe({check != 0, profile != 0});
}

extern "C" __attribute__((visibility("default"))) void cnnkernels_clear_counters() {
  cnnkernels::emulator::clear_counters();
}

// JSON, see emulator/profiler.h; valid until the calling thread asks again.
extern "C" __attribute__((visibility("default"))) const char* cnnkernels_counters() {
  static thread_local std::string json;
  json = cnnkernels::emulator::counters_json();
  return json.c_str();
}
