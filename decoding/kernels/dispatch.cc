// XLA's side of the products: the instruction set, the threads, and the handlers that custom calls reach.
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "product.h"
#include "xla/ffi/api/ffi.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif

namespace ffi = xla::ffi;

namespace specbeam {

extern const Target plain;
#if defined(__x86_64__)
extern const Target avx2, avx512, avx512_vnni;

static uint32_t bits(uint32_t leaf, int output) {
  uint32_t registers[4] = {};  // eax, ebx, ecx, edx
  __get_cpuid_count(leaf, 0, &registers[0], &registers[1], &registers[2], &registers[3]);
  return registers[output];
}

// Whether the processor has all of `wanted`, and the system saves the registers in `state`.
static bool has(uint32_t ecx1, uint32_t ebx7, uint32_t ecx7, uint32_t state) {
  if (!(bits(1, 2) >> 27 & 1)) return false;  // OSXSAVE
  uint32_t saved, high;
  __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  return (saved & state) == state && (bits(1, 2) & ecx1) == ecx1 && (bits(7, 1) & ebx7) == ebx7 &&
         (bits(7, 2) & ecx7) == ecx7;
}

constexpr uint32_t kFmaMovbeF16c = 1u << 12 | 1u << 22 | 1u << 29, kAvx2Bmi = 1u << 5 | 1u << 3 | 1u << 8;
constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;  // F, DQ, CD, BW, VL
#elif defined(__aarch64__)
extern const Target neon;
#endif

// Those that this machine has, the best first.
static std::vector<const Target*> targets() {
  std::vector<const Target*> found;
#if defined(__x86_64__)
  if (has(kFmaMovbeF16c, kAvx2Bmi | kAvx512, 1u << 11, 0xe6)) found.push_back(&avx512_vnni);
  if (has(kFmaMovbeF16c, kAvx2Bmi | kAvx512, 0, 0xe6)) found.push_back(&avx512);
  if (has(kFmaMovbeF16c, kAvx2Bmi, 0, 0x6)) found.push_back(&avx2);
#elif defined(__aarch64__)
  found.push_back(&neon);
#endif
  found.push_back(&plain);
  return found;
}

static std::atomic<const Target*> selected{targets().front()};

// Subnormal numbers count, on XLA's threads (which flush them) as on the caller's: a row's bits depend on no thread.
class KeepSubnormals {
#if defined(__x86_64__)
 public:
  KeepSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }
  ~KeepSubnormals() { _mm_setcsr(saved_); }

 private:
  uint32_t saved_;
#elif defined(__aarch64__)
 public:
  KeepSubnormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(saved_ & ~(uint64_t{1} << 24)));
  }
  ~KeepSubnormals() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// Calls run(i) for i < units on the caller's thread and on those of `pool` that come in time. The caller takes units until
// none is left and then waits for those that others have begun, never for a task that has not started.
template <class Run>
static void parallel(ffi::ThreadPool& pool, int64_t units, int64_t bytes, Run run) {
  constexpr int64_t kBytesPerThread = 128 << 10;  // less is read sooner than a thread is woken
  struct Shared { std::atomic<int64_t> next{0}, done{0}; };
  const int64_t threads = std::min({pool.num_threads(), units, 1 + bytes / kBytesPerThread});
  const int64_t span = std::max<int64_t>(1, units / (8 * std::max<int64_t>(1, threads)));
  auto shared = std::make_shared<Shared>();
  auto work = [=] {
    KeepSubnormals mode;
    for (int64_t first; (first = shared->next.fetch_add(span)) < units;) {
      const int64_t end = std::min(first + span, units);
      for (int64_t i = first; i < end; ++i) run(i);
      shared->done.fetch_add(end - first, std::memory_order_release);
    }
  };
  for (int64_t t = 1; t < threads; ++t) pool.Schedule(decltype(work)(work));
  work();
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < units; ++spins)
    if (spins > 1000) std::this_thread::yield();
}

static Weight weight(const ffi::Buffer<ffi::U32>& words, int32_t kind, int64_t inputs, int64_t outputs) {
  return {words.typed_data(), words.dimensions()[1] * words.dimensions()[2], inputs, outputs, static_cast<Kind>(kind)};
}

// y [M, N] = x [M, K] W; rows from real[0] on are zeros.
static ffi::Error product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U32> words,
                          ffi::Buffer<ffi::S32> real, ffi::ResultBuffer<ffi::F32> y, int32_t kind) {
  const int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1], outputs = y->dimensions()[1];
  const int64_t count = std::max<int64_t>(0, std::min<int64_t>(rows, real.typed_data()[0]));
  const Target& target = *selected.load();
  Call call{weight(words, kind, inputs, outputs), x.typed_data(), y->typed_data(), nullptr, nullptr};
  memset(call.y + count * outputs, 0, (rows - count) * outputs * sizeof(float));
  if (!count) return ffi::Error::Success();

  std::unique_ptr<int32_t[]> quantised;
  std::unique_ptr<float[]> units;
  if (kind == kInt8 && target.integer_sums) {
    quantised.reset(new int32_t[count * quads(inputs)]);
    units.reset(new float[count]);
    KeepSubnormals mode;
    for (int64_t r = 0; r < count; ++r)
      target.quantise(call.x + r * inputs, inputs, &quantised[r * quads(inputs)], &units[r]);
    call.quantised = quantised.get();
    call.units = units.get();
  }
  constexpr int64_t kRows = 256;  // of a unit
  const int64_t panels = words.dimensions()[0], blocks = (count + kRows - 1) / kRows;
  parallel(pool, panels * blocks, words.size_bytes() * (1 + count / 16), [=, &target](int64_t i) {
    const int64_t first = i % blocks * kRows;
    target.product(call, i / blocks, first, std::min(kRows, count - first));
  });
  return ffi::Error::Success();
}

// y [B, K]: the weight's columns that ids [B] name, as float32; ids beyond the ends name the last or first.
static ffi::Error columns(ffi::ThreadPool pool, ffi::Buffer<ffi::U32> words, ffi::Buffer<ffi::S32> ids,
                          ffi::ResultBuffer<ffi::F32> y, int32_t kind, int32_t outputs) {
  const int64_t inputs = y->dimensions()[1], count = y->dimensions()[0];
  const Weight packed = weight(words, kind, inputs, outputs);
  const Target& target = *selected.load();
  const int32_t* id = ids.typed_data();
  float* out = y->typed_data();
  parallel(pool, count, count * inputs * 16, [=, &target](int64_t i) {
    target.column(packed, std::min(std::max(id[i], 0), outputs - 1), out + i * inputs);
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_product, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int32_t>("kind"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_columns, columns,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int32_t>("kind")
                                  .Attr<int32_t>("outputs"));

// Makes the named instruction set the one of all later calls; null where this machine lacks it. "" names none: the one in use.
extern "C" const char* specbeam_select(const char* name) {
  if (*name) {
    const Target* wanted = nullptr;
    for (const Target* target : targets())
      if (!strcmp(target->name, name)) wanted = target;
    if (!wanted) return nullptr;
    selected = wanted;
  }
  return selected.load()->name;
}

// The i-th of this machine's instruction sets, the best first; null beyond the last.
extern "C" const char* specbeam_target(int i) {
  const auto found = targets();
  return i < static_cast<int>(found.size()) ? found[i]->name : nullptr;
}

extern "C" int specbeam_integer_sums() { return selected.load()->integer_sums; }

}  // namespace specbeam
