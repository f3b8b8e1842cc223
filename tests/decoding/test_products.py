"""No product of any family falls back to XLA's: prefill and steps call `decoding.kernels` and hold no matrix product."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import decoding
from decoding import kernels
from tests.support.hf_models import DECODER_ONLY, ENCODER_DECODERS, GOLDEN_DIRECTORY

FAMILIES = ("t5_v1_1_target", "t5_v1_0", "umt5", "gpt2", "llama", *ENCODER_DECODERS, *DECODER_ONLY)
ONE = [pytest.param(name, marks=[] if name in ("m2m_100", "gemma2") else pytest.mark.slow) for name in FAMILIES]


def calls(function, *args) -> collections.Counter:
    """How often a lowered program calls each of the kernels, and holds a product of XLA's ("dot")."""
    text = jax.jit(function).lower(*args).as_text()
    found = collections.Counter(re.findall(r"custom_call @specbeam_([a-z_]+)_[0-9a-f]{16}", text))
    found["dot"] = len(re.findall(r"stablehlo\.(?:dot|convolution)", text))
    return found


@pytest.mark.skipif(not kernels.available(), reason="no products of the processor's own here")
@pytest.mark.parametrize("name", ONE)
def test_no_product_is_xlas(name):
    """A layer's projections are four products, its cross-attention's two more, whose keys and values prefill makes."""
    model = decoding.load_model(str(GOLDEN_DIRECTORY / name))
    graph, params = nnx.split(model)
    inputs, lengths = jnp.ones((2, 8), jnp.int32), jnp.array([8, 3], jnp.int32)
    both, layers = model.encoder_decoder, getattr(model.config, "num_decoder_layers", model.config.num_layers)
    found = calls(lambda params: nnx.merge(graph, params).prefill(inputs, lengths), params)
    if both:
        assert (found["product"], found["attend_itself"]) == (4 * model.config.num_layers + layers, model.config.num_layers)
    else:
        assert found["product"] > 4 * (layers - 1) and found["attend_cache"] == layers
    assert found["dot"] == 0
    for steps in (1, 4):
        fed = jnp.ones((2, steps), jnp.int32), jnp.zeros(2, jnp.int32), model.init_state(2, 8, 16)
        found = calls(lambda params, *fed: nnx.merge(graph, params).step(*fed), params, *fed)
        assert (found["product"], found["dot"]) == ((6 if both else 4) * layers + 1, 0)
        assert (found["attend_cache"], found["attend_input"]) == (layers, layers * both)
