// What packed weights are: kGroup steps of K and a strip of columns at a time, as integers and their scales or as float32.
#pragma once
#include "product.h"
#include "registers.h"

namespace specbeam {
namespace {

using namespace native;

// Registers of neighbouring columns, of which each is treated alike.
template <class V, int n> struct Strip { V v[n]; };
template <int n, class F> inline auto each(F f) {
  Strip<decltype(f(0)), n> all;
  for (int i = 0; i < n; ++i) all.v[i] = f(i);
  return all;
}
#define OPERATOR(op) \
  template <class A, class B, int n> inline auto operator op(Strip<A, n> a, Strip<B, n> b) { \
    return each<n>([&](int i) { return a.v[i] op b.v[i]; }); \
  } \
  template <class A, class B, int n> inline auto operator op(Strip<A, n> a, B b) { \
    return each<n>([&](int i) { return a.v[i] op b; }); \
  }
OPERATOR(+) OPERATOR(-) OPERATOR(*) OPERATOR(&) OPERATOR(|) OPERATOR(^) OPERATOR(<<) OPERATOR(>>)
#undef OPERATOR

// n registers of neighbouring columns of a panel: their words from the first one of interest on.
template <int n> struct Columns {
  const uint32_t* words;
  Strip<Words, n> word(int64_t i) const {
    return each<n>([&](int v) { return load<Words>(words + i * kColumns + v * kLanes); });
  }
  Columns at(int64_t word) const { return {words + word * kColumns}; }
};

inline Floats floats(Words small) { return __builtin_convertvector((Ints)small, Floats); }
inline Floats signed_byte(Words word, int i) { return __builtin_convertvector((Ints)(word << (24 - 8 * i)) >> 24, Floats); }

#if defined(__AVX512F__)
constexpr Floats kCount = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#endif

// The i-th byte of each word, less `zero`; a byte has no more than so many bits.
template <int bits> inline Floats byte(Words word, int i, int zero) {
  const float less = zero;
#if defined(__AVX512F__)
  if constexpr (bits == 4) return (Floats)_mm512_permutexvar_ps((__m512i)(word >> 8 * i), kCount - less);
  if constexpr (bits == 5)
    return (Floats)_mm512_permutex2var_ps(kCount - less, (__m512i)(word >> 8 * i), kCount + 16 - less);
#endif
  if constexpr (bits == 8) return signed_byte(word ^ 0x80808080, i);  // zero is 128
  return floats(word >> 8 * i & 255) - less;
}

// The low 4 bits of each word, one to a byte.
inline Words spread(Words bits) {
#if defined(__AVX512F__)
  constexpr Words kSpread = {0x0000000, 0x0000001, 0x0000100, 0x0000101, 0x0010000, 0x0010001, 0x0010100, 0x0010101,
                             0x1000000, 0x1000001, 0x1000100, 0x1000101, 0x1010000, 0x1010001, 0x1010100, 0x1010101};
  return (Words)_mm512_permutexvar_epi32((__m512i)bits, (__m512i)kSpread);
#else
  return (bits & 15) * 0x00204081 & 0x01010101;
#endif
}

// IEEE half precision in the low 16 bits. Multiplying by 2^112 moves the exponent's bias, of subnormal numbers too.
inline Floats half(Words bits) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)bits));
#elif defined(__AVX2__)
  const __m256i lows = _mm256_and_si256((__m256i)bits, _mm256_set1_epi32(0xffff));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(lows, lows), 0x88);
  return (Floats)_mm256_cvtph_ps(_mm256_castsi256_si128(packed));
#else
  const Words magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
  const Words finite = (Words)((Floats)magnitude * 0x1p112f);
  const Words infinite = (Words)(magnitude >= 0x0f800000);  // or NaN
  return (Floats)((finite & ~infinite) | ((magnitude | 0x7f800000) & infinite) | sign);
#endif
}

template <int n> inline auto floats(Strip<Words, n> w) { return each<n>([&](int v) { return floats(w.v[v]); }); }
template <int n> inline auto half(Strip<Words, n> w) { return each<n>([&](int v) { return half(w.v[v]); }); }
template <int n> inline auto spread(Strip<Words, n> w) { return each<n>([&](int v) { return spread(w.v[v]); }); }
template <int n> inline auto signed_byte(Strip<Words, n> w, int i) {
  return each<n>([&](int v) { return signed_byte(w.v[v], i); });
}

// Each of the following hands kGroup steps of K, from step k of the columns on, to `to` in parts of 16 or 32 steps from `first` on:
// four(i), a word of four bytes, has the i-th four steps of a column, and a weight is (byte - zero) * scale, or
// byte * scale + offset.
constexpr int64_t kGroup = 64;
constexpr uint32_t kNibbles = 0x0f0f0f0f;
#define ALWAYS __attribute__((always_inline)) inline
#define UNPACK template <int n, class To> ALWAYS void

// GGUF's blocks of 32. Of the four words that hold low bits the first 16 weights have the low nibbles. Some lie two and two, so
// that their scales share a word.
UNPACK unpack_q8_0(Columns<n> c, uint64_t k, To& to) {
  c = c.at(k / 64 * 17);
  for (int block = 0; block < 2; ++block)
    to.template part<8, 32>(32 * block, half(c.word(0) >> 16 * block), 128,
                            [&](int i) { return c.word(1 + 8 * block + i) ^ 0x80808080; });
}

UNPACK unpack_q4_0(Columns<n> c, uint64_t k, To& to) {
  c = c.at(k / 64 * 9);
  for (int block = 0; block < 2; ++block)
    to.template part<4, 32>(32 * block, half(c.word(0) >> 16 * block), 8,
                            [&](int i) { return c.word(1 + 4 * block + i % 4) >> i / 4 * 4 & kNibbles; });
}

UNPACK unpack_q5_0(Columns<n> c, uint64_t k, To& to) {
  c = c.at(k / 64 * 11);
  for (int block = 0; block < 2; ++block)
    to.template part<5, 32>(32 * block, half(c.word(0) >> 16 * block), 16, [&](int i) {
      return (c.word(2 + 5 * block + i % 4) >> i / 4 * 4 & kNibbles) | spread(c.word(1 + 5 * block) >> 4 * i) << 4;
    });
}

// Scale and offset of a block of 32 share a word as they are. In float32 the products are exact, as those of Q4_K below.
UNPACK unpack_q4_1(Columns<n> c, uint64_t k, To& to) {
  c = c.at(k / 32 * 5);
  for (int block = 0; block < 2; ++block, c = c.at(5))
    to.template part<4, 32>(32 * block, half(c.word(0)), half(c.word(0) >> 16),
                            [&](int i) { return c.word(1 + i % 4) >> i / 4 * 4 & kNibbles; });
}

UNPACK unpack_q5_1(Columns<n> c, uint64_t k, To& to) {
  c = c.at(k / 32 * 6);
  for (int block = 0; block < 2; ++block, c = c.at(6))
    to.template part<5, 32>(32 * block, half(c.word(0)), half(c.word(0) >> 16), [&](int i) {
      return (c.word(2 + i % 4) >> i / 4 * 4 & kNibbles) | spread(c.word(1) >> 4 * i) << 4;
    });
}

// Scale and offset of the i-th of eight groups of 32 in Q4_K and Q5_K: six bits each in three words after the first. Their
// products with bytes are exact in float32 (11 + 6 + 5 bits), so that fusing them with the difference changes nothing.
template <int n> struct Affine { Strip<Floats, n> scale, offset; };
template <int n> ALWAYS Affine<n> affine(Columns<n> c, int i) {
  const auto factors = c.word(0), low = c.word(1), high = c.word(2), rest = c.word(3);
  const int shift = 8 * (i % 4);
  const auto scale = i < 4 ? low >> shift & 63 : (rest >> shift & 15) | (low >> (shift + 6) & 3) << 4;
  const auto offset = i < 4 ? high >> shift & 63 : (rest >> (shift + 4) & 15) | (high >> (shift + 6) & 3) << 4;
  return {half(factors) * floats(scale), half(factors >> 16) * floats(offset) * -1.0f};
}

UNPACK unpack_q4_k(Columns<n> c, uint64_t k, To& to) {
  c = c.at(k / 256 * 36);
  const int group = k % 256 / 64;
  for (int side = 0; side < 2; ++side) {
    const auto [scale, offset] = affine(c, 2 * group + side);
    to.template part<4, 32>(32 * side, scale, offset,
                            [&](int i) { return c.word(4 + 8 * group + i) >> 4 * side & kNibbles; });
  }
}

UNPACK unpack_q5_k(Columns<n> c, uint64_t k, To& to) {
  c = c.at(k / 256 * 44);
  const int group = k % 256 / 64;
  for (int side = 0; side < 2; ++side) {
    const auto [scale, offset] = affine(c, 2 * group + side);
    to.template part<5, 32>(32 * side, scale, offset, [&](int i) {
      const auto fifth = c.word(4 + i) >> (2 * group + side) & 0x01010101;
      return (c.word(12 + 8 * group + i) >> 4 * side & kNibbles) | fifth << 4;
    });
  }
}

UNPACK unpack_q6_k(Columns<n> c, uint64_t k, To& to) {
  c = c.at(k / 256 * 53);
  const int part = k % 256 / 64;  // the first two of four hold their low bits in low nibbles, the others in high ones
  for (int quarter = 0; quarter < 4; ++quarter) {
    const auto scale = half(c.word(52)) * signed_byte(c.word(48 + part) >> 8 * quarter, 0);
    to.template part<6, 16>(16 * quarter, scale, 32, [&](int four) {
      const int i = 4 * quarter + four;
      const auto low = c.word(16 * (part / 2) + i) >> 4 * (part % 2);
      const auto high = c.word(32 + 8 * (part / 2) + i % 8) >> (4 * (part % 2) + 2 * (i / 8));
      return (low & kNibbles) | (high & 0x03030303) << 4;
    });
  }
}

// Those that are no blocks hand over floats, step by step. int8 begins with two words for the column: its scale (float32) and the
// sum of its bytes, which integer sums need.
constexpr int64_t kInt8Head = 2;

UNPACK unpack_int8(Columns<n> c, uint64_t k, To& to) {
  const auto scale = each<n>([&](int v) { return (Floats)c.word(0).v[v]; });
  for (int i = 0; i < kGroup / 4; ++i)
    for (int b = 0; b < 4; ++b) to.put(4 * i + b, signed_byte(c.word(kInt8Head + k / 4 + i), b) * scale);
}

UNPACK unpack_bfloat16(Columns<n> c, uint64_t k, To& to) {
  for (int i = 0; i < kGroup / 2; ++i) {
    const auto two = c.word(k / 2 + i);
    to.put(2 * i, each<n>([&](int v) { return (Floats)(two.v[v] << 16); }));
    to.put(2 * i + 1, each<n>([&](int v) { return (Floats)(two.v[v] & 0xffff0000); }));
  }
}

template <Kind kind, int n, class To> ALWAYS void unpack(Columns<n> c, uint64_t k, To& to) {
  if constexpr (kind == kBFloat16) unpack_bfloat16(c, k, to);
  if constexpr (kind == kInt8) unpack_int8(c, k, to);
  if constexpr (kind == kQ8_0) unpack_q8_0(c, k, to);
  if constexpr (kind == kQ4_0) unpack_q4_0(c, k, to);
  if constexpr (kind == kQ5_0) unpack_q5_0(c, k, to);
  if constexpr (kind == kQ4_K) unpack_q4_k(c, k, to);
  if constexpr (kind == kQ5_K) unpack_q5_k(c, k, to);
  if constexpr (kind == kQ6_K) unpack_q6_k(c, k, to);
  if constexpr (kind == kQ4_1) unpack_q4_1(c, k, to);
  if constexpr (kind == kQ5_1) unpack_q5_1(c, k, to);
}

// What is handed over as floats, given to `put`(step, weights) one step after the other.
template <int n, class Put> struct AsFloats {
  Put put;
  template <int bits, int steps, class Four> ALWAYS void part(int first, Strip<Floats, n> scale, int zero, Four four) {
    each_byte<bits, steps>(first, zero, four, [&](Strip<Floats, n> bytes) { return bytes * scale; });
  }
  template <int bits, int steps, class Four>
  ALWAYS void part(int first, Strip<Floats, n> scale, Strip<Floats, n> offset, Four four) {
    each_byte<bits, steps>(first, 0, four, [&](Strip<Floats, n> bytes) { return bytes * scale + offset; });
  }

 private:
  template <int bits, int steps, class Four, class End> ALWAYS void each_byte(int first, int zero, Four four, End end) {
    for (int i = 0; i < steps / 4; ++i) {
      const auto bytes = four(i);
      for (int b = 0; b < 4; ++b)
        put(first + 4 * i + b, end(each<n>([&](int v) { return byte<bits>(bytes.v[v], b, zero); })));
    }
  }
};
template <int n, class Put> ALWAYS AsFloats<n, Put> as_floats(Put put) { return {put}; }

}  // namespace
}  // namespace specbeam
