// A C interface to the small kernels of tests/emulator, and kernels with a race. A new kernel
// there is a function here and a row in tests/test_ptx.py.
#include "../emulator/kernels.h"
#include "attempt.h"

namespace cnnkernels::ptx {
namespace {

template <class Body>
Status run(const Body& body) {
  return attempt([&] {
    body();
    return Status::ran;
  });
}

// Each warp turns its lanes round through shared memory.
template <bool kWaits>
__global__ void reverse_lanes(const float* in, float* out) {
  SHARED_ARRAY(float, lanes, [32]);
  lanes[threadIdx.x] = in[threadIdx.x];
  if (kWaits) __syncwarp();
  out[threadIdx.x] = lanes[31 - threadIdx.x];
}

// Each block writes down as which one it comes.
__global__ void line_up_blocks(int* come, int* places) { places[blockIdx.x] = atomicAdd(come, 1); }

}  // namespace

extern "C" {

Status multiply(const float* a, const float* b, float* product, int64_t n) {
  return run([&] { cuda::multiply(a, b, product, n); });
}

Status number_threads(int64_t grid_x, int64_t grid_y, int64_t grid_z, int64_t block_x,
                      int64_t block_y, int64_t block_z, int64_t* out) {
  return run([&] {
    cuda::number_threads(dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), out);
  });
}

Status sum_blocks(const float* values, float* sums, int64_t blocks, int64_t threads) {
  return run([&] { cuda::sum_blocks(values, sums, blocks, threads); });
}

Status shuffle_int(int64_t kind, const int* in, int* out, int64_t operand, int64_t width) {
  return run([&] { cuda::shuffle_warp(kind, in, out, operand, width); });
}

Status shuffle_double(int64_t kind, const double* in, double* out, int64_t operand, int64_t width) {
  return run([&] { cuda::shuffle_warp(kind, in, out, operand, width); });
}

Status shuffle_down_eight(const float* in, float* out) {
  return run([&] { cuda::shuffle_down_eight(in, out); });
}

Status sum_diverged(const int* in, int* out) {
  return run([&] { cuda::sum_diverged(in, out); });
}

Status sync_warp_rounds(int* out, int64_t rounds) {
  return run([&] { cuda::sync_warp_rounds(out, rounds); });
}

Status exit_before_barrier(int64_t blocks) {
  return run([&] { cuda::exit_before_barrier(blocks); });
}

Status wait_apart() {
  return run([] { cuda::wait_apart(); });
}

Status shuffle_with_mask(int64_t mask, int64_t threads, int64_t callers, bool late) {
  return run([&] { cuda::shuffle_with_mask(mask, threads, callers, late); });
}

Status sync_warp_after_exit(int* out) {
  return run([&] { cuda::sync_warp_after_exit(out); });
}

Status touch_static(int64_t index, bool write, float* out) {
  return run([&] { cuda::touch_static(index, write, 1, out); });
}

Status touch_dynamic(int64_t index, bool write, float* out) {
  return run([&] { cuda::touch_dynamic(index, write, 1, out); });
}

Status use_4k(int64_t dynamic_bytes) {
  return run([&] { cuda::use_4k(dynamic_bytes); });
}

Status use_48k(int64_t dynamic_bytes) {
  return run([&] { cuda::use_48k(dynamic_bytes); });
}

Status compare_arrays(int* out) {
  return run([&] { cuda::compare_arrays(out); });
}

Status descend(int64_t depth, int64_t threads, int64_t* out) {
  return run([&] { cuda::descend(depth, threads, out); });
}

Status convert_arguments(int64_t a, float* c, double* out) {
  return run([&] { cuda::convert_arguments(a, 0.25f, c, out); });
}

Status divide(int64_t threads, float* three, float* out) {
  return run([&] { cuda::divide(threads, three, out); });
}

Status reverse_with_barrier(const float* in, float* out) {
  return run([&] { cuda::launch<reverse_lanes<true>>(1, 32, 0, nullptr, in, out); });
}

Status reverse_without_barrier(const float* in, float* out) {
  return run([&] { cuda::launch<reverse_lanes<false>>(1, 32, 0, nullptr, in, out); });
}

Status line_up(int64_t blocks, int* come, int* places) {
  return run([&] { cuda::launch<line_up_blocks>(dim3(blocks), 1, 0, nullptr, come, places); });
}

}  // extern "C"
}  // namespace cnnkernels::ptx
