#include "worker.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "observer.h"

namespace cnnkernels::emulator {

__thread uint3 threadIdx = {0, 0, 0};
__thread uint3 blockIdx = {0, 0, 0};
__thread dim3 blockDim;
__thread dim3 gridDim;

__thread Worker* worker = nullptr;
__thread Observer* observer = nullptr;

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

namespace {

// "" where it is not known.
std::string text(SourceLine line) {
  return line.line == 0 ? "" : std::string(line.file) + ":" + std::to_string(line.line);
}

bool same(SourceLine a, SourceLine b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string describe(const char* operation, unsigned mask) {
  if (mask == 0) return operation;
  char digits[16];
  std::snprintf(digits, sizeof digits, "0x%08x", mask);
  return std::string(operation) + " with mask " + digits;
}

constexpr const char* kBlockSyncs[] = {"__syncthreads", "__syncthreads_count", "__syncthreads_and",
                                       "__syncthreads_or"};

}  // namespace

// The scope in which a worker runs blocks on this OS thread.
class Worker::Running {
 public:
  Running(Worker* by, Observer* observed_by) {
    worker = by;
    observer = by->observer_ = observed_by;
  }
  ~Running() {
    observer = worker->observer_ = nullptr;
    worker = nullptr;
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
};

Worker& Worker::of_this_thread() {
  // On the heap: a library that is loaded late has little room for thread-local data.
  static thread_local const auto instance = std::make_unique<Worker>();
  return *instance;
}

void Worker::run(const Grid& grid, std::int64_t begin, std::int64_t end) {
  const Running running(this, nullptr);
  begin_launch(grid);
  for (std::int64_t block = begin; block < end; ++block) run_block(block);
}

void Worker::run_observed(const Grid& grid, const std::vector<std::int64_t>& blocks, Observer& by) {
  const Running running(this, &by);
  begin_launch(grid);
  for (std::int64_t block : blocks) run_block(block);
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
  if (observer_) observer_->begin_block(linear);
  start_fiber();
  end_block();
}

// Whatever an error left behind in the last block is dropped here.
void Worker::begin_block() {
  for (unsigned i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    thread.exited = false;
    thread.waits_in = nullptr;
    thread.groups = 0;
    if (!thread.copies.empty()) thread.copies.clear();
  }
  for (unsigned w = 0; w * kWarpSize < count_; ++w) {
    const unsigned lanes = std::min<unsigned>(count_ - w * kWarpSize, kWarpSize);
    warps_[w].lanes = ~0u >> (kWarpSize - lanes);
    warps_[w].exited = 0;
    warps_[w].pending.clear();
  }
  for (Barrier& barrier : barriers_) barrier.arrived = 0;
  next_ = exited_ = ready_begin_ = ready_end_ = 0;
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
  if (observer_) observer_->begin_thread();
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
  if (observer_ && warp.exited == warp.lanes) observer_->end_warp(index / kWarpSize);
}

void Worker::abandon(std::exception_ptr error) {
  error_ = std::move(error);
  switch_to(scheduler_);
  std::terminate();  // nobody resumes a fiber of a block that has failed
}

// ---- Waiting ----

void Worker::make_ready(Thread& thread) {
  thread.waits_in = nullptr;
  ready_[ready_end_++ % kMaxThreads] = &thread;
}

void Worker::wait(const char* operation, unsigned mask, SourceLine line) {
  running_->waits_in = operation;
  running_->mask = mask;
  running_->line = line;
  if (has_ready()) {
    resume_ready();
  } else if (has_unstarted()) {
    start_fiber();
  } else {
    fail_deadlock();
  }
}

// ---- Barriers ----

int Worker::sync_block(BlockSync kind, bool predicate, SourceLine line) {
  const char* name = kBlockSyncs[static_cast<int>(kind)];
  const Barrier& barrier = arrive(0, name, count_, true, predicate, line);
  if (barrier.name != name || !same(barrier.line, line)) {
    fail(line, std::string("it comes to ") + name + ", while others wait in " + barrier.name +
                   " at " + text(barrier.line));
  }
  if (barrier.arrived < count_) {
    running_->barrier = 0;
    wait(name, 0, line);
  } else {
    open(0);
  }
  const unsigned yes = static_cast<unsigned>(running_->vote);
  return static_cast<int>(kind == BlockSync::all   ? yes == count_
                          : kind == BlockSync::any ? yes != 0
                                                   : yes);
}

void Worker::named_barrier(unsigned number, unsigned threads, bool wait_there, SourceLine line) {
  const char* name = wait_there ? "barrier.sync" : "barrier.arrive";
  if (number >= kNamedBarriers) {
    fail(line, std::string(name) + ": there is no barrier " + std::to_string(number));
  }
  if (threads == 0 || threads % kWarpSize != 0 ||
      threads > (count_ + kWarpSize - 1) / kWarpSize * kWarpSize) {
    fail(line, std::string(name) + " of " + std::to_string(threads) +
                   " threads; it must be whole warps of the block");
  }
  const Barrier& barrier = arrive(number, name, threads, wait_there, false, line);
  if (barrier.expected != threads) {
    fail(line, std::string(name) + " of " + std::to_string(threads) +
                   " threads, while others, at " + text(barrier.line) + ", wait for " +
                   std::to_string(barrier.expected));
  }
  running_->barrier = number;
  if (barrier.arrived == barrier.expected) {
    open(number);
  } else if (wait_there) {
    wait(name, 0, line);
  }
}

Barrier& Worker::arrive(unsigned number, const char* name, unsigned expected, bool waits,
                        bool predicate, SourceLine line) {
  Barrier& barrier = barriers_[number];
  if (barrier.arrived == 0) barrier = {name, line, expected, 0, 0, {}, {}};
  const unsigned index = index_of(*running_), warp = index / kWarpSize;
  ++barrier.arrived;
  barrier.yes += predicate;
  barrier.lanes[warp] |= 1u << index % kWarpSize;
  if (waits) barrier.waiting[warp] |= 1u << index % kWarpSize;
  sanitizer_threads_.arrive(number, index);
  if (observer_ && barrier.lanes[warp] == warps_[warp].lanes) observer_->arrive(number, warp);
  return barrier;
}

// All who wait at the barrier become ready but the running thread, which goes on by itself.
void Worker::open(unsigned number) {
  Barrier& barrier = barriers_[number];
  for (unsigned w = 0; w * kWarpSize < count_; ++w) {
    if (barrier.lanes[w] != 0 && barrier.lanes[w] != warps_[w].lanes) {
      fail(barrier.line, std::string(barrier.name) + " opens while only a part of a warp has come");
    }
  }
  running_->vote = static_cast<int>(barrier.yes);
  for (unsigned i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    const bool waits = thread.waits_in != nullptr && thread.mask == 0 && thread.barrier == number;
    if (!waits) continue;
    thread.vote = static_cast<int>(barrier.yes);
    make_ready(thread);
  }
  sanitizer_threads_.open(number, barrier.waiting);
  if (observer_) observer_->open(number, barrier);
  barrier.arrived = 0;
}

// ---- Rendezvous of a warp ----

void Worker::warp_rendezvous(const WarpOperation& operation, unsigned mask, void* payload,
                             SourceLine line) {
  const unsigned index = index_of(*running_);
  Warp& warp = warps_[index / kWarpSize];
  const unsigned bit = 1u << index % kWarpSize;
  if (!(mask & bit)) {
    fail(line, describe(operation.name, mask) + ", which lacks the calling lane " +
                   std::to_string(index % kWarpSize));
  }
  const unsigned lanes = mask & warp.lanes & ~warp.exited;
  if (operation.needs_every_lane && lanes != mask) {
    const int lane = __builtin_ctz(mask & ~lanes);
    fail(line, describe(operation.name, mask) + ", which names lane " + std::to_string(lane) +
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
  if (found->missing != 0) return wait(operation.name, mask, line);
  const Rendezvous rendezvous = *found;
  warp.pending.erase(found);
  complete(warp, rendezvous);
}

// All lanes but the running one, which goes on by itself, become ready.
void Worker::complete(Warp& warp, Rendezvous rendezvous) {
  const auto number = static_cast<unsigned>(&warp - warps_.data());
  Thread* threads = &threads_[number * kWarpSize];
  void* payloads[kWarpSize];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(rendezvous.lanes >> lane & 1)) continue;
    payloads[lane] = threads[lane].payload;
    if (&threads[lane] != running_) make_ready(threads[lane]);
  }
  rendezvous.operation->complete(rendezvous.lanes, payloads);
  if (!rendezvous.operation->orders_memory) return;
  sanitizer_threads_.order_warp(number * kWarpSize, rendezvous.lanes);
  if (observer_) observer_->sync_warp(number, rendezvous.lanes);
}

// A lane has exited: those that wait for it go on without it or never will.
void Worker::drop_exited_lane(Warp& warp, unsigned bit) {
  const std::vector<Rendezvous> pending = std::move(warp.pending);
  warp.pending.clear();
  for (Rendezvous rendezvous : pending) {
    if (rendezvous.missing & bit) {
      if (rendezvous.operation->needs_every_lane) {
        throw std::runtime_error(
            message("", "it exits while other lanes wait for it in " +
                            describe(rendezvous.operation->name, rendezvous.mask)));
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

// ---- Shared memory ----

void* Worker::shared_array(const SharedArray& key) {
  if (void* found = arena_.find(key)) return found;
  void* placed = arena_.place(key);
  const std::size_t limit = max_shared_bytes();
  const auto refuse = [&](const std::string& what) {
    throw std::runtime_error(message("", "with " + std::string(key.name) + ", " + what));
  };
  if (arena_.static_bytes() > kMaxStaticShared) {
    refuse(std::to_string(arena_.static_bytes()) + " bytes of static shared memory; at most " +
           std::to_string(kMaxStaticShared) + " are allowed");
  }
  if (arena_.bytes() > limit) {
    refuse(std::to_string(arena_.bytes()) + " bytes of shared memory; at most " +
           std::to_string(limit) + " are allowed");
  }
  if (placed == nullptr) refuse("more shared arrays than the emulator has room for");
  return placed;
}

// The place of a copy reads as NaN until the copy arrives, so that a missing wait shows.
void Worker::copy_async(const AsyncCopy& copy, SourceLine line) {
  const auto misaligned = [&](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % copy.bytes != 0;
  };
  if (copy.bytes != 4 && copy.bytes != 8 && copy.bytes != 16) {
    fail(line, "cp.async of " + std::to_string(copy.bytes) + " bytes; it takes 4, 8 or 16");
  }
  if (misaligned(copy.shared)) fail(line, "cp.async to a misaligned address in shared memory");
  if (misaligned(copy.global)) fail(line, "cp.async from a misaligned address");
  check_shared("cp.async", copy.shared, copy.bytes, line);
  if (copy.valid > copy.bytes) {
    fail(line, "cp.async of " + std::to_string(copy.bytes) + " bytes reads " +
                   std::to_string(copy.valid));
  }
  if (observer_) observer_->begin_copy(copy, line);
  std::memset(copy.shared, 0xFF, copy.bytes);
  running_->copies.push_back(copy);
  running_->copies.back().group = running_->groups;
}

void Worker::commit_copies() { ++running_->groups; }

void Worker::wait_copies(unsigned pending) {
  std::deque<AsyncCopy>& copies = running_->copies;
  while (!copies.empty() && copies.front().group + pending < running_->groups) {
    deliver(copies.front());
    copies.pop_front();
  }
}

void Worker::deliver(AsyncCopy& copy) {
  auto* to = static_cast<std::byte*>(copy.shared);
  std::memcpy(to, copy.global, copy.valid);
  std::memset(to + copy.valid, 0, copy.bytes - copy.valid);
  if (observer_) observer_->end_copy(copy);
}

// ---- Errors ----

std::string Worker::message(const Thread& thread, const std::string& line,
                            const std::string& what) const {
  return "kernel " + grid_->kernel + ", block " + text(blockIdx) + ", thread " +
         text(thread.index) + (line.empty() ? "" : ", " + line) + ": " + what;
}

std::string Worker::message(const std::string& line, const std::string& what) const {
  return message(*running_, line, what);
}

void Worker::fail(const Thread& thread, SourceLine line, const std::string& what) const {
  throw std::runtime_error(message(thread, text(line), what));
}

void Worker::fail(SourceLine line, const std::string& what) const { fail(*running_, line, what); }

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
    const std::string what = thread.exited ? "have exited"
                                           : "wait in " + describe(thread.waits_in, thread.mask) +
                                                 " at " + text(thread.line);
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
  fail(*first, first->line, report);
}

}  // namespace cnnkernels::emulator
