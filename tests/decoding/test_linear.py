"""The one door of products, and models whose weights are packed."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import decoding
from decoding import kernels
from decoding.models import linear, resident


@pytest.mark.skipif(kernels.available() is None, reason="the products cannot be built on this machine")
@pytest.mark.parametrize("family", ["t5_v1_0", "t5_v1_1_target", "umt5", "gpt2", "llama"])
def test_packed_models_compute_what_plain_ones_do(family, golden):
    plain = decoding.load_model(str(golden / family), weights="plain")
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, plain.vocab_size, (2, 5)).astype(np.int32)
    encoder = (tokens, np.array([5, 3], np.int32)) if plain.encoder_decoder else ()
    packed = resident.pack_model(plain)
    weights = [leaf for _, leaf in nnx.to_flat_state(nnx.state(packed)) if linear.is_packed(leaf)]
    assert len(weights) >= 9
    np.testing.assert_allclose(packed.logits(tokens, *encoder), plain.logits(tokens, *encoder), atol=1e-4)


def test_products():
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    expected, plain = np.asarray(x, np.float64) @ np.asarray(weight, np.float64), lambda x: x
    np.testing.assert_allclose(linear.project(x, nnx.Param(jnp.asarray(weight))), expected, atol=1e-6)
    np.testing.assert_allclose(linear.head_logits(x, nnx.Param(jnp.asarray(weight)), plain), expected, atol=1e-6)
    np.testing.assert_allclose(linear.tied_logits(x, nnx.Param(jnp.asarray(weight.T)), plain), expected, atol=1e-6)
    table = nnx.Param(jnp.asarray(weight))
    np.testing.assert_array_equal(linear.embed(np.array([[3, 0], [1, 1]]), table), weight[[[3, 0], [1, 1]]])
