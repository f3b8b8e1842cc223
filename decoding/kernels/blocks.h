// Products with blocks of a file, which few rows multiply from registers.
//
// With VNNI they are sums of integers, since the file's weights are integers times a scale: 32 features of a row become integers of
// 23 bits and a sign times a power of two, whose products with weights are summed exactly. All in all that rounds less than sums
// of floats do. Else weights become float32.
#pragma once
#include "tiles.h"
#include "unpack.h"

namespace specbeam {
namespace {

// Steps of K that words are fetched ahead: more than a block of 256 weights, which is read in several places at once.
constexpr int64_t kBlocksAhead = 512;

#if defined(__AVX512VNNI__)
// A row as `Digits`.
void digitise(const float* x, int64_t inputs, Digits* digits, float* worth) {
  *worth = 1;
  memset(digits, 0, blocks(inputs) * sizeof(Digits));  // those of zeros
  for (int64_t k = 0; k < inputs; k += 32, x += 32, ++digits) {
    int32_t largest = 0;  // as bits, as in `quantise`
    for (int i = 0; i < 32; ++i) {
      const int32_t bits = load<int32_t>(x + i) & 0x7fffffff;
      largest = largest < bits ? bits : largest;
    }
    if (!largest) continue;
    float top = load<float>(&largest);
    if (!(top >= 1e-30f && top <= 1e38f)) {
      *worth = __builtin_nanf("");
      return;
    }
    top *= 1.004f;  // the largest of three digits, 127 (1 + 2^8 + 2^16), is a little less than 2^23
    const int32_t unit = (load<int32_t>(&top) & 0x7f800000) - (22 << 23), inverse = (254 << 23) - unit;
    int32_t total = 0;
    for (int half = 0; half < 2; ++half) {
      const Floats scaled = load<Floats>(x + half * kLanes) * load<float>(&inverse);
      const __m512i integers = _mm512_cvtps_epi32((__m512)scaled);  // the nearest
      total += _mm512_reduce_add_epi32(integers);
      const __m512i shifted = _mm512_add_epi32(integers, _mm512_set1_epi32(0x808080));  // whose bytes are digits and 128
      for (int d = 0; d < 3; ++d) {
        const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_srli_epi32(shifted, 8 * d));
        const __m128i digit = _mm_xor_si128(bytes, _mm_set1_epi8(-128));
        memcpy(digits->digits[d] + 4 * half, &digit, sizeof digit);
        digits->totals[half][d] = _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(digit));
      }
    }
    digits->unit = load<float>(&unit);
    digits->total = total * digits->unit;
  }
}

// Parts of a group of kGroup steps, summed in integers: a row's three digits times bytes are three exact sums, which make one
// float.
template <int R, int n> struct Integers {
  const Digits* x;
  int64_t stride;
  float* sums;
  Ahead& ahead;

  template <int, int steps, class Four> ALWAYS void part(int first, Strip<Floats, n> scale, int zero, Four four) {
    sum<steps>(first, zero, four, [&](const Digits& row, int v, Floats sum, Floats total) {
      return total * (scale.v[v] * row.unit) + sum;
    });
  }
  template <int, int steps, class Four>
  ALWAYS void part(int first, Strip<Floats, n> scale, Strip<Floats, n> offset, Four four) {
    sum<steps>(first, 0, four, [&](const Digits& row, int v, Floats sum, Floats total) {
      return offset.v[v] * row.total + (total * (scale.v[v] * row.unit) + sum);
    });
  }

 private:
  template <int steps, class Four, class End> ALWAYS void sum(int first, int zero, Four four, End end) {
    const char* end_of_part = ahead.next + steps * (ahead.step * n * kLanes / kColumns);
    for (const char* line = ahead.next; line < end_of_part; line += 64) __builtin_prefetch(line, 0, 2);
    ahead.next = end_of_part;
    const Digits* rows = x + first / 32;
    const int half = first % 32 / 16;
    Strip<Ints, n> sum[R][3];
    for (int r = 0; r < R; ++r)
      for (int d = 0; d < 3; ++d) {
        const auto& totals = rows[r * stride].totals;
        const __m512i total = _mm512_set1_epi32(steps == 32 ? totals[0][d] + totals[1][d] : totals[half][d]);
        for (int v = 0; v < n; ++v) sum[r][d].v[v] = zero ? (Ints)total * -zero : Ints{};
      }
#pragma GCC unroll 8  // shifts by constants
    for (int i = 0; i < steps / 4; ++i) {
      const auto bytes = four(i);
      for (int r = 0; r < R; ++r)
        for (int d = 0; d < 3; ++d) {
          const __m512i digits = _mm512_set1_epi32(rows[r * stride].digits[d][4 * half + i]);
          for (int v = 0; v < n; ++v)
            sum[r][d].v[v] = (Ints)_mm512_dpbusd_epi32((__m512i)sum[r][d].v[v], (__m512i)bytes.v[v], digits);
        }
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < n; ++v) {
        const Floats high = __builtin_convertvector(sum[r][2].v[v], Floats);
        const Floats low = __builtin_convertvector((sum[r][1].v[v] << 8) + sum[r][0].v[v], Floats);
        float* to = sums + r * kColumns + v * kLanes;
        store(to, end(rows[r * stride], v, load<Floats>(to), high * 0x1p16f + low));
      }
  }
};

// As `tile`, of blocks of a file in integers: whole groups from step k on.
template <Kind kind, int R>
void block_tile(const Digits* x, int64_t stride, const uint32_t* words, int64_t k, int64_t steps, float* sums, Ahead& ahead) {
  constexpr int n = R < 4 ? kColumns / kLanes : 1, kStrips = kColumns / kLanes / n;
  for (int strip = 0; strip < kStrips; ++strip, words += n * kLanes, sums += n * kLanes)
    for (int64_t g = 0; g < steps; g += kGroup) {
      Integers<R, n> to{x + g / 32, stride, sums, ahead};
      unpack<kind>(Columns<n>{words}, k + g, to);
    }
}
#else
constexpr decltype(Target::digitise) digitise = nullptr;

// As `tile`, of blocks of a file: whole groups from step k on. Beside a strip's sums its scales and offsets are in registers; more
// columns than sums need to follow one another without a pause were slower.
template <Kind kind, int R>
void block_tile(const float* x, int64_t stride, const uint32_t* words, int64_t k, int64_t steps, float* sums, Ahead& ahead) {
  constexpr int n = vectors(R + 2, kRegisters < 32 ? 14 : 18), kStrips = kColumns / kLanes / n;
  for (int strip = 0; strip < kStrips; ++strip, words += n * kLanes, sums += n * kLanes) {
    Floats sum[R][n];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < n; ++v) sum[r][v] = load<Floats>(sums + r * kColumns + v * kLanes);
    for (int64_t g = 0; g < steps; g += kGroup) {
      auto to = as_floats<n>([&](int step, Strip<Floats, n> w) __attribute__((always_inline)) {
        __builtin_prefetch(ahead.next, 0, 2);
        ahead.next += ahead.step / kStrips;
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < n; ++v) sum[r][v] += x[r * stride + g + step] * w.v[v];
      });
      unpack<kind>(Columns<n>{words}, k + g, to);
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < n; ++v) store(sums + r * kColumns + v * kLanes, sum[r][v]);
  }
}
#endif

// The first columns of a panel, whole groups from step k on, as float32 [steps, kColumns].
template <Kind kind> void unpack_chunk(const uint32_t* words, int64_t k, int64_t steps, float* out, int columns) {
  for (int c = 0; c < columns; c += kLanes)
    for (int64_t g = 0; g < steps; g += kGroup) {
      auto to = as_floats<1>([&](int step, Strip<Floats, 1> w) { store(out + (g + step) * kColumns + c, w.v[0]); });
      unpack<kind>(Columns<1>{words + c}, k + g, to);
    }
}

// What is done with weights of each kind; only blocks of a file have tiles of their own, by their rows.
struct Unpacking {
  decltype(&unpack_chunk<kQ8_0>) chunk;
  decltype(&block_tile<kQ8_0, 1>) tiles[8];
};
template <Kind kind> constexpr Unpacking blocks_of() {
  return {unpack_chunk<kind>,
          {block_tile<kind, 1>, block_tile<kind, 2>, block_tile<kind, 3>, block_tile<kind, 4>, block_tile<kind, min(5, kRows)>,
           block_tile<kind, min(6, kRows)>, block_tile<kind, min(7, kRows)>, block_tile<kind, min(8, kRows)>}};
}
constexpr Unpacking kUnpackings[] = {
    {}, {unpack_chunk<kBFloat16>}, {unpack_chunk<kInt8>}, blocks_of<kQ8_0>(), blocks_of<kQ4_0>(), blocks_of<kQ5_0>(),
    blocks_of<kQ4_K>(), blocks_of<kQ5_K>(), blocks_of<kQ6_K>(), blocks_of<kQ4_1>(), blocks_of<kQ5_1>()};

}  // namespace
}  // namespace specbeam
