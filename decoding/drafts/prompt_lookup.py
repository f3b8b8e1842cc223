"""Copying from the text so far, at next to no cost (section 3.6 of Leviathan et al.)."""

import jax
import jax.numpy as jnp
import numpy as np

from decoding.config import DecodingConfig
from decoding.drafts.base import Draft
from decoding.models.base import LanguageModel, State, state_length
from decoding.rows import Rows
from decoding.sampling import argmax
from decoding.verification import Proposal


class PromptLookupDraft(Draft):
    """Copies what followed the last tokens where they occurred before, in the input or in the output so far.

    The longest match of `min_ngram` to `max_ngram` tokens wins, and among equals the latest.  A row without a match
    proposes nothing in that iteration.  Proposals are deterministic: q is one-hot.

    State: `{"text": int32[B, T]}`, the decoder's inputs by position (a decoder-only model's prompt among them), and
    for encoder-decoder targets `{"input": int32[B, L], "lengths": int32[B]}`.
    """

    def __init__(
        self,
        vocab_size: int | None = None,
        *,
        encoder_decoder: bool | None = None,
        max_ngram: int = 3,
        min_ngram: int = 1,
    ):
        """
        Args:
          vocab_size, encoder_decoder: None for the target's.

        Raises:
          ValueError: not 1 <= min_ngram <= max_ngram.
        """
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"min_ngram is {min_ngram} and max_ngram {max_ngram}; allowed: 1 <= min_ngram <= max_ngram")
        self.vocab_size, self.encoder_decoder = vocab_size, encoder_decoder
        self.max_ngram, self.min_ngram = max_ngram, min_ngram

    def for_target(self, target: LanguageModel) -> "PromptLookupDraft":
        return PromptLookupDraft(
            target.vocab_size if self.vocab_size is None else self.vocab_size,
            encoder_decoder=target.encoder_decoder if self.encoder_decoder is None else self.encoder_decoder,
            max_ngram=self.max_ngram,
            min_ngram=self.min_ngram,
        )

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        if not self.encoder_decoder:
            return {"text": jnp.zeros((batch, state_length(input_length + max_positions)), jnp.int32)}
        return {
            "text": jnp.zeros((batch, state_length(max_positions)), jnp.int32),
            "input": jnp.zeros((batch, input_length), jnp.int32),
            "lengths": jnp.zeros((batch,), jnp.int32),
        }

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        return {"input": inputs, "lengths": lengths} if self.encoder_decoder else {"text": inputs}

    def follow(self, state: State, tokens: jax.Array, positions: jax.Array) -> State:
        return state | {"text": _write(state["text"], tokens, positions)}

    def propose(self, state: State, rows: Rows, gamma: int, config: DecodingConfig) -> tuple[Proposal, State]:
        # The token before the last may be the target's own too, where the row has just come or γ was 0.
        start = jnp.maximum(rows.position - 1, 0)
        pair = jnp.stack([jnp.where(rows.position > 0, rows.previous, rows.last), rows.last], axis=1)
        text = _write(state["text"], pair, start)
        back = rows.position[:, None] - np.arange(self.max_ngram)
        pattern = jnp.where(back >= 0, jnp.take_along_axis(text, jnp.maximum(back, 0), axis=1), -1)
        sources = [(text, rows.position)]
        if self.encoder_decoder:
            sources.insert(0, (state["input"], state["lengths"] - 1))
        matched = jnp.concatenate([self._matched(source, end, pattern) for source, end in sources], axis=1)
        joined = jnp.concatenate([source for source, _ in sources], axis=1)
        ends = jnp.concatenate([jnp.broadcast_to(end[:, None], source.shape) for source, end in sources], axis=1)
        offsets = jnp.asarray(np.concatenate([np.arange(source.shape[1], dtype=np.int32) for source, _ in sources]))
        size = joined.shape[1]
        best = argmax(jnp.where(matched > 0, matched * size + np.arange(size), 0))[:, None]
        left = (jnp.take_along_axis(ends, best, axis=1) - offsets[best])[:, 0]
        count = jnp.where(jnp.take_along_axis(matched, best, axis=1)[:, 0] > 0, jnp.minimum(left, gamma), 0)
        places = jnp.minimum(best + 1 + np.arange(gamma), size - 1)
        tokens = jnp.take_along_axis(joined, places, axis=1)
        proposal = Proposal(tokens, None, None, count.astype(jnp.int32))
        return proposal, state | {"text": _write(text, tokens, rows.position + 1)}

    def _matched(self, source: jax.Array, end: jax.Array, pattern: jax.Array) -> jax.Array:
        """How many of the last tokens stand at each place: int32[B, N], 0 where too few do or nothing follows.

        Args:
          source: int32[B, N].
          end: int32[B], the last valid place; what follows a match must lie at or before it.
          pattern: int32[B, max_ngram], the last tokens, newest first, -1 where there are none.
        """
        size = source.shape[1]
        places = np.arange(size)
        matched, run = jnp.zeros(source.shape, jnp.int32), jnp.ones(source.shape, bool)
        for i in range(self.max_ngram):
            shifted = jnp.pad(source, ((0, 0), (i, 0)), constant_values=-2)[:, :size]
            run = run & (shifted == pattern[:, i : i + 1])
            matched = matched + run
        usable = (matched >= self.min_ngram) & (places < end[:, None])
        return jnp.where(usable, matched, 0)


def _write(text: jax.Array, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """int32[B, T] with int32[B, K] tokens written from `positions` on."""
    return jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,)))(text, tokens, positions)
