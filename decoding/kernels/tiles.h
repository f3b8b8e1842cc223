// What the tiles of a product, some rows by a strip of a panel's columns, have in common.
#pragma once
#include "product.h"
#include "registers.h"

namespace specbeam {
namespace {

using namespace native;

template <class T> constexpr T min(T a, T b) { return a < b ? a : b; }

constexpr int kRows = kRegisters / 4;  // at most, of a tile

// How many vectors wide a strip of `rows` rows is, whose sums have so many registers.
constexpr int vectors(int rows, int registers) {
  int most = kColumns / kLanes;
  while (most > 1 && (rows * most > registers || kColumns / kLanes % most)) --most;
  return most;
}

// What to fetch while a tile is computed: `step` bytes for each word of a column, and `near` of those that come next. A
// processor's own prefetching stops too near: few rows would wait for memory, then compute, instead of both at once.
struct Ahead { const char* next; int64_t step, near; };

}  // namespace
}  // namespace specbeam
