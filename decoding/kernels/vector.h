// Sixteen floats as one value, in GCC's and Clang's vector extension: the compiler makes of it what the instruction set has, one
// AVX-512 register, two of AVX2, four of NEON or SSE. Products and sums are contracted to fused ones where there are such.
#pragma once
#include <cstdint>
#include <cstring>

namespace specbeam {
namespace {  // every file has its own, compiled for its instruction set
namespace sixteen {

constexpr int64_t kLanes = 16;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* at) {
  Floats value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

inline void store(float* at, Floats value) { std::memcpy(at, &value, sizeof value); }

inline Floats splat(float value) { return value - Floats{}; }

inline Ints lanes() { return Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// The first `count` floats, and `rest` in the other lanes.
inline Floats load_some(const float* at, int64_t count, float rest) {
  Floats value = splat(rest);
  std::memcpy(&value, at, sizeof(float) * count);
  return value;
}

inline Floats choose(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }

// Lanes are added in one order, so that the sum's bits depend on nothing else.
inline float sum(Floats value) {
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; i++) value[i] += value[i + half];
  return value[0];
}

inline float highest(Floats value) {
  float best = value[0];
  for (int i = 1; i < kLanes; i++) best = value[i] > best ? value[i] : best;
  return best;
}

// e^x within 2 units in the last place: x = n ln 2 + r, a polynomial for e^r (Cephes), n into the exponent. 0 below -87.3, NaN
// and, above 88.7, infinity as they should be.
inline Floats exponential(Floats x) {
  const Floats low = splat(-87.33654f), high = splat(88.72283f);
  Floats clamped = choose(x < low, low, x);
  clamped = choose(clamped > high, high, clamped);
  Floats n = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number, which stands in the low bits
  const Ints exponent = (Ints)n - (Ints)splat(12582912.0f);
  n = n - 12582912.0f;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // In two halves: 2^128 is no float.
  const Ints first = exponent >> 1, second = exponent - first;
  Floats result = p * (Floats)((first + 127) << 23) * (Floats)((second + 127) << 23);
  result = choose(x < low, Floats{}, result);
  return choose(x > high, splat(__builtin_inff()), result);
}

// The natural logarithm of positive normal numbers within 2 units in the last place, near 1 too (Cephes). NaN stays NaN.
inline Floats logarithm(Floats x) {
  const Ints bits = (Ints)x;
  Floats m = (Floats)((bits & 0x007fffff) | 0x3f000000);  // x = m 2^e, m from 0.5 to 1
  Floats e = __builtin_convertvector((bits >> 23) - 126, Floats);
  const Ints small = m < splat(0.707106781f);
  e = choose(small, e - 1.0f, e);
  m = choose(small, m + m, m) - 1.0f;
  Floats y = splat(7.0376836292e-2f);
  constexpr float next[] = {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                            -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
  for (float each : next) y = y * m + each;
  const Floats square = m * m;
  y = y * m * square - e * 2.12194440e-4f - 0.5f * square;
  return choose(x == x, m + y + e * 0.693359375f, x);
}

// The error function within 3e-7, a rational approximation on [-4, 4] (Eigen's).
inline Floats error_function(Floats x) {
  x = choose(x < splat(-4.0f), splat(-4.0f), x);
  x = choose(x > splat(4.0f), splat(4.0f), x);
  const Floats square = x * x;
  Floats over = splat(-2.72614225801306e-10f);
  constexpr float above[] = {2.77068142495902e-08f,  -2.10102402082508e-06f, -5.69250639462346e-05f,
                             -7.34990630326855e-04f, -2.95459980854025e-03f, -1.60960333262415e-02f};
  for (float next : above) over = over * square + next;
  Floats under = splat(-1.45660718464996e-05f);
  constexpr float below[] = {-2.13374055278905e-04f, -1.68282697438203e-03f, -7.37332916720468e-03f, -1.42647390514189e-02f};
  for (float next : below) under = under * square + next;
  return x * over / under;
}

}  // namespace sixteen
}  // namespace
}  // namespace specbeam
