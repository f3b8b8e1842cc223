// XLA's side of the products: the instruction set, the threads, and the handlers that custom calls reach.
#include <cstring>
#include <memory>
#include <vector>

#include "attention.h"
#include "parallel.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace specbeam {

extern const Target plain;
#if defined(__x86_64__)
extern const Target avx2, avx512, avx512_vnni, avx512_amx;

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

// Whether the processor has tiles of bytes, and the system lets this process have their registers.
static bool has_tiles() {
  if ((bits(7, 3) >> 24 & 3) != 3) return false;  // AMX-TILE, AMX-INT8
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return has(0, 0, 0, 0x60000) && !syscall(SYS_arch_prctl, kRequestPermission, kTileData);
#else
  return false;
#endif
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
  const bool vnni = has(kFmaMovbeF16c, kAvx2Bmi | kAvx512, 1u << 11, 0xe6);
  if (vnni && avx512_amx.has_tiles && has_tiles()) found.push_back(&avx512_amx);
  if (vnni) found.push_back(&avx512_vnni);
  if (has(kFmaMovbeF16c, kAvx2Bmi | kAvx512, 0, 0xe6)) found.push_back(&avx512);
  if (has(kFmaMovbeF16c, kAvx2Bmi, 0, 0x6)) found.push_back(&avx2);
#elif defined(__aarch64__)
  found.push_back(&neon);
#endif
  found.push_back(&plain);
  return found;
}

std::atomic<const Target*> selected{targets().front()};

static Weight weight(const ffi::Buffer<ffi::U32>& words, int32_t kind, int64_t inputs, int64_t outputs) {
  return {words.typed_data(), words.dimensions()[1] * words.dimensions()[2], inputs, outputs, static_cast<Kind>(kind)};
}

static const float* given(const ffi::Buffer<ffi::F32>& optional) {
  return optional.element_count() ? optional.typed_data() : nullptr;
}

// Few rows are multiplied with so many panels side by side, of weights of so many bytes, which come from memory. Blocks of a
// file lie closer, and are read in other places while they are unpacked.
constexpr int64_t kTogether = 4, kStreamed = 1 << 20;

// y [M, N] = ends(norm(x) [M, K] W); rows from real[0] on are zeros. A gated W has two halves of whole panels, and y is
// activation(x W0) * x W1.
static ffi::Error product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U32> words,
                          ffi::Buffer<ffi::S32> real, ffi::Buffer<ffi::F32> norm_scale, ffi::Buffer<ffi::F32> norm_shift,
                          ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::F32> residual, ffi::ResultBuffer<ffi::F32> y,
                          int32_t kind, float epsilon, int32_t activation, bool gated) {
  const int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1], width = y->dimensions()[1];
  const int64_t count = std::max<int64_t>(0, std::min<int64_t>(rows, real.typed_data()[0]));
  const int64_t panels = words.dimensions()[0] / (gated ? 2 : 1);
  const Target& target = *selected.load();
  Call call{};
  call.weight = weight(words, kind, inputs, words.dimensions()[0] * kColumns);
  call.x = x.typed_data(), call.y = y->typed_data(), call.width = width;
  call.bias = given(bias), call.residual = given(residual), call.activation = static_cast<Activation>(activation);
  memset(call.y + count * width, 0, (rows - count) * width * sizeof(float));
  if (!count) return ffi::Error::Success();

  const Norm norm{given(norm_scale), given(norm_shift), epsilon};
  const bool bytes_of_x = kind == kInt8 && target.integer_sums;
  const std::unique_ptr<float[]> normed(norm.scale ? new float[count * inputs] : nullptr);
  const std::unique_ptr<int32_t[]> quantised(
      bytes_of_x ? new int32_t[(count + kTileRows - 1) / kTileRows * kTileRows * quads(inputs)] : nullptr);
  const bool digits_of_x = kind > kInt8 && target.digitise;
  const std::unique_ptr<Digits[]> digits(digits_of_x ? new Digits[count * blocks(inputs)] : nullptr);
  const std::unique_ptr<float[]> worth(bytes_of_x || digits_of_x ? new float[count] : nullptr);
  if (norm.scale || worth)
    parallel(pool, count, count * inputs * 8, [&, from = call.x](int64_t r) {
      const float* row = from + r * inputs;
      if (norm.scale) target.normalise(row, inputs, norm, &normed[r * inputs]), row = &normed[r * inputs];
      if (bytes_of_x) target.quantise(row, inputs, &quantised[r * quads(inputs)], &worth[r]);
      if (digits_of_x) target.digitise(row, inputs, &digits[r * blocks(inputs)], &worth[r]);
    });
  if (norm.scale) call.x = normed.get();
  call.units = worth.get();
  call.digits = digits.get();
  if (bytes_of_x) {
    call.quantised = quantised.get();
    call.tiles = target.has_tiles && count > kFewRows;
  }
  Call second = call;
  second.first_panel = panels, second.activation = kIdentity, second.multiply = true;
  if (gated) call.residual = nullptr;
  if (gated && call.bias) second.bias = call.bias + width;
  constexpr int64_t kRows = 256;  // of a unit, whole tiles
  const int64_t row_blocks = (count + kRows - 1) / kRows;
  // Panels of a unit: several where that may help, and enough units are left to be shared out.
  const bool streams = count <= kFewRows && kind <= kInt8 && words.size_bytes() > kStreamed;
  const int64_t together = streams ? std::max<int64_t>(1, std::min(kTogether, panels / 16)) : 1;
  const auto multiply = [=, &target](int64_t i) {
    const int64_t panel = i / row_blocks * together, some = std::min(together, panels - panel);
    const int64_t first = i % row_blocks * kRows, those = std::min(kRows, count - first);
    target.product(call, panel, some, first, those);
    if (gated) target.product(second, panels + panel, some, first, those);
  };
  const int64_t units = (panels + together - 1) / together * row_blocks;
  const int64_t bytes = words.size_bytes() + count * inputs * call.weight.outputs / 4;  // four products take as long as a byte to read
  if (call.tiles)
    parallel<Tiles>(pool, units, bytes, multiply);
  else
    parallel(pool, units, bytes, multiply);
  return ffi::Error::Success();
}

// The norm of every row of x, as before a product.
static ffi::Error normalize(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> scale,
                            ffi::Buffer<ffi::F32> shift, ffi::ResultBuffer<ffi::F32> y, float epsilon) {
  const int64_t width = x.dimensions().back();
  const Norm norm{scale.typed_data(), given(shift), epsilon};
  const Target& target = *selected.load();
  const float* from = x.typed_data();
  float* to = y->typed_data();
  parallel(pool, x.element_count() / width, 2 * x.size_bytes(), [=, &target](int64_t row) {
    target.normalise(from + row * width, width, norm, to + row * width);
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

// Attention of `a`, whose keys number at most `keys`, shared out by rows and heads of keys.
static void attend(ffi::ThreadPool& pool, Attention a, int64_t B, int64_t keys) {
  std::vector<int64_t> starts;
  for (int64_t b = 0, start = 0; a.counts && b < B; start += a.counts[b++]) starts.push_back(start);
  if (a.counts) a.starts = starts.data();
  const auto run = selected.load()->attend;
  parallel(pool, B * a.G, B * (a.S + 1) * a.H * a.D * keys * 2, [=](int64_t task) {
    thread_local std::vector<float> scratch;
    scratch.resize(std::max<size_t>(scratch.size(), attention_scratch(a)));
    run(a, task, scratch.data());
  });
}

// Attention::paths and seen of a mask [B, S, keys]; a node that sees nothing sees itself.
struct Paths {
  std::unique_ptr<int32_t[]> paths, seen;

  Paths(const bool* mask, int64_t keys, int64_t B, const Attention& a)
      : paths(new int32_t[B * a.S * a.T]), seen(new int32_t[B * a.S]) {
    for (int64_t node = 0; node < B * a.S; node++) {
      int32_t *path = &paths[node * a.T], count = 0;
      for (int64_t t = 0; t < keys; t += 8) {
        uint64_t eight = 0;
        memcpy(&eight, mask + node * keys + t, std::min<int64_t>(8, keys - t));
        for (; eight; eight &= eight - 1) path[count++] = t + __builtin_ctzll(eight) / 8;
      }
      if (!count) path[count++] = std::min<int64_t>(std::max(a.positions[node / a.S], 0), a.T - a.S) + node % a.S;
      seen[node] = count;
    }
  }
};

// Causal attention over a cache, into which the keys and values of the S positions are written first. qkv is
// [B, S, (H + 2 G) D] or, with counts [B], [N, (H + 2 G) D]; the caches are the results' memory. With a mask [B, S, keys], the
// positions are nodes of a tree.
static ffi::Error attend_cache(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> qkv, ffi::Buffer<ffi::F32>, ffi::Buffer<ffi::F32>,
                               ffi::Buffer<ffi::S32> positions, ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::F32> turns,
                               ffi::Buffer<ffi::F32> query_norm, ffi::Buffer<ffi::F32> key_norm, ffi::Buffer<ffi::S32> counts,
                               ffi::Buffer<ffi::PRED> mask, ffi::ResultBuffer<ffi::F32> out,
                               ffi::ResultBuffer<ffi::F32> key, ffi::ResultBuffer<ffi::F32> value, float scale, float epsilon, int32_t window, float cap) {
  const int64_t B = key->dimensions()[0], width = qkv.dimensions().back();
  Attention a{};
  if (counts.element_count()) a.counts = counts.typed_data();
  a.S = a.counts ? *std::max_element(a.counts, a.counts + B) : qkv.dimensions()[1];
  a.G = value->dimensions()[1], a.T = value->dimensions()[2], a.D = value->dimensions()[3];
  a.H = out->dimensions().back() / a.D;
  a.query = qkv.typed_data(), a.new_key = a.query + a.H * a.D, a.new_value = a.new_key + a.G * a.D;
  a.query_width = a.new_width = width;
  a.key = key->typed_data(), a.value = value->typed_data();
  a.positions = positions.typed_data();
  a.bias = given(bias), a.bias_width = bias.dimensions()[1];
  a.turns = given(turns), a.query_norm = given(query_norm), a.key_norm = given(key_norm);
  a.scale = scale, a.epsilon = epsilon, a.window = window, a.cap = cap;
  a.out = out->typed_data();
  std::unique_ptr<Paths> tree;
  if (mask.element_count()) {
    tree = std::make_unique<Paths>(mask.typed_data(), mask.dimensions()[2], B, a);
    a.paths = tree->paths.get(), a.seen = tree->seen.get();
  }
  const int64_t furthest = *std::max_element(a.positions, a.positions + B);
  attend(pool, a, B, std::min(a.T, furthest + a.S));
  return ffi::Error::Success();
}

// Attention of query [B, S, H D] to an input, whose keys and values were made at prefill.
static ffi::Error attend_input(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query, ffi::Buffer<ffi::F32> key,
                               ffi::Buffer<ffi::F32> value, ffi::Buffer<ffi::S32> lengths, ffi::ResultBuffer<ffi::F32> out,
                               float scale) {
  const int64_t B = key.dimensions()[0];
  Attention a{};
  a.S = query.dimensions()[1], a.G = value.dimensions()[1], a.T = value.dimensions()[2], a.D = value.dimensions()[3];
  a.H = query.dimensions()[2] / a.D;
  a.query = query.typed_data(), a.query_width = query.dimensions()[2];
  a.key = key.typed_data(), a.value = value.typed_data();  // read only, as nothing is new
  a.lengths = lengths.typed_data();
  a.scale = scale;
  a.out = out->typed_data();
  attend(pool, a, B, *std::max_element(a.lengths, a.lengths + B));
  return ffi::Error::Success();
}

// Attention of inputs to themselves, in both directions. qkv is [N, 3 H D], the bias [H, 2 L - 1].
static ffi::Error attend_itself(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> qkv, ffi::Buffer<ffi::S32> lengths,
                                ffi::Buffer<ffi::F32> bias, ffi::ResultBuffer<ffi::F32> out, int32_t head_dim, float scale) {
  const int64_t B = lengths.dimensions()[0], L = (bias.dimensions()[1] + 1) / 2, width = out->dimensions()[1];
  Attention a{};
  a.S = L, a.D = head_dim, a.H = a.G = width / head_dim, a.T = (L + kKeys - 1) / kKeys * kKeys;
  a.query = qkv.typed_data(), a.new_key = a.query + width, a.new_value = a.new_key + width;
  a.query_width = a.new_width = 3 * width;
  const std::unique_ptr<float[]> key(new float[B * width * a.T]), value(new float[B * width * a.T]);
  a.key = key.get(), a.value = value.get();
  a.lengths = a.counts = lengths.typed_data();
  a.bias = given(bias), a.bias_width = bias.dimensions()[1], a.bias_ahead = L - 1;
  a.scale = scale;
  a.out = out->typed_data();
  attend(pool, a, B, L);
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_product, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int32_t>("kind")
                                  .Attr<float>("epsilon")
                                  .Attr<int32_t>("activation")
                                  .Attr<bool>("gated"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_normalize, normalize,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_columns, columns,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int32_t>("kind")
                                  .Attr<int32_t>("outputs"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_attend_cache, attend_cache,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale")
                                  .Attr<float>("epsilon")
                                  .Attr<int32_t>("window")
                                  .Attr<float>("cap"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_attend_input, attend_input,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(specbeam_attend_itself, attend_itself,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int32_t>("head_dim")
                                  .Attr<float>("scale"));

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
