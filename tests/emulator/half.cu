// Kernels that apply the functions of the 16-bit floating-point types to arrays of their bits, a
// thread per element.
#include "../../csrc/cuda/device.h"

namespace cnnkernels::CNN_TARGET {

template <class T>
__host__ __device__ T of_bits(unsigned short bits) {
  if constexpr (std::is_same_v<T, __half>)
    return __ushort_as_half(bits);
  else
    return __ushort_as_bfloat16(bits);
}

__device__ inline unsigned short bits_of(__half value) { return __half_as_ushort(value); }
__device__ inline unsigned short bits_of(__nv_bfloat16 value) {
  return __bfloat16_as_ushort(value);
}

__device__ inline int element() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- Conversions ----

// out[6 * i ..]: implicit, rn, rn by its other name, rz, ru, rd.
__global__ void half_from_float(const float* in, unsigned short* out, int count) {
  if (element() >= count) return;
  const float x = in[element()];
  unsigned short* results = out + 6 * element();
  results[0] = bits_of(static_cast<__half>(x));
  results[1] = bits_of(__float2half_rn(x));
  results[2] = bits_of(__float2half(x));
  results[3] = bits_of(__float2half_rz(x));
  results[4] = bits_of(__float2half_ru(x));
  results[5] = bits_of(__float2half_rd(x));
}

__global__ void bfloat16_from_float(const float* in, unsigned short* out, int count) {
  if (element() >= count) return;
  const float x = in[element()];
  unsigned short* results = out + 6 * element();
  results[0] = bits_of(static_cast<__nv_bfloat16>(x));
  results[1] = bits_of(__float2bfloat16_rn(x));
  results[2] = bits_of(__float2bfloat16(x));
  results[3] = bits_of(__float2bfloat16_rz(x));
  results[4] = bits_of(__float2bfloat16_ru(x));
  results[5] = bits_of(__float2bfloat16_rd(x));
}

// out[2 * i ..]: half, bfloat16.
__global__ void from_double(const double* in, unsigned short* out, int count) {
  if (element() >= count) return;
  const double x = in[element()];
  out[2 * element()] = bits_of(element() % 2 == 0 ? __double2half(x) : __half(x));
  out[2 * element() + 1] = bits_of(element() % 2 == 0 ? __double2bfloat16(x) : __nv_bfloat16(x));
}

// out[8 * i ..]: of int, unsigned, long long, unsigned long long, each to half and to bfloat16.
__global__ void from_integers(const long long* in, unsigned short* out, int count) {
  if (element() >= count) return;
  const long long x = in[element()];
  unsigned short* results = out + 8 * element();
  results[0] = bits_of(__int2half_rn(static_cast<int>(x)));
  results[1] = bits_of(__int2bfloat16_rn(static_cast<int>(x)));
  results[2] = bits_of(__uint2half_rn(static_cast<unsigned>(x)));
  results[3] = bits_of(__uint2bfloat16_rn(static_cast<unsigned>(x)));
  results[4] = bits_of(__ll2half_rn(x));
  results[5] = bits_of(__nv_bfloat16(x));
  results[6] = bits_of(__half(static_cast<unsigned long long>(x)));
  results[7] = bits_of(__ull2bfloat16_rn(static_cast<unsigned long long>(x)));
}

template <class T>
__global__ void to_float(const unsigned short* in, float* out, double* wide, int count) {
  if (element() >= count) return;
  const T x = of_bits<T>(in[element()]);
  out[element()] = static_cast<float>(x);
  wide[element()] = static_cast<double>(x);
}

template __global__ void to_float<__half>(const unsigned short*, float*, double*, int);
template __global__ void to_float<__nv_bfloat16>(const unsigned short*, float*, double*, int);

// out[7 * i ..]: rn, rz, ru, rd, rz of unsigned, as int, as bool.
__global__ void half_to_integers(const unsigned short* in, int* out, int count) {
  if (element() >= count) return;
  const __half x = of_bits<__half>(in[element()]);
  int* results = out + 7 * element();
  results[0] = __half2int_rn(x);
  results[1] = __half2int_rz(x);
  results[2] = __half2int_ru(x);
  results[3] = __half2int_rd(x);
  results[4] = __half2uint_rz(x);
  results[5] = static_cast<int>(x);
  results[6] = x ? 1 : 0;
}

__global__ void bfloat16_to_integers(const unsigned short* in, int* out, int count) {
  if (element() >= count) return;
  const __nv_bfloat16 x = of_bits<__nv_bfloat16>(in[element()]);
  int* results = out + 7 * element();
  results[0] = __bfloat162int_rn(x);
  results[1] = __bfloat162int_rz(x);
  results[2] = __bfloat162int_ru(x);
  results[3] = __bfloat162int_rd(x);
  results[4] = __bfloat162uint_rz(x);
  results[5] = static_cast<int>(x);
  results[6] = x ? 1 : 0;
}

__global__ void half_to_bfloat16(const unsigned short* in, unsigned short* out, int count) {
  if (element() >= count) return;
  out[element()] = bits_of(static_cast<__nv_bfloat16>(of_bits<__half>(in[element()])));
}

// ---- Arithmetic ----

// out[12 * i ..]: + - * / by function, then by compound operator, max, min, both with _nan.
template <class T>
__global__ void combine(const unsigned short* a, const unsigned short* b, unsigned short* out,
                        int count) {
  if (element() >= count) return;
  const T x = of_bits<T>(a[element()]), y = of_bits<T>(b[element()]);
  T sum = x, difference = x, product = x, quotient = x;
  sum += y, difference -= y, product *= y, quotient /= y;
  unsigned short* results = out + 12 * element();
  results[0] = bits_of(__hadd(x, y));
  results[1] = bits_of(__hsub(x, y));
  results[2] = bits_of(__hmul(x, y));
  results[3] = bits_of(__hdiv(x, y));
  results[4] = bits_of(sum);
  results[5] = bits_of(difference);
  results[6] = bits_of(product);
  results[7] = bits_of(quotient);
  results[8] = bits_of(__hmax(x, y));
  results[9] = bits_of(__hmin(x, y));
  results[10] = bits_of(__hmax_nan(x, y));
  results[11] = bits_of(__hmin_nan(x, y));
}

template __global__ void combine<__half>(const unsigned short*, const unsigned short*,
                                         unsigned short*, int);
template __global__ void combine<__nv_bfloat16>(const unsigned short*, const unsigned short*,
                                                unsigned short*, int);

// out[3 * i ..]: fma, -a, |a|.
template <class T>
__global__ void fuse(const unsigned short* a, const unsigned short* b, const unsigned short* c,
                     unsigned short* out, int count) {
  if (element() >= count) return;
  const T x = of_bits<T>(a[element()]);
  out[3 * element()] = bits_of(__hfma(x, of_bits<T>(b[element()]), of_bits<T>(c[element()])));
  out[3 * element() + 1] = bits_of(-x);
  out[3 * element() + 2] = bits_of(__habs(x));
}

template __global__ void fuse<__half>(const unsigned short*, const unsigned short*,
                                      const unsigned short*, unsigned short*, int);
template __global__ void fuse<__nv_bfloat16>(const unsigned short*, const unsigned short*,
                                             const unsigned short*, unsigned short*, int);

// Bits of out[i], from the lowest: == != < <= > >=, the functions for them, those with u, isnan of
// a, isinf of a.
template <class T>
__global__ void compare(const unsigned short* a, const unsigned short* b, unsigned* out,
                        int count) {
  if (element() >= count) return;
  const T x = of_bits<T>(a[element()]), y = of_bits<T>(b[element()]);
  const bool results[20] = {
      x == y,       x != y,       x<y, x <= y, x> y, x >= y,       __heq(x, y),  __hne(x, y),
      __hlt(x, y),  __hle(x, y),  __hgt(x, y),       __hge(x, y),  __hequ(x, y), __hneu(x, y),
      __hltu(x, y), __hleu(x, y), __hgtu(x, y),      __hgeu(x, y), __hisnan(x),  __hisinf(x) != 0};
  unsigned bits = 0;
  for (int i = 0; i < 20; ++i) bits |= static_cast<unsigned>(results[i]) << i;
  out[element()] = bits;
}

template __global__ void compare<__half>(const unsigned short*, const unsigned short*, unsigned*,
                                         int);
template __global__ void compare<__nv_bfloat16>(const unsigned short*, const unsigned short*,
                                                unsigned*, int);

// ---- Pairs ----

// wrong[i] = how many functions do to the pairs a[i] and b[i] another thing than their scalar
// twins do to the elements.
template <class Pair>
__global__ void combine_pairs(const Pair* a, const Pair* b, int* wrong, int count) {
  if (element() >= count) return;
  const Pair u = a[element()], v = b[element()];
  int mistakes = 0;
  const auto expect = [&](Pair pair, auto x, auto y) {
    mistakes += bits_of(pair.x) != bits_of(x) || bits_of(pair.y) != bits_of(y);
  };
  const auto truth = [&](Pair pair, bool x, bool y) {
    mistakes += static_cast<float>(pair.x) != x || static_cast<float>(pair.y) != y;
  };
  expect(__hadd2(u, v), __hadd(u.x, v.x), __hadd(u.y, v.y));
  expect(__hsub2(u, v), __hsub(u.x, v.x), __hsub(u.y, v.y));
  expect(__hmul2(u, v), __hmul(u.x, v.x), __hmul(u.y, v.y));
  expect(__h2div(u, v), __hdiv(u.x, v.x), __hdiv(u.y, v.y));
  expect(u + v, u.x + v.x, u.y + v.y);
  expect(u - v, u.x - v.x, u.y - v.y);
  expect(u * v, u.x * v.x, u.y * v.y);
  expect(u / v, u.x / v.x, u.y / v.y);
  expect(__hfma2(u, v, u), __hfma(u.x, v.x, u.x), __hfma(u.y, v.y, u.y));
  expect(-u, -u.x, -u.y);
  expect(__hneg2(v), -v.x, -v.y);
  expect(__habs2(u), __habs(u.x), __habs(u.y));
  expect(__hmax2(u, v), __hmax(u.x, v.x), __hmax(u.y, v.y));
  expect(__hmin2(u, v), __hmin(u.x, v.x), __hmin(u.y, v.y));
  expect(__hmax2_nan(u, v), __hmax_nan(u.x, v.x), __hmax_nan(u.y, v.y));
  expect(__hmin2_nan(u, v), __hmin_nan(u.x, v.x), __hmin_nan(u.y, v.y));
  expect(__lowhigh2highlow(u), u.y, u.x);
  truth(__heq2(u, v), u.x == v.x, u.y == v.y);
  truth(__hne2(u, v), __hne(u.x, v.x), __hne(u.y, v.y));
  truth(__hlt2(u, v), u.x < v.x, u.y < v.y);
  truth(__hle2(u, v), u.x <= v.x, u.y <= v.y);
  truth(__hgt2(u, v), u.x > v.x, u.y > v.y);
  truth(__hge2(u, v), u.x >= v.x, u.y >= v.y);
  truth(__hisnan2(u), __hisnan(u.x), __hisnan(u.y));
  mistakes += (u == v) != (u.x == v.x && u.y == v.y);
  mistakes += (u != v) != (u.x != v.x && u.y != v.y);
  mistakes += (u < v) != (u.x < v.x && u.y < v.y);
  mistakes += (u >= v) != (u.x >= v.x && u.y >= v.y);
  mistakes += !__hisnan(u.x) && __low2float(u) != static_cast<float>(u.x);
  mistakes += !__hisnan(u.y) && __high2float(u) != static_cast<float>(u.y);
  Pair w = u;
  w += v, w *= u, w -= v;
  expect(w, (u.x + v.x) * u.x - v.x, (u.y + v.y) * u.y - v.y);
  wrong[element()] = mistakes;
}

template __global__ void combine_pairs<__half2>(const __half2*, const __half2*, int*, int);
template __global__ void combine_pairs<__nv_bfloat162>(const __nv_bfloat162*, const __nv_bfloat162*,
                                                       int*, int);

// out[0 .. 24) = what the makers of pairs make of 1 and 2, and of {3, 4}.
__global__ void make_pairs(float2* out) {
  const __half one = 1, two = 2.0f;
  const __half2 low_high = __floats2half2_rn(1, 2), other = __float22half2_rn(make_float2(3, 4));
  const __half2 halves[12] = {low_high,
                              other,
                              make_half2(one, two),
                              __halves2half2(two, one),
                              __half2half2(two),
                              __float2half2_rn(2),
                              __low2half2(other),
                              __high2half2(other),
                              __lows2half2(low_high, other),
                              __highs2half2(low_high, other),
                              {__low2half(other), __high2half(other)},
                              __half2(one, two)};
  for (int i = 0; i < 12; ++i) out[i] = __half22float2(halves[i]);

  const __nv_bfloat16 bone = 1, btwo = 2.0f;
  const __nv_bfloat162 blow_high = __floats2bfloat162_rn(1, 2),
                       bother = __float22bfloat162_rn(make_float2(3, 4));
  const __nv_bfloat162 bhalves[12] = {blow_high,
                                      bother,
                                      make_bfloat162(bone, btwo),
                                      __halves2bfloat162(btwo, bone),
                                      __bfloat162bfloat162(btwo),
                                      __float2bfloat162_rn(2),
                                      __low2bfloat162(bother),
                                      __high2bfloat162(bother),
                                      __lows2bfloat162(blow_high, bother),
                                      __highs2bfloat162(blow_high, bother),
                                      {__low2bfloat16(bother), __high2bfloat16(bother)},
                                      __nv_bfloat162(bone, btwo)};
  for (int i = 0; i < 12; ++i) out[12 + i] = __bfloat1622float2(bhalves[i]);
}

}  // namespace cnnkernels::CNN_TARGET
