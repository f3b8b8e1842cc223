// How packed weights become float32, kGroup steps of K and a register of columns at a time.
#pragma once
#include "product.h"
#include "registers.h"

namespace specbeam {
namespace {

using namespace native;

#if defined(__AVX512F__)
constexpr Floats kCount = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#endif

// kLanes neighbouring columns of a panel: their words from the first one of interest on, and where their weights go.
struct Columns {
  const uint32_t* words;
  float* out;
  Words word(int64_t i) const { return load<Words>(words + i * kColumns); }
  void put(int64_t k, Floats weights) const { store(out + k * kColumns, weights); }
  Columns at(int64_t word, int64_t k) const { return {words + word * kColumns, out + k * kColumns}; }
};

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
  const Words magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
  const Words finite = (Words)((Floats)magnitude * 0x1p112f);
  const Words infinite = (Words)(magnitude >= 0x0f800000);  // or NaN
  return (Floats)((finite & ~infinite) | ((magnitude | 0x7f800000) & infinite) | sign);
}

// Each of the following turns kGroup steps of K, from step k of the columns on, into float32.
constexpr int64_t kGroup = 64;

void unpack_bfloat16(Columns c, int64_t k) {
  c = c.at(k / 2, 0);
  for (int i = 0; i < kGroup / 2; ++i) {
    const Words two = c.word(i);
    c.put(2 * i, (Floats)(two << 16));
    c.put(2 * i + 1, (Floats)(two & 0xffff0000));
  }
}

// Two words for the column: its scale (float32) and the sum of its bytes, which integer sums need.
constexpr int64_t kInt8Head = 2;

void unpack_int8(Columns c, int64_t k) {
  const Floats scale = (Floats)c.word(0);
  c = c.at(kInt8Head + k / 4, 0);
  for (int i = 0; i < kGroup / 4; ++i) {
    const Words four = c.word(i);
    for (int b = 0; b < 4; ++b) c.put(4 * i + b, signed_byte(four, b) * scale);
  }
}

// GGUF's blocks of 32, two and two so that their scales share a word: 64 weights in 1 + 2 n words.
template <int n, class Unpack>
void unpack_pair(Columns c, int64_t k, Unpack block) {
  c = c.at(k / 64 * (1 + 2 * n), 0);
  block(c.at(1, 0), half(c.word(0)));
  block(c.at(1 + n, 32), half(c.word(0) >> 16));
}

void unpack_q8_0(Columns c, int64_t k) {
  unpack_pair<8>(c, k, [](Columns c, Floats scale) {
    for (int i = 0; i < 8; ++i) {
      const Words four = c.word(i);
      for (int b = 0; b < 4; ++b) c.put(4 * i + b, signed_byte(four, b) * scale);
    }
  });
}

void unpack_q4_0(Columns c, int64_t k) {
  unpack_pair<4>(c, k, [](Columns c, Floats scale) {
    for (int i = 0; i < 4; ++i) {
      const Words eight = c.word(i);
      for (int b = 0; b < 4; ++b) {
        c.put(4 * i + b, nibble(eight >> 8 * b, 8) * scale);
        c.put(4 * i + b + 16, nibble(eight >> (8 * b + 4), 8) * scale);
      }
    }
  });
}

void unpack_q5_0(Columns c, int64_t k) {
  unpack_pair<5>(c, k, [](Columns c, Floats scale) {
    Words fifth = c.word(0);
    for (int i = 0; i < 4; ++i, fifth >>= 4) {
      const Words eight = c.word(1 + i);
      for (int b = 0; b < 4; ++b) {
        c.put(4 * i + b, five_bits((eight >> 8 * b & 15) | (fifth << (4 - b) & 16), 16) * scale);
        c.put(4 * i + b + 16, five_bits((eight >> (8 * b + 4) & 15) | (fifth >> (12 + b) & 16), 16) * scale);
      }
    }
  });
}

// Scale and offset of a block of 32 share a word as they are; the products are exact, as those of Q4_K below.
void unpack_q4_1(Columns c, int64_t k) {
  c = c.at(k / 32 * 5, 0);
  for (int block = 0; block < 2; ++block, c = c.at(5, 32)) {
    const Floats scale = half(c.word(0)), offset = half(c.word(0) >> 16);
    for (int i = 0; i < 4; ++i) {
      const Words eight = c.word(1 + i);
      for (int b = 0; b < 4; ++b) {
        c.put(4 * i + b, nibble(eight >> 8 * b, 0) * scale + offset);
        c.put(4 * i + b + 16, nibble(eight >> (8 * b + 4), 0) * scale + offset);
      }
    }
  }
}

void unpack_q5_1(Columns c, int64_t k) {
  c = c.at(k / 32 * 6, 0);
  for (int block = 0; block < 2; ++block, c = c.at(6, 32)) {
    const Floats scale = half(c.word(0)), offset = half(c.word(0) >> 16);
    Words fifth = c.word(1);
    for (int i = 0; i < 4; ++i, fifth >>= 4) {
      const Words eight = c.word(2 + i);
      for (int b = 0; b < 4; ++b) {
        c.put(4 * i + b, five_bits((eight >> 8 * b & 15) | (fifth << (4 - b) & 16), 0) * scale + offset);
        c.put(4 * i + b + 16, five_bits((eight >> (8 * b + 4) & 15) | (fifth >> (12 + b) & 16), 0) * scale + offset);
      }
    }
  }
}

// Scale and offset of the i-th of eight groups of 32 in Q4_K and Q5_K: six bits each in three words after the first.
struct Affine { Floats scale, offset; };
inline Affine affine(Columns c, int i) {
  const Words factors = c.word(0), low = c.word(1), high = c.word(2), rest = c.word(3);
  const int shift = 8 * (i % 4);
  const Words scale = i < 4 ? low >> shift & 63 : (rest >> shift & 15) | (low >> (shift + 6) & 3) << 4;
  const Words offset = i < 4 ? high >> shift & 63 : (rest >> (shift + 4) & 15) | (high >> (shift + 6) & 3) << 4;
  return {half(factors) * floats(scale), half(factors >> 16) * floats(offset)};
}

// The products below are exact in float32 (11 + 6 + 5 bits), so that fusing them with the difference changes nothing.
void unpack_q4_k(Columns c, int64_t k) {
  c = c.at(k / 256 * 36, 0);
  const int group = k % 256 / 64;
  const Affine low = affine(c, 2 * group), high = affine(c, 2 * group + 1);
  for (int i = 0; i < 8; ++i) {
    const Words eight = c.word(4 + 8 * group + i);
    for (int b = 0; b < 4; ++b) {
      c.put(4 * i + b, nibble(eight >> 8 * b, 0) * low.scale - low.offset);
      c.put(4 * i + b + 32, nibble(eight >> (8 * b + 4), 0) * high.scale - high.offset);
    }
  }
}

void unpack_q5_k(Columns c, int64_t k) {
  c = c.at(k / 256 * 44, 0);
  const int group = k % 256 / 64;
  const Affine low = affine(c, 2 * group), high = affine(c, 2 * group + 1);
  for (int i = 0; i < 8; ++i) {
    const Words eight = c.word(12 + 8 * group + i), fifth = c.word(4 + i) >> 2 * group;
    for (int b = 0; b < 4; ++b) {
      const Words l = (eight >> 8 * b & 15) | (fifth >> 8 * b & 1) << 4;
      const Words h = (eight >> (8 * b + 4) & 15) | (fifth >> (8 * b + 1) & 1) << 4;
      c.put(4 * i + b, five_bits(l, 0) * low.scale - low.offset);
      c.put(4 * i + b + 32, five_bits(h, 0) * high.scale - high.offset);
    }
  }
}

void unpack_q6_k(Columns c, int64_t k) {
  c = c.at(k / 256 * 53, 0);
  const int part = k % 256 / 64;  // the first two of four hold their low bits in low nibbles, the others in high ones
  const Floats factor = half(c.word(52));
  for (int i = 0; i < 16; ++i) {
    const Floats scale = factor * signed_byte(c.word(48 + part) >> 8 * (i / 4), 0);
    const Words low = c.word(16 * (part / 2) + i) >> 4 * (part % 2);
    const Words high = c.word(32 + 8 * (part / 2) + i % 8) >> (4 * (part % 2) + 2 * (i / 8));
    for (int b = 0; b < 4; ++b) c.put(4 * i + b, (floats((low >> 8 * b & 15) | (high >> 8 * b & 3) << 4) - 32) * scale);
  }
}

using Unpack = void (*)(Columns, int64_t k);
constexpr Unpack kUnpack[] = {nullptr, unpack_bfloat16, unpack_int8, unpack_q8_0, unpack_q4_0,
                              unpack_q5_0, unpack_q4_k, unpack_q5_k, unpack_q6_k, unpack_q4_1, unpack_q5_1};

}  // namespace
}  // namespace specbeam
