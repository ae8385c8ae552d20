// A fiber: a stack of its own and a place on it where execution goes on when someone switches
// to it. Fibers of one OS thread take turns by their own will; they never leave that thread.
#pragma once

#include <cstddef>

#include "sanitizer.h"

#if !defined(__x86_64__) || defined(CNNKERNELS_UCONTEXT_FIBERS)
#define CNNKERNELS_UCONTEXT
#include <ucontext.h>
#endif

namespace cnnkernels::emulator {

class Fiber {
 public:
  // The OS thread's own stack; it becomes resumable by switching away from it.
  Fiber() = default;

  // A new stack. Stacks whose `color` differs begin at different cache sets: many fibers that
  // all use the top of a page-aligned stack would evict each other.
  Fiber(std::size_t stack_bytes, unsigned color);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber calls entry() on an emptied stack, whatever it did before.
  // entry() must neither return nor let an exception out.
  void reset(void (*entry)());

  // Is this address on the fiber's stack?
  bool holds(const void* address) const {
    const auto* at = static_cast<const char*>(address);
    return at >= mapping_ && at < mapping_ + mapping_bytes_;
  }

  // Leaves `from`, the running fiber, and goes on in `to`; returns when someone switches back.
  static void switch_between(Fiber& from, Fiber& to);

 private:
  void begin_with(void (*entry)());
  static void jump(Fiber& from, Fiber& to);

  char* mapping_ = nullptr;  // guard page, then the stack
  std::size_t mapping_bytes_ = 0;
  char* top_ = nullptr;
  sanitizer::Stack stack_;
#ifdef CNNKERNELS_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace cnnkernels::emulator
