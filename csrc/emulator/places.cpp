#include "places.h"

#include <dlfcn.h>
#include <elf.h>

#include <array>
#include <cstdio>
#include <memory>

namespace cnnkernels::emulator {
namespace {

// Lines of our own headers are no help: what calls them is.
bool is_own(const std::string& frame) {
  return frame.find("csrc/emulator/") != std::string::npos ||
         frame.find("csrc/cuda/device.h") != std::string::npos;
}

// What addr2line, of the binutils, says of the address: the innermost line that is a kernel's.
std::string ask_addr2line(const std::string& module, std::uintptr_t offset) {
  char address[32];
  std::snprintf(address, sizeof address, "0x%lx", static_cast<unsigned long>(offset));
  const std::string command = "addr2line -i -e '" + module + "' " + address + " 2>/dev/null";
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::array<char, 4096> buffer;
  std::string innermost;
  while (pipe && std::fgets(buffer.data(), buffer.size(), pipe.get())) {
    std::string frame = buffer.data();
    frame.resize(frame.find_first_of(" \n"));  // "file:line (discriminator 2)"
    if (frame.find('?') != std::string::npos) continue;
    if (innermost.empty()) innermost = frame;
    if (!is_own(frame)) return frame;
  }
  return innermost;
}

std::string text_of(std::uintptr_t return_address) {
  const std::uintptr_t call = return_address - 1;
  Dl_info module;
  if (dladdr(reinterpret_cast<void*>(call), &module) == 0) return "";
  const bool moves = static_cast<const Elf64_Ehdr*>(module.dli_fbase)->e_type == ET_DYN;
  const auto offset = moves ? call - reinterpret_cast<std::uintptr_t>(module.dli_fbase) : call;
  if (const std::string line = ask_addr2line(module.dli_fname, offset); !line.empty()) return line;
  char text[32];
  std::snprintf(text, sizeof text, "+0x%lx", static_cast<unsigned long>(offset));
  return module.dli_fname + std::string(text);
}

}  // namespace

std::uint32_t Places::number(std::uintptr_t return_address) {
  return add(return_address, {return_address, {nullptr, 0}});
}

std::uint32_t Places::number(SourceLine line) {
  // A file's name and a line in it lie far from code.
  return add(reinterpret_cast<std::uintptr_t>(line.file) * 65537 + line.line, {0, line});
}

std::uint32_t Places::add(std::uintptr_t key, Place place) {
  if (key == last_key_) return last_;
  const auto [at, is_new] = numbers_.try_emplace(key, static_cast<std::uint32_t>(places_.size()));
  if (is_new) places_.push_back(place);
  last_key_ = key;
  return last_ = at->second;
}

std::string Places::text(std::uint32_t number) const {
  const Place& place = places_[number];
  if (place.return_address != 0) return text_of(place.return_address);
  return std::string(place.line.file) + ":" + std::to_string(place.line.line);
}

}  // namespace cnnkernels::emulator
