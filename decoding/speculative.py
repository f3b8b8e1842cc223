"""Algorithm 1 of Leviathan et al. (2211.17192) for a batch whose rows accept different numbers of tokens."""

import jax.numpy as jnp

from decoding.config import DecodingConfig
from decoding.drafts.base import Draft
from decoding.models.base import LanguageModel, State, eos_ids
from decoding.rows import Emission, Rows, emit
from decoding.verification import rule_for


def iterate(
    target: LanguageModel,
    draft: Draft,
    target_state: State,
    draft_state: State,
    rows: Rows,
    gamma: int,
    config: DecodingConfig,
) -> tuple[State, State, Rows, Emission]:
    """Drafts γ tokens, checks them with one target call, emits 1 to γ + 1 tokens per row."""
    proposal, draft_state = draft.propose(draft_state, rows, gamma, config)
    tokens = jnp.concatenate([rows.last[:, None], proposal.tokens], axis=1)
    logits, target_state = target.step(tokens, rows.position, target_state)
    verdict = rule_for(config).verify(logits, proposal, rows.noise)
    rows, emission = emit(rows, logits, verdict.accepted, verdict.next_token, eos_ids(target), proposal, verdict)
    return target_state, draft_state, rows, emission
