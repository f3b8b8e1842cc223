"""The rows of a batch, and how an iteration's tokens are emitted into them.

A row is a sequence being decoded.  Rows travel between host and device as one int32[B, WIDTH] array, because every
transfer costs the same however small it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoding.config import ACCEPTED, BONUS, PLAIN, RESAMPLED
from decoding.faults import DRAFT_FAULT, TARGET_FAULT
from decoding.sampling import is_law, log_prob
from decoding.verification import Noise, Proposal, Verdict


class Rows(NamedTuple):
    """Per-row state of decoding.

    Attributes:
      previous: int32[B], the decoder input token before `last`; equal to `last` at position 0.
      last: int32[B], the newest decoder input token.
      position: int32[B], the position of `last`; the next token is predicted from there.
      remaining: int32[B], tokens that may still be emitted.
      done: bool[B]; a done row is frozen: its position does not move and it emits nothing.
      keys: uint32[B, 2], see `sampling.row_key`.
    """

    previous: jax.Array
    last: jax.Array
    position: jax.Array
    remaining: jax.Array
    done: jax.Array
    keys: jax.Array

    @property
    def noise(self) -> Noise:
        return Noise(self.keys, self.position)


# Columns of packed rows.  The two words of a row's key are the last.
PREVIOUS, LAST, POSITION, REMAINING, DONE, KEY = range(6)
WIDTH = KEY + 2


def pack(rows: Rows) -> jax.Array:
    """Rows -> int32[B, WIDTH]."""
    keys = jax.lax.bitcast_convert_type(rows.keys, jnp.int32)
    columns = [rows.previous, rows.last, rows.position, rows.remaining, rows.done.astype(jnp.int32)]
    return jnp.concatenate([jnp.stack(columns, axis=1), keys], axis=1)


def unpack(packed: jax.Array) -> Rows:
    """int32[B, WIDTH] -> Rows."""
    keys = jax.lax.bitcast_convert_type(packed[:, KEY:], jnp.uint32)
    return Rows(
        previous=packed[:, PREVIOUS],
        last=packed[:, LAST],
        position=packed[:, POSITION],
        remaining=packed[:, REMAINING],
        done=packed[:, DONE] != 0,
        keys=keys,
    )


def idle_rows(batch: int) -> np.ndarray:
    """Packed rows that are all done: int32[B, WIDTH]."""
    packed = np.zeros((batch, WIDTH), np.int32)
    packed[:, DONE] = 1
    return packed


def new_row(previous: int, last: int, position: int, remaining: int, key: np.ndarray) -> np.ndarray:
    """One packed row, int32[WIDTH], at the start of a generation."""
    return np.concatenate([np.array([previous, last, position, remaining, 0], np.int32), key.view(np.int32)])


class Emission(NamedTuple):
    """What one iteration adds to every row, G = γ + 1 places each, valid where place < count.

    Attributes:
      tokens: int32[B, G].
      source: int8[B, G].
      beta, target_logprob, draft_logprob: float32[B, G].
      count: int32[B], tokens emitted; 0 for rows that were done.
      proposed: int32[B], tokens the draft offered.
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
    fault: jax.Array


def emit(rows: Rows, target_logits: jax.Array, accepted: jax.Array, next_token: jax.Array, eos_ids: tuple[int, ...],
         proposal: Proposal | None = None, verdict: Verdict | None = None) -> tuple[Rows, Emission]:
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
        end = jnp.where(accepted < proposed, RESAMPLED, jnp.where(proposed > 0, BONUS, PLAIN))
        source = jnp.where(place < accepted[:, None], ACCEPTED, end[:, None])
        examined = place < proposed[:, None]
        pad = ((0, 0), (0, 1))
        betas = jnp.where(examined, jnp.pad(verdict.beta, pad), jnp.nan)
        if proposal.logits is None:
            logprob = jnp.where(tokens[:, :-1] == proposal.tokens, 0.0, -jnp.inf)
        else:
            logprob = log_prob(proposal.logits, tokens[:, :-1])
        draft_logprob = jnp.where(examined, jnp.pad(logprob, pad), jnp.nan)
    ends = jnp.isin(tokens, jnp.asarray(eos_ids, jnp.int32)) & (place <= accepted[:, None])
    at_eos = jnp.where(jnp.any(ends, axis=1), jnp.argmax(ends, axis=1) + 1, places + 1)
    count = jnp.minimum(jnp.minimum(accepted + 1, at_eos), rows.remaining)
    count = jnp.where(rows.done, 0, count).astype(jnp.int32)
    remaining = rows.remaining - count
    decided = count
    if verdict is not None and verdict.examined is not None:  # jointly, that is beyond an accepted end as well
        decided = jnp.where(rows.done, 0, jnp.minimum(verdict.examined, rows.remaining))
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
        fault=fault,
    )


def _faults(logits: jax.Array, decided: jax.Array, fault: int) -> jax.Array:
    """int8[B], `fault` where one of the first `decided` int32[B] rows of float32[B, N, V] is no distribution."""
    looked_at = jnp.arange(logits.shape[1]) < decided[:, None]
    return jnp.where(jnp.any(looked_at & ~is_law(logits), axis=1), fault, 0).astype(jnp.int8)
