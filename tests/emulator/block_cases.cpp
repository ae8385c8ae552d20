// What the threads of a block do together, and copies to shared memory.
#include <algorithm>
#include <numeric>
#include <vector>

#include "block.cu"
#include "checks.h"

namespace cnnkernels::CNN_TARGET {
namespace {

void votes_of_a_block() {
  constexpr int kThreads = 96;
  for (int held : {0, 1, 50, kThreads - 1, kThreads}) {
    std::vector<int> predicates(kThreads), out(3 * kThreads), expected;
    for (int i = 0; i < held; ++i) predicates[7 * i % kThreads] = -1 - i;
    const int count = static_cast<int>(kThreads) -
                      static_cast<int>(std::count(predicates.begin(), predicates.end(), 0));
    for (int i = 0; i < kThreads; ++i) {
      expected.insert(expected.end(), {count, count == kThreads, count > 0});
    }
    launch<vote_in_block>(1, kThreads, 0, nullptr, predicates.data(), out.data());
    for (int i = 0; i < kThreads; ++i) {  // "non-zero" is all that CUDA promises
      out[3 * i + 1] = out[3 * i + 1] != 0;
      out[3 * i + 2] = out[3 * i + 2] != 0;
    }
    check_equal(out, expected);
  }
}

void named_barriers() {
  std::vector<int> in(4 * 64), out(4 * 64), expected;
  std::iota(in.begin(), in.end(), 1);
  for (int round = 0; round < 4; ++round) {
    for (int i = 63; i >= 0; --i) expected.push_back(in[64 * round + i]);
  }
  launch<pass_through_ring>(1, 128, 0, nullptr, in.data(), out.data());
  check_equal(out, expected);
}

// "cp.async ... src-size ... remaining bytes in destination are filled with zeros": PTX ISA.
template <int kBytes>
void check_copies() {
  constexpr int kThreads = 64;
  alignas(16) unsigned char in[kThreads * kBytes];
  for (int i = 0; i < kThreads * kBytes; ++i) in[i] = static_cast<unsigned char>(31 * i + 1);
  for (int valid : {0, 1, 2, 3, kBytes - 1, kBytes}) {
    std::vector<int> expected;
    for (int thread = 0; thread < kThreads; ++thread) {
      for (int i = 0; i < kBytes; ++i) {
        expected.push_back(i < valid ? in[kBytes * (thread ^ 1) + i] : 0);
      }
    }
    std::vector<unsigned char> out(kThreads * kBytes, 77);
    launch<copy_through_shared<kBytes>>(1, kThreads, kThreads * kBytes, nullptr, in, valid,
                                        out.data());
    check_equal(std::vector<int>(out.begin(), out.end()), expected);
  }
}

void copies_of_each_size() {
  check_copies<4>();
  check_copies<8>();
  check_copies<16>();
}

template <int kStages>
void check_stages(int tiles) {
  constexpr int kThreads = 64;
  std::vector<float> in(tiles * kThreads), out(in.size());
  std::iota(in.begin(), in.end(), 1.0f);
  launch<copy_in_stages<kStages>>(1, kThreads, kStages * kThreads * sizeof(float), nullptr,
                                  in.data(), tiles, out.data());
  check_equal(out, in);
}

void copies_in_groups() {
  for (int tiles : {1, 2, 3, 4, 9}) {
    check_stages<2>(tiles);
    check_stages<4>(tiles);
  }
}

void wrong_copies() {
  alignas(16) const unsigned char in[64 * 16] = {};
  std::vector<unsigned char> out(64 * 16);
  const auto copy = [&](const unsigned char* from, int valid) {
    launch<copy_through_shared<16>>(1, 64, 64 * 16, nullptr, from, valid, out.data());
  };
  check_error([&] { copy(in + 8, 16); },
              {"copy_through_shared<16>", "block (0,0,0), thread (0,0,0)",
               "block.cu:", "cp.async from a misaligned address"});
  check_error([&] { copy(in, 17); }, {"cp.async of 16 bytes reads 17"});
}

const RegisterCases kCases = {
    {"copies_in_groups", copies_in_groups}, {"copies_of_each_size", copies_of_each_size},
    {"named_barriers", named_barriers},     {"votes_of_a_block", votes_of_a_block},
    {"wrong_copies", wrong_copies},
};

}  // namespace
}  // namespace cnnkernels::CNN_TARGET
