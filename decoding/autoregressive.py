"""The plain choice of a token, by the name that scripts know it by."""

import jax

from decoding.config import DecodingConfig
from decoding.rows import Rows
from decoding.verification import rule_for


def choose(logits: jax.Array, rows: Rows, config: DecodingConfig) -> jax.Array:
    """int32[B] tokens of raw logits float32[B, V], as plain decoding draws them under the config's rule."""
    return rule_for(config).plain(logits, rows.noise)
