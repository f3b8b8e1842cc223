// What handlers of custom calls share: the instruction set, and XLA's threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

#include "product.h"
#include "xla/ffi/api/ffi.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ffi = xla::ffi;

namespace specbeam {

extern std::atomic<const Target*> selected;  // the instruction set in use

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

// The tiles of the selected instruction set, for as long as a thread multiplies with them.
class Tiles : KeepSubnormals {
 public:
  Tiles() { target_.begin_tiles(); }
  ~Tiles() { target_.end_tiles(); }

 private:
  const Target& target_ = *selected.load();
};

// Calls run(i) for i < units on the caller's thread and on those of `pool` that come in time. The caller takes units until
// none is left and then waits for those that others have begun, never for a task that has not started.
template <class Mode = KeepSubnormals, class Run>
void parallel(ffi::ThreadPool& pool, int64_t units, int64_t bytes, Run run) {
  constexpr int64_t kBytesPerThread = 128 << 10;  // less is read sooner than a thread is woken
  struct Shared { std::atomic<int64_t> next{0}, done{0}; };
  const int64_t threads = std::min({pool.num_threads(), units, 1 + bytes / kBytesPerThread});
  const int64_t span = std::max<int64_t>(1, units / (8 * std::max<int64_t>(1, threads)));
  auto shared = std::make_shared<Shared>();
  auto work = [=] {
    Mode mode;
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

}  // namespace specbeam
