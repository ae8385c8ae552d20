// Finds what goes wrong unseen: threads that touch the same memory with nothing that orders them,
// shared memory that is read before it is written or while a copy to it is on its way.
//
// Two accesses, one of them a write, are a race unless something orders them: within a block
// __syncthreads orders all threads, __syncwarp the lanes of its mask, a named barrier the warps
// that come to it; nothing orders blocks but fences and atomics. Whether the threads happened to
// run in a harmless order does not matter. Atomics do not race with each other. They order a block
// after others where those passed a __threadfence before their atomics on the same address, as in a
// sum whose last block adds up what all have left. A cell remembers its last write and three
// readers, so that a race with an earlier reader can be missed.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "emulator.h"
#include "shadow.h"
#include "worker.h"

namespace cnnkernels::emulator {

enum class Space { shared, global };

// An access, and when it was.
struct Stamp {
  std::uint32_t block;
  std::uint32_t epoch = 0;  // how often the block has met; 0: there was no access
  std::uint32_t clock;      // how often the lane has met others of its warp
  std::uint32_t warp_clock;
  std::uint32_t place;
  std::uint16_t thread;
  bool atomic;
  bool on_its_way;  // the write of a copy that has not arrived
};

class Checker {
 public:
  explicit Checker(const Worker& worker) : worker_(worker) {
    for (auto& clocks : clocks_) clocks.fill(1);
    warp_clocks_.fill(1);
  }

  void begin_block(std::int64_t block);
  void sync_block() { ++epoch_; }
  void sync_warp(unsigned warp, unsigned lanes);
  void arrive(unsigned barrier, unsigned warp);
  void open(unsigned barrier, const Barrier&);
  void fence() { fenced_ = true; }

  // What is wrong with an access of the running thread, for the text after its name; or "".
  // `tell` gives the text of a place.
  struct Finding {
    const char* what;  // null: nothing
    Stamp other;       // the access that is in the way, if epoch is not 0
  };
  Finding access(Space, std::uintptr_t address, std::size_t bytes, Access, std::uint32_t place);

  // A copy to shared memory begins, and arrives.
  Finding begin_copy(std::uintptr_t shared, std::size_t bytes, std::uint32_t place);
  void end_copy(std::uintptr_t shared, std::size_t bytes);

  bool used_global_atomics() const { return used_global_atomics_; }

  // The last write to a byte of global memory.
  Stamp last_write(std::uintptr_t address);

 private:
  struct Cell {
    Stamp write;
    std::array<Stamp, 3> reads;  // the last; one of another lane of its warp; one of another warp
  };

  Stamp now(std::uint32_t place) const;
  bool ordered(const Stamp& before, const Stamp& now) const;
  Finding check(Space, const Cell&, const Stamp& now, Access) const;
  void remember(Cell&, const Stamp& now, Access) const;
  void meet_blocks(std::uintptr_t address);
  Finding touch(Space, std::uintptr_t address, std::size_t bytes, Access, const Stamp& now);

  const Worker& worker_;
  std::uint32_t block_ = 0;
  std::uint32_t epoch_ = 0;
  bool used_global_atomics_ = false;

  // clocks_[w][l]: lane l of warp w. known_[w][l][m]: up to which clock of lane m of the same warp
  // lane l is ordered after it. The same between warps.
  template <class T>
  using PerWarp = std::array<T, kMaxWarps>;
  template <class T>
  using PerLane = std::array<T, kWarpSize>;
  PerWarp<PerLane<std::uint32_t>> clocks_;
  PerWarp<PerLane<PerLane<std::uint32_t>>> known_{};
  PerWarp<std::uint32_t> warp_clocks_;
  PerWarp<PerWarp<std::uint32_t>> known_warps_{};
  std::array<PerWarp<std::uint32_t>, kNamedBarriers> brought_{};  // to a named barrier

  // By address of an atomic: the blocks that fenced before theirs. Blocks run one after another:
  // those that this one has met there have ended.
  std::unordered_map<std::uintptr_t, std::unordered_set<std::uint32_t>> fenced_blocks_;
  std::unordered_set<std::uint32_t> met_;
  bool fenced_ = false;

  Shadow<Cell> shared_, global_;
};

}  // namespace cnnkernels::emulator
