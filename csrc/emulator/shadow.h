// A table from addresses to cells: one cell for every few bytes of memory that has been touched,
// as few as the smallest access there needs.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace cnnkernels::emulator {

template <class Cell>
class Shadow {
 public:
  // Calls body(cell) for the cells of [address, address + bytes).
  template <class Body>
  void each(std::uintptr_t address, std::size_t bytes, const Body& body) {
    const std::uintptr_t end = address + bytes;
    while (address < end) {
      Page& page = page_of(address);
      const std::uintptr_t stop = std::min(end, (address / kPageBytes + 1) * kPageBytes);
      page.refine(static_cast<unsigned>((address | stop) % kPageBytes));
      const std::size_t first = address % kPageBytes >> page.shift;
      const std::size_t count = (stop - address) >> page.shift;
      for (std::size_t i = first; i < first + count; ++i) body(page.cells[i]);
      address = stop;
    }
  }

 private:
  static constexpr std::uintptr_t kPageBytes = 1024;

  struct Page {
    unsigned shift = 2;  // a cell stands for 2^shift bytes
    std::vector<Cell> cells = std::vector<Cell>(kPageBytes >> 2);

    // Splits the cells until one ends at each of the offsets or'ed together.
    void refine(unsigned offsets) {
      while (offsets & ((1u << shift) - 1)) {
        std::vector<Cell> halves;
        halves.reserve(2 * cells.size());
        for (const Cell& cell : cells) halves.insert(halves.end(), 2, cell);
        cells = std::move(halves);
        --shift;
      }
    }
  };

  Page& page_of(std::uintptr_t address) {
    const std::uintptr_t number = address / kPageBytes;
    Recent& recent = recent_[number % recent_.size()];
    if (recent.page == nullptr || recent.number != number) recent = {number, &pages_[number]};
    return *recent.page;
  }

  struct Recent {
    std::uintptr_t number;
    Page* page;
  };
  std::unordered_map<std::uintptr_t, Page> pages_;
  std::array<Recent, 64> recent_{};
};

}  // namespace cnnkernels::emulator
