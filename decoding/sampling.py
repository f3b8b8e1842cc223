"""Standardised sampling: fold temperature, top-k, top-p and argmax into a distribution, then draw from it.

Section 2.2 of Leviathan et al.: every sampling method is plain sampling from an adjusted distribution.  The same
adjustment is applied to the target's and the draft's logits, in one order: temperature, top-k, top-p; top-k, which no
temperature changes, is taken first.

Where a program is traced for a processor (`kernels.logits.used_by`), rows over the vocabulary are those of `decoding.kernels`;
elsewhere they are XLA's.

Random numbers are derived from (seed, example, sample, position where the iteration starts, stream), so they do not
know of shards, slots, batches or workers.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from decoding.config import DecodingConfig
from decoding.kernels import logits as own

# Streams of an iteration.  Reusing one for two purposes breaks exactness: acceptance would know the draw.
DRAFT_STREAM, ACCEPT_STREAM, NEXT_STREAM, COUPLED_STREAM = 0, 1, 2, 3

_LANES = 128  # width of the inner level of `draw`


def row_key(seed: int, example_id: str, sample: int) -> np.ndarray:
    """uint32[2], a threefry key: 64 bits of BLAKE2b over the seed, the example id and the sample index."""
    text = f"{seed}\x00{sample}\x00{example_id}".encode("utf-8", "surrogatepass")
    return np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), np.uint32)


def uniforms(keys: jax.Array, positions: jax.Array, stream: int, count: int) -> jax.Array:
    """float32[B, count] in (0, 1), one independent sequence per (row, position, stream).

    The middles of 2^32 equal pieces, rounded to float32: below a threshold t lies a share of t, up to 2^-33, where the
    23 bits of jax.random.uniform would take every threshold below 1e-7 for the same.

    Args:
      keys: uint32[B, 2] from `row_key`.
      positions: int32[B], where the iteration starts.
    """
    return _fractions(_words(keys, positions, stream, count))


def exponentials(keys: jax.Array, positions: jax.Array, stream: int, count: int) -> jax.Array:
    """float32[B, count], each exponential with mean 1: the times of a race.

    A token of probability p wins one when its time falls below p or so: small times come in steps of 2^-32.
    """
    words = _words(keys, positions, stream, count)
    return own.times(words) if own.used() else -jnp.log1p(-_fractions(~words))


def _words(keys: jax.Array, positions: jax.Array, stream: int, count: int) -> jax.Array:
    """uint32[B, count]."""
    return jax.vmap(lambda key: jax.random.bits(key, (count,)))(_stream_keys(keys, positions, stream))


def _stream_keys(keys: jax.Array, positions: jax.Array, stream: int) -> jax.Array:
    """JAX's random keys [B]."""

    def one(key, position):
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(key, position), stream)

    return jax.vmap(one)(keys, positions)


def _fractions(words: jax.Array) -> jax.Array:
    # Large words round up, the largest to 1 but for the minimum.
    return jnp.minimum((words.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)


def integers(keys: jax.Array, positions: jax.Array, stream: int, count: int, high: int) -> jax.Array:
    """int32[B, count], each of 0 .. high - 1 equally likely: a float32 uniform times `high` would not be."""

    one = lambda key: jax.random.randint(key, (count,), 0, high, jnp.int32)
    return jax.vmap(one)(_stream_keys(keys, positions, stream))


def gumbel_noise(keys: jax.Array, positions: jax.Array, vocab_size: int) -> jax.Array:
    """float32[B, V] of Gumbel noise that belongs to (row, position of the token) alone: see "coupled"."""
    return -jnp.log(exponentials(keys, positions, COUPLED_STREAM, vocab_size))


def standardize(logits: jax.Array, config: DecodingConfig) -> jax.Array:
    """The distribution that is really sampled from: float32[..., V] summing to 1.

    Args:
      logits: float32[..., V], raw.
      config: temperature above 0; argmax needs no distribution and is handled by its callers.

    Tokens that tie with the last kept one are kept, so the result does not depend on the order of the vocabulary.
    """
    if own.used():
        return own.standardize(logits, config.temperature, config.top_k, config.top_p)
    # Relative to the largest, so that no temperature overflows; and what is kept is decided on these, because divided by
    # a high temperature, and as probabilities, logits that differ become equal.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)

    def softmax(kept):
        return jax.nn.softmax(jnp.where(kept > -jnp.inf, kept / config.temperature, -jnp.inf), axis=-1)

    if 0 < config.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, config.top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    probs = softmax(logits)
    if config.top_p < 1.0:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        ranked_probs = softmax(ranked)
        before = jnp.cumsum(ranked_probs, axis=-1) - ranked_probs
        last = jnp.min(jnp.where(before < config.top_p, ranked, jnp.inf), axis=-1, keepdims=True)
        probs = jnp.where(logits < last, 0.0, probs)
        probs = probs / jnp.sum(probs, axis=-1, keepdims=True)
    return probs


def draw(weights: jax.Array, times: jax.Array) -> jax.Array:
    """Draws from unnormalised weights by a race: of exponential times, weight w divides its own, and the least wins.

    Two levels (sums of 128 lanes, then one block of lanes) take V / 128 + 128 times instead of V.  Nothing is added up
    over the vocabulary, so that small weights keep their share behind large ones, as they do not in a cumulative sum.
    A token of weight 0 is never returned, whatever the rounding.

    Args:
      weights: float32[B, V], not negative, not all 0.
      times: float32[B, draw_times(V)], from `exponentials`.

    Returns:
      int32[B].
    """
    if own.used():
        return own.draw(weights, times)
    batch, vocab_size = weights.shape
    blocks = draw_times(vocab_size) - _LANES
    weights = jnp.pad(weights, ((0, 0), (0, blocks * _LANES - vocab_size))).reshape(batch, blocks, _LANES)
    block = _first(jnp.sum(weights, axis=-1), times[:, :blocks])
    lanes = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    return jnp.minimum(block * _LANES + _first(lanes, times[:, blocks:]), vocab_size - 1)  # beyond are rows of NaN only


def draw_coupled(probs: jax.Array, keys: jax.Array, positions: jax.Array) -> jax.Array:
    """argmax(log p + g_t), with the `gumbel_noise` of a row and the position of its token: float32[B, V] -> int32[B].

    The noise is -log of a time, so that it is a race of the whole vocabulary too.
    """
    if own.used():
        return own.draw_coupled(probs, jax.random.key_data(_stream_keys(keys, positions, COUPLED_STREAM)))
    return argmax(jnp.log(probs) + gumbel_noise(keys, positions, probs.shape[-1]))


def draw_times(vocab_size: int) -> int:
    """How many times a draw takes."""
    return -(-vocab_size // _LANES) + _LANES


def _first(weights: jax.Array, times: jax.Array) -> jax.Array:
    """The winner of a race: float32[B, N] and float32[B, N] -> int32[B]."""
    largest = jnp.max(weights, axis=-1, keepdims=True)  # by which tiny weights do not underflow when they are divided
    return argmax(jnp.where(weights > 0, weights / largest / times, -1.0))


def argmax(values: jax.Array) -> jax.Array:
    """First index of the maximum over the last axis: float32[..., V] -> int32[...].

    Two plain reductions: on CPU XLA does not vectorise the (value, index) reduction that jnp.argmax becomes, which
    made it cost as much as the matrix product before it.  A row of NaN yields V - 1, never an index out of range.
    """
    if own.used() and values.dtype == jnp.float32:
        return own.argmax(values)
    size = values.shape[-1]
    indices = jnp.arange(size, dtype=jnp.int32)
    best = jnp.max(values, axis=-1, keepdims=True)
    return jnp.minimum(jnp.min(jnp.where(values == best, indices, size), axis=-1), size - 1)


def overlap(p: jax.Array, q: jax.Array, lenience: float = 1.0) -> jax.Array:
    """Σ min(p / lenience, q): float32[B, M, V] and float32[B, N, V], N at most M, of whose first N rows -> float32[B, N]."""
    if own.used():
        return own.overlap(p, q, lenience)
    return jnp.sum(jnp.minimum(p[:, : q.shape[1]] / lenience, q), axis=-1)


def residual(p: jax.Array, q: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """max(scale p - q, 0) and its sum: float32[..., V] twice and float32[...] -> float32[..., V] and float32[...]."""
    if own.used():
        return own.residual(p, q, scale)
    rest = jnp.maximum(scale[..., None] * p - q, 0.0)
    return rest, jnp.sum(rest, axis=-1)


def log_normalizer(logits: jax.Array) -> jax.Array:
    """log Σ e^x of raw logits float32[..., V]: float32[...]."""
    return own.log_normalizer(logits) if own.used() else jax.nn.logsumexp(logits, axis=-1)


def log_probs(logits: jax.Array) -> jax.Array:
    """Log-probabilities of all tokens: raw logits float32[..., V] -> float32[..., V], those of `log_prob`."""
    return logits - log_normalizer(logits)[..., None]


def is_law(logits: jax.Array) -> jax.Array:
    """Whether raw logits float32[..., V] are of a distribution: bool[...], False where one is NaN or +inf, or all are -inf.

    A model may ban tokens by -inf.  The sum is the one that `log_prob` takes too, and costs nothing beside it.
    """
    return jnp.isfinite(log_normalizer(logits))


def log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probability of tokens under raw logits: float32[..., V] and int32[...] -> float32[...]."""
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return picked - log_normalizer(logits)
