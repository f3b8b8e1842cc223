// What dispatch.cc knows of attention; attention.cc says how it is computed.
#pragma once
#include <cstdint>

namespace specbeam {

constexpr int64_t kKeys = 32;  // keys are read so many at a time: room for keys is a multiple of it

// S queries of each of B rows meet the keys that their row has. H heads of queries share G heads of keys, all of width D.
struct Attention {
  int64_t S, H, G, D;
  // Position s of row b lies at (first(b) + s) * width, a head every D floats. Keys and values that are new come from there too;
  // null where there are none, as in attention to an input.
  const float *query, *new_key, *new_value;
  int64_t query_width, new_width;
  float* key;    // [B, G, T / kKeys, D, kKeys]: neighbouring keys meet one query without a sum across lanes
  float* value;  // [B, G, T, D]
  int64_t T;
  const int32_t* positions;  // [B]: of the row's first query, where new keys are written; null for 0
  const int32_t* lengths;    // [B]: every query sees so many keys; null where each sees those up to its own position
  // Optional. bias [H, bias_width], by distance, the farthest key first: at key t for the query at position p it is
  // bias[bias_width - 1 - bias_ahead - p + t]. turns [positions, D]: cosines and sines of the halves of a head. norms [D].
  const float* bias;
  int64_t bias_width, bias_ahead;
  const float *turns, *query_norm, *key_norm;
  float scale, epsilon;
  int64_t window;  // a query sees so many keys at most, the last ones; 0 for all
  float cap;       // scores lie between it and its opposite: s is cap tanh(s / cap); 0 for none
  float* out;  // as the queries, of width H D
  // Where rows have different numbers of queries, at most S, and lie one behind the other: how many, and where each begins. Else
  // null.
  const int32_t* counts;
  const int64_t* starts;
  // Where the S positions are nodes of a tree, else null: which keys each sees, paths [B, S, T], in rising order, and how many, at
  // least one, seen [B, S]. A node's position, to bias and turns, is the number of keys before it; it is written at
  // positions[b] + s all the same.
  const int32_t *paths, *seen;
  int64_t first(int64_t b) const { return starts ? starts[b] : b * S; }
};

// Where a head's keys have number d of key t.
constexpr int64_t key_at(int64_t t, int64_t d, int64_t D) { return (t / kKeys * D + d) * kKeys + t % kKeys; }

// Floats that a task needs as scratch.
constexpr int64_t attention_scratch(const Attention& a) { return a.H / a.G * a.S * a.D + a.D + 4 * a.T; }

}  // namespace specbeam
