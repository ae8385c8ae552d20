#include "checker.h"

#include <algorithm>

namespace cnnkernels::emulator {
namespace {

unsigned warp_of(const Stamp& stamp) { return stamp.thread / kWarpSize; }
unsigned lane_of(const Stamp& stamp) { return stamp.thread % kWarpSize; }

template <class Clocks>
void join(Clocks& into, const Clocks& from) {
  for (std::size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
}

}  // namespace

// ---- Who is ordered after whom ----

void Checker::begin_block(std::int64_t block) {
  block_ = static_cast<std::uint32_t>(block);
  ++epoch_;
  met_.clear();
  fenced_ = false;
}

void Checker::sync_warp(unsigned warp, unsigned lanes) {
  PerLane<std::uint32_t> all{};
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    join(all, known_[warp][lane]);
    all[lane] = std::max(all[lane], clocks_[warp][lane]++);
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (lanes >> lane & 1) known_[warp][lane] = all;
  }
}

void Checker::arrive(unsigned barrier, unsigned warp) {
  join(brought_[barrier], known_warps_[warp]);
  brought_[barrier][warp] = std::max(brought_[barrier][warp], warp_clocks_[warp]++);
}

void Checker::open(unsigned barrier, const Barrier& state) {
  for (unsigned warp = 0; warp < kMaxWarps; ++warp) {
    if (state.waiting[warp] == 0) continue;
    join(known_warps_[warp], brought_[barrier]);
    sync_warp(warp, state.waiting[warp]);
  }
  brought_[barrier].fill(0);
}

Stamp Checker::now(std::uint32_t place) const {
  const unsigned thread = worker_.running_index();
  const unsigned warp = thread / kWarpSize;
  return {block_,
          epoch_,
          clocks_[warp][thread % kWarpSize],
          warp_clocks_[warp],
          place,
          static_cast<std::uint16_t>(thread),
          false,
          false};
}

bool Checker::ordered(const Stamp& before, const Stamp& now) const {
  if (before.epoch == 0) return true;
  if (before.block != now.block) return met_.count(before.block) != 0;
  if (before.epoch < now.epoch || before.thread == now.thread) return true;
  if (warp_of(before) == warp_of(now)) {
    return before.clock <= known_[warp_of(now)][lane_of(now)][lane_of(before)];
  }
  return before.warp_clock <= known_warps_[warp_of(now)][warp_of(before)];
}

// ---- Accesses ----

Checker::Finding Checker::check(Space space, const Cell& cell, const Stamp& now,
                                Access kind) const {
  const auto races = [&](const Stamp& before) {
    return !ordered(before, now) && !(before.atomic && now.atomic);
  };
  const bool stale = space == Space::shared && cell.write.block != now.block;
  const bool written = cell.write.epoch != 0 && !stale;
  if (written && cell.write.on_its_way) return {"that a cp.async has not yet filled", cell.write};
  if (space == Space::shared && !written && kind != Access::write) {
    return {"that no thread has written", {}};
  }
  if (written && races(cell.write)) {
    return {kind == Access::read ? "that another thread writes" : "that another thread writes too",
            cell.write};
  }
  if (kind == Access::read) return {};
  for (const Stamp& read : cell.reads) {
    if (space == Space::shared && read.block != now.block) continue;
    if (races(read)) return {"that another thread reads", read};
  }
  return {};
}

void Checker::remember(Cell& cell, const Stamp& now, Access kind) const {
  if (kind != Access::read) {
    cell.write = now;
    cell.reads = {};
    return;
  }
  auto& [last, same_warp, other] = cell.reads;
  if (last.epoch != 0 && (last.thread != now.thread || last.block != now.block)) {
    if (last.block == now.block && warp_of(last) == warp_of(now)) {
      same_warp = last;
    } else {
      // A reader in another block is ordered with nobody here: keep it.
      const bool keep = other.epoch != 0 && other.block != now.block && last.block == now.block;
      if (!keep) other = last;
      same_warp = {};
    }
  }
  last = now;
}

Checker::Finding Checker::touch(Space space, std::uintptr_t address, std::size_t bytes, Access kind,
                                const Stamp& now) {
  Finding finding{};
  Shadow<Cell>& shadow = space == Space::shared ? shared_ : global_;
  shadow.each(address, bytes, [&](Cell& cell) {
    if (finding.what == nullptr) finding = check(space, cell, now, kind);
    remember(cell, now, kind);
  });
  return finding;
}

Checker::Finding Checker::access(Space space, std::uintptr_t address, std::size_t bytes,
                                 Access kind, std::uint32_t place) {
  Stamp stamp = now(place);
  stamp.atomic = kind == Access::atomic;
  if (stamp.atomic && space == Space::global) meet_blocks(address);
  return touch(space, address, bytes, kind, stamp);
}

void Checker::meet_blocks(std::uintptr_t address) {
  used_global_atomics_ = true;
  std::unordered_set<std::uint32_t>& fenced = fenced_blocks_[address];
  met_.insert(fenced.begin(), fenced.end());
  if (fenced_) fenced.insert(block_);
}

Checker::Finding Checker::begin_copy(std::uintptr_t shared, std::size_t bytes,
                                     std::uint32_t place) {
  Stamp stamp = now(place);
  stamp.on_its_way = true;
  return touch(Space::shared, shared, bytes, Access::write, stamp);
}

void Checker::end_copy(std::uintptr_t shared, std::size_t bytes) {
  shared_.each(shared, bytes, [&](Cell& cell) { cell.write = now(cell.write.place); });
}

Stamp Checker::last_write(std::uintptr_t address) {
  Stamp stamp{};
  global_.each(address, 1, [&](const Cell& cell) { stamp = cell.write; });
  return stamp;
}

}  // namespace cnnkernels::emulator
