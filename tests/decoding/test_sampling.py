"""Standardised distributions, the draw from them, and the random numbers behind it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from decoding import DecodingConfig, sampling
from tests.support import reference

STREAMS = (sampling.DRAFT_STREAM, sampling.ACCEPT_STREAM, sampling.NEXT_STREAM)
draw = jax.jit(sampling.draw)
uniforms = jax.jit(sampling.uniforms, static_argnums=(2, 3))
gumbel_noise = jax.jit(sampling.gumbel_noise, static_argnums=2)
JUST_BELOW_1 = np.float32(1) - np.float32(2) ** -24


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (1, 1.0), (4, 1.0), (0, 0.3), (0, 0.9), (5, 0.6), (50, 0.999)])
def test_standardize_agrees_with_the_reference(temperature, top_k, top_p):
    logits = (np.random.default_rng(0).normal(size=(40, 3, 17)) * 3).astype(np.float32)
    found = np.asarray(sampling.standardize(logits, DecodingConfig(temperature=temperature, top_k=top_k, top_p=top_p)))
    wanted, clear = reference.standardize(logits, temperature, top_k, top_p), np.ones(logits.shape[:-1], bool)
    if top_p < 1.0:  # a float32 sum may fall on the other side of an edge closer than this
        clear = reference.nucleus_margin(logits, temperature, top_k, top_p) > 1e-5
        assert np.mean(clear) > 0.95
    np.testing.assert_allclose(found[clear], wanted[clear], atol=2e-6)
    np.testing.assert_array_equal(found[clear] > 0, wanted[clear] > 0)


def test_standardize_of_worked_examples():
    probs = np.array([0.5, 0.25, 0.15, 0.1])
    run = lambda **settings: np.asarray(sampling.standardize(jnp.log(jnp.array(probs)), DecodingConfig(**settings)))
    np.testing.assert_allclose(run(), probs, atol=1e-6)
    np.testing.assert_allclose(run(temperature=0.5), probs**2 / np.sum(probs**2), atol=1e-6)
    np.testing.assert_allclose(run(top_k=2), [2 / 3, 1 / 3, 0, 0], atol=1e-6)
    np.testing.assert_allclose(run(top_p=0.7), [2 / 3, 1 / 3, 0, 0], atol=1e-6)
    np.testing.assert_allclose(run(top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0], atol=1e-6)
    np.testing.assert_allclose(run(top_p=1e-6), [1, 0, 0, 0], atol=1e-6)
    # The order is temperature, top-k, top-p: top-p sees the 2/3 that top-k leaves to the first, not its 1/2.
    np.testing.assert_allclose(run(top_k=2, top_p=0.6), [1, 0, 0, 0], atol=1e-6)
    # The order is temperature first: at temperature 0.5 the first has 0.72, enough for a nucleus of 0.7.
    np.testing.assert_allclose(run(temperature=0.5, top_p=0.7), [1, 0, 0, 0], atol=1e-6)


def test_ties_with_the_last_kept_token_are_kept_in_any_order():
    logits = np.array([2.0, 1.0, 1.0, 1.0, -1.0])
    for order in itertools.permutations(range(5)):
        for settings in (dict(top_k=2), dict(top_p=0.6)):
            probs = np.asarray(sampling.standardize(jnp.array(logits[list(order)]), DecodingConfig(**settings)))
            np.testing.assert_array_equal(probs > 0, logits[list(order)] > 0)


def test_standardize_takes_extreme_logits():
    logits = np.array([[80.0, -80.0, 0.0], [1e4, 0.0, -1e4], [0.0, -np.inf, -np.inf]], np.float32)
    for settings in (dict(), dict(temperature=0.01), dict(top_k=2), dict(top_p=0.5)):
        probs = np.asarray(sampling.standardize(logits, DecodingConfig(**settings)))
        np.testing.assert_allclose(probs, [[1, 0, 0]] * 3, atol=1e-6)


# The draw.


@pytest.mark.parametrize("size", [1, 7, 128, 129, 384])
def test_draw_never_returns_a_token_of_weight_0(size):
    rng = np.random.default_rng(size)
    weights = rng.exponential(size=(2000, size)) ** 3 * (rng.uniform(size=(2000, size)) < rng.uniform(size=(2000, 1)))
    weights[np.arange(2000), rng.integers(0, size, 2000)] += rng.uniform(1e-30, 1e-3, 2000)
    weights = (weights * 10.0 ** rng.uniform(-8, 3, (2000, 1))).astype(np.float32)
    for u in (np.zeros(2000), np.full(2000, JUST_BELOW_1), np.full(2000, 2.0**-24), rng.uniform(size=2000)):
        drawn = np.asarray(draw(weights, u.astype(np.float32)))
        assert np.all((drawn >= 0) & (drawn < size))
        assert np.all(weights[np.arange(2000), drawn] > 0)


def test_draw_at_the_ends_of_blocks_and_of_the_vocabulary():
    for size, support in [(300, [0]), (300, [127]), (300, [128]), (300, [299]), (300, [5, 299]), (256, [0, 255])]:
        weights = np.zeros((1, size), np.float32)
        weights[0, support] = 0.1
        for u, wanted in [(0.0, support[0]), (JUST_BELOW_1, support[-1])]:
            assert int(draw(weights, np.float32([u]))[0]) == wanted


def test_draw_where_a_block_seems_to_begin_behind_the_end_of_the_one_before():
    """As rounded, the first block ends at `first` and the second begins at (first + second) - second, often later."""
    first, second = np.random.default_rng(0).uniform(0.1, 1, (2, 5000)).astype(np.float32)
    weights = np.zeros((5000, 256), np.float32)
    weights[:, 5], weights[:, 200] = first, second
    u = first / (first + second)
    between = (u * (first + second) >= first) & (u * (first + second) < (first + second) - second)
    assert np.sum(between) > 500
    for goals in (u, np.ceil(u * 2**23) * np.float32(2**-23)):  # the latter as `uniforms` makes them
        assert set(np.asarray(draw(weights, goals)).tolist()) == {5, 200}


@pytest.mark.parametrize("size", [5, 300])
def test_draw_inverts_the_cumulative_distribution(size):
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=size).astype(np.float32)
    weights[rng.choice(size, size // 3, replace=False)] = 0
    grid = ((np.arange(100_000) + 0.5) / 100_000).astype(np.float32)
    drawn = np.asarray(draw(np.broadcast_to(weights, (100_000, size)), grid))
    shares = np.bincount(drawn, minlength=size) / 100_000
    np.testing.assert_allclose(shares, weights / weights.sum(dtype=np.float64), atol=3e-5)


# Random numbers.


def test_uniforms_differ_by_row_position_stream_and_place_and_look_uniform():
    keys = np.stack([sampling.row_key(0, f"{i}", sample) for i in range(30) for sample in range(2)])
    keys = np.repeat(keys, 20, axis=0)
    positions = np.tile(np.arange(20, dtype=np.int32), 60)
    drawn = np.stack([np.asarray(uniforms(keys, positions, stream, 8)) for stream in STREAMS])
    assert drawn.shape == (3, 1200, 8) and drawn.dtype == np.float32
    assert np.all((drawn >= 0) & (drawn < 1))
    # 28,800 numbers of 2**23 or more possible values: about 50 coincidences are expected, a reused stream has 8 more
    # for every row and position that share it.
    assert drawn.size - len(np.unique(drawn)) < 150
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 1e-6
    # Streams of one iteration are independent of each other, and places of one stream too.
    for a, b in [(drawn[0, :, 0], drawn[1, :, 0]), (drawn[1, :, 0], drawn[2, :, 0]), (drawn[0, :, 0], drawn[0, :, 1])]:
        assert stats.pearsonr(a, b).pvalue > 1e-6


def test_uniforms_of_a_row_do_not_depend_on_its_neighbours():
    keys = np.stack([sampling.row_key(3, f"{i}", 0) for i in range(50)])
    positions = np.arange(50, dtype=np.int32)
    together = np.asarray(uniforms(keys, positions, sampling.ACCEPT_STREAM, 5))
    for i in (0, 17, 49):
        alone = uniforms(keys[i : i + 1], positions[i : i + 1], sampling.ACCEPT_STREAM, 5)
        np.testing.assert_array_equal(np.asarray(alone)[0], together[i])


def test_keys_are_64_bits_of_everything_that_names_a_row():
    keys = {
        tuple(sampling.row_key(seed, f"{i}", sample)) for seed in range(3) for i in range(2000) for sample in range(3)
    }
    assert len(keys) == 18_000
    halves = [{key[i] for key in keys} for i in range(2)]
    assert all(len(half) > 17_990 for half in halves), "both words must carry the hash"
    # Nothing is confused by moving a digit or a separator from one part to another.
    assert tuple(sampling.row_key(1, "2", 3)) != tuple(sampling.row_key(1, "3", 2))
    assert tuple(sampling.row_key(1, "12", 3)) != tuple(sampling.row_key(11, "2", 3))
    assert tuple(sampling.row_key(1, "\x002", 3)) != tuple(sampling.row_key(1, "2", 3))
    assert sampling.row_key(0, "\ud800", 0).shape == (2,), "ids from broken input must not crash"


def test_keys_are_pinned():
    # Were these to change, no recorded run could be reproduced.
    key = np.array([1981410109, 2038884097], np.uint32)
    np.testing.assert_array_equal(sampling.row_key(0, "example", 0), key)
    found = uniforms(key[None], np.array([3], np.int32), sampling.ACCEPT_STREAM, 3)
    np.testing.assert_allclose(np.asarray(found)[0], [0.3498046, 0.8644103, 0.4418229], atol=1e-6)


def test_gumbel_noise_belongs_to_row_and_position():
    keys = np.stack([sampling.row_key(0, f"{i}", 0) for i in range(200)])
    positions = np.full(200, 7, np.int32)
    noise = np.asarray(gumbel_noise(keys, positions, 50))
    np.testing.assert_array_equal(noise[:1], gumbel_noise(keys[:1], positions[:1], 50))
    assert not np.any(noise == np.asarray(gumbel_noise(keys, positions + 1, 50)))
    assert np.all(np.isfinite(noise))
    assert stats.kstest(noise.ravel(), "gumbel_r").pvalue > 1e-6


def test_log_prob_is_of_the_raw_logits():
    logits = np.random.default_rng(0).normal(size=(4, 3, 9)).astype(np.float32) * 5
    tokens = np.random.default_rng(1).integers(0, 9, (4, 3))
    wanted = np.log(reference.standardize(logits))
    found = np.asarray(sampling.log_prob(jnp.asarray(logits), jnp.asarray(tokens)))
    np.testing.assert_allclose(found, np.take_along_axis(wanted, tokens[..., None], -1)[..., 0], atol=1e-5)
    assert jax.jit(sampling.log_prob)(logits, tokens).dtype == jnp.float32
