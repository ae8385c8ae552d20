// Memory accesses that the emulator carries out for a kernel: atomics, vectors, matrix rows. Each
// is reported as the one access that it is on a GPU, and must be aligned to its size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>

#include "emulator.h"

namespace cnnkernels::emulator {

// Of accesses that cannot be told where they stand: an assignment operator takes no more parameters
// than the right-hand side.
inline constexpr SourceLine kUnknownLine = {"", 0};

[[noreturn, gnu::cold]] inline void fail_misaligned(const void* address, std::size_t bytes,
                                                    Access kind, SourceLine line) {
  constexpr const char* kNames[] = {"read", "write", "atomic operation"};
  char digits[32];
  std::snprintf(digits, sizeof digits, "%p", address);
  const std::string size = std::to_string(bytes);
  fail("a misaligned " + std::string(kNames[static_cast<int>(kind)]) + " of " + size +
           " bytes at " + digits + ", which is no multiple of " + size,
       line);
}

template <std::size_t kBytes>
[[gnu::always_inline]] inline void check_aligned(const void* address, Access kind,
                                                 SourceLine line) {
  if (reinterpret_cast<std::uintptr_t>(address) % kBytes != 0) {
    fail_misaligned(address, kBytes, kind, line);
  }
}

// To be called before each such access.
template <std::size_t kBytes>
void touch(const void* address, Access kind, SourceLine line) {
  check_aligned<kBytes>(address, kind, line);
  access(address, kBytes, kind, line);
}

// The functions that access memory after touch() has told of it are no_sanitize_thread, so that
// instrumented code does not report the access once more, in parts; and no_sanitize_coverage, since
// without thread's calls their code would be taken for the caller's, and the call for the turn of a
// loop. Through void*, the compiler has no alignment to rely on.
template <std::size_t kBytes>
[[gnu::no_sanitize_thread, gnu::no_sanitize_coverage]] inline void copy_unseen(void* to,
                                                                               const void* from) {
  std::memcpy(to, from, kBytes);
}

// The unsigned integer that has the size of T.
template <class T>
using Bits = std::conditional_t<
    sizeof(T) == 8, std::uint64_t,
    std::conditional_t<sizeof(T) == 4, std::uint32_t,
                       std::conditional_t<sizeof(T) == 2, std::uint16_t, std::uint8_t>>>;

// The same bits as another type.
template <class To, class From>
To reinterpret_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), sizeof to);
  return to;
}

// As a parameter: what is passed converts to T, which other parameters determine.
template <class T>
struct OperandOf {
  using type = T;
};

template <class T>
using Operand = typename OperandOf<T>::type;

template <class T, class... Types>
inline constexpr bool kIsOneOf = (std::is_same_v<T, Types> || ...);

}  // namespace cnnkernels::emulator
