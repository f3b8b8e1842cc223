"""Rows on their way to the device and back."""

import jax.numpy as jnp
import numpy as np

from decoding.rows import WIDTH, Rows, idle_rows, new_row, pack, unpack
from decoding.sampling import row_key


def test_rows_survive_being_packed():
    keys = np.stack([row_key(0, name, 2) for name in "ab"])
    rows = Rows(*(jnp.array(values) for values in ([1, 2], [3, 4], [5, 6], [7, 8])), jnp.array([True, False]), keys)
    packed = pack(rows)
    assert packed.shape == (2, WIDTH) and packed.dtype == np.int32
    for before, after in zip(rows, unpack(packed)):
        np.testing.assert_array_equal(before, after)


def test_new_and_idle_rows():
    key = row_key(3, "example", 1)
    rows = unpack(jnp.stack([new_row(5, 6, 7, 8, key), *idle_rows(1)]))
    assert [array.tolist() for array in rows[:5]] == [[5, 0], [6, 0], [7, 0], [8, 0], [False, True]]
    np.testing.assert_array_equal(rows.keys[0], key)
