// Tensors as vectors whose lanes are channels, filters or planes, and back: squares of elements are
// transposed where other elements lie closest.
//
//     pack_lanes, store_lanes    elements, converted to the type of sums and back
//     pack_codes, store_codes    the integers that pooling leaves for its backward pass
#pragma once

#include <utility>

#include "../registry.h"
#include "types.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

// Integers as wide as sums.
template <class T>
using Index = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;

// Interleaves the lower halves of a and b ({a0, b0, a1, b1, ...}) or the upper ones.
template <class T, int... kLane>
Vector<T> zip(Vector<T> a, Vector<T> b, bool upper, std::integer_sequence<int, kLane...>) {
  constexpr int n = kLanes<T>;
  constexpr Vector<Index<T>> low = {(kLane / 2 + kLane % 2 * n)...};
  return upper ? __builtin_shuffle(a, b, low + n / 2) : __builtin_shuffle(a, b, low);
}

// Transposes a square of vectors: log2(lanes) perfect shuffles of its elements.
template <class T>
void transpose(Vector<T> (&rows)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  constexpr auto lanes = std::make_integer_sequence<int, n>{};
#pragma GCC unroll 4
  for (int step = 1; step < n; step *= 2) {
    Vector<T> shuffled[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      shuffled[2 * i] = zip<T>(rows[i], rows[i + n / 2], false, lanes);
      shuffled[2 * i + 1] = zip<T>(rows[i], rows[i + n / 2], true, lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = shuffled[i];
  }
}

// A tensor read through strides. Where `relu` is given (the saved output of a ReLU, shaped alike)
// and is <= 0, the element counts as zero.
template <class T>
struct Source {
  const T* data;
  Strides strides;
  const T* relu;
  Strides relu_strides;

  Source at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return {data + strides.at(n, c, h, w), strides,
            relu == nullptr ? nullptr : relu + relu_strides.at(n, c, h, w), relu_strides};
  }
  // Whether rows of this length follow each other without a gap, so that they can be read as one.
  bool joined(int64_t columns) const {
    return strides.h == columns * strides.w &&
           (relu == nullptr || relu_strides.h == columns * relu_strides.w);
  }
};

// Elements 0, 2, 4, ... The second of two vectors begins so early that it ends with the last one.
template <class T, int... kLane>
Vector<T> load_every_second(const T* from, std::integer_sequence<int, kLane...>) {
  constexpr int n = kLanes<T>;
  constexpr Vector<Index<T>> kPlaces = {(2 * kLane < n ? 2 * kLane : 2 * kLane + 1)...};
  return __builtin_shuffle(load(from), load(from + n - 1), kPlaces);
}

// to[i] = from[i * stride], i < count.
template <class T>
void copy_run(Sum<T>* __restrict to, int64_t count, const T* __restrict from, int64_t stride) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Sum<T>>(from[i]);
  } else if (stride == 2) {
    int64_t i = 0;
    if constexpr (std::is_same_v<T, Sum<T>>) {
      constexpr int n = kLanes<T>;
      for (; i + n <= count; i += n) {
        store<T>(to + i, load_every_second(from + 2 * i, std::make_integer_sequence<int, n>{}));
      }
    }
    for (; i < count; ++i) to[i] = static_cast<Sum<T>>(from[2 * i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Sum<T>>(from[i * stride]);
  }
}

// The same along one dimension of a source; every `step`-th element.
template <class T>
void copy_run(Sum<T>* to, int64_t count, const Source<T>& from, int64_t Strides::* dimension,
              int64_t step = 1) {
  copy_run(to, count, from.data, from.strides.*dimension * step);
  if (from.relu == nullptr) return;
  const int64_t stride = from.relu_strides.*dimension * step;
  for (int64_t i = 0; i < count; ++i) {
    if (static_cast<Sum<T>>(from.relu[i * stride]) <= 0) to[i] = 0;
  }
}

// The first `count` elements along one dimension of a source, then zeros.
template <class T>
Vector<Sum<T>> load_run(int64_t count, const Source<T>& from, int64_t Strides::* dimension) {
  constexpr int n = kLanes<Sum<T>>;
  if constexpr (std::is_same_v<T, Sum<T>>) {
    if (from.strides.*dimension == 1 && from.relu == nullptr) {
      return count == n ? load(from.data) : load_part(from.data, count);
    }
  }
  Sum<T> run[n] = {};
  copy_run(run, count, from, dimension);
  return load(run);
}

// Calls make(i) for the vectors of a square, of which `count` exist, and zeros the others. Whole
// squares have a loop of their own, which leaves them in registers.
template <class S, class Make>
void fill_square(Vector<S> (&square)[kLanes<S>], int64_t count, const Make& make) {
  constexpr int n = kLanes<S>;
  if (count == n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) square[i] = make(i);
    return;
  }
  for (int i = 0; i < n; ++i) square[i] = i < count ? make(i) : Vector<S>{};
}

// Packs one vector's width of a panel: to[i * pitch + lane] = element i along `run` and `lane`
// along `across` of the source. Lanes beyond `lanes` become zero.
template <class T>
void pack_lanes(Sum<T>* to, int64_t pitch, int64_t count, int lanes, const Source<T>& from,
                int64_t Strides::* run, int64_t Strides::* across) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  const auto shifted = [&](int64_t i, int64_t lane) {
    Source<T> source = from;
    source.data += i * from.strides.*run + lane * from.strides.*across;
    if (from.relu != nullptr) {
      source.relu += i * from.relu_strides.*run + lane * from.relu_strides.*across;
    }
    return source;
  };
  const bool plain = std::is_same_v<T, S> && from.relu == nullptr && from.strides.*run == 1;
  const int64_t lane_stride = from.strides.*across;
  int64_t first = 0;
  // What is left of a square may be so little that it is quicker element by element.
  for (; lane_stride != 1 && count - first > 2; first += n) {
    Vector<S> square[n];
    const int64_t filled = least<int64_t>(n, count - first);
    if constexpr (std::is_same_v<T, S>) {
      const T* line = from.data + first;
      if (plain && filled == n) {
        fill_square<S>(square, lanes, [&](int lane) { return load(line + lane * lane_stride); });
      } else if (plain) {
        fill_square<S>(square, lanes,
                       [&](int lane) { return load_part(line + lane * lane_stride, filled); });
      }
    }
    if (!plain) {
      fill_square<S>(square, lanes,
                     [&](int lane) { return load_run(filled, shifted(first, lane), run); });
    }
    transpose<S>(square);
    S* place = to + first * pitch;
    if (filled == n) {
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) store<S>(place + i * pitch, square[i]);
    } else {
      for (int64_t i = 0; i < filled; ++i) store<S>(place + i * pitch, square[i]);
    }
  }
  for (; first < count; ++first) {
    store<S>(to + first * pitch, load_run(lanes, shifted(first, 0), across));
  }
}

template <class T>
Vector<T> relu(Vector<T> values) {
  return values < 0 ? Vector<T>{} : values;
}

template <class T>
void store_run(T* __restrict to, int64_t stride, int64_t count, const Sum<T>* __restrict values) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i * stride] = static_cast<T>(values[i]);
  }
}

// Of a vector of filters; zeros where there is none.
template <class T>
Vector<Sum<T>> load_bias(const Epilogue& epilogue, int64_t filter, int filled) {
  Vector<Sum<T>> values = {};
  const T* bias = static_cast<const T*>(epilogue.bias);
  for (int f = 0; f < filled && bias != nullptr; ++f) {
    values[f] = static_cast<Sum<T>>(bias[(filter + f) * epilogue.bias_stride]);
  }
  return values;
}

// The first `count` lanes, `stride` apart.
template <class T>
void store_vector(T* to, int64_t stride, int64_t count, Vector<Sum<T>> value) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  if constexpr (std::is_same_v<T, S>) {
    if (stride == 1 && count == n) return store<S>(to, value);
  }
  S values[n];
  store<S>(values, value);
  if (count == n) return store_run(to, stride, n, values);
  store_run(to, stride, count, values);
}

// Stores `count` pixels x `filled` filters (one vector of them) from sums[pixel * pitch + filter].
template <class T>
void store_lanes(const Sum<T>* sums, int64_t pitch, int64_t count, int filled, int64_t filter,
                 const Epilogue& epilogue, T* to, int64_t pixel_stride, int64_t filter_stride) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  const Vector<S> added = load_bias<T>(epilogue, filter, filled);
  const auto value = [&](int64_t i) {
    const Vector<S> sum = load(sums + i * pitch) + added;
    return epilogue.relu ? relu<S>(sum) : sum;
  };
  if (filter_stride == 1) {
    for (int64_t i = 0; i < count; ++i) store_vector(to + i * pixel_stride, 1, filled, value(i));
    return;
  }
  for (int64_t first = 0; first < count; first += n) {
    const int64_t pixels = least<int64_t>(n, count - first);
    T* line = to + first * pixel_stride;
    Vector<S> square[n];
    fill_square<S>(square, pixels, [&](int i) { return value(first + i); });
    transpose<S>(square);
    if (pixels == n && filled == n) {
#pragma GCC unroll 16
      for (int f = 0; f < n; ++f) {
        store_vector(line + f * filter_stride, pixel_stride, n, square[f]);
      }
    } else {
      for (int f = 0; f < filled; ++f) {
        store_vector(line + f * filter_stride, pixel_stride, pixels, square[f]);
      }
    }
  }
}

// Stores `count` results x `filled` lanes from codes[result * pitch + lane].
template <class S, class Code>
void store_codes(const Index<S>* codes, int64_t pitch, int64_t count, int filled, Code* to,
                 int64_t result_stride, int64_t lane_stride) {
  constexpr int n = kLanes<S>;
  for (int64_t first = 0; first < count; first += n) {
    const int64_t results = least<int64_t>(n, count - first);
    Index<S> values[n];
    if (lane_stride == 1) {
      for (int64_t i = 0; i < results; ++i) {
        Code* line = to + (first + i) * result_stride;
        for (int f = 0; f < filled; ++f)
          line[f] = static_cast<Code>(codes[(first + i) * pitch + f]);
      }
      continue;
    }
    Vector<S> square[n];
    fill_square<S>(square, results,
                   [&](int i) { return (Vector<S>)load(codes + (first + i) * pitch); });
    transpose<S>(square);
    for (int f = 0; f < filled; ++f) {
      store<Index<S>>(values, (Vector<Index<S>>)square[f]);
      Code* line = to + f * lane_stride + first * result_stride;
      for (int64_t i = 0; i < results; ++i) line[i * result_stride] = static_cast<Code>(values[i]);
    }
  }
}

// The reverse: to[result * pitch + lane], zeros in lanes beyond `filled`.
template <class S, class Code>
void pack_codes(Index<S>* to, int64_t pitch, int64_t count, int filled, const Code* codes,
                int64_t result_stride, int64_t lane_stride) {
  constexpr int n = kLanes<S>;
  const auto load_codes = [](const Code* from, int64_t stride, int64_t length) {
    typedef Code Codes __attribute__((vector_size(n * sizeof(Code))));
    if (stride == 1 && length == n) {
      Codes line;
      std::memcpy(&line, from, sizeof line);
      return __builtin_convertvector(line, Vector<Index<S>>);
    }
    Index<S> line[n] = {};
    for (int64_t i = 0; i < length; ++i) line[i] = static_cast<Index<S>>(from[i * stride]);
    return load(line);
  };
  for (int64_t first = 0; first < count; first += n) {
    const int64_t results = least<int64_t>(n, count - first);
    const Code* from = codes + first * result_stride;
    Index<S>* place = to + first * pitch;
    if (lane_stride == 1) {
      for (int64_t i = 0; i < results; ++i) {
        store<Index<S>>(place + i * pitch, load_codes(from + i * result_stride, 1, filled));
      }
      continue;
    }
    Vector<S> square[n];
    fill_square<S>(square, filled, [&](int lane) {
      return (Vector<S>)load_codes(from + lane * lane_stride, result_stride, results);
    });
    transpose<S>(square);
    for (int64_t i = 0; i < results; ++i) {
      store<Index<S>>(place + i * pitch, (Vector<Index<S>>)square[i]);
    }
  }
}

}  // namespace
}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
