// What the lanes of a warp do together.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>

#include "checks.h"
#include "warp.cu"

namespace cnnkernels::CNN_TARGET {
namespace {

const std::vector<unsigned> kMasks = {kFullWarp,   0x1u,        0x80000000u,
                                      0x0000ffffu, 0x55555555u, 0x80010400u};

std::vector<int> lanes_of(unsigned mask) {
  std::vector<int> lanes;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) lanes.push_back(lane);
  }
  return lanes;
}

void shuffles_of_16_bits() {
  std::vector<__half> in(32), out(32);
  std::vector<__half2> pairs(32);
  std::vector<__nv_bfloat16> bin(32), bout(32);
  std::vector<__nv_bfloat162> bpairs(32);
  for (int lane = 0; lane < 32; ++lane) in[lane] = 100 + lane, bin[lane] = -lane;
  launch<shuffle_pairs>(1, 32, 0, nullptr, in.data(), out.data(), pairs.data(), bin.data(),
                        bout.data(), bpairs.data());
  for (int lane = 0; lane < 32; ++lane) {
    const int up = lane < 2 ? lane : lane - 2, down = lane < 29 ? lane + 3 : lane, xor5 = lane ^ 5;
    check(float(out[lane]) == 131 - lane, "half");
    check(float(pairs[lane].x) == 100 + up && float(pairs[lane].y) == 131 - up, "half2");
    check(float(bout[lane]) == -down, "bfloat16");
    check(float(bpairs[lane].x) == -xor5 && float(bpairs[lane].y) == xor5 - 31, "bfloat162");
  }
}

void shuffles_of_short() {
  std::vector<short> in(32);
  std::vector<int> out(32), expected(32);
  for (int lane = 0; lane < 32; ++lane) in[lane] = static_cast<short>(-1000 * lane);
  for (int lane = 0; lane < 32; ++lane) expected[lane] = -1000 * (lane ^ 1);
  launch<shuffle_short>(1, 32, 0, nullptr, in.data(), out.data());
  check_equal(out, expected);
}

void votes() {
  const std::vector<unsigned> ballots = {0, kFullWarp, 1, 0x80000000u, 0x55555555u, 0x80010400u};
  for (unsigned mask : kMasks) {
    for (unsigned ballot : ballots) {
      std::vector<int> predicates(32);
      std::vector<unsigned> out(4 * 32, 77), expected = out;
      for (int lane = 0; lane < 32; ++lane) predicates[lane] = ballot >> lane & 1 ? -4 : 0;
      for (int lane : lanes_of(mask)) {
        const unsigned held = ballot & mask;
        expected[4 * lane] = held;
        expected[4 * lane + 1] = held != 0;
        expected[4 * lane + 2] = held == mask;
        expected[4 * lane + 3] = held == mask || held == 0;
      }
      launch<vote>(1, 32, 0, nullptr, mask, predicates.data(), out.data());
      check_equal(out, expected);
    }
  }
}

template <class T>
void check_match(const std::vector<T>& values) {
  for (unsigned mask : kMasks) {
    std::vector<unsigned> out(3 * 32, 77), expected = out;
    for (int lane : lanes_of(mask)) {
      unsigned equal = 0;
      for (int other : lanes_of(mask)) {
        if (std::memcmp(&values[lane], &values[other], sizeof(T)) == 0) equal |= 1u << other;
      }
      expected[3 * lane] = equal;
      expected[3 * lane + 1] = equal == mask ? mask : 0;
      expected[3 * lane + 2] = equal == mask;
    }
    launch<match<T>>(1, 32, 0, nullptr, mask, values.data(), out.data());
    check_equal(out, expected);
  }
}

template <class T>
void check_matches() {
  std::vector<T> values(32);
  for (int lane = 0; lane < 32; ++lane) values[lane] = static_cast<T>(lane % 5 * (lane / 16));
  check_match(values);
  check_match(std::vector<T>(32, 3));
  values.assign(32, 3);
  values[10] = 4;
  check_match(values);
}

void matches() {
  check_matches<int>();
  check_matches<unsigned>();
  check_matches<long>();
  check_matches<unsigned long long>();
  check_matches<float>();
  check_matches<double>();
  // Bits count, not values: a NaN is equal to itself, and 0 not to -0.
  std::vector<float> specials(32, std::numeric_limits<float>::quiet_NaN());
  std::fill(specials.begin() + 8, specials.begin() + 16, 0.0f);
  std::fill(specials.begin() + 16, specials.begin() + 24, -0.0f);
  check_match(specials);
  // The upper half of an 8-byte value counts too.
  std::vector<unsigned long long> wide(32);
  for (int lane = 0; lane < 32; ++lane)
    wide[lane] = static_cast<unsigned long long>(lane % 3) << 40;
  check_match(wide);
}

void reductions() {
  std::vector<int> values(32);
  for (int lane = 0; lane < 32; ++lane) {
    values[lane] = static_cast<int>(2654435761u * static_cast<unsigned>(lane + 1));
  }
  for (unsigned mask : kMasks) {
    std::vector<unsigned> out(9 * 32, 77), expected = out;
    int least = std::numeric_limits<int>::max(), most = std::numeric_limits<int>::min();
    unsigned sum = 0, low = ~0u, high = 0, all = ~0u, any = 0, odd = 0;
    for (int lane : lanes_of(mask)) {
      const int value = values[lane];
      const auto bits = static_cast<unsigned>(value);
      sum += bits, least = std::min(least, value), most = std::max(most, value);
      low = std::min(low, bits), high = std::max(high, bits);
      all &= bits, any |= bits, odd ^= bits;
    }
    const unsigned results[9] = {
        sum, static_cast<unsigned>(least), static_cast<unsigned>(most), sum, low, high, all, any,
        odd};
    for (int lane : lanes_of(mask)) std::copy_n(results, 9, &expected[9 * lane]);
    launch<reduce>(1, 32, 0, nullptr, mask, values.data(), out.data());
    check_equal(out, expected);
  }
}

void votes_in_two_branches() {
  std::vector<int> predicates(32);
  std::vector<unsigned> out(32), expected(32);
  for (int lane = 0; lane < 32; ++lane) predicates[lane] = lane % 3 == 0;
  for (int lane = 0; lane < 32; ++lane) {
    for (int other = lane % 2; other < 32; other += 2) {
      expected[lane] |= static_cast<unsigned>(predicates[other]) << other;
    }
  }
  launch<vote_diverged>(1, 32, 0, nullptr, predicates.data(), out.data());
  check_equal(out, expected);
}

void active_lanes_elect_one() {
  std::vector<int> values(32), positions(32), numbers;
  for (int lane = 0; lane < 32; ++lane) values[lane] = lane % 3 - 1;
  int counter = 5;
  launch<count_negative>(1, 32, 0, nullptr, values.data(), &counter, positions.data());
  for (int lane = 0; lane < 32; ++lane) {
    check((positions[lane] >= 0) == (values[lane] < 0), "a lane that is not active has a number");
    if (positions[lane] >= 0) numbers.push_back(positions[lane]);
  }
  std::sort(numbers.begin(), numbers.end());
  std::vector<int> expected(11);
  std::iota(expected.begin(), expected.end(), 5);
  check_equal(numbers, expected);
  check(counter == 16, "the counter is wrong");
}

void collectives_need_every_lane() {
  const std::vector<std::string> names = {
      "__ballot_sync",     "__any_sync",        "__all_sync",        "__uni_sync",
      "__match_any_sync",  "__match_all_sync",  "__reduce_add_sync", "__reduce_min_sync",
      "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};
  std::vector<unsigned> out(32);
  for (size_t which = 0; which < names.size(); ++which) {
    const auto call = [&](unsigned mask, int threads) {
      launch<call_collective>(1, threads, 0, nullptr, static_cast<int>(which), mask, out.data());
    };
    call(0x3fffffff, 32);
    check_error([&] { call(0x7fffffff, 32); }, {"thread (30,0,0)", "exits", names[which]});
    check_error([&] { call(0x3fffffff, 20); }, {"thread (0,0,0)", names[which], "names lane 20"});
    check_error([&] { call(0x3ffffffe, 32); }, {"thread (0,0,0)", names[which], "lacks"});
  }
}

const RegisterCases kCases = {
    {"active_lanes_elect_one", active_lanes_elect_one},
    {"collectives_need_every_lane", collectives_need_every_lane},
    {"matches", matches},
    {"reductions", reductions},
    {"shuffles_of_16_bits", shuffles_of_16_bits},
    {"shuffles_of_short", shuffles_of_short},
    {"votes", votes},
    {"votes_in_two_branches", votes_in_two_branches},
};

}  // namespace
}  // namespace cnnkernels::CNN_TARGET
