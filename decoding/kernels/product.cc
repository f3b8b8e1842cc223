// y = x W for few or many rows of x [M, K] and a packed, resident W [K, N].
//
// W lies in panels of 48 columns. A panel's words are read once and in order, 128 steps of K at a time, and multiplied with all
// rows, a tile of up to kRows rows by a strip of columns at a time, whose sums stay in registers. float32 is used where it
// lies; bfloat16 and blocks of a file (blocks.h) are unpacked in registers for few rows, and for many into float32 first, a chunk
// of 24 KB that stays in the first cache. Every sum runs over K in order, one fused multiply-add after the other, whatever
// the number of rows: between chunks it is stored and loaded again, which changes no bit. So a row's result does not depend on
// the rows beside it.
//
// The file is compiled once for each instruction set (build.py), as target TARGET; the compiler's own vectors make one source
// of it. Nothing here may come from the standard library's templates: the linker would keep one target's copy for all.
#include "product.h"

#include "blocks.h"
#include "ends.h"
#include "tiles.h"

namespace specbeam {
namespace {

constexpr int kSums = kRegisters * 3 / 4;  // registers that hold a tile's sums
constexpr int64_t kChunk = 128;  // steps of K
constexpr int64_t kBlockRows = 128;  // rows whose sums of a panel are kept at once
#if defined(__AVX512VNNI__)
constexpr uint32_t kZero = 128;  // as a byte of x
#else
constexpr uint32_t kZero = 0;
#endif
// Words of a panel that are read before the next panel's turn, where several are read side by side: a processor fetches more
// at once where it is read in several places. Up to so many rows that is faster; more are bound by arithmetic.
constexpr int64_t kTurn = 8;
constexpr int64_t kFloatsBySide = kBytes == 64 ? 4 : 1, kBytesBySide = kZero ? 4 : 1;
// Words fetched into the second cache and, where that was faster, into the first.
constexpr int64_t kAhead = (kBytes == 64 ? 64 : kChunk) * kColumns, kNear = kBytes == 64 ? 6 * kColumns : 0;

// What a tile reads: words of a panel, each with the weights of kSteps steps of K. kSpare of the registers for sums hold what
// words become on their way.
constexpr int kFewRegisters = kRegisters < 32 ? 3 : 0;
struct Singles {
  using Sums = Floats;
  using Number = float;
  static constexpr int kSteps = 1, kSpare = 0;
  static Floats weights(Words word, int) { return (Floats)word; }
  static void add(Floats& sum, float x, Floats w) { sum += x * w; }  // fused: -ffp-contract=fast
};
struct Pairs : Singles {  // bfloat16
  static constexpr int kSteps = 2, kSpare = kFewRegisters;
  static Floats weights(Words word, int step) { return (Floats)(step ? word & 0xffff0000 : word << 16); }
};
#if defined(__AVX2__)
// int8, whose four steps are one: four bytes of x, kZero more than they are worth, and four signed ones of the weight.
struct Quads {
  using Sums = Ints;
  using Number = int32_t;
  static constexpr int kSteps = 1, kSpare = kFewRegisters;
  static Ints weights(Words word, int) { return (Ints)word; }
#if defined(__AVX512VNNI__)
  static void add(Ints& sum, int32_t x, Ints w) {
    sum = (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)w);
  }
#else
  // Bytes are multiplied as |x| (w sign x), neither factor being -128: two products fit 16 bits.
#if defined(__AVX512F__)
  static void add(Ints& sum, int32_t four, Ints w) {
    const __m512i x = _mm512_set1_epi32(four), zero = _mm512_setzero_si512();
    const __m512i turned = _mm512_mask_sub_epi8((__m512i)w, _mm512_movepi8_mask(x), zero, (__m512i)w);
    sum += (Ints)_mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(x), turned), _mm512_set1_epi16(1));
  }
#else
  static void add(Ints& sum, int32_t four, Ints w) {
    const __m256i x = _mm256_set1_epi32(four), turned = _mm256_sign_epi8((__m256i)w, x);
    sum += (Ints)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(x), turned), _mm256_set1_epi16(1));
  }
#endif
#endif
};
#endif

// Of a panel that has `left` words of a column from w on; behind one of several side by side lies what is read already.
inline Ahead words_ahead(const uint32_t* w, int64_t left, const Weight& weight, int64_t panels) {
  if (left * kColumns <= kAhead) w += (panels - 1) * weight.panel_size;
  return {reinterpret_cast<const char*>(w + kAhead), kColumns * 4, kNear ? kColumns * 4 : 0};
}

// sums [R, kColumns] += x [R, steps] w [steps, kColumns], where words of a column and rows of sums lie kColumns apart: in
// strips of as many columns as have room for their sums.
template <class Read, int R>
void tile(const typename Read::Number* x, int64_t stride, const uint32_t* w, int64_t steps, typename Read::Number* sums,
          Ahead& ahead) {
  using Sums = typename Read::Sums;
  constexpr int kVectors = vectors(R, kSums - Read::kSpare), kStrip = kVectors * kLanes, kStrips = kColumns / kStrip;
  for (int strip = 0; strip < kStrips; ++strip, w += kStrip, sums += kStrip, ahead.near = 0) {
    Sums sum[R][kVectors];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] = load<Sums>(sums + r * kColumns + v * kLanes);
    const char* next = ahead.next;
    const int64_t step = ahead.step / kStrips, near = ahead.near;
    const uint32_t* at = w;
    for (int64_t k = 0; k < steps; k += Read::kSteps, at += kColumns, next += step) {
      for (int64_t byte = 0; byte < step; byte += 64) __builtin_prefetch(next + byte, 0, 2);
      for (int64_t byte = 0; byte < near; byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(at + kNear) + byte, 0, 3);
      Words words[kVectors];
      for (int v = 0; v < kVectors; ++v) words[v] = load<Words>(at + v * kLanes);
      for (int i = 0; i < Read::kSteps; ++i) {
        Sums column[kVectors];
        for (int v = 0; v < kVectors; ++v) column[v] = Read::weights(words[v], i);
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < kVectors; ++v) Read::add(sum[r][v], x[r * stride + k + i], column[v]);
      }
    }
    ahead.next = next;
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kVectors; ++v) store(sums + r * kColumns + v * kLanes, sum[r][v]);
  }
}

// sums [rows, kColumns] += x [rows, steps] w [steps, kColumns], in tiles of nearly equal numbers of rows, which share out what
// is to be fetched.
template <class Read>
void accumulate(const typename Read::Number* x, int64_t stride, int64_t rows, const uint32_t* w, int64_t steps,
                typename Read::Number* sums, Ahead ahead) {
  constexpr decltype(&tile<Read, 1>) tiles[] = {
      tile<Read, 1>, tile<Read, 2>, tile<Read, 3>, tile<Read, 4>,
      tile<Read, min(5, kRows)>, tile<Read, min(6, kRows)>, tile<Read, min(7, kRows)>, tile<Read, min(8, kRows)>};
  const int64_t count = (rows + kRows - 1) / kRows;
  ahead.step /= count;
  for (int64_t i = 0, row = 0; i < count; ++i) {
    const int64_t size = rows / count + (i < rows % count);
    tiles[size - 1](x + row * stride, stride, w, steps, sums + row * kColumns, ahead);
    row += size;
  }
}

#if defined(__AVX512VNNI__) && (__clang_major__ >= 12 || (!defined(__clang__) && __GNUC__ >= 11))
// The tiles of AMX, a panel's words as they lie: 16 words of a column by 16 columns, times 16 rows of x.
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
#elif defined(__AVX2__)
constexpr auto accumulate_tiles = accumulate<Quads>;  // a processor, or a compiler, without them
#endif

// y's columns of `panels` panels from `panel` on, which are read side by side.
void product_floats(const Call& call, int64_t panel, int64_t panels, int64_t first, int64_t rows) {
  const Weight& weight = call.weight;
  const int64_t inputs = weight.inputs, column = (panel - call.first_panel) * kColumns;
  const bool singles = weight.kind == kFloat32, pairs = weight.kind == kBFloat16 && rows <= kFewRows && inputs % 2 == 0;
  const int64_t span = panels > 1 && singles ? kTurn : panels > 1 && pairs ? kTurn * Pairs::kSteps : kChunk;
  alignas(64) float chunk[kChunk * kColumns];
  alignas(64) float sums[kBlockRows * kColumns];
  for (; rows > 0; first += kBlockRows, rows -= kBlockRows) {
    const int64_t block = min(rows, kBlockRows);
    memset(sums, 0, panels * block * kColumns * sizeof(float));
    for (int64_t k = 0; k < inputs; k += span) {
      const int64_t steps = min(span, inputs - k);
      const float* x = call.x + first * inputs + k;
      float* of_panel = sums;
      for (int64_t p = panel; p < panel + panels; ++p, of_panel += block * kColumns) {
        const uint32_t* words = weight.panel(p);
        if (singles) {
          const uint32_t* w = words + k * kColumns;
          accumulate<Singles>(x, inputs, block, w, steps, of_panel, words_ahead(w, inputs - k, weight, panels));
        } else if (pairs) {
          const uint32_t* w = words + k / 2 * kColumns;
          accumulate<Pairs>(x, inputs, block, w, steps, of_panel, words_ahead(w, (inputs - k) / 2, weight, panels));
        } else {
          const int64_t step = weight.panel_size * 4 / inputs;
          Ahead ahead{reinterpret_cast<const char*>(words) + (k + kBlocksAhead) * step, step, 0};
          const Unpacking& unpacking = kUnpackings[weight.kind];
#if !defined(__AVX512VNNI__)
          if (block <= kRows && steps % kGroup == 0 && unpacking.tiles[0]) {
            unpacking.tiles[block - 1](x, inputs, words, k, steps, of_panel, ahead);
            continue;
          }
#endif
          unpacking.chunk(words, k, steps, chunk, kColumns);
          accumulate<Singles>(x, inputs, block, reinterpret_cast<const uint32_t*>(chunk), steps, of_panel, ahead);
        }
      }
    }
    for (int64_t r = 0; r < block; ++r)
      for (int64_t p = 0; p < panels; ++p)
        finish(call, first + r, column + p * kColumns, sums + (p * block + r) * kColumns);
  }
}

#if defined(__AVX2__)
void product_bytes(const Call& call, int64_t panel, int64_t panels, int64_t first, int64_t rows) {
  const Weight& weight = call.weight;
  const int64_t inputs = quads(weight.inputs), column = (panel - call.first_panel) * kColumns;
  // What is read again for other rows stays in the first cache.
  const int64_t span = panels > 1 ? kTurn : rows > (kBytes == 64 ? kTileRows : kRows) ? 128 : inputs;
  const auto add = call.tiles ? accumulate_tiles : accumulate<Quads>;
  alignas(64) int32_t sums[kBlockRows * kColumns];
  for (; rows > 0; first += kBlockRows, rows -= kBlockRows) {
    const int64_t block = min(rows, kBlockRows);
    memset(sums, 0, (panels * block + kTileRows - 1) / kTileRows * kTileRows * kColumns * sizeof(int32_t));
    for (int64_t k = 0; k < inputs; k += span)
      for (int64_t p = 0; p < panels; ++p) {
        const uint32_t* w = weight.panel(panel + p) + (kInt8Head + k) * kColumns;
        add(call.quantised + first * inputs + k, inputs, block, w, min(span, inputs - k), sums + p * block * kColumns,
            words_ahead(w, inputs - k, weight, panels));
      }
    for (int64_t r = 0; r < block; ++r)
      for (int64_t p = 0; p < panels; ++p) {
        if (call.units[first + r] != call.units[first + r]) {
          product_floats(call, panel + p, 1, first + r, 1);
          continue;
        }
        const uint32_t* words = weight.panel(panel + p);
        alignas(64) float scaled[kColumns];
        for (int64_t c = 0; c < kColumns; ++c) {
          const float scale = load<float>(words + c) * call.units[first + r];
          const int32_t sum = sums[(p * block + r) * kColumns + c];
          scaled[c] = scale * static_cast<int32_t>(sum - kZero * words[kColumns + c]);
        }
        finish(call, first + r, column + p * kColumns, scaled);
      }
  }
}
#endif

#if defined(__AVX512VNNI__)
// Of blocks of a file, one panel, whose words stay in the second cache for the rows of the next tile.
void product_blocks(const Call& call, int64_t panel, int64_t, int64_t first, int64_t rows) {
  const Weight& weight = call.weight;
  const int64_t inputs = blocks(weight.inputs) * 32, stride = blocks(weight.inputs), count = (rows + kRows - 1) / kRows;
  const uint32_t* words = weight.panel(panel);
  const int64_t step = weight.panel_size * 4 / inputs;
  Ahead ahead{reinterpret_cast<const char*>(words) + kBlocksAhead * step, step, 0};
  for (int64_t i = 0; i < count; ++i, ahead.step = 0) {
    const int64_t size = rows / count + (i < rows % count);
    const auto tile = kUnpackings[weight.kind].tiles[size - 1];
    alignas(64) float sums[kRows * kColumns] = {};
    for (int64_t k = 0; k < inputs; k += kChunk)  // for all strips, which then read what has been fetched
      tile(call.digits + first * stride + k / 32, stride, words, k, min(kChunk, inputs - k), sums, ahead);
    for (int64_t r = 0; r < size; ++r, ++first)
      if (call.units[first] != call.units[first])
        product_floats(call, panel, 1, first, 1);
      else
        finish(call, first, (panel - call.first_panel) * kColumns, sums + r * kColumns);
  }
}
#endif

void product(const Call& call, int64_t panel, int64_t panels, int64_t first, int64_t rows) {
#if defined(__AVX512VNNI__)
  const auto multiply = call.digits ? product_blocks : call.quantised ? product_bytes : product_floats;
#elif defined(__AVX2__)
  const auto multiply = call.quantised ? product_bytes : product_floats;
#else
  const auto multiply = product_floats;
#endif
  const int64_t step = rows <= (call.quantised ? kBytesBySide : kFloatsBySide) ? panels : 1;
  for (int64_t p = 0; p < panels; p += step) multiply(call, panel + p, step, first, rows);
}

// x / unit + kZero as bytes, unit = max |x| / 127.
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
    bytes[k] = static_cast<uint8_t>(load<uint32_t>(&rounded) ^ kZero);
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
      kUnpackings[weight.kind].chunk(words, k, steps, chunk, kLanes);
    for (int64_t i = 0; i < steps; ++i) out[k + i] = w[i * kColumns + lane % kLanes];
  }
}

}  // namespace

#if defined(__AVX512VNNI__)  // which attention and logits have no use for: they are AVX-512's
#define OTHERS avx512
#else
#define OTHERS TARGET
#endif
#define ATTEND_(target) attend_##target
#define ATTEND(target) ATTEND_(target)
void ATTEND(OTHERS)(const Attention&, int64_t task, float* scratch);  // attention.cc
#define LOGITS_(target) logits_##target
#define LOGITS(target) LOGITS_(target)
extern const Logits LOGITS(OTHERS);  // logits.cc

#define NAME(target) NAME_(target)
#define NAME_(target) #target
#if defined(__AVX2__)
constexpr bool kIntegerSums = true;
#else
constexpr bool kIntegerSums = false;
#endif
#define COMMON product, normalise, quantise, digitise, column, ATTEND(OTHERS), &LOGITS(OTHERS)
extern const Target TARGET = {NAME(TARGET), kIntegerSums, false, COMMON};
#if defined(__AVX512VNNI__)
#if defined(TILES)
extern const Target avx512_amx = {"avx512_amx", true, true, COMMON, begin_tiles, end_tiles};
#else
extern const Target avx512_amx = {"avx512_amx", true, false, COMMON};  // of a compiler that does not know it
#endif
#endif

}  // namespace specbeam
