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
#include <string>

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

// Where in the kernel's source an operation stands. As a default argument, the caller's line.
struct SourceLine {
  const char* file;
  int line;

  static constexpr SourceLine here(const char* file = __builtin_FILE(),
                                   int line = __builtin_LINE()) {
    return {file, line};
  }
};

// __syncthreads.
void sync_block(SourceLine);

// An operation that lanes of a warp carry out together. The last lane to arrive runs
// complete(lanes, payloads) for all: bit i of `lanes` tells that lane i takes part, payloads[i]
// is what it handed in. Operations are told apart by their address.
struct WarpOperation {
  const char* name;
  bool needs_every_lane;  // false: lanes that have exited, or never were, are not waited for
  void (*complete)(unsigned lanes, void* const* payloads);
  // What a lane did to memory before is visible to the others after it. CUDA promises that of
  // __syncwarp; of shuffles and votes it says that they are no memory barriers.
  bool orders_memory = false;
};

// Waits until all lanes of `mask` are here with the same operation and mask. The payload may lie
// on the caller's stack.
void warp_rendezvous(const WarpOperation&, unsigned mask, void* payload, SourceLine);

// Ends the kernel with an error that names it, the block and the thread.
[[noreturn]] void fail(const std::string& what, SourceLine = SourceLine::here());

inline int lane_index() {
  const unsigned linear = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  return static_cast<int>(linear % kWarpSize);
}

}  // namespace cnnkernels::emulator
