// Handlers of the custom calls of logits.cc. Operands are rows [..., V], of which the results have one number or row each.
#include "logits.h"
#include "parallel.h"

namespace specbeam {

using Numbers = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;
using Words = ffi::Buffer<ffi::U32>;
template <class Buffer> using Result = ffi::Result<Buffer>;

// Calls run(logits of the instruction set, row, first element of the row) for every row of `rows`.
template <class Run>
static ffi::Error each(ffi::ThreadPool& pool, const Numbers& rows, int64_t passes, Run run) {
  const int64_t n = rows.dimensions().back(), count = rows.element_count() / std::max<int64_t>(1, n);
  const Logits& logits = *selected.load()->logits;
  parallel(pool, count, rows.size_bytes() * passes, [=, &logits](int64_t row) { run(logits, row, row * n); });
  return ffi::Error::Success();
}

static ffi::Error log_normalizer(ffi::ThreadPool pool, Numbers rows, Result<Numbers> out) {
  const float* x = rows.typed_data();
  float* y = out->typed_data();
  const int64_t n = rows.dimensions().back();
  return each(pool, rows, 2, [=](auto& logits, int64_t row, int64_t at) { y[row] = logits.log_normalizer(x + at, n); });
}

static ffi::Error standardize(ffi::ThreadPool pool, Numbers rows, Result<Numbers> out, float temperature, int32_t top_k,
                              float top_p) {
  const float* x = rows.typed_data();
  float* y = out->typed_data();
  const int64_t n = rows.dimensions().back();
  const Standard how{temperature, top_k, top_p};
  return each(pool, rows, 4, [=](auto& logits, int64_t, int64_t at) { logits.standardize(x + at, n, how, y + at); });
}

// p has at least as many rows [.., N, V] in each group as q, whose rows are compared with the first ones.
static ffi::Error overlap(ffi::ThreadPool pool, Numbers p, Numbers q, Result<Numbers> out, float lenience) {
  const float *a = p.typed_data(), *b = q.typed_data();
  float* y = out->typed_data();
  const auto shape = q.dimensions();
  const int64_t n = shape.back(), rows = shape[shape.size() - 2], groups = p.dimensions()[shape.size() - 2];
  return each(pool, q, 2, [=](auto& logits, int64_t row, int64_t at) {
    y[row] = logits.overlap(a + (row / rows * groups + row % rows) * n, b + at, n, lenience);
  });
}

static ffi::Error residual(ffi::ThreadPool pool, Numbers p, Numbers q, Numbers scale, Result<Numbers> out,
                           Result<Numbers> sums) {
  const float *a = p.typed_data(), *b = q.typed_data(), *s = scale.typed_data();
  float *y = out->typed_data(), *sum = sums->typed_data();
  const int64_t n = p.dimensions().back();
  return each(pool, p, 3, [=](auto& logits, int64_t row, int64_t at) {
    sum[row] = logits.residual(a + at, b + at, n, s[row], y + at);
  });
}

static ffi::Error draw(ffi::ThreadPool pool, Numbers weights, Numbers times, Result<Integers> out) {
  const float *w = weights.typed_data(), *t = times.typed_data();
  int32_t* y = out->typed_data();
  const int64_t n = weights.dimensions().back(), each_times = times.dimensions().back();
  return each(pool, weights, 1, [=](auto& logits, int64_t row, int64_t at) {
    y[row] = logits.draw(w + at, t + row * each_times, n);
  });
}

static ffi::Error draw_coupled(ffi::ThreadPool pool, Numbers weights, Words keys, Result<Integers> out) {
  const float* w = weights.typed_data();
  const uint32_t* key = keys.typed_data();
  int32_t* y = out->typed_data();
  const int64_t n = weights.dimensions().back();
  return each(pool, weights, 8, [=](auto& logits, int64_t row, int64_t at) {
    y[row] = logits.draw_coupled(w + at, n, key[2 * row], key[2 * row + 1]);
  });
}

static ffi::Error times(Words words, Result<Numbers> out) {
  KeepSubnormals mode;
  selected.load()->logits->times(words.typed_data(), words.element_count(), out->typed_data());
  return ffi::Error::Success();
}

static ffi::Error argmax(ffi::ThreadPool pool, Numbers rows, Result<Integers> out) {
  const float* x = rows.typed_data();
  int32_t* y = out->typed_data();
  const int64_t n = rows.dimensions().back();
  return each(pool, rows, 1, [=](auto& logits, int64_t row, int64_t at) { y[row] = logits.argmax(x + at, n); });
}

static auto bind() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }

XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_log_normalizer, log_normalizer, bind().Arg<Numbers>().Ret<Numbers>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_standardize, standardize,
                              bind().Arg<Numbers>().Ret<Numbers>().Attr<float>("temperature").Attr<int32_t>("top_k").Attr<float>(
                                  "top_p"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_overlap, overlap,
                              bind().Arg<Numbers>().Arg<Numbers>().Ret<Numbers>().Attr<float>("lenience"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_residual, residual,
                              bind().Arg<Numbers>().Arg<Numbers>().Arg<Numbers>().Ret<Numbers>().Ret<Numbers>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_draw, draw, bind().Arg<Numbers>().Arg<Numbers>().Ret<Integers>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_draw_coupled, draw_coupled, bind().Arg<Numbers>().Arg<Words>().Ret<Integers>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_times, times, ffi::Ffi::Bind().Arg<Words>().Ret<Numbers>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_argmax, argmax, bind().Arg<Numbers>().Ret<Integers>());

}  // namespace specbeam
