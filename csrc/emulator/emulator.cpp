#include "emulator.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "../parallel.h"
#include "fiber.h"
#include "sanitizer.h"

namespace cnnkernels::emulator {

__thread uint3 threadIdx = {0, 0, 0};
__thread uint3 blockIdx = {0, 0, 0};
__thread dim3 blockDim;
__thread dim3 gridDim;

namespace {

// ---- Limits (CUDA C++ programming guide, "Compute Capabilities") ----

constexpr unsigned kMaxThreads = 1024;
constexpr uint3 kMaxBlock = {1024, 1024, 64};
constexpr uint3 kMaxGrid = {2147483647, 65535, 65535};
constexpr std::size_t kMaxStaticShared = 48 << 10;

struct Architecture {
  int compute_capability;
  std::size_t max_shared;  // static and dynamic, per block
};

constexpr Architecture kArchitectures[] = {
    {70, 96 << 10}, {75, 64 << 10},  {80, 163 << 10},  {86, 99 << 10},
    {89, 99 << 10}, {90, 227 << 10}, {100, 227 << 10}, {120, 99 << 10},
};
constexpr std::size_t kMaxSharedOfAll = 227 << 10;

const Architecture* find_architecture(int compute_capability) {
  for (const Architecture& candidate : kArchitectures) {
    if (candidate.compute_capability == compute_capability) return &candidate;
  }
  throw std::invalid_argument("the emulator knows no sm_" + std::to_string(compute_capability));
}

std::atomic<const Architecture*> architecture{find_architecture(80)};

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

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

// ---- Shared memory ----

// One OS thread's shared memory: the dynamic buffer, then the static arrays in the order in
// which the kernel reaches them, each between two redzones. The layout is kept from block to
// block of a launch.
class Arena {
 public:
  void begin_launch(std::size_t dynamic_bytes) {
    arrays_.clear();
    static_bytes_ = 0;
    end_ = 0;
    sanitizer::poison(memory_.get(), kCapacity);
    append_redzone();
    append({&kDynamic, dynamic_bytes});
  }

  void begin_block() {
    for (const Placed& array : arrays_) std::memset(array.begin, kUninitialised, array.bytes);
  }

  void* dynamic() const { return arrays_.front().begin; }
  std::size_t static_bytes() const { return static_bytes_; }
  std::size_t bytes() const { return static_bytes_ + arrays_.front().bytes; }

  // Null where the array has no place yet.
  void* find(const SharedArray& key) const {
    for (const Placed& array : arrays_) {
      if (array.key == &key) return array.begin;
    }
    return nullptr;
  }

  // Null where there is no room.
  void* place(const SharedArray& key) {
    static_bytes_ += key.bytes;
    return append({&key, key.bytes});
  }

  // Where something was first written outside of the arrays, or "".
  std::string overrun() const {
    const std::byte* zone = memory_.get();
    const Placed* before = nullptr;
    for (const Placed& array : arrays_) {
      if (const std::byte* damage = find_damage(zone, array.begin)) {
        return name_place(damage, before, &array);
      }
      zone = array.begin + array.bytes;
      before = &array;
    }
    const std::byte* damage = find_damage(zone, memory_.get() + end_);
    return damage == nullptr ? "" : name_place(damage, before, nullptr);
  }

 private:
  struct Placed {
    const SharedArray* key;
    std::size_t bytes;
    std::byte* begin = nullptr;
  };

  static constexpr SharedArray kDynamic = {"the dynamic buffer", 0};
  static constexpr std::size_t kAlignment = 16;
  static constexpr std::size_t kRedzone = 256;
  static constexpr std::size_t kMaxArrays = 64;
  static constexpr std::size_t kCapacity =
      kMaxSharedOfAll + (kMaxArrays + 1) * (kRedzone + kAlignment);

  // Both are NaN in every floating-point format, so that a stray read shows; they differ, so
  // that a copied uninitialised value shows in a redzone.
  static constexpr int kUninitialised = 0xFF;
  static constexpr std::byte kRedzoneBytes[2] = {std::byte{0xFD}, std::byte{0x7F}};

  static std::byte redzone_byte(const std::byte* at) {
    return kRedzoneBytes[reinterpret_cast<std::uintptr_t>(at) % 2];
  }

  [[gnu::no_sanitize_address]] static const std::byte* find_damage(const std::byte* begin,
                                                                   const std::byte* end) {
    for (const std::byte* at = begin; at != end; ++at) {
      if (*at != redzone_byte(at)) return at;
    }
    return nullptr;
  }

  // The nearer of the arrays at either side of the redzone; an empty one is nobody's neighbour.
  static std::string name_place(const std::byte* at, const Placed* before, const Placed* after) {
    const bool behind = before != nullptr && before->bytes != 0;
    if (after == nullptr || (behind && at - (before->begin + before->bytes) < after->begin - at)) {
      return std::string("behind ") + before->key->name;
    }
    return std::string("before ") + after->key->name;
  }

  [[gnu::no_sanitize_address]] void append_redzone() {
    std::byte* begin = memory_.get() + end_;
    end_ = (end_ + kRedzone + kAlignment - 1) / kAlignment * kAlignment;
    for (std::byte* at = begin; at != memory_.get() + end_; ++at) {
      *at = redzone_byte(at);
    }
  }

  void* append(Placed array) {
    if (end_ + array.bytes + kRedzone + kAlignment > kCapacity) return nullptr;
    array.begin = memory_.get() + end_;
    sanitizer::unpoison(array.begin, array.bytes);
    std::memset(array.begin, kUninitialised, array.bytes);
    end_ += array.bytes;
    append_redzone();
    arrays_.push_back(array);
    return array.begin;
  }

  struct Free {
    void operator()(std::byte* memory) const {
      ::operator delete[](memory, std::align_val_t{kAlignment});
    }
  };
  std::unique_ptr<std::byte[], Free> memory_{
      static_cast<std::byte*>(::operator new[](kCapacity, std::align_val_t{kAlignment}))};
  std::vector<Placed> arrays_;
  std::size_t static_bytes_ = 0;
  std::size_t end_ = 0;
};

// ---- A block ----

struct Thread {
  uint3 index;
  Fiber* fiber;
  bool exited;
  const char* waits_in;  // the operation, or null
  unsigned mask;         // of that operation, where it is one of a warp
  void* payload;
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

// What one OS thread has to run blocks with, kept from launch to launch.
class Worker {
 public:
  static Worker& of_this_thread();

  // Runs blocks [begin, end) of the grid.
  void run(const Grid&, std::int64_t begin, std::int64_t end);

  void* shared_array(const SharedArray&);
  void* dynamic_shared() { return arena_.dynamic(); }
  void sync_block();
  void warp_rendezvous(const WarpOperation&, unsigned mask, void* payload);
  [[noreturn]] void fail(const Thread&, const std::string& what) const;
  const Thread& running() const { return *running_; }
  sanitizer::Threads& sanitizer_threads() { return sanitizer_threads_; }

 private:
  static constexpr std::size_t kStackBytes = 256 << 10;

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
  void wait(const char* operation, unsigned mask);
  void resume_ready();
  void start_fiber();
  void switch_to(Fiber&);
  void complete(Warp&, Rendezvous);
  [[noreturn]] void fail_deadlock() const;

  unsigned index_of(const Thread& thread) const {
    return static_cast<unsigned>(&thread - threads_.data());
  }

  const Grid* grid_ = nullptr;
  Arena arena_;

  std::array<Thread, kMaxThreads> threads_;
  std::array<Warp, kMaxThreads / kWarpSize> warps_;
  unsigned count_ = 0;    // threads of a block
  unsigned next_ = 0;     // the first that has not begun
  unsigned exited_ = 0;   // how many have
  unsigned arrived_ = 0;  // how many wait in __syncthreads
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

// The worker whose block runs on this OS thread.
__thread Worker* worker = nullptr;

Worker& Worker::of_this_thread() {
  // On the heap: a library that is loaded late has little room for thread-local data.
  static thread_local const auto instance = std::make_unique<Worker>();
  return *instance;
}

void Worker::run(const Grid& grid, std::int64_t begin, std::int64_t end) {
  worker = this;
  begin_launch(grid);
  for (std::int64_t block = begin; block < end; ++block) run_block(block);
}

void Worker::begin_launch(const Grid& grid) {
  grid_ = &grid;
  gridDim = grid.grid;
  blockDim = grid.block;
  count_ = grid.block.x * grid.block.y * grid.block.z;
  uint3 index = {0, 0, 0};
  for (unsigned i = 0; i < count_; ++i) {
    threads_[i].index = index;
    if (++index.x < grid.block.x) continue;
    index.x = 0;
    if (++index.y < grid.block.y) continue;
    index.y = 0;
    ++index.z;
  }
  arena_.begin_launch(grid.dynamic_shared_bytes);
}

void Worker::run_block(std::int64_t linear) {
  const std::int64_t rest = linear / gridDim.x;
  blockIdx = {static_cast<unsigned>(linear % gridDim.x), static_cast<unsigned>(rest % gridDim.y),
              static_cast<unsigned>(rest / gridDim.y)};
  begin_block();
  start_fiber();
  end_block();
}

// Whatever an error left behind in the last block is dropped here.
void Worker::begin_block() {
  for (unsigned i = 0; i < count_; ++i) {
    threads_[i].exited = false;
    threads_[i].waits_in = nullptr;
  }
  for (unsigned w = 0; w * kWarpSize < count_; ++w) {
    const unsigned lanes = std::min<unsigned>(count_ - w * kWarpSize, kWarpSize);
    warps_[w].lanes = ~0u >> (kWarpSize - lanes);
    warps_[w].exited = 0;
    warps_[w].pending.clear();
  }
  next_ = exited_ = arrived_ = ready_begin_ = ready_end_ = 0;
  error_ = nullptr;
  free_fibers_.clear();
  for (const auto& fiber : fibers_) free_fibers_.push_back(fiber.get());
  arena_.begin_block();
  sanitizer_threads_.begin_block(count_);
}

void Worker::end_block() {
  sanitizer_threads_.end_block(exited_ == count_);
  if (error_) std::rethrow_exception(error_);
  if (const std::string place = arena_.overrun(); !place.empty()) {
    throw std::runtime_error("kernel " + grid_->kernel + ", block " + text(blockIdx) +
                             ": shared memory was written outside of its arrays, " + place);
  }
}

// ---- Fibers ----

void Worker::start_fiber() {
  if (free_fibers_.empty()) {
    const auto color = static_cast<unsigned>(fibers_.size());
    fibers_.push_back(std::make_unique<Fiber>(kStackBytes, color));
    free_fibers_.push_back(fibers_.back().get());
  }
  Fiber& fiber = *free_fibers_.back();
  free_fibers_.pop_back();
  fiber.reset(enter_fiber);
  switch_to(fiber);
}

void Worker::switch_to(Fiber& to) {
  Fiber& from = *fiber_;
  fiber_ = &to;
  Fiber::switch_between(from, to);
}

void Worker::resume_ready() {
  running_ = ready_[ready_begin_++ % kMaxThreads];
  threadIdx = running_->index;
  switch_to(*running_->fiber);
}

void Worker::enter_fiber() { worker->run_fiber(); }

// Runs CUDA threads on the current fiber, one after another, as long as none that waited can go
// on. An exception must not leave the fiber; the scheduler rethrows it, and the other fibers of
// the block are never resumed.
void Worker::run_fiber() {
  try {
    do {
      run_next_thread();
    } while (!has_ready() && has_unstarted() && sanitizer::kThreadsShareStacks);
    if (!has_ready() && !has_unstarted() && exited_ != count_) fail_deadlock();
  } catch (...) {
    error_ = std::current_exception();
  }
  if (error_ || exited_ == count_) switch_to(scheduler_);
  if (sanitizer::kThreadsShareStacks) free_fibers_.push_back(fiber_);
  if (!has_ready()) start_fiber();
  resume_ready();
}

void Worker::run_next_thread() {
  running_ = &threads_[next_++];
  running_->fiber = fiber_;
  threadIdx = running_->index;
  {
    const sanitizer::KernelScope scope(sanitizer_threads_, index_of(*running_));
    grid_->run_thread(grid_->arguments);
  }
  exit_thread();
}

void Worker::exit_thread() {
  running_->exited = true;
  ++exited_;
  const unsigned index = index_of(*running_);
  Warp& warp = warps_[index / kWarpSize];
  const unsigned bit = 1u << index % kWarpSize;
  warp.exited |= bit;
  if (!warp.pending.empty()) drop_exited_lane(warp, bit);
}

// ---- Waiting ----

void Worker::make_ready(Thread& thread) {
  thread.waits_in = nullptr;
  ready_[ready_end_++ % kMaxThreads] = &thread;
}

void Worker::wait(const char* operation, unsigned mask) {
  running_->waits_in = operation;
  running_->mask = mask;
  if (has_ready()) {
    resume_ready();
  } else if (has_unstarted()) {
    start_fiber();
  } else {
    fail_deadlock();
  }
}

void Worker::sync_block() {
  if (++arrived_ < count_) return wait("__syncthreads", 0);
  arrived_ = 0;
  for (unsigned i = 0; i < count_; ++i) {
    if (&threads_[i] != running_) make_ready(threads_[i]);
  }
  sanitizer_threads_.order_block();
}

std::string describe(const char* operation, unsigned mask) {
  if (mask == 0) return operation;
  char digits[16];
  std::snprintf(digits, sizeof digits, "0x%08x", mask);
  return std::string(operation) + " with mask " + digits;
}

void Worker::warp_rendezvous(const WarpOperation& operation, unsigned mask, void* payload) {
  const unsigned index = index_of(*running_);
  Warp& warp = warps_[index / kWarpSize];
  const unsigned bit = 1u << index % kWarpSize;
  if (!(mask & bit)) {
    fail(*running_, describe(operation.name, mask) + ", which lacks the calling lane " +
                        std::to_string(index % kWarpSize));
  }
  const unsigned lanes = mask & warp.lanes & ~warp.exited;
  if (operation.needs_every_lane && lanes != mask) {
    const int lane = __builtin_ctz(mask & ~lanes);
    fail(*running_, describe(operation.name, mask) + ", which names lane " + std::to_string(lane) +
                        (warp.lanes >> lane & 1 ? ": it has exited" : ": the block has no such"));
  }
  auto found = std::find_if(warp.pending.begin(), warp.pending.end(), [&](const Rendezvous& r) {
    return r.operation == &operation && r.mask == mask;
  });
  if (found == warp.pending.end()) {
    found = warp.pending.insert(found, {&operation, mask, lanes, lanes});
  }
  running_->payload = payload;
  found->missing &= ~bit;
  if (found->missing != 0) return wait(operation.name, mask);
  const Rendezvous rendezvous = *found;
  warp.pending.erase(found);
  complete(warp, rendezvous);
}

// All lanes but the running one, which goes on by itself, become ready.
void Worker::complete(Warp& warp, Rendezvous rendezvous) {
  const auto first = static_cast<unsigned>(&warp - warps_.data()) * kWarpSize;
  Thread* threads = &threads_[first];
  void* payloads[kWarpSize];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(rendezvous.lanes >> lane & 1)) continue;
    payloads[lane] = threads[lane].payload;
    if (&threads[lane] != running_) make_ready(threads[lane]);
  }
  rendezvous.operation->complete(rendezvous.lanes, payloads);
  if (rendezvous.operation->orders_memory) sanitizer_threads_.order_warp(first, rendezvous.lanes);
}

// A lane has exited: those that wait for it go on without it or never will.
void Worker::drop_exited_lane(Warp& warp, unsigned bit) {
  const std::vector<Rendezvous> pending = std::move(warp.pending);
  warp.pending.clear();
  for (Rendezvous rendezvous : pending) {
    if (rendezvous.missing & bit) {
      if (rendezvous.operation->needs_every_lane) {
        fail(*running_, "it exits while other lanes wait for it in " +
                            describe(rendezvous.operation->name, rendezvous.mask));
      }
      rendezvous.lanes &= ~bit;
      rendezvous.missing &= ~bit;
    }
    if (rendezvous.missing != 0) {
      warp.pending.push_back(rendezvous);
    } else {
      complete(warp, rendezvous);
    }
  }
}

// ---- Errors ----

void Worker::fail(const Thread& thread, const std::string& what) const {
  throw std::runtime_error("kernel " + grid_->kernel + ", block " + text(blockIdx) + ", thread " +
                           text(thread.index) + ": " + what);
}

// Names the threads that wait at each place, and those that have exited.
void Worker::fail_deadlock() const {
  constexpr int kNamed = 8;
  struct Place {
    std::string what, threads;
    int count;
  };
  std::vector<Place> places;
  const Thread* first = nullptr;
  for (unsigned i = 0; i < count_; ++i) {
    const Thread& thread = threads_[i];
    if (first == nullptr && !thread.exited) first = &thread;
    const std::string what =
        thread.exited ? "have exited" : "wait in " + describe(thread.waits_in, thread.mask);
    auto place = std::find_if(places.begin(), places.end(),
                              [&](const Place& other) { return other.what == what; });
    if (place == places.end()) place = places.insert(place, {what, "", 0});
    if (++place->count <= kNamed) place->threads += " " + text(thread.index);
    if (place->count == kNamed + 1) place->threads += " ...";
  }
  std::string report = "threads wait for others that never come:";
  for (const Place& place : places) {
    report += "\n  " + std::to_string(place.count) + " " + place.what + ":" + place.threads;
  }
  fail(*first, report);
}

void* Worker::shared_array(const SharedArray& key) {
  if (void* found = arena_.find(key)) return found;
  void* placed = arena_.place(key);
  const std::size_t limit = architecture.load()->max_shared;
  if (arena_.static_bytes() > kMaxStaticShared) {
    fail(*running_, std::string("with ") + key.name + ", " + std::to_string(arena_.static_bytes()) +
                        " bytes of static shared memory; at most " +
                        std::to_string(kMaxStaticShared) + " are allowed");
  }
  if (arena_.bytes() > limit) {
    fail(*running_, std::string("with ") + key.name + ", " + std::to_string(arena_.bytes()) +
                        " bytes of shared memory; at most " + std::to_string(limit) +
                        " are allowed");
  }
  if (placed == nullptr) fail(*running_, "more shared arrays than the emulator has room for");
  return placed;
}

}  // namespace

// ---- Interface ----

void run_grid(const Grid& grid) {
  check_limits(grid);
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

void* shared_array(const SharedArray& array) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  return worker->shared_array(array);
}

void* dynamic_shared() { return worker->dynamic_shared(); }

void sync_block(SourceLine) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  worker->sync_block();
}

void warp_rendezvous(const WarpOperation& operation, unsigned mask, void* payload, SourceLine) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  worker->warp_rendezvous(operation, mask, payload);
}

void fail(const std::string& what, SourceLine) {
  const sanitizer::EmulatorScope scope(worker->sanitizer_threads());
  worker->fail(worker->running(), what);
}

}  // namespace cnnkernels::emulator
