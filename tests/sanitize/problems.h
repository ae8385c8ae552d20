// The problems that kernels run on under sanitizers. Awkward on purpose: ones, primes, sizes that
// are no multiple of any tile, windows that see only padding. The small ones are for TSan, which
// takes milliseconds a block: at most 20 blocks a pass, of a thread a result or a block a weight.
#pragma once

#include <vector>

#include "../../csrc/problem.h"

namespace cnnkernels {

struct Conv2dCase {
  const char* name;
  int N, C, H, W, K, R, S;
  int stride_h, stride_w;
  int pad_top, pad_bottom, pad_left, pad_right;
  int dilation_h, dilation_w;
  int groups;

  // All but the strides.
  Conv2dProblem problem() const {
    Conv2dProblem problem{};
    problem.N = N, problem.C = C, problem.H = H, problem.W = W;
    problem.K = K, problem.R = R, problem.S = S;
    problem.P = conv_output_size(H + pad_top + pad_bottom, R, stride_h, dilation_h);
    problem.Q = conv_output_size(W + pad_left + pad_right, S, stride_w, dilation_w);
    problem.stride_h = stride_h, problem.stride_w = stride_w;
    problem.pad_top = pad_top, problem.pad_left = pad_left;
    problem.dilation_h = dilation_h, problem.dilation_w = dilation_w;
    problem.groups = groups, problem.tf32 = true;  // small integers stay exact
    return problem;
  }
};

struct Pool2dCase {
  const char* name;
  int N, C, H, W, R, S;
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool ceil_mode;

  // All but the strides.
  Pool2dProblem problem() const {
    Pool2dProblem problem{};
    problem.N = N, problem.C = C, problem.H = H, problem.W = W;
    problem.R = R, problem.S = S;
    problem.P = static_cast<int>(pool_output_size(H, pad_h, R, stride_h, dilation_h, ceil_mode));
    problem.Q = static_cast<int>(pool_output_size(W, pad_w, S, stride_w, dilation_w, ceil_mode));
    problem.stride_h = stride_h, problem.stride_w = stride_w;
    problem.pad_h = pad_h, problem.pad_w = pad_w;
    problem.dilation_h = dilation_h, problem.dilation_w = dilation_w;
    return problem;
  }
};

// Convolution, ReLU and pool in one; the pool's input is the convolution's output.
struct Conv2dPoolCase {
  const char* name;
  Conv2dCase conv;
  int R, S, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool ceil_mode, average;

  // All but the strides.
  Conv2dPoolProblem problem() const {
    const Conv2dProblem convolution = conv.problem();
    const Pool2dCase pool = {
        name,     convolution.N, convolution.K, convolution.P, convolution.Q, R,        S, stride_h,
        stride_w, pad_h,         pad_w,         dilation_h,    dilation_w,    ceil_mode};
    return {convolution, pool.problem(), average};
  }
};

struct AdaptivePool2dCase {
  const char* name;
  int N, C, H, W, P, Q;

  // All but the strides.
  AdaptivePool2dProblem problem() const {
    AdaptivePool2dProblem problem{};
    problem.N = N, problem.C = C, problem.H = H, problem.W = W;
    problem.R = longest_adaptive_window(H, P), problem.S = longest_adaptive_window(W, Q);
    problem.P = P, problem.Q = Q;
    return problem;
  }
};

// clang-format off
inline const std::vector<Conv2dCase> kConv2dCases = {
    //                        N    C   H   W    K   R   S  stride  padding       dilation groups
    {"one",                   1,   1,  1,  1,   1,  1,  1,  1, 1,  0, 0, 0, 0,   1, 1,   1},
    {"mnist",                 2,   1, 28, 28,   6,  5,  5,  1, 1,  2, 2, 2, 2,   1, 1,   1},
    {"three_by_three",        1,  19,  7,  9,  37,  3,  3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
    {"three_by_three_wide",   2,   3, 19, 37,   5,  3,  3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
    {"five_by_five",          1,   3,  9, 11,   5,  5,  5,  1, 1,  2, 2, 2, 2,   1, 1,   1},
    {"three_strided",         2,   2, 19, 67,   5,  3,  4,  2, 2,  1, 0, 0, 2,   1, 1,   1},
    {"five_strided",          1,   4, 20, 11,   3,  5,  2,  2, 2,  4, 4, 0, 0,   1, 1,   1},
    {"seven_by_seven",        1,   1, 13,  9,   9,  7,  7,  1, 1,  6, 6, 3, 3,   1, 1,   1},
    {"seven_strided",         1,   3, 22, 35,   9,  7,  7,  2, 2,  3, 3, 3, 3,   1, 1,   1},
    {"strided_downwards",     1,   4, 11, 37,   5,  2,  6,  2, 1,  1, 1, 3, 3,   1, 1,   1},
    {"primes",                3,   5, 13, 11,   3,  3,  5,  1, 1,  0, 0, 0, 0,   1, 1,   1},
    {"pointwise",             1,  19,  7,  9,  23,  1,  1,  1, 1,  0, 0, 0, 0,   1, 1,   1},
    {"pointwise_strided",     2,   8,  9,  9,   5,  1,  1,  2, 2,  0, 0, 0, 0,   1, 1,   1},
    {"strided",               2,   3, 23, 19,   6,  5,  3,  2, 3,  1, 1, 2, 2,   1, 1,   1},
    {"stride_beyond_filter",  2,   2, 17, 17,   3,  2,  2,  4, 4,  0, 0, 0, 0,   1, 1,   1},
    {"dilated",               2,   4, 17, 19,   6,  3,  3,  1, 1,  2, 2, 3, 3,   2, 3,   1},
    {"dilated_strided",       1,   4, 21, 18,   6,  3,  3,  3, 2,  2, 2, 2, 2,   2, 1,   1},
    {"groups",                2,  12,  9,  8,   8,  3,  3,  1, 1,  1, 1, 1, 1,   1, 1,   4},
    {"depthwise",             2,  11, 10,  9,  11,  3,  3,  1, 1,  1, 1, 1, 1,   1, 1,  11},
    {"depthwise_large",       1,   3, 19, 23,   3, 13,  7,  1, 1,  6, 6, 3, 3,   1, 1,   3},
    {"depthwise_strided",     2,   9, 15, 12,   9,  5,  4,  2, 2,  2, 2, 1, 1,   1, 1,   9},
    {"depthwise_multiplier",  2,   5,  8,  8,  15,  3,  3,  2, 2,  1, 1, 1, 1,   1, 1,   5},
    {"padding_beyond_filter", 1,   2,  5,  4,   3,  3,  2,  1, 1,  6, 6, 5, 5,   1, 1,   1},
    {"padding_on_one_side",   1,   3,  9,  8,   4,  4,  2,  1, 1,  1, 2, 0, 1,   1, 1,   1},
    {"filter_is_input",       2,   3,  7,  6,   4,  7,  6,  1, 1,  0, 0, 0, 0,   1, 1,   1},
    {"row",                   2,   3,  1, 33,   4,  1,  7,  1, 1,  0, 0, 3, 3,   1, 1,   1},
    {"column",                2,   3, 33,  1,   4,  7,  1,  1, 1,  3, 3, 0, 0,   1, 1,   1},
    {"many_filters",          1,   3,  6,  5, 131,  3,  3,  1, 1,  0, 0, 0, 0,   1, 1,   1},
    {"deep",                  1, 300,  5,  5,   9,  3,  3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
    {"no_images",             0,   3,  8,  8,   4,  3,  3,  1, 1,  0, 0, 0, 0,   1, 1,   1},
    {"no_channels",           2,   0,  8,  8,   4,  3,  3,  1, 1,  0, 0, 0, 0,   1, 1,   1},
    {"only_padding",          1,   2,  0,  4,   3,  3,  2,  1, 1,  2, 2, 1, 1,   1, 1,   1},
};

inline const std::vector<Conv2dCase> kSmallConv2dCases = {
    {"one",                   1,   1,  1,  1,   1,  1,  1,  1, 1,  0, 0, 0, 0,   1, 1,   1},
    {"three_by_three",        1,   2, 17,  9,   1,  3,  3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
    {"two_tiles",             2,   1, 19, 35,   2,  3,  3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
    {"four_stages",           1,  13,  3,  4,   2,  3,  3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
    {"strided",               1,   1, 19, 67,   2,  3,  2,  2, 2,  1, 1, 0, 1,   1, 1,   1},
    {"strided_sideways",      1,   1,  9, 66,   2,  2,  3,  1, 2,  0, 0, 1, 1,   1, 1,   1},
    {"five_by_three",         1,   1, 13, 14,   1,  5,  3,  2, 1,  2, 2, 1, 1,   1, 2,   1},
    {"pointwise",             3,   5,  7,  9,   4,  1,  1,  1, 1,  0, 0, 0, 0,   1, 1,   1},
    {"depthwise",             1,   2, 17, 11,   2,  3,  3,  1, 1,  1, 1, 1, 1,   1, 1,   2},
    {"depthwise_strided",     2,   3, 11,  8,   3,  5,  3,  2, 2,  2, 2, 1, 1,   1, 1,   3},
    {"groups",                2,   4,  7,  6,   4,  2,  1,  2, 1,  0, 0, 0, 0,   1, 1,   2},
    {"deep",                  1,  35,  3,  2,  33,  1,  1,  1, 1,  0, 0, 0, 0,   1, 1,   1},
};

inline const std::vector<Pool2dCase> kPool2dCases = {
    //                     N   C   H    W   R   S  stride padding dilation ceil
    {"one",                1,  1,  1,   1,  1,  1,  1, 1,  0, 0,  1, 1,  false},
    {"halved",             2,  5, 28,  28,  2,  2,  2, 2,  0, 0,  1, 1,  false},
    {"primes",             3,  5, 13,  11,  3,  5,  2, 3,  0, 0,  1, 1,  false},
    {"overlapping",        2, 19, 17,  19,  3,  3,  2, 2,  1, 1,  1, 1,  false},
    {"stride_one",         2,  3,  9,   8,  4,  4,  1, 1,  2, 2,  1, 1,  false},
    {"gaps",               2,  3, 17,  16,  2,  2,  5, 5,  0, 0,  1, 1,  false},
    {"ceil",               2, 37, 10,  11,  3,  3,  2, 2,  0, 0,  1, 1,  true},
    {"ceil_drops_window",  1,  2,  5,   5,  2,  2,  3, 3,  1, 1,  1, 1,  true},
    {"ceil_padded",        1,  2,  7,   8,  4,  4,  3, 3,  2, 2,  1, 1,  true},
    {"whole_plane",        2,  3,  7,   9,  7,  9,  7, 9,  0, 0,  1, 1,  false},
    {"row",                2,  3,  1,  33,  1,  4,  1, 4,  0, 0,  1, 1,  false},
    {"column",             2,  3, 33,   1,  4,  1,  4, 1,  0, 0,  1, 1,  false},
    {"wide_vector_tail",   1,  2,  6, 131,  3,  3,  1, 1,  1, 1,  1, 1,  false},
    {"window_254",         1,  2, 12, 130,  2,127,  3, 2,  0, 0,  1, 1,  false},
    {"window_255",         1,  2, 20,  23, 15, 17,  4, 4,  0, 0,  1, 1,  false},
    {"window_256",         1,  2, 21,  19, 16, 16,  5, 3,  8, 8,  1, 1,  false},
    {"dilated",            2,  3, 15,  17,  3,  3,  2, 2,  1, 1,  2, 3,  false},
    {"dilated_ceil",       2,  3, 16,  14,  2,  3,  2, 2,  0, 0,  3, 3,  true},
    {"only_padding",       2,  3,  2,   5,  2,  2,  1, 1,  1, 1,  3, 3,  false},
    {"only_padding_rows",  2, 19,  3,   3,  2,  3,  1, 1,  1, 1,  4, 2,  false},
    // In whole vectors of 16 bytes.
    {"halved_vectors",     2, 16,  7,  16,  2,  2,  2, 2,  0, 0,  1, 1,  false},
    {"vectors_overlap",    2, 16,  9,   7,  3,  3,  2, 2,  1, 1,  1, 1,  false},
    {"vectors_of_rows",    1,  3,  9,  24,  3,  2,  1, 2,  1, 0,  1, 1,  false},
    {"vectors_apart",      1,  8, 10,  13,  4,  4,  4, 4,  2, 2,  1, 1,  true},
    {"vectors_in_gaps",    1,  8, 11,   9,  2,  2,  3, 4,  0, 0,  1, 1,  false},
    {"vectors_dilated",    1,  8,  9,   8,  3,  3,  2, 2,  1, 1,  2, 3,  false},
};

inline const std::vector<Pool2dCase> kSmallPool2dCases = {
    {"one",                1,  1,  1,   1,  1,  1,  1, 1,  0, 0,  1, 1,  false},
    {"halved",             2,  3, 13,  14,  2,  2,  2, 2,  0, 0,  1, 1,  false},
    {"overlapping",        1,  9,  7,   9,  3,  3,  2, 2,  1, 1,  1, 1,  true},
    {"dilated",            1,  2, 15,  17,  3,  3,  2, 2,  1, 1,  2, 3,  false},
    {"window_256",         1,  1, 19,  18, 16, 16,  2, 2,  8, 8,  1, 1,  false},
    {"halved_vectors",     1,  8,  7,  16,  2,  2,  2, 2,  0, 0,  1, 1,  false},
    {"vectors_overlap",    1,  8,  7,   5,  3,  3,  2, 2,  1, 1,  1, 1,  false},
};

// The convolution's sums are at most 256, which bfloat16 holds: rounding could make two equal.
inline const std::vector<Conv2dPoolCase> kConv2dPoolCases = {
    // conv                     N  C   H   W   K  R  S  stride  padding      dilation groups
    //                 pool     R   S  stride padding dilation  ceil   average
    {"one",          {"conv",   1, 1,  1,  1,  1, 1, 1,  1, 1,  0, 0, 0, 0,   1, 1,   1},
                                1,  1,  1, 1,  0, 0,   1, 1,   false, false},
    {"mnist",        {"conv",   2, 1, 28, 26,  6, 5, 5,  1, 1,  2, 2, 2, 2,   1, 1,   1},
                                2,  2,  2, 2,  0, 0,   1, 1,   false, false},
    {"overlapping",  {"conv",   2, 3, 13, 11,  5, 3, 3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
                                3,  3,  2, 2,  1, 1,   1, 1,   false, false},
    {"ceil_groups",  {"conv",   2, 4, 10,  9,  6, 2, 3,  1, 2,  0, 0, 2, 2,   1, 1,   2},
                                2,  3,  2, 2,  0, 0,   1, 1,   true,  false},
    {"gaps",         {"conv",   1, 2, 17, 19,  3, 3, 2,  2, 1,  1, 0, 0, 1,   1, 2,   1},
                                2,  2,  3, 4,  0, 0,   1, 1,   false, false},
    {"dilated",      {"conv",   1, 2, 13, 12,  3, 2, 2,  1, 1,  0, 0, 0, 0,   1, 1,   1},
                                2,  3,  1, 2,  0, 1,   3, 2,   false, false},
    {"only_padding", {"conv",   2, 1,  3,  6,  3, 2, 2,  1, 1,  0, 0, 0, 0,   1, 1,   1},
                                2,  2,  1, 1,  1, 1,   3, 3,   false, false},
    {"wide_code",    {"conv",   1, 2, 20, 23,  2, 1, 1,  1, 1,  0, 0, 0, 0,   1, 1,   1},
                               15, 17,  3, 2,  0, 0,   1, 1,   false, false},
    {"no_images",    {"conv",   0, 3,  9,  8,  4, 3, 3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
                                2,  2,  2, 2,  0, 0,   1, 1,   false, false},
    {"average",      {"conv",   2, 1, 28, 26,  6, 5, 5,  1, 1,  2, 2, 2, 2,   1, 1,   1},
                                2,  2,  2, 2,  0, 0,   1, 1,   false, true},
    {"averages",     {"conv",   1, 3, 12, 11,  5, 3, 3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
                                2,  4,  1, 3,  1, 1,   1, 1,   true,  true},
    {"average_wide", {"conv",   2, 2, 11, 13,  4, 3, 3,  1, 1,  0, 0, 0, 0,   1, 1,   2},
                                3,  3,  2, 2,  1, 1,   1, 1,   false, true},
};

inline const std::vector<Conv2dPoolCase> kSmallConv2dPoolCases = {
    {"halved",       {"conv",   1, 1, 12, 13,  2, 3, 3,  1, 1,  1, 1, 1, 1,   1, 1,   1},
                                2,  2,  2, 2,  0, 0,   1, 1,   false, false},
    {"wide_code",    {"conv",   1, 2, 20, 19,  2, 1, 1,  1, 1,  0, 0, 0, 0,   1, 1,   1},
                               15, 17,  3, 2,  0, 0,   1, 1,   false, false},
    {"averages",     {"conv",   1, 2, 11,  9,  2, 2, 2,  1, 1,  1, 1, 0, 0,   1, 1,   2},
                                2,  2,  1, 2,  1, 1,   1, 1,   true,  true},
    {"average_wide", {"conv",   1, 1, 11, 13,  2, 3, 3,  1, 1,  0, 0, 0, 0,   1, 1,   1},
                                3,  3,  2, 2,  1, 1,   1, 1,   false, true},
};

inline const std::vector<AdaptivePool2dCase> kAdaptivePool2dCases = {
    //                     N   C   H    W    P   Q
    {"one",                1,  1,  1,   1,   1,  1},
    {"same_size",          2,  3,  7,   7,   7,  7},
    {"global",             3, 18,  7,   7,   1,  1},
    {"global_row",         2,  3,  1,  77,   1,  1},
    {"global_column",      2,  3, 77,   1,   1,  1},
    {"even",               2,  3, 12,   8,   4,  2},
    {"primes",             2,  5, 13,  11,   5,  7},
    {"overlap_of_two",     2,  3,  5,   7,   3,  5},
    {"larger",             2,  3,  3,   4,   7,  9},
    {"larger_and_smaller", 2,  3,  3,  29,   8,  4},
    {"many_channels",      1, 70,  9,  10,   4,  3},
    {"window_33",          1, 35,  3,  22,   1,  2},
    {"window_1024",        1,  2, 64,  32,   2,  1},
    {"vectors_halved",     2, 16,  8,  16,   4,  8},
    {"vectors",            1, 16,  7,  10,   3,  4},
};

inline const std::vector<AdaptivePool2dCase> kSmallAdaptivePool2dCases = {
    {"global",             1,  3,  7,   7,   1,  1},
    {"window_1024",        1,  1, 32,  32,   1,  1},
    {"primes",             1,  3, 13,  11,   5,  7},
    {"vectors_halved",     1,  8,  8,  16,   4,  8},
    {"vectors",            1,  8,  7,  10,   3,  4},
};
// clang-format on

}  // namespace cnnkernels
