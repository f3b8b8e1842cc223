// Attention of the newest positions of every row over the keys and values that the row has, and nothing else.
//
// A tile is up to four queries that share a head of keys: they share every load of a key and of a value, and sixteen keys, or
// twice as many, are scored at once. Each score is a sum over D and each output a sum over keys, both in rising order, one
// query independent of the others, so that its bits depend neither on S nor on the rows beside it. A node of a tree sees the
// keys of its path one behind the other, wherever they lie: its bits are those of a text's position.
//
// Compiled once for each instruction set, as product.cc is and under the same rule: no templates of the standard library.
#include "attention.h"

#include "product.h"
#include "vector.h"

namespace specbeam {
namespace {

using namespace sixteen;

constexpr int kQueries = 4;
constexpr int kTogether = native::kBytes == 64 ? 2 : 1;  // vectors of keys, or of outputs, whose sums fit the registers
constexpr int64_t kSpan = kTogether * kLanes;
static_assert(kKeys % kSpan == 0, "keys that are scored at once lie together");
#define INLINE __attribute__((always_inline))
// f(0) to f(n - 1), each number known when it is compiled: what it indexes stays in registers.
template <int i> struct Index { constexpr operator int() const { return i; } };
template <int n, class F> INLINE inline void each(F f) {
  if constexpr (n > 0) each<n - 1>(f), f(Index<n - 1>{});
}

template <class T> constexpr T min(T a, T b) { return a < b ? a : b; }
template <class T> constexpr T max(T a, T b) { return a > b ? a : b; }

struct Query {
  const float* bias;    // of key 0; null where there is none
  int64_t first, keys;  // it sees those from the first on, before this number
  const int32_t* path;  // where each of them lies; null where they are the first ones of the row
  float* out;         // [D]
};

// `scores` has room for kQueries rows of `stride`, and may be written up to the next multiple of kKeys.
template <int R>
void tile(const float* q, const Query* queries, const float* key, const float* value, int64_t D, float cap, float* scores,
          int64_t stride) {
  const bool tree = queries[0].path;
  const auto place = [=](int r, int64_t t) { return tree ? queries[r].path[t] : t; };
  int64_t begin = stride, end = 0, from = 0, fewest = queries[0].keys;  // all see those from `from` to `fewest`
  for (int r = 0; r < R; r++) {
    begin = min(begin, place(r, queries[r].first)), end = max(end, place(r, queries[r].keys - 1) + 1);
    from = max(from, queries[r].first), fewest = min(fewest, queries[r].keys);
    for (int64_t t = from; tree && t < fewest; t++)
      if (place(r, t) != place(0, t)) fewest = t;
  }

  Floats peak[R], total[R];
  for (int r = 0; r < R; r++) peak[r] = splat(-__builtin_inff()), total[r] = Floats{};
  const auto finish = [&](int r, int64_t at, Floats score) {
    const int64_t left = queries[r].keys - at;
    if (cap) score = cap - 2 * cap / (exponential(2 / cap * score) + 1.0f);  // tanh
    if (queries[r].bias && left >= kLanes) score += load(queries[r].bias + at);
    if (queries[r].bias && left > 0 && left < kLanes) score += load_some(queries[r].bias + at, left, 0);
    const Ints before = lanes() < int32_t(min(max(queries[r].first - at, int64_t{0}), kLanes));
    const Ints seen = lanes() < int32_t(min(max(left, int64_t{0}), kLanes));
    score = choose(seen & ~before, score, splat(-__builtin_inff()));
    peak[r] = choose(score > peak[r], score, peak[r]);
    store(scores + r * stride + at, score);
  };
  for (int64_t t = begin / kSpan * kSpan; t < end; t += kSpan) {
    Floats sums[R][kTogether] = {};
    for (int64_t d = 0; d < D; d++) {
      const float* at = key + key_at(t, d, D);
      each<kTogether>([&](auto v) INLINE {
        const Floats keys = load(at + v * kLanes);
        each<R>([&](auto r) INLINE { sums[r][v] += q[r * D + d] * keys; });
      });
    }
    each<R>([&](auto r) INLINE {
      each<kTogether>([&](auto v) INLINE {
        if (tree) store(scores + r * stride + t + v * kLanes, sums[r][v]);
        else finish(r, t + v * kLanes, sums[r][v]);
      });
    });
  }
  for (int r = 0; tree && r < R; r++) {  // a path rises, so nothing is overwritten before it is read
    float* mine = scores + r * stride;
    for (int64_t t = queries[r].first; t < queries[r].keys; t++) mine[t] = mine[queries[r].path[t]];
    for (int64_t t = queries[r].first / kLanes * kLanes; t < queries[r].keys; t += kLanes) finish(r, t, load(mine + t));
  }
  float inverse[R];
  for (int r = 0; r < R; r++) {
    const Floats best = splat(highest(peak[r]));
    for (int64_t t = queries[r].first / kLanes * kLanes; t < queries[r].keys; t += kLanes) {
      const Floats weight = exponential(load(scores + r * stride + t) - best);
      total[r] += weight;
      store(scores + r * stride + t, weight);
    }
    inverse[r] = 1.0f / sum(total[r]);
  }
  for (int64_t d = 0; d < D; d += kSpan) {
    Floats sums[R][kTogether] = {};
    const auto values = [=](int64_t t, int v) {
      const int64_t at = d + v * kLanes, width = min(max(D - at, int64_t{0}), kLanes);
      return width == kLanes ? load(value + t * D + at) : load_some(value + t * D + at, width, 0);
    };
    const auto own = [&](auto r, int64_t t, int64_t end) INLINE {  // keys not all of these queries see
      for (; t < end; t++)
        each<kTogether>([&](auto v) INLINE { sums[r][v] += scores[r * stride + t] * values(place(r, t), v); });
    };
    each<R>([&](auto r) INLINE { own(r, queries[r].first, min(from, queries[r].keys)); });
    for (int64_t t = from; t < fewest; t++)
      each<kTogether>([&](auto v) INLINE {
        const Floats shared = values(place(0, t), v);
        each<R>([&](auto r) INLINE { sums[r][v] += scores[r * stride + t] * shared; });
      });
    each<R>([&](auto r) INLINE {
      own(r, max(from, fewest), queries[r].keys);
      each<kTogether>([&](auto v) INLINE {
        const int64_t at = d + v * kLanes;
        if (at < D) store_some(queries[r].out + at, sums[r][v] * inverse[r], D - at);
      });
    });
  }
}

// A head [D] as it meets keys: normed (RMS, where there is a scale), then its halves turned by cosines and sines [D / 2] each.
void prepare(const float* head, int64_t D, const float* norm, float epsilon, const float* turn, float scale, float* out) {
  float inverse = 1.0f;
  if (norm) {
    float squares = 0;
    for (int64_t d = 0; d < D; d++) squares += head[d] * head[d];
    inverse = 1.0f / __builtin_sqrtf(squares / D + epsilon);
  }
  for (int64_t d = 0; d < D; d++) out[d] = norm ? head[d] * inverse * norm[d] : head[d];
  for (int64_t d = 0; turn && d < D / 2; d++) {
    const float first = out[d], second = out[d + D / 2], cosine = turn[d], sine = turn[d + D / 2];
    out[d] = first * cosine - second * sine;
    out[d + D / 2] = second * cosine + first * sine;
  }
  for (int64_t d = 0; d < D; d++) out[d] *= scale;
}

void fetch(const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i, 0, 2);
}

}  // namespace

#define ATTEND_(target) attend_##target
#define ATTEND(target) ATTEND_(target)

// One row's heads that share the g-th of keys; task = b G + g.
void ATTEND(TARGET)(const Attention& a, int64_t task, float* scratch) {
  const int64_t D = a.D, T = a.T, shared = a.H / a.G, b = task / a.G, g = task % a.G;
  const int64_t S = a.counts ? a.counts[b] : a.S, first = a.first(b);
  const int64_t position = a.positions ? min<int64_t>(max<int64_t>(a.positions[b], 0), T - S) : 0;  // as XLA clamps
  const auto place = [&](int64_t s) { return a.seen ? a.seen[b * S + s] - 1 : position + s; };
  float *key = a.key + task * D * T, *value = a.value + task * T * D;
  // The next task's, from memory while this one is computed: a processor's own prefetching ends with a page.
  const int64_t there = a.lengths ? a.lengths[b] : position + S;
  fetch(key + D * T, key_at(there + kKeys - 1, 0, D));
  fetch(value + T * D, there * D);
  float *q = scratch, *turned = q + shared * S * D, *scores = turned + D;
  for (int64_t s = 0; a.new_key && s < S; s++) {
    const int64_t at = (first + s) * a.new_width + g * D, t = position + s;
    prepare(a.new_key + at, D, a.key_norm, a.epsilon, a.turns ? a.turns + place(s) * D : nullptr, 1.0f, turned);
    for (int64_t d = 0; d < D; d++) key[key_at(t, d, D)] = turned[d];
    memcpy(value + t * D, a.new_value + at, D * sizeof(float));
  }
  for (int64_t i = 0; i < shared * S; i++) {
    const int64_t head = g * shared + i / S, s = i % S;
    const float* turn = a.turns ? a.turns + place(s) * D : nullptr;
    prepare(a.query + (first + s) * a.query_width + head * D, D, a.query_norm, a.epsilon, turn, a.scale, q + i * D);
  }
  for (int64_t i = 0; i < shared * S; i += kQueries) {
    Query queries[kQueries];
    const int64_t rows = min<int64_t>(kQueries, shared * S - i);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t head = g * shared + (i + r) / S, s = (i + r) % S;
      queries[r].keys = a.lengths ? a.lengths[b] : place(s) + 1;
      queries[r].path = a.paths ? a.paths + (b * S + s) * T : nullptr;
      queries[r].first = a.window ? max(queries[r].keys - a.window, int64_t{0}) : 0;
      queries[r].bias = a.bias ? a.bias + (head + 1) * a.bias_width - 1 - a.bias_ahead - place(s) : nullptr;
      queries[r].out = a.out + ((first + s) * a.H + head) * D;
    }
    constexpr decltype(&tile<1>) tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>};
    tiles[rows - 1](q + i * D, queries, key, value, D, a.cap, scores, T);
  }
}

}  // namespace specbeam
