// What is to be computed: sizes, strides and derived sizes of one convolution or pooling.
// Plain structs without torch: every kernel of every backend takes one of these and raw
// pointers. This is the one place where the shape formulas stand. Functions are constexpr, so
// that nvcc (--expt-relaxed-constexpr) takes them as device code too.
#pragma once

#include <cstdint>

namespace cnnkernels {

enum class Dtype { float32, float64, float16, bfloat16 };

// Distances, in elements, between neighbours along each dimension of a 4-D tensor. Any values
// are served, zero (an expanded tensor) included: NCHW, channels_last and slices of either need
// no copy. For a weight the four are {k, c, r, s}.
struct Strides {
  int64_t n, c, h, w;

  constexpr int64_t at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return in * n + ic * c + ih * h + iw * w;
  }
};

// The input extent that a filter of `size` taps covers.
constexpr int64_t dilated_extent(int64_t size, int64_t dilation) {
  return dilation * (size - 1) + 1;
}

// floor((padded - dilation * (size - 1) - 1) / stride) + 1 for an input with its padding on
// either side, torch.nn.Conv2d.
constexpr int conv_output_size(int64_t padded, int64_t size, int64_t stride, int64_t dilation) {
  return static_cast<int>((padded - dilated_extent(size, dilation)) / stride + 1);
}

// As above with `pad` at either side, for any sizes; ceil_mode rounds up, but drops a last window
// that would start beyond the input and its leading padding (torch.nn.MaxPool2d).
constexpr int64_t pool_output_size(int64_t in, int64_t pad, int64_t size, int64_t stride,
                                   int64_t dilation, bool ceil_mode) {
  const int64_t room = in + 2 * pad - dilated_extent(size, dilation) + (ceil_mode ? stride - 1 : 0);
  const int64_t floor = room >= 0 ? room / stride : -((-room + stride - 1) / stride);
  return ceil_mode && floor * stride >= in + pad ? floor : floor + 1;
}

struct Range {
  int begin, end;  // begin >= end: empty
};

// The taps t of a filter or window for which start + t * dilation lies in [0, size).
constexpr Range taps_inside(int start, int taps, int dilation, int size) {
  const int begin = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
  const int end = start >= size ? 0 : (size - 1 - start) / dilation + 1;
  return {begin, end < taps ? end : taps};
}

// The windows of `extent` positions, begun every `stride` from -pad on, that hold position x.
constexpr Range windows_over(int x, int pad, int extent, int stride, int count) {
  const int begin = x + pad < extent ? 0 : (x + pad - extent) / stride + 1;
  const int end = (x + pad) / stride + 1;
  return {begin, end < count ? end : count};
}

// The positions under window i of `count` that cover [0, size) in adaptive pooling: from
// floor(i * size / count) to ceil((i + 1) * size / count) (torch.nn.AdaptiveAvgPool2d). The windows
// over position i are given by the same formula with `size` and `count` exchanged.
constexpr Range adaptive_window(int i, int size, int count) {
  const int64_t begin = static_cast<int64_t>(i) * size / count;
  const int64_t end = (static_cast<int64_t>(i + 1) * size + count - 1) / count;
  return {static_cast<int>(begin), static_cast<int>(end)};
}

// The longest of those windows. With size = k * count + m they begin at fractions of
// 1 / (count / gcd(m, count)), and reach over one more position than k, or two.
constexpr int longest_adaptive_window(int size, int count) {
  const int rest = size % count;
  return size / count + (rest == 0 ? 0 : count % rest == 0 ? 1 : 2);
}

// The output position whose tap at `offset` (tap * dilation - padding) reads input position x:
// the p with p * stride + offset == x, or -1 where there is none in [0, count).
constexpr int reader_of(int x, int offset, int stride, int count) {
  const int distance = x - offset;
  if (distance < 0 || distance % stride != 0) return -1;
  const int p = distance / stride;
  return p < count ? p : -1;
}

// output[n, k, p, q] = bias[k] + sum over c, r, s of
//     weight[k, c, r, s] * input[n, g * C / groups + c, p * stride_h - pad_top + r * dilation_h,
//                                q * stride_w - pad_left + s * dilation_w]
// where g is the group of k, and pixels outside the input count as zero. The bottom and right
// padding enter only through P and Q.
struct Conv2dProblem {
  int N, C, H, W;  // input
  int K, R, S;     // filters; each reads C / groups channels
  int P, Q;        // output
  int stride_h, stride_w;
  int pad_top, pad_left;
  int dilation_h, dilation_w;
  int groups;
  Strides input;   // of input, or of grad_input in dgrad
  Strides weight;  // {k, c, r, s} of weight, or of grad_weight in wgrad
  Strides output;  // {n, k, p, q} of output, or of grad_output in dgrad, wgrad and bgrad
  Strides relu;    // {n, k, p, q} of the saved output of conv+ReLU in a backward pass
  bool tf32;       // products of float32 may be of operands rounded to tf32
  bool fast_math;  // transforms that round more than the sums do may take the sums' place

  constexpr int group_channels() const { return C / groups; }
  constexpr int group_filters() const { return K / groups; }
};

// How the position of a maximum is stored. The compact codes count within the window,
// r * S + s; int64 is torch's index h * W + w within the input plane.
enum class Argmax { none, uint8, int32, int64 };

// Largest window whose codes fit one byte, with one value to spare ("ReLU closed").
constexpr int64_t kMaxByteWindow = 254;

// output[n, c, p, q] = max or average over r, s of
//     input[n, c, p * stride_h - pad_h + r * dilation_h, q * stride_w - pad_w + s * dilation_w]
struct Pool2dProblem {
  int N, C, H, W;  // input
  int R, S;        // window
  int P, Q;        // output
  int stride_h, stride_w;
  int pad_h, pad_w;            // at either side
  int dilation_h, dilation_w;  // 1 for average pooling
  bool count_include_pad;      // average: padded pixels count in the divisor
  int64_t divisor_override;    // average: 0 means none
  Strides input;               // of input or grad_input
  Strides output;              // of output or grad_output
  Strides argmax;              // of the positions of the maxima

  // The input row that tap row r of window row p reads, and the tap rows inside the input.
  constexpr int input_h(int p, int r) const { return p * stride_h - pad_h + r * dilation_h; }
  constexpr int input_w(int q, int s) const { return q * stride_w - pad_w + s * dilation_w; }
  constexpr Range rows(int p) const { return taps_inside(input_h(p, 0), R, dilation_h, H); }
  constexpr Range columns(int q) const { return taps_inside(input_w(q, 0), S, dilation_w, W); }

  // The window rows p whose extent holds input row h, and the tap row at which p reads it: -1
  // where dilation steps over it.
  constexpr Range windows_over_row(int h) const {
    return windows_over(h, pad_h, static_cast<int>(dilated_extent(R, dilation_h)), stride_h, P);
  }
  constexpr Range windows_over_column(int w) const {
    return windows_over(w, pad_w, static_cast<int>(dilated_extent(S, dilation_w)), stride_w, Q);
  }
  constexpr int tap_row(int h, int p) const { return tap(h - input_h(p, 0), dilation_h); }
  constexpr int tap_column(int w, int q) const { return tap(w - input_w(q, 0), dilation_w); }

  // What average pooling divides the sum of window (p, q) by.
  constexpr int64_t divisor(int p, int q) const {
    if (divisor_override != 0) return divisor_override;
    return clipped(input_h(p, 0), R, H, pad_h) * clipped(input_w(q, 0), S, W, pad_w);
  }

 private:
  static constexpr int tap(int distance, int dilation) {
    if (dilation == 1) return distance;  // without a division
    return distance % dilation == 0 ? distance / dilation : -1;
  }

  // Length of [start, start + size) within the input, or within input and padding.
  constexpr int64_t clipped(int start, int size, int in, int pad) const {
    const int limit = count_include_pad ? in + pad : in;
    const int begin = count_include_pad || start > 0 ? start : 0;
    const int end = start + size < limit ? start + size : limit;
    return end > begin ? end - begin : 0;
  }
};

// output = pool(relu(conv2d(input))): the convolution's own output, of N x K x P x Q, is the pool's
// input and is stored nowhere; what stands for its strides in `conv` and `pool` is not read.
//
// Training keeps a code for each pooled output. Of a maximum it is the tap of the window that it is
// at, r * S + s, or kReluClosed where it is not positive, so that no gradient passes; of an average
// bit r * S + s is set where that tap's ReLU is open.
struct Conv2dPoolProblem {
  Conv2dProblem conv;
  Pool2dProblem pool;
  bool average;

  // Codes take one byte or four.
  static constexpr int kMostAverageTaps = 32;
  constexpr bool wide_code() const {
    return static_cast<int64_t>(pool.R) * pool.S > (average ? 8 : kMaxByteWindow);
  }
};

constexpr unsigned kReluClosed = ~0u;  // in a byte, 255

// Pooling to a given size, P x Q: output[n, c, p, q] = max or average of the input over the rows of
// adaptive_window(p, H, P) and the columns of adaptive_window(q, W, Q). Windows vary in size; their
// taps count from the first pixel. The functions are those of Pool2dProblem.
struct AdaptivePool2dProblem {
  int N, C, H, W;  // input
  int R, S;        // the largest window
  int P, Q;        // output
  Strides input;   // of input or grad_input
  Strides output;  // of output or grad_output
  Strides argmax;  // of the positions of the maxima

  static constexpr int dilation_h = 1, dilation_w = 1;

  constexpr int input_h(int p, int r) const { return adaptive_window(p, H, P).begin + r; }
  constexpr int input_w(int q, int s) const { return adaptive_window(q, W, Q).begin + s; }
  constexpr Range rows(int p) const { return taps(adaptive_window(p, H, P)); }
  constexpr Range columns(int q) const { return taps(adaptive_window(q, W, Q)); }

  constexpr Range windows_over_row(int h) const { return adaptive_window(h, P, H); }
  constexpr Range windows_over_column(int w) const { return adaptive_window(w, Q, W); }
  constexpr int tap_row(int h, int p) const { return h - input_h(p, 0); }
  constexpr int tap_column(int w, int q) const { return w - input_w(q, 0); }

  constexpr int64_t divisor(int p, int q) const {
    return static_cast<int64_t>(rows(p).end) * columns(q).end;
  }

 private:
  static constexpr Range taps(const Range& window) { return {0, window.end - window.begin}; }
};

}  // namespace cnnkernels
