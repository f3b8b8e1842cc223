// How packed weights become float32, kGroup steps of K and a strip of columns at a time, step after step.
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
OPERATOR(+) OPERATOR(-) OPERATOR(*) OPERATOR(&) OPERATOR(|) OPERATOR(<<) OPERATOR(>>)
#undef OPERATOR

// n registers of neighbouring columns of a panel: their words from the first one of interest on.
template <int n> struct Columns {
  const uint32_t* words;
  Strip<Words, n> word(int64_t i) const {
    return each<n>([&](int v) { return load<Words>(words + i * kColumns + v * kLanes); });
  }
  Columns at(int64_t word) const { return {words + word * kColumns}; }
};

#if defined(__AVX512F__)
constexpr Floats kCount = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#endif

inline Floats floats(Words small) { return __builtin_convertvector((Ints)small, Floats); }
inline Floats signed_byte(Words word, int i) { return __builtin_convertvector((Ints)(word << (24 - 8 * i)) >> 24, Floats); }

// The low 4 or 5 bits of each word, less `zero`.
inline Floats nibble(Words bits, float zero) {
#if defined(__AVX512F__)
  return (Floats)_mm512_permutexvar_ps((__m512i)bits, kCount - zero);
#else
  return floats(bits & 15) - zero;
#endif
}
inline Floats five_bits(Words bits, float zero) {
#if defined(__AVX512F__)
  return (Floats)_mm512_permutex2var_ps(kCount - zero, (__m512i)bits, kCount + 16 - zero);
#else
  return floats(bits & 31) - zero;
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

template <int n> inline auto floats(Strip<Words, n> w) { return each<n>([&](int i) { return floats(w.v[i]); }); }
template <int n> inline auto half(Strip<Words, n> w) { return each<n>([&](int i) { return half(w.v[i]); }); }
template <int n> inline auto signed_byte(Strip<Words, n> w, int byte) {
  return each<n>([&](int i) { return signed_byte(w.v[i], byte); });
}
template <int n> inline auto nibble(Strip<Words, n> w, float zero) {
  return each<n>([&](int i) { return nibble(w.v[i], zero); });
}
template <int n> inline auto five_bits(Strip<Words, n> w, float zero) {
  return each<n>([&](int i) { return five_bits(w.v[i], zero); });
}

// Each of the following turns kGroup steps of K, from step k of the columns on, into float32, which `put` takes in order.
constexpr int64_t kGroup = 64;
#define UNPACK template <int n, class Put> __attribute__((always_inline)) inline void

UNPACK unpack_bfloat16(Columns<n> c, int64_t k, Put& put) {
  c = c.at(k / 2);
  for (int i = 0; i < kGroup / 2; ++i) {
    const auto two = c.word(i);
    put(2 * i, each<n>([&](int v) { return (Floats)(two.v[v] << 16); }));
    put(2 * i + 1, each<n>([&](int v) { return (Floats)(two.v[v] & 0xffff0000); }));
  }
}

// Four signed bytes to a word.
UNPACK unpack_bytes(Columns<n> c, int words, Strip<Floats, n> scale, int first, Put& put) {
  for (int i = 0; i < words; ++i) {
    const auto four = c.word(i);
    for (int b = 0; b < 4; ++b) put(first + 4 * i + b, signed_byte(four, b) * scale);
  }
}

// Two words for the column: its scale (float32) and the sum of its bytes, which integer sums need.
constexpr int64_t kInt8Head = 2;

UNPACK unpack_int8(Columns<n> c, int64_t k, Put& put) {
  const auto scale = each<n>([&](int v) { return (Floats)c.word(0).v[v]; });
  unpack_bytes(c.at(kInt8Head + k / 4), kGroup / 4, scale, 0, put);
}

// GGUF's blocks of 32. Of the four words that hold their low bits the first 16 weights have the low nibbles. Some lie two and
// two, so that their scales share a word: 64 weights in 1 + 2 n words.
UNPACK unpack_q8_0(Columns<n> c, int64_t k, Put& put) {
  c = c.at(k / 64 * 17);
  unpack_bytes(c.at(1), 8, half(c.word(0)), 0, put);
  unpack_bytes(c.at(9), 8, half(c.word(0) >> 16), 32, put);
}

UNPACK unpack_q4_0(Columns<n> c, int64_t k, Put& put) {
  c = c.at(k / 64 * 9);
  for (int block = 0; block < 2; ++block) {
    const auto scale = half(c.word(0) >> 16 * block);
    for (int side = 0; side < 2; ++side)
      for (int i = 0; i < 4; ++i) {
        const auto eight = c.word(1 + 4 * block + i) >> 4 * side;
        for (int b = 0; b < 4; ++b) put(32 * block + 16 * side + 4 * i + b, nibble(eight >> 8 * b, 8) * scale);
      }
  }
}

UNPACK unpack_q5_0(Columns<n> c, int64_t k, Put& put) {
  c = c.at(k / 64 * 11);
  for (int block = 0; block < 2; ++block) {
    const auto scale = half(c.word(0) >> 16 * block);
    for (int side = 0; side < 2; ++side)
      for (int i = 0; i < 4; ++i) {
        const auto eight = c.word(2 + 5 * block + i) >> 4 * side, fifth = c.word(1 + 5 * block) >> (16 * side + 4 * i);
        for (int b = 0; b < 4; ++b)
          put(32 * block + 16 * side + 4 * i + b, five_bits((eight >> 8 * b & 15) | (fifth >> b << 4 & 16), 16) * scale);
      }
  }
}

// Scale and offset of a block of 32 share a word as they are; the products are exact, as those of Q4_K below.
UNPACK unpack_q4_1(Columns<n> c, int64_t k, Put& put) {
  c = c.at(k / 32 * 5);
  for (int block = 0; block < 2; ++block, c = c.at(5)) {
    const auto scale = half(c.word(0)), offset = half(c.word(0) >> 16);
    for (int side = 0; side < 2; ++side)
      for (int i = 0; i < 4; ++i) {
        const auto eight = c.word(1 + i) >> 4 * side;
        for (int b = 0; b < 4; ++b) put(32 * block + 16 * side + 4 * i + b, nibble(eight >> 8 * b, 0) * scale + offset);
      }
  }
}

UNPACK unpack_q5_1(Columns<n> c, int64_t k, Put& put) {
  c = c.at(k / 32 * 6);
  for (int block = 0; block < 2; ++block, c = c.at(6)) {
    const auto scale = half(c.word(0)), offset = half(c.word(0) >> 16);
    for (int side = 0; side < 2; ++side)
      for (int i = 0; i < 4; ++i) {
        const auto eight = c.word(2 + i) >> 4 * side, fifth = c.word(1) >> (16 * side + 4 * i);
        for (int b = 0; b < 4; ++b)
          put(32 * block + 16 * side + 4 * i + b,
              five_bits((eight >> 8 * b & 15) | (fifth >> b << 4 & 16), 0) * scale + offset);
      }
  }
}

// Scale and offset of the i-th of eight groups of 32 in Q4_K and Q5_K: six bits each in three words after the first.
template <int n> struct Affine { Strip<Floats, n> scale, offset; };
template <int n> inline Affine<n> affine(Columns<n> c, int i) {
  const auto factors = c.word(0), low = c.word(1), high = c.word(2), rest = c.word(3);
  const int shift = 8 * (i % 4);
  const auto scale = i < 4 ? low >> shift & 63 : (rest >> shift & 15) | (low >> (shift + 6) & 3) << 4;
  const auto offset = i < 4 ? high >> shift & 63 : (rest >> (shift + 4) & 15) | (high >> (shift + 6) & 3) << 4;
  return {half(factors) * floats(scale), half(factors >> 16) * floats(offset)};
}

// The products below are exact in float32 (11 + 6 + 5 bits), so that fusing them with the difference changes nothing.
UNPACK unpack_q4_k(Columns<n> c, int64_t k, Put& put) {
  c = c.at(k / 256 * 36);
  const int group = k % 256 / 64;
  for (int side = 0; side < 2; ++side) {
    const auto [scale, offset] = affine(c, 2 * group + side);
    for (int i = 0; i < 8; ++i) {
      const auto eight = c.word(4 + 8 * group + i) >> 4 * side;
      for (int b = 0; b < 4; ++b) put(32 * side + 4 * i + b, nibble(eight >> 8 * b, 0) * scale - offset);
    }
  }
}

UNPACK unpack_q5_k(Columns<n> c, int64_t k, Put& put) {
  c = c.at(k / 256 * 44);
  const int group = k % 256 / 64;
  for (int side = 0; side < 2; ++side) {
    const auto [scale, offset] = affine(c, 2 * group + side);
    for (int i = 0; i < 8; ++i) {
      const auto eight = c.word(12 + 8 * group + i) >> 4 * side, fifth = c.word(4 + i) >> (2 * group + side);
      for (int b = 0; b < 4; ++b)
        put(32 * side + 4 * i + b, five_bits((eight >> 8 * b & 15) | (fifth >> 8 * b & 1) << 4, 0) * scale - offset);
    }
  }
}

UNPACK unpack_q6_k(Columns<n> c, int64_t k, Put& put) {
  c = c.at(k / 256 * 53);
  const int part = k % 256 / 64;  // the first two of four hold their low bits in low nibbles, the others in high ones
  const auto factor = half(c.word(52));
  for (int i = 0; i < 16; ++i) {
    const auto scale = factor * signed_byte(c.word(48 + part) >> 8 * (i / 4), 0);
    const auto low = c.word(16 * (part / 2) + i) >> 4 * (part % 2);
    const auto high = c.word(32 + 8 * (part / 2) + i % 8) >> (4 * (part % 2) + 2 * (i / 8));
    for (int b = 0; b < 4; ++b) put(4 * i + b, (floats((low >> 8 * b & 15) | (high >> 8 * b & 3) << 4) - 32.0f) * scale);
  }
}

template <Kind kind, int n, class Put> __attribute__((always_inline)) inline void unpack(Columns<n> c, int64_t k, Put& put) {
  if constexpr (kind == kBFloat16) unpack_bfloat16(c, k, put);
  if constexpr (kind == kInt8) unpack_int8(c, k, put);
  if constexpr (kind == kQ8_0) unpack_q8_0(c, k, put);
  if constexpr (kind == kQ4_0) unpack_q4_0(c, k, put);
  if constexpr (kind == kQ5_0) unpack_q5_0(c, k, put);
  if constexpr (kind == kQ4_K) unpack_q4_k(c, k, put);
  if constexpr (kind == kQ5_K) unpack_q5_k(c, k, put);
  if constexpr (kind == kQ6_K) unpack_q6_k(c, k, put);
  if constexpr (kind == kQ4_1) unpack_q4_1(c, k, put);
  if constexpr (kind == kQ5_1) unpack_q5_1(c, k, put);
}

}  // namespace
}  // namespace specbeam
