"""Copying from hints and from the text so far, at next to no cost (section 3.6 of Leviathan et al.)."""

import jax
import jax.numpy as jnp
import numpy as np

from decoding.config import HINT, INPUT, OUTPUT, DecodingConfig
from decoding.drafts.base import Draft
from decoding.drafts.text import empty_text, last_tokens, with_last
from decoding.models.base import LanguageModel, State
from decoding.models.tree import written
from decoding.rows import Rows
from decoding.sampling import argmax
from decoding.verification import Proposal

# Last tokens that are looked for in hints, at most: enough to tell a place from others that begin like it.
_HINT_NGRAM = 8


class PromptLookupDraft(Draft):
    """Copies what followed the last tokens where they occurred before, in the input or in the output so far.

    The longest match of `min_ngram` to `max_ngram` tokens wins, and among equals the latest.  A row without a match
    proposes nothing in that iteration.  Proposals are deterministic: q is one-hot.

    Hints, texts that the output nearly is, are followed like a finger in a book: the first is proposed from its beginning,
    and as long as what is emitted is what stands there, the finger moves on.  Where the output departs, it goes to the
    longest match of the last tokens that is nearest behind where it was (so an insertion or a deletion is found again), and
    while there is none, the guess is that as many tokens were replaced as have come since.  A hint goes before other places
    that match no more tokens.

    State: `{"text": int32[B, T]}`, the decoder's inputs by position (a decoder-only model's prompt among them); for
    encoder-decoder targets `{"input": int32[B, L], "lengths": int32[B]}`; and with hints
    `{"hints": int32[B, H], "at": int32[B], "missed": int32[B], "seen": int32[B]}`: hints as in `Draft.prefill`, the place in
    them that is next, tokens emitted since it was certain, and the position at which all this was.
    """

    def __init__(
        self,
        vocab_size: int | None = None,
        *,
        encoder_decoder: bool | None = None,
        max_ngram: int = 3,
        min_ngram: int = 1,
        hint_tokens: int = 0,
    ):
        """
        Args:
          vocab_size, encoder_decoder: None for the target's.
          hint_tokens: as of `Draft`.

        Raises:
          ValueError: not 1 <= min_ngram <= max_ngram.
        """
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"min_ngram is {min_ngram} and max_ngram {max_ngram}; allowed: 1 <= min_ngram <= max_ngram")
        self.vocab_size, self.encoder_decoder = vocab_size, encoder_decoder
        self.max_ngram, self.min_ngram, self.hint_tokens = max_ngram, min_ngram, hint_tokens

    def for_target(self, target: LanguageModel) -> "PromptLookupDraft":
        return PromptLookupDraft(
            target.vocab_size if self.vocab_size is None else self.vocab_size,
            encoder_decoder=target.encoder_decoder if self.encoder_decoder is None else self.encoder_decoder,
            max_ngram=self.max_ngram,
            min_ngram=self.min_ngram,
            hint_tokens=self.hint_tokens,
        )

    def with_hints(self, hint_tokens: int) -> "PromptLookupDraft":
        return PromptLookupDraft(
            self.vocab_size,
            encoder_decoder=self.encoder_decoder,
            max_ngram=self.max_ngram,
            min_ngram=self.min_ngram,
            hint_tokens=hint_tokens,
        )

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.int32)
        state = {"text": empty_text(batch, input_length, max_positions, self.encoder_decoder)}
        if self.encoder_decoder:
            state |= {"input": zeros(input_length), "lengths": zeros()}
        if self.hint_tokens:
            state |= {"hints": zeros(self.hint_tokens) - 1, "at": zeros(), "missed": zeros(), "seen": zeros()}
        return state

    def prefill(self, inputs: jax.Array, lengths: jax.Array, hints: jax.Array | None = None) -> State:
        state = {"input": inputs, "lengths": lengths} if self.encoder_decoder else {"text": inputs}
        if hints is not None:
            zeros = jnp.zeros_like(lengths)
            state |= {"hints": hints, "at": zeros, "missed": zeros, "seen": zeros if self.encoder_decoder else lengths - 1}
        return state

    def follow(self, state: State, tokens: jax.Array, positions: jax.Array) -> State:
        return state | {"text": written(state["text"], tokens, positions)}

    def of_texts(self, state: State, texts: jax.Array) -> State:
        return state | {"text": texts}

    def propose(self, state: State, rows: Rows, gamma: int, config: DecodingConfig) -> tuple[Proposal, State]:
        text = with_last(state["text"], rows)
        pattern = last_tokens(text, rows.position, max(self.max_ngram, _HINT_NGRAM if self.hint_tokens else 0))
        sources = [(text, rows.position, OUTPUT)]
        if self.encoder_decoder:
            sources.insert(0, (state["input"], state["lengths"] - 1, INPUT))
        matched = jnp.concatenate([self._matched(source, end, pattern) for source, end, _ in sources], axis=1)
        joined = jnp.concatenate([source for source, _, _ in sources], axis=1)
        ends = jnp.concatenate([jnp.broadcast_to(end[:, None], source.shape) for source, end, _ in sources], axis=1)
        places = [np.arange(source.shape[1], dtype=np.int32) for source, _, _ in sources]
        origins = [np.full((source.shape[1],), origin, np.int8) for source, _, origin in sources]
        size = joined.shape[1]
        best = argmax(jnp.where(matched > 0, matched * size + np.arange(size), 0))[:, None]
        left = (jnp.take_along_axis(ends, best, axis=1) - jnp.asarray(np.concatenate(places))[best])[:, 0]
        match = jnp.take_along_axis(matched, best, axis=1)[:, 0]
        tokens, origin = _from(joined, best[:, 0] + 1, gamma), jnp.asarray(np.concatenate(origins))[best[:, 0]]
        count = jnp.where(match > 0, jnp.minimum(left, gamma), 0)
        if self.hint_tokens:
            place, of_hint, state = _follow_hints(state, text, rows.position, pattern, gamma)
            guesses = jnp.where(place[:, None] + np.arange(gamma) < self.hint_tokens, _from(state["hints"], place, gamma), -1)
            hinted = jnp.sum(jnp.cumprod((guesses >= 0).astype(jnp.int32), axis=1), axis=1)
            begins = (of_hint == 0) & (state["at"] == 0) & (state["missed"] == 0)
            better = (hinted > 0) & ((of_hint >= match) | begins)
            tokens = jnp.where(better[:, None], jnp.maximum(guesses, 0), tokens)
            count, match = jnp.where(better, hinted, count), jnp.where(better, of_hint, match)
            origin = jnp.where(better, jnp.int8(HINT), origin)
        proposal = Proposal(tokens, None, None, count.astype(jnp.int32), origin, match)
        return proposal, state | {"text": written(text, tokens, rows.position + 1)}

    def _matched(self, source: jax.Array, end: jax.Array, pattern: jax.Array) -> jax.Array:
        """How many of the last tokens stand at each place: int32[B, N], 0 where too few do or nothing follows.

        Args:
          source: int32[B, N].
          end: int32[B], the last valid place; what follows a match must lie at or before it.
          pattern: int32[B, P], the last tokens, newest first, -2 where there are none.
        """
        matched = _run_lengths(source, pattern[:, : self.max_ngram])
        usable = (matched >= self.min_ngram) & (np.arange(source.shape[1]) < end[:, None])
        return jnp.where(usable, matched, 0)


def _follow_hints(
    state: State, text: jax.Array, position: jax.Array, pattern: jax.Array, gamma: int
) -> tuple[jax.Array, jax.Array, State]:
    """Where in the hints the next token is looked for.

    Returns:
      That place, int32[B]; how many of the last tokens stand before it, int32[B]; and the state there.
    """
    hints, at, since = state["hints"], state["at"], position - state["seen"]
    size = hints.shape[1]
    # An iteration emits γ + 1 tokens at most; after chunks without this draft there are more, and the search finds it.
    offsets = np.arange(gamma + 1)
    emitted = jnp.take_along_axis(text, jnp.minimum(state["seen"][:, None] + 1 + offsets, text.shape[1] - 1), axis=1)
    same = (emitted == _from(hints, at, gamma + 1)) & (at[:, None] + offsets < size) & (offsets < since[:, None])
    kept = jnp.sum(jnp.cumprod(same.astype(jnp.int32), axis=1), axis=1)
    at, missed = at + kept, jnp.where(kept > 0, 0, state["missed"]) + since - kept
    runs = _run_lengths(hints, pattern)
    ahead = np.arange(1, size + 1) - at[:, None]
    nearest = argmax(runs * (2 * size + 2) - jnp.where(ahead >= 0, ahead, size - ahead))
    lost = missed > 0
    found = lost & (jnp.take_along_axis(runs, nearest[:, None], axis=1)[:, 0] > 0)
    at, missed = jnp.where(found, nearest + 1, at), jnp.where(found, 0, missed)
    place = at + missed
    before = jnp.take_along_axis(runs, jnp.clip(place - 1, 0, size - 1)[:, None], axis=1)[:, 0]
    match = jnp.where((place > 0) & (place <= size), before, 0)
    return place, match, state | {"at": at, "missed": missed, "seen": position}


def _run_lengths(source: jax.Array, pattern: jax.Array) -> jax.Array:
    """How many of the tokens int32[B, P], newest first, stand at each place of int32[B, N] and before it: int32[B, N]."""
    matched, run = jnp.zeros(source.shape, jnp.int32), jnp.ones(source.shape, bool)
    for i in range(pattern.shape[1]):
        shifted = jnp.pad(source, ((0, 0), (i, 0)), constant_values=-3)[:, : source.shape[1]]
        run = run & (shifted == pattern[:, i : i + 1])
        matched = matched + run
    return matched


def _from(source: jax.Array, start: jax.Array, count: int) -> jax.Array:
    """int32[B, count] of int32[B, N] from int32[B] on; beyond the end, the last one."""
    places = jnp.clip(start[:, None] + np.arange(count), 0, source.shape[1] - 1)
    return jnp.take_along_axis(source, places, axis=1)
