"""The plain baseline: one target step, one token."""

import jax
import jax.numpy as jnp

from decoding.config import DecodingConfig
from decoding.models.base import LanguageModel, State
from decoding.rows import Emission, Rows, emit
from decoding.sampling import NEXT_STREAM, argmax, draw, standardize, uniforms
from decoding.verification import coupled_choice


def iterate(
    target: LanguageModel, state: State, rows: Rows, config: DecodingConfig
) -> tuple[State, Rows, Emission]:
    """Decodes one token per row."""
    logits, state = target.step(rows.last[:, None], rows.position, state)
    next_token = choose(logits[:, 0], rows, config)
    rows, emission = emit(rows, logits, jnp.zeros_like(rows.last), next_token, target.eos_id)
    return state, rows, emission


def choose(logits: jax.Array, rows: Rows, config: DecodingConfig) -> jax.Array:
    """The plain choice of a token from raw logits float32[B, V]: int32[B]."""
    if config.temperature == 0.0:
        return argmax(logits)
    probs = standardize(logits, config)
    if config.verification == "coupled":
        return coupled_choice(probs, rows.noise, 0)
    return draw(probs, uniforms(rows.keys, rows.position, NEXT_STREAM, 1)[:, 0])
