"""Steps whose tokens are nodes of a tree, and not one text: beams that share a cache, or branches of a draft.

A cache then holds the tree that was decoded so far, entry by entry in the order in which it was fed, and what a new node sees
of it is said by a mask: its ancestors and itself.  So nothing is copied where branches part, and what branches have in common,
a prompt or the keys and values of an encoder's input, is there once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Tree(NamedTuple):
    """What `LanguageModel.step` is told of S tokens that are nodes; they are written to S entries of the cache in a row.

    Attributes:
      depths: int32[B, S], the decoder position of each: ancestors lie at all smaller ones.
      key_depths: int32[B, T], decoder positions of the cache's entries, those of this step among them.
      mask: bool[B, S, T], the entries that each node sees: its ancestors and itself.
    """

    depths: jax.Array
    key_depths: jax.Array
    mask: jax.Array


def entries(starts: jax.Array, count: int, length: int) -> jax.Array:
    """bool[B, count, T]: node i's own entry, starts[b] + i, of a cache of `length`."""
    return np.arange(length) == (starts[:, None] + np.arange(count))[:, :, None]


def written(array: jax.Array, values: jax.Array, starts: jax.Array) -> jax.Array:
    """[B, T] with [B, S] values from starts[b] on."""
    return jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,)))(array, values, starts)


def among(array: jax.Array, index: jax.Array) -> jax.Array:
    """array [B, N, ...] and index int32[B, M] -> [B, M, ...], of each row its own."""
    index = index.reshape(*index.shape, *(1,) * (array.ndim - 2))
    return jnp.take_along_axis(array, index, axis=1)
