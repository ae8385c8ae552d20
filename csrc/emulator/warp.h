// What the lanes of a warp do together: shuffles and votes, by their definitions in the PTX ISA.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "emulator.h"

namespace cnnkernels::emulator {

inline constexpr WarpOperation kSyncWarp = {"__syncwarp", false, [](unsigned, void* const*) {},
                                            true};

struct ShufflePayload {
  std::uint64_t value;
  int source;
  std::uint64_t result;
};

// A lane that reads one outside the mask gets what CUDA calls undefined: here all bits set, NaN.
inline void exchange(unsigned lanes, void* const* payloads) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    auto& mine = *static_cast<ShufflePayload*>(payloads[lane]);
    mine.result = lanes >> mine.source & 1
                      ? static_cast<const ShufflePayload*>(payloads[mine.source])->value
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
T shuffle(Shuffle kind, unsigned mask, T value, int operand, int width, SourceLine line) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  ShufflePayload payload = {0, shuffle_source(kind, lane_index(), operand, width, line), 0};
  std::memcpy(&payload.value, &value, sizeof(T));
  warp_rendezvous(kShuffles[static_cast<int>(kind)], mask, &payload, line);
  std::memcpy(&value, &payload.result, sizeof(T));
  return value;
}

}  // namespace cnnkernels::emulator
