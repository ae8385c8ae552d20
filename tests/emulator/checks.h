// What the tests of the emulator have in common: their checks, and the list of all cases.
#pragma once

#include <cstdio>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

[[noreturn]] inline void report(int line, const std::string& what) {
  throw std::logic_error("line " + std::to_string(line) + ": " + what);
}

inline void check(bool condition, const std::string& what, int line = __builtin_LINE()) {
  if (!condition) report(line, what);
}

template <class T>
void check_equal(const std::vector<T>& actual, const std::vector<T>& expected,
                 int line = __builtin_LINE()) {
  if (actual.size() != expected.size()) report(line, "sizes differ");
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) == 0) continue;
    report(line, "[" + std::to_string(i) + "] is " + std::to_string(actual[i]) + ", not " +
                     std::to_string(expected[i]));
  }
}

// The message of the runtime_error that body() throws holds all of `parts`. Only the emulator finds
// such errors: a GPU may do anything.
inline void check_error(const std::function<void()>& body, const std::vector<std::string>& parts,
                        int line = __builtin_LINE()) {
#ifdef __CUDACC__
  return;
#endif
  std::string message;
  try {
    body();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  if (message.empty()) report(line, "no error");
  for (const std::string& part : parts) {
    if (message.find(part) == std::string::npos) {
      report(line, "no \"" + part + "\" in: " + message);
    }
  }
}

// All cases by name. A case throws where it fails.
inline std::map<std::string, std::function<void()>>& cases() {
  static std::map<std::string, std::function<void()>> all;
  return all;
}

struct RegisterCases {
  RegisterCases(std::initializer_list<std::pair<const std::string, void (*)()>> more) {
    cases().insert(more.begin(), more.end());
  }
};

// The body of main(): without arguments lists the cases, else runs the one that is named.
inline int run_cases(int argc, char** argv) {
  if (argc < 2) {
    for (const auto& [name, body] : cases()) std::printf("%s\n", name.c_str());
    return 0;
  }
  try {
    cases().at(argv[1])();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[1], error.what());
    return 1;
  }
  return 0;
}

}  // namespace cnnkernels::CNN_TARGET
