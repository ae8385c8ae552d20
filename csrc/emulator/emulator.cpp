#include "emulator.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "../parallel.h"
#include "observer.h"
#include "worker.h"

namespace cnnkernels::emulator {
namespace {

// ---- Limits (CUDA C++ programming guide, "Compute Capabilities") ----

constexpr uint3 kMaxBlock = {1024, 1024, 64};
constexpr uint3 kMaxGrid = {2147483647, 65535, 65535};

struct Architecture {
  int compute_capability;
  std::size_t max_shared;  // static and dynamic, per block
};

constexpr Architecture kArchitectures[] = {
    {70, 96 << 10}, {75, 64 << 10},  {80, 163 << 10},  {86, 99 << 10},
    {89, 99 << 10}, {90, 227 << 10}, {100, 227 << 10}, {120, 99 << 10},
};
const Architecture* find_architecture(int compute_capability) {
  for (const Architecture& candidate : kArchitectures) {
    if (candidate.compute_capability == compute_capability) return &candidate;
  }
  throw std::invalid_argument("the emulator knows no sm_" + std::to_string(compute_capability));
}

std::atomic<const Architecture*> architecture{find_architecture(80)};

bool within(uint3 size, uint3 limit) {
  return size.x >= 1 && size.y >= 1 && size.z >= 1 && size.x <= limit.x && size.y <= limit.y &&
         size.z <= limit.z;
}

void check_limits(const Grid& grid) {
  const auto refuse = [&](const std::string& what) {
    throw std::runtime_error("kernel " + grid.kernel + ": " + what);
  };
  if (!within(grid.grid, kMaxGrid)) {
    refuse("a grid of " + text(grid.grid) + " blocks; 1 to " + text(kMaxGrid) + " are allowed");
  }
  if (!within(grid.block, kMaxBlock)) {
    refuse("blocks of " + text(grid.block) + "; 1 to " + text(kMaxBlock) + " are allowed");
  }
  const std::uint64_t threads = std::uint64_t{grid.block.x} * grid.block.y * grid.block.z;
  if (threads > kMaxThreads) {
    refuse(std::to_string(threads) + " threads per block; at most 1024 are allowed");
  }
  const std::size_t max_shared = architecture.load()->max_shared;
  if (grid.dynamic_shared_bytes > max_shared) {
    refuse(std::to_string(grid.dynamic_shared_bytes) + " bytes of dynamic shared memory; at most " +
           std::to_string(max_shared) + " are allowed");
  }
}

std::atomic<bool> checking{false}, profiling{false};

}  // namespace

std::size_t max_shared_bytes() { return architecture.load()->max_shared; }

void run_grid(const Grid& grid) {
  check_limits(grid);
  const Observation what = observation();
  if (grid.instrumented && (what.check || what.profile)) return run_observed(grid, what);
  // Enough work for a range to be worth handing to another OS thread.
  constexpr std::int64_t kThreadsPerRange = 4096;
  const std::int64_t threads = grid.block.x * grid.block.y * grid.block.z;
  const std::int64_t blocks = std::int64_t{grid.grid.x} * grid.grid.y * grid.grid.z;
  parallel_for(blocks, (kThreadsPerRange + threads - 1) / threads,
               [&](std::int64_t begin, std::int64_t end) {
                 Worker::of_this_thread().run(grid, begin, end);
               });
}

void set_architecture(int compute_capability) {
  architecture = find_architecture(compute_capability);
}

void observe(Observation what) {
  checking = what.check;
  profiling = what.profile;
}

Observation observation() { return {checking, profiling}; }

void* shared_array(const SharedArray& array) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  return worker->shared_array(array);
}

void* dynamic_shared() { return worker->dynamic_shared(); }

void check_shared(const char* operation, const void* address, std::size_t bytes, SourceLine line) {
  if (worker->arena().covers(address, bytes)) return;
  fail(std::string(operation) + " of an address outside of the shared arrays", line);
}

int sync_block(BlockSync kind, bool predicate, SourceLine line) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  return worker->sync_block(kind, predicate, line);
}

void named_barrier(unsigned number, unsigned threads, bool wait, SourceLine line) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  worker->named_barrier(number, threads, wait, line);
}

void warp_rendezvous(const WarpOperation& operation, unsigned mask, void* payload,
                     SourceLine line) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  worker->warp_rendezvous(operation, mask, payload, line);
}

void copy_async(void* shared, const void* global, unsigned bytes, unsigned valid, SourceLine line) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  worker->copy_async({shared, global, bytes, valid, 0}, line);
}

void commit_copies() { worker->commit_copies(); }

void wait_copies(unsigned pending) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  worker->wait_copies(pending);
}

void access(const void* address, std::size_t bytes, Access kind, SourceLine line) {
  if (observer == nullptr) return;
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
  Places& places = observer->places();
  observer->access(address, bytes, kind, line.line ? places.number(line) : places.number(here));
}

void fence() {
  if (observer) observer->fence();
}

void count(Counter counter, unsigned amount) {
  if (observer) observer->count(counter, amount);
}

void fail(const std::string& what, SourceLine line) {
  // Host code may use what kernels use, vectors for example.
  if (worker == nullptr) throw std::runtime_error(what);
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  worker->fail(line, what);
}

}  // namespace cnnkernels::emulator
