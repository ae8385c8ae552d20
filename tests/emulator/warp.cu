// Kernels of one warp, which store in out what each lane gets from a collective. Those on fewer
// lanes leave others out, or have them at work elsewhere.
#include "../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

constexpr unsigned kFullWarp = 0xffffffffu;

// The lanes that take part are those of the mask.
__device__ bool takes_part(unsigned mask) { return mask >> threadIdx.x & 1; }

__global__ void shuffle_pairs(const __half* in, __half* out, __half2* pairs,
                              const __nv_bfloat16* bin, __nv_bfloat16* bout,
                              __nv_bfloat162* bpairs) {
  const int lane = threadIdx.x;
  out[lane] = __shfl_sync(kFullWarp, in[lane], 31 - lane);
  pairs[lane] = __shfl_up_sync(kFullWarp, __halves2half2(in[lane], in[31 - lane]), 2);
  bout[lane] = __shfl_down_sync(kFullWarp, bin[lane], 3);
  bpairs[lane] = __shfl_xor_sync(kFullWarp, __halves2bfloat162(bin[lane], bin[31 - lane]), 5);
}

__global__ void shuffle_short(const short* in, int* out) {
  out[threadIdx.x] = __shfl_xor_sync(kFullWarp, in[threadIdx.x], 1);
}

// out[4 * lane ..]: ballot, any, all, uniform.
__global__ void vote(unsigned mask, const int* predicates, unsigned* out) {
  if (!takes_part(mask)) return;
  const int lane = threadIdx.x, predicate = predicates[lane];
  out[4 * lane] = __ballot_sync(mask, predicate);
  out[4 * lane + 1] = __any_sync(mask, predicate);
  out[4 * lane + 2] = __all_sync(mask, predicate);
  out[4 * lane + 3] = __uni_sync(mask, predicate);
}

// out[3 * lane ..]: match_any, match_all, its predicate.
template <class T>
__global__ void match(unsigned mask, const T* values, unsigned* out) {
  if (!takes_part(mask)) return;
  const int lane = threadIdx.x;
  int all = -1;
  out[3 * lane] = __match_any_sync(mask, values[lane]);
  out[3 * lane + 1] = __match_all_sync(mask, values[lane], &all);
  out[3 * lane + 2] = all;
}

template __global__ void match(unsigned, const int*, unsigned*);
template __global__ void match(unsigned, const unsigned*, unsigned*);
template __global__ void match(unsigned, const long*, unsigned*);
template __global__ void match(unsigned, const unsigned long long*, unsigned*);
template __global__ void match(unsigned, const float*, unsigned*);
template __global__ void match(unsigned, const double*, unsigned*);

// out[9 * lane ..]: add, min, max of int; the same of unsigned; and, or, xor.
__global__ void reduce(unsigned mask, const int* values, unsigned* out) {
  if (!takes_part(mask)) return;
  const int value = values[threadIdx.x];
  const unsigned bits = value;
  unsigned* results = out + 9 * threadIdx.x;
  results[0] = __reduce_add_sync(mask, value);
  results[1] = __reduce_min_sync(mask, value);
  results[2] = __reduce_max_sync(mask, value);
  results[3] = __reduce_add_sync(mask, bits);
  results[4] = __reduce_min_sync(mask, bits);
  results[5] = __reduce_max_sync(mask, bits);
  results[6] = __reduce_and_sync(mask, bits);
  results[7] = __reduce_or_sync(mask, bits);
  results[8] = __reduce_xor_sync(mask, bits);
}

// Even and odd lanes do the same, each in their own branch.
__global__ void vote_diverged(const int* predicates, unsigned* out) {
  const int lane = threadIdx.x;
  if (lane % 2 == 0)
    out[lane] = __ballot_sync(0x55555555u, predicates[lane]);
  else
    out[lane] = __ballot_sync(0xaaaaaaaau, predicates[lane]);
}

// Warp-aggregated increments: the lanes that are active elect one that adds for all of them. Right
// whatever lanes __activemask returns. positions[lane]: the lane's own number, or -1.
__global__ void count_negative(const int* values, int* counter, int* positions) {
  const int lane = threadIdx.x;
  positions[lane] = -1;
  if (values[lane] < 0) {
    const unsigned active = __activemask();
    const int leader = __ffs(active) - 1;
    int first = 0;
    if (lane == leader) first = atomicAdd(counter, __popc(active));
    first = __shfl_sync(active, first, leader);
    positions[lane] = first + __popc(active & ((1u << lane) - 1));
  }
}

// Lanes from 30 on leave, those before call the collective numbered `which` with the mask.
__global__ void call_collective(int which, unsigned mask, unsigned* out) {
  const int lane = threadIdx.x;
  if (lane >= 30) return;
  int predicate = 0;
  if (which == 0) out[lane] = __ballot_sync(mask, 1);
  if (which == 1) out[lane] = __any_sync(mask, 1);
  if (which == 2) out[lane] = __all_sync(mask, 1);
  if (which == 3) out[lane] = __uni_sync(mask, 1);
  if (which == 4) out[lane] = __match_any_sync(mask, 1);
  if (which == 5) out[lane] = __match_all_sync(mask, 1, &predicate);
  if (which == 6) out[lane] = __reduce_add_sync(mask, 1);
  if (which == 7) out[lane] = __reduce_min_sync(mask, 1);
  if (which == 8) out[lane] = __reduce_max_sync(mask, 1u);
  if (which == 9) out[lane] = __reduce_and_sync(mask, 1);
  if (which == 10) out[lane] = __reduce_or_sync(mask, 1);
  if (which == 11) out[lane] = __reduce_xor_sync(mask, 1);
}

}  // namespace cnnkernels::CNN_TARGET
