// Rows over the vocabulary: log-sum-exp, softmax with its filters, Σ min(p, q), residuals, draws.
//
// A row is one function's, and each of its sums runs in one order: sixteen lanes over a block, the lanes of a block, then the
// blocks in double precision, so that its bits depend neither on other rows nor on their number.
//
// Compiled once for each instruction set, as product.cc is and under the same rule: no templates of the standard library.
#include "logits.h"

#include "product.h"
#include "vector.h"

namespace specbeam {
namespace {

using namespace sixteen;

constexpr int64_t kBlock = 2048;
template <class T> constexpr T min(T a, T b) { return a < b ? a : b; }
const float kInfinity = __builtin_inff();

inline Floats read(const float* row, int64_t i, int64_t n, float rest) {
  return n - i >= kLanes ? load(row + i) : load_some(row + i, n - i, rest);
}

inline void write(float* row, int64_t i, int64_t n, Floats value) {
  store_some(row + i, value, n - i);
}

// Σ term(i) over i = 0, 16, ... below n; what a term has beyond n must be 0.
template <class Term> double total(int64_t n, Term term) {
  double all = 0;
  for (int64_t start = 0; start < n; start += kBlock) {
    Floats sums{};
    for (int64_t i = start; i < min(start + kBlock, n); i += kLanes) sums += term(i);
    all += sum(sums);
  }
  return all;
}

float largest(const float* row, int64_t n) {  // of those that are numbers
  Floats peak = splat(-kInfinity);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats x = read(row, i, n, -kInfinity);
    peak = choose(x > peak, x, peak);
  }
  return highest(peak);
}

float log_normalizer(const float* row, int64_t n) {
  const float top = largest(row, n);
  const double sum = total(n, [=](int64_t i) { return exponential(read(row, i, n, -kInfinity) - top); });
  return top == -kInfinity ? top : top + lane(logarithm(splat(sum)), 0);
}

// The least value of a row above which lies a mass below `limit`; the mass of an element is 1 where there is none given. Values
// are sorted into buckets by their leading bits, then those of one bucket by the next ones.
float least_kept(const float* row, const float* mass, int64_t n, double limit) {
  constexpr int kBits[] = {11, 11, 10};
  const auto order = [=](int64_t i) {  // as an integer that rises with the value
    uint32_t bits;
    std::memcpy(&bits, row + i, sizeof bits);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  };
  double above = 0, buckets[1 << 11];
  uint32_t found = 0;
  for (int level = 0, shift = 32; level < 3; ++level) {
    const int known = shift;
    shift -= kBits[level];
    std::memset(buckets, 0, sizeof buckets);
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t key = order(i);
      if (known < 32 && key >> known != found) continue;
      buckets[key >> shift & ((1u << kBits[level]) - 1)] += mass ? mass[i] : 1.0f;
    }
    double greater = above;
    int64_t last = 0;
    for (int64_t bucket = (1 << kBits[level]) - 1; bucket >= 0 && greater < limit; --bucket) {
      if (buckets[bucket] <= 0) continue;
      last = bucket, above = greater;
      greater += buckets[bucket];
    }
    found = found << kBits[level] | last;
  }
  const uint32_t bits = found ^ (found >> 31 ? 0x80000000u : 0xffffffffu);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void standardize(const float* row, int64_t n, const Standard& how, float* probs) {
  const float top = largest(row, n);
  const bool some = 0 < how.top_k && how.top_k < n;
  float least = some ? least_kept(row, nullptr, n, how.top_k) : -kInfinity;
  double sum = total(n, [=](int64_t i) {
    const Floats x = read(row, i, n, -kInfinity);
    const Floats weight = choose(x < splat(least), Floats{}, exponential((x - top) / how.temperature));
    write(probs, i, n, weight);
    return n - i >= kLanes ? weight : choose(lanes() < int32_t(n - i), weight, Floats{});
  });
  if (how.top_p < 1.0f) {
    least = least_kept(row, probs, n, how.top_p * sum);
    sum = total(n, [=](int64_t i) {
      const Floats weight = choose(read(row, i, n, -kInfinity) < splat(least), Floats{}, read(probs, i, n, 0));
      write(probs, i, n, weight);
      return weight;
    });
  }
  const float inverse = 1.0 / sum;
  for (int64_t i = 0; i < n; i += kLanes) write(probs, i, n, read(probs, i, n, 0) * inverse);
}

float overlap(const float* p, const float* q, int64_t n, float lenience) {
  return total(n, [=](int64_t i) {
    const Floats a = read(p, i, n, 0) / lenience, b = read(q, i, n, 0);
    return choose(a < b, a, b);
  });
}

float residual(const float* p, const float* q, int64_t n, float scale, float* out) {
  return total(n, [=](int64_t i) {
    Floats rest = scale * read(p, i, n, 0) - read(q, i, n, 0);
    rest = choose(rest > Floats{}, rest, Floats{});
    write(out, i, n, rest);
    return rest;
  });
}

int32_t argmax(const float* row, int64_t n) {
  Floats best = splat(-kInfinity);
  Ints where = lanes();
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats x = read(row, i, n, -kInfinity);
    where = choose(x > best, lanes() + int32_t(i), where);
    best = choose(x > best, x, best);
  }
  const float top = highest(best);
  int32_t first = n - 1;  // of a row of NaN too
  for (int i = 0; i < kLanes; ++i)
    if (lane(best, i) == top && lane(where, i) < first && row[lane(where, i)] == top) first = lane(where, i);
  return first;
}

// A weight divides its time, and the least wins: of weights w and times t the first with the greatest w / t, none of weight 0.
struct Race {
  double best = -1;
  int32_t winner = 0;
  void enter(int32_t i, double weight, double time) {
    if (weight > 0 && weight / time > best) best = weight / time, winner = i;
  }
};

int32_t draw(const float* weights, const float* times, int64_t n) {
  Race blocks, race;
  const int64_t count = (n + kRace - 1) / kRace;
  for (int64_t block = 0; block < count; ++block) {
    Floats sums{};
    for (int64_t i = block * kRace; i < min((block + 1) * kRace, n); i += kLanes) sums += read(weights, i, n, 0);
    blocks.enter(block, sum(sums), times[block]);
  }
  const int64_t start = blocks.winner * kRace;
  for (int64_t i = 0; i < min(kRace, n - start); ++i) race.enter(i, weights[start + i], times[count + i]);
  return start + race.winner;
}

// -log(1 - f) for f in the middles of 2^32 equal pieces of (0, 1), as decoding/sampling.py has it.
inline Floats exponential_time(Words words) {
  Floats f = (As<Floats>::number(~words) + 0.5f) * 0x1p-32f;
  f = choose(f > splat(1 - 0x1p-24f), splat(1 - 0x1p-24f), f);
  const Floats u = 1.0f - f;
  return choose(u == splat(1.0f), f, f * (logarithm(u) / (u - 1.0f)));  // what rounding took from u, it took from both
}

// Threefry-2x32 of (0, counter), both words of it together: jax.random.bits.
inline Words threefry(uint32_t key, uint32_t more, Words counter) {
  const uint32_t keys[] = {key, more, key ^ more ^ 0x1bd11bda};
  constexpr int turns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  Words a = Words{} + key, b = counter + more;
  for (int round = 0; round < 5; ++round) {
    for (int turn : turns[round % 2]) {
      a += b;
      b = (b << turn | b >> (32 - turn)) ^ a;
    }
    a += keys[(round + 1) % 3];
    b += keys[(round + 2) % 3] + round + 1;
  }
  return a ^ b;
}

int32_t draw_coupled(const float* weights, int64_t n, uint32_t key, uint32_t more) {
  Floats best = splat(-1);
  Ints where{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats w = read(weights, i, n, 0);
    if (!(highest(w) > 0)) continue;  // filtered out
    const Ints place = lanes() + int32_t(i);
    const Floats speed = choose(w > Floats{}, w / exponential_time(threefry(key, more, As<Words>::bits(place))), splat(-1));
    where = choose(speed > best, place, where);
    best = choose(speed > best, speed, best);
  }
  const float top = highest(best);
  int32_t first = n - 1;
  for (int i = 0; i < kLanes; ++i)
    if (lane(best, i) == top && lane(where, i) < first) first = lane(where, i);
  return first;
}

void times(const uint32_t* words, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats some = read(reinterpret_cast<const float*>(words), i, n, 0);
    write(out, i, n, exponential_time(As<Words>::bits(some)));
  }
}

}  // namespace

#define LOGITS_(target) logits_##target
#define LOGITS(target) LOGITS_(target)
extern const Logits LOGITS(TARGET) = {log_normalizer, standardize, overlap, residual, draw, draw_coupled, times, argmax};

}  // namespace specbeam
