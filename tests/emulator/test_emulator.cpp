// Tests of the emulator, without Python or torch. Without arguments it lists its cases; with a
// case's name it runs it and exits with 0 if it passed; `time` measures a matrix product.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cfenv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/emulator/emulator.h"
#include "../../csrc/standalone/threads.h"
#include "checks.h"
#include "kernels.h"

namespace cnnkernels::emulated {
namespace {

// ---- Values ----

// Small integers, so that sums are exact in any order.
std::vector<float> small_integers(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i * 7919 % 17) - 8;
  return values;
}

// Values whose sum depends on the order.
std::vector<float> fractions(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = 1 / static_cast<float>(i * 7919 % 1009 + 1);
  return values;
}

std::vector<float> multiply_plainly(const std::vector<float>& a, const std::vector<float>& b,
                                    int n) {
  std::vector<float> product(a.size(), 0);
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k < n; ++k) {
      for (int j = 0; j < n; ++j) product[i * n + j] += a[i * n + k] * b[k * n + j];
    }
  }
  return product;
}

void check_multiply(int n) {
  const std::vector<float> a = small_integers(n * n), b(a.rbegin(), a.rend());
  std::vector<float> product(n * n);
  multiply(a.data(), b.data(), product.data(), n);
  check_equal(product, multiply_plainly(a, b, n));
}

// ---- Cases ----

void tiled_matmul() {
  check_multiply(16);
  check_multiply(96);
}

void thread_numbers() {
  const std::vector<std::pair<dim3, dim3>> launches = {{dim3(1), dim3(1)},
                                                       {dim3(3, 4, 5), dim3(6, 7, 8)},
                                                       {dim3(70000), dim3(3)},
                                                       {dim3(1, 2, 300), dim3(1, 1, 64)},
                                                       {dim3(2), dim3(1024)}};
  for (const auto& [grid, block] : launches) {
    const size_t count = size_t{grid.x} * grid.y * grid.z * block.x * block.y * block.z;
    std::vector<int64_t> out(count, 0), expected(count);
    number_threads(grid, block, out.data());
    for (size_t i = 0; i < count; ++i) expected[i] = static_cast<int64_t>(i);
    check_equal(out, expected);
  }
}

void block_sums() {
  for (int threads : {32, 96, 256, 1024}) {
    const int blocks = 9;
    const std::vector<float> values = small_integers(blocks * threads);
    std::vector<float> sums(blocks), expected(blocks, 0);
    for (size_t i = 0; i < values.size(); ++i) expected[i / threads] += values[i];
    sum_blocks(values.data(), sums.data(), blocks, threads);
    check_equal(sums, expected);
  }
}

template <class T>
void check_shuffle(int kind, int operand, int width, const std::vector<int>& sources) {
  std::vector<T> in(32), out(32), expected(32);
  // The second factor sets the upper half of an 8-byte type too.
  for (int i = 0; i < 32; ++i) in[i] = static_cast<T>(i + 1) * (sizeof(T) == 8 ? 1ll << 33 : 3);
  for (int i = 0; i < 32; ++i) expected[i] = in[sources[i]];
  shuffle_warp(kind, in.data(), out.data(), operand, width);
  check_equal(out, expected);
}

void check_shuffles(int kind, int operand, int width, const std::vector<int>& sources) {
  check_shuffle<int>(kind, operand, width, sources);
  check_shuffle<unsigned>(kind, operand, width, sources);
  check_shuffle<float>(kind, operand, width, sources);
  check_shuffle<double>(kind, operand, width, sources);
  check_shuffle<long long>(kind, operand, width, sources);
}

// `pattern` holds for the first lanes and goes on shifted by its length.
std::vector<int> repeated(const std::vector<int>& pattern) {
  const int length = static_cast<int>(pattern.size());
  std::vector<int> sources(32);
  for (int i = 0; i < 32; ++i) sources[i] = i / length * length + pattern[i % length];
  return sources;
}

// Expected lanes are written out by hand from the programming guide's description.
void shuffles() {
  constexpr int kIndex = 0, kUp = 1, kDown = 2, kXor = 3;
  check_shuffles(kIndex, 5, 32, std::vector<int>(32, 5));
  check_shuffles(kIndex, 37, 32, std::vector<int>(32, 5));
  check_shuffles(kIndex, 5, 4, repeated({1, 1, 1, 1}));
  check_shuffles(kUp, 1, 4, repeated({0, 0, 1, 2}));
  check_shuffles(kUp, 3, 8, repeated({0, 1, 2, 0, 1, 2, 3, 4}));
  check_shuffles(kUp, 0, 32, repeated({0}));
  check_shuffles(kDown, 1, 4, repeated({1, 2, 3, 3}));
  check_shuffles(kDown, 3, 8, repeated({3, 4, 5, 6, 7, 5, 6, 7}));
  check_shuffles(kXor, 1, 32, repeated({1, 0}));
  check_shuffles(kXor, 3, 32, repeated({3, 2, 1, 0}));
  // Wider than the segment: earlier segments may be read, later ones may not.
  check_shuffles(kXor, 4, 4, repeated({0, 1, 2, 3, 0, 1, 2, 3}));
  std::vector<int> reversed(32);
  for (int i = 0; i < 32; ++i) reversed[i] = 31 - i;
  check_shuffles(kXor, 31, 32, reversed);
  for (int width : {0, 3, 64}) {
    check_error(
        [&] { check_shuffle<int>(kIndex, 0, width, reversed); },
        {"shuffle_lanes", "block (0,0,0)", "thread (0,0,0)", "width " + std::to_string(width)});
  }
}

void lanes_outside_the_mask_read_as_nan() {
  const std::vector<float> in = small_integers(8);
  std::vector<float> out(8, 0);
  shuffle_down_eight(in.data(), out.data());
  check(std::isnan(out.back()), "lane 7 has read a lane outside the mask");
  check_equal(std::vector<float>(out.begin(), out.end() - 1),
              std::vector<float>(in.begin() + 1, in.end()));
}

void diverged_warps() {
  std::vector<int> in(32), out(32), expected(32);
  for (int i = 0; i < 32; ++i) in[i] = i * i;
  for (int i = 0; i < 32; ++i) expected[i] = i % 2 == 0 ? 4960 : 5456;
  sum_diverged(in.data(), out.data());
  check_equal(out, expected);
}

void warp_barrier() {
  constexpr int kRounds = 5;
  std::vector<int> out(32), expected(32), before(32);
  for (int i = 0; i < 32; ++i) expected[i] = i;
  for (int round = 0; round < kRounds; ++round) {
    before = expected;
    for (int i = 0; i < 32; ++i) expected[i] += before[(i + 1) % 32];
  }
  sync_warp_rounds(out.data(), kRounds);
  check_equal(out, expected);
}

void warp_barrier_without_exited_lanes() {
  std::vector<int> out(40, 0), expected(40, 0);
  for (int i = 0; i < 40; ++i) expected[i] = i < 8 || i >= 32;
  sync_warp_after_exit(out.data());
  check_equal(out, expected);
}

void barrier_that_some_never_reach() {
  exit_before_barrier(1);
  check_error([] { exit_before_barrier(2); },
              {"barrier_after_exit", "block (1,0,0)", "thread (0,0,0)",
               "32 wait in __syncthreads at ", ": (0,0,0) (1,0,0)", "32 have exited: (32,0,0)"});
}

void barriers_at_two_places() {
  check_error([] { wait_apart(); },
              {"barriers_apart", "block (0,0,0)", "33 wait in __syncthreads at ", ": (0,0,0)",
               "31 wait in __syncwarp with mask 0xffffffff at ", ": (32,0,0) (33,0,0)"});
}

void mask_without_the_caller() {
  check_error([] { shuffle_with_mask(0xfffffff7, 32, 32, false); },
              {"shuffle_masked", "block (0,0,0)", "thread (3,0,0)",
               "__shfl_sync with mask 0xfffffff7", "lacks the calling lane 3"});
}

void mask_with_an_exited_lane() {
  shuffle_with_mask(0xff, 32, 8, false);
  // Lane 8 exits while lanes 0 to 7 wait for it.
  check_error([] { shuffle_with_mask(0x1ff, 32, 8, false); },
              {"shuffle_masked", "thread (8,0,0)", "exits", "mask 0x000001ff"});
  // Lane 31, the last to come to the warp barrier, has gone on to exit before lane 0 shuffles.
  check_error([] { shuffle_with_mask(0x800000ff, 32, 8, true); },
              {"shuffle_masked", "thread (0,0,0)", "names lane 31", "exited"});
}

void mask_beyond_the_block() {
  check_error([] { shuffle_with_mask(0xffffffff, 20, 20, false); },
              {"shuffle_masked", "thread (0,0,0)", "names lane 20", "the block has no such"});
}

void launch_limits() {
  std::vector<int64_t> out(1);
  const std::vector<std::pair<dim3, dim3>> refused = {
      {dim3(0), dim3(1)},           {dim3(1, 0), dim3(1)},           {dim3(1, 1, 0), dim3(1)},
      {dim3(1), dim3(0)},           {dim3(1), dim3(1, 0)},           {dim3(1), dim3(1, 1, 0)},
      {dim3(1), dim3(1025)},        {dim3(1), dim3(1, 1025)},        {dim3(1), dim3(1, 1, 65)},
      {dim3(1), dim3(32, 33)},      {dim3(1), dim3(1024, 1024, 64)}, {dim3(1, 65536), dim3(1)},
      {dim3(1, 1, 65536), dim3(1)}, {dim3(2147483648u), dim3(1)}};
  for (const auto& [grid, block] : refused) {
    check_error([&, grid = grid, block = block] { number_threads(grid, block, out.data()); },
                {"kernel ", "number", "allowed"});
  }
}

void shared_memory_limits() {
  constexpr size_t kStatic = 4 << 10, k163 = 163 << 10, k227 = 227 << 10;
  use_4k(k163 - kStatic);
  check_error([&] { use_4k(k163 - kStatic + 1); },
              {"use_shared<1024>", "166913 bytes of shared memory", "166912"});
  check_error([&] { use_4k(k163 + 1); }, {"use_shared<1024>", "dynamic shared memory"});
  use_48k(0);
  emulator::set_architecture(90);
  use_4k(k227 - kStatic);
  check_error([&] { use_4k(k227 - kStatic + 1); }, {"bytes of shared memory"});
  emulator::set_architecture(75);
  use_48k(16 << 10);
  check_error([&] { use_48k((16 << 10) + 1); }, {"bytes of shared memory"});
  bool refused = false;
  try {
    emulator::set_architecture(81);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  check(refused, "sm_81 is not refused");
}

// No CUDA, as ptxas would refuse it.
void use_two_arrays() {
  SHARED_ARRAY(float, first, [12288]);
  SHARED_ARRAY(char, second, [1]);
  first[0] = second[0];
}

void static_shared_memory_limit() {
  check_error([] { launch<use_two_arrays>(2, 1, 0, nullptr); },
              {"use_two_arrays", "thread (0,0,0)", "second", "49153 bytes of static"});
}

using Touch = void (*)(int index, bool write, float value, float* out);

void check_touch(Touch touch, const std::string& name, const std::string& array) {
  std::vector<float> out(3, 0);
  const auto all_nan = [&] {
    return std::all_of(out.begin(), out.end(), [](float x) { return std::isnan(x); });
  };
  for (int index : {0, 15}) touch(index, true, 1.0f, out.data());
  for (int index : {-1, 16, 31}) {
    out.assign(3, 0);
    touch(index, false, 0, out.data());
    check(all_nan(), "a stray read gives a number");
    for (float value : {1.0f, 0.0f, -std::nanf("")}) {
      check_error(
          [&] { touch(index, true, value, out.data()); },
          {name, "block (2,0,0)", "written outside", (index < 0 ? "before " : "behind ") + array});
    }
  }
}

void write_beside_a_static_array() { check_touch(touch_static, "touch_static_array", "tile"); }

void write_beside_the_dynamic_buffer() {
  check_touch(touch_dynamic, "touch_dynamic_buffer", "the dynamic buffer");
}

void uninitialised_shared_memory_is_nan() {
  set_thread_count(1);  // all blocks in one arena, so that a write could live on
  for (Touch touch : {touch_static, touch_dynamic}) {
    for (int index = 0; index < 16; ++index) {
      std::vector<float> out(3, 0);
      touch(index, true, 1, out.data());
      for (float value : out) check(std::isnan(value), "uninitialised shared memory is a number");
    }
  }
}

void write_shared_then_read(float* out) {
  SHARED_ARRAY(float, tile, [1]);
  DYNAMIC_SHARED(float, buffer);
  out[blockIdx.x] = std::isnan(tile[0]) && std::isnan(buffer[0]);
  tile[0] = buffer[0] = 1;
}

void shared_memory_does_not_outlive_its_block() {
  set_thread_count(1);
  std::vector<float> out(5, 0);
  launch<write_shared_then_read>(5, 1, sizeof(float), nullptr, out.data());
  check_equal(out, std::vector<float>(5, 1));
}

void one_array_per_instantiation() {
  std::vector<int> out(2, 0);
  compare_arrays(out.data());
  check_equal(out, {1, 1});
}

void same_bits_whatever_the_thread_count() {
  constexpr int kN = 128, kBlocks = 300, kThreads = 256;
  const std::vector<float> a = fractions(kN * kN), values = fractions(kBlocks * kThreads);
  std::vector<std::vector<float>> products, sums;
  for (int threads : {1, 2, 3, 7}) {
    set_thread_count(threads);
    products.emplace_back(kN * kN);
    multiply(a.data(), a.data(), products.back().data(), kN);
    sums.emplace_back(kBlocks);
    sum_blocks(values.data(), sums.back().data(), kBlocks, kThreads);
  }
  for (size_t i = 1; i < products.size(); ++i) {
    check_equal(products[i], products[0]);
    check_equal(sums[i], sums[0]);
  }
}

struct Unwound {
  int* count;
  ~Unwound() { ++*count; }
};

// No CUDA: an exception from the midst of a block whose other threads wait.
void throw_after_barrier(int* unwound) {
  __syncthreads();
  const Unwound guard = {unwound};
  if (threadIdx.x == 5) throw std::range_error("thrown in a kernel");
  __syncthreads();
}

void reuse_after_an_error() {
  for (int i = 0; i < 20; ++i) {
    int unwound = 0;
    std::string message;
    try {
      launch<throw_after_barrier>(1, 64, 0, nullptr, &unwound);
    } catch (const std::range_error& error) {
      message = error.what();
    }
    check(message == "thrown in a kernel", "the exception is lost");
    check(unwound == 1, "the thread that threw is not unwound");
    check_error([] { exit_before_barrier(2); }, {"__syncthreads"});
    check_error([] { shuffle_with_mask(0x1ff, 32, 8, false); }, {"exits"});
    check_error([] { wait_apart(); }, {"__syncwarp"});
    warp_barrier_without_exited_lanes();
    check_multiply(32);
  }
}

void deep_stacks() {
  constexpr int kDepth = 100, kThreads = 1024;
  std::vector<int64_t> out(kThreads), expected(kThreads);
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int depth = 1; depth <= kDepth; ++depth) {
      for (int i = 0; i < 256; ++i) expected[thread] += depth + i + thread;
    }
  }
  descend(kDepth, kThreads, out.data());
  check_equal(out, expected);
}

// An overflowing stack must not reach into that of another fiber.
void stack_overflow_faults() {
  const pid_t child = fork();
  if (child == 0) {
    std::vector<int64_t> out(2);
    descend(1000, 2, out.data());
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  check(WIFSIGNALED(status) && (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS),
        "the overflow went unnoticed");
}

void arguments_are_converted() {
  float c = 0.5f;
  std::vector<double> out(3);
  convert_arguments(-7, 0.25f, &c, out.data());
  check_equal(out, {-7, 0.25, 0.5});
}

void rounding_mode_is_the_callers() {
  set_thread_count(1);
  float three = 3;
  for (int mode : {FE_UPWARD, FE_DOWNWARD, FE_TONEAREST}) {
    std::fesetround(mode);
    const volatile float divisor = three;
    const float expected = 1 / divisor;
    std::vector<float> out(2 * 33);
    divide(33, &three, out.data());
    check(std::fegetround() == mode, "the rounding mode has changed");
    std::fesetround(FE_TONEAREST);
    check_equal(out, std::vector<float>(2 * 33, expected));
  }
}

void launches_from_many_threads() {
  std::vector<std::string> errors(6);
  std::vector<std::thread> threads;
  for (std::string& error : errors) {
    threads.emplace_back([&error] {
      try {
        for (int i = 0; i < 5; ++i) {
          check_multiply(64);
          check_error([] { exit_before_barrier(2); }, {"block (1,0,0)"});
        }
      } catch (const std::exception& caught) {
        error = caught.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) check(error.empty(), error);
}

void time_matmul() {
  constexpr int kN = 256;
  const std::vector<float> a = small_integers(kN * kN);
  std::vector<float> product(kN * kN);
  set_thread_count(1);
  for (int i = 0; i < 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    multiply(a.data(), a.data(), product.data(), kN);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::printf("%dx%d matrix product on one thread: %.4f s\n", kN, kN, seconds.count());
  }
}

const RegisterCases kCases = {
    {"arguments_are_converted", arguments_are_converted},
    {"barrier_that_some_never_reach", barrier_that_some_never_reach},
    {"barriers_at_two_places", barriers_at_two_places},
    {"block_sums", block_sums},
    {"deep_stacks", deep_stacks},
    {"diverged_warps", diverged_warps},
    {"lanes_outside_the_mask_read_as_nan", lanes_outside_the_mask_read_as_nan},
    {"launch_limits", launch_limits},
    {"launches_from_many_threads", launches_from_many_threads},
    {"mask_beyond_the_block", mask_beyond_the_block},
    {"mask_with_an_exited_lane", mask_with_an_exited_lane},
    {"mask_without_the_caller", mask_without_the_caller},
    {"one_array_per_instantiation", one_array_per_instantiation},
    {"reuse_after_an_error", reuse_after_an_error},
    {"rounding_mode_is_the_callers", rounding_mode_is_the_callers},
    {"same_bits_whatever_the_thread_count", same_bits_whatever_the_thread_count},
    {"shared_memory_does_not_outlive_its_block", shared_memory_does_not_outlive_its_block},
    {"shared_memory_limits", shared_memory_limits},
    {"shuffles", shuffles},
    {"stack_overflow_faults", stack_overflow_faults},
    {"static_shared_memory_limit", static_shared_memory_limit},
    {"thread_numbers", thread_numbers},
    {"tiled_matmul", tiled_matmul},
    {"uninitialised_shared_memory_is_nan", uninitialised_shared_memory_is_nan},
    {"warp_barrier", warp_barrier},
    {"warp_barrier_without_exited_lanes", warp_barrier_without_exited_lanes},
    {"write_beside_a_static_array", write_beside_a_static_array},
    {"write_beside_the_dynamic_buffer", write_beside_the_dynamic_buffer},
};

}  // namespace
}  // namespace cnnkernels::emulated

int main(int argc, char** argv) {
  using namespace cnnkernels::emulated;
  cnnkernels::set_thread_count(4);  // whatever the machine has
  if (argc > 1 && std::string(argv[1]) == "time") {
    time_matmul();
    return 0;
  }
  return run_cases(argc, argv);
}
