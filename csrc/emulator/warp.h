// What the lanes of a warp do together: shuffles, votes, matches and reductions, by their
// definitions in the PTX ISA. All want every lane that their mask names.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "emulator.h"
#include "half.h"

namespace cnnkernels::emulator {

inline constexpr WarpOperation kSyncWarp = {"__syncwarp", false, [](unsigned, void* const*) {},
                                            true};

// The lanes of a mask, for a range-based loop.
struct Lanes {
  struct Iterator {
    unsigned rest;
    int operator*() const { return __builtin_ctz(rest); }
    void operator++() { rest &= rest - 1; }
    bool operator!=(Iterator other) const { return rest != other.rest; }
  };

  unsigned mask;
  Iterator begin() const { return {mask}; }
  Iterator end() const { return {0}; }
};

// The functions that complete an operation read and write all lanes' payloads, for which lanes
// need no other synchronisation: instrumented code does not report it (no_sanitize_thread).
template <class Payload>
Payload& payload_of(int lane, void* const* payloads) {
  return *static_cast<Payload*>(payloads[lane]);
}

// ---- Shuffles ----

struct ShufflePayload {
  std::uint64_t value;
  int source;
  std::uint64_t result;
};

// A lane that reads one outside the mask gets what CUDA calls undefined: here all bits set, NaN.
[[gnu::no_sanitize_thread, gnu::no_sanitize_coverage]] inline void exchange(unsigned lanes,
                                                                            void* const* payloads) {
  for (int lane : Lanes{lanes}) {
    auto& mine = payload_of<ShufflePayload>(lane, payloads);
    mine.result = lanes >> mine.source & 1 ? payload_of<ShufflePayload>(mine.source, payloads).value
                                           : ~std::uint64_t{0};
  }
}

enum class Shuffle { index, up, down, exclusive_or };

inline constexpr WarpOperation kShuffles[] = {{"__shfl_sync", true, exchange},
                                              {"__shfl_up_sync", true, exchange},
                                              {"__shfl_down_sync", true, exchange},
                                              {"__shfl_xor_sync", true, exchange}};

// The lane that the caller reads: PTX ISA, shfl.sync. The warp is cut into segments of `width`
// lanes; a lane whose source would lie outside its segment reads itself.
inline int shuffle_source(Shuffle kind, int lane, int operand, int width, SourceLine line) {
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) {
    fail("a shuffle of width " + std::to_string(width) + "; it must be a power of two up to 32",
         line);
  }
  const int first = lane & ~(width - 1);
  const int last = first + width - 1;
  operand &= kWarpSize - 1;
  switch (kind) {
    case Shuffle::index:
      return first | (operand & (width - 1));
    case Shuffle::up:
      return lane - operand >= first ? lane - operand : lane;
    case Shuffle::down:
      return lane + operand <= last ? lane + operand : lane;
    default:  // may read an earlier segment
      return (lane ^ operand) <= last ? lane ^ operand : lane;
  }
}

template <class T>
inline constexpr bool kIsShuffled =
    (std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8)) ||
    kIsOneOf<T, cuda::__half, cuda::__half2, cuda::__nv_bfloat16, cuda::__nv_bfloat162>;

template <class T>
T shuffle(Shuffle kind, unsigned mask, T value, int operand, int width, SourceLine line) {
  static_assert(kIsShuffled<T>);
  const std::uint64_t bits = reinterpret_bits<Bits<T>>(value);
  ShufflePayload payload = {bits, shuffle_source(kind, lane_index(), operand, width, line), 0};
  warp_rendezvous(kShuffles[static_cast<int>(kind)], mask, &payload, line);
  return reinterpret_bits<T>(static_cast<Bits<T>>(payload.result));
}

// ---- Votes ----

enum class Vote { ballot, any, all, uniform };

struct VotePayload {
  bool predicate;
  unsigned ballot;
};

[[gnu::no_sanitize_thread, gnu::no_sanitize_coverage]] inline void collect_votes(
    unsigned lanes, void* const* payloads) {
  unsigned ballot = 0;
  for (int lane : Lanes{lanes}) {
    ballot |= unsigned{payload_of<VotePayload>(lane, payloads).predicate} << lane;
  }
  for (int lane : Lanes{lanes}) payload_of<VotePayload>(lane, payloads).ballot = ballot;
}

inline constexpr WarpOperation kVotes[] = {{"__ballot_sync", true, collect_votes},
                                           {"__any_sync", true, collect_votes},
                                           {"__all_sync", true, collect_votes},
                                           {"__uni_sync", true, collect_votes}};

// The lanes of the mask whose predicate holds.
inline unsigned vote(Vote kind, unsigned mask, bool predicate, SourceLine line) {
  VotePayload payload = {predicate, 0};
  warp_rendezvous(kVotes[static_cast<int>(kind)], mask, &payload, line);
  return payload.ballot;
}

// ---- Matches ----

struct MatchPayload {
  std::uint64_t value;
  unsigned equal;  // the lanes that have the same value
};

[[gnu::no_sanitize_thread, gnu::no_sanitize_coverage]] inline void find_equal(
    unsigned lanes, void* const* payloads) {
  for (int lane : Lanes{lanes}) {
    auto& mine = payload_of<MatchPayload>(lane, payloads);
    for (int other : Lanes{lanes}) {
      const bool equal = payload_of<MatchPayload>(other, payloads).value == mine.value;
      mine.equal |= unsigned{equal} << other;
    }
  }
}

inline constexpr WarpOperation kMatchAny = {"__match_any_sync", true, find_equal};
inline constexpr WarpOperation kMatchAll = {"__match_all_sync", true, find_equal};

// Values are equal if their bits are.
template <class T>
unsigned match(const WarpOperation& operation, unsigned mask, T value, SourceLine line) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  MatchPayload payload = {reinterpret_bits<Bits<T>>(value), 0};
  warp_rendezvous(operation, mask, &payload, line);
  return payload.equal;
}

// ---- Reductions ----

// Each has its name, and combines two values. Sums wrap around.
struct ReduceAdd {
  static constexpr const char* kName = "__reduce_add_sync";
  template <class T>
  static T combine(T a, T b) {
    return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
  }
};

struct ReduceMin {
  static constexpr const char* kName = "__reduce_min_sync";
  template <class T>
  static T combine(T a, T b) {
    return a < b ? a : b;
  }
};

struct ReduceMax {
  static constexpr const char* kName = "__reduce_max_sync";
  template <class T>
  static T combine(T a, T b) {
    return a > b ? a : b;
  }
};

struct ReduceAnd {
  static constexpr const char* kName = "__reduce_and_sync";
  static unsigned combine(unsigned a, unsigned b) { return a & b; }
};

struct ReduceOr {
  static constexpr const char* kName = "__reduce_or_sync";
  static unsigned combine(unsigned a, unsigned b) { return a | b; }
};

struct ReduceXor {
  static constexpr const char* kName = "__reduce_xor_sync";
  static unsigned combine(unsigned a, unsigned b) { return a ^ b; }
};

template <class Reduction, class T>
[[gnu::no_sanitize_thread, gnu::no_sanitize_coverage]] void reduce_lanes(unsigned lanes,
                                                                         void* const* payloads) {
  T total = payload_of<T>(*Lanes{lanes}.begin(), payloads);
  for (int lane : Lanes{lanes & (lanes - 1)}) {
    total = Reduction::combine(total, payload_of<T>(lane, payloads));
  }
  for (int lane : Lanes{lanes}) payload_of<T>(lane, payloads) = total;
}

template <class Reduction, class T>
inline constexpr WarpOperation kReduction = {Reduction::kName, true, reduce_lanes<Reduction, T>};

template <class Reduction, class T>
T reduce(unsigned mask, T value, SourceLine line) {
  static_assert(kIsOneOf<T, int, unsigned>);
  warp_rendezvous(kReduction<Reduction, T>, mask, &value, line);
  return value;
}

}  // namespace cnnkernels::emulator
