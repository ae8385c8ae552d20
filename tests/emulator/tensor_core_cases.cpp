// The tensor cores' instructions, against the fragments as the PTX ISA writes them down.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "checks.h"
#include "tensor_core.cu"

namespace cnnkernels::CNN_TARGET {
namespace {

// ---- ldmatrix ----

template <int kMatrices, bool kTransposed>
void check_load() {
  std::vector<unsigned short> in(32 * 8);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<unsigned short>(257 * i + 3);
  std::vector<int> rows(32);
  for (int lane = 0; lane < 32; ++lane) rows[lane] = (5 * lane + 3) % 32;
  const auto load = [&](int odd, int offset) {
    std::vector<unsigned> out(kMatrices * 32);
    launch<load_matrices<kMatrices, kTransposed>>(1, 32, 0, nullptr, in.data(), rows.data(), odd,
                                                  offset, out.data());
    return out;
  };

  // "Each thread in a warp loads fragments of a row": thread 0 the first two elements of row 0,
  // thread 1 the next two ..., thread 4 the first two of row 1; with .trans, of a column.
  std::vector<unsigned> expected;
  for (int thread = 0; thread < 32; ++thread) {
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
      const auto element = [&](int i, int j) -> unsigned {
        return in[8 * rows[8 * matrix + i] + j];
      };
      const int line = thread / 4, first = thread % 4 * 2;
      expected.push_back(kTransposed ? element(first, line) | element(first + 1, line) << 16
                                     : element(line, first) | element(line, first + 1) << 16);
    }
  }
  check_equal(load(-1, 0), expected);

  const int last = 8 * kMatrices - 1;
  for (int offset : {2, 8}) {
    check_error([&] { load(last, offset); },
                {"load_matrices", "block (0,0,0)", "thread (" + std::to_string(last) + ",0,0)",
                 "misaligned read of 16 bytes"});
  }
  // Addresses that are not asked for may be anything.
  if (last < 31) check_equal(load(last + 1, 2), expected);
}

void matrix_loads() {
  check_load<1, false>();
  check_load<2, false>();
  check_load<4, false>();
  check_load<1, true>();
  check_load<2, true>();
  check_load<4, true>();
}

// ---- mma ----

// Element i of what a thread holds, as the PTX ISA counts them: a0 .. a7, b0 .. b3, c0 .. c3.
struct Index {
  int row, column;
};

Index a_of_m16n8k16(int thread, int i) {
  const int group = thread >> 2, in_group = thread % 4;
  const int row = (i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8;
  return {row, in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}

Index b_of_m16n8k16(int thread, int i) {
  return {thread % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0), thread >> 2};
}

Index a_of_m16n8k8(int thread, int i) {
  return {i == 0 || i == 2 ? thread >> 2 : (thread >> 2) + 8,
          i == 0 || i == 1 ? thread % 4 : thread % 4 + 4};
}

Index b_of_m16n8k8(int thread, int i) {
  return {i == 0 ? thread % 4 : thread % 4 + 4, thread >> 2};
}

Index c_of_both(int thread, int i) {
  return {i < 2 ? thread >> 2 : (thread >> 2) + 8, thread % 4 * 2 + (i & 1)};
}

// Bits of an operand's element, and the number that they stand for.
template <Mma kMma>
unsigned encode(float x) {
  if constexpr (kMma == Mma::tf32) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
  } else if constexpr (kMma == Mma::half) {
    return __half_as_ushort(__half(x));
  } else {
    return __bfloat16_as_ushort(__nv_bfloat16(x));
  }
}

template <Mma kMma>
double decode(unsigned bits) {
  if constexpr (kMma == Mma::tf32) {
    const uint32_t kept = bits >> 13 << 13;
    float x;
    std::memcpy(&x, &kept, sizeof x);
    return x;
  } else if constexpr (kMma == Mma::half) {
    return float(__ushort_as_half(static_cast<unsigned short>(bits)));
  } else {
    return float(__ushort_as_bfloat16(static_cast<unsigned short>(bits)));
  }
}

template <Mma kMma>
struct Multiplication {
  static constexpr int kK = kMma == Mma::tf32 ? 8 : 16;
  static constexpr int kElements = kMma == Mma::tf32 ? 1 : 2;  // of a register
  unsigned a[16][kK], b[kK][8];
  float c[16][8];

  template <class Draw>
  explicit Multiplication(const Draw& draw) {
    for (auto& row : a)
      std::generate(std::begin(row), std::end(row), [&] { return encode<kMma>(draw()); });
    for (auto& row : b)
      std::generate(std::begin(row), std::end(row), [&] { return encode<kMma>(draw()); });
    for (auto& row : c) std::generate(std::begin(row), std::end(row), draw);
  }

  static Index a_index(int thread, int i) {
    return kMma == Mma::tf32 ? a_of_m16n8k8(thread, i) : a_of_m16n8k16(thread, i);
  }
  static Index b_index(int thread, int i) {
    return kMma == Mma::tf32 ? b_of_m16n8k8(thread, i) : b_of_m16n8k16(thread, i);
  }

  std::vector<float> emulated(int times, int lanes = 32) const {
    std::vector<unsigned> a_fragments(4 * 32), b_fragments(2 * 32);
    std::vector<float> c_fragments(4 * 32), d_fragments(4 * 32), product(16 * 8);
    for (int thread = 0; thread < 32; ++thread) {
      for (int i = 0; i < 4 * kElements; ++i) {
        const auto [row, column] = a_index(thread, i);
        a_fragments[4 * thread + i / kElements] |= a[row][column] << 16 * (i % kElements);
      }
      for (int i = 0; i < 2 * kElements; ++i) {
        const auto [row, column] = b_index(thread, i);
        b_fragments[2 * thread + i / kElements] |= b[row][column] << 16 * (i % kElements);
      }
      for (int i = 0; i < 4; ++i) {
        const auto [row, column] = c_of_both(thread, i);
        c_fragments[4 * thread + i] = c[row][column];
      }
    }
    launch<multiply_fragments<kMma>>(1, 32, 0, nullptr, a_fragments.data(), b_fragments.data(),
                                     c_fragments.data(), d_fragments.data(), times, lanes);
    for (int thread = 0; thread < 32; ++thread) {
      for (int i = 0; i < 4; ++i) {
        const auto [row, column] = c_of_both(thread, i);
        product[8 * row + column] = d_fragments[4 * thread + i];
      }
    }
    return product;
  }

  std::vector<float> recomputed(int times) const {
    std::vector<float> product;
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        float rounded = c[row][column];
        for (int i = 0; i < times; ++i) {
          double sum = rounded;
          for (int k = 0; k < kK; ++k) sum += decode<kMma>(a[row][k]) * decode<kMma>(b[k][column]);
          rounded = static_cast<float>(sum);
        }
        product.push_back(rounded);
      }
    }
    return product;
  }
};

template <Mma kMma>
void check_mma(const std::string& instruction) {
  // Small integers, nearly all distinct: exact in any order, wrong in any other place.
  int next = 0;
  const Multiplication<kMma> integers([&] { return static_cast<float>(next++ * 37 % 251 - 125); });
  check_equal(integers.emulated(1), integers.recomputed(1));
  // Of all sizes, so that the order of the sum tells, and, in tf32, with digits that do not count.
  std::mt19937 engine(11);
  std::uniform_real_distribution<float> mantissa(-1, 1);
  std::uniform_int_distribution<int> exponent(-12, 12);
  for (int i = 0; i < 50; ++i) {
    const Multiplication<kMma> random(
        [&] { return std::ldexp(mantissa(engine), exponent(engine)); });
    check_equal(random.emulated(1), random.recomputed(1));
    check_equal(random.emulated(5), random.recomputed(5));
  }
  // Two large products that cancel each other: what is added before them is rounded, and what
  // comes after them is not.
  Multiplication<kMma> cancelling([&] { return (3 + mantissa(engine)) * 0x1p-13f; });
  const float large = kMma == Mma::half ? 0x1p15f : 0x1p25f;
  for (auto& row : cancelling.a) row[0] = encode<kMma>(large), row[1] = encode<kMma>(-large);
  for (int k : {0, 1}) std::fill_n(cancelling.b[k], 8, encode<kMma>(large));
  check_equal(cancelling.emulated(1), cancelling.recomputed(1));
  check_error([&] { integers.emulated(1, 31); },
              {"multiply_fragments", "thread (31,0,0)", "exits", instruction});
}

void mma_of_tf32() { check_mma<Mma::tf32>("mma.m16n8k8.tf32"); }
void mma_of_half() { check_mma<Mma::half>("mma.m16n8k16.f16"); }
void mma_of_bfloat16() { check_mma<Mma::bfloat16>("mma.m16n8k16.bf16"); }

void matrix_product_from_shared_memory() {
  std::vector<__half> a(16 * 16), b(16 * 8);
  for (int i = 0; i < 16 * 16; ++i) a[i] = i * 37 % 61 - 30;
  for (int i = 0; i < 16 * 8; ++i) b[i] = i * 11 % 29 - 14;
  std::vector<float2> storage(16 * 8 / 2);
  std::vector<float> expected;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += float(a[16 * row + k]) * float(b[8 * k + column]);
      expected.push_back(sum);
    }
  }
  float* product = &storage[0].x;
  launch<multiply_from_shared>(1, 32, 0, nullptr, a.data(), b.data(), product);
  check_equal(std::vector<float>(product, product + 16 * 8), expected);
}

// ---- tf32 ----

void conversion_to_tf32() {
  std::vector<float> in = {0.0f,
                           -0.0f,
                           std::numeric_limits<float>::max(),
                           std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::denorm_min()};
  // Around the middle of two neighbours, where ties go away from zero.
  for (unsigned top :
       {0x3f800000u, 0x3f802000u, 0xbf802000u, 0x00002000u, 0x7f7fe000u, 0xc2345000u}) {
    for (unsigned low : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu}) {
      const unsigned bits = (top & ~0x1fffu) | low;
      float x;
      std::memcpy(&x, &bits, sizeof x);
      in.push_back(x);
    }
  }
  std::mt19937 engine(13);
  std::uniform_real_distribution<float> uniform(-1000, 1000);
  for (int i = 0; i < 1000; ++i) in.push_back(uniform(engine));

  std::vector<unsigned> out(in.size()), expected;
  for (float x : in) {
    // A number of 11 digits, or as many as a subnormal has: std::round rounds ties away from zero.
    int exponent = 0;
    std::frexp(x, &exponent);
    const int last = std::max(exponent - 11, -126 - 10);
    const double rounded = std::ldexp(std::round(std::ldexp(double(x), -last)), last);
    expected.push_back(encode<Mma::tf32>(static_cast<float>(std::isinf(x) ? x : rounded)));
  }
  launch<convert_to_tf32>(10, 256, 0, nullptr, in.data(), out.data(), static_cast<int>(in.size()));
  check_equal(out, expected);

  const float nan = std::nanf("");
  launch<convert_to_tf32>(1, 1, 0, nullptr, &nan, out.data(), 1);
  check(std::isnan(decode<Mma::tf32>(out[0])), "NaN is lost");
}

const RegisterCases kCases = {
    {"conversion_to_tf32", conversion_to_tf32},
    {"matrix_loads", matrix_loads},
    {"matrix_product_from_shared_memory", matrix_product_from_shared_memory},
    {"mma_of_bfloat16", mma_of_bfloat16},
    {"mma_of_half", mma_of_half},
    {"mma_of_tf32", mma_of_tf32},
};

}  // namespace
}  // namespace cnnkernels::CNN_TARGET
