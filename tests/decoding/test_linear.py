"""Weights are known to `decoding.models.linear` alone: held in another form, they reach nobody else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import decoding
from decoding.models import decoder_only, linear, t5

PRODUCTS = ("project", "embed", "head_logits", "tied_logits")
# Small parameters, of which models make what they like.
PLAIN = ("norm", "scale", "bias", "encoder_bias", "decoder_bias", "relative")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Packed:
    """An array that can do nothing but be handed on."""

    array: jax.Array


def packed(model: nnx.Module) -> tuple[nnx.Module, int]:
    """The model with its weights packed, and how many that are."""
    graph, state = nnx.split(model)
    leaves = [
        (keys, leaf if str(keys[-1]) in PLAIN or "norm" in str(keys[-1]) else leaf.replace(Packed(leaf.get_value())))
        for keys, leaf in nnx.to_flat_state(state)
    ]
    count = sum(isinstance(leaf.get_value(), Packed) for _, leaf in leaves)
    return nnx.merge(graph, nnx.from_flat_state(leaves)), count


@pytest.mark.parametrize("family", ["t5_v1_0", "t5_v1_1_target", "umt5", "gpt2", "llama"])
def test_weights_reach_nobody_but_the_door(family, golden, monkeypatch):
    model = decoding.load_model(str(golden / family))
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, model.vocab_size, (2, 5)).astype(np.int32)
    encoder = (tokens, np.array([5, 3], np.int32)) if model.encoder_decoder else ()
    expected = model.logits(tokens, *encoder)
    other, count = packed(model)
    seen, products = set(), {name: getattr(linear, name) for name in PRODUCTS}

    def unpacked(product):
        def call(x, weight, *args, **keywords):
            seen.add(id(weight))
            return product(x, nnx.Param(weight.get_value().array), *args, **keywords)

        return call

    for name in PRODUCTS:
        for module in (linear, t5, decoder_only):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, unpacked(products[name]))
    np.testing.assert_array_equal(other.logits(tokens, *encoder), expected)
    assert len(seen) == count >= 10


def test_products():
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    expected, plain = np.asarray(x, np.float64) @ np.asarray(weight, np.float64), lambda x: x
    np.testing.assert_allclose(linear.project(x, nnx.Param(jnp.asarray(weight))), expected, atol=1e-6)
    np.testing.assert_allclose(linear.head_logits(x, nnx.Param(jnp.asarray(weight)), plain), expected, atol=1e-6)
    np.testing.assert_allclose(linear.tied_logits(x, nnx.Param(jnp.asarray(weight.T)), plain), expected, atol=1e-6)
    table = nnx.Param(jnp.asarray(weight))
    np.testing.assert_array_equal(linear.embed(np.array([[3, 0], [1, 1]]), table), weight[[[3, 0], [1, 1]]])
