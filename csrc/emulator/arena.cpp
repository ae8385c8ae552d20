#include "arena.h"

#include <cstdint>
#include <cstring>

namespace cnnkernels::emulator {

void Arena::begin_launch(std::size_t dynamic_bytes) {
  arrays_.clear();
  static_bytes_ = 0;
  end_ = 0;
  sanitizer::poison(memory_.get(), kCapacity);
  append_redzone();
  append({&kDynamic, dynamic_bytes});
}

void Arena::begin_block() {
  for (const Placed& array : arrays_) std::memset(array.begin, kUninitialised, array.bytes);
}

void* Arena::find(const SharedArray& key) const {
  for (const Placed& array : arrays_) {
    if (array.key == &key) return array.begin;
  }
  return nullptr;
}

void* Arena::place(const SharedArray& key) {
  static_bytes_ += key.bytes;
  return append({&key, key.bytes});
}

const Arena::Placed* Arena::array_of(const void* address, std::size_t bytes) const {
  const auto* at = static_cast<const std::byte*>(address);
  for (const Placed& array : arrays_)
    if (at >= array.begin && at + bytes <= array.begin + array.bytes) return &array;
  return nullptr;
}

std::string Arena::name(const void* address, std::size_t bytes) const {
  const Placed* array = array_of(address, bytes);
  if (array == nullptr) return "";
  const auto offset = static_cast<const std::byte*>(address) - array->begin;
  return std::string(array->key->name) + " + " + std::to_string(offset) + " bytes";
}

std::string Arena::name_outside(const void* address) const {
  const auto* at = static_cast<const std::byte*>(address);
  const Placed* before = nullptr;
  for (const Placed& array : arrays_) {
    if (at < array.begin) return name_place(at, before, &array);
    before = &array;
  }
  return name_place(at, before, nullptr);
}

std::string Arena::overrun() const {
  const std::byte* zone = memory_.get();
  for (const Placed& array : arrays_) {
    if (const std::byte* damage = find_damage(zone, array.begin)) return name_outside(damage);
    zone = array.begin + array.bytes;
  }
  const std::byte* damage = find_damage(zone, memory_.get() + end_);
  return damage == nullptr ? "" : name_outside(damage);
}

std::byte Arena::redzone_byte(const std::byte* at) {
  return kRedzoneBytes[reinterpret_cast<std::uintptr_t>(at) % 2];
}

[[gnu::no_sanitize_address]] const std::byte* Arena::find_damage(const std::byte* begin,
                                                                 const std::byte* end) {
  for (const std::byte* at = begin; at != end; ++at) {
    if (*at != redzone_byte(at)) return at;
  }
  return nullptr;
}

// The nearer of the arrays at either side of the redzone; an empty one is nobody's neighbour.
std::string Arena::name_place(const std::byte* at, const Placed* before, const Placed* after) {
  const bool behind = before != nullptr && before->bytes != 0;
  if (after == nullptr || (behind && at - (before->begin + before->bytes) < after->begin - at)) {
    return std::string("behind ") + before->key->name;
  }
  return std::string("before ") + after->key->name;
}

[[gnu::no_sanitize_address]] void Arena::append_redzone() {
  std::byte* begin = memory_.get() + end_;
  end_ = (end_ + kRedzone + kAlignment - 1) / kAlignment * kAlignment;
  for (std::byte* at = begin; at != memory_.get() + end_; ++at) *at = redzone_byte(at);
}

void* Arena::append(Placed array) {
  if (end_ + array.bytes + kRedzone + kAlignment > kCapacity) return nullptr;
  array.begin = memory_.get() + end_;
  sanitizer::unpoison(array.begin, array.bytes);
  std::memset(array.begin, kUninitialised, array.bytes);
  end_ += array.bytes;
  append_redzone();
  arrays_.push_back(array);
  return array.begin;
}

}  // namespace cnnkernels::emulator
