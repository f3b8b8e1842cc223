"""T5's relative-position bias, for the models that have one."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from decoding.models.base import MASKED


def relative_buckets(distance: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int) -> np.ndarray:
    """T5's buckets (Raffel et al., JMLR 2020, section 2.1): exact when near, logarithmic when far.

    Args:
      distance: int[...], key position minus query position.

    Returns:
      int32[...] in [0, num_buckets).
    """
    offset = np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = (distance > 0) * num_buckets
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = num_buckets // 2
    # float32 on purpose: the reference implementations compute the logarithm in float32.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(math.log(max_distance / exact))
    far = exact + (ratio * (num_buckets - exact)).astype(np.int32)
    return (offset + np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))).astype(np.int32)


def causal_bias(
    weights: jax.Array, positions: jax.Array, steps: int, max_positions: int, *, max_distance: int
) -> jax.Array:
    """Bias and causal mask of queries at `positions[b] + 0..S-1` over keys 0..T-1.

    The bias depends on the distance alone, so each query's row is a window of one reversed table: with T = 3 the table
    is [b(2) b(1) b(0) MASKED MASKED MASKED], and the query at position 1 reads [b(1) b(0) MASKED], the window that
    starts at T - 1 - 1.

    Args:
      weights: [num_buckets, H].
      positions: int32[B].
      steps: S.
      max_positions: T.

    Returns:
      float32[B, H, S, T].
    """
    table = distance_table(weights, max_positions, max_distance=max_distance)
    table = jnp.pad(table, ((0, 0), (0, max_positions)), constant_values=MASKED)
    starts = jnp.maximum(max_positions - 1 - (positions[:, None] + np.arange(steps)), 0)
    window = lambda start: jax.lax.dynamic_slice(table, (0, start), (table.shape[0], max_positions))
    return jax.vmap(jax.vmap(window))(starts).transpose(0, 2, 1, 3)


def distance_table(weights: jax.Array, max_positions: int, *, max_distance: int) -> jax.Array:
    """Bias by how far back a key lies, the farthest first: [num_buckets, H] -> float32[H, T]."""
    buckets = relative_buckets(
        -np.arange(max_positions)[::-1], bidirectional=False, num_buckets=weights.shape[0], max_distance=max_distance
    )
    return weights.astype(jnp.float32)[buckets].T


def both_ways_table(weights: jax.Array, length: int, *, max_distance: int) -> jax.Array:
    """Bias of a key that lies i - (L - 1) places after the query: [num_buckets, H] -> float32[H, 2 L - 1]."""
    buckets = relative_buckets(
        np.arange(1 - length, length), bidirectional=True, num_buckets=weights.shape[0], max_distance=max_distance
    )
    return weights.astype(jnp.float32)[buckets].T
