#include "threads.h"

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "../../csrc/parallel.h"

namespace cnnkernels {
namespace {

struct Task {
  RangeFunction function;
  void* context;
  int64_t count, ranges;

  void run(int64_t range) const {
    if (range < ranges) function(context, count * range / ranges, count * (range + 1) / ranges);
  }
};

// A semaphore.
class Signal {
 public:
  void give() {
    const std::lock_guard lock(mutex_);
    ++count_;
    given_.notify_one();
  }
  void take() {
    std::unique_lock lock(mutex_);
    given_.wait(lock, [&] { return count_ > 0; });
    --count_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable given_;
  int count_ = 0;
};

// Threads that live as long as the program: the emulator keeps what it needs from launch to
// launch. Each has signals of its own, so that from the beginning of its range to the end nothing
// orders it with another, however late it wakes: a race is found in every run, or in none.
class Pool {
 public:
  ~Pool() {
    task_ = {};
    for (const auto& helper : helpers_) {
      helper->begin.give();
      helper->thread.join();
    }
  }

  void start(int count) {
    for (int range = 1; range < count; ++range) {
      helpers_.push_back(std::make_unique<Helper>());
      helpers_.back()->thread =
          std::thread([this, helper = helpers_.back().get(), range] { serve(*helper, range); });
    }
  }

  int size() const { return static_cast<int>(helpers_.size()) + 1; }

  void run(const Task& task) {
    task_ = task;
    for (const auto& helper : helpers_) helper->begin.give();
    task.run(0);
    for (const auto& helper : helpers_) helper->done.take();
  }

 private:
  struct Helper {
    Signal begin, done;
    std::thread thread;
  };

  // A task without a function is the last one.
  void serve(Helper& self, int64_t range) {
    for (;;) {
      self.begin.take();
      if (task_.function == nullptr) return;
      task_.run(range);
      self.done.give();
    }
  }

  Task task_ = {};
  std::vector<std::unique_ptr<Helper>> helpers_;
};

Pool pool;

}  // namespace

void start_threads(int count) { pool.start(count); }

int thread_count() { return pool.size(); }

void parallel_ranges(int64_t count, int64_t, RangeFunction function, void* context) {
  if (count > 0) pool.run({function, context, count, std::min<int64_t>(count, pool.size())});
}

}  // namespace cnnkernels
