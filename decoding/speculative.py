"""Algorithm 1 of Leviathan et al. (2211.17192) for a batch whose rows accept different numbers of tokens."""

import jax
import jax.numpy as jnp

from decoding.config import DecodingConfig
from decoding.models.base import LanguageModel, State
from decoding.rows import Emission, Rows, emit
from decoding.sampling import DRAFT_STREAM, argmax, draw, standardize, uniforms
from decoding.verification import Proposal, coupled_choice, rule_for


def iterate(
    target: LanguageModel,
    draft: LanguageModel,
    target_state: State,
    draft_state: State,
    rows: Rows,
    gamma: int,
    config: DecodingConfig,
) -> tuple[State, State, Rows, Emission]:
    """Drafts γ tokens, checks them with one target call, emits 1 to γ + 1 tokens per row."""
    proposal, draft_state = propose(draft, draft_state, rows, gamma, config)
    tokens = jnp.concatenate([rows.last[:, None], proposal.tokens], axis=1)
    logits, target_state = target.step(tokens, rows.position, target_state)
    verdict = rule_for(config)(logits, proposal, rows.noise, config)
    rows, emission = emit(
        rows, logits, verdict.accepted, verdict.next_token, target.eos_id, proposal, verdict.beta
    )
    return target_state, draft_state, rows, emission


def propose(
    draft: LanguageModel, state: State, rows: Rows, gamma: int, config: DecodingConfig
) -> tuple[Proposal, State]:
    """Draws γ tokens from the draft, autoregressively.

    The first step feeds the last *two* tokens.  After full acceptance the draft has never seen its own last token:
    with inputs a b | x y accepted and bonus z, its cache holds a b x, and the next iteration must feed y z.  Where
    the cache holds y already it is written again with the same values.
    """
    u = uniforms(rows.keys, rows.position, DRAFT_STREAM, gamma)

    def choose(logits, offset, u):
        if config.temperature == 0.0:
            return argmax(logits), None
        probs = standardize(logits, config)
        if config.verification == "coupled":
            return coupled_choice(probs, rows.noise, offset), probs
        return draw(probs, u), probs

    start = jnp.maximum(rows.position - 1, 0)
    first = rows.position - start  # 0 for a row at position 0, which has no token before its last
    pair = jnp.stack([jnp.where(first == 1, rows.previous, rows.last), rows.last], axis=1)
    logits, state = draft.step(pair, start, state, at=first)
    token, probs = choose(logits[:, 0], 0, u[:, 0])

    def extend(carry, inputs):
        token, state = carry
        offset, u = inputs
        logits, state = draft.step(token[:, None], rows.position + offset, state)
        token, probs = choose(logits[:, 0], offset, u)
        return (token, state), (token, logits[:, 0], probs)

    offsets = jnp.arange(1, gamma, dtype=jnp.int32)
    (_, state), later = jax.lax.scan(extend, (token, state), (offsets, u[:, 1:].T))
    tokens, all_logits, all_probs = jax.tree.map(
        lambda head, tail: jnp.moveaxis(jnp.concatenate([head[None], tail]), 0, 1), (token, logits[:, 0], probs), later
    )
    return Proposal(tokens, all_logits, all_probs, jnp.full((tokens.shape[0],), gamma, jnp.int32)), state
