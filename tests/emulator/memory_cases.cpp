// Vectors, atomics, cache hints, fences.
#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include "checks.h"
#include "memory.cu"

namespace cnnkernels::CNN_TARGET {
namespace {

// ---- Vectors ----

// 32 threads copy; then one of them reads, or writes, half a vector too far.
template <class Vector>
void check_copy(const std::string& name) {
  constexpr int kThreads = 32, kBytes = sizeof(Vector) * kThreads;
  std::vector<Vector> storage(2 * kThreads + 2);
  char* in = reinterpret_cast<char*>(storage.data());
  char* out = in + kBytes + sizeof(Vector);
  std::vector<char> expected(kBytes);
  for (int i = 0; i < kBytes; ++i) in[i] = expected[i] = static_cast<char>(i * 37 + 1);
  const auto copy = [&](int read_offset, int write_offset) {
    launch<copy_vectors<Vector>>(1, kThreads, 0, nullptr, in, out, 5, read_offset, write_offset);
  };
  copy(0, 0);
  check_equal(std::vector<char>(out, out + kBytes), expected);

  const std::string size = std::to_string(sizeof(Vector));
  for (int offset : {1, static_cast<int>(sizeof(Vector)) / 2}) {
    check_error([&] { copy(offset, 0); },
                {"copy_vectors", name, "block (0,0,0)", "thread (5,0,0)",
                 "misaligned read of " + size + " bytes", "no multiple of " + size});
    check_error([&] { copy(0, offset); },
                {"copy_vectors", name, "thread (5,0,0): a misaligned write of " + size + " bytes"});
  }
  copy(sizeof(Vector), sizeof(Vector));
}

void vectors_are_aligned() {
  check_copy<char2>("signed char, 2");
  check_copy<uchar4>("unsigned char, 4");
  check_copy<short4>("short int, 4");
  check_copy<__half2>("__half2");
  check_copy<__nv_bfloat162>("__nv_bfloat162");
  check_copy<float2>("float, 2");
  check_copy<float4>("float, 4");
  check_copy<uint4>("unsigned int, 4");
  check_copy<double2>("double, 2");
}

void vectors_in_registers_and_shared_memory() {
  std::vector<float4> in(32), out(32);
  for (int i = 0; i < 32; ++i) in[i] = make_float4(i, 2 * i, i * i, -i);
  launch<sum_neighbours>(1, 32, 0, nullptr, &in[0].x, &out[0].x);
  for (int i = 0; i < 32; ++i) {
    const float4 next = in[(i + 1) % 32];
    check(out[i].x == in[i].x + next.x + 1.5f && out[i].y == in[i].y + next.y + 2 &&
              out[i].z == in[i].z + next.z + 3 && out[i].w == in[i].w + next.w + 4,
          "thread " + std::to_string(i));
  }
}

void makers_of_vectors() {
  std::vector<int> out(22), expected(22);
  std::iota(expected.begin(), expected.end(), 1);
  for (int negative : {2, 7, 16, 19}) expected[negative - 1] = -negative;
  launch<make_vectors>(1, 1, 0, nullptr, out.data());
  check_equal(out, expected);
}

void cache_hints() {
  std::vector<float4> in(32), out(32);
  for (int i = 0; i < 32; ++i) in[i] = make_float4(i, i + 0.25f, i + 0.5f, i + 0.75f);
  launch<copy_with_hints>(1, 32, 0, nullptr, in.data(), out.data());
  check(std::memcmp(in.data(), out.data(), 32 * sizeof(float4)) == 0, "the copy differs");
  const char* bytes = reinterpret_cast<const char*>(in.data());
  launch<load_misaligned>(1, 1, 0, nullptr, bytes + 4, &out[0].x);
  check(out[0].x == in[0].y, "the wrong element");
  check_error([&] { launch<load_misaligned>(1, 1, 0, nullptr, bytes + 2, &out[0].x); },
              {"load_misaligned", "thread (0,0,0)", "misaligned read of 4 bytes"});
}

// ---- Atomics ----

template <class T>
T applied(Atomic operation, T old, T value) {
  using Unsigned = std::make_unsigned_t<T>;
  const auto u = static_cast<Unsigned>(old), v = static_cast<Unsigned>(value);
  switch (operation) {
    case Atomic::add:
      return static_cast<T>(u + v);
    case Atomic::sub:
      return static_cast<T>(u - v);
    case Atomic::exchange:
      return value;
    case Atomic::min:
      return std::min(old, value);
    case Atomic::max:
      return std::max(old, value);
    case Atomic::bit_and:
      return static_cast<T>(u & v);
    case Atomic::bit_or:
      return static_cast<T>(u | v);
    case Atomic::bit_xor:
      return static_cast<T>(u ^ v);
    case Atomic::increment:
      return old >= value ? 0 : old + 1;
    default:
      return old == 0 || old > value ? value : old - 1;
  }
}

template <class T>
void check_atomics(const std::vector<Atomic>& operations) {
  using Limits = std::numeric_limits<T>;
  const std::vector<T> numbers = {0,
                                  1,
                                  2,
                                  5,
                                  77,
                                  Limits::max(),
                                  Limits::max() - 1,
                                  Limits::min(),
                                  static_cast<T>(-1),
                                  static_cast<T>(-77),
                                  static_cast<T>(Limits::max() / 3)};
  std::vector<T> olds, values;
  for (T old : numbers) {
    for (T value : numbers) olds.push_back(old), values.push_back(value);
  }
  for (Atomic operation : operations) {
    std::vector<T> cells = olds, before(olds.size()), expected;
    for (size_t i = 0; i < olds.size(); ++i)
      expected.push_back(applied(operation, olds[i], values[i]));
    launch<apply_atomic<T>>(static_cast<int>(numbers.size()), static_cast<int>(numbers.size()), 0,
                            nullptr, operation, cells.data(), values.data(), before.data());
    check_equal(cells, expected);
    check_equal(before, olds);
  }
}

void atomic_results() {
  std::vector<Atomic> operations = {Atomic::min, Atomic::max, Atomic::bit_and, Atomic::bit_or,
                                    Atomic::bit_xor};
  check_atomics<long long>(operations);
  operations.insert(operations.end(), {Atomic::add, Atomic::exchange});
  check_atomics<unsigned long long>(operations);
  operations.push_back(Atomic::sub);
  check_atomics<int>(operations);
  operations.insert(operations.end(), {Atomic::increment, Atomic::decrement});
  check_atomics<unsigned>(operations);
}

// Blocks on several OS threads lose no update: each finds another value.
template <class T, void (*kKernel)(T*, T*)>
void check_all_ones(int blocks) {
  constexpr int kThreads = 256;
  T total = 0;
  std::vector<T> before(blocks * kThreads);
  launch<kKernel>(blocks, kThreads, 0, nullptr, &total, before.data());
  check(static_cast<double>(total) == blocks * kThreads, "updates are lost");
  std::vector<double> found;
  for (T value : before) found.push_back(static_cast<double>(value));
  std::sort(found.begin(), found.end());
  for (size_t i = 0; i < found.size(); ++i)
    check(found[i] == static_cast<double>(i), "two threads have found the same");
}

void atomic_additions() {
  check_all_ones<int, add_ones<int>>(2000);
  check_all_ones<unsigned, add_ones<unsigned>>(400);
  check_all_ones<unsigned long long, add_ones<unsigned long long>>(400);
  check_all_ones<float, add_ones<float>>(400);
  check_all_ones<double, add_ones<double>>(2000);
  check_all_ones<__half, add_ones<__half>>(8);
  check_all_ones<__nv_bfloat16, add_ones<__nv_bfloat16>>(1);
}

void atomic_additions_of_pairs() {
  __half2 total = {0, 0};
  __nv_bfloat162 btotal = {0, 0};
  launch<add_pairs>(64, 4, 0, nullptr, &total, &btotal);
  check(float(total.x) == 256 && float(total.y) == 512, "half2");
  check(float(btotal.x) == 256 && float(btotal.y) == -256, "bfloat162");
}

void compare_and_swap() {
  check_all_ones<int, swap_ones<int>>(1000);
  check_all_ones<unsigned, swap_ones<unsigned>>(100);
  check_all_ones<unsigned long long, swap_ones<unsigned long long>>(1000);
  check_all_ones<unsigned short, swap_ones<unsigned short>>(250);
}

void atomic_exchange() {
  constexpr int kBlocks = 2000, kThreads = 256, kCount = kBlocks * kThreads;
  int place = 0;
  std::vector<int> taken(kCount), expected(kCount + 1);
  launch<pass_on>(kBlocks, kThreads, 0, nullptr, &place, taken.data());
  taken.push_back(place);
  std::sort(taken.begin(), taken.end());
  std::iota(expected.begin(), expected.end(), 0);
  check_equal(taken, expected);
}

void atomics_in_shared_memory() {
  constexpr int kBlocks = 50, kThreads = 128;
  std::vector<int> values(kBlocks * kThreads), counts(kBins), expected(kBins);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i * i % 13);
  for (int value : values) ++expected[value];
  launch<count_values>(kBlocks, kThreads, 0, nullptr, values.data(), counts.data());
  check_equal(counts, expected);
}

void fences_order_blocks() {
  constexpr int kBlocks = 20000;
  std::vector<int> values(kBlocks), parts(kBlocks);
  std::iota(values.begin(), values.end(), 1);
  unsigned done = 0;
  int sum = 0;
  launch<sum_in_last_block>(kBlocks, 2, 0, nullptr, values.data(), parts.data(), &done, &sum);
  check(sum == kBlocks * (kBlocks + 1) / 2, "a part is missing");
  check(done == 0, "the counter has not begun again");
}

void misaligned_atomic() {
  alignas(8) char bytes[16] = {};
  const auto add = [&](int offset) {
    launch<add_misaligned>(1, 4, 0, nullptr, static_cast<char*>(bytes), offset);
  };
  add(4);
  check(bytes[4] == 1, "nothing is added");
  check_error([&] { add(2); },
              {"add_misaligned", "thread (3,0,0)", "misaligned atomic operation of 4 bytes"});
}

const RegisterCases kCases = {
    {"atomic_additions", atomic_additions},
    {"atomic_additions_of_pairs", atomic_additions_of_pairs},
    {"atomic_exchange", atomic_exchange},
    {"atomic_results", atomic_results},
    {"atomics_in_shared_memory", atomics_in_shared_memory},
    {"cache_hints", cache_hints},
    {"compare_and_swap", compare_and_swap},
    {"fences_order_blocks", fences_order_blocks},
    {"makers_of_vectors", makers_of_vectors},
    {"misaligned_atomic", misaligned_atomic},
    {"vectors_are_aligned", vectors_are_aligned},
    {"vectors_in_registers_and_shared_memory", vectors_in_registers_and_shared_memory},
};

}  // namespace
}  // namespace cnnkernels::CNN_TARGET
