"""Guessing blindly: the floor that other drafts are measured against."""

import jax.numpy as jnp
from flax import nnx

from decoding.config import DecodingConfig
from decoding.drafts.base import Draft
from decoding.models.base import LanguageModel, State
from decoding.rows import Rows
from decoding.verification import Proposal, rule_for


class UniformDraft(Draft):
    """Draws every token of the vocabulary with the same probability (section 3.6).

    The baseline of all drafts: α = 1 / V.  q and its logits are one number each, broadcast into what reads them.  They are
    parameters because XLA would evaluate sums over a constant [B, γ, V] while it compiles, for minutes.
    """

    def __init__(self, vocab_size: int | None = None):
        """Args:
        vocab_size: V, None for the target's.
        """
        self.vocab_size = vocab_size
        if vocab_size is not None:
            self.logit = nnx.Param(jnp.zeros(()))
            self.prob = nnx.Param(jnp.array(1.0 / vocab_size))

    def for_target(self, target: LanguageModel) -> "UniformDraft":
        return UniformDraft(target.vocab_size) if self.vocab_size is None else self

    def propose(self, state: State, rows: Rows, gamma: int, config: DecodingConfig) -> tuple[Proposal, State]:
        batch = rows.last.shape[0]
        logits = jnp.broadcast_to(self.logit[...], (batch, gamma, self.vocab_size))
        probs = None if config.temperature == 0.0 else jnp.broadcast_to(self.prob[...], logits.shape)
        tokens = rule_for(config).guess_evenly(rows.noise, gamma, self.vocab_size)
        return Proposal(tokens, logits, probs, jnp.full((batch,), gamma, jnp.int32)), state
