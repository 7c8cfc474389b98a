// Vectors by the extensions that GCC and Clang share, 2^x, and the two products that attention is made of.
//
// Rows of queries are the lanes of vectors; keys and numbers of a head are broadcast. So maxima and sums over keys need
// no reduction over lanes, and keys and head dim no padding.
#pragma once

#include <cstdint>

constexpr double kLog2E = 1.4426950408889634;

#ifdef BSA_COUNT_FLOP
#include <atomic>
inline std::atomic<int64_t> counted_flop{0};
#endif

#if defined(__AVX512F__)
#define BSA_VECTOR_BYTES 64
#elif defined(__AVX__)
#define BSA_VECTOR_BYTES 32
#else
#define BSA_VECTOR_BYTES 16
#endif

// Rows of a register tile, two vectors wide: accumulators, two operands and a broadcast fit into 32 or 16 registers.
#if defined(__AVX512F__) || defined(__aarch64__)
#define BSA_TILE_ROWS 8
#else
#define BSA_TILE_ROWS 6
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
  // Aligned as a number only, and free to alias: loads and stores take any address.
  typedef float Vector __attribute__((vector_size(BSA_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Ints __attribute__((vector_size(BSA_VECTOR_BYTES), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(BSA_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Int;
  static constexpr int kLanes = BSA_VECTOR_BYTES / 4;
  static constexpr int kMantissaBits = 23;
  static constexpr uint32_t kBias = 127;
  static constexpr float kLeast = -126.0f;       // exponent of the smallest normal number
  static constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  static constexpr float kLowest = -3.0e38f;
  static constexpr int kTerms = 7;
  // Chebyshev interpolation of 2^f on [-0.5, 0.5]: relative error 3e-9, 8e-8 with the rounding of each step.
  static constexpr float kExp2[kTerms] = {1.0f,
                                          0.6931472067028326f,
                                          0.24022650922288757f,
                                          0.05550327226670302f,
                                          0.009618056678524637f,
                                          0.001340042817761594f,
                                          0.00015461444698569338f};
};

template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(BSA_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Ints __attribute__((vector_size(BSA_VECTOR_BYTES), aligned(8), may_alias));
  typedef uint64_t Bits __attribute__((vector_size(BSA_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Int;
  static constexpr int kLanes = BSA_VECTOR_BYTES / 8;
  static constexpr int kMantissaBits = 52;
  static constexpr uint64_t kBias = 1023;
  static constexpr double kLeast = -1022.0;
  static constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -1.0e308;
  static constexpr int kTerms = 12;
  // As above: relative error 4e-18, 1.4e-16 with the rounding of each step.
  static constexpr double kExp2[kTerms] = {1.0,
                                           0.6931471805599453,
                                           0.2402265069591016,
                                           0.05550410866482163,
                                           0.009618129107587149,
                                           0.0013333558146404246,
                                           0.00015403530463824428,
                                           1.5252733844195838e-05,
                                           1.3215432494890892e-06,
                                           1.0178055834700797e-07,
                                           7.0742004206065095e-09,
                                           4.4560223746668414e-10};
};

template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
using Ints = typename Simd<T>::Ints;

template <class T>
inline Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}
template <class T>
inline void store(T* to, Vector<T> x) {
  *reinterpret_cast<Vector<T>*>(to) = x;
}
template <class T>
inline Vector<T> splat(T x) {
  return x - Vector<T>{};  // a broadcast alone: x - 0 is x, where 0 + x would lose the sign of -0
}

// 2^x for x up to 100 or so, zero below the smallest normal number and for minus infinity, NaN for NaN.
template <class T>
inline Vector<T> exp2_of(Vector<T> x) {
  using S = Simd<T>;
  const Vector<T> least = splat<T>(S::kLeast);
  const auto is_zero = x < least;
  x = is_zero ? least : x;
  const Vector<T> shifted = x + S::kRounder;
  const Vector<T> f = x - (shifted - S::kRounder);
  Vector<T> p = splat<T>(S::kExp2[S::kTerms - 1]);
#pragma GCC unroll 16
  for (int i = S::kTerms - 2; i >= 0; i--) p = p * f + S::kExp2[i];
  const typename S::Bits exponent = ((typename S::Bits)shifted + S::kBias) << S::kMantissaBits;
  return is_zero ? Vector<T>{} : p * (Vector<T>)exponent;
}

// Memory that is read next, which a product asks for while it computes: up to four ranges, a few lines at a time, into the
// second cache.
class Ahead {
 public:
  void add(const void* from, int64_t bytes) {
    ranges_[count_++] = {static_cast<const char*>(from), static_cast<const char*>(from) + bytes};
  }
  void step() {
    constexpr int kLines = 3 * BSA_VECTOR_BYTES / 8;  // wider vectors make fewer steps
    for (int line = 0; line < kLines && next_ < count_; line++) {
      Range& range = ranges_[next_];
      __builtin_prefetch(range.at, 0, 2);
      range.at += 64;
      if (range.at >= range.end) next_++;
    }
  }

 private:
  struct Range {
    const char *at, *end;
  };
  Range ranges_[4];
  int count_ = 0, next_ = 0;
};

// One register tile of the products below: kRows x kVectors accumulators. They start at zero where C is added to as well:
// the terms of one product are rounded at their own sum's size, and C, which grows with the length, once a product.
template <class T, bool kTransposed, int kRows, int kVectors>
inline void multiply_tile(const T* const* a, int first, const T* b, int ldb, T* c, int ldc, int depth, bool adds) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vector<T> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; j++) sums[i][j] = Vector<T>{};
  const T* rows[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i++) rows[i] = kTransposed ? nullptr : a[first + i];
  for (int k = 0; k < depth; k++) {
    const T* column = kTransposed ? a[k] + first : nullptr;
    Vector<T> right[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; j++) right[j] = load(b + k * ldb + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; i++) {
      const Vector<T> left = splat<T>(kTransposed ? column[i] : rows[i][k]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; j++) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; j++) {
      T* to = c + i * ldc + j * kLanes;
      store(to, adds ? load(to) + sums[i][j] : sums[i][j]);
    }
}

template <class T, bool kTransposed, int kRows>
inline int multiply_rows(int i, int rows, const T* const* a, const T* b, int ldb, T* c, int ldc, int vectors, int depth,
                         bool adds, Ahead& ahead) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (; i + kRows <= rows; i += kRows) {
    int j = 0;
    for (; j + 2 <= vectors; j += 2) {
      ahead.step();
      multiply_tile<T, kTransposed, kRows, 2>(a, i, b + j * kLanes, ldb, c + i * ldc + j * kLanes, ldc, depth, adds);
    }
    if (j < vectors)
      multiply_tile<T, kTransposed, kRows, 1>(a, i, b + j * kLanes, ldb, c + i * ldc + j * kLanes, ldc, depth, adds);
  }
  return i;
}

// C[rows, vectors * lanes] = A B, or C += A B. A is given by pointers: to its `rows` rows [depth], or, transposed, to
// its `depth` columns [rows]. B is [depth, vectors * lanes] with row stride ldb.
template <class T, bool kTransposed>
__attribute__((noinline)) void multiply(int rows, const T* const* a, const T* b, int ldb, T* c, int ldc, int vectors,
                                        int depth, bool adds, Ahead& ahead) {
#ifdef BSA_COUNT_FLOP
  counted_flop += 2ll * rows * vectors * Simd<T>::kLanes * depth;
#endif
  int i = 0;
  if constexpr (sizeof(T) == 4)  // doubles are for checks: fewer forms compile sooner
    i = multiply_rows<T, kTransposed, BSA_TILE_ROWS>(i, rows, a, b, ldb, c, ldc, vectors, depth, adds, ahead);
  i = multiply_rows<T, kTransposed, 4>(i, rows, a, b, ldb, c, ldc, vectors, depth, adds, ahead);
  multiply_rows<T, kTransposed, 1>(i, rows, a, b, ldb, c, ldc, vectors, depth, adds, ahead);
}
