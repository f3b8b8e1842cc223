"""The plain baseline: one target step, one token."""

import jax.numpy as jnp

from decoding.config import DecodingConfig
from decoding.models.base import LanguageModel, State, eos_ids
from decoding.rows import Emission, Rows, emit
from decoding.verification import rule_for


def iterate(
    target: LanguageModel, state: State, rows: Rows, config: DecodingConfig
) -> tuple[State, Rows, Emission]:
    """Decodes one token per row."""
    logits, state = target.step(rows.last[:, None], rows.position, state)
    next_token = rule_for(config).plain(logits[:, 0], rows.noise)
    rows, emission = emit(rows, logits, jnp.zeros_like(rows.last), next_token, eos_ids(target))
    return state, rows, emission
