"""Products of the processor's own: every kind of weight on every instruction set that this machine has."""

import concurrent.futures
import os
import subprocess
import sys

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from decoding import kernels
from decoding.kernels import build

INSTRUCTION_SETS = kernels.instruction_sets()
SHAPES = [(1, 1), (3, 5), (64, 48), (130, 49), (257, 96), (385, 301)]  # [K, N]
MAX_ROWS = 40

if not INSTRUCTION_SETS:
    pytest.skip("the products cannot be built on this machine", allow_module_level=True)


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _product(x, weight, real=None) -> np.ndarray:
    return np.asarray(kernels.product(jnp.asarray(x), weight, real=real))


def _dense(weight: kernels.PackedWeight) -> np.ndarray:
    """The packed weight as float32[K, N]."""
    return np.asarray(kernels.rows(weight, np.arange(weight.outputs, dtype=np.int32))).T


def _blocks(kind: str, outputs: int, inputs: int, seed: int = 0, factor: float | None = None) -> np.ndarray:
    """Random blocks uint8[N, bytes]; every bit pattern but scales that are not finite, or those being `factor`."""
    size, nbytes = kernels.BLOCKS[kind]
    blocks = np.random.default_rng(seed).integers(0, 256, (outputs, inputs // size, nbytes), dtype=np.uint8)
    for scale in {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2)}.get(kind, (0,)):
        if factor is None:
            blocks[..., scale + 1] &= 0xBB  # the exponent is not 31
        else:
            blocks[..., scale : scale + 2] = np.array([factor], np.float16).view(np.uint8)
    return blocks.reshape(outputs, -1)


def _weights(inputs: int, outputs: int) -> dict[str, kernels.PackedWeight]:
    packed = {kind: kernels.pack(_random(inputs, inputs, outputs), kind) for kind in kernels.FLOATS}
    for kind, (size, _) in kernels.BLOCKS.items():
        if inputs % size == 0:
            packed[kind] = kernels.pack_blocks(_blocks(kind, outputs, inputs), kind)
    return packed


def _bound(x: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Of a float32 sum over K terms: K roundings of half a unit each, of at most the sum of magnitudes."""
    return x.shape[1] * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(dense)) + 1e-45


@pytest.mark.parametrize("inputs, outputs", [*SHAPES, (1280, 50), (1056, 50)])
def test_products_equal_a_float64_product_within_the_bound_of_their_sums(instruction_set, inputs, outputs):
    x = _random(1, MAX_ROWS, inputs)
    for kind, weight in _weights(inputs, outputs).items():
        dense = _dense(weight)
        got, want = _product(x, weight), x.astype(np.float64) @ dense
        bound = _bound(x, dense)
        if kernels.arithmetic(kind) == "int32":  # and half a step of each activation
            bound += np.abs(x).max(axis=1, keepdims=True) / 254 * np.abs(dense).sum(axis=0) * (1 + 1e-5)
        assert got.dtype == np.float32 and got.shape == (MAX_ROWS, outputs)
        assert (np.abs(got - want) <= bound).all(), kind


def test_the_bound_rejects_a_product_that_leaves_one_step_out(instruction_set):
    x, weight = _random(1, 4, 257), kernels.pack(_random(0, 257, 96), "float32")
    dense = _dense(weight)
    got = _product(np.where(np.arange(257) == 200, 0, x).astype(np.float32), weight)
    assert (np.abs(got - x.astype(np.float64) @ dense) > _bound(x, dense)).mean() > 0.9


@jax.jit
def _products(x, weights):
    return {kind: kernels.product(x, weight) for kind, weight in weights.items()}


@pytest.mark.parametrize("inputs, outputs", [(131, 49), pytest.param(768, 144, marks=pytest.mark.slow)])
def test_a_rows_bits_depend_on_no_other_row(instruction_set, inputs, outputs):
    x, weights = _random(2, 300, inputs), _weights(inputs, outputs)
    whole = _products(x, weights)
    for rows in (*range(1, MAX_ROWS + 1), 129, 257):
        for kind, part in _products(x[-rows:], weights).items():
            assert np.array_equal(part, whole[kind][-rows:]), (kind, rows)


@pytest.mark.parametrize("gated", [False, True])
def test_panels_that_few_rows_meet_side_by_side(instruction_set, gated):
    """Of large weights, which come from memory: the last of them are fewer than the others."""
    inputs, outputs = 404, 3200 * (1 + gated)  # 67 panels or twice as many, more than a megabyte in every form
    x, dense = _random(6, 11, inputs), _random(7, inputs, outputs)
    x[2, 5], x[7, 9] = np.nan, np.inf
    for kind in kernels.FLOATS:
        weight = kernels.pack(dense, kind, gated=gated)
        assert weight.words.nbytes > 1 << 20
        whole = _product(x, weight)  # of so many rows, one panel after the other
        for first in range(len(x)):
            for rows in (1, 2, 4, 5, 8):
                part = _product(x[first : first + rows], weight)
                assert np.array_equal(part, whole[first : first + rows], equal_nan=True), (kind, first, rows)
        columns = [kernels.pack(dense[:, some], kind) for some in np.split(np.arange(outputs), 32)]  # all of them small
        parts = np.concatenate([_product(x, one) for one in columns], axis=1)
        expected = parts[:, : outputs // 2] * parts[:, outputs // 2 :] if gated else parts
        assert np.array_equal(whole, expected, equal_nan=True), kind


def test_instruction_sets_with_fused_multiply_add_agree_in_every_bit():
    """But for blocks of a file, which those with VNNI sum in integers: they agree among themselves."""
    x, before, results = _random(3, 9, 768), kernels.available(), {}
    weights = _weights(768, 50)  # those of int8 too, whose sums are integers
    for name in INSTRUCTION_SETS:
        kernels.select(name)
        results[name] = {kind: _product(x, weight) for kind, weight in weights.items()}
    kernels.select(before)
    fused = [name for name in INSTRUCTION_SETS if name != "plain"]
    with_vnni = [name for name in fused if name in ("avx512_amx", "avx512_vnni")]
    for kind in weights:
        groups = [with_vnni, [name for name in fused if name not in with_vnni]] if kind in kernels.BLOCKS else [fused]
        for group in groups:
            assert all(np.array_equal(results[name][kind], results[group[0]][kind]) for name in group), (kind, group)


@pytest.mark.parametrize("kind", kernels.BLOCKS)
def test_blocks_are_summed_as_finely_as_by_floats(instruction_set, kind):
    """Errors against float64, beside those of float32's sums of the same weights, with and without a feature that is
    a million times the others."""
    weight = kernels.pack_blocks(_blocks(kind, 96, 2048, factor=0.01), kind)
    dense, x = _dense(weight), _random(4, 8, 2048)
    as_floats = kernels.pack(dense, "float32")
    for rows in (x, np.where(np.arange(2048) == 77, 1e6 * x, x).astype(np.float32)):
        exact = rows.astype(np.float64) @ dense
        ours, floats = (np.abs(_product(rows, each) - exact).mean(axis=1) for each in (weight, as_floats))
        assert (ours <= 1.5 * floats).all(), ours / floats


@pytest.mark.parametrize("kind", kernels.BLOCKS)
def test_ggufs_blocks_are_the_packages_numbers(instruction_set, kind):
    size, _ = kernels.BLOCKS[kind]
    for blocks in (3, 4):
        inputs = blocks * size
        raw = _blocks(kind, 50, inputs)
        want = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])  # [N, K]
        weight = kernels.pack_blocks(raw, kind)
        assert weight.shape == (inputs, 50)
        assert np.array_equal(_dense(weight).T, want)
        assert np.array_equal(_product(np.eye(inputs, dtype=np.float32), weight).T, want)


def test_subnormal_infinite_and_nan_scales_of_blocks(instruction_set):
    halves = np.array([0x0001, 0x83FF, 0x0400, 0x8000, 0x7BFF, 0x7C00, 0xFC00, 0x7E00], np.uint16)
    raw = np.zeros((len(halves), 34), np.uint8)
    raw[:, :2] = halves[:, None].view(np.uint8)
    raw[:, 2:] = np.arange(1, 33)
    want = gguf.dequantize(raw, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(_dense(kernels.pack_blocks(raw, "Q8_0")).T, want)


def test_bfloat16_and_float32_are_kept_exactly_and_int8_within_half_a_step(instruction_set):
    w = _random(4, 131, 50)
    assert np.array_equal(_dense(kernels.pack(w, "float32")), w)
    assert np.array_equal(_dense(kernels.pack(w, "bfloat16")), w.astype(ml_dtypes.bfloat16).astype(np.float32))
    steps = np.abs(w).max(axis=0) / 127
    assert (np.abs(_dense(kernels.pack(w, "int8")) - w) <= steps * 0.50001).all()


@pytest.mark.parametrize("kind", kernels.FLOATS)
def test_rows_that_are_not_finite_are_as_in_a_plain_product(instruction_set, kind):
    x, weight = _random(5, 11, 130), kernels.pack(_random(6, 130, 100), kind)
    clean = _product(x, weight)
    x[2, 7], x[5, 129], x[9, 0] = np.nan, np.inf, -np.inf
    got, dense = _product(x, weight), _dense(weight)
    with np.errstate(invalid="ignore"):
        want = np.stack([(row[:, None] * dense).sum(axis=0) for row in x])
    for row in (2, 5, 9):
        np.testing.assert_array_equal(got[row], want[row])
    others = [row for row in range(11) if row not in (2, 5, 9)]
    assert np.array_equal(got[others], clean[others])


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_as_in_a_plain_product(instruction_set, kind):
    w = np.abs(_random(7, 66, 60))
    w[3, 5], w[65, 59], w[0, 0], w[1, 0] = np.nan, np.inf, np.inf, -np.inf
    got = _product(np.ones((5, 66), np.float32), kernels.pack(w, kind))
    assert np.isnan(got[:, [0, 5]]).all() and (got[:, 59] == np.inf).all()
    assert np.isfinite(np.delete(got, [0, 5, 59], axis=1)).all()


def test_a_column_that_int8_cannot_hold_is_nan(instruction_set):
    w = _random(7, 66, 60)
    w[3, 5], w[:, 6], w[:, 7] = np.inf, 0, 1e-44
    got = _product(_random(8, 5, 66), kernels.pack(w, "int8"))
    assert np.isnan(got[:, 5]).all() and (got[:, 6] == 0).all() and np.isfinite(np.delete(got, 5, axis=1)).all()


def test_vanishing_and_zero_rows_in_int8(instruction_set):
    weight = kernels.pack(_random(9, 64, 50), "int8")
    x = np.stack([np.zeros(64), np.full(64, 1e-38), np.ones(64)]).astype(np.float32)
    got, want = _product(x, weight), x.astype(np.float64) @ _dense(weight)
    assert (got[0] == 0).all()
    np.testing.assert_allclose(got[1:], want[1:], rtol=1e-4, atol=1e-42)


def test_rows_beyond_the_real_ones_are_zeros(instruction_set):
    x, weight = _random(10, 21, 100), kernels.pack(_random(11, 100, 70), "bfloat16")
    whole = _product(x, weight)
    for real in (0, 1, 8, 20, 21, 99):
        got = _product(x, weight, np.int32(real))
        assert np.array_equal(got[:real], whole[:real]) and not got[real:].any()


def test_rows_of_a_table_by_id(instruction_set):
    table = _random(12, 101, 130)  # [V, D]
    ids = np.array([[0, 100, 47], [48, 5, 5]], np.int32)
    got = kernels.rows(kernels.pack(table.T, "float32"), jnp.asarray(ids))
    assert np.array_equal(got, table[ids])
    beyond = kernels.rows(kernels.pack(table.T, "float32"), jnp.asarray([-1, 101], jnp.int32))
    assert np.array_equal(beyond, table[[0, 100]])


@pytest.mark.parametrize("kind", ["float32", "int8", "Q8_0"])
def test_a_gated_weight_is_two(instruction_set, kind):
    if kind in kernels.FLOATS:
        w = _random(17, 64, 140)
        whole, halves = kernels.pack(w, kind, gated=True), [kernels.pack(half, kind) for half in np.split(w, 2, axis=1)]
    else:
        raw = _blocks(kind, 140, 64)
        whole, halves = kernels.pack_blocks(raw, kind, gated=True), [kernels.pack_blocks(h, kind) for h in np.split(raw, 2)]
    x = _random(18, 11, 64)
    gate, rest = (_product(x, half) for half in halves)
    got = np.asarray(kernels.product(jnp.asarray(x), whole, activation="relu"))
    assert np.array_equal(got, np.maximum(gate, 0) * rest)
    with pytest.raises(ValueError, match="even number of columns; this one has 3"):
        kernels.pack(np.ones((2, 3)), "float32", gated=True)


def test_packed_weights_are_not_copied_and_share_regions():
    small = [kernels.pack(_random(i, 70, 50), "bfloat16") for i in range(20)]
    addresses = sorted(weight.words.unsafe_buffer_pointer() for weight in small)
    assert all(address % 64 == 0 for address in addresses)
    assert sorted(np.diff(addresses))[len(small) // 2] == small[0].nbytes  # one behind the other


def test_products_in_many_threads_at_once():
    weights = [kernels.pack(_random(i, 512, 960), kind) for i, kind in enumerate(kernels.FLOATS)]
    program = jax.jit(kernels.product)
    x = jnp.asarray(_random(13, 6, 512))
    want = [np.asarray(program(x, weight)) for weight in weights]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, got in enumerate(pool.map(lambda i: np.asarray(program(x, weights[i % 3])), range(240))):
            assert np.array_equal(got, want[i % 3])


def test_products_in_a_loop_do_not_copy_their_weight():
    weight = kernels.pack(_random(14, 96, 96), "bfloat16")

    def run(x, weight):
        return jax.lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, kernels.product(s[1], weight)), (0, x))[1]

    x = jnp.asarray(_random(15, 3, 96)) / 10
    compiled = jax.jit(run).lower(x, weight).compile()
    assert f"u32[{','.join(map(str, weight.words.shape))}]" in compiled.as_text()
    assert not [line for line in compiled.as_text().splitlines() if " copy(" in line and "u32[2," in line]
    want = x
    for _ in range(5):
        want = kernels.product(want, weight)
    assert np.array_equal(compiled(x, weight), want)


def test_shapes_and_kinds_that_do_not_fit_are_refused():
    weight = kernels.pack(_random(16, 8, 6), "float32")
    with pytest.raises(ValueError, match="x has 7 features"):
        kernels.product(jnp.ones((2, 7)), weight)
    with pytest.raises(ValueError, match="'float16'; floats are packed as one of float32, bfloat16, int8"):
        kernels.pack(np.ones((2, 2)), "float16")
    with pytest.raises(ValueError, match=r"two axes.*\(2, 0\)"):
        kernels.pack(np.ones((2, 0)), "float32")
    with pytest.raises(ValueError, match="blocks of 34 bytes"):
        kernels.pack_blocks(np.zeros((2, 35), np.uint8), "Q8_0")
    with pytest.raises(ValueError, match="'Q2_K'"):
        kernels.pack_blocks(np.zeros((2, 84), np.uint8), "Q2_K")
    with pytest.raises(ValueError, match="'sse9', which is no instruction set"):
        kernels.select("sse9")


def _python(code: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_environment_chooses_the_instruction_set():
    ask = "from decoding import kernels; print(kernels.available(), kernels.instruction_sets() != ())"
    assert _python(ask, SPECBEAM_KERNELS="plain").stdout == "plain True\n"
    assert _python(ask, SPECBEAM_KERNELS="off").stdout == "None False\n"
    wrong = _python(ask, SPECBEAM_KERNELS="sse9")
    assert wrong.returncode and "SPECBEAM_KERNELS is 'sse9'" in wrong.stderr


def test_without_a_compiler_that_works_one_line_says_so(tmp_path):
    done = _python(
        "from decoding import kernels; from decoding.kernels import build\n"
        "build.compilers = lambda: [['false']]\n"
        "print(kernels.available(), kernels.available())",
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert done.stdout == "None None\n"
    assert len(done.stderr.splitlines()) == 1 and "products of the processor's own are not used: false" in done.stderr


@pytest.mark.slow
def test_the_library_is_built_once_and_whole(tmp_path, monkeypatch):
    compiler, commands, run = build.compilers()[0], [], build._run
    monkeypatch.setattr(build, "_run", lambda command: commands.append(command) or run(command))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # both at once
        first, second = pool.map(lambda _: build.build(compiler, tmp_path), range(2))
    assert first == second and {path.name for path in tmp_path.iterdir()} == {first.name, f"{first.name}.lock"}
    assert build.build(compiler, tmp_path) == first
    assert sum("-shared" in command for command in commands) == 1


@pytest.mark.slow
def test_pypis_compiler_builds_the_same_products(tmp_path):
    pytest.importorskip("ziglang")
    path = build.build([sys.executable, "-m", "ziglang", "c++"], tmp_path)
    code = (
        "import hashlib, numpy as np, jax.numpy as jnp; from decoding import kernels; from decoding.kernels import build\n"
        "if PATH: build.load = lambda: build.ctypes.CDLL(PATH)\n"
        "random = np.random.default_rng(0).standard_normal\n"
        "x, w = random((9, 512), np.float32), random((512, 100), np.float32)\n"
        "blocks = {kind: np.random.default_rng(1).integers(0, 59, (100, 512 // size * n), np.uint8)\n"
        "          for kind, (size, n) in kernels.BLOCKS.items()}\n"
        "weights = {kind: kernels.pack(w, kind) for kind in kernels.FLOATS}\n"
        "weights |= {kind: kernels.pack_blocks(raw, kind) for kind, raw in blocks.items()}\n"
        "for name in kernels.instruction_sets():\n"
        "    kernels.select(name)\n"
        "    for kind, weight in weights.items():\n"
        "        y = np.asarray(kernels.product(jnp.asarray(x), weight))\n"
        "        print(name, kind, hashlib.sha256(y.tobytes()).hexdigest())\n"
    )
    ours, zigs = (_python(code.replace("PATH", repr(p))) for p in ("", str(path)))
    assert zigs.stdout == ours.stdout and ours.stdout.count("\n") == len(kernels.KINDS) * len(INSTRUCTION_SETS), zigs.stderr


@pytest.mark.soak  # its libraries are compiled first, in minutes
def test_another_kind_of_processor_can_be_compiled_for(tmp_path, monkeypatch):
    """AArch64, with NEON, by PyPI's compiler: that the sources are its C++ too, not that they run there."""
    pytest.importorskip("ziglang")
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    path = build.build([sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"], tmp_path)
    assert path.read_bytes()[18:20] == (183).to_bytes(2, "little")  # ELF's e_machine
