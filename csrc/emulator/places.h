// Places in the code: instructions, or lines that were handed over, numbered to be kept in little
// space, and told as "file:line".
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator.h"

namespace cnnkernels::emulator {

class Places {
 public:
  // Of the instruction that a call returns to.
  std::uint32_t number(std::uintptr_t return_address);
  std::uint32_t number(SourceLine);

  // "kernel.cuh:12", or the address within its module where nothing more is known.
  std::string text(std::uint32_t number) const;

 private:
  struct Place {
    std::uintptr_t return_address;  // or 0: it is a line
    SourceLine line;
  };
  std::uint32_t add(std::uintptr_t key, Place);

  std::vector<Place> places_;
  std::unordered_map<std::uintptr_t, std::uint32_t> numbers_;
  std::uintptr_t last_key_ = 0;
  std::uint32_t last_ = 0;
};

}  // namespace cnnkernels::emulator
