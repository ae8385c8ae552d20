// The index arithmetic that kernels share, for ctypes: sizes beyond any memory can be tried.
#include "cuda/index.cuh"
#include "problem.h"

using namespace cnnkernels;

extern "C" {

int64_t offset(const int64_t* strides, int64_t n, int64_t c, int64_t h, int64_t w) {
  return Strides{strides[0], strides[1], strides[2], strides[3]}.at(n, c, h, w);
}

void position(int64_t index, const int* sizes, const int64_t* strides, int64_t* result) {
  const auto at = CNN_TARGET::position_of(index, sizes[0], sizes[1], sizes[2],
                                          {strides[0], strides[1], strides[2], strides[3]});
  result[0] = at.n, result[1] = at.c, result[2] = at.h, result[3] = at.w;
}

int64_t blocks(int64_t items) { return CNN_TARGET::grid_for(items).x; }

int64_t conv_output(int64_t padded, int64_t size, int64_t stride, int64_t dilation) {
  return conv_output_size(padded, size, stride, dilation);
}

int64_t pool_output(int64_t in, int64_t pad, int64_t size, int64_t stride, int64_t dilation,
                    bool ceil_mode) {
  return pool_output_size(in, pad, size, stride, dilation, ceil_mode);
}

void taps(int start, int count, int dilation, int size, int* result) {
  const Range range = taps_inside(start, count, dilation, size);
  result[0] = range.begin, result[1] = range.end;
}

void windows(int x, int pad, int extent, int stride, int count, int* result) {
  const Range range = windows_over(x, pad, extent, stride, count);
  result[0] = range.begin, result[1] = range.end;
}

void adaptive(int i, int size, int count, int* result) {
  const Range range = adaptive_window(i, size, count);
  result[0] = range.begin, result[1] = range.end;
}

int longest_adaptive(int size, int count) { return longest_adaptive_window(size, count); }

int reader(int x, int offset, int stride, int count) { return reader_of(x, offset, stride, count); }
}
