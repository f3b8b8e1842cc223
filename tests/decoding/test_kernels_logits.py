"""Rows over the vocabulary by `decoding.kernels`: what XLA computes at the same door, and the same bits for any rows beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding import DecodingConfig, kernels, sampling
from decoding.kernels import logits as own

if kernels.available() is None:
    pytest.skip("the products cannot be built on this machine", allow_module_level=True)

SIZES = [1, 7, 130, 5003]
LAWS = [
    dict(),
    dict(temperature=0.7, top_k=5),
    dict(top_p=0.9),
    dict(temperature=1.5, top_k=40, top_p=0.8),
    dict(temperature=1e-30, top_p=0.5),
    dict(temperature=1e300, top_k=3),
]


def _logits(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32) * 4


def _both(function, *arguments):
    """What XLA and what the kernels make of it."""
    return tuple(jax.tree.map(np.asarray, jax.jit(each)(*arguments)) for each in (function, own.used_by(function)))


@pytest.mark.parametrize("size", SIZES)
def test_distributions_and_their_sums(vector_set, size):
    x = _logits(3, 4, size)
    x[0, 0, : size // 2] = -np.inf
    exact = np.log(np.exp(x.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(_both(sampling.log_normalizer, x)[1], exact, rtol=3e-7, atol=3e-7)
    for law in LAWS:
        theirs, mine = _both(lambda x, law=law: sampling.standardize(x, DecodingConfig(**law)), x)
        np.testing.assert_allclose(mine, theirs, atol=5e-7)
        np.testing.assert_array_equal(mine > 0, theirs > 0)
        np.testing.assert_allclose(mine.sum(-1), 1, atol=1e-5)
    p, q = (np.asarray(jax.nn.softmax(x * scale, axis=-1)) for scale in (1.0, 0.5))
    for lenience in (1.0, 0.8):
        theirs, mine = _both(lambda p, q, value=lenience: sampling.overlap(p, q[:, :3], value), p, q)
        np.testing.assert_allclose(mine, theirs, atol=5e-7)
    for theirs, mine in zip(*_both(sampling.residual, p, q, np.full((3, 4), 0.9, np.float32))):
        np.testing.assert_allclose(mine, theirs, atol=5e-7)


@pytest.mark.parametrize("size", [pytest.param(7, marks=pytest.mark.slow), 5003])
def test_draws_and_choices(vector_set, size):
    keys = np.stack([sampling.row_key(0, str(i), 0) for i in range(200)])
    places = np.arange(200, dtype=np.int32)
    theirs, mine = _both(lambda keys: sampling.exponentials(keys, places, sampling.NEXT_STREAM, size), keys)
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    weights = np.asarray(jax.nn.softmax(_logits(200, size), axis=-1)) * (_logits(200, size) > -1)
    weights[:, -1] += 1e-30  # never all 0
    times = sampling.exponentials(keys, places, sampling.NEXT_STREAM, sampling.draw_times(size))
    for function, more in ((sampling.draw, (times,)), (sampling.draw_coupled, (keys, places))):
        theirs, mine = _both(function, weights, *more)
        assert (weights[np.arange(200), mine] > 0).all()
        assert np.mean(mine == theirs) >= 0.995
    ties = np.round(weights * 8)
    for values in (weights, ties, np.full_like(ties, -np.inf), np.full_like(ties, np.nan)):
        np.testing.assert_array_equal(*_both(sampling.argmax, values))


@pytest.mark.parametrize("law", LAWS[:4], ids=str)
def test_ties_with_the_last_kept_logit_are_kept(vector_set, law):
    x = np.round(_logits(20, 300))
    theirs, mine = _both(lambda x: sampling.standardize(x, DecodingConfig(**law)), x)
    np.testing.assert_allclose(mine, theirs, atol=5e-7)
    assert (mine > 0).sum(-1).max() > 5


def test_rows_that_are_no_distribution_are_told(vector_set):
    x = _logits(6, 300)
    x[1, 3], x[2, 299], x[3], x[4, 5] = np.nan, np.inf, -np.inf, -np.inf
    np.testing.assert_array_equal(_both(sampling.is_law, x)[1], [True, False, False, False, True, True])
    others = [0, 4, 5]
    mine = _both(lambda x: sampling.standardize(x, DecodingConfig(top_k=9, top_p=0.9)), x)[1]
    np.testing.assert_allclose(mine[others].sum(-1), 1, atol=1e-6)


def test_a_rows_bits_depend_on_no_other_row(vector_set):
    x = _logits(40, 1003)
    keys, places = np.stack([sampling.row_key(0, str(i), 0) for i in range(40)]), np.arange(40, dtype=np.int32)

    def everything(x, keys, places):
        p, q = (sampling.standardize(x, DecodingConfig(**law)) for law in (dict(), dict(temperature=0.8, top_p=0.9)))
        times = sampling.exponentials(keys, places, sampling.NEXT_STREAM, sampling.draw_times(1003))
        sums = sampling.log_normalizer(x), sampling.overlap(p[:, None], q[:, None]), sampling.residual(p, q, p[:, 0] + 1)
        return p, q, *sums, times, sampling.draw(p, times), sampling.draw_coupled(q, keys, places), sampling.argmax(x)

    run = jax.jit(own.used_by(everything))
    whole = run(x, keys, places)
    for rows in (slice(0, 1), slice(7, 10), slice(23, 40)):
        for part, all_ in zip(jax.tree.leaves(run(x[rows], keys[rows], places[rows])), jax.tree.leaves(whole)):
            np.testing.assert_array_equal(part, all_[rows])


def test_they_are_used_where_asked_for_and_nowhere_else():
    x = jnp.zeros((2, 5))
    calls = lambda function: "custom_call" in str(jax.jit(function).lower(x).as_text())
    assert not calls(sampling.log_normalizer) and calls(own.used_by(sampling.log_normalizer))
    assert np.isfinite(jax.grad(lambda x: sampling.log_normalizer(x).sum())(x)).all()
