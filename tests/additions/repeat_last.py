"""A draft: proposes the last token again and again."""

import jax.numpy as jnp

import decoding
from decoding.drafts import Draft
from decoding.verification import Proposal


class RepeatLast(Draft):
    def propose(self, state, rows, gamma, config):
        tokens = jnp.repeat(rows.last[:, None], gamma, axis=1)
        return Proposal(tokens, logits=None, probs=None, count=jnp.full_like(rows.last, gamma)), state


decoding.register_draft("repeat_last", RepeatLast)
