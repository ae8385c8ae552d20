// Tests of the emulator's checker and profiler. Without arguments it lists its cases; with a
// case's name it runs it and exits with 0 if it passed. A case of a planted kernel runs it with
// its bug, which must give its error, and without, which must give its result and no error.
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "../../../csrc/parallel.h"
#include "../checks.h"
#include "planted.h"

namespace cnnkernels {

int thread_count() { return 1; }

void parallel_ranges(int64_t count, int64_t, RangeFunction function, void* context) {
  if (count > 0) function(context, 0, count);
}

namespace instrumented {
namespace {

using emulated::check;
using emulated::check_equal;
using emulated::check_error;
using Kernel = void (*)(int blocks, const float* in, float* out);

// Numbers 1, 2, ..., between elements that no kernel may touch.
struct Buffers {
  static constexpr int kBlocks = 3, kCount = kBlocks * kPlantedThreads;
  std::vector<float> in = std::vector<float>(kCount + 8), out = std::vector<float>(kCount + 8);

  Buffers() { std::iota(in.begin(), in.end(), -3.0f); }

  // The memory that a launch knows begins at a multiple of 16 bytes.
  void run(Kernel kernel) {
    emulator::KnownMemory known;
    known.add({"in", &in[4], kCount * sizeof(float), false});
    known.add({"out", &out[4], kCount * sizeof(float), true});
    kernel(kBlocks, &in[4], &out[4]);
  }

  std::vector<float> result() const { return {out.begin() + 4, out.end() - 4}; }

  std::vector<float> expected(Result kind) const {
    std::vector<float> values(kCount, 0);
    if (kind == Result::sum) values[0] = std::accumulate(in.begin() + 4, in.end() - 4, 0.0f);
    for (int i = 0; i < kCount && kind != Result::sum; ++i) {
      values[i] = in[4 + (kind == Result::copy ? i : i ^ 1)];
    }
    return values;
  }
};

void run_planted(const Planted& planted) {
  emulator::observe({true, false});
  Buffers buffers;
  check_error([&] { buffers.run(planted.buggy); },
              {std::string("kernel "), std::string(planted.name) + "<false>", ", block (",
               ", thread (", "planted.cu:", planted.error});
  for (const bool profile : {false, true}) {
    emulator::observe({true, profile});
    buffers = {};
    buffers.run(planted.repaired);
    check_equal(buffers.result(), buffers.expected(planted.result));
  }
  emulator::observe({false, false});
  buffers = {};
  buffers.run(planted.repaired);
  check_equal(buffers.result(), buffers.expected(planted.result));
}

}  // namespace
}  // namespace instrumented
}  // namespace cnnkernels

int main(int argc, char** argv) {
  const std::string name = argc < 2 ? "" : argv[1];
  bool found = argc < 2;
  for (const auto& planted : cnnkernels::instrumented::planted()) {
    if (argc < 2) std::printf("%s\n", planted.name);
    if (name != planted.name) continue;
    found = true;
    try {
      cnnkernels::instrumented::run_planted(planted);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", planted.name, error.what());
      return 1;
    }
  }
  return found ? 0 : 2;
}
