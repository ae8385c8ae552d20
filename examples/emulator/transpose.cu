// A matrix transposition, from naive to free of bank conflicts (after M. Harris, An Efficient
// Matrix Transpose in CUDA C/C++, NVIDIA, 2013). Compiled by nvcc for a GPU, and by g++ for the
// emulator: see README.md.
//
// A block of 32 x 8 threads moves a tile of 32 x 32 floats, each thread 4 of them:
//
//        in                tile                out
//     +-------+         +-------+         +-------+
//     |-------|  rows   |-------| columns |-------|     a warp reads a row of `in` and writes a row
//     |-------| ------> |-------| ------> |-------|     of `out`: both are neighbours in memory
//     |-------|         |-------|         |-------|
//     +-------+         +-------+         +-------+
//
// In the tile, the elements of a column lie kPitch words apart: 32 words put them all into one of
// the 32 banks of shared memory, 33 spread them over all.
#include "transpose.h"

constexpr int kTile = 32;
constexpr int kThreadRows = 8;

__global__ void transpose_naive(const float* in, float* out, int rows, int columns) {
  const int column = blockIdx.x * kTile + threadIdx.x;
  const int first_row = blockIdx.y * kTile + threadIdx.y;
  for (int i = 0; i < kTile; i += kThreadRows) {
    const int row = first_row + i;
    if (row < rows && column < columns) out[column * rows + row] = in[row * columns + column];
  }
}

template <int kPitch, bool kBarrier>
__global__ void transpose_tile(const float* in, float* out, int rows, int columns) {
  SHARED_ARRAY(float, tile, [kTile][kPitch]);
  const int x = threadIdx.x, y = threadIdx.y;
  const int tile_row = blockIdx.y * kTile, tile_column = blockIdx.x * kTile;

  for (int i = y; i < kTile; i += kThreadRows) {
    const int row = tile_row + i, column = tile_column + x;
    if (row < rows && column < columns) tile[i][x] = in[row * columns + column];
  }
  if (kBarrier) __syncthreads();
  for (int i = y; i < kTile; i += kThreadRows) {
    const int row = tile_row + x, column = tile_column + i;
    if (row < rows && column < columns) out[column * rows + row] = tile[x][i];
  }
}

void transpose(Variant variant, const float* in, float* out, int rows, int columns) {
  const dim3 grid((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile);
  const dim3 block(kTile, kThreadRows);
  switch (variant) {
    case Variant::naive:
      return launch<transpose_naive>(grid, block, 0, nullptr, in, out, rows, columns);
    case Variant::tile:
      return launch<transpose_tile<32, true>>(grid, block, 0, nullptr, in, out, rows, columns);
    case Variant::padded_tile:
      return launch<transpose_tile<33, true>>(grid, block, 0, nullptr, in, out, rows, columns);
    case Variant::missing_barrier:
      return launch<transpose_tile<33, false>>(grid, block, 0, nullptr, in, out, rows, columns);
  }
}
