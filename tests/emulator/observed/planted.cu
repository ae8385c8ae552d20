#include "planted.h"

namespace cnnkernels::CNN_TARGET {
namespace {

__device__ int global_index() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- Races between the threads of a block ----

template <bool kRepaired>
__global__ void read_before_barrier(const float* in, float* out) {
  SHARED_ARRAY(float, tile, [kPlantedThreads]);
  const int thread = threadIdx.x;
  tile[thread] = in[global_index()];
  if (kRepaired) __syncthreads();
  out[global_index()] = tile[thread ^ 1];
  if (!kRepaired) __syncthreads();
}

template <bool kRepaired>
__global__ void overwrite_before_barrier(const float* in, float* out) {
  SHARED_ARRAY(float, tile, [kPlantedThreads]);
  const int thread = threadIdx.x;
  float value = in[global_index()];
  for (int i = 0; i < 3; ++i) {
    tile[thread] = value;
    __syncthreads();
    value = tile[thread ^ 1];
    if (kRepaired) __syncthreads();
  }
  out[global_index()] = value;
}

template <bool kRepaired>
__global__ void read_before_warp_barrier(const float* in, float* out) {
  DYNAMIC_SHARED(float, tile);
  const int thread = threadIdx.x;
  tile[thread] = in[global_index()];
  // A shuffle brings the lanes together, but does not order what they do to memory.
  if (kRepaired) {
    __syncwarp();
  } else {
    __shfl_sync(0xffffffffu, thread, 0);
  }
  out[global_index()] = tile[thread ^ 1];
}

// Warp 0 fills the tile for warp 1, which gives it back empty.
template <bool kRepaired>
__global__ void read_before_named_barrier(const float* in, float* out) {
  constexpr int kFull = 1, kEmpty = 2;
  SHARED_ARRAY(float, tile, [32]);
  const int lane = threadIdx.x % 32;
  const int begin = blockIdx.x * kPlantedThreads;
  for (int i = 0; i < kPlantedThreads; i += 32) {
    if (threadIdx.x < 32) {
      if (i > 0) sync_named(kEmpty, kPlantedThreads);
      tile[lane] = in[begin + i + lane];
      arrive_named(kFull, kPlantedThreads);
    } else {
      if (kRepaired || i > 0) sync_named(kFull, kPlantedThreads);
      out[begin + i + lane] = tile[lane ^ 1];
      if (!kRepaired && i == 0) sync_named(kFull, kPlantedThreads);
      if (i == 0) arrive_named(kEmpty, kPlantedThreads);
    }
  }
}

template <bool kRepaired>
__global__ void write_one_place(const float* in, float* out) {
  const int i = global_index();
  if (!kRepaired && threadIdx.x == 1) out[i - 1] = in[i];
  out[i] = in[i];
}

// ---- Shared memory that holds nothing yet ----

template <bool kRepaired>
__global__ void read_unwritten(const float* in, float* out) {
  SHARED_ARRAY(float, tile, [kPlantedThreads]);
  if (kRepaired || threadIdx.x != 33) tile[threadIdx.x] = in[global_index()];
  __syncthreads();
  out[global_index()] = tile[threadIdx.x];
}

template <bool kRepaired>
__global__ void copy_without_wait(const float* in, float* out) {
  SHARED_ARRAY(float, tile, [kPlantedThreads]);
  copy_async<4>(&tile[threadIdx.x], in + global_index());
  commit_copies();
  if (kRepaired) wait_copies<0>();
  __syncthreads();
  out[global_index()] = tile[threadIdx.x ^ 1];
}

template <bool kRepaired>
__global__ void copy_with_short_wait(const float* in, float* out) {
  SHARED_ARRAY(float, stages, [2][kPlantedThreads]);
  const int thread = threadIdx.x;
  copy_async<4>(&stages[0][thread], in + global_index());
  commit_copies();
  copy_async<4>(&stages[1][thread], in + global_index(), 0);
  commit_copies();
  wait_copies<1>();
  const float first = stages[0][thread];
  wait_copies<kRepaired ? 0 : 1>();
  out[global_index()] = first + stages[1][thread];
}

template <bool kRepaired>
__global__ void copy_over_readers(const float* in, float* out) {
  SHARED_ARRAY(float, tile, [kPlantedThreads]);
  const int thread = threadIdx.x;
  tile[thread] = in[global_index()];
  __syncthreads();
  out[global_index()] = tile[thread ^ 1];
  if (kRepaired) __syncthreads();
  copy_async<4>(&tile[thread], in + global_index());
  commit_copies();
  wait_copies<0>();
}

// ---- Addresses ----

template <bool kRepaired>
__global__ void read_out_of_bounds(const float* in, float* out) {
  const int i = global_index();
  const bool last = blockIdx.x == gridDim.x - 1 && threadIdx.x == kPlantedThreads - 1;
  out[i] = in[i] + (!kRepaired && last ? 0 * in[i + 1] : 0);
}

template <bool kRepaired>
__global__ void write_out_of_bounds(const float* in, float* out) {
  const int i = global_index();
  if (!kRepaired && i == 0) out[-1] = 0;
  out[i] = in[i];
}

template <bool kRepaired>
__global__ void write_to_input(const float* in, float* out) {
  const int i = global_index();
  out[i] = in[i];
  if (!kRepaired && i == 5) const_cast<float*>(in)[i] = 0;
}

template <bool kRepaired>
__global__ void read_beside_array(const float* in, float* out) {
  SHARED_ARRAY(float, tile, [kPlantedThreads]);
  const int thread = threadIdx.x;
  tile[thread] = in[global_index()];
  __syncthreads();
  const int next = kRepaired && thread == kPlantedThreads - 1 ? thread : thread + 1;
  out[global_index()] = tile[thread] + 0 * tile[next];
}

template <bool kRepaired>
__global__ void load_misaligned(const float* in, float* out) {
  const char* bytes = reinterpret_cast<const char*>(in + global_index());
  const auto* element = reinterpret_cast<const float*>(bytes + (kRepaired ? 0 : 2));
  out[global_index()] = threadIdx.x < kPlantedThreads - 1 || kRepaired ? *element : 0;
}

template <bool kRepaired>
__global__ void copy_misaligned(const float* in, float* out) {
  SHARED_ARRAY(float, tile, [kPlantedThreads + 4]);
  const int thread = threadIdx.x;
  if (thread % 4 == 0) copy_async<16>(&tile[thread + (kRepaired ? 0 : 1)], in + global_index());
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  out[global_index()] = tile[thread];
}

template <bool kRepaired>
__global__ void copy_elsewhere(const float* in, float* out) {
  SHARED_ARRAY(float, tile, [kPlantedThreads]);
  const int i = global_index();
  copy_async<4>(kRepaired ? &tile[threadIdx.x] : &out[i], in + i);
  commit_copies();
  wait_copies<0>();
  if (kRepaired) out[i] = tile[threadIdx.x];
}

// ---- Blocks ----

template <bool kRepaired>
__global__ void write_of_two_blocks(const float* in, float* out) {
  const int i = global_index();
  if (!kRepaired && i == kPlantedThreads) out[0] = in[0];
  out[i] = in[i];
}

template <bool kRepaired>
__global__ void read_of_another_block(const float* in, float* out) {
  const int i = global_index();
  out[i] = in[i];
  if (!kRepaired && blockIdx.x != 0) out[i] += 0 * out[i - kPlantedThreads];
}

template <bool kRepaired>
__global__ void read_before_another_block(const float* in, float* out) {
  const int i = global_index();
  const bool last = blockIdx.x == gridDim.x - 1;
  out[i] = in[i] + (kRepaired || last ? 0 : 0 * out[i + kPlantedThreads]);
}

// Sums of integers are exact in any order, of fractions not.
template <bool kRepaired>
__global__ void sum_in_any_order(const float* in, float* out) {
  const float value = in[global_index()];
  atomicAdd(out, kRepaired ? value : 1 / value);
}

// Each block leaves its sum in out[block + 1], and the last to be done adds them up in out[0].
template <bool kRepaired>
__global__ void sum_without_fence(const float* in, float* out) {
  if (threadIdx.x != 0) return;
  float sum = 0;
  for (int i = 0; i < kPlantedThreads; ++i) sum += in[blockIdx.x * kPlantedThreads + i];
  out[blockIdx.x + 1] = sum;
  if (kRepaired) __threadfence();
  auto* done = reinterpret_cast<unsigned*>(out + gridDim.x + 1);
  if (atomicAdd(done, 1u) != gridDim.x - 1) return;
  sum = 0;
  for (int i = 1; i <= static_cast<int>(gridDim.x); ++i) sum += out[i], out[i] = 0;
  out[0] = sum;
  *done = 0;
}

// ---- Barriers ----

template <bool kRepaired>
__global__ void meet_at_two_lines(const float* in, float* out) {
  if (kRepaired || threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[global_index()] = in[global_index()];
}

template <bool kRepaired>
__global__ void meet_in_different_numbers(const float* in, float* out) {
  sync_named(1, kRepaired || threadIdx.x < 32 ? 64 : 32);
  sync_named(1, kPlantedThreads);
  out[global_index()] = in[global_index()];
}

template <bool kRepaired>
__global__ void meet_in_half_a_warp(const float* in, float* out) {
  if (kRepaired || threadIdx.x % 32 < 16) sync_named(3, kRepaired ? 64 : 32);
  out[global_index()] = in[global_index()];
}

template <void (*kKernel)(const float*, float*)>
void run(int blocks, const float* in, float* out) {
  launch<kKernel>(blocks, kPlantedThreads, kPlantedThreads * sizeof(float), nullptr, in, out);
}

}  // namespace

std::vector<Planted> planted() {
  constexpr auto copy = Result::copy, neighbours = Result::neighbours, sum = Result::sum;
  return {
      {"read_before_barrier", neighbours, "reads tile + 4 bytes, that no thread has written",
       run<read_before_barrier<false>>, run<read_before_barrier<true>>},
      {"overwrite_before_barrier", neighbours, "tile + ", run<overwrite_before_barrier<false>>,
       run<overwrite_before_barrier<true>>},
      {"read_before_warp_barrier", neighbours,
       "reads the dynamic buffer + 120 bytes, that another thread writes",
       run<read_before_warp_barrier<false>>, run<read_before_warp_barrier<true>>},
      {"read_before_named_barrier", neighbours, "tile + ", run<read_before_named_barrier<false>>,
       run<read_before_named_barrier<true>>},
      {"write_one_place", copy,
       "writes out + 0 bytes, that another thread writes too: thread (0,0,0) of block (0,0,0), at ",
       run<write_one_place<false>>, run<write_one_place<true>>},
      {"read_unwritten", copy, "reads tile + 132 bytes, that no thread has written",
       run<read_unwritten<false>>, run<read_unwritten<true>>},
      {"copy_without_wait", neighbours, "that a cp.async has not yet filled: thread ",
       run<copy_without_wait<false>>, run<copy_without_wait<true>>},
      {"copy_with_short_wait", copy,
       "stages + 256 bytes, that a cp.async has not yet filled: thread (0,0,0)",
       run<copy_with_short_wait<false>>, run<copy_with_short_wait<true>>},
      {"copy_over_readers", neighbours, "tile + 0 bytes, that another thread ",
       run<copy_over_readers<false>>, run<copy_over_readers<true>>},
      {"read_out_of_bounds", copy, "reads 4 bytes out of bounds, 0 bytes behind the end of in",
       run<read_out_of_bounds<false>>, run<read_out_of_bounds<true>>},
      {"write_out_of_bounds", copy, "writes 4 bytes out of bounds, 4 bytes before the begin of out",
       run<write_out_of_bounds<false>>, run<write_out_of_bounds<true>>},
      {"write_to_input", copy, "writes 4 bytes of in + 20 bytes, which is only to be read",
       run<write_to_input<false>>, run<write_to_input<true>>},
      {"read_beside_array", copy,
       "reads 4 bytes of shared memory outside of its arrays, behind tile",
       run<read_beside_array<false>>, run<read_beside_array<true>>},
      {"load_misaligned", copy, "reads 4 bytes at a misaligned address, in + 2 bytes",
       run<load_misaligned<false>>, run<load_misaligned<true>>},
      {"copy_misaligned", copy, "cp.async to a misaligned address in shared memory",
       run<copy_misaligned<false>>, run<copy_misaligned<true>>},
      {"copy_elsewhere", copy, "cp.async of an address outside of the shared arrays",
       run<copy_elsewhere<false>>, run<copy_elsewhere<true>>},
      {"write_of_two_blocks", copy,
       "writes out + 0 bytes, that another thread writes too: thread (0,0,0) of block (0,0,0)",
       run<write_of_two_blocks<false>>, run<write_of_two_blocks<true>>},
      {"read_of_another_block", copy,
       "reads out + 0 bytes, that another thread writes: thread (0,0,0) of block (0,0,0)",
       run<read_of_another_block<false>>, run<read_of_another_block<true>>},
      {"read_before_another_block", copy,
       "writes out + 256 bytes, that another thread reads: thread (0,0,0) of block (0,0,0)",
       run<read_before_another_block<false>>, run<read_before_another_block<true>>},
      {"sum_in_any_order", sum, "out + 0 bytes depends on the order of the blocks",
       run<sum_in_any_order<false>>, run<sum_in_any_order<true>>},
      {"sum_without_fence", sum, "reads out + 4 bytes, that another thread writes: thread (0,0,0)",
       run<sum_without_fence<false>>, run<sum_without_fence<true>>},
      {"meet_at_two_lines", copy,
       "it comes to __syncthreads, while others wait in __syncthreads at ",
       run<meet_at_two_lines<false>>, run<meet_at_two_lines<true>>},
      {"meet_in_different_numbers", copy, "barrier.sync of 32 threads, while others, at ",
       run<meet_in_different_numbers<false>>, run<meet_in_different_numbers<true>>},
      {"meet_in_half_a_warp", copy, "opens while only a part of a warp has come",
       run<meet_in_half_a_warp<false>>, run<meet_in_half_a_warp<true>>},
  };
}

}  // namespace cnnkernels::CNN_TARGET
