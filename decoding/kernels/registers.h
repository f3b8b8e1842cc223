// What an instruction set's registers hold, in GCC's and Clang's vector extension.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace specbeam {
namespace {  // every file has its own, compiled for its instruction set
namespace native {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kBytes = 32, kRegisters = 16;
#elif defined(__ARM_NEON)
constexpr int kBytes = 16, kRegisters = 32;
#else
constexpr int kBytes = 16, kRegisters = 16;
#endif
constexpr int kLanes = kBytes / 4;

template <class T> struct Register { typedef T type __attribute__((vector_size(kBytes))); };
using Floats = Register<float>::type;
using Ints = Register<int32_t>::type;
using Words = Register<uint32_t>::type;

template <class V, class T> V load(const T* from) { V v; memcpy(&v, from, sizeof v); return v; }
template <class V, class T> void store(T* to, V v) { memcpy(to, &v, sizeof v); }

}  // namespace native
}  // namespace
}  // namespace specbeam
