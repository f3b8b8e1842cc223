"""Standardised sampling: fold temperature, top-k, top-p and argmax into a distribution, then draw from it.

Section 2.2 of Leviathan et al.: every sampling method is plain sampling from an adjusted distribution.  The same
adjustment is applied to the target's and the draft's logits, in one order: temperature, top-k, top-p.

Random numbers are derived from (seed, example, sample, position where the iteration starts, stream), so they do not
know of shards, slots, batches or workers.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from decoding.config import DecodingConfig

# Streams of an iteration.  Reusing one for two purposes breaks exactness: acceptance would know the draw.
DRAFT_STREAM, ACCEPT_STREAM, NEXT_STREAM, COUPLED_STREAM = 0, 1, 2, 3

_LANES = 128  # width of the inner level of `draw`


def row_key(seed: int, example_id: str, sample: int) -> np.ndarray:
    """uint32[2], a threefry key: 64 bits of BLAKE2b over the seed, the example id and the sample index."""
    text = f"{seed}\x00{sample}\x00{example_id}".encode("utf-8", "surrogatepass")
    return np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), np.uint32)


def uniforms(keys: jax.Array, positions: jax.Array, stream: int, count: int) -> jax.Array:
    """float32[B, count] in [0, 1), one independent sequence per (row, position, stream).

    Args:
      keys: uint32[B, 2] from `row_key`.
      positions: int32[B], where the iteration starts.
    """

    def one(key, position):
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, position), stream), (count,))

    return jax.vmap(one)(keys, positions)


def integers(keys: jax.Array, positions: jax.Array, stream: int, count: int, high: int) -> jax.Array:
    """int32[B, count], each of 0 .. high - 1 equally likely: a float32 uniform times `high` would not be."""

    def one(key, position):
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, position), stream)
        return jax.random.randint(key, (count,), 0, high, jnp.int32)

    return jax.vmap(one)(keys, positions)


def gumbel_noise(keys: jax.Array, positions: jax.Array, vocab_size: int) -> jax.Array:
    """float32[B, V] of Gumbel noise that belongs to (row, position of the token) alone: see "coupled"."""

    def one(key, position):
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, position), COUPLED_STREAM)
        return jax.random.gumbel(key, (vocab_size,))

    return jax.vmap(one)(keys, positions)


def standardize(logits: jax.Array, config: DecodingConfig) -> jax.Array:
    """The distribution that is really sampled from: float32[..., V] summing to 1.

    Args:
      logits: float32[..., V], raw.
      config: temperature above 0; argmax needs no distribution and is handled by its callers.

    Tokens that tie with the last kept one are kept, so the result does not depend on the order of the vocabulary.
    """
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, config.top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    probs = jax.nn.softmax(logits, axis=-1)
    if config.top_p < 1.0:
        ranked = jnp.sort(probs, axis=-1, descending=True)
        before = jnp.cumsum(ranked, axis=-1) - ranked
        last = jnp.min(jnp.where(before < config.top_p, ranked, jnp.inf), axis=-1, keepdims=True)
        probs = jnp.where(probs < last, 0.0, probs)
        probs = probs / jnp.sum(probs, axis=-1, keepdims=True)
    return probs


def draw(weights: jax.Array, u: jax.Array) -> jax.Array:
    """Inverse-CDF draw from unnormalised weights.

    Two levels (sums of 128 lanes, then one block of lanes) instead of a cumulative sum over the vocabulary.
    A token of weight 0 is never returned, whatever the rounding.

    Args:
      weights: float32[B, V], not negative, not all 0.
      u: float32[B] in [0, 1).

    Returns:
      int32[B].
    """
    batch, vocab_size = weights.shape
    blocks = -(-vocab_size // _LANES)
    weights = jnp.pad(weights, ((0, 0), (0, blocks * _LANES - vocab_size))).reshape(batch, blocks, _LANES)
    sums = jnp.sum(weights, axis=-1)
    goal = u * jnp.sum(sums, axis=-1)
    block, before = _first_above(sums, goal)
    lanes = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    lane, _ = _first_above(lanes, goal - before)
    return block * _LANES + lane


def _first_above(weights: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First nonzero index whose cumulative weight exceeds the goal, else the last nonzero one; and the sum before it.

    Nonzero has to be asked for: the goal may be rounded below 0, and cumulative sums of some devices do not even rise.
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    indices = jnp.arange(weights.shape[-1], dtype=jnp.int32)
    nonzero = weights > 0
    last = jnp.max(jnp.where(nonzero, indices, 0), axis=-1, keepdims=True)
    index = jnp.min(jnp.where(nonzero & (cumulative > goal[:, None]), indices, last), axis=-1)
    picked = index[:, None]
    before = jnp.take_along_axis(cumulative, picked, axis=-1) - jnp.take_along_axis(weights, picked, axis=-1)
    return index, before[:, 0]


def argmax(values: jax.Array) -> jax.Array:
    """First index of the maximum over the last axis: float32[..., V] -> int32[...].

    Two plain reductions: on CPU XLA does not vectorise the (value, index) reduction that jnp.argmax becomes, which
    made it cost as much as the matrix product before it.  A row of NaN yields V - 1, never an index out of range.
    """
    size = values.shape[-1]
    indices = jnp.arange(size, dtype=jnp.int32)
    best = jnp.max(values, axis=-1, keepdims=True)
    return jnp.minimum(jnp.min(jnp.where(values == best, indices, size), axis=-1), size - 1)


def log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probability of tokens under raw logits: float32[..., V] and int32[...] -> float32[...]."""
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)
