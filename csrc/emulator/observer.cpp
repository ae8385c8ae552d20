#include "observer.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>

// Of the module that holds the emulator and its kernels; the linker defines them.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[];
extern "C" __attribute__((visibility("hidden"))) const char _end[];

namespace cnnkernels::emulator {
namespace {

__thread const KnownMemory* innermost = nullptr;

uint3 block_index(std::uint32_t linear, dim3 grid) {
  return {linear % grid.x, linear / grid.x % grid.y, linear / grid.x / grid.y};
}

const char* verb(Access kind) {
  return kind == Access::read ? "reads" : kind == Access::write ? "writes" : "updates";
}

bool within(const Memory& memory, const void* address, std::size_t bytes) {
  const auto* begin = static_cast<const char*>(memory.begin);
  const auto* at = static_cast<const char*>(address);
  return at >= begin && at + bytes <= begin + memory.bytes;
}

// How far the address lies outside of the memory.
std::ptrdiff_t distance(const Memory& memory, const void* address) {
  const auto* begin = static_cast<const char*>(memory.begin);
  const auto* at = static_cast<const char*>(address);
  return at < begin ? begin - at : at - (begin + memory.bytes);
}

}  // namespace

KnownMemory::KnownMemory() : outer_(innermost) { innermost = this; }
KnownMemory::~KnownMemory() { innermost = outer_; }

std::vector<Memory> KnownMemory::all() {
  std::vector<Memory> all;
  for (const KnownMemory* known = innermost; known != nullptr; known = known->outer_) {
    all.insert(all.end(), known->memory_.begin(), known->memory_.end());
  }
  return all;
}

Observer::Observer(Worker& worker, Observation what, std::vector<Memory> known)
    : worker_(worker), known_(std::move(known)) {
  if (what.check) checker_.emplace(worker);
  if (what.profile) profiler_.emplace(worker, counters_);
}

// ---- Accesses ----

// Not memory that threads share: the thread's own stack, what it was called with, its indices,
// constants.
bool Observer::is_local(const void* address, Access kind) const {
  const auto* at = static_cast<const char*>(address);
  const auto in = [at](const void* begin, std::size_t bytes) {
    return static_cast<std::size_t>(at - static_cast<const char*>(begin)) < bytes;
  };
  if (worker_.fiber().holds(address)) return true;
  if (in(worker_.grid().arguments, worker_.grid().argument_bytes)) return true;
  if (in(&threadIdx, sizeof threadIdx) || in(&blockIdx, sizeof blockIdx)) return true;
  if (in(&blockDim, sizeof blockDim) || in(&gridDim, sizeof gridDim)) return true;
  return kind == Access::read && at >= __ehdr_start && at < _end;
}

void Observer::access(const void* address, std::size_t bytes, Access kind,
                      std::uintptr_t return_address) {
  if (!is_local(address, kind)) access(address, bytes, kind, places_.number(return_address));
}

void Observer::access(const void* address, std::size_t bytes, Access kind, std::uint32_t place) {
  if (is_local(address, kind)) return;
  const bool power_of_two = (bytes & (bytes - 1)) == 0;
  if (checker_ && power_of_two && bytes <= 16 &&
      reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    fail(place, std::string(verb(kind)) + " " + std::to_string(bytes) +
                    " bytes at a misaligned address, " + name(address, bytes));
  }
  if (worker_.arena().holds(address)) {
    if (checker_ && !worker_.arena().covers(address, bytes)) {
      fail(place, std::string(verb(kind)) + " " + std::to_string(bytes) +
                      " bytes of shared memory outside of its arrays, " +
                      worker_.arena().name_outside(address));
    }
    return touch(Space::shared, address, bytes, kind, place);
  }
  if (checker_ && !known_.empty()) check_global(address, bytes, kind, place);
  touch(Space::global, address, bytes, kind, place);
}

void Observer::check_global(const void* address, std::size_t bytes, Access kind,
                            std::uint32_t place) {
  const std::string what = std::string(verb(kind)) + " " + std::to_string(bytes) + " bytes ";
  for (const Memory& memory : known_) {
    if (!within(memory, address, bytes)) continue;
    if (kind != Access::read && !memory.writable) {
      fail(place, what + "of " + name(address, bytes) + ", which is only to be read");
    }
    return;
  }
  const Memory& nearest =
      *std::min_element(known_.begin(), known_.end(), [&](const Memory& a, const Memory& b) {
        return distance(a, address) < distance(b, address);
      });
  const bool before = address < nearest.begin;
  fail(place, what + "out of bounds, " + std::to_string(distance(nearest, address)) + " bytes " +
                  (before ? "before the begin of " : "behind the end of ") + nearest.name);
}

void Observer::touch(Space space, const void* address, std::size_t bytes, Access kind,
                     std::uint32_t place) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  if (profiler_) profiler_->access(space, at, bytes, kind, place);
  if (!checker_) return;
  const Checker::Finding finding = checker_->access(space, at, bytes, kind, place);
  if (finding.what == nullptr) return;
  fail(place, std::string(verb(kind)) + " " + name(address, bytes) + ", " + explain(finding));
}

void Observer::begin_copy(const AsyncCopy& copy, SourceLine line) {
  const std::uint32_t place = places_.number(line);
  if (copy.valid != 0) access(copy.global, copy.valid, Access::read, place);
  const auto at = reinterpret_cast<std::uintptr_t>(copy.shared);
  if (profiler_) profiler_->access(Space::shared, at, copy.bytes, Access::write, place);
  if (!checker_) return;
  const Checker::Finding finding = checker_->begin_copy(at, copy.bytes, place);
  if (finding.what == nullptr) return;
  fail(place, "copies to " + name(copy.shared, copy.bytes) + ", " + explain(finding));
}

void Observer::end_copy(const AsyncCopy& copy) {
  if (checker_) checker_->end_copy(reinterpret_cast<std::uintptr_t>(copy.shared), copy.bytes);
}

void Observer::fence() {
  if (checker_) checker_->fence();
}

void Observer::count(Counter counter, unsigned amount) {
  if (profiler_) profiler_->count(counter, amount);
}

// ---- The block ----

void Observer::begin_block(std::int64_t block) {
  if (checker_) checker_->begin_block(block);
  if (profiler_) profiler_->begin_block();
}

void Observer::begin_thread() {
  if (profiler_) profiler_->begin_thread();
}

void Observer::end_warp(unsigned warp) {
  if (profiler_) profiler_->end_warp(warp);
}

void Observer::arrive(unsigned barrier, unsigned warp) {
  if (checker_) checker_->arrive(barrier, warp);
}

void Observer::open(unsigned barrier, const Barrier& state) {
  unsigned waiting = 0;
  for (unsigned lanes : state.waiting) waiting += static_cast<unsigned>(__builtin_popcount(lanes));
  if (checker_) {
    checker_->open(barrier, state);
    if (waiting == worker_.threads()) checker_->sync_block();
  }
  if (profiler_) profiler_->sync_block();
}

void Observer::sync_warp(unsigned warp, unsigned lanes) {
  if (checker_) checker_->sync_warp(warp, lanes);
}

// ---- Errors ----

std::string Observer::name(const void* address, std::size_t bytes) const {
  if (worker_.arena().holds(address)) return worker_.arena().name(address, bytes);
  for (const Memory& memory : known_) {
    if (!within(memory, address, 1)) continue;
    const auto offset = static_cast<const char*>(address) - static_cast<const char*>(memory.begin);
    return std::string(memory.name) + " + " + std::to_string(offset) + " bytes";
  }
  char digits[32];
  std::snprintf(digits, sizeof digits, "%p", address);
  return "global memory at " + std::string(digits);
}

std::string Observer::explain(const Checker::Finding& finding) {
  const Stamp& other = finding.other;
  if (other.epoch == 0) return finding.what;
  return std::string(finding.what) + ": thread " +
         emulator::text(worker_.thread(other.thread).index) + " of block " +
         emulator::text(block_index(other.block, worker_.grid().grid)) + ", at " +
         places_.text(other.place);
}

void Observer::fail(std::uint32_t place, const std::string& what) {
  worker_.abandon(std::make_exception_ptr(
      std::runtime_error(worker_.message(places_.text(place), "it " + what))));
}

void Observer::fail_order(const Memory& memory, std::size_t offset) {
  const char* byte = static_cast<const char*>(memory.begin) + offset;
  const Stamp write = checker_->last_write(reinterpret_cast<std::uintptr_t>(byte));
  throw std::runtime_error("kernel " + worker_.grid().kernel + ", block " +
                           emulator::text(block_index(write.block, worker_.grid().grid)) +
                           ", thread " + emulator::text(worker_.thread(write.thread).index) + ", " +
                           places_.text(write.place) + ": what it writes to " + name(byte, 1) +
                           " depends on the order of the blocks");
}

// ---- Running ----

namespace {

using Bytes = std::vector<char>;

std::vector<Bytes> contents(const std::vector<Memory>& known) {
  std::vector<Bytes> all;
  for (const Memory& memory : known) {
    const auto* begin = static_cast<const char*>(memory.begin);
    all.emplace_back(begin, begin + (memory.writable ? memory.bytes : 0));
  }
  return all;
}

void restore(const std::vector<Memory>& known, const std::vector<Bytes>& before) {
  for (std::size_t i = 0; i < known.size(); ++i) {
    std::memcpy(const_cast<void*>(known[i].begin), before[i].data(), before[i].size());
  }
}

std::vector<std::int64_t> all_blocks(const Grid& grid) {
  std::vector<std::int64_t> blocks(std::int64_t{grid.grid.x} * grid.grid.y * grid.grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  return blocks;
}

void compare(Observer& by, const std::vector<Memory>& known, const std::vector<Bytes>& expected) {
  for (std::size_t i = 0; i < known.size(); ++i) {
    const auto* actual = static_cast<const char*>(known[i].begin);
    const auto differs = std::mismatch(expected[i].begin(), expected[i].end(), actual);
    if (differs.first == expected[i].end()) continue;
    by.fail_order(known[i], static_cast<std::size_t>(differs.first - expected[i].begin()));
  }
}

}  // namespace

void run_observed(const Grid& grid, Observation what) {
  Worker& worker = Worker::of_this_thread();
  const std::vector<Memory> known = KnownMemory::all();
  std::vector<std::int64_t> blocks = all_blocks(grid);
  const std::vector<Bytes> before = what.check ? contents(known) : std::vector<Bytes>();

  const auto first = std::make_unique<Observer>(worker, what, known);
  worker.run_observed(grid, blocks, *first);
  if (what.profile) {
    Counters counters = first->counters();
    counters[Count::launches] = 1;
    add_counters(grid.kernel, counters);
  }
  if (!first->used_global_atomics() || known.empty() || blocks.size() < 2) return;

  const std::vector<Bytes> result = contents(known);
  restore(known, before);
  std::reverse(blocks.begin(), blocks.end());
  const auto second = std::make_unique<Observer>(worker, Observation{true, false}, known);
  worker.run_observed(grid, blocks, *second);
  compare(*second, known, result);
}

}  // namespace cnnkernels::emulator
