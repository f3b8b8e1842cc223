// What is done to a row before a product (its norm) and to sums after it (bias, activation, gate, residual), so that neither is
// an operation of its own.
#pragma once
#include "product.h"
#include "vector.h"

namespace specbeam {
namespace {
namespace sixteen {

// RMS norm or, with a shift, layer norm of a row x [width].
void normalise(const float* x, int64_t width, const Norm& norm, float* out) {
  const auto at = [=](int64_t i) { return i + kLanes <= width ? load(x + i) : load_some(x + i, width - i, 0); };
  float mean = 0;
  if (norm.shift) {
    Floats total{};
    for (int64_t i = 0; i < width; i += kLanes) total += at(i);
    mean = sum(total) / width;
  }
  Floats squares{};
  for (int64_t i = 0; i < width; i += kLanes) {
    const Floats centred = choose(lanes() < int32_t(width - i), at(i) - mean, Floats{});
    squares += centred * centred;
  }
  const float inverse = 1.0f / __builtin_sqrtf(sum(squares) / width + norm.epsilon);
  for (int64_t i = 0; i < width; ++i) {
    const float normed = (x[i] - mean) * inverse * norm.scale[i];
    out[i] = norm.shift ? normed + norm.shift[i] : normed;
  }
}

Floats activate(Activation activation, Floats x) {
  switch (activation) {
    case kRelu: return choose(x < Floats{}, Floats{}, x);
    case kGelu: return 0.5f * x * (1.0f + error_function(x * 0.707106781f));
    // 0.5 x (1 + tanh u) = x / (1 + e^(-2 u)), without the cancellation.
    case kGeluNew: return x / (1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
    case kSilu: return x / (1.0f + exponential(-x));
    default: return x;
  }
}

// Stores sums [kColumns] of a row and a panel, whose first column of y is `column`.
void finish(const Call& call, int64_t row, int64_t column, const float* sums) {
  const int64_t at = row * call.width + column;
  for (int64_t i = 0; i < kColumns && column + i < call.width; i += kLanes) {
    const int64_t count = call.width - column - i;
    const auto read = [=](const float* from) { return count >= kLanes ? load(from + i) : load_some(from + i, count, 0); };
    Floats value = load(sums + i);
    if (call.bias) value += read(call.bias + column);
    value = activate(call.activation, value);
    if (call.multiply) value *= read(call.y + at);
    if (call.residual) value += read(call.residual + at);
    store_some(call.y + at + i, value, count);
  }
}

}  // namespace sixteen

using sixteen::finish;
using sixteen::normalise;

}  // namespace
}  // namespace specbeam
