"""A draft that looks its guesses up in a corpus: what followed the last tokens there, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding.checkpoints.storage import CheckpointError, join
from decoding.config import INDEX, DecodingConfig
from decoding.drafts import suffixes
from decoding.drafts.base import Draft
from decoding.drafts.text import empty_text, last_tokens, with_last
from decoding.models.base import LanguageModel, State
from decoding.models.tree import written
from decoding.rows import Rows
from decoding.sampling import argmax
from decoding.verification import Proposal, rule_for

# Occurrences of a match that are looked at, evenly spread where there are more.
_OCCURRENCES = 32
_LOGARITHMS = np.log(np.maximum(np.arange(_OCCURRENCES + 1), 1), dtype=np.float32)


class CorpusDraft(Draft):
    """Finds the longest run of the last tokens, up to `suffixes.DEPTH`, that occurs in a frozen corpus, and proposes from it.

    Of up to 32 occurrences, those go on that have followed what was guessed so far.  At temperature 0 the most frequent next
    token of theirs is the guess; above, q is the law of their next tokens, standardised as a model's would be, and the guess
    is drawn from it.  A row whose longest match is shorter than `min_match` proposes nothing, and guesses end where all
    texts do.

    The search is binary, on device, all rows at once: some 50 dependent lookups of a few tokens for any size.

    State: `{"text": int32[B, T]}`, the decoder's inputs by position.
    """

    def __init__(
        self,
        tokens: jax.Array,
        places: jax.Array,
        vocab_size: int,
        *,
        start_id: int,
        eos_id: int,
        min_match: int = 2,
        encoder_decoder: bool | None = None,
    ):
        """
        Args:
          tokens, places: as in `suffixes`.
          vocab_size: V; the token V divides texts.
          start_id, eos_id: of the model that it was made for.
          min_match: last tokens that have to match at least.
          encoder_decoder: None for the target's.

        Raises:
          ValueError: not 1 <= min_match <= DEPTH.
        """
        if not 1 <= min_match <= suffixes.DEPTH:
            raise ValueError(f"min_match is {min_match}; allowed: 1 to {suffixes.DEPTH}")
        self.tokens, self.places = nnx.Param(tokens), nnx.Param(places)
        self.vocab_size, self.start_id, self.eos_id = vocab_size, start_id, eos_id
        self.min_match, self.encoder_decoder = min_match, encoder_decoder

    @classmethod
    def load(cls, directory: str, min_match: int = 2) -> "CorpusDraft":
        """Maps what `pipeline.fit_index` wrote, in a local directory or on gs://.

        Raises:
          CheckpointError: there is no such file, or it is something else.
          ValueError: as of the constructor.
        """
        info, tokens, places = suffixes.read(directory)
        if not len(places):
            raise CheckpointError(f"{join(directory, suffixes.FILE)} is empty")
        return cls(
            jax.device_put(tokens), jax.device_put(places), info.vocab_size,  # not copied on a processor
            start_id=info.start_id, eos_id=info.eos_id, min_match=min_match,
        )  # fmt: skip

    def for_target(self, target: LanguageModel) -> "CorpusDraft":
        return CorpusDraft(
            self.tokens[...], self.places[...], self.vocab_size,
            start_id=self.start_id, eos_id=self.eos_id, min_match=self.min_match, encoder_decoder=target.encoder_decoder,
        )  # fmt: skip

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        return {"text": empty_text(batch, input_length, max_positions, self.encoder_decoder)}

    def prefill(self, inputs: jax.Array, lengths: jax.Array, hints: jax.Array | None = None) -> State:
        return {} if self.encoder_decoder else {"text": inputs}

    def follow(self, state: State, tokens: jax.Array, positions: jax.Array) -> State:
        return state | {"text": written(state["text"], tokens, positions)}

    def propose(self, state: State, rows: Rows, gamma: int, config: DecodingConfig) -> tuple[Proposal, State]:
        text = with_last(state["text"], rows)
        match, follows, alive = self._followers(last_tokens(text, rows.position, suffixes.DEPTH), gamma)
        alive = alive & (match >= self.min_match)[:, None]
        rule = rule_for(config)
        randomness = rule.randomness(rows.noise, gamma, _OCCURRENCES)

        def guess(alive, given):
            follows, randomness = given
            support, logits = self._law(follows, alive)
            token, probs = rule.guess_among(support, logits, randomness, self.vocab_size)
            return alive & (follows == token[:, None]), (token, support, logits, probs)

        _, found = jax.lax.scan(guess, alive, (follows, randomness))
        tokens, support, logits, probs = (None if one is None else jnp.moveaxis(one, 0, 1) for one in found)
        if probs is None:  # at temperature 0 guesses are certain
            support = logits = None
        # A guess counts as long as some occurrence has followed all guesses before it and goes on.
        same = jnp.cumprod(jnp.moveaxis(follows, 0, 1) == tokens[:, :, None], axis=1) * alive[:, None, :]
        count = jnp.sum(jnp.any(same > 0, axis=2), axis=1, dtype=jnp.int32)
        origin = jnp.full(match.shape, INDEX, jnp.int8)
        state = state | {"text": written(text, tokens, rows.position + 1)}
        return Proposal(tokens, logits, probs, count, origin, match, support), state

    def _law(self, follows: jax.Array, alive: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of tokens int32[B, S] those that follow, each once, and logarithms of how often: int32[B, S] and float32[B, S].

        Zeros where none does: some guess, which does not count.
        """
        known = alive & (follows < self.vocab_size)
        same = (follows[:, :, None] == follows[:, None, :]) & known[:, None, :]
        earlier = np.tril(np.ones((_OCCURRENCES, _OCCURRENCES), bool), -1)
        once = known & ~jnp.any(same & earlier, axis=2)
        logits = jnp.where(once, jnp.asarray(_LOGARITHMS)[jnp.sum(same, axis=2)], -jnp.inf)
        return jnp.where(once, follows, 0), jnp.where(jnp.any(known, axis=1, keepdims=True), logits, 0.0)

    def _followers(self, pattern: jax.Array, gamma: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What follows the longest match of the last tokens int32[B, DEPTH], newest first.

        Returns:
          Its length, int32[B]; tokens behind occurrences of it, int32[γ, B, S]; and which of the S there are, bool[B, S].
        """
        size, depth = self.places[...].shape[0], suffixes.DEPTH
        whole = jnp.full((pattern.shape[0], 1), depth, jnp.int32)
        at = self._search(pattern, whole, np.array([False]))
        near = jnp.clip(jnp.concatenate([at - 1, at], axis=1), 0, size - 1)
        runs = jnp.sum(jnp.cumprod(self._keys(near) == pattern[:, None, :], axis=2), axis=2, dtype=jnp.int32)
        match = jnp.max(runs, axis=1)
        ends = self._search(pattern, jnp.broadcast_to(match[:, None], (len(pattern), 2)), np.array([False, True]))
        low, count = ends[:, :1], ends[:, 1:] - ends[:, :1]
        number = np.arange(_OCCURRENCES)
        few = count <= _OCCURRENCES
        step, rest = count // _OCCURRENCES, count % _OCCURRENCES
        chosen = low + jnp.where(few, number, number * step + number * rest // _OCCURRENCES)
        alive = jnp.where(few, number < count, True)
        places = self._place(jnp.clip(chosen, 0, size - 1))
        follows, ended = [], jnp.zeros(places.shape, bool)
        for ahead in range(1, gamma + 1):  # beyond a text's end there is nothing, not the next text
            token = self.tokens[...].at[places + ahead].get(mode="fill", fill_value=self.vocab_size).astype(jnp.int32)
            ended = ended | (token >= self.vocab_size)
            follows.append(jnp.where(ended, self.vocab_size, token))
        return match, jnp.stack(follows), alive

    def _search(self, pattern: jax.Array, lengths: jax.Array, beyond: np.ndarray) -> jax.Array:
        """The first of the sorted places whose key is not below the pattern's first tokens, or is above them.

        Args:
          pattern: int32[B, DEPTH].
          lengths: int32[B, Q], how many tokens count.
          beyond: bool[Q], whether equal ones are passed over.
        """
        size = self.places[...].shape[0]
        looked_at = np.arange(suffixes.DEPTH) < lengths[:, :, None]

        def halve(_, ends):
            low, high = ends
            middle = low + (high - low) // 2
            keys = self._keys(jnp.minimum(middle, size - 1))
            differs = (keys != pattern[:, None, :]) & looked_at
            first = argmax(differs.astype(jnp.int32))[..., None]
            less = jnp.take_along_axis(keys < pattern[:, None, :], first, axis=2)[..., 0]
            goes = jnp.where(jnp.any(differs, axis=2), less, beyond) & (low < high)
            return jnp.where(goes, middle + 1, low), jnp.where(goes | (low >= high), high, middle)

        zero = jnp.zeros(lengths.shape, jnp.int32)
        return jax.lax.fori_loop(0, size.bit_length(), halve, (zero, zero + size))[0]

    def _keys(self, numbers: jax.Array) -> jax.Array:
        """Keys of places by their number in the order: int32[...] -> int32[..., DEPTH]."""
        back = self._place(numbers)[..., None] - np.arange(suffixes.DEPTH)
        tokens = self.tokens[...].at[jnp.maximum(back, 0)].get(mode="clip").astype(jnp.int32)
        return jnp.where(back >= 0, tokens, self.vocab_size)

    def _place(self, numbers: jax.Array) -> jax.Array:
        return self.places[...].at[numbers].get(mode="clip").astype(jnp.int32)
