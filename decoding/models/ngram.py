"""Unigram and bigram drafts of negligible cost (section 3.6 of Leviathan et al.), kept as sparse rows.

p(x | y) = (c(y, x) + n(y) p(x)) / (c(y) + n(y)), Witten-Bell interpolation: c counts, n(y) is the number of distinct
followers of y, and p(x) is the unigram probability, itself interpolated with the uniform one.  So a row stores only the
followers that were seen, and every token keeps a positive probability.
"""

import json
import os
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from safetensors import safe_open

from decoding.models.base import State

FILE = "ngram.safetensors"


class NGramDraft(nnx.Module):
    """A bigram (or, without followers, unigram) model that meets `LanguageModel`; use it as a draft.

    Attributes:
      unigram: float32[V], p(x).
      starts: int32[V + 1], where each token's row of followers begins in `followers`.
      followers: int32[N], grouped by the token they follow.
      shares: float32[N], c(y, x) / (c(y) + n(y)).
      backoff: float32[V], n(y) / (c(y) + n(y)), the weight of the unigram; 1 for tokens never seen.
      longest: the longest row.
    """

    encoder_decoder = None  # needs nothing but the last token

    def __init__(self, unigram, starts, followers, shares, backoff, *, start_id: int, eos_id: int):
        self.unigram = nnx.Param(jnp.asarray(unigram, jnp.float32))
        self.starts = nnx.Param(jnp.asarray(starts, jnp.int32))
        self.followers = nnx.Param(jnp.asarray(followers, jnp.int32))
        self.shares = nnx.Param(jnp.asarray(shares, jnp.float32))
        self.backoff = nnx.Param(jnp.asarray(backoff, jnp.float32))
        self.vocab_size, self.start_id, self.eos_id = len(unigram), start_id, eos_id
        self.longest = int(np.max(np.diff(starts), initial=0))

    @classmethod
    def fit(
        cls, texts: Iterable[Sequence[int]], vocab_size: int, *, start_id: int, eos_id: int, order: int = 2
    ) -> "NGramDraft":
        """Fits to token sequences as the decoder emits them: without the start token, EOS included where reached.

        Raises:
          ValueError: order is neither 1 nor 2, or a token is not in the vocabulary.
        """
        if order not in (1, 2):
            raise ValueError(f"order is {order}; allowed: 1 (unigram) or 2 (bigram)")
        pairs: list[np.ndarray] = []
        for text in texts:
            tokens = np.concatenate([[start_id], np.asarray(text, np.int64)])
            if tokens.min() < 0 or tokens.max() >= vocab_size:
                raise ValueError(f"a text has tokens from {tokens.min()} to {tokens.max()}; allowed: 0 to {vocab_size - 1}")
            pairs.append(tokens[:-1] * vocab_size + tokens[1:])
        codes, counts = np.unique(np.concatenate(pairs) if pairs else np.zeros(0, np.int64), return_counts=True)
        return cls.from_counts(codes // vocab_size, codes % vocab_size, counts, vocab_size, start_id, eos_id, order)

    @classmethod
    def from_counts(cls, first, second, counts, vocab_size: int, start_id: int, eos_id: int, order: int = 2):
        """From distinct pairs int[N] (first, second), sorted, and how often each was seen, int[N]."""
        totals = np.bincount(second, counts, vocab_size)
        kinds = np.count_nonzero(totals)
        unigram = (totals + max(kinds, 1) / vocab_size) / (totals.sum() + max(kinds, 1))
        if order == 1:
            first, second, counts = (np.asarray(array)[:0] for array in (first, second, counts))
        seen = np.bincount(first, counts, vocab_size)
        distinct = np.bincount(first, minlength=vocab_size)
        whole = seen + distinct
        return cls(
            unigram,
            np.concatenate([[0], np.cumsum(distinct)]),
            second,
            counts / whole[first],
            np.where(whole > 0, distinct / np.maximum(whole, 1), 1.0),
            start_id=start_id,
            eos_id=eos_id,
        )

    def save(self, directory: str) -> None:
        """Writes `ngram.safetensors` into a local directory, which is made where it does not exist."""
        os.makedirs(directory, exist_ok=True)
        names = ("unigram", "starts", "followers", "shares", "backoff")
        arrays = {name: np.asarray(getattr(self, name)[...]) for name in names}
        metadata = {"specbeam": json.dumps({"start_id": self.start_id, "eos_id": self.eos_id})}
        safetensors.numpy.save_file(arrays, os.path.join(directory, FILE), metadata=metadata)

    @classmethod
    def load(cls, directory: str) -> "NGramDraft":
        """Reads what `save` wrote."""
        with safe_open(os.path.join(directory, FILE), framework="numpy") as file:
            special = json.loads(file.metadata()["specbeam"])
            return cls(**{name: file.get_tensor(name) for name in file.keys()}, **special)  # noqa: SIM118

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        return {}

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        return {}

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        if at is not None:
            tokens = jnp.take_along_axis(tokens, at[:, None], axis=1)
        logits = jax.vmap(jax.vmap(self._row))(tokens)
        return logits, state

    def _row(self, token: jax.Array) -> jax.Array:
        """float32[V], log p(. | token)."""
        probs = self.backoff[...][token] * self.unigram[...]
        if self.longest:
            start, end = self.starts[...][token], self.starts[...][token + 1]
            places = start + jnp.arange(self.longest)
            found = jnp.where(places < end, self.followers[...].at[places].get(mode="clip"), self.vocab_size)
            probs = probs.at[found].add(self.shares[...].at[places].get(mode="clip"), mode="drop")
        return jnp.log(probs)
