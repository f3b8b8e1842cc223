"""Standardised distributions, the draw from them, and the random numbers behind it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from decoding import DecodingConfig, sampling
from decoding.verification import Noise, rule_for
from tests.support import reference

STREAMS = (sampling.DRAFT_STREAM, sampling.ACCEPT_STREAM, sampling.NEXT_STREAM)
draw = jax.jit(sampling.draw)
uniforms = jax.jit(sampling.uniforms, static_argnums=(2, 3))
exponentials = jax.jit(sampling.exponentials, static_argnums=(2, 3))
gumbel_noise = jax.jit(sampling.gumbel_noise, static_argnums=2)


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


@pytest.mark.parametrize("temperature", [1e-30, 1e8, 1e30, 1e38, 1e300])
def test_extreme_temperatures_keep_what_top_k_and_top_p_keep(temperature):
    logits = np.array([[3.0, 1.0, 2.0, -1.0, -np.inf, 0.5], [80.0, -80.0, 1e4, 79.0, 0.0, -1e4]], np.float32)
    run = lambda **settings: np.asarray(sampling.standardize(logits, DecodingConfig(temperature=temperature, **settings)))
    best = [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(run(top_k=1), best)
    if temperature < 1:
        for settings in (dict(), dict(top_k=2), dict(top_p=0.5)):
            np.testing.assert_array_equal(run(**settings), best)
        return
    tolerance = dict(atol=1e-6) if temperature > 1e8 else dict(atol=1e-4)
    np.testing.assert_allclose(run(), [[0.2, 0.2, 0.2, 0.2, 0, 0.2], [1 / 6] * 6], **tolerance)
    two = [[0.5, 0, 0.5, 0, 0, 0], [0.5, 0, 0.5, 0, 0, 0]]
    np.testing.assert_allclose(run(top_k=2), two, **tolerance)
    np.testing.assert_allclose(run(top_p=0.3), two, **tolerance)
    np.testing.assert_allclose(run(top_k=3, top_p=0.6), two, **tolerance)


# The draw.


def times_of(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """float32[rows, draw_times(size)]: the extremes of `exponentials` among others."""
    times = rng.exponential(size=(rows, sampling.draw_times(size)))
    extreme = rng.choice([2.0**-33, 2.0**-31, 16.6], size=times.shape)
    return np.where(rng.uniform(size=times.shape) < 0.1, extreme, times).astype(np.float32)


@pytest.mark.parametrize("size", [1, 7, 128, 129, 384])
def test_draw_never_returns_a_token_of_weight_0(size):
    rng = np.random.default_rng(size)
    weights = rng.exponential(size=(4000, size)) ** 3 * (rng.uniform(size=(4000, size)) < rng.uniform(size=(4000, 1)))
    weights[np.arange(4000), rng.integers(0, size, 4000)] += rng.uniform(1e-30, 1e-3, 4000)
    weights = (weights * 10.0 ** rng.uniform(-8, 3, (4000, 1))).astype(np.float32)
    drawn = np.asarray(draw(weights, times_of(rng, 4000, size)))
    assert np.all((drawn >= 0) & (drawn < size))
    assert np.all(weights[np.arange(4000), drawn] > 0)


def test_draw_is_the_race_of_blocks_and_then_of_lanes():
    rng, size = np.random.default_rng(0), 300
    weights = rng.exponential(size=(2000, size)).astype(np.float32) ** 4
    times = times_of(rng, 2000, size)
    padded = np.pad(weights.astype(np.float64), ((0, 0), (0, 84))).reshape(2000, 3, 128)
    block = np.argmin(times[:, :3] / padded.sum(-1), axis=1)
    with np.errstate(divide="ignore"):
        lane = np.argmin(times[:, 3:] / padded[np.arange(2000), block], axis=1)
    assert np.mean(np.asarray(draw(weights, times)) == 128 * block + lane) > 0.999  # but for ties of rounding


@pytest.mark.parametrize("size", [5, 300])
def test_draws_have_the_law_of_the_weights(size):
    rng, rows = np.random.default_rng(0), 200_000
    weights = rng.exponential(size=size).astype(np.float32)
    weights[rng.choice(size, size // 3, replace=False)] = 0
    keys = rng.integers(0, 2**32, (rows, 2), np.uint32)
    times = exponentials(keys, np.zeros(rows, np.int32), sampling.NEXT_STREAM, sampling.draw_times(size))
    counts = np.bincount(np.asarray(draw(np.broadcast_to(weights, (rows, size)), times)), minlength=size)
    law = weights[weights > 0] / weights.sum(dtype=np.float64)
    assert stats.chisquare(counts[weights > 0], law * rows).pvalue > 1e-6


# Tails: a token of probability 1, nearly, beside many that hardly ever come.


def tail_p_value(drawn: np.ndarray, vocab_size: int, probability: float, likely: int) -> float:
    """The least of p-values that draws fall into the tail as often as they should, and anywhere within it."""
    mass = (vocab_size - 1) * probability
    places, expected = drawn[drawn != likely], len(drawn) * mass / (1 + mass)
    often = 2 * min(stats.poisson.cdf(len(places), expected), stats.poisson.sf(len(places) - 1, expected))
    even = lambda values, size: stats.kstest((values + 0.5) / size, "uniform").pvalue if len(values) else 0.0
    return min(often, even(places, vocab_size), even(places % 128, 128))


def keys_of(number: jax.Array, rows: int) -> jax.Array:
    return jnp.stack([jnp.full(rows, number, jnp.uint32), jnp.arange(rows, dtype=jnp.uint32)], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["token", pytest.param("coupled", marks=pytest.mark.soak)])
def test_tail_tokens_are_drawn_as_often_as_they_should(verification):
    config, rows, vocab_size, probability = DecodingConfig(gamma=0, verification=verification), 1000, 4096, np.exp(-17.0)
    logits = np.full(vocab_size, np.log(probability), np.float32)
    logits[900] = 0.0

    @jax.jit
    def choose(number):
        zeros = jnp.zeros(rows, jnp.int32)
        given = jnp.broadcast_to(logits, (rows, vocab_size))
        return rule_for(config).plain(given, Noise(keys_of(number, rows), zeros))

    drawn = np.concatenate([np.asarray(choose(number)) for number in range(100)])
    assert tail_p_value(drawn, vocab_size, probability, 900) > 1e-6  # 17 of the tail are expected


@pytest.mark.soak
@pytest.mark.parametrize("likely", [0, 77_777, 262_143])
def test_tail_tokens_of_1e_9_in_a_million_draws(likely):
    vocab_size, rows = 262_144, 1000
    weights = jnp.full((1, vocab_size), 1e-9).at[0, likely].set(1.0)

    @jax.jit
    def run(number):
        zeros, count = jnp.zeros(rows, jnp.int32), sampling.draw_times(vocab_size)
        times = sampling.exponentials(keys_of(number, rows), zeros, sampling.NEXT_STREAM, count)
        return jax.vmap(lambda one: sampling.draw(weights, one[None])[0])(times)

    drawn = np.concatenate([np.asarray(run(number)) for number in range(1000)])
    assert tail_p_value(drawn, vocab_size, 1e-9, likely) > 1e-6  # 262 of the tail are expected


@pytest.mark.slow
def test_times_are_exponential_down_to_1e_9():
    count, rounds = 2**22, 64
    least = np.concatenate([
        np.sort(np.asarray(exponentials(keys_of(number, 1), np.zeros(1, np.int32), sampling.COUPLED_STREAM, count))[0])[:64]
        for number in range(rounds)
    ])  # fmt: skip
    for below in (1e-9, 1e-8, 1e-7, 1e-6):
        expected, seen = count * rounds * below, np.count_nonzero(least < below)
        assert stats.poisson.cdf(seen, expected) > 1e-6 and stats.poisson.sf(seen - 1, expected) > 1e-6
    # Conditioned on being below 1e-6, they are uniform there, and not on a grid of 2^-23.
    assert stats.kstest(least[least < 1e-6] / 1e-6, "uniform").pvalue > 1e-6


def test_acceptance_tells_ratios_of_1e_9_from_others():
    """u < t for t far below the 2^-23 of jax.random.uniform: 2^24 numbers, thresholds around 2^-24 and a count of 2^-9."""
    keys = np.stack([np.arange(64, dtype=np.uint32)] * 2, axis=1)
    drawn = np.asarray(uniforms(keys, np.zeros(64, np.int32), sampling.ACCEPT_STREAM, 2**20)).ravel()
    for threshold in (2.0**-20, 2.0**-22, 2.0**-24):
        expected = drawn.size * threshold
        count = np.count_nonzero(drawn < threshold)
        assert stats.poisson.cdf(count, expected) > 1e-6 and stats.poisson.sf(count - 1, expected) > 1e-6
    assert 0 < drawn.min() < 2.0**-23 and drawn.max() < 1
    words = jnp.array([0, 4, 2**31, 2**32 - 1], jnp.uint32)
    assert sampling._fractions(words).tolist() == [2.0**-33, 4.5 * 2.0**-32, 0.5, 1 - 2.0**-24]


# Random numbers.


def test_uniforms_differ_by_row_position_stream_and_place_and_look_uniform():
    keys = np.stack([sampling.row_key(0, f"{i}", sample) for i in range(30) for sample in range(2)])
    keys = np.repeat(keys, 20, axis=0)
    positions = np.tile(np.arange(20, dtype=np.int32), 60)
    drawn = np.stack([np.asarray(uniforms(keys, positions, stream, 8)) for stream in STREAMS])
    assert drawn.shape == (3, 1200, 8) and drawn.dtype == np.float32
    assert np.all((drawn > 0) & (drawn < 1))
    # 28,800 numbers of 2**24 or more possible values: about 25 coincidences are expected, a reused stream has 8 more
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
