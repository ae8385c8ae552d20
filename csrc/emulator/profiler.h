// Counts what a launch asks of the memory system, as a GPU would see it: by requests of a warp.
//
// The emulator runs the lanes of a warp one after another, a GPU runs them side by side. An access
// is the same request for two lanes if it is the same instruction in the same turn of the loops
// around it. Those turns are read off the blocks of code that a lane runs through: to go back in
// the code is to begin a loop's next turn, to pass its end is to leave it.
//
// Global memory moves in sectors of 32 bytes: a request costs as many as its lanes touch. Shared
// memory has 32 banks of 4 bytes, which serve one word each at a time: a request takes as many
// passes ("wavefronts") as the bank most in demand has different words to give. 8-byte accesses
// go by half warps, 16-byte ones by quarters. Caches are not modelled.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "checker.h"
#include "emulator.h"
#include "worker.h"

namespace cnnkernels::emulator {

// What is counted. A request's units are sectors in global memory and wavefronts in shared memory;
// its ideal ones are the wavefronts without bank conflicts.
enum class Count {
  launches,
  blocks,
  threads,
  barriers,
  fma,
  mma_flop,
  bytes_read,     // different bytes of global memory that were read before the launch wrote them
  bytes_written,  // different bytes
  global_load,    // of each of these four numbers: see Part
  global_store = global_load + 4,
  global_atomic = global_store + 4,
  shared_load = global_atomic + 4,
  shared_store = shared_load + 4,
  size = shared_store + 4,
};
enum class Part { requests, bytes, units, ideal };

class Counters {
 public:
  std::uint64_t& operator[](Count count) { return values_[static_cast<int>(count)]; }
  std::uint64_t& at(Count kind, Part part) {
    return values_[static_cast<int>(kind) + static_cast<int>(part)];
  }
  void add(const Counters& other);
  std::string json() const;  // members of an object

 private:
  std::array<std::uint64_t, static_cast<int>(Count::size)> values_{};
};

class Profiler {
 public:
  Profiler(const Worker& worker, Counters& counters) : worker_(worker), counters_(counters) {}

  void begin_thread();
  void end_warp(unsigned warp) { flush(warp); }
  void begin_block();
  void sync_block();
  void count(Counter, unsigned amount);

  void access(Space, std::uintptr_t address, std::size_t bytes, Access, std::uint32_t place);

  // The course of the running thread through the code.
  void enter_function(std::uintptr_t caller);
  void leave_function();
  void enter_code(std::uintptr_t code);

 private:
  struct Loop {
    std::uintptr_t first, last;  // the code of its first block, and of the last that is known
    std::uint32_t turns;
  };
  struct Frame {
    std::uint64_t context;  // of the call
    std::uintptr_t code = 0;
    std::vector<Loop> loops;
  };
  struct Request {
    Space space;
    Access kind;
    std::uint32_t lanes = 0;
    std::array<std::uintptr_t, kWarpSize> addresses;
    std::array<std::uint32_t, kWarpSize> bytes;  // cp.async reads fewer at an edge
  };
  struct Touched {
    std::bitset<1024> read, written;
  };

  std::uint64_t context() const;
  void account(const Request&);
  void flush(unsigned warp);
  void touch(std::uintptr_t address, std::size_t bytes, Access);

  const Worker& worker_;
  Counters& counters_;
  std::array<std::vector<Frame>, kMaxThreads> courses_;
  std::array<std::unordered_map<std::uint64_t, Request>, kMaxWarps> requests_;
  std::unordered_map<std::uintptr_t, std::uintptr_t> loop_ends_;
  std::unordered_map<std::uintptr_t, Touched> touched_;
};

// Adds to what counters_json() tells.
void add_counters(const std::string& kernel, const Counters&);

}  // namespace cnnkernels::emulator
