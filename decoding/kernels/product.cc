// y = x W for few or many rows of x [M, K] and a packed, resident W [K, N].
//
// W lies in panels of 48 columns. A panel's words are read once and in order: 128 steps of K at a time are turned into
// float32 (a chunk of 24 KB, which stays in the first cache; float32 itself, and bfloat16 for few rows, are used where they
// lie), then multiplied with all rows, a tile of up to kRows rows by three vectors of columns at a time, whose sums stay in
// registers. Every sum runs over K in order, one fused multiply-add after the other, whatever the number of rows: between
// chunks it is stored and loaded again, which changes no bit. So a row's result does not depend on the rows beside it.
//
// The file is compiled once for each instruction set (build.py), as target TARGET; the compiler's own vectors make one source
// of it. Nothing here may come from the standard library's templates: the linker would keep one target's copy for all.
#include "product.h"

#include <cstring>

#include "ends.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace specbeam {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 8;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int kBytes = 32, kRows = 4;  // 12 of 16
#elif defined(__ARM_NEON)
constexpr int kBytes = 16, kRows = 8;  // 24 of 32
#else
constexpr int kBytes = 16, kRows = 4;
#endif
typedef float Floats __attribute__((vector_size(kBytes)));
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef uint32_t Words __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / 4, kVectors = 3, kStrip = kVectors * kLanes;
constexpr int64_t kChunk = 128;     // steps of K
constexpr int64_t kNear = 6 * kColumns, kAhead = 64 * kColumns;  // words fetched into the first and the second cache
constexpr int64_t kBlockRows = 128;  // rows whose sums of a panel are kept at once
static_assert(kColumns % kStrip == 0, "strips tile a panel");

#if defined(__AVX512F__)
constexpr Floats kCount = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#endif

template <class V, class T> V load(const T* from) { V v; memcpy(&v, from, sizeof v); return v; }
template <class V, class T> void store(T* to, V v) { memcpy(to, &v, sizeof v); }
template <class T> constexpr T min(T a, T b) { return a < b ? a : b; }

// What a tile reads: words of a panel, each with the weights of kSteps steps of K.
struct Singles {
  using Sums = Floats;
  using Number = float;
  static constexpr int kSteps = 1;
  static Floats weights(Words word, int) { return (Floats)word; }
  static void add(Floats& sum, float x, Floats w) { sum += x * w; }  // fused: -ffp-contract=fast
};
struct Pairs : Singles {  // bfloat16
  static constexpr int kSteps = 2;
  static Floats weights(Words word, int step) { return (Floats)(step ? word & 0xffff0000 : word << 16); }
};
#if defined(__AVX512VNNI__)
struct Quads {  // int8, whose four steps are one: four unsigned bytes of x, four signed ones of the weight
  using Sums = Ints;
  using Number = int32_t;
  static constexpr int kSteps = 1;
  static Ints weights(Words word, int) { return (Ints)word; }
  static void add(Ints& sum, int32_t x, Ints w) {
    sum = (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)w);
  }
};
#endif

// What to fetch while a tile is computed: `step` bytes for each word of a column. A processor's own prefetching stops too
// near: few rows would wait for memory, then compute, instead of both at once.
struct Ahead { const char* next; int64_t step; };

// sums [R, kStrip] += x [R, steps] w [steps, kStrip], where words of a column and rows of sums lie kColumns apart.
template <class Read, int R>
void tile(const typename Read::Number* x, int64_t stride, const uint32_t* w, int64_t steps, typename Read::Number* sums,
          Ahead ahead) {
  using Sums = typename Read::Sums;
  Sums sum[R][kVectors];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVectors; ++v) sum[r][v] = load<Sums>(sums + r * kColumns + v * kLanes);
  for (int64_t k = 0; k < steps; k += Read::kSteps, w += kColumns) {
    for (int64_t byte = 0; byte < ahead.step; byte += 64) {
      __builtin_prefetch(ahead.next + byte, 0, 2);
      __builtin_prefetch(reinterpret_cast<const char*>(w + kNear) + byte, 0, 3);
    }
    ahead.next += ahead.step;
    Words words[kVectors];
    for (int v = 0; v < kVectors; ++v) words[v] = load<Words>(w + v * kLanes);
    for (int step = 0; step < Read::kSteps; ++step) {
      Sums column[kVectors];
      for (int v = 0; v < kVectors; ++v) column[v] = Read::weights(words[v], step);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < kVectors; ++v) Read::add(sum[r][v], x[r * stride + k + step], column[v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVectors; ++v) store(sums + r * kColumns + v * kLanes, sum[r][v]);
}

// sums [rows, kColumns] += x [rows, steps] w [steps, kColumns], in tiles of nearly equal numbers of rows.
template <class Read>
void accumulate(const typename Read::Number* x, int64_t stride, int64_t rows, const uint32_t* w, int64_t steps,
                typename Read::Number* sums, Ahead ahead) {
  constexpr decltype(&tile<Read, 1>) tiles[] = {
      tile<Read, 1>, tile<Read, 2>, tile<Read, 3>, tile<Read, 4>,
      tile<Read, min(5, kRows)>, tile<Read, min(6, kRows)>, tile<Read, min(7, kRows)>, tile<Read, min(8, kRows)>};
  const int64_t count = (rows + kRows - 1) / kRows;
  for (int64_t strip = 0; strip < kColumns; strip += kStrip)
    for (int64_t i = 0, row = 0; i < count; ++i) {
      const int64_t size = rows / count + (i < rows % count);
      tiles[size - 1](x + row * stride, stride, w + strip, steps, sums + row * kColumns + strip, ahead);
      ahead.step = 0;
      row += size;
    }
}

#if defined(__AVX512VNNI__)
// The tiles of AMX, a panel's words as they lie: 16 words of a column by 16 columns, times 16 rows of x.
#if __clang_major__ >= 12 || (!defined(__clang__) && __GNUC__ >= 11)
#define TILES __attribute__((target("amx-tile,amx-int8")))
constexpr int64_t kTileWords = 16;

// What the next instructions read is in memory: GCC does not know that they read it.
[[maybe_unused]] inline void written() { __asm__ volatile("" ::: "memory"); }

TILES void begin_tiles() {
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shapes{};
  shapes.palette = 1;
  for (int i = 0; i < 7; ++i) shapes.bytes[i] = 64, shapes.rows[i] = kTileRows;
  written();
  _tile_loadconfig(&shapes);
}
TILES void end_tiles() { _tile_release(); }

// As `accumulate`, of whole tiles of rows.
TILES void accumulate_tiles(const int32_t* x, int64_t stride, int64_t rows, const uint32_t* w, int64_t steps, int32_t* sums,
                            Ahead ahead) {
  constexpr int64_t line = kColumns * 4;
  written();
  for (int64_t row = 0; row < rows; row += kTileRows, x += kTileRows * stride, sums += kTileRows * kColumns, ahead.step = 0) {
    _tile_loadd(0, sums, line);
    _tile_loadd(1, sums + 16, line);
    _tile_loadd(2, sums + 32, line);
    for (int64_t k = 0; k < steps; k += kTileWords) {
      const uint32_t* at = w + k * kColumns;
      for (int64_t byte = 0; byte < kTileWords * ahead.step; byte += 64) __builtin_prefetch(ahead.next + byte, 0, 2);
      ahead.next += kTileWords * ahead.step;
      _tile_loadd(3, x + k, stride * 4);
      _tile_loadd(4, at, line);
      _tile_dpbusd(0, 3, 4);
      _tile_loadd(5, at + 16, line);
      _tile_dpbusd(1, 3, 5);
      _tile_loadd(6, at + 32, line);
      _tile_dpbusd(2, 3, 6);
    }
    _tile_stored(0, sums, line);
    _tile_stored(1, sums + 16, line);
    _tile_stored(2, sums + 32, line);
  }
}
#else
constexpr auto accumulate_tiles = accumulate<Quads>;
#endif
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

void product_floats(const Call& call, int64_t panel, int64_t first, int64_t rows) {
  const Weight& weight = call.weight;
  const uint32_t* words = weight.panel(panel);
  const int64_t inputs = weight.inputs, column = (panel - call.first_panel) * kColumns;
  alignas(64) float chunk[kChunk * kColumns];
  alignas(64) float sums[kBlockRows * kColumns];
  for (; rows > 0; first += kBlockRows, rows -= kBlockRows) {
    const int64_t block = min(rows, kBlockRows);
    memset(sums, 0, block * kColumns * sizeof(float));
    for (int64_t k = 0; k < inputs; k += kChunk) {
      const int64_t steps = min(kChunk, inputs - k);
      const float* x = call.x + first * inputs + k;
      if (weight.kind == kFloat32) {
        const uint32_t* w = words + k * kColumns;
        accumulate<Singles>(x, inputs, block, w, steps, sums, {reinterpret_cast<const char*>(w + kAhead), kColumns * 4});
      } else if (weight.kind == kBFloat16 && block <= kRows && inputs % 2 == 0) {
        const uint32_t* w = words + k / 2 * kColumns;
        accumulate<Pairs>(x, inputs, block, w, steps, sums, {reinterpret_cast<const char*>(w + kAhead), kColumns * 4});
      } else {
        for (int64_t g = 0; g < steps; g += kGroup)
          for (int64_t c = 0; c < kColumns; c += kLanes)
            kUnpack[weight.kind]({words + c, chunk + g * kColumns + c}, k + g);
        const int64_t step = weight.panel_size * 4 / inputs;
        const Ahead ahead{reinterpret_cast<const char*>(words) + (k + kChunk) * step, step};
        accumulate<Singles>(x, inputs, block, reinterpret_cast<const uint32_t*>(chunk), steps, sums, ahead);
      }
    }
    for (int64_t r = 0; r < block; ++r) finish(call, first + r, column, sums + r * kColumns);
  }
}

#if defined(__AVX512VNNI__)
void product_bytes(const Call& call, int64_t panel, int64_t first, int64_t rows) {
  const Weight& weight = call.weight;
  const uint32_t* words = weight.panel(panel);
  const int64_t inputs = quads(weight.inputs), column = (panel - call.first_panel) * kColumns;
  const int64_t span = rows > kTileRows ? 128 : inputs;  // what is read again for other rows stays in the first cache
  alignas(64) int32_t sums[kBlockRows * kColumns];
  for (; rows > 0; first += kBlockRows, rows -= kBlockRows) {
    const int64_t block = min(rows, kBlockRows);
    memset(sums, 0, (block + kTileRows - 1) / kTileRows * kTileRows * kColumns * sizeof(int32_t));
    for (int64_t k = 0; k < inputs; k += span) {
      const uint32_t* w = words + (kInt8Head + k) * kColumns;
      const Ahead ahead{reinterpret_cast<const char*>(w + kAhead), kColumns * 4};
      const auto add = call.tiles ? accumulate_tiles : accumulate<Quads>;
      add(call.quantised + first * inputs + k, inputs, block, w, min(span, inputs - k), sums, ahead);
    }
    for (int64_t r = 0; r < block; ++r) {
      if (call.units[first + r] != call.units[first + r]) {
        product_floats(call, panel, first + r, 1);
        continue;
      }
      alignas(64) float scaled[kColumns];
      for (int64_t c = 0; c < kColumns; ++c) {
        const float scale = load<float>(words + c) * call.units[first + r];
        scaled[c] = scale * static_cast<int32_t>(sums[r * kColumns + c] - 128u * words[kColumns + c]);
      }
      finish(call, first + r, column, scaled);
    }
  }
}
#endif

void product(const Call& call, int64_t panel, int64_t first, int64_t rows) {
#if defined(__AVX512VNNI__)
  if (call.quantised) return product_bytes(call, panel, first, rows);
#endif
  product_floats(call, panel, first, rows);
}

// x / unit + 128 as bytes, unit = max |x| / 127.
void quantise(const float* x, int64_t inputs, int32_t* quantised, float* unit) {
  int32_t largest = 0;  // as bits, which order magnitudes as integers do, infinity and NaN last
  for (int64_t k = 0; k < inputs; ++k) {
    const int32_t bits = load<int32_t>(x + k) & 0x7fffffff;
    largest = largest < bits ? bits : largest;
  }
  const float top = load<float>(&largest);
  const bool vanishing = top > 0 && top < 1e-30f;
  *unit = largest >= 0x7f800000 || vanishing ? __builtin_nanf("") : top / 127;
  const float inverse = top > 0 && *unit == *unit ? 127 / top : 0;
  uint8_t* bytes = reinterpret_cast<uint8_t*>(quantised);
  memset(bytes + inputs, 0, quads(inputs) * 4 - inputs);
  for (int64_t k = 0; k < inputs; ++k) {
    const float rounded = x[k] * inverse + 0x1.8p23f;  // the integer nearest to x / unit, in the low bits
    bytes[k] = static_cast<uint8_t>(load<uint32_t>(&rounded)) ^ 128;
  }
}

void column(const Weight& weight, int64_t column, float* out) {
  const int64_t lane = column % kColumns;
  const uint32_t* words = weight.panel(column / kColumns) + lane / kLanes * kLanes;
  alignas(64) float chunk[kChunk * kColumns];
  for (int64_t k = 0; k < weight.inputs; k += kChunk) {
    const int64_t steps = min(kChunk, weight.inputs - k);
    const float* w = chunk;
    if (weight.kind == kFloat32)
      w = reinterpret_cast<const float*>(words) + k * kColumns;
    else
      for (int64_t g = 0; g < steps; g += kGroup) kUnpack[weight.kind]({words, chunk + g * kColumns}, k + g);
    for (int64_t i = 0; i < steps; ++i) out[k + i] = w[i * kColumns + lane % kLanes];
  }
}

}  // namespace

#define ATTEND_(target) attend_##target
#define ATTEND(target) ATTEND_(target)
void ATTEND(TARGET)(const Attention&, int64_t task, float* scratch);  // attention.cc
#define LOGITS_(target) logits_##target
#define LOGITS(target) LOGITS_(target)
extern const Logits LOGITS(TARGET);  // logits.cc

#define NAME(target) NAME_(target)
#define NAME_(target) #target
#if defined(__AVX512VNNI__)
constexpr bool kIntegerSums = true;
#else
constexpr bool kIntegerSums = false;
#endif
#define COMMON product, normalise, quantise, column, ATTEND(TARGET), &LOGITS(TARGET)
extern const Target TARGET = {NAME(TARGET), kIntegerSums, false, COMMON};
#if defined(__AVX512VNNI__)
#if defined(TILES)
extern const Target avx512_amx = {"avx512_amx", true, true, COMMON, begin_tiles, end_tiles};
#else
extern const Target avx512_amx = {"avx512_amx", true, false, COMMON};  // of a compiler that does not know it
#endif
#endif

}  // namespace specbeam
