#include "profiler.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace cnnkernels::emulator {
namespace {

constexpr std::uintptr_t kSectorBytes = 32, kPageBytes = 1024;
constexpr unsigned kBanks = 32, kWordBytes = 4;

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
  return hash ^ hash >> 29;
}

// How many different values there are.
template <class Values>
std::uint64_t distinct(Values& values) {
  std::sort(values.begin(), values.end());
  return static_cast<std::uint64_t>(std::unique(values.begin(), values.end()) - values.begin());
}

// The numbers of the units that [address, address + bytes) touches.
void add_units(std::uintptr_t address, std::size_t bytes, std::uintptr_t unit,
               std::vector<std::uintptr_t>& units) {
  for (std::uintptr_t u = address / unit; u <= (address + bytes - 1) / unit; ++u) {
    units.push_back(u);
  }
}

std::uint64_t wavefronts(std::vector<std::uintptr_t>& words) {
  const auto different = static_cast<std::ptrdiff_t>(distinct(words));
  std::array<std::uint64_t, kBanks> demand{};
  std::for_each(words.begin(), words.begin() + different,
                [&](std::uintptr_t word) { ++demand[word % kBanks]; });
  return *std::max_element(demand.begin(), demand.end());
}

}  // namespace

// ---- The course of a thread ----

void Profiler::begin_thread() { courses_[worker_.running_index()].assign(1, {}); }

void Profiler::enter_function(std::uintptr_t caller) {
  std::vector<Frame>& course = courses_[worker_.running_index()];
  course.push_back({mix(context(), caller), 0, {}});
}

void Profiler::leave_function() {
  std::vector<Frame>& course = courses_[worker_.running_index()];
  if (course.size() > 1) course.pop_back();
}

void Profiler::enter_code(std::uintptr_t code) {
  Frame& frame = courses_[worker_.running_index()].back();
  std::vector<Loop>& loops = frame.loops;
  if (frame.code == 0 || code > frame.code) {
    while (!loops.empty() && loops.back().last < code) loops.pop_back();
  } else {
    while (!loops.empty() && loops.back().first > code) loops.pop_back();
    std::uintptr_t& end = loop_ends_[code];
    end = std::max(end, frame.code);
    if (loops.empty() || loops.back().first != code) loops.push_back({code, end, 0});
    loops.back().last = end;
    ++loops.back().turns;
  }
  frame.code = code;
}

std::uint64_t Profiler::context() const {
  const Frame& frame = courses_[worker_.running_index()].back();
  std::uint64_t hash = frame.context;
  for (const Loop& loop : frame.loops) hash = mix(mix(hash, loop.first), loop.turns);
  return hash;
}

// ---- Requests ----

void Profiler::access(Space space, std::uintptr_t address, std::size_t bytes, Access kind,
                      std::uint32_t place) {
  if (space == Space::global) touch(address, bytes, kind);
  const unsigned thread = worker_.running_index(), lane = thread % kWarpSize;
  auto& requests = requests_[thread / kWarpSize];
  // cp.async loads and stores at one place.
  const std::uint64_t key = mix(mix(context(), place), space == Space::shared);
  Request& request = requests.try_emplace(key, Request{}).first->second;
  // A lane that comes again while the key is the same makes another request.
  if (request.lanes >> lane & 1) account(std::exchange(request, {}));
  request.space = space;
  request.kind = kind;
  request.lanes |= 1u << lane;
  request.addresses[lane] = address;
  request.bytes[lane] = static_cast<std::uint32_t>(bytes);
}

void Profiler::account(const Request& request) {
  const bool shared = request.space == Space::shared;
  const Count kind = request.kind == Access::atomic && !shared ? Count::global_atomic
                     : request.kind == Access::read
                         ? (shared ? Count::shared_load : Count::global_load)
                         : (shared ? Count::shared_store : Count::global_store);
  ++counters_.at(kind, Part::requests);
  // Lanes that shared memory serves together; all of them access as many bytes there.
  const std::uint32_t size = request.bytes[__builtin_ctz(request.lanes)];
  const unsigned group =
      shared ? kWarpSize * kWordBytes / std::clamp(size, 4u, 16u) : unsigned{kWarpSize};
  std::vector<std::uintptr_t> units;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (request.lanes >> lane & 1) {
      const std::uint32_t bytes = request.bytes[lane];
      counters_.at(kind, Part::bytes) += bytes;
      add_units(request.addresses[lane], bytes, shared ? kWordBytes : kSectorBytes, units);
    }
    if ((lane + 1) % group != 0 || units.empty()) continue;
    counters_.at(kind, Part::units) += shared ? wavefronts(units) : distinct(units);
    ++counters_.at(kind, Part::ideal);
    units.clear();
  }
}

void Profiler::flush(unsigned warp) {
  for (const auto& [key, request] : requests_[warp]) account(request);
  requests_[warp].clear();
}

void Profiler::touch(std::uintptr_t address, std::size_t bytes, Access kind) {
  for (std::uintptr_t at = address; at < address + bytes; ++at) {
    Touched& page = touched_[at / kPageBytes];
    const std::size_t i = at % kPageBytes;
    if (kind != Access::write && !page.written[i] && !page.read[i]) {
      page.read[i] = true;
      ++counters_[Count::bytes_read];
    }
    if (kind != Access::read && !page.written[i]) {
      page.written[i] = true;
      ++counters_[Count::bytes_written];
    }
  }
}

// ---- Blocks ----

void Profiler::begin_block() {
  ++counters_[Count::blocks];
  counters_[Count::threads] += worker_.threads();
}

void Profiler::sync_block() {
  ++counters_[Count::barriers];
  for (unsigned warp = 0; warp * kWarpSize < worker_.threads(); ++warp) flush(warp);
}

void Profiler::count(Counter counter, unsigned amount) {
  counters_[counter == Counter::fma ? Count::fma : Count::mma_flop] += amount;
}

// ---- All launches ----

namespace {

constexpr const char* kNames[] = {"launches", "blocks",   "threads",    "barriers",
                                  "fma",      "mma_flop", "bytes_read", "bytes_written"};
constexpr const char* kTraffic[] = {"global_load", "global_store", "global_atomic", "shared_load",
                                    "shared_store"};
constexpr const char* kParts[] = {"requests", "bytes", "units", "ideal"};

std::mutex all_counters_mutex;
std::vector<std::pair<std::string, Counters>> all_counters;

}  // namespace

void Counters::add(const Counters& other) {
  for (std::size_t i = 0; i < values_.size(); ++i) values_[i] += other.values_[i];
}

std::string Counters::json() const {
  std::string members;
  std::size_t i = 0;
  const auto append = [&](const std::string& name) {
    members += ", \"" + name + "\": " + std::to_string(values_[i++]);
  };
  for (const char* name : kNames) append(name);
  for (const char* traffic : kTraffic) {
    for (const char* part : kParts) append(std::string(traffic) + "_" + part);
  }
  return members.substr(2);
}

void add_counters(const std::string& kernel, const Counters& counters) {
  const std::lock_guard lock(all_counters_mutex);
  auto found = std::find_if(all_counters.begin(), all_counters.end(),
                            [&](const auto& entry) { return entry.first == kernel; });
  if (found == all_counters.end()) found = all_counters.insert(found, {kernel, {}});
  found->second.add(counters);
}

void clear_counters() {
  const std::lock_guard lock(all_counters_mutex);
  all_counters.clear();
}

std::string counters_json() {
  const std::lock_guard lock(all_counters_mutex);
  std::string entries;
  for (const auto& [kernel, counters] : all_counters) {
    entries += ", {\"kernel\": \"" + kernel + "\", " + counters.json() + "}";
  }
  return "[" + (entries.empty() ? "" : entries.substr(2)) + "]";
}

}  // namespace cnnkernels::emulator
