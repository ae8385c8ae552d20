// CUDA's execution model on CPU threads. An OS thread runs one block at a time; the block's
// CUDA threads are fibers that hand the OS thread on only where they wait for each other.
// Knows nothing of what the kernels compute. Kernels see it through cuda/device.h.
//
// What CUDA leaves undefined is an error (std::runtime_error) that names kernel, block and
// thread: a barrier that not all threads reach, a warp operation whose mask is wrong, a write
// beside a shared array, a launch beyond the limits. Shared memory begins as NaN. Kernels whose
// objects are instrumented (see instrumented.cpp) can also be observed, access by access: checked
// (checker.h) and measured (profiler.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

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
  std::size_t argument_bytes;
  bool instrumented;  // the kernel tells of its accesses
};

// Runs all blocks, spread over the threads of parallel_for; returns when they are done.
void run_grid(const Grid&);

// The GPU whose limits hold, named by its compute capability (80 stands for sm_80, the
// default). Throws std::invalid_argument if it is not in the table of emulator.cpp.
void set_architecture(int compute_capability);

// Where in the kernel's source an operation stands. As a default argument, the caller's line.
struct SourceLine {
  const char* file;
  int line;

  static constexpr SourceLine here(const char* file = __builtin_FILE(),
                                   int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Ends the kernel with an error that names it, the block, the thread and the line.
[[noreturn]] void fail(const std::string& what, SourceLine = SourceLine::here());

// ---- Observing ----

// What is done with the launches of instrumented kernels in this process. An observed launch
// runs its blocks one after another on the calling thread.
struct Observation {
  bool check;    // errors for what goes wrong without being seen
  bool profile;  // counters
};
void observe(Observation);
Observation observation();

// The sums of the kernels that were profiled since the last clearing, in the order of their first
// launches, as JSON: [{"kernel": "...", counter: number, ...}, ...]. For the counters see
// profiler.h.
void clear_counters();
std::string counters_json();

// A piece of global memory that kernels may use. While any is known to the calling thread, an
// observed kernel that touches other memory is in error.
struct Memory {
  const char* name;
  const void* begin;
  std::size_t bytes;
  bool writable;
};

// Makes memory known to launches of the calling thread while it lives.
class KnownMemory {
 public:
  KnownMemory();
  ~KnownMemory();
  KnownMemory(const KnownMemory&) = delete;
  KnownMemory& operator=(const KnownMemory&) = delete;
  void add(const Memory& memory) { memory_.push_back(memory); }

  // What is known to the calling thread.
  static std::vector<Memory> all();

 private:
  const KnownMemory* const outer_;
  std::vector<Memory> memory_;
};

// Is this file being compiled with the instrumentation?
#ifdef CNNKERNELS_INSTRUMENTED
constexpr bool kInstrumented = true;
#else
constexpr bool kInstrumented = false;
#endif

enum class Access { read, write, atomic };

// Tells of an access that the compiler's instrumentation does not see.
void access(const void* address, std::size_t bytes, Access, SourceLine);

// __threadfence: what the thread's block did before is there for who learns of it by an atomic.
void fence();

// Tells of arithmetic: fused multiply-adds, or floating-point operations of a tensor core.
enum class Counter { fma, mma_flop };
void count(Counter, unsigned amount);

// ---- Shared memory ----

// One static shared array: its address is the key of a call site in one instantiation.
struct SharedArray {
  const char* name;
  std::size_t bytes;
};

// 16-byte aligned; the same for all threads of a block.
void* shared_array(const SharedArray&);
void* dynamic_shared();

// For operations on shared memory alone: fails unless all these bytes lie in one shared array.
void check_shared(const char* operation, const void* address, std::size_t bytes, SourceLine);

// ---- Waiting for each other ----

// __syncthreads and its siblings, which tell how many threads have a predicate, whether all have,
// whether any has.
enum class BlockSync { plain, count, all, any };
int sync_block(BlockSync, bool predicate, SourceLine);

// PTX's barrier.cta.sync (wait) and .arrive: the barrier of that number, 0 to 15, opens once so
// many threads, whole warps, have come.
void named_barrier(unsigned number, unsigned threads, bool wait, SourceLine);

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

// ---- Asynchronous copies ----

// cp.async: `bytes` (4, 8 or 16) go from global to shared memory, of which `valid` are read and
// the rest is zero. They arrive when the calling thread waits for them, as late as on any GPU.
void copy_async(void* shared, const void* global, unsigned bytes, unsigned valid, SourceLine);

// cp.async.commit_group: the copies since the last commit become a group.
void commit_copies();

// cp.async.wait_group: waits until at most the `pending` latest groups are on their way.
void wait_copies(unsigned pending);

inline int lane_index() {
  const unsigned linear = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  return static_cast<int>(linear % kWarpSize);
}

}  // namespace cnnkernels::emulator
