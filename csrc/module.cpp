// What is not an op: facts about this build, for cnnkernels/_C.py. Plain C functions, called
// through ctypes, so that one library serves every Python and needs no Python headers.
#include <string>

#include "build_info.h"
#include "cpu/isa.h"
#include "emulator/emulator.h"
#include "json.h"
#include "selection.h"

namespace cnnkernels {
namespace {

// {"algorithm": ["pass", ...], ...}
template <class Algorithm>
std::string algorithms_json(const std::vector<Algorithm>& algorithms) {
  std::vector<std::string> members;
  for (const Algorithm& algorithm : algorithms)
    members.push_back(json::member(algorithm.name, json::strings(passes_of(algorithm))));
  return json::object(members);
}

std::string backend_json(Backend backend) {
  return json::object({
      json::member("conv2d", algorithms_json(conv2d_algorithms(backend))),
      json::member("conv2d_relu_pool2d", algorithms_json(conv2d_pool_algorithms(backend))),
      json::member("pool2d", algorithms_json(pool2d_algorithms(backend))),
      json::member("adaptive_pool2d", algorithms_json(adaptive_pool2d_algorithms(backend))),
  });
}

}  // namespace
}  // namespace cnnkernels

// JSON: {"build": {...}, "cpu_isa": "...", "algorithms": {backend: {op: {algorithm: [pass]}}}}.
extern "C" __attribute__((visibility("default"))) const char* cnnkernels_info() {
  using namespace cnnkernels;
  static const std::string text = json::object({
      json::member("build", kBuildInfoJson),
      json::member("cpu_isa", json::quoted(cpu::isa())),
      json::member("algorithms", json::object({
                                     json::member("cpu", backend_json(Backend::cpu)),
                                     json::member("emulated", backend_json(Backend::emulated)),
                                     json::member("cuda", backend_json(Backend::cuda)),
                                 })),
  });
  return text.c_str();
}

// From here on to cnnkernels_answer(), this thread's calls of ops are questions: selection.h.
extern "C" __attribute__((visibility("default"))) void cnnkernels_ask() {
  cnnkernels::inquiry() = {true, ""};
}

// JSON, empty where no op came so far as to choose; valid until the thread asks again.
extern "C" __attribute__((visibility("default"))) const char* cnnkernels_answer() {
  cnnkernels::inquiry().open = false;
  return cnnkernels::inquiry().answer.c_str();
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
