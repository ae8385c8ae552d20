// What sanitizers must be told to follow code that changes stacks, and threads that are none of the
// operating system's. Without a sanitizer all of this is empty.
//
// A build for a sanitizer defines CNNKERNELS_ASAN or CNNKERNELS_TSAN. The compiler's own macros
// would not do: kernels may be instrumented for another runtime than the sanitizer's.
//
// TSan sees one thread per CUDA thread, and the OS thread. Only kernels are to be instrumented:
// the emulator's own code, also WarpOperation::complete, counts as the OS thread's and may read
// and write anything. An operation that reads or writes memory for a lane has to do so in the lane,
// before or after the rendezvous, if races with it are to be found.
#pragma once

#include <cstddef>

#ifdef CNNKERNELS_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef CNNKERNELS_TSAN
#include <sanitizer/tsan_interface.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <vector>

// Exported by TSan, declared by none of its headers.
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace cnnkernels::emulator::sanitizer {

#ifdef CNNKERNELS_ASAN

// From here on no instrumented code may touch these bytes, or may again.
inline void poison(const void* begin, std::size_t bytes) {
  __asan_poison_memory_region(begin, bytes);
}
inline void unpoison(const void* begin, std::size_t bytes) {
  __asan_unpoison_memory_region(begin, bytes);
}

// The stack of a fiber.
class Stack {
 public:
  // To be called for every stack but the OS thread's, of which ASan knows.
  void place(const void* bottom, std::size_t bytes) {
    bottom_ = bottom;
    bytes_ = bytes;
  }

  // Lifts what the frames that execution left this stack from have poisoned: nobody returned
  // from them.
  void clear() {
    if (left_at_ != nullptr) unpoison(left_at_, static_cast<std::size_t>(end() - left_at_));
    left_at_ = nullptr;
  }

  // To be started in place of entry() on this stack, once.
  void (*announced(void (*entry)()))() {
    entry_ = entry;
    fake_frames_ = nullptr;
    return [] {
      arriving->arrive();
      arriving->entry_();
    };
  }

  // Before and after execution goes from one stack to another.
  static void leave(Stack& from, Stack& to) {
    // Well below all frames that have something to poison.
    constexpr std::ptrdiff_t kMargin = 512;
    from.left_at_ = static_cast<const char*>(__builtin_frame_address(0)) - kMargin;
    leaving = &from;
    arriving = &to;
    __sanitizer_start_switch_fiber(&from.fake_frames_, to.bottom_, to.bytes_);
  }
  void arrive() {
    __sanitizer_finish_switch_fiber(fake_frames_, &leaving->bottom_, &leaving->bytes_);
  }

 private:
  static inline thread_local Stack* leaving = nullptr;
  static inline thread_local Stack* arriving = nullptr;

  const char* end() const { return static_cast<const char*>(bottom_) + bytes_; }

  const void* bottom_ = nullptr;
  std::size_t bytes_ = 0;
  const char* left_at_ = nullptr;
  void* fake_frames_ = nullptr;
  void (*entry_)() = nullptr;
};

#else

inline void poison(const void*, std::size_t) {}
inline void unpoison(const void*, std::size_t) {}

class Stack {
 public:
  void place(const void*, std::size_t) {}
  void clear() {}
  void (*announced(void (*entry)()))() { return entry; }
  static void leave(Stack&, Stack&) {}
  void arrive() {}
};

#endif

#ifdef CNNKERNELS_TSAN

// A stack that one CUDA thread has left and another uses would look like a race.
constexpr bool kThreadsShareStacks = false;

// The CUDA threads of the block that runs on this OS thread.
class Threads {
 public:
  Threads() = default;
  ~Threads() { destroy(); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  // What this OS thread did so far happens before all that the block's threads do.
  void begin_block(unsigned count) {
    own_ = __tsan_get_current_fiber();
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    while (threads_.size() < count) {
      threads_.push_back(__tsan_create_fiber(0));
      const std::string name = "CUDA thread " + std::to_string(threads_.size() - 1);
      __tsan_set_fiber_name(threads_.back(), name.c_str());
    }
    count_ = count;
    __tsan_release(&begin_);
    for_each({0, count_, ~0u}, [&] { __tsan_acquire(&begin_); });
  }

  // What they did happens before all that this OS thread does from here on. If some have not come
  // to their end, the block's threads are not used again.
  void end_block(bool all_ended) {
    for_each({0, count_, ~0u}, [&] { __tsan_release(&end_); });
    __tsan_acquire(&end_);
    if (!all_ended) destroy();
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  }

  // The code that runs from here on is a CUDA thread's, or the emulator's.
  void resume(unsigned thread) {
    running_ = thread;
    switch_to(threads_[thread]);
  }
  void suspend() { switch_to(own_); }
  unsigned running() const { return running_; }

  // What the threads that arrived at a barrier did before happens before all that those who wait
  // there, a mask of lanes for each warp, do once it opens.
  void arrive(unsigned barrier, unsigned thread) {
    for_each({thread, thread + 1, ~0u}, [&] { __tsan_release(&barriers_[barrier]); });
  }
  template <class Waiting>
  void open(unsigned barrier, const Waiting& waiting) {
    for (unsigned first = 0; first < count_; first += 32) {
      for_each({first, std::min(first + 32, count_), waiting[first / 32]},
               [&] { __tsan_acquire(&barriers_[barrier]); });
    }
  }
  // What each of the `lanes` of the warp that begins with thread `first` did happens before all
  // that any of them does next.
  void order_warp(unsigned first, unsigned lanes) { order({first, first + 32, lanes}); }

 private:
  // Those of [begin, end) whose place in their warp is a bit of `lanes`.
  struct Set {
    unsigned begin, end, lanes;

    bool operator<(const Set& other) const {
      return std::tie(begin, end, lanes) < std::tie(other.begin, other.end, other.lanes);
    }
  };

  static void switch_to(void* context) {
    __tsan_switch_to_fiber(context, __tsan_switch_to_fiber_no_sync);
  }

  // Calls body() as each of the threads.
  template <class Body>
  void for_each(const Set& set, const Body& body) {
    for (unsigned i = set.begin; i < set.end; ++i) {
      if (!(set.lanes >> i % 32 & 1)) continue;
      switch_to(threads_[i]);
      body();
    }
    switch_to(own_);
  }

  // Each set of threads has an object of its own: one that others had released too would order
  // these after them.
  void order(const Set& set) {
    char* object = &objects_[set];
    for_each(set, [&] { __tsan_release(object); });
    for_each(set, [&] { __tsan_acquire(object); });
  }

  void destroy() {
    for (void* thread : threads_) __tsan_destroy_fiber(thread);
    threads_.clear();
  }

  void* own_ = nullptr;
  std::vector<void*> threads_;
  unsigned count_ = 0;
  unsigned running_ = 0;
  std::map<Set, char> objects_;
  char begin_ = 0, end_ = 0;
  char barriers_[16] = {};
};

#else

constexpr bool kThreadsShareStacks = true;

class Threads {
 public:
  void begin_block(unsigned) {}
  void end_block(bool) {}
  void resume(unsigned) {}
  void suspend() {}
  unsigned running() const { return 0; }
  void arrive(unsigned, unsigned) {}
  template <class Waiting>
  void open(unsigned, const Waiting&) {}
  void order_warp(unsigned, unsigned) {}
};

#endif

// The scope in which a kernel runs as CUDA thread `thread`.
class KernelScope {
 public:
  KernelScope(Threads& threads, unsigned thread) : threads_(threads) { threads_.resume(thread); }
  ~KernelScope() { threads_.suspend(); }
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;

 private:
  Threads& threads_;
};

// The scope of a call from a kernel into the emulator. Others may run before it ends.
class EmulatorScope {
 public:
  explicit EmulatorScope(Threads& threads) : threads_(threads), caller_(threads.running()) {
    threads_.suspend();
  }
  ~EmulatorScope() { threads_.resume(caller_); }
  EmulatorScope(const EmulatorScope&) = delete;
  EmulatorScope& operator=(const EmulatorScope&) = delete;

 private:
  Threads& threads_;
  unsigned caller_;
};

}  // namespace cnnkernels::emulator::sanitizer
