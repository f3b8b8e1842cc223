"""Random models of several families in the form of `decoding.kernels`, each with a draft that it often agrees with."""

import dataclasses

import numpy as np
from flax import nnx

from decoding.models.base import Shape
from decoding.models.decoder_only import DecoderConfig
from decoding.models.resident import pack_model
from decoding.models.t5 import T5Config

_DECODER = DecoderConfig(
    vocab_size=1003,
    d_model=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    d_ff=100,
    norm="rms",
    position="rotary",
    activation="silu",
    gated=True,
    tied=True,
)
SHAPES = {
    "t5": T5Config(
        vocab_size=1003,
        d_model=40,
        d_kv=12,
        d_ff=100,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=4,
        gated=True,
        activation="gelu_new",
        tied=False,
        scale_decoder_outputs=False,
    ),
    "gpt2": dataclasses.replace(
        _DECODER,
        num_kv_heads=4,
        norm="layer",
        position="learned",
        activation="gelu",
        gated=False,
        max_positions=128,
        qkv_bias=True,
        out_bias=True,
        feed_forward_bias=True,
    ),
    "llama": _DECODER,
}


def random_pair(shape: Shape, form: str = "float32"):
    """A target and a draft that is the target with a little noise, so that some guesses are kept and some are not."""
    target, draft = (shape.build(rngs=nnx.Rngs(0), dtype=np.float32) for _ in range(2))
    state = nnx.state(draft)
    rng = np.random.default_rng(1)
    noise = [
        (path, leaf.replace(np.asarray(leaf.get_value()) * (1 + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32))))
        for path, leaf in nnx.to_flat_state(state)
    ]
    nnx.update(draft, nnx.from_flat_state(noise))
    return pack_model(target, form), pack_model(draft, form)


def random_inputs(vocab_size: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(3, vocab_size, rng.integers(1, 13)).tolist() for _ in range(count)]
