// Sixteen floats as one value: one register of AVX-512, two of AVX2, four of NEON or SSE. Registers are GCC's and Clang's
// vectors; halves are put together here, since GCC makes loops over single floats of vectors wider than the processor's.
// Products and sums are contracted to fused ones where there are such.
#pragma once
#include "registers.h"

namespace specbeam {
namespace {
namespace sixteen {

constexpr int64_t kLanes = 16;

template <class Half> struct Two { Half low, high; };
template <class T, int bytes> struct Vector { using type = Two<typename Vector<T, bytes / 2>::type>; };
template <class T> struct Vector<T, native::kBytes> : native::Register<T> {};
using Floats = Vector<float, 4 * kLanes>::type;
using Ints = Vector<int32_t, 4 * kLanes>::type;
using Words = Vector<uint32_t, 4 * kLanes>::type;

#define BINARY(op) \
  template <class A, class B> inline auto operator op(Two<A> a, Two<B> b) { return two(a.low op b.low, a.high op b.high); } \
  template <class A, class N> inline auto operator op(Two<A> a, N b) { return two(a.low op b, a.high op b); } \
  template <class N, class B> inline auto operator op(N a, Two<B> b) { return two(a op b.low, a op b.high); }
#define ASSIGNING(op) \
  template <class A, class B> inline void operator op##=(Two<A>& a, B b) { a = a op b; }
template <class Half> inline Two<Half> two(Half low, Half high) { return {low, high}; }
BINARY(+) BINARY(-) BINARY(*) BINARY(/) BINARY(&) BINARY(|) BINARY(^) BINARY(<<) BINARY(>>) BINARY(<) BINARY(>) BINARY(==)
ASSIGNING(+) ASSIGNING(*)
template <class A> inline Two<A> operator-(Two<A> a) { return {-a.low, -a.high}; }
template <class A> inline Two<A> operator~(Two<A> a) { return {~a.low, ~a.high}; }
#undef BINARY
#undef ASSIGNING

// The same bits, or the same numbers, as another kind of lanes.
template <class To> struct As {
  template <class From> static To bits(From value) { return (To)value; }
  template <class From> static To number(From value) { return __builtin_convertvector(value, To); }
};
template <class Half> struct As<Two<Half>> {
  template <class From> static Two<Half> bits(From value) { return {As<Half>::bits(value.low), As<Half>::bits(value.high)}; }
  template <class From> static Two<Half> number(From value) {
    return {As<Half>::number(value.low), As<Half>::number(value.high)};
  }
};

template <class Mask, class V> inline V choose(Mask condition, V yes, V no) { return condition ? yes : no; }
template <class Mask, class Half> inline Two<Half> choose(Two<Mask> condition, Two<Half> yes, Two<Half> no) {
  return {choose(condition.low, yes.low, no.low), choose(condition.high, yes.high, no.high)};
}

// Half by half: copied as a whole, a value would go through memory.
template <class V> struct Memory {
  static V load(const float* at) { return native::load<V>(at); }
  static void store(float* at, V value) { native::store(at, value); }
};
template <class Half> struct Memory<Two<Half>> {
  static constexpr int64_t kHalf = sizeof(Half) / sizeof(float);
  static Two<Half> load(const float* at) { return {Memory<Half>::load(at), Memory<Half>::load(at + kHalf)}; }
  static void store(float* at, Two<Half> value) {
    Memory<Half>::store(at, value.low), Memory<Half>::store(at + kHalf, value.high);
  }
};

inline Floats load(const float* at) { return Memory<Floats>::load(at); }
inline void store(float* at, Floats value) { Memory<Floats>::store(at, value); }

inline Floats splat(float value) { return value - Floats{}; }

inline Ints lanes() {
  static constexpr int32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return As<Ints>::bits(load(reinterpret_cast<const float*>(numbers)));
}

inline float lane(Floats value, int i) { float all[kLanes]; std::memcpy(all, &value, sizeof all); return all[i]; }
inline int32_t lane(Ints value, int i) { int32_t all[kLanes]; std::memcpy(all, &value, sizeof all); return all[i]; }

// The first `count` floats, and `rest` in the other lanes.
inline Floats load_some(const float* at, int64_t count, float rest) {
  float all[kLanes];
  store(all, splat(rest));
  std::memcpy(all, at, sizeof(float) * count);
  return load(all);
}

// The first `count` lanes, or all where there are no more.
inline void store_some(float* at, Floats value, int64_t count) {
  if (count >= kLanes) return store(at, value);
  float all[kLanes];
  store(all, value);
  std::memcpy(at, all, sizeof(float) * count);
}

// Lanes are added in one order, so that the sum's bits depend on nothing else.
template <class V> inline float sum(V value) {
  for (int half = native::kBytes / 8; half; half /= 2)
    for (int i = 0; i < half; i++) value[i] += value[i + half];
  return value[0];
}
template <class Half> inline float sum(Two<Half> value) { return sum(value.low + value.high); }

template <class V> inline float highest(V value) {
  float best = value[0];
  for (int i = 1; i < native::kBytes / 4; i++) best = value[i] > best ? value[i] : best;
  return best;
}
template <class Half> inline float highest(Two<Half> value) {
  return highest(choose(value.high > value.low, value.high, value.low));
}

// e^x within 2 units in the last place: x = n ln 2 + r, a polynomial for e^r (Cephes), n into the exponent. 0 below -87.3, NaN
// and, above 88.7, infinity as they should be.
inline Floats exponential(Floats x) {
  const Floats low = splat(-87.33654f), high = splat(88.72283f);
  Floats clamped = choose(x < low, low, x);
  clamped = choose(clamped > high, high, clamped);
  Floats n = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number, which stands in the low bits
  const Ints exponent = As<Ints>::bits(n) - As<Ints>::bits(splat(12582912.0f));
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
  Floats result = p * As<Floats>::bits((first + 127) << 23) * As<Floats>::bits((second + 127) << 23);
  result = choose(x < low, Floats{}, result);
  return choose(x > high, splat(__builtin_inff()), result);
}

// The natural logarithm of positive normal numbers within 2 units in the last place, near 1 too (Cephes). NaN stays NaN.
inline Floats logarithm(Floats x) {
  const Ints bits = As<Ints>::bits(x);
  Floats m = As<Floats>::bits((bits & 0x007fffff) | 0x3f000000);  // x = m 2^e, m from 0.5 to 1
  Floats e = As<Floats>::number((bits >> 23) - 126);
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
