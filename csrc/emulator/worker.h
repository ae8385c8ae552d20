// What one OS thread runs blocks with: the CUDA threads of a block as fibers, their barriers and
// rendezvous, the block's shared memory.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "emulator.h"
#include "fiber.h"
#include "sanitizer.h"

namespace cnnkernels::emulator {

constexpr unsigned kMaxThreads = 1024;  // of a block
constexpr unsigned kMaxWarps = kMaxThreads / kWarpSize;
constexpr unsigned kNamedBarriers = 16;

constexpr std::size_t kMaxStaticShared = 48 << 10;

// Static and dynamic, of a block, on the architecture emulated.
std::size_t max_shared_bytes();

class Observer;

std::string text(uint3);

// A cp.async that has not arrived.
struct AsyncCopy {
  void* shared;
  const void* global;
  unsigned bytes, valid;
  unsigned group;  // of the copies that are committed together
};

struct Thread {
  uint3 index;
  Fiber* fiber;
  bool exited;
  const char* waits_in;  // the operation, or null
  SourceLine line;       // of that operation
  unsigned mask;         // of that operation, where it is one of a warp
  unsigned barrier;      // the number, where it is one
  void* payload;
  int vote;  // the result of the last barrier
  std::deque<AsyncCopy> copies;
  unsigned groups;  // of copies, committed
};

// Lanes of one warp that wait for each other. `missing` are those yet to come.
struct Rendezvous {
  const WarpOperation* operation;
  unsigned mask;
  unsigned lanes;
  unsigned missing;
};

struct Warp {
  unsigned lanes;  // that exist
  unsigned exited;
  std::vector<Rendezvous> pending;
};

// Threads that wait for each other across warps.
struct Barrier {
  const char* name;  // of the first arrival
  SourceLine line;
  unsigned expected, arrived, yes;                 // threads; `yes`: those with a true predicate
  std::array<unsigned, kMaxWarps> lanes, waiting;  // by warp: who has come, who of them waits
};

class Worker {
 public:
  static Worker& of_this_thread();

  // Runs blocks [begin, end) of the grid.
  void run(const Grid&, std::int64_t begin, std::int64_t end);

  // Runs the given blocks under observation.
  void run_observed(const Grid&, const std::vector<std::int64_t>& blocks, Observer&);

  void* shared_array(const SharedArray&);
  void* dynamic_shared() { return arena_.dynamic(); }
  int sync_block(BlockSync, bool predicate, SourceLine);
  void named_barrier(unsigned number, unsigned threads, bool wait, SourceLine);
  void warp_rendezvous(const WarpOperation&, unsigned mask, void* payload, SourceLine);
  void copy_async(const AsyncCopy&, SourceLine);
  void commit_copies();
  void wait_copies(unsigned pending);

  // The error of the running thread at a line, or "" for none that is known.
  std::string message(const std::string& line, const std::string& what) const;
  [[noreturn]] void fail(SourceLine, const std::string& what) const;

  // Ends the block with an error without unwinding the running thread, whose code may not let an
  // exception through.
  [[noreturn]] void abandon(std::exception_ptr);

  unsigned running_index() const { return index_of(*running_); }
  const Thread& thread(unsigned index) const { return threads_[index]; }
  unsigned threads() const { return count_; }
  const Arena& arena() const { return arena_; }
  const Fiber& fiber() const { return *fiber_; }
  const Grid& grid() const { return *grid_; }
  sanitizer::Threads& sanitizer_threads() { return sanitizer_threads_; }

 private:
  static constexpr std::size_t kStackBytes = 256 << 10;

  class Running;
  void begin_launch(const Grid&);
  void run_block(std::int64_t linear);
  void begin_block();
  void end_block();

  static void enter_fiber();
  void run_fiber();
  void run_next_thread();
  void exit_thread();
  void drop_exited_lane(Warp&, unsigned bit);

  bool has_unstarted() const { return next_ < count_; }
  bool has_ready() const { return ready_begin_ != ready_end_; }
  void make_ready(Thread&);
  void wait(const char* operation, unsigned mask, SourceLine);
  void resume_ready();
  void start_fiber();
  void switch_to(Fiber&);

  Barrier& arrive(unsigned number, const char* name, unsigned expected, bool waits, bool predicate,
                  SourceLine);
  void open(unsigned number);
  void complete(Warp&, Rendezvous);
  void deliver(AsyncCopy&);

  [[noreturn]] void fail(const Thread&, SourceLine, const std::string& what) const;
  [[noreturn]] void fail_deadlock() const;
  std::string message(const Thread&, const std::string& line, const std::string& what) const;

  unsigned index_of(const Thread& thread) const {
    return static_cast<unsigned>(&thread - threads_.data());
  }

  const Grid* grid_ = nullptr;
  Observer* observer_ = nullptr;
  Arena arena_;

  std::array<Thread, kMaxThreads> threads_;
  std::array<Warp, kMaxWarps> warps_;
  std::array<Barrier, kNamedBarriers> barriers_;
  unsigned count_ = 0;   // threads of a block
  unsigned next_ = 0;    // the first that has not begun
  unsigned exited_ = 0;  // how many have
  Thread* running_ = nullptr;

  // Threads that waited and may go on, first come, first served.
  std::array<Thread*, kMaxThreads> ready_;
  unsigned ready_begin_ = 0, ready_end_ = 0;

  Fiber scheduler_;  // the OS thread's stack
  Fiber* fiber_ = &scheduler_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_fibers_;
  std::exception_ptr error_;
  sanitizer::Threads sanitizer_threads_;
};

// The worker whose block runs on this OS thread, or null.
extern __thread Worker* worker;

// What observes it, or null.
extern __thread Observer* observer;

}  // namespace cnnkernels::emulator
