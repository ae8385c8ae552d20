#include "threads.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "../parallel.h"

namespace cnnkernels {
namespace {

std::atomic<int> most_threads{std::max(1, static_cast<int>(std::thread::hardware_concurrency()))};

}  // namespace

void set_thread_count(int count) { most_threads = count; }

int thread_count() { return most_threads; }

// Threads are begun and ended in each call: what little that costs, the emulator takes longer.
void parallel_ranges(int64_t count, int64_t grain, RangeFunction function, void* context) {
  const int64_t ranges = std::min<int64_t>(thread_count(), (count + grain - 1) / grain);
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < ranges; ++i) {
    threads.emplace_back(function, context, count * i / ranges, count * (i + 1) / ranges);
  }
  if (count > 0) function(context, 0, count / ranges);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace cnnkernels
