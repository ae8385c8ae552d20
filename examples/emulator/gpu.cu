// Transposes a matrix on a GPU.
#include "transpose.h"

int main() {
  constexpr int kRows = 128, kColumns = 96;
  float *in = nullptr, *out = nullptr;
  cudaMallocManaged(&in, kRows * kColumns * sizeof(float));
  cudaMallocManaged(&out, kRows * kColumns * sizeof(float));
  fill(in, kRows, kColumns);
  bool right = true;
  for (Variant variant : {Variant::naive, Variant::tile, Variant::padded_tile}) {
    transpose(variant, in, out, kRows, kColumns);
    if (const cudaError_t error = cudaDeviceSynchronize(); error != cudaSuccess) {
      std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
      return 1;
    }
    right &= report(variant, in, out, kRows, kColumns);
  }
  return right ? 0 : 1;
}
