"""Attention on processors, called through `jax.ffi`: attention.cc.

Keys lie in blocks of KEYS, each transposed, [B, G, T / KEYS, D, KEYS]. What a row's queries see ends where the row ends, so
that work follows what exists; nodes of a tree alone have masks. H / G query heads share a head of keys.
"""

import jax
import jax.numpy as jnp
import numpy as np

from decoding.kernels import optional, targets

KEYS = 32  # as kKeys in attention.h


def room(length: int) -> int:
    """Keys that a cache for `length` positions has room for."""
    return -(-length // KEYS) * KEYS


def in_blocks(keys: jax.Array) -> jax.Array:
    """[B, G, T, D] -> [B, G, T / KEYS, D, KEYS]."""
    return keys.reshape(*keys.shape[:2], -1, KEYS, keys.shape[3]).swapaxes(3, 4)


def out_of_blocks(keys: jax.Array) -> jax.Array:
    """The inverse of `in_blocks`."""
    return keys.swapaxes(3, 4).reshape(*keys.shape[:2], -1, keys.shape[3])


def attend_cache(
    qkv: jax.Array,
    key: jax.Array,
    value: jax.Array,
    positions: jax.Array,
    *,
    scale: float = 1.0,
    bias: jax.Array | None = None,
    turns: jax.Array | None = None,
    query_norm: jax.Array | None = None,
    key_norm: jax.Array | None = None,
    epsilon: float = 0.0,
    window: int = 0,
    cap: float = 0.0,
    counts: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Causal attention of S new positions, whose keys and values are written into the cache, in place, first.

    Args:
      qkv: float32[B, S, (H + 2 G) D], queries, keys and values, each head by head.
      key: float32[B, G, T / KEYS, D, KEYS].
      value: float32[B, G, T, D].
      positions: int32[B], of the first new one.
      scale: of the scores.
      bias: float32[H, T], added to the score of a key at distance T - 1 - i: the farthest first.
      turns: float32[T, D], cosines and sines of every position's angles, half and half: queries and keys are rotated.
      query_norm, key_norm: float32[D], scales of an RMS norm with `epsilon` over each head, before it is rotated.
      window: how many keys a query sees at most, the last ones, its own among them; 0 for all.
      cap: scores s become cap tanh(s / cap), before the bias; 0 for none.
      counts: int32[B], how many new positions each row has where they differ; qkv is then float32[N, (H + 2 G) D], the
        positions of all rows one behind the other, and what is beyond the last of them is not computed.
      mask: bool[B, S, at most T], where the new positions are nodes of a tree: the entries of the cache that each sees, its own
        among them. Bits are those that it would have as a position of a text of these entries: to bias, turns and window its
        position is the number of entries before it.

    Returns:
      float32[B, S, H D], or [N, H D] with `counts`, and the cache.
    """
    *lead, width = qkv.shape
    groups, head = value.shape[1], value.shape[3]
    shapes = [(*lead, width - 2 * groups * head), key.shape, value.shape]
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(targets()["attend_cache"], results, input_output_aliases={1: 1, 2: 2})
    extras = [optional(array) for array in (bias, turns, query_norm, key_norm)]
    extras.append(np.zeros((0,), np.int32) if counts is None else counts)
    extras.append(np.zeros((0, 0, 0), bool) if mask is None else mask)
    static = dict(scale=np.float32(scale), epsilon=np.float32(epsilon), window=np.int32(window), cap=np.float32(cap))
    return tuple(call(qkv, key, value, positions, *extras, **static))


def attend_input(query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, *, scale: float = 1.0) -> jax.Array:
    """Attention of queries float32[B, S, H D] to the first `lengths` int32[B] of keys and values as above: [B, S, H D]."""
    call = jax.ffi.ffi_call(targets()["attend_input"], jax.ShapeDtypeStruct(query.shape, jnp.float32))
    return call(query, key, value, lengths, scale=np.float32(scale))


def attend_itself(
    qkv: jax.Array, lengths: jax.Array, bias: jax.Array, *, head_dim: int, scale: float = 1.0
) -> jax.Array:
    """Attention of inputs to themselves, in both directions.

    Args:
      qkv: float32[N, 3 H D], the positions of all inputs one behind the other.
      lengths: int32[B], of the inputs.
      bias: float32[H, 2 L - 1], added to the score of a key that lies i - (L - 1) places after the query.

    Returns:
      float32[N, H D]; what is beyond the last position is not computed.
    """
    rows, width = qkv.shape
    call = jax.ffi.ffi_call(targets()["attend_itself"], jax.ShapeDtypeStruct((rows, width // 3), jnp.float32))
    return call(qkv, lengths, bias, head_dim=np.int32(head_dim), scale=np.float32(scale))
