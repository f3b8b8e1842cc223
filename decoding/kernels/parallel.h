// What handlers of custom calls share: the instruction set, and XLA's threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

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

// Calls run(i) for i < units on the caller's thread and on those of `pool` that come in time. Each has units of its own that
// follow one another, since what a unit fetches ahead is the next one's, and then helps the others. The caller does so until none
// is left and waits for those that others have begun, never for a task that has not started.
template <class Mode = KeepSubnormals, class Run>
void parallel(ffi::ThreadPool& pool, int64_t units, int64_t bytes, Run run) {
  constexpr int64_t kBytesPerThread = 128 << 10;  // less is read sooner than a thread is woken
  const int64_t threads = std::min({pool.num_threads(), units, 1 + bytes / kBytesPerThread});
  if (threads <= 1) {
    Mode mode;
    for (int64_t unit = 0; unit < units; ++unit) run(unit);
    return;
  }
  struct alignas(64) Counter { std::atomic<int64_t> count{0}; };
  struct Shared {
    explicit Shared(int64_t threads) : taken(threads) {}
    std::vector<Counter> taken;  // of each thread's units
    Counter done;
  };
  auto shared = std::make_shared<Shared>(threads);
  auto work = [=](int64_t self) {
    Mode mode;
    for (int64_t i = 0; i < threads; ++i) {
      const int64_t whose = (self + i) % threads, first = units * whose / threads, end = units * (whose + 1) / threads;
      for (int64_t unit; (unit = first + shared->taken[whose].count.fetch_add(1)) < end;) {
        run(unit);
        shared->done.count.fetch_add(1, std::memory_order_release);
      }
    }
  };
  for (int64_t t = 1; t < threads; ++t) pool.Schedule([=] { work(t); });
  work(0);
  for (int spins = 0; shared->done.count.load(std::memory_order_acquire) < units; ++spins)
    if (spins > 1000) std::this_thread::yield();
}

}  // namespace specbeam
