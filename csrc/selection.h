// Which algorithm of the registry runs a pass. The rule: the first of the backend's list that has
// the pass, can run the problem and suits it. So the order of a list, in cuda/registry.cu or
// cpu/registry.cpp, is the order of preference, and an algorithm's own unsuited() says where it
// does not pay. A pure function of backend, problem and dtype: nothing is timed.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "registry.h"

namespace cnnkernels {

inline const auto& algorithms(Backend backend, const Conv2dProblem&) {
  return conv2d_algorithms(backend);
}
inline const auto& algorithms(Backend backend, const Conv2dPoolProblem&) {
  return conv2d_pool_algorithms(backend);
}
inline const auto& algorithms(Backend backend, const Pool2dProblem&) {
  return pool2d_algorithms(backend);
}
inline const auto& algorithms(Backend backend, const AdaptivePool2dProblem&) {
  return adaptive_pool2d_algorithms(backend);
}

// The names of the passes that an algorithm has: of a convolution, alone or with a pool.
template <class Algorithm>
std::vector<std::string> passes_of(const Algorithm& algorithm) {
  std::vector<std::string> names;
  if (algorithm.fprop != nullptr) names.push_back("fprop");
  if (algorithm.dgrad != nullptr) names.push_back("dgrad");
  if (algorithm.wgrad != nullptr) names.push_back("wgrad");
  if (algorithm.bgrad != nullptr) names.push_back("bgrad");
  return names;
}

template <class Problem>
std::vector<std::string> passes_of(const PoolAlgorithm<Problem>& algorithm) {
  std::vector<std::string> names;
  if (algorithm.max_forward != nullptr) names.push_back("max_forward");
  if (algorithm.max_backward != nullptr) names.push_back("max_backward");
  if (algorithm.max_gather != nullptr) names.push_back("max_gather");
  if (algorithm.avg_forward != nullptr) names.push_back("avg_forward");
  if (algorithm.avg_backward != nullptr) names.push_back("avg_backward");
  return names;
}

inline bool has_name(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

template <class Problem, class Algorithm>
const char* unsuited(const Algorithm& algorithm, const Problem& problem, Dtype dtype) {
  return algorithm.unsuited == nullptr ? nullptr : algorithm.unsuited(problem, dtype);
}

// Of the algorithms that have a pass: the one called `wanted`, whatever it can; else, of those that
// can run the problem, the first that it suits, or the first. Null where there is none.
template <class Problem, class Algorithm, class HasPass>
const Algorithm* best(const std::vector<Algorithm>& candidates, std::string_view wanted,
                      const Problem& problem, Dtype dtype, const HasPass& has_pass) {
  const Algorithm *able = nullptr, *suited = nullptr;
  for (const Algorithm& algorithm : candidates) {
    if (!has_pass(algorithm)) continue;
    if (algorithm.name == wanted) return &algorithm;
    if (suited != nullptr || algorithm.unsupported(problem, dtype) != nullptr) continue;
    if (able == nullptr) able = &algorithm;
    if (unsuited(algorithm, problem, dtype) == nullptr) suited = &algorithm;
  }
  return suited != nullptr ? suited : able;
}

// A thread's question what could run a call. While it is open choose() does not choose, but
// answers and throws: so the call itself, with all of its checks, states the problem.
struct Inquiry {
  bool open = false;
  std::string answer;  // JSON, see answer()
};

Inquiry& inquiry();  // this thread's

// A list of {"algorithm": "...", "passes": [...], "runs": those that choose() would give it,
// "unsupported": "..." or null, "unsuited": likewise}.
template <class Problem, class Algorithm>
std::string answer(const std::vector<Algorithm>& candidates, std::string_view wanted,
                   const Problem& problem, Dtype dtype) {
  const auto runs = [&](const Algorithm& algorithm, const std::string& pass) {
    return &algorithm == best(candidates, wanted, problem, dtype, [&](const Algorithm& other) {
      return has_name(passes_of(other), pass);
    });
  };
  std::vector<std::string> list;
  for (const Algorithm& algorithm : candidates) {
    const std::vector<std::string> passes = passes_of(algorithm);
    std::vector<std::string> chosen;
    for (const std::string& pass : passes)
      if (runs(algorithm, pass)) chosen.push_back(pass);
    list.push_back(json::object(
        {json::member("algorithm", json::quoted(algorithm.name)),
         json::member("passes", json::strings(passes)), json::member("runs", json::strings(chosen)),
         json::member("unsupported", json::optional(algorithm.unsupported(problem, dtype))),
         json::member("unsuited", json::optional(unsuited(algorithm, problem, dtype)))}));
  }
  return json::array(list);
}

// The algorithm that runs the given pass of the problem; throws std::runtime_error if none can.
template <class Problem, class Algorithm, class Pass>
const Algorithm& choose(Backend backend, std::string_view wanted, const Problem& problem,
                        Dtype dtype, Pass Algorithm::* pass) {
  const std::vector<Algorithm>& candidates = algorithms(backend, problem);
  if (inquiry().open) {
    inquiry().answer = answer(candidates, wanted, problem, dtype);
    throw std::runtime_error("cnnkernels: asked, and not run");
  }
  const Algorithm* algorithm =
      best(candidates, wanted, problem, dtype,
           [&](const Algorithm& candidate) { return candidate.*pass != nullptr; });
  if (algorithm == nullptr)
    throw std::runtime_error(candidates.empty() ? "cnnkernels: this build has no CUDA kernels (it "
                                                  "was built without nvcc)"
                                                : "cnnkernels: no kernel for this call");
  if (const char* reason = algorithm->unsupported(problem, dtype))
    throw std::runtime_error("cnnkernels: algorithm '" + std::string(algorithm->name) +
                             "' cannot run this call: " + reason);
  return *algorithm;
}

}  // namespace cnnkernels
