// The 16-bit floating-point types for code without CUDA: storage, and conversions to and from
// float32 that round to nearest, ties to even. Branch-free, so that loops of them vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace cnnkernels {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr uint32_t kFloatInfinity = 0x7f800000;

// IEEE binary16: 5 bits of exponent, 10 of mantissa.
struct Float16 {
  uint16_t bits;

  Float16() = default;
  explicit Float16(float value) {
    constexpr uint32_t kRebias = (127 - 15) << 23, kLeastNormal = 0x38800000;  // 2^-14
    const uint32_t sign = bits_of(value) >> 16 & 0x8000, size = bits_of(value) & 0x7fffffff;
    const uint32_t rounded = (size + 0xfff + (size >> 13 & 1) - kRebias) >> 13;
    const uint32_t normal = rounded < 0x7c00 ? rounded : 0x7c00;
    // Subnormals are multiples of 2^-24, the distance of floats next to 0.5: adding it rounds.
    const uint32_t subnormal = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
    const uint32_t finite = size < kLeastNormal ? subnormal : normal;
    const uint32_t magnitude = size > kFloatInfinity    ? 0x7e00
                               : size == kFloatInfinity ? 0x7c00
                                                        : finite;
    bits = static_cast<uint16_t>(sign | magnitude);
  }
  explicit operator float() const {
    constexpr uint32_t kRebias = (127 - 15) << 23;
    const uint32_t sign = (bits & 0x8000u) << 16, size = bits & 0x7fffu;
    const uint32_t subnormal = bits_of(static_cast<float>(static_cast<int>(size)) * 0x1p-24f);
    const uint32_t normal = (size << 13) + kRebias;
    const uint32_t special = kFloatInfinity | (size & 0x3ff) << 13;
    return float_of(sign | (size < 0x400 ? subnormal : size < 0x7c00 ? normal : special));
  }
};

// The upper half of a float32.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float value) {
    const uint32_t wide = bits_of(value);
    const uint32_t rounded = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
    // Rounding could carry a NaN's payload into infinity.
    bits = static_cast<uint16_t>(value != value ? wide >> 16 | 0x40 : rounded);
  }
  explicit operator float() const { return float_of(static_cast<uint32_t>(bits) << 16); }
};

}  // namespace cnnkernels
