"""Trees of arrays that travel from a device as one array, because every transfer costs the same however small it is."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def joined(tree) -> jax.Array:
    """All arrays of a tree, int32[N]: those of four bytes bit for bit, smaller whole numbers and booleans as they are."""

    def words(leaf: jax.Array) -> jax.Array:
        whole = jax.lax.bitcast_convert_type(leaf, jnp.int32) if leaf.dtype.itemsize == 4 else leaf.astype(jnp.int32)
        return whole.reshape(-1)

    return jnp.concatenate([words(leaf) for leaf in jax.tree.leaves(tree)])


def parted(words: np.ndarray, like):
    """The inverse of `joined`, of what is on the host.

    Args:
      words: int32[N].
      like: a tree of what has the arrays' shapes and dtypes.
    """
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(words, np.cumsum([math.prod(leaf.shape) for leaf in leaves])[:-1])
    found = [
        (part.view(leaf.dtype) if leaf.dtype.itemsize == 4 else part.astype(leaf.dtype)).reshape(leaf.shape)
        for part, leaf in zip(parts, leaves)
    ]
    return jax.tree.unflatten(structure, found)
