// Launchers of the small kernels that the emulator is tested with. kernels.cu is compiled by the
// host compiler for the test and by nvcc to prove that it is CUDA.
#pragma once

#include <cstdint>

#include "../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

// Matrices are n x n, row-major, n a multiple of 16.
void multiply(const float* a, const float* b, float* product, int n);

// out[i] = the linear index of thread i, made of all of threadIdx, blockIdx, blockDim, gridDim.
void number_threads(dim3 grid, dim3 block, int64_t* out);

// sums[b] = the sum of values[b * threads .. ], added in a fixed order; threads a multiple of 32.
void sum_blocks(const float* values, float* sums, int blocks, int threads);

// One warp; kind is 0 to 3 for shfl, up, down, xor. out[lane] = the shuffled in[lane].
template <class T>
void shuffle_warp(int kind, const T* in, T* out, int operand, int width);

// One warp: lanes 0 to 7 shuffle among themselves, each from the lane above it.
void shuffle_down_eight(const float* in, float* out);

// One warp: even lanes sum in[] over even lanes, odd ones over odd, while they are apart.
void sum_diverged(const int* in, int* out);

// One warp: value[lane] = lane, then `rounds` times value[lane] += value[lane + 1 mod 32].
void sync_warp_rounds(int* out, int rounds);

// 64 threads: those from 32 on leave, and the others wait at the barrier.
void exit_before_barrier(int blocks);

// 64 threads: warp 0 waits in __syncthreads, warp 1 in __syncwarp for a lane in __syncthreads.
void wait_apart();

// One block of `threads`: lanes below `callers` shuffle with `mask`; the others leave first, or
// (late) after having met the callers once.
void shuffle_with_mask(unsigned mask, int threads, int callers, bool late);

// 40 threads: the lanes from 8 on leave; the others do __syncwarp() and write 1 to out.
void sync_warp_after_exit(int* out);

// 3 blocks of one thread: out[block] = element `index` of a shared array of 16 floats, static or
// dynamic; then the last block may write to it.
void touch_static(int index, bool write, float value, float* out);
void touch_dynamic(int index, bool write, float value, float* out);

// 4 or 48 KiB of static shared memory and some dynamic ones. (More than 48 is no CUDA at all.)
void use_4k(size_t dynamic_bytes);
void use_48k(size_t dynamic_bytes);

// out[0], out[1]: whether two calls of one instantiation got one array, and two instantiations
// got different ones.
void compare_arrays(int* out);

// Every thread descends `depth` frames of more than 1 KiB, waits for the block at the bottom, and
// returns a checksum of what its frames kept.
void descend(int depth, int threads, int64_t* out);

// out = {a, b, *c}; called with other types that convert to these.
void convert_arguments(int a, float b, float* c, double* out);

// out[2 * thread], out[2 * thread + 1] = 1 / *three before and after a barrier.
void divide(int threads, float* three, float* out);

}  // namespace cnnkernels::CNN_TARGET
