// One OS thread's shared memory: the dynamic buffer, then the static arrays in the order in
// which the kernel reaches them, each between two redzones. The layout is kept from block to
// block of a launch.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "emulator.h"
#include "sanitizer.h"

namespace cnnkernels::emulator {

constexpr std::size_t kMaxSharedOfAll = 227 << 10;  // of the architectures in emulator.cpp

class Arena {
 public:
  void begin_launch(std::size_t dynamic_bytes);
  void begin_block();

  void* dynamic() const { return arrays_.front().begin; }
  std::size_t static_bytes() const { return static_bytes_; }
  std::size_t bytes() const { return static_bytes_ + arrays_.front().bytes; }

  // Null where the array has no place yet.
  void* find(const SharedArray& key) const;

  // Null where there is no room.
  void* place(const SharedArray& key);

  // Is any part of the arena, redzones included, at this address?
  bool holds(const void* address) const {
    const auto* at = static_cast<const std::byte*>(address);
    return at >= memory_.get() && at < memory_.get() + kCapacity;
  }

  // Do all of these bytes lie in one array?
  bool covers(const void* address, std::size_t bytes) const {
    return array_of(address, bytes) != nullptr;
  }

  // The array that all of [address, address + bytes) lies in, as "tile + 12 bytes"; or "".
  std::string name(const void* address, std::size_t bytes) const;

  // Where a byte outside of the arrays lies: "behind tile".
  std::string name_outside(const void* address) const;

  // Where something was first written outside of the arrays, or "".
  std::string overrun() const;

 private:
  struct Placed {
    const SharedArray* key;
    std::size_t bytes;
    std::byte* begin = nullptr;
  };

  const Placed* array_of(const void* address, std::size_t bytes) const;

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

  static std::byte redzone_byte(const std::byte* at);
  static const std::byte* find_damage(const std::byte* begin, const std::byte* end);
  static std::string name_place(const std::byte* at, const Placed* before, const Placed* after);
  void append_redzone();
  void* append(Placed array);

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

}  // namespace cnnkernels::emulator
