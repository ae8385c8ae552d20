// What g++ and clang++ call from code compiled with -fsanitize=thread, before each load and store
// and around each function, and with -fsanitize-coverage=trace-pc, in each basic block. The
// emulated kernels are compiled a second time with these; no sanitizer's runtime is linked, the
// calls end here. (Compilers make them for any code, so that a kernel needs no wrappers around
// its pointers.)
#include <cstddef>
#include <cstdint>

#include "observer.h"

namespace cnnkernels::emulator {
namespace {

void tell(const void* address, std::size_t bytes, Access kind, void* return_address) {
  if (observer == nullptr) return;
  observer->access(address, bytes, kind, reinterpret_cast<std::uintptr_t>(return_address));
}

Profiler* profiler() { return observer == nullptr ? nullptr : observer->profiler(); }

}  // namespace
}  // namespace cnnkernels::emulator

using cnnkernels::emulator::Access;
using cnnkernels::emulator::profiler;
using cnnkernels::emulator::tell;

#pragma GCC visibility push(hidden)
extern "C" {

void __tsan_read1(void* at) { tell(at, 1, Access::read, __builtin_return_address(0)); }
void __tsan_read2(void* at) { tell(at, 2, Access::read, __builtin_return_address(0)); }
void __tsan_read4(void* at) { tell(at, 4, Access::read, __builtin_return_address(0)); }
void __tsan_read8(void* at) { tell(at, 8, Access::read, __builtin_return_address(0)); }
void __tsan_read16(void* at) { tell(at, 16, Access::read, __builtin_return_address(0)); }
void __tsan_unaligned_read2(void* at) { tell(at, 2, Access::read, __builtin_return_address(0)); }
void __tsan_unaligned_read4(void* at) { tell(at, 4, Access::read, __builtin_return_address(0)); }
void __tsan_unaligned_read8(void* at) { tell(at, 8, Access::read, __builtin_return_address(0)); }
void __tsan_unaligned_read16(void* at) { tell(at, 16, Access::read, __builtin_return_address(0)); }
void __tsan_write1(void* at) { tell(at, 1, Access::write, __builtin_return_address(0)); }
void __tsan_write2(void* at) { tell(at, 2, Access::write, __builtin_return_address(0)); }
void __tsan_write4(void* at) { tell(at, 4, Access::write, __builtin_return_address(0)); }
void __tsan_write8(void* at) { tell(at, 8, Access::write, __builtin_return_address(0)); }
void __tsan_write16(void* at) { tell(at, 16, Access::write, __builtin_return_address(0)); }
void __tsan_unaligned_write2(void* at) { tell(at, 2, Access::write, __builtin_return_address(0)); }
void __tsan_unaligned_write4(void* at) { tell(at, 4, Access::write, __builtin_return_address(0)); }
void __tsan_unaligned_write8(void* at) { tell(at, 8, Access::write, __builtin_return_address(0)); }
void __tsan_unaligned_write16(void* at) {
  tell(at, 16, Access::write, __builtin_return_address(0));
}

void __tsan_read_range(void* at, std::size_t bytes) {
  tell(at, bytes, Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* at, std::size_t bytes) {
  tell(at, bytes, Access::write, __builtin_return_address(0));
}

void __tsan_func_entry(void* caller) {
  if (auto* by = profiler()) by->enter_function(reinterpret_cast<std::uintptr_t>(caller));
}
void __tsan_func_exit() {
  if (auto* by = profiler()) by->leave_function();
}
void __sanitizer_cov_trace_pc() {
  auto* by = profiler();
  if (by) by->enter_code(reinterpret_cast<std::uintptr_t>(__builtin_return_address(0)));
}

void __tsan_init() {}
}
#pragma GCC visibility pop
