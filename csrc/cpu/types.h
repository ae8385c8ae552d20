// What the CPU kernels share: element types, vectors, workspaces. Everything that is inline or a
// template stands in an unnamed namespace of its instruction set, so that the linker never
// merges code compiled for different machines.
#pragma once

#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>

#include "../float16.h"
#include "../problem.h"

namespace cnnkernels::cpu::CNNKERNELS_ISA {
namespace {

// float16 with the machine's conversions, where it has them: g++ takes them for _Float16 only.
#if defined(__F16C__)
struct Half {
  uint16_t bits;

  Half() = default;
  explicit Half(float value) : bits(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)) {}
  explicit operator float() const { return _cvtsh_ss(bits); }
};
#else
using Half = Float16;
#endif

// What sums of T are held in.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls function(T{}) with the element type T that dtype names.
template <class Function>
void dispatch(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::float32:
      return function(float{});
    case Dtype::float64:
      return function(double{});
    case Dtype::float16:
      return function(Half{});
    case Dtype::bfloat16:
      return function(BFloat16{});
  }
}

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
Vector<T> load(const T* from) {
  Vector<T> vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class T>
void store(T* to, const Vector<T>& vector) {
  std::memcpy(to, &vector, sizeof vector);
}

// The first `count` elements, then zeros; no more than these are read.
template <class T>
Vector<T> load_part(const T* from, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
  } else if constexpr (std::is_same_v<T, double>) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(
        from, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes));
  } else if constexpr (std::is_same_v<T, double>) {
    const __m256i lanes = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_maskload_pd(from, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lanes));
  }
#endif
  T values[kLanes<T>] = {};
  for (int i = 0; i < count; ++i) values[i] = from[i];
  return load(values);
}

// Uninitialised memory, aligned to a cache line. A little of it needs no allocation, which is what
// a call on a tiny tensor would spend its time on.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t count)
      : data_(static_cast<T*>(allocate(static_cast<size_t>(count) * sizeof(T)))) {}
  ~Workspace() {
    if (static_cast<void*>(data_) != own_) std::free(data_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr size_t kLine = 64, kOwnBytes = 4 * kLine;

  void* allocate(size_t bytes) {
    if (bytes <= kOwnBytes) return own_;
    void* data = std::aligned_alloc(kLine, (bytes + kLine - 1) / kLine * kLine);
    if (data == nullptr) throw std::bad_alloc();
    return data;
  }

  alignas(kLine) unsigned char own_[kOwnBytes];
  T* data_;
};

template <class T>
constexpr T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T greatest(T a, T b) {
  return a < b ? b : a;
}
template <class T>
constexpr T clamp(T value, T low, T high) {
  return least(greatest(value, low), high);
}

// Rounded towards minus infinity and plus infinity; the divisor is positive.
constexpr int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// [0, total) cut into parts of at most `largest` items, whose sizes differ by one at most.
struct Partition {
  int64_t total, count;

  Partition(int64_t items, int64_t largest) : total(items), count(ceil_div(items, largest)) {}

  int64_t begin(int64_t part) const { return part * total / count; }
  int64_t size(int64_t part) const { return begin(part + 1) - begin(part); }
  int64_t largest() const { return count == 0 ? 0 : ceil_div(total, count); }
};

}  // namespace
}  // namespace cnnkernels::cpu::CNNKERNELS_ISA
