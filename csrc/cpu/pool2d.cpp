// Max and average pooling, regular and adaptive, forward and backward.
//
// The forward passes work on lines: the outputs of one row of a plane or, where channels lie
// closest (channels_last), all channels of one pixel. For each tap of the window the part of the
// line whose tap lies inside the input is folded into the line's results: a loop without
// branches, along vectors. Adaptive windows in a row differ in width, so that their line is folded
// in two steps: the rows under it into a line of input columns, then the columns of each window.
// Small planes are transposed to channels_last for it.
//
// The backward passes give each plane (channels_last: a block of planes)
// to one thread, which adds the gradients in a fixed order: same bits for any number of threads.
//
// Cost: input + output + argmax bytes from memory, R * S loads an output from cache.
#include <limits>
#include <vector>

#include "../parallel.h"
#include "../summation.h"
#include "isa.h"
#include "lanes.h"

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

// The windows of one row or column: the input position of their first tap, and their taps inside
// the input. A window without a tap, which dilation can step over, has neither gradient nor
// tangent, though its code names the first tap that is not in the leading padding: so does torch.
struct Taps {
  int input;
  Range inside;

  bool none() const { return inside.begin >= inside.end; }
};

// The outputs of a row whose tap in a column of the window lies inside the input, and the input
// column that the first of them reads.
struct Inside {
  int64_t begin, end, input;

  Inside() = default;
  Inside(const Pool2dProblem& problem, int s) {
    const int64_t offset = problem.input_w(0, s);
    begin = clamp<int64_t>(ceil_div(-offset, problem.stride_w), 0, problem.Q);
    end = clamp<int64_t>(ceil_div(problem.W - offset, problem.stride_w), begin, problem.Q);
    input = begin * problem.stride_w + offset;
  }
};

struct Windows {
  Workspace<Taps> rows, columns;
  Workspace<Inside> taps;  // one for each column of a window of fixed size

  explicit Windows(const Pool2dProblem& problem) : Windows(problem, problem.S) {
    for (int s = 0; s < problem.S; ++s) taps[s] = Inside(problem, s);
  }
  explicit Windows(const AdaptivePool2dProblem& problem) : Windows(problem, 0) {}

 private:
  template <class Problem>
  Windows(const Problem& problem, int64_t taps) : rows(problem.P), columns(problem.Q), taps(taps) {
    for (int p = 0; p < problem.P; ++p) rows[p] = {problem.input_h(p, 0), problem.rows(p)};
    for (int q = 0; q < problem.Q; ++q) columns[q] = {problem.input_w(q, 0), problem.columns(q)};
  }
};

// Calls body(tap, first, count, offset) for the taps of the windows in row p of an NCHW plane that
// lie inside the input, in row-major order: for the outputs q in [first, first + count), the first
// of which reads input element `offset` of the plane, the next ones stride_w columns further.
template <class Body>
void for_row_taps(const Pool2dProblem& problem, const Windows& windows, const Strides& strides,
                  int p, const Body& body) {
  const Taps& row = windows.rows[p];
  for (int r = row.inside.begin; r < row.inside.end; ++r) {
    const int64_t h = row.input + static_cast<int64_t>(r) * problem.dilation_h;
    for (int s = 0; s < problem.S; ++s) {
      const Inside& q = windows.taps[s];
      if (q.begin < q.end) {
        body(r * problem.S + s, q.begin, q.end - q.begin, h * strides.h + q.input * strides.w);
      }
    }
  }
}

// The same for the channels of one pixel: body(tap, offset).
template <class Problem, class Body>
void for_pixel_taps(const Problem& problem, const Strides& strides, const Taps& row,
                    const Taps& column, const Body& body) {
  for (int r = row.inside.begin; r < row.inside.end; ++r) {
    const int64_t h = row.input + r * problem.dilation_h;
    for (int s = column.inside.begin; s < column.inside.end; ++s) {
      const int64_t w = column.input + s * problem.dilation_w;
      body(r * problem.S + s, h * strides.h + w * strides.w);
    }
  }
}

// A line of outputs: where it begins, and how its elements follow each other.
struct Line {
  int64_t n, c;
  int p, q;
  int64_t count;
};

// Whether the lines of an NCHW output are folded in two steps, the first of which needs room for
// the input columns under a line.
template <class Problem>
constexpr bool kTwoSteps = std::is_same_v<Problem, AdaptivePool2dProblem>;

template <class Problem>
int64_t line_length(const Problem& problem, bool last) {
  return last ? problem.C : problem.Q;
}

// Calls make() once per thread and piece of work, then body(line, state) for every line.
template <class Problem, class Make, class Body>
void for_lines(const Problem& problem, bool last, const Make& make, const Body& body) {
  const int64_t length = line_length(problem, last);
  const int64_t inner = last ? problem.Q : problem.P;  // of a line's index
  const int64_t middle = last ? problem.P : problem.C;
  const int64_t grain =
      greatest<int64_t>(1, kGrain / greatest<int64_t>(1, length * problem.R * problem.S));
  parallel_for(problem.N * middle * inner, grain, [&](int64_t begin, int64_t end) {
    auto state = make();
    // Counted on, since a line may cost less than the divisions.
    int64_t n = begin / inner / middle, m = begin / inner % middle, k = begin % inner;
    for (int64_t i = begin; i < end; ++i) {
      const int row = static_cast<int>(last ? m : k), column = static_cast<int>(last ? k : 0);
      body(Line{n, last ? 0 : m, row, column, length}, state);
      if (++k < inner) continue;
      k = 0;
      if (++m == middle) m = 0, ++n;
    }
  });
}

// Calls loop(stride) with the two common strides as constants, so that it is compiled for them.
template <class Loop>
void with_stride(int64_t stride, const Loop& loop) {
  if (stride == 1) return loop(std::integral_constant<int64_t, 1>{});
  if (stride == 2) return loop(std::integral_constant<int64_t, 2>{});
  loop(stride);
}

// A vector of a line's elements, `step` apart.
template <class T, class Step>
Vector<Sum<T>> load_line(const T* from, Step step) {
  using S = Sum<T>;
  constexpr int n = kLanes<S>;
  if constexpr (std::is_same_v<T, S> && !std::is_same_v<Step, int64_t>) {
    if constexpr (Step::value == 1) return load(from);
    return load_every_second(from, std::make_integer_sequence<int, n>{});
  }
  S values[n];
  for (int lane = 0; lane < n; ++lane) values[lane] = static_cast<S>(from[lane * step]);
  return load(values);
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

// Where the taps of windows lie in a plane of `width` columns, in elements.
class TapOffsets {
 public:
  template <class Problem>
  TapOffsets(const Problem& problem, int64_t row, int64_t column)
      : width_(problem.W), row_(row), column_(column), offsets_(problem.R * problem.S) {
    for (int r = 0; r < problem.R; ++r) {
      for (int s = 0; s < problem.S; ++s) {
        offsets_[r * problem.S + s] =
            r * problem.dilation_h * row + s * problem.dilation_w * column;
      }
    }
  }
  // The element that a code names: counted from the window's first tap, or for an int64 code
  // from the plane's first element.
  template <class Code>
  int64_t from_origin(Code code) const {
    if constexpr (std::is_same_v<Code, int64_t>) {
      return code / width_ * row_ + code % width_ * column_;
    } else {
      return offsets_[code];
    }
  }
  // What it counts from, for windows whose first tap reads that input row and column, which may
  // lie in the padding.
  template <class Code>
  int64_t origin(int64_t h, int64_t w) const {
    return std::is_same_v<Code, int64_t> ? 0 : h * row_ + w * column_;
  }

 private:
  int64_t width_, row_, column_;
  Workspace<int64_t> offsets_;
};

// Small planes, whose lines are shorter than what a line costs to set up, are pooled by blocks of
// kBlock of them, transposed so that their channels lie closest: whole vectors whatever the size.
constexpr int kBlock = 16;
constexpr int64_t kSmallPlane = 2048;

// The same problem, with planes of all images as those of one where strides allow.
template <class Problem>
Problem joined_images(Problem problem) {
  Strides* const tensors[] = {&problem.input, &problem.output, &problem.argmax};
  if (int64_t{problem.N} * problem.C > std::numeric_limits<int>::max()) return problem;
  for (Strides* strides : tensors) {
    if (problem.C == 1) strides->c = strides->n;
    if (strides->n != problem.C * strides->c) return problem;
  }
  problem.C *= problem.N;
  problem.N = 1;
  return problem;
}

// A block: where its planes begin, and the problem of the transposed ones.
template <class Problem>
struct Block {
  Problem problem, transposed;
  int64_t n, c;

  int filled(int64_t lane, int n) const {
    return static_cast<int>(clamp<int64_t>(problem.C - c - lane, 0, n));
  }
  int64_t inputs() const { return static_cast<int64_t>(problem.H) * problem.W * kBlock; }
  int64_t outputs() const { return static_cast<int64_t>(problem.P) * problem.Q * kBlock; }

  // Calls body(first element of the transposed, pixels, lanes, place in the tensor) for the runs of
  // pixels that follow each other without a gap, and each vector of planes.
  template <int kWidth, class Body>
  void for_runs(int64_t rows, int64_t columns, const Strides& strides, const Body& body) const {
    const int64_t runs = strides.h == columns * strides.w ? 1 : rows;
    const int64_t length = rows * columns / runs;
    for (int64_t run = 0; run < runs; ++run) {
      for (int64_t lane = 0; lane < kBlock; lane += kWidth) {
        body(run * length * kBlock + lane, length, filled(lane, kWidth),
             strides.at(n, c + lane, run, 0));
      }
    }
  }
};

// Calls body(block) for all planes, if they are small, and returns whether they are.
template <class S, class Code, class Problem, class Body>
bool by_blocks(const Problem& problem, const Body& body) {
  const int64_t plane = greatest(static_cast<int64_t>(problem.H) * problem.W,
                                 static_cast<int64_t>(problem.P) * problem.Q);
  const bool suits = std::is_same_v<S, float> && !std::is_same_v<Code, int64_t> &&
                     plane <= kSmallPlane && !channels_last(problem.input, problem.output);
  if (!suits) return false;
  Block<Problem> first{joined_images(problem), problem, 0, 0};
  if (first.problem.C < kBlock / 2) return false;
  first.transposed.N = 1;
  first.transposed.C = kBlock;
  first.transposed.input = {0, 1, int64_t{problem.W} * kBlock, kBlock};
  first.transposed.output = {0, 1, int64_t{problem.Q} * kBlock, kBlock};
  first.transposed.argmax = first.transposed.output;
  const int64_t blocks = ceil_div(first.problem.C, kBlock);
  parallel_for(first.problem.N * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      Block<Problem> block = first;
      block.n = item / blocks, block.c = item % blocks * kBlock;
      body(block);
    }
  });
  return true;
}

template <class T, class Problem>
void transpose_in(const Block<Problem>& block, int64_t rows, int64_t columns,
                  const Strides& strides, const T* tensor, Sum<T>* to) {
  block.template for_runs<kLanes<Sum<T>>>(
      rows, columns, strides, [&](int64_t first, int64_t count, int filled, int64_t place) {
        pack_lanes<T>(to + first, kBlock, count, filled, {tensor + place, strides, nullptr, {}},
                      &Strides::w, &Strides::c);
      });
}

template <class T, class Problem>
void transpose_out(const Block<Problem>& block, int64_t rows, int64_t columns,
                   const Strides& strides, const Sum<T>* from, T* tensor) {
  block.template for_runs<kLanes<Sum<T>>>(
      rows, columns, strides, [&](int64_t first, int64_t count, int filled, int64_t place) {
        store_lanes(from + first, kBlock, count, filled, 0, {nullptr, 0, false}, tensor + place,
                    strides.w, strides.c);
      });
}

// The largest values of a line so far, and their taps.
template <class T>
class Maxima {
 public:
  using Tap = Index<Sum<T>>;

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
  void set(int64_t i, Sum<T> value, Tap tap) { values_[i] = value, taps_[i] = tap; }

  // The first of equals stays, a NaN beats everything, a later NaN an earlier one. Explicit
  // vectors, since most lines are shorter than what a compiler's vector loop is made for.
  void fold(int tap, int64_t first, int64_t count, const T* from, int64_t stride) {
    with_stride(stride, [&](auto step) {
      int64_t i = 0;
      for (; i + kWidth <= count; i += kWidth) {
        fold_vector(tap, first + i, load_line<T>(from + i * step, step));
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

  void fold_vector(Tap tap, int64_t first, Vector<Sum<T>> value) {
    const Vector<Sum<T>> best = load(values_.data() + first);
    const Vector<Tap> wins = (value > best) | (value != value);
    store<Sum<T>>(values_.data() + first, wins ? value : best);
    store<Tap>(taps_.data() + first, wins ? Vector<Tap>{} + tap : load(taps_.data() + first));
  }

  Workspace<Sum<T>> values_;
  Workspace<Tap> taps_;
};

// A line of maxima, and the columns under it where it is folded in two steps.
template <class T>
struct LineMaxima {
  Maxima<T> windows, columns;

  template <class Problem>
  LineMaxima(const Problem& problem, bool last)
      : windows(line_length(problem, last)), columns(kTwoSteps<Problem> && !last ? problem.W : 0) {}
};

// The maxima of row p of an NCHW plane.
template <class T>
void find_maxima(const Pool2dProblem& problem, const Windows& windows, const T* plane, int p,
                 LineMaxima<T>& maxima) {
  const int64_t step = problem.stride_w * problem.input.w;
  for_row_taps(problem, windows, problem.input, p,
               [&](int tap, int64_t first, int64_t count, int64_t offset) {
                 maxima.windows.fold(tap, first, count, plane + offset, step);
               });
}

template <class T>
void find_maxima(const AdaptivePool2dProblem& problem, const Windows& windows, const T* plane,
                 int p, LineMaxima<T>& maxima) {
  const Taps& row = windows.rows[p];
  maxima.columns.clear(problem.W, [](int64_t) { return 0; });
  for (int r = row.inside.begin; r < row.inside.end; ++r) {
    maxima.columns.fold(r, 0, problem.W, plane + (row.input + r) * problem.input.h,
                        problem.input.w);
  }
  const auto* values = maxima.columns.values();
  const auto* rows = maxima.columns.taps();
  for (int q = 0; q < problem.Q; ++q) {
    const Taps& column = windows.columns[q];
    auto best = maxima.windows.values()[q];
    int64_t best_r = row.inside.begin, best_s = column.inside.begin;
    for (int64_t s = best_s; s < column.inside.end; ++s) {
      // In row-major order the first of equals wins, and the last NaN.
      const auto value = values[column.input + s];
      const int64_t r = rows[column.input + s];
      const bool wins = value > best || (value == best && r < best_r) ||
                        (value != value && (best == best || r >= best_r));
      if (wins) best = value, best_r = r, best_s = s;
    }
    maxima.windows.set(q, best, best_r * problem.S + best_s);
  }
}

template <class Problem, class T, class Code>
void max_forward(const Problem& problem, const T* input, T* output, Code* argmax) {
  using S = Sum<T>;
  const bool done = by_blocks<S, Code>(problem, [&](const Block<Problem>& block) {
    if constexpr (std::is_same_v<S, float>) {
      const Problem& planes = block.problem;
      Workspace<S> inputs(block.inputs()), maxima(block.outputs());
      Workspace<int32_t> taps(argmax == nullptr ? 0 : block.outputs());
      transpose_in(block, planes.H, planes.W, planes.input, input, inputs.data());
      max_forward(block.transposed, inputs.data(), maxima.data(),
                  argmax == nullptr ? nullptr : taps.data());
      transpose_out(block, planes.P, planes.Q, planes.output, maxima.data(), output);
      if (argmax == nullptr) return;
      block.template for_runs<kLanes<S>>(
          planes.P, planes.Q, planes.argmax,
          [&](int64_t first, int64_t count, int filled, int64_t place) {
            store_codes<S>(taps.data() + first, kBlock, count, filled, argmax + place,
                           planes.argmax.w, planes.argmax.c);
          });
    }
  });
  if (done) return;
  const bool last = channels_last(problem.input, problem.output);
  const TapOffsets offsets(problem, problem.W, 1);  // counted as torch's index is
  const Windows windows(problem);
  for_lines(
      problem, last, [&] { return LineMaxima<T>(problem, last); },
      [&](const Line& line, LineMaxima<T>& state) {
        const Taps& row = windows.rows[line.p];
        const Taps* columns = windows.columns.data() + line.q;
        Maxima<T>& maxima = state.windows;
        const int row_tap = row.inside.begin * problem.S;
        if (last) {
          maxima.clear(line.count,
                       [tap = row_tap + columns->inside.begin](int64_t) { return tap; });
        } else {
          maxima.clear(line.count, [=](int64_t q) { return row_tap + columns[q].inside.begin; });
        }
        const T* plane = input + problem.input.at(line.n, line.c, 0, 0);
        if (last) {
          for_pixel_taps(problem, problem.input, row, *columns, [&](int tap, int64_t offset) {
            maxima.fold(tap, 0, line.count, plane + offset, 1);
          });
        } else {
          find_maxima(problem, windows, plane, line.p, state);
        }
        store_line(output + problem.output.at(line.n, line.c, line.p, line.q),
                   last ? problem.output.c : problem.output.w, line.count, maxima.values());
        if (argmax == nullptr) return;
        Code* to = argmax + problem.argmax.at(line.n, line.c, line.p, line.q);
        const auto* taps = maxima.taps();
        with_stride(last ? problem.argmax.c : problem.argmax.w, [&](auto step) {
          for (int64_t i = 0; i < line.count; ++i) {
            if constexpr (std::is_same_v<Code, int64_t>) {
              const auto tap = static_cast<int32_t>(taps[i]);
              to[i * step] = offsets.origin<int32_t>(row.input, columns[last ? 0 : i].input) +
                             offsets.from_origin(tap);
            } else {
              to[i * step] = static_cast<Code>(taps[i]);
            }
          }
        });
      });
}

template <class Problem, class T, class Code>
void max_gather(const Problem& problem, const T* input, const Code* argmax, T* output) {
  const bool last = channels_last(problem.input, problem.output);
  const TapOffsets offsets(problem, problem.input.h, problem.input.w);
  const Windows windows(problem);
  for_lines(
      problem, last, [] { return 0; },
      [&](const Line& line, int) {
        const T* plane = input + problem.input.at(line.n, line.c, 0, 0);
        const Code* codes = argmax + problem.argmax.at(line.n, line.c, line.p, line.q);
        T* to = output + problem.output.at(line.n, line.c, line.p, line.q);
        const Taps& row = windows.rows[line.p];
        for (int64_t i = 0; i < line.count; ++i) {
          const Taps& column = windows.columns[last ? line.q : i];
          const Code code = codes[i * (last ? problem.argmax.c : problem.argmax.w)];
          const int64_t origin = (last ? i * problem.input.c : 0) +
                                 offsets.template origin<Code>(row.input, column.input);
          to[i * (last ? problem.output.c : problem.output.w)] =
              row.none() || column.none() ? static_cast<T>(0)
                                          : plane[origin + offsets.from_origin(code)];
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

  template <class Problem>
  explicit Blocks(const Problem& problem)
      : last(channels_last(problem.input, problem.output)),
        channels(problem.C, last ? largest(problem) : 1),
        strides(problem.input) {
    if (kInPlace) return;
    strides = last ? Strides{0, 1, problem.W * channels.largest(), channels.largest()}
                   : Strides{0, 0, problem.W, 1};
  }

 private:
  // Two blocks or more a thread, and of a cache line of channels or more.
  template <class Problem>
  static int64_t largest(const Problem& problem) {
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
// has room for one line of outputs, or of inputs.
template <class T, class Problem, class Fill>
void for_planes(const Problem& problem, const Blocks<T>& blocks, T* grad_input, const Fill& fill) {
  using S = Sum<T>;
  const bool last = blocks.last;
  const int64_t size = static_cast<int64_t>(problem.H) * problem.W * blocks.channels.largest();
  const int64_t grain = greatest<int64_t>(1, kGrain / size);
  parallel_for(problem.N * blocks.channels.count, grain, [&](int64_t begin, int64_t end) {
    Workspace<S> sums(blocks.kInPlace ? 0 : size);
    Workspace<S> scratch(
        greatest<int64_t>(greatest(problem.Q, problem.W), blocks.channels.largest()));
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

// Adds a run of gradients to the elements that their codes name; code i counts from place(i).
template <class T, class Code, class Place>
void scatter(int64_t count, const T* gradients, int64_t gradient_step, const Code* codes,
             int64_t code_step, const TapOffsets& offsets, Sum<T>* to, const Place& place) {
  const auto run = [&](auto gradient, auto code) {
    for (int64_t i = 0; i < count; ++i) {
      to[place(i) + offsets.from_origin(codes[i * code])] +=
          static_cast<Sum<T>>(gradients[i * gradient]);
    }
  };
  constexpr std::integral_constant<int64_t, 1> kOne{};
  if (gradient_step == 1 && code_step == 1) return run(kOne, kOne);
  run(gradient_step, code_step);
}

// The runs of window columns that have taps: almost always one.
std::vector<Range> columns_with_taps(const Windows& windows, int count) {
  std::vector<Range> runs;
  for (int q = 0; q < count; ++q) {
    if (windows.columns[q].none()) continue;
    if (runs.empty() || runs.back().end != q) runs.push_back({q, q});
    runs.back().end = q + 1;
  }
  return runs;
}

// Where the codes of window row `row` count from, as a function of the window's column.
template <class Code>
auto origins(const Pool2dProblem& problem, const Windows&, const TapOffsets& offsets,
             const Taps& row) {
  const int64_t first = offsets.origin<Code>(row.input, -problem.pad_w);
  const int64_t step = offsets.origin<Code>(0, problem.stride_w);
  return [first, step](int64_t q) { return first + q * step; };
}

template <class Code>
auto origins(const AdaptivePool2dProblem&, const Windows& windows, const TapOffsets& offsets,
             const Taps& row) {
  return [&](int64_t q) { return offsets.origin<Code>(row.input, windows.columns[q].input); };
}

template <class Problem, class T, class Code>
void max_backward(const Problem& problem, const T* grad_output, const Code* argmax, T* grad_input) {
  const Windows windows(problem);
  const std::vector<Range> runs = columns_with_taps(windows, problem.Q);
  const Blocks<T> blocks(problem);
  const TapOffsets offsets(problem, blocks.strides.h, blocks.strides.w);
  for_planes<T>(problem, blocks, grad_input, [&](const Planes<T>& planes, Sum<T>*) {
    for (int p = 0; p < problem.P; ++p) {
      if (windows.rows[p].none()) continue;
      const auto origin = origins<Code>(problem, windows, offsets, windows.rows[p]);
      for (const Range& run : runs) {
        const T* gradients = grad_output + problem.output.at(planes.n, planes.c, p, run.begin);
        const Code* codes = argmax + problem.argmax.at(planes.n, planes.c, p, run.begin);
        const int count = run.end - run.begin;
        if (!blocks.last) {
          scatter(count, gradients, problem.output.w, codes, problem.argmax.w, offsets, planes.data,
                  [&](int64_t i) { return origin(run.begin + i); });
          continue;
        }
        for (int64_t i = 0; i < count; ++i) {
          scatter(planes.channels, gradients + i * problem.output.w, problem.output.c,
                  codes + i * problem.argmax.w, problem.argmax.c, offsets,
                  planes.data + origin(run.begin + i), [](int64_t channel) { return channel; });
        }
      }
    }
  });
}

// What the sum of a window is divided by: a factor of its row times one of its column.
template <class S>
class Divisors {
 public:
  Divisors(const Pool2dProblem& problem, const Windows& windows)
      : rows_(problem.P), columns_(problem.Q) {
    const int64_t divisor = problem.divisor_override;
    for (int p = 0; p < problem.P; ++p) {
      const int64_t size = extent(windows.rows[p].input, problem.R, problem.H,
                                  problem.count_include_pad ? problem.pad_h : 0);
      rows_[p] = static_cast<S>(divisor != 0 ? 1 : size);
    }
    for (int q = 0; q < problem.Q; ++q) {
      const Taps& column = windows.columns[q];
      const int64_t size =
          extent(column.input, problem.S, problem.W, problem.count_include_pad ? problem.pad_w : 0);
      // The zero that is the sum of a window outside the input shall not become a negative one.
      columns_[q] = static_cast<S>(divisor == 0 || column.none() ? size : divisor);
    }
  }
  Divisors(const AdaptivePool2dProblem& problem, const Windows& windows)
      : rows_(problem.P), columns_(problem.Q) {
    for (int p = 0; p < problem.P; ++p) rows_[p] = static_cast<S>(windows.rows[p].inside.end);
    for (int q = 0; q < problem.Q; ++q) columns_[q] = static_cast<S>(windows.columns[q].inside.end);
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

// A LongSum an element of a line.
template <class T>
class LineSums {
 public:
  using S = Sum<T>;

  explicit LineSums(int64_t length) : chunk_(length), chunks_(length), total_(length) {}

  void clear(int64_t count) {
    count_ = count, room_ = kSumChunk, carried_ = 0;
    set_zero(chunk_);
  }
  // Adds from[i * stride] to the elements first + i; once a term.
  void add(int64_t first, int64_t count, const T* from, int64_t stride) {
    if (room_ == 0) carry();
    --room_;
    S* __restrict sum = chunk_.data() + first;
    with_stride(stride, [&](auto step) {
      for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<S>(from[i * step]);
    });
  }
  // Complete; nothing can be added any more.
  const S* values() {
    if (carried_ > 0) move(chunks_, chunk_), move(total_, chunk_);
    return chunk_.data();
  }

 private:
  void carry() {
    if (carried_ == 0) set_zero(chunks_), set_zero(total_);
    move(chunk_, chunks_);
    if (++carried_ % kSumChunk == 0) move(chunks_, total_);
    room_ = kSumChunk;
  }
  void set_zero(const Workspace<S>& line) const {
    for (int64_t i = 0; i < count_; ++i) line[i] = 0;
  }
  void move(const Workspace<S>& from, const Workspace<S>& to) const {
    for (int64_t i = 0; i < count_; ++i) to[i] += from[i];
    set_zero(from);
  }

  Workspace<S> chunk_, chunks_, total_;
  int64_t count_ = 0, carried_ = 0;  // elements of the line; chunks moved on
  int room_ = 0;                     // terms that the chunk still takes
};

// A line of averages, and sums of it or, where it is folded in two steps, of the columns under it.
template <class T>
struct LineAverages {
  LineSums<T> sums;
  Workspace<Sum<T>> results;

  template <class Problem>
  LineAverages(const Problem& problem, bool last)
      : sums(kTwoSteps<Problem> && !last ? problem.W : line_length(problem, last)),
        results(line_length(problem, last)) {}
};

// The sums of the windows in row p of an NCHW plane.
template <class T>
const Sum<T>* sum_windows(const Pool2dProblem& problem, const Windows& windows, const T* plane,
                          int p, LineAverages<T>& state) {
  const int64_t step = problem.stride_w * problem.input.w;
  state.sums.clear(problem.Q);
  for_row_taps(problem, windows, problem.input, p,
               [&](int, int64_t first, int64_t count, int64_t offset) {
                 state.sums.add(first, count, plane + offset, step);
               });
  return state.sums.values();
}

template <class T>
const Sum<T>* sum_windows(const AdaptivePool2dProblem& problem, const Windows& windows,
                          const T* plane, int p, LineAverages<T>& state) {
  const Taps& row = windows.rows[p];
  state.sums.clear(problem.W);
  for (int r = row.inside.begin; r < row.inside.end; ++r) {
    state.sums.add(0, problem.W, plane + (row.input + r) * problem.input.h, problem.input.w);
  }
  const Sum<T>* columns = state.sums.values();
  for (int q = 0; q < problem.Q; ++q) {
    const Taps& column = windows.columns[q];
    LongSum<Sum<T>> sum;
    for (int s = 0; s < column.inside.end; ++s) sum.add(columns[column.input + s]);
    state.results[q] = sum.value();
  }
  return state.results.data();
}

// Whether each plane is one window, and lies in one piece.
bool is_global(const AdaptivePool2dProblem& problem) {
  return problem.P == 1 && problem.Q == 1 && problem.input.w == 1 && problem.input.h == problem.W;
}

// Sum of neighbours: rows of kRow elements are added up, in chunks of kSumChunk rows, whose sums
// are halved until one element is left.
template <class T>
Sum<T> sum_of_run(const T* from, int64_t count) {
  constexpr int kRow = 16;
  LongSum<Sum<T>> total;
  for (int64_t i = 0; i < count;) {
    Sum<T> row[kRow] = {};
    const int64_t end = least<int64_t>(count, i + kRow * kSumChunk);
    for (; i + kRow <= end; i += kRow) {
      for (int lane = 0; lane < kRow; ++lane) row[lane] += static_cast<Sum<T>>(from[i + lane]);
    }
    for (int lane = 0; i < end; ++i, ++lane) row[lane] += static_cast<Sum<T>>(from[i]);
    for (int half = kRow / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) row[lane] += row[lane + half];
    }
    total.add(row[0]);
  }
  return total.value();
}

template <class T>
void global_avg_forward(const AdaptivePool2dProblem& problem, const T* input, T* output) {
  const int64_t size = static_cast<int64_t>(problem.H) * problem.W;
  for_lines(
      problem, false, [] { return 0; },
      [&](const Line& line, int) {
        const Sum<T> sum = sum_of_run(input + problem.input.at(line.n, line.c, 0, 0), size);
        output[problem.output.at(line.n, line.c, 0, 0)] =
            static_cast<T>(sum / static_cast<Sum<T>>(size));
      });
}

template <class Problem, class T>
void avg_forward(const Problem& problem, const T* input, T* output) {
  using S = Sum<T>;
  if constexpr (kTwoSteps<Problem>) {
    if (is_global(problem)) return global_avg_forward(problem, input, output);
  }
  const bool done = by_blocks<S, void>(problem, [&](const Block<Problem>& block) {
    const Problem& planes = block.problem;
    Workspace<S> inputs(block.inputs()), averages(block.outputs());
    transpose_in(block, planes.H, planes.W, planes.input, input, inputs.data());
    avg_forward(block.transposed, inputs.data(), averages.data());
    transpose_out(block, planes.P, planes.Q, planes.output, averages.data(), output);
  });
  if (done) return;
  const Windows windows(problem);
  const Divisors<S> divisors(problem, windows);
  const bool last = channels_last(problem.input, problem.output);
  for_lines(
      problem, last, [&] { return LineAverages<T>(problem, last); },
      [&](const Line& line, LineAverages<T>& state) {
        const Taps& row = windows.rows[line.p];
        const T* plane = input + problem.input.at(line.n, line.c, 0, 0);
        const S* sums;
        if (last) {
          state.sums.clear(line.count);
          for_pixel_taps(
              problem, problem.input, row, windows.columns[line.q],
              [&](int, int64_t offset) { state.sums.add(0, line.count, plane + offset, 1); });
          sums = state.sums.values();
        } else {
          sums = sum_windows(problem, windows, plane, line.p, state);
        }
        for (int64_t i = 0; i < line.count; ++i) {
          const S divisor = divisors.row(line.p) * divisors.columns()[last ? line.q : i];
          state.results[i] = row.none() ? S(0) : sums[i] / divisor;
        }
        store_line(output + problem.output.at(line.n, line.c, line.p, line.q),
                   last ? problem.output.c : problem.output.w, line.count, state.results.data());
      });
}

// Adds what the windows in row p of an NCHW plane hand on, their gradients divided by
// row_divisor * divisors[q].
template <class T>
void spread_gradients(const Pool2dProblem& problem, const Windows& windows, const Strides& strides,
                      int p, const T* gradients, Sum<T> row_divisor, const Sum<T>* divisors,
                      Sum<T>* plane, Sum<T>* shares) {
  for (int64_t q = 0; q < problem.Q; ++q) {
    shares[q] = static_cast<Sum<T>>(gradients[q * problem.output.w]) / (row_divisor * divisors[q]);
  }
  for_row_taps(problem, windows, strides, p,
               [&](int, int64_t first, int64_t count, int64_t offset) {
                 with_stride(problem.stride_w * strides.w, [&](auto step) {
                   Sum<T>* __restrict to = plane + offset;
                   for (int64_t i = 0; i < count; ++i) to[i * step] += shares[first + i];
                 });
               });
}

template <class T>
void spread_gradients(const AdaptivePool2dProblem& problem, const Windows& windows,
                      const Strides& strides, int p, const T* gradients, Sum<T> row_divisor,
                      const Sum<T>* divisors, Sum<T>* plane, Sum<T>* columns) {
  for (int64_t w = 0; w < problem.W; ++w) columns[w] = 0;
  for (int64_t q = 0; q < problem.Q; ++q) {
    const Sum<T> share =
        static_cast<Sum<T>>(gradients[q * problem.output.w]) / (row_divisor * divisors[q]);
    const Taps& column = windows.columns[q];
    for (int s = 0; s < column.inside.end; ++s) columns[column.input + s] += share;
  }
  const Taps& row = windows.rows[p];
  for (int r = 0; r < row.inside.end; ++r) {
    with_stride(strides.w, [&](auto step) {
      Sum<T>* __restrict to = plane + (row.input + r) * strides.h;
      for (int64_t w = 0; w < problem.W; ++w) to[w * step] += columns[w];
    });
  }
}

template <class Problem, class T>
void avg_backward(const Problem& problem, const T* grad_output, T* grad_input) {
  using S = Sum<T>;
  const Windows windows(problem);
  const Divisors<S> divisors(problem, windows);
  const Blocks<T> blocks(problem);
  for_planes<T>(problem, blocks, grad_input, [&](const Planes<T>& planes, S* shares) {
    for (int p = 0; p < problem.P; ++p) {
      const T* row = grad_output + problem.output.at(planes.n, planes.c, p, 0);
      if (!blocks.last) {
        spread_gradients(problem, windows, blocks.strides, p, row, divisors.row(p),
                         divisors.columns(), planes.data, shares);
        continue;
      }
      for (int64_t q = 0; q < problem.Q; ++q) {
        const S count = divisors.row(p) * divisors.columns()[q];
        for (int64_t i = 0; i < planes.channels; ++i) {
          shares[i] = static_cast<S>(row[q * problem.output.w + i]) / count;
        }
        for_pixel_taps(problem, blocks.strides, windows.rows[p], windows.columns[q],
                       [&](int, int64_t offset) {
                         S* __restrict to = planes.data + offset;
                         for (int64_t i = 0; i < planes.channels; ++i) to[i] += shares[i];
                       });
      }
    }
  });
}

template <class Problem>
PoolAlgorithm<Problem> direct() {
  PoolAlgorithm<Problem> direct{
      "direct", runs_everything<Problem>, nullptr, nullptr, nullptr, nullptr, nullptr};
  direct.max_forward = [](const Problem& problem, Dtype dtype, const void* input, void* output,
                          void* argmax, Argmax kind, Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      dispatch(kind, [&](auto code) {
        max_forward(problem, static_cast<const T*>(input), static_cast<T*>(output),
                    kind == Argmax::none ? nullptr : static_cast<decltype(code)*>(argmax));
      });
    });
  };
  direct.max_backward = [](const Problem& problem, Dtype dtype, const void* grad_output,
                           const void* argmax, Argmax kind, void* grad_input, Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      dispatch(kind, [&](auto code) {
        max_backward(problem, static_cast<const T*>(grad_output),
                     static_cast<const decltype(code)*>(argmax), static_cast<T*>(grad_input));
      });
    });
  };
  direct.max_gather = [](const Problem& problem, Dtype dtype, const void* input, const void* argmax,
                         Argmax kind, void* output, Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      dispatch(kind, [&](auto code) {
        max_gather(problem, static_cast<const T*>(input),
                   static_cast<const decltype(code)*>(argmax), static_cast<T*>(output));
      });
    });
  };
  direct.avg_forward = [](const Problem& problem, Dtype dtype, const void* input, void* output,
                          Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      avg_forward(problem, static_cast<const T*>(input), static_cast<T*>(output));
    });
  };
  direct.avg_backward = [](const Problem& problem, Dtype dtype, const void* grad_output,
                           void* grad_input, Stream) {
    dispatch(dtype, [&](auto type) {
      using T = decltype(type);
      avg_backward(problem, static_cast<const T*>(grad_output), static_cast<T*>(grad_input));
    });
  };
  return direct;
}

}  // namespace

Pool2dAlgorithm pool2d_direct() { return direct<Pool2dProblem>(); }
AdaptivePool2dAlgorithm adaptive_pool2d_direct() { return direct<AdaptivePool2dProblem>(); }

}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
