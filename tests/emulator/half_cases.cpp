// The 16-bit floating-point types, against rounding by integers: an exact result is an integer
// times a power of two, of which the digits that do not fit are cut off.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "../../csrc/float16.h"
#include "checks.h"
#include "half.cu"

namespace cnnkernels::CNN_TARGET {
namespace {

using Wide = unsigned __int128;
using Bits16 = unsigned short;

// ---- The reference ----

struct Format {
  int digits;          // with the leading one
  int least_exponent;  // of a subnormal's last digit
  unsigned infinity;   // its bits
};

template <class T>
constexpr Format kFormat = {11, -24, 0x7c00};
template <>
constexpr Format kFormat<__nv_bfloat16> = {8, -133, 0x7f80};

constexpr Bits16 kNaN = 0x7fff;

// (-1)^negative * (magnitude + a bit more, if sticky) * 2^exponent.
struct Exact {
  bool negative;
  Wide magnitude;
  int exponent;
  bool sticky = false;
};

enum class Round { nearest, toward_zero, up, down };

int highest_bit(Wide x) {
  int bit = -1;
  for (; x != 0; x >>= 1) ++bit;
  return bit;
}

Bits16 round_to(const Format& format, const Exact& x, Round rounding = Round::nearest) {
  const int last =
      std::max(highest_bit(x.magnitude) + x.exponent - (format.digits - 1), format.least_exponent);
  const int dropped = std::min(last - x.exponent, 126);
  Wide kept = x.magnitude, rest = 0, half = 0;
  if (dropped > 0) {
    kept = x.magnitude >> dropped;
    rest = x.magnitude & ((Wide{1} << dropped) - 1);
    half = Wide{1} << (dropped - 1);
  } else {
    kept = x.magnitude << -dropped;
  }
  const bool inexact = rest != 0 || x.sticky;
  const bool away = rounding == Round::up ? !x.negative : rounding == Round::down && x.negative;
  if (rounding == Round::nearest) {
    const bool tie = rest == half && !x.sticky && half != 0;
    kept += tie ? kept & 1 : (half != 0 && rest >= half);
  } else {
    kept += inexact && away;
  }
  Wide bits = (static_cast<Wide>(last - format.least_exponent) << (format.digits - 1)) + kept;
  if (bits >= format.infinity) {
    bits = rounding == Round::nearest || away ? format.infinity : format.infinity - 1;
  }
  return static_cast<Bits16>(static_cast<unsigned>(bits) | (x.negative ? 0x8000u : 0));
}

Exact exact(double x) {
  int exponent;
  const double fraction = std::frexp(std::abs(x), &exponent);
  return {std::signbit(x), static_cast<Wide>(std::ldexp(fraction, 53)), exponent - 53};
}

Exact exact(const Format& format, Bits16 bits) {
  const int field = (bits & 0x7fff) >> (format.digits - 1);
  const unsigned leading = 1u << (format.digits - 1), rest = bits & (leading - 1);
  if (field == 0) return {bits >> 15 != 0, rest, format.least_exponent};
  return {bits >> 15 != 0, rest | leading, format.least_exponent + field - 1};
}

Exact add(Exact a, Exact b) {
  if (a.magnitude == 0) return b;
  if (b.magnitude == 0) return a;
  if (a.exponent < b.exponent) std::swap(a, b);
  const int apart = a.exponent - b.exponent;
  if (apart > 100) {  // b is less than the last of 40 more digits of a
    a.magnitude <<= 40, a.exponent -= 40, a.sticky = true;
    if (a.negative != b.negative) --a.magnitude;
    return a;
  }
  const Wide large = a.magnitude << apart;
  if (a.negative == b.negative) return {a.negative, large + b.magnitude, b.exponent};
  if (large >= b.magnitude) return {a.negative, large - b.magnitude, b.exponent};
  return {b.negative, b.magnitude - large, b.exponent};
}

Exact multiply(const Exact& a, const Exact& b) {
  return {a.negative != b.negative, a.magnitude * b.magnitude, a.exponent + b.exponent};
}

Exact divide(const Exact& a, const Exact& b) {
  const Wide numerator = a.magnitude << 80;
  return {a.negative != b.negative, numerator / b.magnitude, a.exponent - b.exponent - 80,
          numerator % b.magnitude != 0};
}

bool is_nan(const Format& format, Bits16 bits) { return (bits & 0x7fff) > format.infinity; }

// The bits of a number that needs no rounding: its value tells all.
double value_of(const Format& format, Bits16 bits) {
  if (is_nan(format, bits)) return std::numeric_limits<double>::quiet_NaN();
  const Exact x = exact(format, bits);
  const double magnitude = (bits & 0x7fff) == format.infinity
                               ? std::numeric_limits<double>::infinity()
                               : std::ldexp(static_cast<double>(x.magnitude), x.exponent);
  return x.negative ? -magnitude : magnitude;
}

// `plain` is the result in float64, right where it is zero, infinite or NaN, as float64 has room
// for all that an operation makes of finite numbers.
template <class Finite>
Bits16 rounded(const Format& format, double plain, const Finite& finite) {
  const unsigned sign = std::signbit(plain) ? 0x8000u : 0;
  if (plain != plain) return kNaN;
  if (plain == 0) return static_cast<Bits16>(sign);
  if (std::isinf(plain)) return static_cast<Bits16>(sign | format.infinity);
  return round_to(format, finite());
}

// Where an operand is infinite and the result is finite, that is zero: rounded() asks no more.
Bits16 combined(const Format& format, int operation, Bits16 a, Bits16 b) {
  const double x = value_of(format, a), y = value_of(format, b);
  const Exact u = exact(format, a), v = exact(format, b);
  const Exact minus_v = {!v.negative, v.magnitude, v.exponent};
  switch (operation) {
    case 0:
      return rounded(format, x + y, [&] { return add(u, v); });
    case 1:
      return rounded(format, x - y, [&] { return add(u, minus_v); });
    case 2:
      return rounded(format, x * y, [&] { return multiply(u, v); });
    default:
      return rounded(format, x / y, [&] { return divide(u, v); });
  }
}

Bits16 fused(const Format& format, Bits16 a, Bits16 b, Bits16 c) {
  const double x = value_of(format, a), y = value_of(format, b), z = value_of(format, c);
  return rounded(format, std::fma(x, y, z), [&] {
    return add(multiply(exact(format, a), exact(format, b)), exact(format, c));
  });
}

// ---- Operands ----

std::vector<Bits16> all_bits() {
  std::vector<Bits16> bits(1 << 16);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<Bits16>(i);
  return bits;
}

// Zeros, subnormal and normal extremes, ones, odd and even neighbours, infinities, NaNs.
std::vector<Bits16> special_bits(const Format& format) {
  const unsigned one = (1u << (format.digits - 1)) * (format.digits == 11 ? 15 : 127);
  const unsigned least_normal = 1u << (format.digits - 1);
  std::vector<Bits16> specials;
  for (unsigned magnitude :
       {0u, 1u, 2u, 3u, least_normal - 1, least_normal, least_normal + 1, one - 1, one, one + 1,
        one + 2, one + least_normal, format.infinity - 2, format.infinity - 1, format.infinity,
        format.infinity + 1, 0x7fffu}) {
    specials.push_back(static_cast<Bits16>(magnitude));
    specials.push_back(static_cast<Bits16>(magnitude | 0x8000u));
  }
  return specials;
}

struct Operands {
  std::vector<Bits16> a, b, c;
};

// All pairs of specials, then random ones, of which every other triple has exponents so near to
// each other that the last digits meet.
Operands operands(const Format& format, int random) {
  Operands all;
  const auto push = [&](unsigned a, unsigned b, unsigned c) {
    all.a.push_back(static_cast<Bits16>(a));
    all.b.push_back(static_cast<Bits16>(b));
    all.c.push_back(static_cast<Bits16>(c));
  };
  const std::vector<Bits16> specials = special_bits(format);
  for (Bits16 a : specials) {
    for (Bits16 b : specials) push(a, b, specials[(a * 31u + b) % specials.size()]);
  }
  std::mt19937 engine(7);
  const unsigned exponent = 1u << (format.digits - 1);
  for (int i = 0; i < random; ++i) {
    const unsigned a = engine(), b = engine(), c = engine();
    const unsigned near_one = exponent * (format.digits == 11 ? 12 : 120);
    if (i % 2 == 0)
      push(a, b, c);
    else
      push((a & 0x8000) | (near_one + a % (6 * exponent)),
           (b & 0x8000) | (near_one + b % (6 * exponent)),
           (c & 0x8000) | (near_one + c % (6 * exponent)));
  }
  return all;
}

int blocks_for(size_t count) { return static_cast<int>((count + 255) / 256); }

template <auto Kernel, class... Args>
void launch_elements(size_t count, Args... args) {
  launch<Kernel>(blocks_for(count), 256, 0, nullptr, args..., static_cast<int>(count));
}

// Every number that lies in the middle of two neighbours, both of its own neighbours, and the
// numbers themselves.
template <class Float>
std::vector<Float> around_middles(const Format& format) {
  std::vector<Float> all;
  const Float beyond = std::numeric_limits<Float>::infinity();
  for (unsigned bits = 0; bits < format.infinity; ++bits) {
    const double x = value_of(format, static_cast<Bits16>(bits));
    const double next = bits + 1 == format.infinity
                            ? 2 * x - value_of(format, static_cast<Bits16>(bits - 1))
                            : value_of(format, static_cast<Bits16>(bits + 1));
    const auto middle = static_cast<Float>(x + (next - x) / 2);
    for (Float value : {static_cast<Float>(x), middle, std::nextafter(middle, -beyond),
                        std::nextafter(middle, beyond)}) {
      all.push_back(value);
      all.push_back(-value);
    }
  }
  for (Float value : {beyond, -beyond, std::numeric_limits<Float>::quiet_NaN(),
                      std::numeric_limits<Float>::max(), std::numeric_limits<Float>::denorm_min()})
    all.push_back(value);
  return all;
}

// ---- Cases ----

template <class T>
void check_from_float(const Format& format) {
  std::vector<float> in = around_middles<float>(format);
  std::mt19937 engine(5);
  for (int i = 0; i < 200000; ++i) in.push_back(float_of(static_cast<uint32_t>(engine())));
  std::vector<Bits16> out(6 * in.size()), expected;
  constexpr Round kRoundings[6] = {Round::nearest,     Round::nearest, Round::nearest,
                                   Round::toward_zero, Round::up,      Round::down};
  for (float x : in) {
    for (Round rounding : kRoundings) {
      const bool finite = std::isfinite(x) && x != 0;
      expected.push_back(finite ? round_to(format, exact(x), rounding)
                                : rounded(format, x, [] { return Exact(); }));
    }
  }
  if constexpr (std::is_same_v<T, __half>)
    launch_elements<half_from_float>(in.size(), in.data(), out.data());
  else
    launch_elements<bfloat16_from_float>(in.size(), in.data(), out.data());
  check_equal(out, expected);
}

void half_conversion_from_float() { check_from_float<__half>(kFormat<__half>); }

void bfloat16_conversion_from_float() { check_from_float<__nv_bfloat16>(kFormat<__nv_bfloat16>); }

void conversions_from_double() {
  const Format formats[2] = {kFormat<__half>, kFormat<__nv_bfloat16>};
  std::vector<double> in = around_middles<double>(formats[0]);
  for (double x : around_middles<double>(formats[1])) in.push_back(x);
  std::vector<Bits16> out(2 * in.size()), expected;
  for (double x : in) {
    for (const Format& format : formats)
      expected.push_back(rounded(format, x, [&] { return exact(x); }));
  }
  launch_elements<from_double>(in.size(), in.data(), out.data());
  check_equal(out, expected);
}

void conversions_from_integers() {
  std::vector<long long> in = {0,
                               1,
                               -1,
                               65519,
                               65520,
                               -65520,
                               (1ll << 62) + (1ll << 54) + 1,
                               std::numeric_limits<long long>::min(),
                               std::numeric_limits<long long>::max()};
  // Middles of bfloat16 numbers, and beside them by the last bit.
  for (int bit = 8; bit < 62; ++bit) {
    for (int beside = -1; beside <= 1; ++beside) {
      in.push_back((1ll << bit) + (1ll << (bit - 8)) + beside);
      in.push_back(-in.back());
      in.push_back((1ll << bit) + (1ll << (bit - 7)) + (1ll << (bit - 8)) + beside);
    }
  }
  std::mt19937_64 engine(3);
  for (int i = 0; i < 20000; ++i) in.push_back(static_cast<long long>(engine() >> engine() % 64));
  const auto of_integer = [](const Format& format, __int128 x) {
    return x == 0 ? Bits16{0} : round_to(format, {x < 0, static_cast<Wide>(x < 0 ? -x : x), 0});
  };
  std::vector<Bits16> out(8 * in.size()), expected;
  for (long long x : in) {
    for (__int128 integer :
         {static_cast<__int128>(static_cast<int>(x)),
          static_cast<__int128>(static_cast<unsigned>(x)), static_cast<__int128>(x),
          static_cast<__int128>(static_cast<unsigned long long>(x))}) {
      expected.push_back(of_integer(kFormat<__half>, integer));
      expected.push_back(of_integer(kFormat<__nv_bfloat16>, integer));
    }
  }
  launch_elements<from_integers>(in.size(), in.data(), out.data());
  check_equal(out, expected);
}

template <class T>
void check_to_float() {
  const std::vector<Bits16> in = all_bits();
  std::vector<float> out(in.size());
  std::vector<double> wide(in.size());
  launch_elements<to_float<T>>(in.size(), in.data(), out.data(), wide.data());
  for (Bits16 bits : in) {
    const double expected = value_of(kFormat<T>, bits);
    const bool nan = expected != expected;
    check(nan ? std::isnan(out[bits]) && std::isnan(wide[bits])
              : out[bits] == expected && wide[bits] == expected &&
                    std::signbit(out[bits]) == std::signbit(expected),
          "bits " + std::to_string(bits) + " are " + std::to_string(out[bits]));
  }
}

void conversions_to_float() {
  check_to_float<__half>();
  check_to_float<__nv_bfloat16>();
}

template <class Integer>
int saturated(double x) {
  using Limits = std::numeric_limits<Integer>;
  if (x != x) return 0;
  return static_cast<int>(
      static_cast<Integer>(std::max<double>(Limits::min(), std::min<double>(Limits::max(), x))));
}

template <class T>
void check_to_integers() {
  const std::vector<Bits16> in = all_bits();
  std::vector<int> out(7 * in.size()), expected;
  for (Bits16 bits : in) {
    const double x = value_of(kFormat<T>, bits);
    expected.push_back(saturated<int>(std::rint(x)));
    expected.push_back(saturated<int>(std::trunc(x)));
    expected.push_back(saturated<int>(std::ceil(x)));
    expected.push_back(saturated<int>(std::floor(x)));
    expected.push_back(saturated<unsigned>(std::trunc(x)));
    expected.push_back(saturated<int>(std::trunc(x)));
    expected.push_back(x != 0);
  }
  if constexpr (std::is_same_v<T, __half>)
    launch_elements<half_to_integers>(in.size(), in.data(), out.data());
  else
    launch_elements<bfloat16_to_integers>(in.size(), in.data(), out.data());
  check_equal(out, expected);
}

void conversions_to_integers() {
  check_to_integers<__half>();
  check_to_integers<__nv_bfloat16>();
}

void conversion_between_formats() {
  const std::vector<Bits16> in = all_bits();
  std::vector<Bits16> out(in.size()), expected;
  for (Bits16 bits : in) {
    const double x = value_of(kFormat<__half>, bits);
    expected.push_back(rounded(kFormat<__nv_bfloat16>, x, [&] { return exact(x); }));
  }
  launch_elements<half_to_bfloat16>(in.size(), in.data(), out.data());
  check_equal(out, expected);
}

// The larger, by CUDA's rules: of a number and a NaN the number, or with _nan the NaN.
Bits16 largest(const Format& format, Bits16 a, Bits16 b, bool keeps_nan) {
  const bool a_nan = is_nan(format, a), b_nan = is_nan(format, b);
  if ((a_nan && b_nan) || (keeps_nan && (a_nan || b_nan))) return kNaN;
  if (a_nan || b_nan) return a_nan ? b : a;
  const double x = value_of(format, a), y = value_of(format, b);
  if (x == y) return a < b ? a : b;  // the same, or zeros of which +0 has the smaller bits
  return x > y ? a : b;
}

template <class T>
void check_combine() {
  const Format format = kFormat<T>;
  const Operands in = operands(format, 300000);
  const size_t count = in.a.size();
  std::vector<Bits16> out(12 * count), expected;
  constexpr unsigned kSign = 0x8000;
  const auto negated = [](Bits16 x) { return static_cast<Bits16>(x ^ kSign); };
  const auto smallest = [&](Bits16 a, Bits16 b, bool keeps_nan) {
    const Bits16 result = largest(format, negated(a), negated(b), keeps_nan);
    return result == kNaN ? kNaN : negated(result);
  };
  for (size_t i = 0; i < count; ++i) {
    for (int k = 0; k < 8; ++k) expected.push_back(combined(format, k % 4, in.a[i], in.b[i]));
    expected.push_back(largest(format, in.a[i], in.b[i], false));
    expected.push_back(smallest(in.a[i], in.b[i], false));
    expected.push_back(largest(format, in.a[i], in.b[i], true));
    expected.push_back(smallest(in.a[i], in.b[i], true));
  }
  launch_elements<combine<T>>(count, in.a.data(), in.b.data(), out.data());
  check_equal(out, expected);
}

void half_arithmetic() { check_combine<__half>(); }
void bfloat16_arithmetic() { check_combine<__nv_bfloat16>(); }

template <class T>
void check_fuse(Operands in) {
  const Format format = kFormat<T>;
  const size_t count = in.a.size();
  std::vector<Bits16> out(3 * count), expected;
  for (size_t i = 0; i < count; ++i) {
    expected.push_back(fused(format, in.a[i], in.b[i], in.c[i]));
    expected.push_back(in.a[i] ^ 0x8000);
    expected.push_back(in.a[i] & 0x7fff);
  }
  launch_elements<fuse<T>>(count, in.a.data(), in.b.data(), in.c.data(), out.data());
  check_equal(out, expected);
}

void half_fused_multiply_add() { check_fuse<__half>(operands(kFormat<__half>, 500000)); }

// Many products of two numbers lie in the middle of two bfloat16 numbers, or do not, according to
// an addend up to 250 binary orders smaller.
void bfloat16_fused_multiply_add() {
  Operands in = operands(kFormat<__nv_bfloat16>, 500000);
  for (unsigned c : {0x0000u, 0x0001u, 0x8001u, 0x3000u, 0xb000u}) {
    for (unsigned a = 0x7d80; a < 0x7e00; ++a) {
      for (unsigned b = 0x3f80; b < 0x4000; ++b) {
        in.a.push_back(static_cast<Bits16>(a));
        in.b.push_back(static_cast<Bits16>(b));
        in.c.push_back(static_cast<Bits16>(c));
      }
    }
  }
  check_fuse<__nv_bfloat16>(in);
}

template <class T>
void check_compare() {
  const Format format = kFormat<T>;
  const Operands in = operands(format, 20000);
  std::vector<unsigned> out(in.a.size()), expected;
  for (size_t i = 0; i < in.a.size(); ++i) {
    const double x = value_of(format, in.a[i]), y = value_of(format, in.b[i]);
    const bool nan = x != x || y != y;
    const bool ordered[6] = {x == y, x != y && !nan, x<y, x <= y, x> y, x >= y};
    unsigned bits = 0;
    for (int k = 0; k < 6; ++k) {
      bits |= unsigned{k == 1 ? ordered[k] || nan : ordered[k]} << k;
      bits |= unsigned{ordered[k]} << (6 + k);
      bits |= unsigned{ordered[k] || nan} << (12 + k);
    }
    bits |= unsigned{x != x} << 18 | unsigned{std::isinf(x)} << 19;
    expected.push_back(bits);
  }
  launch_elements<compare<T>>(in.a.size(), in.a.data(), in.b.data(), out.data());
  check_equal(out, expected);
}

void comparisons_of_16_bits() {
  check_compare<__half>();
  check_compare<__nv_bfloat16>();
}

template <class Pair, class T>
void check_pairs() {
  const Operands in = operands(kFormat<T>, 20000);
  const size_t count = in.a.size();
  std::vector<Pair> a(count), b(count);
  for (size_t i = 0; i < count; ++i) {
    a[i] = Pair(of_bits<T>(in.a[i]), of_bits<T>(in.c[i]));
    b[i] = Pair(of_bits<T>(in.b[i]), of_bits<T>(in.a[i]));
  }
  std::vector<int> wrong(count, -1);
  launch_elements<combine_pairs<Pair>>(count, a.data(), b.data(), wrong.data());
  check_equal(wrong, std::vector<int>(count, 0));
}

void pairs_of_16_bits() {
  check_pairs<__half2, __half>();
  check_pairs<__nv_bfloat162, __nv_bfloat16>();
}

void makers_of_pairs() {
  std::vector<float2> out(24);
  launch<make_pairs>(1, 1, 0, nullptr, out.data());
  const float expected[12][2] = {{1, 2}, {3, 4}, {1, 2}, {2, 1}, {2, 2}, {2, 2},
                                 {3, 3}, {4, 4}, {1, 3}, {2, 4}, {3, 4}, {1, 2}};
  for (size_t i = 0; i < out.size(); ++i) {
    check(out[i].x == expected[i % 12][0] && out[i].y == expected[i % 12][1],
          "pair " + std::to_string(i));
  }
}

const RegisterCases kCases = {
    {"bfloat16_arithmetic", bfloat16_arithmetic},
    {"bfloat16_conversion_from_float", bfloat16_conversion_from_float},
    {"bfloat16_fused_multiply_add", bfloat16_fused_multiply_add},
    {"comparisons_of_16_bits", comparisons_of_16_bits},
    {"conversion_between_formats", conversion_between_formats},
    {"conversions_from_double", conversions_from_double},
    {"conversions_from_integers", conversions_from_integers},
    {"conversions_to_float", conversions_to_float},
    {"conversions_to_integers", conversions_to_integers},
    {"half_arithmetic", half_arithmetic},
    {"half_conversion_from_float", half_conversion_from_float},
    {"half_fused_multiply_add", half_fused_multiply_add},
    {"makers_of_pairs", makers_of_pairs},
    {"pairs_of_16_bits", pairs_of_16_bits},
};

}  // namespace
}  // namespace cnnkernels::CNN_TARGET
