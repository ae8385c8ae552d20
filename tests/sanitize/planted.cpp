// Kernels with a bug each, and without it: what the sanitizers are there to find, and what they
// must not take for it.
//
//   planted               lists the bugs
//   planted NAME          runs the kernel with that bug
//   planted NAME repaired runs it without
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <string>

#include "../../csrc/cuda/device.h"
#include "threads.h"

namespace cnnkernels::CNN_TARGET {
namespace {

constexpr int kCount = 64;
constexpr unsigned kFullWarp = 0xffffffffu;

// ---- Memory: each kernel touches element `index` of an array of kCount ----

__global__ void read_global_memory(const float* in, float* out, int index) {
  out[threadIdx.x] = in[index];
}

__global__ void write_global_memory(float* out, int index) { out[index] = 1; }

__global__ void read_static_shared_memory(float* out, int index) {
  SHARED_ARRAY(float, tile, [kCount]);
  SHARED_ARRAY(float, other, [kCount]);
  tile[threadIdx.x] = other[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = *(&tile[0] + index);
}

__global__ void write_static_shared_memory(float* out, int index) {
  SHARED_ARRAY(float, tile, [kCount]);
  *(&tile[0] + index) = 1;
  __syncthreads();
  out[threadIdx.x] = tile[0];
}

__global__ void read_dynamic_shared_memory(float* out, int index) {
  DYNAMIC_SHARED(float, buffer);
  buffer[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = buffer[index];
}

__global__ void write_dynamic_shared_memory(float* out, int index) {
  DYNAMIC_SHARED(float, buffer);
  buffer[index] = 1;
  __syncthreads();
  out[threadIdx.x] = buffer[0];
}

// Out of line, so that only ASan knows how large the array is.
[[gnu::noinline]] __device__ void set(float* values, int index) { values[index] = 1; }

__global__ void write_local_memory(float* out, int index) {
  float values[kCount];
  values[0] = 0;
  __syncthreads();
  set(values, index);
  __syncthreads();
  out[threadIdx.x] = values[0];
}

// ---- Arithmetic ----

__global__ void overflow_an_index(const float* in, float* out, int pitch) {
  const int index = static_cast<int>(threadIdx.x + 1) * pitch;
  out[threadIdx.x] = in[index < 0 || index >= kCount ? 0 : index];
}

struct alignas(16) Float4 {
  float x, y, z, w;
};

__global__ void load_misaligned_vector(const float* in, float* out, int index) {
  const Float4 loaded = *reinterpret_cast<const Float4*>(in + index);
  out[threadIdx.x] = loaded.x + loaded.w;
}

__global__ void index_beyond_registers(float* out, int index) {
  float sums[4] = {0, 1, 2, 3};
  sums[index] += 1;
  out[threadIdx.x] = sums[0];
}

// ---- Races: each kernel lacks a barrier, or has another one, unless `repaired` ----

__global__ void read_before_written(float* out, bool repaired) {
  SHARED_ARRAY(float, tile, [kCount]);
  tile[threadIdx.x] = threadIdx.x;
  if (repaired) __syncthreads();
  out[threadIdx.x] = tile[kCount - 1 - threadIdx.x];
}

__global__ void overwrite_before_read(float* out, bool repaired) {
  DYNAMIC_SHARED(float, buffer);
  for (int round = 0; round < 3; ++round) {
    buffer[threadIdx.x] = threadIdx.x + round;
    __syncthreads();
    out[threadIdx.x] = buffer[kCount - 1 - threadIdx.x];
    if (repaired) __syncthreads();
  }
}

__global__ void warp_without_barrier(float* out, bool repaired) {
  SHARED_ARRAY(float, tile, [kCount]);
  tile[threadIdx.x] = threadIdx.x;
  if (repaired) __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

__global__ void shuffle_as_barrier(float* out, bool repaired) {
  SHARED_ARRAY(float, tile, [kCount]);
  tile[threadIdx.x] = threadIdx.x;
  const float other = __shfl_xor_sync(kFullWarp, tile[threadIdx.x], 1);
  if (repaired) __syncwarp();
  out[threadIdx.x] = other + tile[threadIdx.x ^ 1];
}

__global__ void warp_barrier_for_a_block(float* out, bool repaired) {
  SHARED_ARRAY(float, tile, [kCount]);
  tile[threadIdx.x] = threadIdx.x;
  if (repaired) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = tile[kCount - 1 - threadIdx.x];
}

// The halves of a warp wait apart, twice, and read each other's element.
__global__ void warp_barrier_of_half_a_warp(float* out, bool repaired) {
  SHARED_ARRAY(float, tile, [kCount]);
  tile[threadIdx.x] = threadIdx.x;
  const bool low = threadIdx.x % 32 < 16;
  for (int round = 0; round < 2; ++round) __syncwarp(low ? 0x0000ffffu : 0xffff0000u);
  if (repaired) __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 16];
}

// A barrier later does not order what came before it.
__global__ void barrier_too_late(float* out, bool repaired) {
  SHARED_ARRAY(float, tile, [kCount]);
  tile[threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x == 0) tile[1] = 1;
  if (repaired) __syncthreads();
  out[threadIdx.x] = tile[1];
  __syncthreads();
}

__global__ void blocks_write_one_element(float* out, bool repaired) {
  out[repaired ? blockIdx.x : 0] = blockIdx.x;
}

// ---- The table ----

// Exactly kCount elements on the heap.
class Array {
 public:
  Array() {
    for (int i = 0; i < kCount; ++i) data()[i] = static_cast<float>(i);
  }
  float* data() const { return memory_.get(); }

 private:
  // A vector's alignment, so that index 0 is good for Float4.
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float[], Free> memory_{
      static_cast<float*>(std::aligned_alloc(16, kCount * sizeof(float)))};
};

// Launches the kernel on one block of one thread, or of kCount.
template <auto Kernel, int kThreads = 1, class... Args>
void launch_block(Args... args) {
  launch<Kernel>(1, kThreads, kCount * sizeof(float), nullptr, args...);
}

template <auto Kernel, int kGood, int kBad, int kThreads = 1>
void touch_input(bool repaired) {
  const Array in, out;
  launch_block<Kernel, kThreads>(in.data(), out.data(), repaired ? kGood : kBad);
}

template <auto Kernel, int kGood, int kBad, int kThreads = 1>
void touch(bool repaired) {
  const Array out;
  launch_block<Kernel, kThreads>(out.data(), repaired ? kGood : kBad);
}

template <auto Kernel, int kBlocks = 1, int kThreads = kCount>
void race(bool repaired) {
  const Array out;
  launch<Kernel>(kBlocks, kThreads, kCount * sizeof(float), nullptr, out.data(), repaired);
}

constexpr int kLast = kCount - 1;

const std::map<std::string, void (*)(bool repaired)> kBugs = {
    {"barrier_too_late", race<barrier_too_late>},
    {"blocks_write_one_element", race<blocks_write_one_element, 2, 1>},
    {"index_beyond_registers", touch<index_beyond_registers, 3, 4>},
    {"load_misaligned_vector", touch_input<load_misaligned_vector, 4, 2>},
    {"overflow_an_index", touch_input<overflow_an_index, 3, std::numeric_limits<int>::max(), 2>},
    {"overwrite_before_read", race<overwrite_before_read>},
    {"read_before_written", race<read_before_written>},
    {"read_dynamic_shared_memory", touch<read_dynamic_shared_memory, kLast, kCount, kCount>},
    {"read_global_memory", touch_input<read_global_memory, kLast, kCount>},
    {"read_static_shared_memory", touch<read_static_shared_memory, kLast, kCount, kCount>},
    {"shuffle_as_barrier", race<shuffle_as_barrier>},
    {"warp_barrier_for_a_block", race<warp_barrier_for_a_block>},
    {"warp_barrier_of_half_a_warp", race<warp_barrier_of_half_a_warp>},
    {"warp_without_barrier", race<warp_without_barrier>},
    {"write_dynamic_shared_memory", touch<write_dynamic_shared_memory, 0, -1>},
    {"write_global_memory", touch<write_global_memory, 0, -1>},
    {"write_local_memory", touch<write_local_memory, kLast, kCount, 2>},
    {"write_static_shared_memory", touch<write_static_shared_memory, kLast, kCount>},
};

}  // namespace
}  // namespace cnnkernels::CNN_TARGET

int main(int argc, char** argv) {
  using cnnkernels::CNN_TARGET::kBugs;
  if (argc < 2) {
    for (const auto& [name, run] : kBugs) std::printf("%s\n", name.c_str());
    return 0;
  }
  const auto found = kBugs.find(argv[1]);
  if (found == kBugs.end()) {
    std::fprintf(stderr, "no bug is called %s\n", argv[1]);
    return 2;
  }
  cnnkernels::start_threads(2);
  found->second(argc > 2);
  return 0;
}
