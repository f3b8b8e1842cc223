"""T5 against the reference implementation's own numbers (tests/testdata/golden)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import decoding
from tests.support import tiny_t5

FOLDERS = ["t5_v1_1_target", "t5_v1_1_draft", "t5_v1_0"]


@pytest.fixture(scope="module")
def reference(golden):
    """Name -> (model, arrays of golden.npz)."""

    @functools.cache
    def load(name: str):
        return decoding.load_model(str(golden / name)), dict(np.load(golden / name / "golden.npz"))

    return load


def inserted(resident, new):
    """The state with prefilled rows written at the origin of its rows, as the engine does."""
    if isinstance(new, dict):
        return resident | {name: inserted(resident[name], new[name]) for name in new}
    return jax.tree.map(
        lambda whole, part: whole.at[tuple(slice(0, size) for size in part.shape)].set(part), resident, new
    )


class Stepper:
    """A model's compiled prefill and steps over a resident state longer than the input needs."""

    def __init__(self, model, arrays, max_positions: int):
        self._graph, self._params = nnx.split(model)
        inputs, lengths = arrays["input_ids"], arrays["attention_mask"].sum(axis=1).astype(np.int32)

        def start(params):
            model = nnx.merge(self._graph, params)
            state = model.init_state(len(inputs), inputs.shape[1] + 10, max_positions)
            return inserted(state, model.prefill(jnp.asarray(inputs), jnp.asarray(lengths)))

        self.state = jax.jit(start)(self._params)
        self._step = jax.jit(lambda params, *args, **kwargs: nnx.merge(self._graph, params).step(*args, **kwargs))

    def step(self, tokens, positions, **kwargs):
        logits, self.state = self._step(self._params, jnp.asarray(tokens), jnp.asarray(positions), self.state, **kwargs)
        return np.asarray(logits)


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_in_one_pass(reference, name):
    model, arrays = reference(name)
    lengths = arrays["attention_mask"].sum(axis=1).astype(np.int32)
    logits = np.asarray(model.logits(arrays["decoder_input_ids"], arrays["input_ids"], lengths))
    assert logits.dtype == np.float32 and logits.shape == arrays["logits"].shape
    assert np.abs(logits - arrays["logits"]).max() < 1e-4


def test_padding_of_inputs_changes_nothing(reference):
    model, arrays = reference("t5_v1_1_target")
    lengths = arrays["attention_mask"].sum(axis=1).astype(np.int32)
    garbage = np.where(arrays["attention_mask"] == 1, arrays["input_ids"], 77)
    fed = arrays["decoder_input_ids"][:, :10]
    logits = np.asarray(model.logits(fed, garbage, lengths))
    assert np.abs(logits - arrays["logits"][:, :10]).max() < 1e-4
    assert lengths[2] == 5
    alone = np.asarray(model.logits(fed[2:], arrays["input_ids"][2:, :5], lengths[2:]))
    assert np.abs(alone - arrays["logits"][2:, :10]).max() < 1e-4


@pytest.mark.parametrize("name", FOLDERS)
def test_step_by_step_with_rows_at_their_own_positions(reference, name):
    """S = 1.  Rows that wait are fed garbage at their position, which the next step overwrites."""
    model, arrays = reference(name)
    fed, wanted = arrays["decoder_input_ids"], arrays["logits"]
    stepper = Stepper(model, arrays, max_positions=fed.shape[1] + 3)
    rng, positions, worst = np.random.default_rng(0), np.zeros(3, np.int32), 0.0
    rows, spread = np.arange(3), 0
    while positions.min() < fed.shape[1]:
        moving = (positions < fed.shape[1]) & (rng.uniform(size=3) < [1.0, 0.6, 0.8])
        place = np.minimum(positions, fed.shape[1] - 1)
        tokens = np.where(moving, fed[rows, place], rng.integers(0, 384, 3)).astype(np.int32)
        logits = stepper.step(tokens[:, None], positions)
        assert logits.shape == (3, 1, 384)
        worst = max(worst, np.abs(logits[:, 0] - wanted[rows, place])[moving].max(initial=0.0))
        positions = positions + moving.astype(np.int32)
        spread = max(spread, np.ptp(positions))
    assert worst < 1e-4 and spread > 10


@pytest.mark.parametrize("name", FOLDERS)
def test_blocks_of_8_with_rejected_tails(reference, name):
    """S = 8.  Of each block the first n tokens are right, n differing by row; the rest is garbage to be overwritten."""
    model, arrays = reference(name)
    fed, wanted = arrays["decoder_input_ids"], arrays["logits"]
    length = fed.shape[1]
    stepper = Stepper(model, arrays, max_positions=length + 8)
    rng, positions, worst, ends = np.random.default_rng(1), np.zeros(3, np.int32), 0.0, set()
    while positions.min() < length:
        right = np.minimum(rng.integers(1, 9, 3), length - positions)
        tokens = rng.integers(0, 384, (3, 8)).astype(np.int32)
        for row in range(3):
            tokens[row, : right[row]] = fed[row, positions[row] : positions[row] + right[row]]
        logits = stepper.step(tokens, positions)
        for row in range(3):
            if right[row]:
                span = slice(positions[row], positions[row] + right[row])
                worst = max(worst, np.abs(logits[row, : right[row]] - wanted[row, span]).max())
        positions = positions + right.astype(np.int32)
        ends.add(tuple(positions - positions.min()))
    assert worst < 1e-4 and len(ends) > 10


def test_at_picks_one_position_of_a_block(reference):
    model, arrays = reference("t5_v1_1_draft")
    fed, wanted = arrays["decoder_input_ids"], arrays["logits"]
    stepper = Stepper(model, arrays, max_positions=20)
    at = np.array([1, 0, 1], np.int32)
    logits = stepper.step(fed[:, :2], np.zeros(3, np.int32), at=at)
    assert logits.shape == (3, 1, 384)
    assert np.abs(logits[:, 0] - wanted[np.arange(3), at]).max() < 1e-4
    logits = stepper.step(fed[:, 2:4], np.full(3, 2, np.int32), at=np.zeros(3, np.int32))
    assert np.abs(logits[:, 0] - wanted[:, 2]).max() < 1e-4


def test_the_tests_above_would_notice_a_stale_cache_entry(reference):
    model, arrays = reference("t5_v1_1_draft")
    fed, wanted = arrays["decoder_input_ids"], arrays["logits"]
    stepper = Stepper(model, arrays, max_positions=20)
    tokens = fed[:, :8].copy()
    tokens[:, 4] = (tokens[:, 4] + 1) % 384
    stepper.step(tokens, np.zeros(3, np.int32))
    logits = stepper.step(fed[:, 8:9], np.full(3, 8, np.int32))
    assert np.all(np.abs(logits[:, 0] - wanted[:, 8]).max(axis=-1) > 1e-3)


# Greedy tokens.


def unpadded(arrays) -> list[list[int]]:
    lengths = arrays["attention_mask"].sum(axis=1)
    return [row[:length].tolist() for row, length in zip(arrays["input_ids"], lengths)]


def assert_greedy(rows, wanted):
    """Generations equal the reference's greedy tokens, which go on with padding after EOS."""
    for row, reference in zip(rows, wanted, strict=True):
        length = len(row.tokens)
        assert row.tokens.tolist() == reference[1 : length + 1].tolist()
        assert length == 64 or (row.finish_reason == "eos" and not reference[length + 1 :].any())


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        *((name, 3) for name in FOLDERS),
        (FOLDERS[0], 1),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in FOLDERS[1:]),
    ],
)
def test_greedy_tokens_are_the_references(reference, name, batch):
    model, arrays = reference(name)
    config = decoding.DecodingConfig(
        gamma=0, temperature=0.0, max_decode_tokens=64, num_slots=batch, input_buckets=(160,)
    )
    rows = decoding.Generator(model, None, config).generate(unpadded(arrays), ["a", "b", "c"])
    assert_greedy(rows, arrays["greedy"])


@pytest.mark.parametrize(
    ("gamma", "slots"),
    [(7, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 2), (2, 3), (4, 3), (4, 1), (7, 2)])],
)
def test_speculative_greedy_tokens_are_the_references(reference, gamma, slots):
    (target, arrays), (draft, _) = reference("t5_v1_1_target"), reference("t5_v1_1_draft")
    config = decoding.DecodingConfig(
        gamma=gamma, temperature=0.0, max_decode_tokens=64, num_slots=slots, input_buckets=(160,)
    )
    rows = decoding.Generator(target, draft, config).generate(unpadded(arrays), ["a", "b", "c"])
    assert_greedy(rows, arrays["greedy"])


# bfloat16.


def test_bfloat16_parameters_give_nearby_float32_logits(golden, reference):
    _, arrays = reference("t5_v1_1_target")
    model = decoding.load_model(str(golden / "t5_v1_1_target"), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("bfloat16")}
    lengths = arrays["attention_mask"].sum(axis=1).astype(np.int32)
    logits = np.asarray(model.logits(arrays["decoder_input_ids"], arrays["input_ids"], lengths))
    assert logits.dtype == np.float32
    error = np.abs(logits - arrays["logits"])
    assert np.isfinite(logits).all() and 1e-4 < error.mean() < 0.1 < 1.0 < arrays["logits"].std()


def test_steps_agree_with_one_pass_for_another_shape(tmp_path):
    shape = tiny_t5.config(20, feed_forward_proj="gated-silu", num_layers=2, num_decoder_layers=3)
    model = decoding.load_model(tiny_t5.write(tmp_path, shape, tiny_t5.weights(shape, 0)))
    fed = np.random.default_rng(0).integers(0, 20, (2, 30)).astype(np.int32)
    arrays = {"input_ids": fed[:, :6], "attention_mask": np.ones((2, 6), np.int32)}
    whole = np.asarray(model.logits(fed, fed[:, :6], np.array([6, 6], np.int32)))
    stepper = Stepper(model, arrays, max_positions=32)
    for start in range(0, 30, 5):
        logits = stepper.step(fed[:, start : start + 5], np.full(2, start, np.int32))
        assert np.abs(logits - whole[:, start : start + 5]).max() < 1e-4
