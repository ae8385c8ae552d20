// CUDA's small functions of one thread.
#include <cstdint>
#include <limits>

#include "checks.h"
#include "intrinsics.cu"

namespace cnnkernels::CNN_TARGET {
namespace {

const std::vector<int> kIntegers = {0,
                                    1,
                                    -1,
                                    2,
                                    12,
                                    100,
                                    65536,
                                    123456789,
                                    -987654321,
                                    std::numeric_limits<int>::max(),
                                    std::numeric_limits<int>::min()};

void integer_intrinsics() {
  std::vector<int> a, b;
  for (int x : kIntegers) {
    for (int y : kIntegers) a.push_back(x), b.push_back(y);
  }
  std::vector<int> out(7 * a.size()), expected;
  for (size_t i = 0; i < a.size(); ++i) {
    int set = 0, leading = 32, lowest = 0;
    unsigned reversed = 0;
    for (int bit = 31; bit >= 0; --bit) {
      if (!(static_cast<unsigned>(a[i]) >> bit & 1)) continue;
      ++set, lowest = bit + 1, reversed |= 1u << (31 - bit);
      if (leading == 32) leading = 31 - bit;
    }
    const __int128 product = static_cast<__int128>(a[i]) * b[i];
    const __int128 unsigned_product =
        static_cast<__int128>(static_cast<unsigned>(a[i])) * static_cast<unsigned>(b[i]);
    expected.insert(expected.end(),
                    {set, leading, lowest, static_cast<int>(reversed),
                     static_cast<int>(product >> 32), static_cast<int>(unsigned_product >> 32)});
    expected.push_back(std::vector<int>{2, 3, 5, 7, 11}[i % 5]);
  }
  launch<integer_functions>(1, static_cast<int>(a.size()), 0, nullptr, a.data(), b.data(),
                            out.data());
  check_equal(out, expected);
}

void wide_integer_intrinsics() {
  std::vector<long long> in = {
      0, 1, -1, 1ll << 40, 6ll << 50, std::numeric_limits<long long>::min(), 0x0123456789abcdefll};
  std::vector<long long> out(4 * in.size()), expected;
  for (long long x : in) {
    long long set = 0, leading = 64, lowest = 0;
    unsigned long long reversed = 0;
    for (int bit = 63; bit >= 0; --bit) {
      if (!(static_cast<unsigned long long>(x) >> bit & 1)) continue;
      ++set, lowest = bit + 1, reversed |= 1ull << (63 - bit);
      if (leading == 64) leading = 63 - bit;
    }
    expected.insert(expected.end(), {set, leading, lowest, static_cast<long long>(reversed)});
  }
  launch<wide_functions>(1, static_cast<int>(in.size()), 0, nullptr, in.data(), out.data());
  check_equal(out, expected);
}

template <class Integer, class Float>
Float with_bits_flipped(Float x, Integer flipped) {
  Integer bits;
  std::memcpy(&bits, &x, sizeof x);
  bits ^= flipped;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

void bits_of_floats() {
  std::vector<float> in = {1, -2.5f, 1e-30f, 3e38f}, out(8), expected;
  std::vector<double> wide(4), wide_expected;
  for (float x : in) {
    expected.push_back(with_bits_flipped<uint32_t>(x, 1));
    expected.push_back(-x);
    wide_expected.push_back(with_bits_flipped<uint64_t>(double(x), 1));
  }
  launch<float_bits>(1, 4, 0, nullptr, in.data(), out.data(), wide.data());
  check_equal(out, expected);
  check_equal(wide, wide_expected);
}

void minima_and_maxima() {
  std::vector<double> out(18);
  const std::vector<double> expected = {
      -3, 2, 5, 4294967293.0, -7, 9, 1.25, 1.5, 0.25, 0.5, 0.5, 1.25, 3, 8, 1.25, 1.25, 0.5625, 32};
  launch<minima>(1, 1, 0, nullptr, -3, 5u, -7ll, 1.25f, 0.5, out.data());
  check_equal(out, expected);
}

template <class T>
void check_multiply_add() {
  std::vector<T> a, b, c, out(64), expected;
  for (int i = 0; i < 64; ++i) {
    a.push_back(i - 20), b.push_back(3 * i % 17 - 8), c.push_back(i * i % 31);
    expected.push_back(a[i] * b[i] + c[i]);
  }
  launch<multiply_and_add<T>>(1, 64, 0, nullptr, a.data(), b.data(), c.data(), out.data());
  check_equal(out, expected);
}

void multiply_adds() {
  check_multiply_add<float>();
  check_multiply_add<double>();
}

const RegisterCases kCases = {
    {"bits_of_floats", bits_of_floats},
    {"integer_intrinsics", integer_intrinsics},
    {"minima_and_maxima", minima_and_maxima},
    {"multiply_adds", multiply_adds},
    {"wide_integer_intrinsics", wide_integer_intrinsics},
};

}  // namespace
}  // namespace cnnkernels::CNN_TARGET
