// Kernels whose requests to memory can be counted by hand. One warp each.
#pragma once

#include "../../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

// out[lane] = element stride * lane of a shared array, after all 32 * stride elements were written.
template <class T>
void read_shared_strided(int stride, T* out);

// out[lane] = in[stride * lane].
void read_global_strided(int stride, const float* in, float* out);

// out[lane] = the sum over i < 2 of in[0 .. lane % 4], in an inner loop that lanes leave apart.
void read_in_loops(const float* in, float* out);

// Lanes copy 4 elements each to shared memory by one cp.async, the last of them but one element and
// zeros; out[lane] = in[4 * lane].
void copy_all_but_three(const float* in, float* out);

// 2 * lane threads meet at 3 barriers.
void meet_thrice();

}  // namespace cnnkernels::CNN_TARGET
