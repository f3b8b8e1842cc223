"""The decoder's inputs of rows, as drafts keep them that look for their last tokens elsewhere: int32[B, T] by position."""

import jax
import jax.numpy as jnp
import numpy as np

from decoding.models.base import state_length
from decoding.models.tree import written
from decoding.rows import Rows


def empty_text(batch: int, input_length: int, max_positions: int, encoder_decoder: bool) -> jax.Array:
    """int32[B, T], zeros. A decoder-only model's prompt is part of the text."""
    return jnp.zeros((batch, state_length(max_positions + (0 if encoder_decoder else input_length))), jnp.int32)


def with_last(text: jax.Array, rows: Rows) -> jax.Array:
    """The text with the rows' last two tokens.

    Both may be the target's own, where a row has just come or γ was 0; what was accepted before them was written when it was
    proposed.
    """
    start = jnp.maximum(rows.position - 1, 0)
    pair = jnp.stack([jnp.where(rows.position > 0, rows.previous, rows.last), rows.last], axis=1)
    return written(text, pair, start)


def last_tokens(text: jax.Array, position: jax.Array, count: int) -> jax.Array:
    """int32[B, count], the token at `position` and those before it, newest first, -2 where there are none."""
    back = position[:, None] - np.arange(count)
    return jnp.where(back >= 0, jnp.take_along_axis(text, jnp.maximum(back, 0), axis=1), -2)
