// Sums of many terms, for kernels of every backend.
#pragma once

namespace cnnkernels {

// How many terms, and how many sums of so many terms, are added in a row.
constexpr int kSumChunk = 32;

// A sum whose error grows little with the number of its terms: chunks of them are added up first,
// then chunks of chunks (pairwise summation with wider and fewer levels).
template <class T>
class LongSum {
 public:
  constexpr void add(T term) {
    chunk_ += term;
    if (++count_ % kSumChunk != 0) return;
    chunks_ += chunk_, chunk_ = T(0);
    if (count_ % (kSumChunk * kSumChunk) == 0) total_ += chunks_, chunks_ = T(0);
  }
  constexpr T value() const { return total_ + (chunks_ + chunk_); }

 private:
  T chunk_ = T(0), chunks_ = T(0), total_ = T(0);
  unsigned count_ = 0;
};

}  // namespace cnnkernels
