"""The rows of a batch, on the host and on device.

A row is a sequence being decoded.  Rows travel between host and device as one int32[B, WIDTH] array, because every
transfer costs the same however small it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoding.verification import Noise


class Rows(NamedTuple):
    """Per-row state of decoding.

    Attributes:
      previous: int32[B], the decoder input token before `last`; equal to `last` at position 0.
      last: int32[B], the newest decoder input token.
      position: int32[B], the position of `last`; the next token is predicted from there.
      remaining: int32[B], tokens that may still be emitted.
      done: bool[B]; a done row is frozen: its position does not move and it emits nothing.
      keys: uint32[B, 2], see `sampling.row_key`.
    """

    previous: jax.Array
    last: jax.Array
    position: jax.Array
    remaining: jax.Array
    done: jax.Array
    keys: jax.Array

    @property
    def noise(self) -> Noise:
        return Noise(self.keys, self.position)


# Columns of packed rows.  The two words of a row's key are the last.
PREVIOUS, LAST, POSITION, REMAINING, DONE, KEY = range(6)
WIDTH = KEY + 2


def pack(rows: Rows) -> jax.Array:
    """Rows -> int32[B, WIDTH]."""
    keys = jax.lax.bitcast_convert_type(rows.keys, jnp.int32)
    columns = [rows.previous, rows.last, rows.position, rows.remaining, rows.done.astype(jnp.int32)]
    return jnp.concatenate([jnp.stack(columns, axis=1), keys], axis=1)


def unpack(packed: jax.Array) -> Rows:
    """int32[B, WIDTH] -> Rows."""
    keys = jax.lax.bitcast_convert_type(packed[:, KEY:], jnp.uint32)
    return Rows(
        previous=packed[:, PREVIOUS],
        last=packed[:, LAST],
        position=packed[:, POSITION],
        remaining=packed[:, REMAINING],
        done=packed[:, DONE] != 0,
        keys=keys,
    )


def idle_rows(batch: int) -> np.ndarray:
    """Packed rows that are all done: int32[B, WIDTH]."""
    packed = np.zeros((batch, WIDTH), np.int32)
    packed[:, DONE] = 1
    return packed


def new_row(previous: int, last: int, position: int, remaining: int, key: np.ndarray) -> np.ndarray:
    """One packed row, int32[WIDTH], at the start of a generation."""
    return np.concatenate([np.array([previous, last, position, remaining, 0], np.int32), key.view(np.int32)])
