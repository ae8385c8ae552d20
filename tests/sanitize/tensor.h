// A 4-D tensor whose memory ends with its last element, so that ASan sees every step beyond it,
// and whose gaps between elements tell whether something was written there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/float16.h"
#include "../../csrc/problem.h"

namespace cnnkernels {

struct Sizes {
  int64_t n, c, h, w;

  int64_t count() const { return n * c * h * w; }
};

// Dense values of a tensor, w fastest.
using Values = std::vector<double>;

inline Strides dense_strides(const Sizes& sizes) {
  return {sizes.c * sizes.h * sizes.w, sizes.h * sizes.w, sizes.w, 1};
}

// Calls body(n, c, h, w) for every element, w fastest.
template <class Body>
void for_each_element(const Sizes& sizes, const Body& body) {
  for (int n = 0; n < sizes.n; ++n)
    for (int c = 0; c < sizes.c; ++c)
      for (int h = 0; h < sizes.h; ++h)
        for (int w = 0; w < sizes.w; ++w) body(n, c, h, w);
}

enum class Layout { nchw, channels_last, sliced, expanded };

inline Strides strides_of(const Sizes& sizes, Layout layout) {
  switch (layout) {
    case Layout::nchw:
      return dense_strides(sizes);
    case Layout::channels_last:
      return {sizes.h * sizes.w * sizes.c, 1, sizes.w * sizes.c, sizes.c};
    case Layout::sliced: {  // every other element of each dimension of a larger tensor
      const Strides whole =
          dense_strides({2 * sizes.n + 1, 2 * sizes.c + 1, 2 * sizes.h + 1, 2 * sizes.w + 1});
      return {2 * whole.n, 2 * whole.c, 2 * whole.h, 2 * whole.w};
    }
    default:  // one plane, shown many times
      return {0, 0, sizes.w, 1};
  }
}

enum class Element { float32, float64, float16, bfloat16, uint8, int32, int64 };

inline Element element_of(Dtype dtype) {
  constexpr Element kElements[] = {Element::float32, Element::float64, Element::float16,
                                   Element::bfloat16};
  return kElements[static_cast<int>(dtype)];
}

inline Element element_of(Argmax kind) {
  if (kind == Argmax::uint8) return Element::uint8;
  return kind == Argmax::int32 ? Element::int32 : Element::int64;
}

inline Element element_of_code(const Conv2dPoolProblem& problem) {
  return problem.wide_code() ? Element::int32 : Element::uint8;
}

// Calls body(T{}, Wide{}): a value goes to T by way of Wide.
template <class Body>
auto with_element(Element element, const Body& body) {
  switch (element) {
    case Element::float32:
      return body(float{}, float{});
    case Element::float64:
      return body(double{}, double{});
    case Element::float16:
      return body(Float16{}, float{});
    case Element::bfloat16:
      return body(BFloat16{}, float{});
    case Element::uint8:
      return body(uint8_t{}, double{});
    case Element::int32:
      return body(int32_t{}, double{});
    default:
      return body(int64_t{}, double{});
  }
}

class Tensor {
 public:
  // Begins as NaN, or as -1.
  Tensor(Element element, const Sizes& sizes, Layout layout)
      : element_(element),
        sizes_(sizes),
        strides_(strides_of(sizes, layout)),
        bytes_(with_element(element, [](auto zero, auto) { return sizeof(zero); })),
        count_(sizes.count() == 0
                   ? 0
                   : strides_.at(sizes.n - 1, sizes.c - 1, sizes.h - 1, sizes.w - 1) + 1),
        memory_(new std::byte[static_cast<std::size_t>(count_) * bytes_]) {
    std::memset(memory_.get(), kUnwritten, static_cast<std::size_t>(count_) * bytes_);
  }

  Tensor(Element element, const Sizes& sizes, Layout layout, const Values& values)
      : Tensor(element, sizes, layout) {
    auto value = values.begin();
    for_each_element(sizes, [&](int n, int c, int h, int w) {
      with_element(element_, [&](auto zero, auto wide) {
        const auto stored = static_cast<decltype(zero)>(static_cast<decltype(wide)>(*value));
        std::memcpy(at(strides_.at(n, c, h, w)), &stored, sizeof stored);
      });
      ++value;
    });
  }

  void* data() const { return memory_.get(); }
  const Strides& strides() const { return strides_; }

  // What distinguishes this tensor from one that holds `expected`, rounded; else "".
  std::string difference(const Values& expected) const {
    std::vector<bool> ours(static_cast<std::size_t>(count_), false);
    std::string found;
    auto value = expected.begin();
    for_each_element(sizes_, [&](int n, int c, int h, int w) {
      const int64_t offset = strides_.at(n, c, h, w);
      ours[static_cast<std::size_t>(offset)] = true;
      const auto [actual, wanted] = actual_and_rounded(offset, *value++);
      if (!found.empty() || actual == wanted) return;
      found = "[" + std::to_string(n) + "," + std::to_string(c) + "," + std::to_string(h) + "," +
              std::to_string(w) + "] is " + std::to_string(actual) + ", not " +
              std::to_string(wanted);
    });
    for (int64_t i = 0; i < count_ && found.empty(); ++i) {
      const auto written = [](std::byte b) { return b != std::byte{kUnwritten}; };
      if (!ours[static_cast<std::size_t>(i)] && std::any_of(at(i), at(i) + bytes_, written))
        found = "something was written between the elements, at offset " + std::to_string(i);
    }
    return found;
  }

 private:
  static constexpr unsigned char kUnwritten = 0xff;

  std::byte* at(int64_t offset) const {
    return memory_.get() + static_cast<std::size_t>(offset) * bytes_;
  }

  std::pair<double, double> actual_and_rounded(int64_t offset, double value) const {
    return with_element(element_, [&](auto zero, auto wide) {
      using T = decltype(zero);
      using Wide = decltype(wide);
      T actual;
      std::memcpy(&actual, at(offset), sizeof actual);
      const T rounded = static_cast<T>(static_cast<Wide>(value));
      return std::pair<double, double>(static_cast<Wide>(actual), static_cast<Wide>(rounded));
    });
  }

  Element element_;
  Sizes sizes_;
  Strides strides_;
  std::size_t bytes_;
  int64_t count_;
  std::unique_ptr<std::byte[]> memory_;
};

// Whole numbers from -3 to 3 times `scale`, the same in every run; with `planes_equal` the same
// in every plane.
inline Values small_integers(const Sizes& sizes, unsigned seed, bool planes_equal,
                             double scale = 1) {
  Values values(static_cast<std::size_t>(sizes.count()));
  const auto plane = static_cast<std::size_t>(sizes.h * sizes.w);
  uint32_t state = seed * 2654435761u + 12345;
  for (std::size_t i = 0; i < values.size(); ++i) {
    state = state * 1664525 + 1013904223;
    const bool copied = planes_equal && i >= plane;
    values[i] = copied ? values[i - plane] : scale * (static_cast<int>(state >> 16) % 7 - 3);
  }
  return values;
}

}  // namespace cnnkernels
