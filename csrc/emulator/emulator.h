// CUDA's execution model on CPU threads. An OS thread runs one block at a time; the block's
// CUDA threads are fibers that hand the OS thread on only where they wait for each other.
// Knows nothing of what the kernels compute. Kernels see it through cuda/device.h.
//
// What CUDA leaves undefined is an error (std::runtime_error) that names kernel, block and
// thread: a barrier that not all threads reach, a warp operation whose mask is wrong, a write
// beside a shared array, a launch beyond the limits. Shared memory begins as NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

namespace cnnkernels::emulator {

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// Of the CUDA thread that runs on this OS thread. __thread: known to need no initialisation at
// run time. (Not initial-exec: one such variable makes the loader take all of a library's
// thread-local data from a small reserve, where it may find no room.)
extern __thread uint3 threadIdx;
extern __thread uint3 blockIdx;
extern __thread dim3 blockDim;
extern __thread dim3 gridDim;

constexpr int kWarpSize = 32;

// ---- Launching ----

struct Grid {
  std::string kernel;  // its name, for errors
  dim3 grid, block;
  std::size_t dynamic_shared_bytes;
  void (*run_thread)(const void* arguments);  // calls the kernel
  const void* arguments;
};

// Runs all blocks, spread over the threads of parallel_for; returns when they are done.
void run_grid(const Grid&);

// The GPU whose limits hold, named by its compute capability (80 stands for sm_80, the
// default). Throws std::invalid_argument if it is not in the table of emulator.cpp.
void set_architecture(int compute_capability);

// ---- Shared memory ----

// One static shared array: its address is the key of a call site in one instantiation.
struct SharedArray {
  const char* name;
  std::size_t bytes;
};

// 16-byte aligned; the same for all threads of a block.
void* shared_array(const SharedArray&);
void* dynamic_shared();

// ---- Waiting for each other ----

// __syncthreads.
void sync_block();

// An operation that lanes of a warp carry out together. The last lane to arrive runs
// complete(lanes, payloads) for all: bit i of `lanes` tells that lane i takes part, payloads[i]
// is what it handed in. Operations are told apart by their address.
struct WarpOperation {
  const char* name;
  bool needs_every_lane;  // false: lanes that have exited, or never were, are not waited for
  void (*complete)(unsigned lanes, void* const* payloads);
};

// Waits until all lanes of `mask` are here with the same operation and mask. The payload may lie
// on the caller's stack.
void warp_rendezvous(const WarpOperation&, unsigned mask, void* payload);

// Ends the kernel with an error that names it, the block and the thread.
[[noreturn]] void fail(const std::string& what);

inline int lane_index() {
  const unsigned linear = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  return static_cast<int>(linear % kWarpSize);
}

// ---- Warp operations ----

inline constexpr WarpOperation kSyncWarp = {"__syncwarp", false, [](unsigned, void* const*) {}};

struct ShufflePayload {
  std::uint64_t value;
  int source;
  std::uint64_t result;
};

// A lane that reads one outside the mask gets what CUDA calls undefined: here all bits set, NaN.
inline void exchange(unsigned lanes, void* const* payloads) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    auto& mine = *static_cast<ShufflePayload*>(payloads[lane]);
    mine.result = lanes >> mine.source & 1
                      ? static_cast<const ShufflePayload*>(payloads[mine.source])->value
                      : ~std::uint64_t{0};
  }
}

enum class Shuffle { index, up, down, exclusive_or };

inline constexpr WarpOperation kShuffles[] = {{"__shfl_sync", true, exchange},
                                              {"__shfl_up_sync", true, exchange},
                                              {"__shfl_down_sync", true, exchange},
                                              {"__shfl_xor_sync", true, exchange}};

// The lane that the caller reads: PTX ISA, shfl.sync. The warp is cut into segments of `width`
// lanes; a lane whose source would lie outside its segment reads itself.
inline int shuffle_source(Shuffle kind, int lane, int operand, int width) {
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) {
    fail("a shuffle of width " + std::to_string(width) + "; it must be a power of two up to 32");
  }
  const int first = lane & ~(width - 1);
  const int last = first + width - 1;
  operand &= kWarpSize - 1;
  switch (kind) {
    case Shuffle::index:
      return first | (operand & (width - 1));
    case Shuffle::up:
      return lane - operand >= first ? lane - operand : lane;
    case Shuffle::down:
      return lane + operand <= last ? lane + operand : lane;
    default:  // may read an earlier segment
      return (lane ^ operand) <= last ? lane ^ operand : lane;
  }
}

template <class T>
T shuffle(Shuffle kind, unsigned mask, T value, int operand, int width) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  ShufflePayload payload = {0, shuffle_source(kind, lane_index(), operand, width), 0};
  std::memcpy(&payload.value, &value, sizeof(T));
  warp_rendezvous(kShuffles[static_cast<int>(kind)], mask, &payload);
  std::memcpy(&value, &payload.result, sizeof(T));
  return value;
}

}  // namespace cnnkernels::emulator
