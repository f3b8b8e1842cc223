// What is computed of one row over the vocabulary: of logits, of probabilities, and of random numbers; logits.cc says how.
#pragma once
#include <cstdint>

namespace specbeam {

struct Standard {
  float temperature;
  int64_t top_k;  // 0: all
  float top_p;
};

struct Logits {
  // log Σ e^x; not finite where the row is of no distribution.
  float (*log_normalizer)(const float* row, int64_t n);
  // The distribution that is sampled from, see decoding/sampling.py.
  void (*standardize)(const float* row, int64_t n, const Standard&, float* probs);
  // Σ min(p / lenience, q)
  float (*overlap)(const float* p, const float* q, int64_t n, float lenience);
  // max(scale p - q, 0), and the sum of it.
  float (*residual)(const float* p, const float* q, int64_t n, float scale, float* out);
  // The winner of a race of blocks of kRace weights, then of the weights of one block; times has one for each of both.
  int32_t (*draw)(const float* weights, const float* times, int64_t n);
  // The winner of a race of all weights, whose times are those of the words of threefry's key.
  int32_t (*draw_coupled)(const float* weights, int64_t n, uint32_t key, uint32_t more);
  // Exponential times of random words.
  void (*times)(const uint32_t* words, int64_t n, float* out);
  int32_t (*argmax)(const float* row, int64_t n);
};

constexpr int64_t kRace = 128;  // as _LANES in decoding/sampling.py

}  // namespace specbeam
