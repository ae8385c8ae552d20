// A matrix transposition in four variants; transpose.cu defines it.
#pragma once

#include <cstdio>

#include "../../csrc/cuda/device.h"

using namespace cnnkernels::CNN_TARGET;

enum class Variant { naive, tile, padded_tile, missing_barrier };

// out[column][row] = in[row][column]; rows lie one behind the other.
void transpose(Variant, const float* in, float* out, int rows, int columns);

// ---- The test ----

inline const char* name_of(Variant variant) {
  constexpr const char* kNames[] = {"naive", "tile", "padded_tile", "missing_barrier"};
  return kNames[static_cast<int>(variant)];
}

// No two elements are equal.
inline void fill(float* in, int rows, int columns) {
  for (int i = 0; i < rows * columns; ++i) in[i] = static_cast<float>(i);
}

// Returns whether `out` is right, and says so on stderr.
inline bool report(Variant variant, const float* in, const float* out, int rows, int columns) {
  std::fprintf(stderr, "%s, %d x %d: ", name_of(variant), rows, columns);
  for (int i = 0; i < rows * columns; ++i) {
    const float expected = in[i % rows * columns + i / rows];
    if (out[i] == expected) continue;
    std::fprintf(stderr, "wrong, out[%d] is %g and should be %g\n", i, out[i], expected);
    return false;
  }
  std::fprintf(stderr, "right\n");
  return true;
}
