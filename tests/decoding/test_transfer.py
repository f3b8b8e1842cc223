"""Arrays that travel as one come out as they went in."""

import jax
import numpy as np
import pytest

from decoding.speculative import Emission
from decoding.transfer import joined, parted


def filled(like: jax.ShapeDtypeStruct, draw: np.random.Generator) -> np.ndarray:
    """Any bits, among floats those of NaN too."""
    return draw.integers(0, 256, (*like.shape, like.dtype.itemsize), np.uint8).view(like.dtype)[..., 0]


@pytest.mark.parametrize("iterations, batch, places", [(1, 1, 1), (5, 3, 4)])
def test_a_log_comes_out_bit_for_bit(iterations, batch, places):
    draw, like = np.random.default_rng(0), Emission.like(iterations, batch, places)
    log = jax.tree.map(lambda leaf: filled(leaf, draw), like)
    found = parted(jax.device_get(jax.jit(joined)(log)), like)
    for name, went, came in zip(Emission._fields, log, found):
        assert (came.dtype, came.shape, came.tobytes()) == (went.dtype, went.shape, went.tobytes()), name


def test_booleans_and_unsigned_numbers():
    tree = {"a": np.array([[True, False]]), "b": (np.array([2**32 - 1, 3], np.uint32), np.array(-7, np.int32))}
    found = parted(jax.device_get(jax.jit(joined)(tree)), tree)
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    assert found["a"].dtype == bool
