// Threads for the CPU kernels and the emulator. Who provides them is decided at link time:
// the extension hands on to torch's own pool (threads.cpp, so torch.set_num_threads is obeyed), a
// stand-alone program links standalone/threads.cpp or brings its own two functions.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

namespace cnnkernels {

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

// Calls function(context, begin, end) on disjoint ranges that cover [0, count), of `grain`
// items or more, on several threads; returns when all are done. The function must not throw.
void parallel_ranges(int64_t count, int64_t grain, RangeFunction function, void* context);

// How many threads parallel_ranges uses at most.
int thread_count();

// Whether this thread is at work on a range of parallel_for.
inline thread_local bool in_parallel = false;

// The same for a callable body(begin, end) that may throw: ranges that have not yet begun are
// skipped, and the first exception is rethrown here, on the caller's thread. Within a body, another
// loop runs at once, on the body's thread.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (in_parallel) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  struct Context {
    const Body& body;
    std::atomic<bool> failed;
    std::exception_ptr error;
  } context{body, {false}, nullptr};
  parallel_ranges(
      count, grain,
      [](void* opaque, int64_t begin, int64_t end) {
        auto& shared = *static_cast<Context*>(opaque);
        if (shared.failed.load(std::memory_order_relaxed)) return;
        in_parallel = true;
        try {
          shared.body(begin, end);
        } catch (...) {
          if (!shared.failed.exchange(true)) shared.error = std::current_exception();
        }
        in_parallel = false;
      },
      &context);
  if (context.error) std::rethrow_exception(context.error);
}

}  // namespace cnnkernels
