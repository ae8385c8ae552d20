// What happens at each access of an observed kernel: is it one to memory at all, which; then the
// checker and the profiler see it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checker.h"
#include "emulator.h"
#include "places.h"
#include "profiler.h"
#include "worker.h"

namespace cnnkernels::emulator {

// Runs the grid's blocks one after another, checked or profiled. Where atomics may have let the
// order of the blocks into the results, a checked grid runs a second time, in reverse order, if the
// memory is known that is to be as it was.
void run_observed(const Grid&, Observation);

class Observer {
 public:
  Observer(Worker&, Observation, std::vector<Memory> known);

  // What the running thread does.
  void access(const void* address, std::size_t bytes, Access, std::uint32_t place);
  void access(const void* address, std::size_t bytes, Access, std::uintptr_t return_address);
  void begin_copy(const AsyncCopy&, SourceLine);
  void end_copy(const AsyncCopy&);
  void fence();
  void count(Counter, unsigned amount);
  Places& places() { return places_; }
  Profiler* profiler() { return profiler_ ? &*profiler_ : nullptr; }

  // What the block does.
  void begin_block(std::int64_t);
  void begin_thread();
  void end_warp(unsigned warp);
  void arrive(unsigned barrier, unsigned warp);
  void open(unsigned barrier, const Barrier&);
  void sync_warp(unsigned warp, unsigned lanes);

  const Counters& counters() const { return counters_; }
  bool used_global_atomics() const { return checker_ && checker_->used_global_atomics(); }

  // Throws the error that the result depends on the order of the blocks, for a byte that does.
  [[noreturn]] void fail_order(const Memory&, std::size_t offset);

 private:
  bool is_local(const void* address, Access) const;
  std::string name(const void* address, std::size_t bytes) const;
  std::string explain(const Checker::Finding&);
  void check_global(const void* address, std::size_t bytes, Access, std::uint32_t place);
  void touch(Space, const void* address, std::size_t bytes, Access, std::uint32_t place);
  [[noreturn]] void fail(std::uint32_t place, const std::string& what);

  Worker& worker_;
  std::vector<Memory> known_;
  Places places_;
  Counters counters_;
  std::optional<Checker> checker_;
  std::optional<Profiler> profiler_;
};

}  // namespace cnnkernels::emulator
