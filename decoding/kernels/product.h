// What dispatch.cc knows of a product: one Target per instruction set, each from product.cc compiled with other flags.
#pragma once
#include <cstdint>

namespace specbeam {

constexpr int64_t kColumns = 48;  // of a panel: three vectors of 16 floats

// How a column's weights lie in 32-bit words; packing.py names them in this order.
enum Kind : int32_t { kFloat32, kBFloat16, kInt8, kQ8_0, kQ4_0, kQ5_0, kQ4_K, kQ5_K, kQ6_K, kQ4_1, kQ5_1 };

// A packed weight: panels of kColumns columns, each uint32[words][kColumns].
struct Weight {
  const uint32_t* words;
  int64_t panel_size;  // in words
  int64_t inputs, outputs;
  Kind kind;
  const uint32_t* panel(int64_t i) const { return words + i * panel_size; }
};

// 32 neighbouring features of a row as integers of 23 bits and a sign times a power of two, each integer as three signed digits to
// the base of 256.
struct alignas(64) Digits {
  int32_t digits[3][8];   // four features to a word; the lowest digits come first
  int32_t totals[2][3];   // of the digits of 16 features
  float unit, total;      // what an integer's 1 is worth, and the sum of all 32 features
};

enum Activation : int32_t { kIdentity, kRelu, kGelu, kGeluNew, kSilu };  // __init__.py names them in this order

struct Norm {
  const float *scale, *shift;  // [inputs]; without a scale there is no norm, without a shift it is RMS
  float epsilon;
};

struct Call {
  Weight weight;
  const float* x;       // [rows, inputs]
  float* y;             // [rows, width]
  int64_t width;        // columns of y
  int64_t first_panel;  // the one that has y's first columns
  // What becomes of a sum: bias [width] is added, then it is activated, multiplied by what y holds, added to residual
  // [rows, width].
  const float *bias, *residual;
  Activation activation;
  bool multiply;
  // Where int8 is summed in int32, else null: rows as bytes, four to a word (product.cc), and what a unit of each is worth;
  // a row that bytes cannot hold (NaN, infinite or vanishing) is worth NaN and is summed in float32.
  const int32_t* quantised;
  const float* units;
  const Digits* digits;  // where blocks of a file are summed in integers, else null: blocks(inputs) a row; units as above, else 1
  bool tiles;  // sums of bytes are those of the processor's tiles: the same, sooner where rows are more than a few
};

// A row of int8 activations has this many words: whole steps of a tile. Rows that are not there may be read up to a tile's end.
constexpr int64_t quads(int64_t inputs) { return (inputs + 63) / 64 * 16; }
constexpr int64_t kTileRows = 16;

// So many Digits has a row: those of whole groups of 64 features.
constexpr int64_t blocks(int64_t inputs) { return (inputs + 63) / 64 * 2; }

// What takes little longer than one row does: these share what is read, and their bytes take no longer without tiles.
constexpr int64_t kFewRows = 8;

struct Attention;
struct Logits;

struct Target {
  const char* name;
  bool integer_sums;
  bool has_tiles;
  // y[first : first + rows, columns of the panels] of a call; of several panels at most kFewRows rows.
  void (*product)(const Call&, int64_t panel, int64_t panels, int64_t first, int64_t rows);
  void (*normalise)(const float* x, int64_t inputs, const Norm&, float* out);
  void (*quantise)(const float* x, int64_t inputs, int32_t* quantised, float* unit);
  // Null where integers have no use. `worth` is NaN where the row is not finite or nearly vanishes in places, else 1.
  void (*digitise)(const float* x, int64_t inputs, Digits* digits, float* worth);
  // One column of the weight as float32[inputs].
  void (*column)(const Weight&, int64_t column, float* out);
  // One row's heads that share the g-th of G heads of keys, task = row G + g; see attention.h.
  void (*attend)(const Attention&, int64_t task, float* scratch);
  const Logits* logits;  // see logits.h
  // Where it has tiles: shapes and takes down those of the calling thread.
  void (*begin_tiles)();
  void (*end_tiles)();
};

}  // namespace specbeam
