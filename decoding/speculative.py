"""One iteration of a batch, from top to bottom: Algorithm 1 of Leviathan et al. (2211.17192), and its plain baseline.

    iterate:  draft.propose     γ tokens per row, and what they were drawn from          drafts.base
              target.step       one call over γ + 1 positions                            models
              rule.verify       the accepted prefix of each row, and its next token      verification
              emit              what each token was; rows move on by different amounts   here

Programs run it in chunks (`programs.Programs._chunk`), and the host reads what was emitted (`harvest`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from decoding.config import ACCEPTED, BONUS, CORRECTED, MODEL_GUESS, NOTHING, PLAIN, DecodingConfig
from decoding.drafts.base import Draft
from decoding.faults import DRAFT_FAULT, TARGET_FAULT
from decoding.models.base import LanguageModel, State, eos_ids
from decoding.rows import Rows
from decoding.sampling import is_law, log_prob
from decoding.verification import Proposal, Verdict, rule_for


class Emission(NamedTuple):
    """What one iteration adds to every row, G = γ + 1 places each, valid where place < count.

    Attributes:
      tokens: int32[B, G].
      source: int8[B, G].
      beta, target_logprob, draft_logprob: float32[B, G].
      count: int32[B], tokens emitted; 0 for rows that were done.
      proposed: int32[B], tokens the draft offered.
      origin: int8[B], where they came from, as of `Generation`.
      match: int32[B], as of `Generation`.
      fault: int8[B], 0, or whose logits were of no distribution where they decided: `TARGET_FAULT`, `DRAFT_FAULT`.
        What such an iteration emits is worth nothing, and its row is done.
    """

    tokens: jax.Array
    source: jax.Array
    beta: jax.Array
    target_logprob: jax.Array
    draft_logprob: jax.Array
    count: jax.Array
    proposed: jax.Array
    origin: jax.Array
    match: jax.Array
    fault: jax.Array


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


def iterate_plain(
    target: LanguageModel, state: State, rows: Rows, config: DecodingConfig
) -> tuple[State, Rows, Emission]:
    """The plain baseline, γ = 0: one target step, one token per row."""
    logits, state = target.step(rows.last[:, None], rows.position, state)
    next_token = rule_for(config).plain(logits[:, 0], rows.noise)
    rows, emission = emit(rows, logits, jnp.zeros_like(rows.last), next_token, eos_ids(target))
    return state, rows, emission


def emit(
    rows: Rows,
    target_logits: jax.Array,
    accepted: jax.Array,
    next_token: jax.Array,
    eos_ids: tuple[int, ...],
    proposal: Proposal | None = None,
    verdict: Verdict | None = None,
) -> tuple[Rows, Emission]:
    """Advances rows by an accepted prefix and its next token, cut at EOS and at the budget.

    Args:
      rows: before the iteration.
      target_logits: float32[B, G, V], raw.
      accepted: int32[B], n.
      next_token: int32[B].
      eos_ids: the tokens that end a row.
      proposal: with γ = G - 1 tokens, or None when nothing was drafted.
      verdict: on the proposal.
    """
    batch, places = target_logits.shape[:2]
    place = jnp.arange(places)[None, :]
    nothing = jnp.full((batch, places), jnp.nan, jnp.float32)
    if proposal is None:
        tokens, source, draft_logprob, betas = next_token[:, None], PLAIN, nothing, nothing
        proposed = jnp.zeros((batch,), jnp.int32)
    else:
        proposed = proposal.count
        drafted = jnp.pad(proposal.tokens, ((0, 0), (0, 1)))
        tokens = jnp.where(place < accepted[:, None], drafted, next_token[:, None])
        end = jnp.where(accepted < proposed, CORRECTED, jnp.where(proposed > 0, BONUS, PLAIN))
        source = jnp.where(place < accepted[:, None], ACCEPTED, end[:, None])
        examined = place < proposed[:, None]
        pad = ((0, 0), (0, 1))
        betas = jnp.where(examined, jnp.pad(verdict.beta, pad), jnp.nan)
        draft_logprob = jnp.where(examined, jnp.pad(proposal.log_prob(tokens[:, :-1]), pad), jnp.nan)
    ends = jnp.isin(tokens, jnp.asarray(eos_ids, jnp.int32)) & (place <= accepted[:, None])
    at_eos = jnp.where(jnp.any(ends, axis=1), jnp.argmax(ends, axis=1) + 1, places + 1)
    count = jnp.minimum(jnp.minimum(accepted + 1, at_eos), rows.remaining)
    count = jnp.where(rows.done, 0, count).astype(jnp.int32)
    remaining = rows.remaining - count
    decided = count
    if verdict is not None and verdict.examined is not None:  # jointly, that is beyond an accepted end as well
        decided = jnp.where(rows.done, 0, jnp.minimum(verdict.examined, rows.remaining))
    origin, match = jnp.full((batch,), NOTHING, jnp.int8), jnp.zeros((batch,), jnp.int32)
    if proposal is not None:
        source_of = jnp.int8(MODEL_GUESS) if proposal.origin is None else proposal.origin
        origin = jnp.where(proposed > 0, source_of, origin)
        match = match if proposal.match is None else jnp.where(proposed > 0, proposal.match, 0)
    fault = _faults(target_logits, decided, TARGET_FAULT)
    if proposal is not None and proposal.logits is not None:
        fault = jnp.where(fault > 0, fault, _faults(proposal.logits, jnp.minimum(decided, proposed), DRAFT_FAULT))
    history = jnp.concatenate([rows.previous[:, None], rows.last[:, None], tokens], axis=1)
    moved = Rows(
        previous=jnp.take_along_axis(history, count[:, None], axis=1)[:, 0],
        last=jnp.take_along_axis(history, count[:, None] + 1, axis=1)[:, 0],
        position=rows.position + count,
        remaining=remaining,
        done=rows.done | (count == at_eos) | (remaining == 0) | (fault > 0),
        keys=rows.keys,
    )
    return moved, Emission(
        tokens=tokens,
        source=jnp.broadcast_to(source, tokens.shape).astype(jnp.int8),
        beta=betas,
        target_logprob=log_prob(target_logits, tokens),
        draft_logprob=draft_logprob,
        count=count,
        proposed=proposed,
        origin=origin,
        match=match,
        fault=fault,
    )


def _faults(logits: jax.Array, decided: jax.Array, fault: int) -> jax.Array:
    """int8[B], `fault` where one of the first `decided` int32[B] rows of float32[B, N, V] is no distribution."""
    looked_at = jnp.arange(logits.shape[1]) < decided[:, None]
    return jnp.where(jnp.any(looked_at & ~is_law(logits), axis=1), fault, 0).astype(jnp.int8)
