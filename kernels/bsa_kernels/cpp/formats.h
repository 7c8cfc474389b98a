// Storage formats and their conversion: float and double as they are, bfloat16 and float16 as 16 bits, computed in float.
#pragma once

#include <cstdint>
#include <cstring>

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The format that products of a storage format are computed and summed in.
template <class Storage>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "expected formats of one size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Float16 x) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  constexpr uint32_t kSmallestNormal = (127 - 14) << 23;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t exponent = x.bits & 0x7c00u;
  uint32_t magnitude;
  if (exponent == 0x7c00u) {
    magnitude = rest | 0x7f800000u;  // infinity and NaN
  } else if (exponent == 0) {
    // Zero and subnormals: a normal number with the same mantissa, less the leading one that it should not have. Right
    // even where the processor flushes subnormals of float to zero.
    magnitude = bit_cast<uint32_t>(bit_cast<float>(kSmallestNormal + rest) - bit_cast<float>(kSmallestNormal));
  } else {
    magnitude = rest + kRebias;
  }
  return bit_cast<float>(sign | magnitude);
}

// To the nearest, ties to even, as torch rounds.
template <class Storage>
Storage narrow(typename ComputeOf<Storage>::type x);
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline double narrow<double>(double x) {
  return x;
}
template <>
inline Bfloat16 narrow<Bfloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
inline Float16 narrow<Float16>(float x) {
  constexpr uint32_t kOverflow = (127 + 16) << 23;
  constexpr uint32_t kSmallestNormal = (127 - 14) << 23;
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= kOverflow) {
    half = 0x7c00u;
  } else if (magnitude < kSmallestNormal) {
    // Adding 0.5 leaves a multiple of 2^-24, the step of subnormals, in the lowest bits, rounded by the processor.
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  } else {
    // A carry out of the mantissa goes into the exponent, up to infinity.
    half = (magnitude - ((127 - 15) << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}
