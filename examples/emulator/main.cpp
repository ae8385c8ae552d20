// Transposes matrices under the emulator: transpose [check] [count] [bug]
//
//   check   follow each access to memory
//   count   print what they ask of memory, as JSON
//   bug     run the variant that lacks its barrier, and no other
#include <cstdlib>
#include <exception>
#include <memory>
#include <string_view>
#include <vector>

#include "../../csrc/emulator/emulator.h"
#include "transpose.h"

namespace emulator = cnnkernels::emulator;

// As aligned as memory from cudaMalloc: how many sectors a request touches depends on it.
std::unique_ptr<float[], decltype(&std::free)> allocate(int count) {
  constexpr std::size_t kAlignment = 256;
  const std::size_t bytes = (count * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  return {static_cast<float*>(std::aligned_alloc(kAlignment, bytes)), std::free};
}

bool run(Variant variant, int rows, int columns) {
  const auto in = allocate(rows * columns), out = allocate(rows * columns);
  fill(in.get(), rows, columns);

  // What the kernel may touch. If nothing is known, the checker lets any address pass.
  emulator::KnownMemory known;
  known.add({"in", in.get(), rows * columns * sizeof(float), false});
  known.add({"out", out.get(), rows * columns * sizeof(float), true});

  transpose(variant, in.get(), out.get(), rows, columns);
  return report(variant, in.get(), out.get(), rows, columns);
}

int main(int argc, char** argv) {
  bool check = false, count = false, bug = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    check |= word == "check";
    count |= word == "count";
    bug |= word == "bug";
  }
  if ((check || count) && !emulator::kInstrumented) {
    std::fprintf(stderr, "the kernels are not instrumented: build transpose_observed\n");
    return 2;
  }
  std::vector<Variant> variants = {Variant::naive, Variant::tile, Variant::padded_tile};
  if (bug) variants = {Variant::missing_barrier};

  emulator::observe({check, count});
  bool right = true;
  try {
    for (Variant variant : variants) {
      right &= run(variant, 128, 96);
      if (!count) right &= run(variant, 100, 70);  // no multiples of the tile
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  if (count) std::printf("%s\n", emulator::counters_json().c_str());
  return right ? 0 : 1;
}
