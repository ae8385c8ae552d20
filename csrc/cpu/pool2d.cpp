// Max and average pooling, forward and backward.
//
// The forward passes work on lines: the outputs of one row of a plane or, where channels lie
// closest (channels_last), all channels of one pixel. For each tap of the window the part of the
// line whose tap lies inside the input is folded into the line's results: a loop without
// branches, along vectors. The backward passes give each plane (channels_last: a block of planes)
// to one thread, which adds the gradients in a fixed order: same bits for any number of threads.
//
// Cost: input + output + argmax bytes from memory, R * S loads an output from cache.
#include <limits>

#include "../parallel.h"
#include "isa.h"
#include "types.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

// Taps that make a piece of work worth a thread.
constexpr int64_t kGrain = 16384;
// Channels_last planes go to threads in blocks of this many channels at least, a cache line of
// them, but no more than fit this size where 16-bit gradients are summed in a workspace.
constexpr int kLeastBlock = 16;
constexpr int64_t kBlockElements = 1 << 18;

bool channels_last(const Strides& input, const Strides& output) {
  return input.c == 1 && output.c == 1 && input.w != 1;
}

// The outputs whose tap, `offset` into the window, lies inside the input.
struct Inside {
  int64_t begin, end;

  Inside(int64_t outputs, int64_t inputs, int64_t stride, int64_t pad, int64_t offset)
      : begin(clamp<int64_t>(ceil_div(pad - offset, stride), 0, outputs)),
        end(clamp<int64_t>(ceil_div(inputs + pad - offset, stride), begin, outputs)) {}
};

// Calls body(tap, first, count, offset) for the taps of a window that lie inside the input, in
// row-major order. Row line (p fixed): for the outputs q in [first, first + count), the first of
// which reads input element `offset` of the plane, the next ones stride_w columns further.
template <class Body>
void for_row_taps(const Pool2dProblem& problem, const Strides& strides, int64_t p,
                  const Body& body) {
  for (int r = 0; r < problem.R; ++r) {
    const int64_t h = p * problem.stride_h - problem.pad_h + r * problem.dilation_h;
    if (h < 0 || h >= problem.H) continue;
    for (int s = 0; s < problem.S; ++s) {
      const int64_t shift = s * problem.dilation_w;
      const Inside q(problem.Q, problem.W, problem.stride_w, problem.pad_w, shift);
      const int64_t w = q.begin * problem.stride_w - problem.pad_w + shift;
      if (q.begin < q.end) {
        body(r * problem.S + s, q.begin, q.end - q.begin, h * strides.h + w * strides.w);
      }
    }
  }
}

// The same for the channels of one pixel (p and q fixed): body(tap, offset).
template <class Body>
void for_pixel_taps(const Pool2dProblem& problem, const Strides& strides, int64_t p, int64_t q,
                    const Body& body) {
  for (int r = 0; r < problem.R; ++r) {
    const int64_t h = p * problem.stride_h - problem.pad_h + r * problem.dilation_h;
    if (h < 0 || h >= problem.H) continue;
    for (int s = 0; s < problem.S; ++s) {
      const int64_t w = q * problem.stride_w - problem.pad_w + s * problem.dilation_w;
      if (w >= 0 && w < problem.W) body(r * problem.S + s, h * strides.h + w * strides.w);
    }
  }
}

// A line of outputs: where it begins, and how its elements follow each other.
struct Line {
  int64_t n, c, p, q, count;
};

// Calls make() once per thread and piece of work, then body(line, state) for every line.
template <class Make, class Body>
void for_lines(const Pool2dProblem& problem, bool last, const Make& make, const Body& body) {
  const int64_t length = last ? problem.C : problem.Q;
  const int64_t inner = last ? problem.Q : problem.P;  // of a line's index
  const int64_t middle = last ? problem.P : problem.C;
  const int64_t grain =
      greatest<int64_t>(1, kGrain / greatest<int64_t>(1, length * problem.R * problem.S));
  parallel_for(problem.N * middle * inner, grain, [&](int64_t begin, int64_t end) {
    auto state = make(length);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / inner / middle, m = i / inner % middle, k = i % inner;
      body(last ? Line{n, 0, m, k, length} : Line{n, m, k, 0, length}, state);
    }
  });
}

// Calls fold(tap, first, count, from, stride) for the parts of the line that a tap can reach:
// output first + i reads from[i * stride].
template <class T, class Fold>
void for_line_taps(const Pool2dProblem& problem, bool last, const Line& line, const T* input,
                   const Fold& fold) {
  const T* plane = input + problem.input.at(line.n, line.c, 0, 0);
  if (last) {
    for_pixel_taps(problem, problem.input, line.p, line.q,
                   [&](int tap, int64_t offset) { fold(tap, 0, line.count, plane + offset, 1); });
  } else {
    for_row_taps(problem, problem.input, line.p,
                 [&](int tap, int64_t first, int64_t count, int64_t offset) {
                   fold(tap, first, count, plane + offset, problem.stride_w * problem.input.w);
                 });
  }
}

// Calls loop(stride) with the two common strides as constants, so that it is compiled for them.
template <class Loop>
void with_stride(int64_t stride, const Loop& loop) {
  if (stride == 1) return loop(std::integral_constant<int64_t, 1>{});
  if (stride == 2) return loop(std::integral_constant<int64_t, 2>{});
  loop(stride);
}

template <class T>
void store_line(T* to, int64_t stride, int64_t count, const Sum<T>* values) {
  with_stride(stride, [&](auto step) {
    for (int64_t i = 0; i < count; ++i) to[i * step] = static_cast<T>(values[i]);
  });
}

// Calls function(Code{}) with the integer type that positions are stored in.
template <class Function>
void dispatch(Argmax kind, const Function& function) {
  switch (kind) {
    case Argmax::none:
    case Argmax::uint8:
      return function(uint8_t{});
    case Argmax::int32:
      return function(int32_t{});
    case Argmax::int64:
      return function(int64_t{});
  }
}

constexpr bool is_empty(const Range& range) { return range.begin >= range.end; }

// Whether window column q has a tap inside the input, which dilation can step over. A window
// without a tap has neither gradient nor tangent, though its code names the first tap that is
// not in the leading padding: so does torch.
Workspace<bool> columns_with_taps(const Pool2dProblem& problem) {
  Workspace<bool> columns(problem.Q);
  for (int q = 0; q < problem.Q; ++q) columns[q] = !is_empty(problem.columns(q));
  return columns;
}

// Distances of a window's taps from its first one, in elements of a plane.
class TapOffsets {
 public:
  TapOffsets(const Pool2dProblem& problem, int64_t row, int64_t column)
      : problem_(problem), row_(row), column_(column), offsets_(problem.R * problem.S) {
    for (int tap = 0; tap < problem.R * problem.S; ++tap) {
      offsets_[tap] = tap / problem.S * problem.dilation_h * row +
                      tap % problem.S * problem.dilation_w * column;
    }
  }
  // The element that a code names: counted from the window's first tap, or for an int64 code
  // from the plane's first element.
  template <class Code>
  int64_t from_origin(Code code) const {
    if constexpr (std::is_same_v<Code, int64_t>) {
      return code / problem_.W * row_ + code % problem_.W * column_;
    } else {
      return offsets_[code];
    }
  }
  // The first tap of window (p, q); it may lie in the padding.
  int64_t first(int64_t p, int64_t q) const {
    return (p * problem_.stride_h - problem_.pad_h) * row_ +
           (q * problem_.stride_w - problem_.pad_w) * column_;
  }
  const int64_t* data() const { return offsets_.data(); }

 private:
  const Pool2dProblem& problem_;
  int64_t row_, column_;
  Workspace<int64_t> offsets_;
};

// The largest values of a line so far, and their taps.
template <class T>
class Maxima {
 public:
  using Tap = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;

  explicit Maxima(int64_t length) : values_(length + kWidth), taps_(length + kWidth) {}

  const Sum<T>* values() const { return values_.data(); }
  const Tap* taps() const { return taps_.data(); }

  // Element i begins as -infinity at tap first_tap(i).
  template <class FirstTap>
  void clear(int64_t count, const FirstTap& first_tap) {
    for (int64_t i = 0; i < count; ++i) {
      values_[i] = kLowest;
      taps_[i] = static_cast<Tap>(first_tap(i));
    }
  }
  // The first of equals stays, a NaN beats everything, a later NaN an earlier one. Explicit
  // vectors, since most lines are shorter than what a compiler's vector loop is made for.
  void fold(int tap, int64_t first, int64_t count, const T* from, int64_t stride) {
    with_stride(stride, [&](auto step) {
      int64_t i = 0;
      for (; i + kWidth <= count; i += kWidth) {
        fold_vector(tap, first + i, load_vector(from + i * step, step));
      }
      if (i == count) return;
      Sum<T> values[kWidth];
      for (int64_t lane = 0; lane < kWidth; ++lane) {
        values[lane] = i + lane < count ? static_cast<Sum<T>>(from[(i + lane) * step]) : kLowest;
      }
      fold_vector(tap, first + i, load(values));
    });
  }

 private:
  static constexpr int kWidth = kLanes<Sum<T>>;
  static constexpr Sum<T> kLowest = -std::numeric_limits<Sum<T>>::infinity();

  template <class Step>
  static Vector<Sum<T>> load_vector(const T* from, Step step) {
    if constexpr (std::is_same_v<T, Sum<T>> &&
                  std::is_same_v<Step, std::integral_constant<int64_t, 1>>) {
      return load(from);
    }
    Sum<T> values[kWidth];
    for (int lane = 0; lane < kWidth; ++lane) values[lane] = static_cast<Sum<T>>(from[lane * step]);
    return load(values);
  }

  void fold_vector(Tap tap, int64_t first, Vector<Sum<T>> value) {
    const Vector<Sum<T>> best = load(values_.data() + first);
    const Vector<Tap> wins = (value > best) | (value != value);
    store<Sum<T>>(values_.data() + first, wins ? value : best);
    store<Tap>(taps_.data() + first, wins ? Vector<Tap>{} + tap : load(taps_.data() + first));
  }

  Workspace<Sum<T>> values_;
  Workspace<Tap> taps_;
};

template <class T, class Code>
void max_forward(const Pool2dProblem& problem, const T* input, T* output, Code* argmax) {
  const bool last = channels_last(problem.input, problem.output);
  const TapOffsets offsets(problem, problem.W, 1);
  const Workspace<int32_t> first_columns(problem.Q);
  for (int q = 0; q < problem.Q; ++q) first_columns[q] = problem.columns(q).begin;
  for_lines(
      problem, last, [](int64_t length) { return Maxima<T>(length); },
      [&](const Line& line, Maxima<T>& maxima) {
        const int first = problem.rows(static_cast<int>(line.p)).begin * problem.S;
        if (last) {
          const int tap = first + first_columns[line.q];
          maxima.clear(line.count, [tap](int64_t) { return tap; });
        } else {
          const int32_t* columns = first_columns.data();
          maxima.clear(line.count, [first, columns](int64_t i) { return first + columns[i]; });
        }
        for_line_taps(problem, last, line, input,
                      [&](int tap, int64_t first, int64_t count, const T* from, int64_t stride) {
                        maxima.fold(tap, first, count, from, stride);
                      });
        store_line(output + problem.output.at(line.n, line.c, line.p, line.q),
                   last ? problem.output.c : problem.output.w, line.count, maxima.values());
        if (argmax == nullptr) return;
        Code* to = argmax + problem.argmax.at(line.n, line.c, line.p, line.q);
        const auto* taps = maxima.taps();
        with_stride(last ? problem.argmax.c : problem.argmax.w, [&](auto step) {
          for (int64_t i = 0; i < line.count; ++i) {
            if constexpr (std::is_same_v<Code, int64_t>) {
              const int64_t first = offsets.first(line.p, last ? line.q : i);
              to[i * step] = first + offsets.data()[taps[i]];
            } else {
              to[i * step] = static_cast<Code>(taps[i]);
            }
          }
        });
      });
}

template <class T, class Code>
void max_gather(const Pool2dProblem& problem, const T* input, const Code* argmax, T* output) {
  constexpr bool in_plane = std::is_same_v<Code, int64_t>;
  const bool last = channels_last(problem.input, problem.output);
  const TapOffsets offsets(problem, problem.input.h, problem.input.w);
  const Workspace<bool> reached = columns_with_taps(problem);
  for_lines(
      problem, last, [](int64_t) { return 0; },
      [&](const Line& line, int) {
        const T* plane = input + problem.input.at(line.n, line.c, 0, 0);
        const Code* codes = argmax + problem.argmax.at(line.n, line.c, line.p, line.q);
        T* to = output + problem.output.at(line.n, line.c, line.p, line.q);
        const bool empty = is_empty(problem.rows(static_cast<int>(line.p)));
        for (int64_t i = 0; i < line.count; ++i) {
          const int64_t q = last ? line.q : i;
          const Code code = codes[i * (last ? problem.argmax.c : problem.argmax.w)];
          const int64_t origin =
              (last ? i * problem.input.c : 0) + (in_plane ? 0 : offsets.first(line.p, q));
          to[i * (last ? problem.output.c : problem.output.w)] =
              empty || !reached[q] ? static_cast<T>(0) : plane[origin + offsets.from_origin(code)];
        }
      });
}

// How grad_input is cut into blocks of planes that a thread computes at a time: of one plane or,
// where channels lie closest, of some channels. 16-bit gradients are summed in a workspace.
template <class T>
struct Blocks {
  static constexpr bool kInPlace = std::is_same_v<T, Sum<T>>;

  bool last;
  Partition channels;
  Strides strides;  // of the gradients in the making

  explicit Blocks(const Pool2dProblem& problem)
      : last(channels_last(problem.input, problem.output)),
        channels(problem.C, last ? largest(problem) : 1),
        strides(problem.input) {
    if (kInPlace) return;
    strides = last ? Strides{0, 1, problem.W * channels.largest(), channels.largest()}
                   : Strides{0, 0, problem.W, 1};
  }

 private:
  // Two blocks or more a thread, and of a cache line of channels or more.
  static int64_t largest(const Pool2dProblem& problem) {
    const int64_t block =
        greatest<int64_t>(kLeastBlock, problem.N * problem.C / (2 * thread_count()));
    const int64_t elements = static_cast<int64_t>(problem.H) * problem.W;
    return kInPlace ? block : clamp<int64_t>(kBlockElements / elements, 1, block);
  }
};

// A block of grad_input in the making.
template <class T>
struct Planes {
  int64_t n, c, channels;
  Sum<T>* data;
};

// Calls fill(planes, scratch) for blocks of planes that hold zeros, then stores them. Scratch
// has room for one line of outputs.
template <class T, class Fill>
void for_planes(const Pool2dProblem& problem, const Blocks<T>& blocks, T* grad_input,
                const Fill& fill) {
  using S = Sum<T>;
  const bool last = blocks.last;
  const int64_t size = static_cast<int64_t>(problem.H) * problem.W * blocks.channels.largest();
  const int64_t grain = greatest<int64_t>(1, kGrain / size);
  parallel_for(problem.N * blocks.channels.count, grain, [&](int64_t begin, int64_t end) {
    Workspace<S> sums(blocks.kInPlace ? 0 : size);
    Workspace<S> scratch(greatest<int64_t>(problem.Q, blocks.channels.largest()));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / blocks.channels.count, block = item % blocks.channels.count;
      const int64_t channels = blocks.channels.size(block);
      T* to = grad_input + problem.input.at(n, blocks.channels.begin(block), 0, 0);
      Planes<T> planes{n, blocks.channels.begin(block), channels, sums.data()};
      if constexpr (Blocks<T>::kInPlace) planes.data = to;
      // The innermost loop runs along the elements that lie closest.
      const int64_t run = last ? channels : problem.W;
      const int64_t Strides::* inner = last ? &Strides::c : &Strides::w;
      const auto for_runs = [&](const auto& visit) {
        for (int64_t h = 0; h < problem.H; ++h) {
          for (int64_t w = 0; w < (last ? problem.W : 1); ++w) visit(h, w);
        }
      };
      for_runs([&](int64_t h, int64_t w) {
        S* line = planes.data + blocks.strides.at(0, 0, h, w);
        with_stride(blocks.strides.*inner, [&](auto step) {
          for (int64_t i = 0; i < run; ++i) line[i * step] = 0;
        });
      });
      fill(planes, scratch.data());
      if constexpr (!Blocks<T>::kInPlace) {
        for_runs([&](int64_t h, int64_t w) {
          store_line(to + problem.input.at(0, 0, h, w), problem.input.*inner, run,
                     planes.data + blocks.strides.at(0, 0, h, w));
        });
      }
    }
  });
}

// Adds a run of gradients to the elements that their codes name. Neighbours' windows (or, for
// codes that count in the plane, their planes) are `step` elements apart.
template <class T, class Code>
void scatter(int64_t count, const T* gradients, int64_t gradient_step, const Code* codes,
             int64_t code_step, const bool* reached, int64_t reached_step,
             const TapOffsets& offsets, Sum<T>* to, int64_t step) {
  for (int64_t i = 0; i < count; ++i) {
    if (reached[i * reached_step]) {
      to[i * step + offsets.from_origin(codes[i * code_step])] +=
          static_cast<Sum<T>>(gradients[i * gradient_step]);
    }
  }
}

template <class T, class Code>
void max_backward(const Pool2dProblem& problem, const T* grad_output, const Code* argmax,
                  T* grad_input) {
  constexpr bool in_plane = std::is_same_v<Code, int64_t>;
  const Workspace<bool> reached = columns_with_taps(problem);
  const Blocks<T> blocks(problem);
  const TapOffsets offsets(problem, blocks.strides.h, blocks.strides.w);
  for_planes<T>(problem, blocks, grad_input, [&](const Planes<T>& planes, Sum<T>*) {
    for (int p = 0; p < problem.P; ++p) {
      if (is_empty(problem.rows(p))) continue;
      const T* gradients = grad_output + problem.output.at(planes.n, planes.c, p, 0);
      const Code* codes = argmax + problem.argmax.at(planes.n, planes.c, p, 0);
      if (!blocks.last) {
        scatter(problem.Q, gradients, problem.output.w, codes, problem.argmax.w, reached.data(), 1,
                offsets, planes.data + (in_plane ? 0 : offsets.first(p, 0)),
                in_plane ? 0 : problem.stride_w * blocks.strides.w);
        continue;
      }
      for (int64_t q = 0; q < problem.Q; ++q) {
        scatter(planes.channels, gradients + q * problem.output.w, problem.output.c,
                codes + q * problem.argmax.w, problem.argmax.c, reached.data() + q, 0, offsets,
                planes.data + (in_plane ? 0 : offsets.first(p, q)), blocks.strides.c);
      }
    }
  });
}

// What the sum of a window is divided by: a factor of its row times one of its column.
template <class S>
class Divisors {
 public:
  explicit Divisors(const Pool2dProblem& problem) : rows_(problem.P), columns_(problem.Q) {
    const int64_t divisor = problem.divisor_override;
    for (int p = 0; p < problem.P; ++p) {
      const int64_t size = extent(problem.input_h(p, 0), problem.R, problem.H,
                                  problem.count_include_pad ? problem.pad_h : 0);
      rows_[p] = static_cast<S>(divisor != 0 ? 1 : size);
    }
    for (int q = 0; q < problem.Q; ++q) {
      const int64_t size = extent(problem.input_w(q, 0), problem.S, problem.W,
                                  problem.count_include_pad ? problem.pad_w : 0);
      // The zero that is the sum of a window outside the input shall not become a negative one.
      columns_[q] = static_cast<S>(divisor == 0 || is_empty(problem.columns(q)) ? size : divisor);
    }
  }
  S row(int64_t p) const { return rows_[p]; }
  const S* columns() const { return columns_.data(); }

 private:
  // The taps of a window from `first` on that lie on the input or its padding; at least one, so
  // that nothing is divided by zero.
  static int64_t extent(int64_t first, int64_t size, int64_t inputs, int64_t pad) {
    const int64_t end = least(first + size, inputs + pad);
    return greatest<int64_t>(1, end - greatest(first, -pad));
  }

  Workspace<S> rows_, columns_;
};

template <class T>
void avg_forward(const Pool2dProblem& problem, const T* input, T* output) {
  using S = Sum<T>;
  const Divisors<S> divisors(problem);
  const bool last = channels_last(problem.input, problem.output);
  for_lines(
      problem, last, [](int64_t length) { return Workspace<S>(length); },
      [&](const Line& line, const Workspace<S>& sums) {
        for (int64_t i = 0; i < line.count; ++i) sums[i] = 0;
        for_line_taps(problem, last, line, input,
                      [&](int, int64_t first, int64_t count, const T* from, int64_t stride) {
                        S* __restrict sum = sums.data() + first;
                        with_stride(stride, [&](auto step) {
                          for (int64_t i = 0; i < count; ++i) {
                            sum[i] += static_cast<S>(from[i * step]);
                          }
                        });
                      });
        const S row = divisors.row(line.p);
        const bool empty = is_empty(problem.rows(static_cast<int>(line.p)));
        for (int64_t i = 0; i < line.count && !empty; ++i) {
          sums[i] /= row * divisors.columns()[last ? line.q : i];
        }
        store_line(output + problem.output.at(line.n, line.c, line.p, line.q),
                   last ? problem.output.c : problem.output.w, line.count, sums.data());
      });
}

template <class T>
void avg_backward(const Pool2dProblem& problem, const T* grad_output, T* grad_input) {
  using S = Sum<T>;
  const Divisors<S> divisors(problem);
  const Blocks<T> blocks(problem);
  for_planes<T>(problem, blocks, grad_input, [&](const Planes<T>& planes, S* shares) {
    for (int64_t p = 0; p < problem.P; ++p) {
      const T* row = grad_output + problem.output.at(planes.n, planes.c, p, 0);
      if (!blocks.last) {
        for (int64_t q = 0; q < problem.Q; ++q) {
          shares[q] =
              static_cast<S>(row[q * problem.output.w]) / (divisors.row(p) * divisors.columns()[q]);
        }
        for_row_taps(problem, blocks.strides, p,
                     [&](int, int64_t first, int64_t count, int64_t offset) {
                       with_stride(problem.stride_w * blocks.strides.w, [&](auto step) {
                         S* __restrict to = planes.data + offset;
                         for (int64_t i = 0; i < count; ++i) to[i * step] += shares[first + i];
                       });
                     });
        continue;
      }
      for (int64_t q = 0; q < problem.Q; ++q) {
        const S count = divisors.row(p) * divisors.columns()[q];
        for (int64_t i = 0; i < planes.channels; ++i) {
          shares[i] = static_cast<S>(row[q * problem.output.w + i]) / count;
        }
        for_pixel_taps(problem, blocks.strides, p, q, [&](int, int64_t offset) {
          S* __restrict to = planes.data + offset;
          for (int64_t i = 0; i < planes.channels; ++i) to[i] += shares[i];
        });
      }
    }
  });
}

const char* unsupported(const Pool2dProblem&, Dtype) { return nullptr; }

Pool2dAlgorithm algorithm() {
  Pool2dAlgorithm direct{"direct", unsupported, nullptr, nullptr, nullptr, nullptr, nullptr};
  direct.max_forward = [](const Pool2dProblem& problem, Dtype dtype, const void* input,
                          void* output, void* argmax, Argmax kind, Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      dispatch(kind, [&](auto code) {
        max_forward(problem, static_cast<const T*>(input), static_cast<T*>(output),
                    kind == Argmax::none ? nullptr : static_cast<decltype(code)*>(argmax));
      });
    });
  };
  direct.max_backward = [](const Pool2dProblem& problem, Dtype dtype, const void* grad_output,
                           const void* argmax, Argmax kind, void* grad_input, Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      dispatch(kind, [&](auto code) {
        max_backward(problem, static_cast<const T*>(grad_output),
                     static_cast<const decltype(code)*>(argmax), static_cast<T*>(grad_input));
      });
    });
  };
  direct.max_gather = [](const Pool2dProblem& problem, Dtype dtype, const void* input,
                         const void* argmax, Argmax kind, void* output, Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      dispatch(kind, [&](auto code) {
        max_gather(problem, static_cast<const T*>(input),
                   static_cast<const decltype(code)*>(argmax), static_cast<T*>(output));
      });
    });
  };
  direct.avg_forward = [](const Pool2dProblem& problem, Dtype dtype, const void* input,
                          void* output, Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      avg_forward(problem, static_cast<const T*>(input), static_cast<T*>(output));
    });
  };
  direct.avg_backward = [](const Pool2dProblem& problem, Dtype dtype, const void* grad_output,
                           void* grad_input, Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      avg_backward(problem, static_cast<const T*>(grad_output), static_cast<T*>(grad_input));
    });
  };
  return direct;
}

}  // namespace

Pool2dAlgorithm pool2d_direct() { return algorithm(); }

}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
