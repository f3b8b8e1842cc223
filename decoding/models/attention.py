"""Attention over the keys and values that rows have, in one of two forms: XLA's, for accelerators, and `decoding.kernels`'.

A `Cache` knows its form.  Both write new keys and values at every row's own position and attend to what lies before; what is
at or beyond it is garbage by definition.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoding.kernels import attention as kernels
from decoding.models.base import (
    MASKED,
    attend,
    attend_existing,
    merge_heads,
    rms_norm,
    split_fused,
    split_heads,
    state_length,
)
from decoding.models.cache import gather_cache, write_cache
from decoding.models.relative import causal_bias, distance_table
from decoding.models.tree import Tree


class Heads(NamedTuple):
    """How a fused projection's columns are heads.

    Attributes:
      queries, keys: their numbers, H and G; H / G query heads share a key head.
      width: D.
      pieces: that the columns lie in, see `split_fused`.
    """

    queries: int
    keys: int
    width: int
    pieces: int = 1


@functools.partial(jax.tree_util.register_dataclass, data_fields=["key", "value"], meta_fields=["own"])
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of rows.

    Attributes:
      key: [B, G, T, D]; [B, G, T / KEYS, D, KEYS] in the form of `decoding.kernels`.
      value: [B, G, T, D].
      own: whether it has that form.
    """

    key: jax.Array
    value: jax.Array
    own: bool

    @classmethod
    def zeros(cls, rows: int, heads: Heads, length: int, dtype, own: bool) -> "Cache":
        """With room for `length` positions."""
        length = kernels.room(length) if own else state_length(length)
        shape = (rows, heads.keys, length, heads.width)
        key = jnp.zeros(shape, dtype)
        return cls(kernels.in_blocks(key) if own else key, jnp.zeros(shape, dtype), own)

    @classmethod
    def of(cls, fused: jax.Array, heads: Heads, own: bool) -> "Cache":
        """Of keys and values side by side, [B, L, 2 G D]."""
        parts = split_fused(fused, (heads.keys * heads.width,) * 2, heads.pieces)
        key, value = (split_heads(part, heads.keys) for part in parts)
        if own:  # whose keys are read in whole blocks
            room = ((0, 0), (0, 0), (0, kernels.room(key.shape[2]) - key.shape[2]), (0, 0))
            key, value = kernels.in_blocks(jnp.pad(key, room)), jnp.pad(value, room)
        return cls(key, value, own)

    @property
    def length(self) -> int:
        """Positions that there is room for, T."""
        return self.value.shape[2]

    def with_entries(self, key: jax.Array, value: jax.Array, starts: jax.Array) -> "Cache":
        """With [B, G, S, D] keys and values at positions starts[b] .. starts[b] + S - 1."""
        if self.own:  # into the whole blocks that have these positions
            first, blocks = self._blocks(starts, key.shape[2])
            own = write_cache(kernels.out_of_blocks(blocks), key, starts - first * kernels.KEYS)
            flat = lambda blocks: blocks.reshape(*blocks.shape[:3], -1)
            key = write_cache(flat(self.key), flat(kernels.in_blocks(own)), first).reshape(self.key.shape)
        else:
            key = write_cache(self.key, key, starts)
        return Cache(key, write_cache(self.value, value, starts), self.own)

    def _blocks(self, starts: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """int32[B], the first block of keys that has some of positions starts[b] .. starts[b] + size - 1, and as many blocks
        from there on as can have some: [B, G, N, D, KEYS]."""
        count = min(self.key.shape[2], -(-size // kernels.KEYS) + 1)
        first = jnp.minimum(starts // kernels.KEYS, self.key.shape[2] - count)
        return first, jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, count, 1))(self.key, first)

    def moved(self, starts: jax.Array, order: jax.Array, size: int) -> "Cache":
        """With entry starts[b] + order[b, i] < starts[b] + size of before at starts[b] + i: int32[B] and int32[B, M]."""
        key, key_starts = self.key, starts
        if self.own:
            first, blocks = self._blocks(starts, size)
            key, key_starts = kernels.out_of_blocks(blocks), starts - first * kernels.KEYS
        taken = lambda array, starts: gather_cache(array, starts, order, size)
        return self.with_entries(taken(key, key_starts), taken(self.value, starts), starts)


def with_moved_entries(state: dict, starts: jax.Array, order: jax.Array, size: int) -> dict:
    """A state of the models here after `LanguageModel.move`."""
    return state | {"self": [cache.moved(starts, order, size) for cache in state["self"]]}


def encoder_decoder_state(
    layers: int, batch: int, input_length: int, max_positions: int, heads: Heads, dtype, own: bool
) -> dict:
    """The empty state of a decoder with cross-attention.

    Args:
      layers: of the decoder.
      batch: rows.
      input_length, max_positions: positions that there is room for, of inputs and of outputs.
      heads, dtype, own: as of `Cache.zeros`.

    Returns:
      {"lengths": int32[B], "cross": [Cache of input_length positions] * layers, "self": [Cache of max_positions] * layers}.
    """

    def caches(length: int) -> list[Cache]:
        return [Cache.zeros(batch, heads, length, dtype, own) for _ in range(layers)]

    return {"lengths": jnp.ones((batch,), jnp.int32), "cross": caches(input_length), "self": caches(max_positions)}


class Where(NamedTuple):
    """Where the S new positions of rows stand, made by `where` once for all layers of a kind; which fields there are, is the
    cache's.

    Attributes:
      positions: int32[B], of the first.
      bias: as an operand of the cache's form, or None.
      turns: float32[T, D] or, of XLA's form, [B, 1, S, D]: cosines and sines of rotary positions, or None.
      compact: where rows have different numbers of new positions, which lie one behind the other; else None.
      mask: bool[B, S, T], of the kernels' form, where the new positions are nodes of a tree; else None.
      window: how many keys a position sees at most, the last ones; 0 for all.
    """

    positions: jax.Array
    bias: jax.Array | None
    turns: jax.Array | None
    compact: "Compact | None" = None
    mask: jax.Array | None = None
    window: int = 0

    @property
    def real(self) -> jax.Array | None:
        """As of `linear.project`."""
        return self.compact and self.compact.real


class Compact(NamedTuple):
    """Inputs [P, L] without their padding: N = P L places, of which the first `real` hold all positions of all inputs in order.

    Products and attention of `decoding.kernels` compute these alone; padding costs nothing.

    Attributes:
      lengths: int32[P].
      order: int32[N], where in the padded inputs each place's position is.
      real: int32[], the sum of lengths.
    """

    lengths: jax.Array
    order: jax.Array
    real: jax.Array

    @classmethod
    def of(cls, lengths: jax.Array, length: int) -> "Compact":
        """Of inputs that are padded to `length`."""
        padding = np.arange(length)[None, :] >= lengths[:, None]
        return cls(lengths, jnp.argsort(padding.reshape(-1), stable=True).astype(jnp.int32), jnp.sum(lengths))

    def spread(self, x: jax.Array, length: int) -> jax.Array:
        """Places [N, d] as padded inputs [P, L, d]; padding repeats an input's last position."""
        starts = jnp.cumsum(self.lengths) - self.lengths
        return x[starts[:, None] + jnp.minimum(np.arange(length)[None, :], self.lengths[:, None] - 1)]


def where(
    cache: Cache,
    positions: jax.Array,
    steps: int,
    *,
    table: jax.Array | None = None,
    max_distance: int = 0,
    frequencies: np.ndarray | None = None,
    compact: Compact | None = None,
    tree: Tree | None = None,
    window: int = 0,
) -> Where:
    """
    Args:
      cache: any layer's.
      positions: int32[B], of the first new position of each row; of a tree, the entry that its first node is written to.
      steps: S.
      table: [buckets, H], T5's bias by distance, up to `max_distance`.
      frequencies: float32[D / 2] of rotary positions, radians per position.
      compact: of new inputs without padding, which only `decoding.kernels` attends to.
      tree: where the new positions are its nodes.
      window: how many keys a position sees at most, the last ones, its own among them; 0 for all.
    """
    length = cache.length
    if cache.own:
        bias = None if table is None else distance_table(table, length, max_distance=max_distance)
        turns = None
        if frequencies is not None:
            turns = jnp.asarray(_turns(np, np.arange(length, dtype=np.float32)[:, None] * frequencies))
        return Where(positions, bias, turns, compact, tree and tree.mask, window)
    if tree is not None:
        return _where_in_tree(tree, positions, length, table, max_distance, frequencies, window)
    places = positions[:, None] + np.arange(steps)
    if table is not None:
        bias = causal_bias(table, positions, steps, length, max_distance=max_distance)
    else:
        seen = np.arange(length) <= places[:, :, None]
        seen = seen & (np.arange(length) > places[:, :, None] - window) if window else seen
        bias = jnp.where(seen, 0.0, MASKED)[:, None]
    turns = None
    if frequencies is not None:
        turns = _turns(jnp, places[:, None, :, None].astype(jnp.float32) * frequencies)
    return Where(positions, bias, turns, window=window)


def _where_in_tree(
    tree: Tree, positions: jax.Array, length: int, table, max_distance: int, frequencies, window: int
) -> Where:
    room = length - tree.mask.shape[2]  # caches are a little longer than asked for
    mask = jnp.pad(tree.mask, ((0, 0), (0, 0), (0, room)))[:, None]
    distances = tree.depths[:, :, None] - jnp.pad(tree.key_depths, ((0, 0), (0, room)))[:, None, :]
    mask = mask & (distances < window)[:, None] if window else mask
    bias = jnp.where(mask, 0.0, MASKED)
    if table is not None:
        by_distance = distance_table(table, length, max_distance=max_distance)
        far = by_distance[:, length - 1 - jnp.clip(distances, 0, length - 1)]
        bias = jnp.where(mask, far.transpose(1, 0, 2, 3), MASKED)
    turns = None
    if frequencies is not None:
        turns = _turns(jnp, tree.depths[:, None, :, None].astype(jnp.float32) * frequencies)
    return Where(positions, bias, turns)


def _turns(xp, angles):
    return xp.concatenate([xp.cos(angles), xp.sin(angles)], axis=-1)


def attend_cache(
    qkv: jax.Array,
    cache: Cache,
    place: Where,
    heads: Heads,
    *,
    scale: float = 1.0,
    query_norm: jax.Array | None = None,
    key_norm: jax.Array | None = None,
    epsilon: float = 0.0,
    cap: float = 0.0,
) -> tuple[jax.Array, Cache]:
    """Causal attention of the newest positions.

    Args:
      qkv: [B, S, (H + 2 G) D], queries, keys and values of the S positions.
      cache: of the layer.
      place: from `where`.
      scale: of the scores.
      query_norm, key_norm: [D], scales of RMS norms over each head, before it is rotated.
      cap: scores s become cap tanh(s / cap), before bias and mask; 0 for none.

    Returns:
      [B, S, H D] and the cache with the S positions written.
    """
    if cache.own:
        norms = dict(query_norm=query_norm, key_norm=key_norm, epsilon=epsilon, window=place.window, cap=cap, mask=place.mask)
        norms["counts"] = place.compact and place.compact.lengths
        operands = (qkv, cache.key, cache.value, place.positions)
        attended, key, value = kernels.attend_cache(*operands, scale=scale, bias=place.bias, turns=place.turns, **norms)
        return attended, Cache(key, value, own=True)
    widths = (heads.queries * heads.width, *(heads.keys * heads.width,) * 2)
    query, key, value = split_fused(qkv, widths, heads.pieces)
    query, key, value = split_heads(query, heads.queries), split_heads(key, heads.keys), split_heads(value, heads.keys)
    if query_norm is not None:
        query, key = rms_norm(query, query_norm, epsilon), rms_norm(key, key_norm, epsilon)
    if place.turns is not None:
        query, key = rotate(query, place.turns), rotate(key, place.turns)
    query = query if scale == 1.0 else query * scale
    cache = cache.with_entries(key, value, place.positions)
    existing = jnp.max(place.positions) + qkv.shape[1]
    return merge_heads(grouped_attend(query, cache.key, cache.value, place.bias, existing, cap)), cache


def attend_input(query: jax.Array, cache: Cache, lengths: jax.Array, heads: Heads, *, scale: float = 1.0) -> jax.Array:
    """Attention of queries [B, S, H D] to an input's first `lengths` int32[B] keys and values: [B, S, H D].

    Scores are multiplied by `scale`.
    """
    if cache.own:
        return kernels.attend_input(query, cache.key, cache.value, lengths, scale=scale)
    mask = jnp.where(np.arange(cache.length)[None, :] < lengths[:, None], 0.0, MASKED)[:, None, None, :]
    query = split_heads(query if scale == 1.0 else query * scale, heads.queries)
    return merge_heads(attend_existing(query, cache.key, cache.value, mask, jnp.max(lengths)))


def attend_itself(
    qkv: jax.Array, lengths: jax.Array, bias: jax.Array, heads: Heads, compact: bool, *, scale: float = 1.0
) -> jax.Array:
    """Attention of inputs [B, L, 3 H D] to themselves in both directions: [B, L, H D].

    Args:
      lengths: int32[B].
      bias: float32[H, 2 L - 1], added to the score of a key that lies i - (L - 1) places after the query.
      compact: the inputs are without padding, [N, 3 H D], see `Compact`: `decoding.kernels` computes it, [N, H D].
      scale: of the scores, before the bias.
    """
    if compact:
        return kernels.attend_itself(qkv, lengths, bias, head_dim=heads.width, scale=scale)
    span = np.arange(qkv.shape[1])
    mask = jnp.where(span[None, :] < lengths[:, None], 0.0, MASKED)[:, None, None, :]
    square = bias[:, span[None, :] - span[:, None] + len(span) - 1]
    query, *rest = split_fused(qkv, (heads.queries * heads.width,) * 3, heads.pieces)
    parts = (query if scale == 1.0 else query * scale, *rest)
    return merge_heads(attend(*(split_heads(part, heads.queries) for part in parts), square[None] + mask))


def rotate(heads: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates the two halves of each head [B, H, S, D] by its position's angles: cosines and sines [B, 1, S, D]."""
    cos, sin = jnp.split(turns, 2, axis=-1)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(heads.dtype)


def grouped_attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, existing: jax.Array, cap: float = 0.0
) -> jax.Array:
    """Attention in which H / G query heads share a key head: the sharing heads are folded into the query's length.

    Args:
      query: [B, H, S, D].
      key, value: [B, G, T, D].
      bias: float32[B, 1 or H, S, T].
      existing: int32[], see `attend_existing`.
      cap: as in `attend`.

    Returns:
      [B, H, S, D].
    """
    batch, heads, steps, width = query.shape
    groups, length = value.shape[1], value.shape[2]
    if groups == heads:
        return attend_existing(query, key, value, bias, existing, cap)
    shared = heads // groups
    bias = jnp.broadcast_to(bias, (batch, heads, steps, length)).reshape(batch, groups, shared * steps, length)
    folded = query.reshape(batch, groups, shared * steps, width)
    return attend_existing(folded, key, value, bias, existing, cap).reshape(batch, heads, steps, width)
