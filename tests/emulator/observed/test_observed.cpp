// Tests of the emulator's checker and profiler. Without arguments it lists its cases; with a
// case's name it runs it and exits with 0 if it passed. A case of a planted kernel runs it with
// its bug, which must give its error, and without, which must give its result and no error.
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "../../../csrc/emulator/emulator.h"
#include "../checks.h"
#include "counted.h"
#include "planted.h"

namespace cnnkernels::instrumented {
namespace {

using Kernel = void (*)(int blocks, const float* in, float* out);

// Numbers 1, 2, ..., between elements that no kernel may touch.
struct Buffers {
  static constexpr int kBlocks = 3, kCount = kBlocks * kPlantedThreads;
  std::vector<float> in = std::vector<float>(kCount + 8), out = std::vector<float>(kCount + 8);

  Buffers() { std::iota(in.begin(), in.end(), -3.0f); }

  // The memory that a launch knows begins at a multiple of 16 bytes.
  void run(Kernel kernel) {
    emulator::KnownMemory known;
    known.add({"in", &in[4], kCount * sizeof(float), false});
    known.add({"out", &out[4], kCount * sizeof(float), true});
    kernel(kBlocks, &in[4], &out[4]);
  }

  std::vector<float> result() const { return {out.begin() + 4, out.end() - 4}; }

  std::vector<float> expected(Result kind) const {
    std::vector<float> values(kCount, 0);
    if (kind == Result::sum) values[0] = std::accumulate(in.begin() + 4, in.end() - 4, 0.0f);
    for (int i = 0; i < kCount && kind != Result::sum; ++i) {
      values[i] = in[4 + (kind == Result::copy ? i : i ^ 1)];
    }
    return values;
  }
};

void run_planted(const Planted& planted) {
  emulator::observe({true, false});
  Buffers buffers;
  check_error([&] { buffers.run(planted.buggy); },
              {std::string("kernel "), std::string(planted.name) + "<false>", ", block (",
               ", thread (", "planted.cu:", planted.error});
  for (const bool profile : {false, true}) {
    emulator::observe({true, profile});
    buffers = {};
    buffers.run(planted.repaired);
    check_equal(buffers.result(), buffers.expected(planted.result));
  }
  emulator::observe({false, false});
  buffers = {};
  buffers.run(planted.repaired);
  check_equal(buffers.result(), buffers.expected(planted.result));
}

// Nobody can put back what a first run wrote to memory that is not known.
void unknown_memory_is_written_once() {
  for (const Planted& planted : planted()) {
    if (planted.name != std::string("sum_in_any_order")) continue;
    emulator::observe({true, false});
    Buffers buffers;
    planted.repaired(Buffers::kBlocks, &buffers.in[4], &buffers.out[4]);
    emulator::observe({false, false});
    check_equal(buffers.result(), buffers.expected(planted.result));
  }
}

// ---- The profiler ----

// Counts what body() launches; `counts` are parts of the counters' JSON.
void check_counts(const std::function<void()>& body, const std::vector<std::string>& counts,
                  int line = __builtin_LINE()) {
  emulator::clear_counters();
  emulator::observe({false, true});
  body();
  emulator::observe({false, false});
  const std::string json = emulator::counters_json();
  for (const std::string& count : counts) {
    if (json.find(count) == std::string::npos) report(line, count + " not in " + json);
  }
}

template <class T>
void check_shared(int stride, int loads, int ideal_loads, int line = __builtin_LINE()) {
  std::vector<T> out(32);
  check_counts(
      [&] { read_shared_strided(stride, out.data()); },
      {"\"shared_load_requests\": 1,", "\"shared_load_units\": " + std::to_string(loads) + ",",
       "\"shared_load_ideal\": " + std::to_string(ideal_loads) + ",",
       "\"shared_store_requests\": " + std::to_string(stride) + ",",
       "\"shared_load_bytes\": " + std::to_string(32 * sizeof(T)) + ","},
      line);
}

// 32 banks of 4 bytes: lanes s words apart meet in gcd(s, 32) of them.
void bank_conflicts() {
  check_shared<float>(1, 1, 1);
  check_shared<float>(2, 2, 1);
  check_shared<float>(3, 1, 1);
  check_shared<float>(4, 4, 1);
  check_shared<float>(6, 2, 1);
  check_shared<float>(32, 32, 1);
  check_shared<float>(33, 1, 1);
  check_shared<double>(1, 2, 2);  // a half warp at a time
  check_shared<double>(2, 4, 2);
  check_shared<double>(16, 32, 2);
  check_shared<unsigned char>(1, 1, 1);  // four lanes to a word
  check_shared<unsigned char>(4, 1, 1);
  check_shared<unsigned char>(8, 2, 1);
}

// Sectors of 32 bytes hold 8 floats.
void sectors() {
  alignas(32) const float in[32 * 9 + 8] = {};
  std::vector<float> out(32);
  for (const auto& [stride, units] :
       std::map<int, int>{{0, 1}, {1, 4}, {2, 8}, {4, 16}, {8, 32}, {9, 32}}) {
    const std::string bytes = std::to_string(stride == 0 ? 4 : 128);
    check_counts(
        [&, stride = stride] { read_global_strided(stride, in, out.data()); },
        {"\"launches\": 1, \"blocks\": 1, \"threads\": 32,",
         "\"bytes_read\": " + bytes + ", \"bytes_written\": 128,",
         "\"global_load_requests\": 1, \"global_load_bytes\": 128, \"global_load_units\": " +
             std::to_string(units) + ","});
  }
  // From the middle of a sector on, a warp's 128 bytes touch five.
  check_counts([&] { read_global_strided(1, in + 4, out.data()); }, {"\"global_load_units\": 5,"});
}

// Lanes go through the inner loop 1 to 4 times, and are together again in each turn of the outer
// one: 2 * 4 requests, though the lanes make 2 * (1 + 2 + 3 + 4) * 8 loads.
void lanes_meet_again_after_a_loop() {
  const std::vector<float> in(8);
  std::vector<float> out(32);
  check_counts([&] { read_in_loops(in.data(), out.data()); },
               {"\"global_load_requests\": 8, \"global_load_bytes\": 640,", "\"bytes_read\": 32,"});
}

// One request each to global and to shared memory: 125 of 128 floats from 16 sectors, and 4 quarter
// warps that fill all banks.
void asynchronous_copies() {
  alignas(32) const float in[4 * 32] = {};
  std::vector<float> out(32);
  check_counts([&] { copy_all_but_three(in, out.data()); },
               {"\"bytes_read\": 500,",
                "\"global_load_requests\": 1, \"global_load_bytes\": 500, "
                "\"global_load_units\": 16,",
                "\"shared_store_requests\": 1, \"shared_store_bytes\": 512, "
                "\"shared_store_units\": 4, \"shared_store_ideal\": 4"});
}

void barriers_of_blocks() {
  check_counts([] { meet_thrice(); }, {"\"blocks\": 2, \"threads\": 128, \"barriers\": 6,"});
}

const RegisterCases kCases = {
    {"asynchronous_copies", asynchronous_copies},
    {"bank_conflicts", bank_conflicts},
    {"barriers_of_blocks", barriers_of_blocks},
    {"lanes_meet_again_after_a_loop", lanes_meet_again_after_a_loop},
    {"sectors", sectors},
    {"unknown_memory_is_written_once", unknown_memory_is_written_once},
};

}  // namespace
}  // namespace cnnkernels::instrumented

int main(int argc, char** argv) {
  using namespace cnnkernels::instrumented;
  for (const Planted& bug : planted()) cases()[bug.name] = [bug] { run_planted(bug); };
  return run_cases(argc, argv);
}
