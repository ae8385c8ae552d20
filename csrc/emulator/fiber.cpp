#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <new>

namespace cnnkernels::emulator {
namespace {

// Linux lets a process have 65,530 mappings (vm.max_map_count) and a guard page costs two.
// Beyond this many, stacks go without, so that large machines still work.
constexpr int kMaxGuardPages = 16384;
std::atomic<int> guard_pages{0};

constexpr unsigned kCacheLine = 64;
constexpr unsigned kColors = 64;

}  // namespace

Fiber::Fiber(std::size_t stack_bytes, unsigned color) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  mapping_bytes_ = stack_bytes + kColors * kCacheLine + page;
  void* mapping = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char*>(mapping);
  if (guard_pages.fetch_add(1) < kMaxGuardPages) mprotect(mapping_, page, PROT_NONE);
  top_ = mapping_ + mapping_bytes_ - (color % kColors) * kCacheLine;
  stack_.place(mapping_ + page, static_cast<std::size_t>(top_ - mapping_) - page);
}

Fiber::~Fiber() {
  if (mapping_ == nullptr) return;
  stack_.clear();
  guard_pages.fetch_sub(1);
  munmap(mapping_, mapping_bytes_);
}

void Fiber::reset(void (*entry)()) {
  stack_.clear();
  begin_with(stack_.announced(entry));
}

void Fiber::switch_between(Fiber& from, Fiber& to) {
  sanitizer::Stack::leave(from.stack_, to.stack_);
  jump(from, to);
  from.stack_.arrive();
}

#ifdef CNNKERNELS_UCONTEXT

void Fiber::begin_with(void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = mapping_;
  context_.uc_stack.ss_size = static_cast<std::size_t>(top_ - mapping_);
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fiber::jump(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }

#else

// A suspended fiber keeps, from its stack pointer up, what the System V ABI asks a function to
// preserve: MXCSR and the x87 control word, r15, r14, r13, r12, rbx, rbp, the return address.
struct SavedFrame {
  std::uint32_t mxcsr;
  std::uint16_t x87_control;
  std::uint16_t unused;
  void* registers[6];
  void (*return_address)();
};

extern "C" void cnnkernels_switch_stack(void** save, void* load);
extern "C" void cnnkernels_start_fiber();

// The start takes the entry function from rbx. It is the outermost frame: the return address is
// marked undefined, so that unwinders and debuggers stop there.
asm(R"(
.text
.p2align 4
.globl cnnkernels_switch_stack
.hidden cnnkernels_switch_stack
.type cnnkernels_switch_stack, @function
cnnkernels_switch_stack:
  .cfi_startproc
  pushq %rbp
  .cfi_adjust_cfa_offset 8
  pushq %rbx
  .cfi_adjust_cfa_offset 8
  pushq %r12
  .cfi_adjust_cfa_offset 8
  pushq %r13
  .cfi_adjust_cfa_offset 8
  pushq %r14
  .cfi_adjust_cfa_offset 8
  pushq %r15
  .cfi_adjust_cfa_offset 8
  subq $8, %rsp
  .cfi_adjust_cfa_offset 8
  stmxcsr (%rsp)
  fnstcw 4(%rsp)
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  ldmxcsr (%rsp)
  fldcw 4(%rsp)
  addq $8, %rsp
  .cfi_adjust_cfa_offset -8
  popq %r15
  .cfi_adjust_cfa_offset -8
  popq %r14
  .cfi_adjust_cfa_offset -8
  popq %r13
  .cfi_adjust_cfa_offset -8
  popq %r12
  .cfi_adjust_cfa_offset -8
  popq %rbx
  .cfi_adjust_cfa_offset -8
  popq %rbp
  .cfi_adjust_cfa_offset -8
  ret
  .cfi_endproc
.size cnnkernels_switch_stack, .-cnnkernels_switch_stack

.p2align 4
.globl cnnkernels_start_fiber
.hidden cnnkernels_start_fiber
.type cnnkernels_start_fiber, @function
cnnkernels_start_fiber:
  .cfi_startproc
  .cfi_undefined rip
  call *%rbx
  ud2
  .cfi_endproc
.size cnnkernels_start_fiber, .-cnnkernels_start_fiber
)");

void Fiber::begin_with(void (*entry)()) {
  constexpr int kRbx = 4;
  SavedFrame frame = {};
  asm volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(frame.mxcsr), "=m"(frame.x87_control));
  frame.registers[kRbx] = reinterpret_cast<void*>(entry);
  frame.return_address = cnnkernels_start_fiber;
  // top_ is a multiple of 16, and so is the stack pointer once the frame is popped.
  auto* saved = reinterpret_cast<SavedFrame*>(top_) - 1;
  *saved = frame;
  stack_pointer_ = saved;
}

void Fiber::jump(Fiber& from, Fiber& to) {
  cnnkernels_switch_stack(&from.stack_pointer_, to.stack_pointer_);
}

#endif

}  // namespace cnnkernels::emulator
