// Kernels of a block whose threads wait for each other, or for copies to shared memory.
#include "../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

// out[3 * thread ..]: how many predicates hold, whether all do, whether any does.
__global__ void vote_in_block(const int* predicates, int* out) {
  const int thread = threadIdx.x;
  out[3 * thread] = __syncthreads_count(predicates[thread]);
  out[3 * thread + 1] = __syncthreads_and(predicates[thread]);
  out[3 * thread + 2] = __syncthreads_or(predicates[thread]);
}

// Warps 0 and 1 fill a ring of two tiles, warps 2 and 3 empty it, turned round: four rounds of 64
// elements. A full and an empty barrier for each tile.
__global__ void pass_through_ring(const int* in, int* out) {
  constexpr int kRounds = 4, kHalf = 64, kAll = 2 * kHalf;
  SHARED_ARRAY(int, ring, [2][kHalf]);
  const int place = threadIdx.x % kHalf;
  const bool fills = threadIdx.x < kHalf;
  for (int round = 0; round < kRounds; ++round) {
    const int tile = round % 2, full = 1 + tile, empty = 3 + tile;
    if (fills) {
      if (round >= 2) sync_named(empty, kAll);
      ring[tile][place] = in[round * kHalf + place];
      arrive_named(full, kAll);
    } else {
      sync_named(full, kAll);
      out[round * kHalf + place] = ring[tile][kHalf - 1 - place];
      if (round < kRounds - 2) arrive_named(empty, kAll);
    }
  }
}

// Each thread copies `valid` of its kBytes through shared memory, to those of its neighbour.
template <int kBytes>
__global__ void copy_through_shared(const unsigned char* in, int valid, unsigned char* out) {
  DYNAMIC_SHARED(unsigned char, tile);
  const int thread = threadIdx.x, neighbour = thread ^ 1;
  copy_async<kBytes>(tile + kBytes * thread, in + kBytes * thread, valid);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  for (int i = 0; i < kBytes; ++i) out[kBytes * thread + i] = tile[kBytes * neighbour + i];
}

template __global__ void copy_through_shared<4>(const unsigned char*, int, unsigned char*);
template __global__ void copy_through_shared<8>(const unsigned char*, int, unsigned char*);
template __global__ void copy_through_shared<16>(const unsigned char*, int, unsigned char*);

// out[i] = in[i], `tiles` times a block of elements, each tile copied kStages - 1 ahead.
template <int kStages>
__global__ void copy_in_stages(const float* in, int tiles, float* out) {
  DYNAMIC_SHARED(float, stages);
  const int thread = threadIdx.x, threads = blockDim.x;
  const auto begin_copy = [&](int tile) {
    if (tile < tiles)
      copy_async<4>(stages + tile % kStages * threads + thread, in + tile * threads + thread);
    commit_copies();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) begin_copy(tile);
  for (int tile = 0; tile < tiles; ++tile) {
    wait_copies<kStages - 2>();
    __syncthreads();
    out[tile * threads + thread] = stages[tile % kStages * threads + thread];
    begin_copy(tile + kStages - 1);
  }
}

template __global__ void copy_in_stages<2>(const float*, int, float*);
template __global__ void copy_in_stages<4>(const float*, int, float*);

}  // namespace cnnkernels::CNN_TARGET
