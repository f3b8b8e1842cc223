"""Unigram and bigram drafts of negligible cost (section 3.6 of Leviathan et al.), kept as sparse rows.

p(x | y) = (c(y, x) + n(y) p(x)) / (c(y) + n(y)), Witten-Bell interpolation: c counts, n(y) is the number of distinct
followers of y, and p(x) is the unigram probability, itself interpolated with the uniform one.  So a row stores only the
followers that were seen, and every token keeps a positive probability.  Where rare pairs are pruned, what they counted
goes to the unigram.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from decoding.checkpoints import storage
from decoding.checkpoints.storage import CheckpointError
from decoding.models.base import State
from decoding.models.tree import Tree

FILE = "ngram.safetensors"
_KEY = "specbeam"  # of the metadata in the file's header
_NAMES = ("unigram", "starts", "followers", "shares", "backoff")
# Followers per step of the loop in `NGramDraft.step`: most rows are short, a comma's may have thousands.
_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class NGramInfo:
    """What a file says of itself.

    Attributes:
      vocab_size, start_id, eos_id: of the model that it was fitted for.
      about: whatever `save` was told, for people and checks; `pipeline.fit_ngram` writes its source, the digest of the
        tokeniser's pieces, counts, and the perplexity of held-out texts.
    """

    vocab_size: int
    start_id: int
    eos_id: int
    about: Mapping[str, Any]


def is_ngram(directory: str) -> bool:
    """Whether a directory, local or gs://, holds what `NGramDraft.save` writes."""
    return storage.exists(storage.join(directory, FILE))


def read_info(directory: str) -> NGramInfo:
    """Describes what `NGramDraft.save` wrote.

    Raises:
      CheckpointError: there is no such file, or it is something else.
    """
    return _read(directory, names=())[0]


def _read(directory: str, names: Sequence[str]) -> tuple[NGramInfo, dict[str, np.ndarray]]:
    path = storage.join(directory, FILE)
    try:
        with storage.local_file(path) as local, safetensors.safe_open(local, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            (vocab_size,) = file.get_slice("unigram").get_shape()
            info = NGramInfo(vocab_size, about.pop("start_id"), about.pop("eos_id"), about)
            unigram = set(file.keys()) == {"unigram"}
            return info, {name: file.get_tensor(name) for name in (names[:1] if unigram else names)}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; pipeline.fit_ngram writes such a file") from error
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an n-gram model as NGramDraft.save writes it: {error}") from error


def pair_codes(previous: int, tokens: Sequence[int], vocab_size: int) -> np.ndarray:
    """The pairs of a text: int64[n], each first * V + second.

    Args:
      previous: the decoder's input before the text: its start token, or a prompt's last one.
      tokens: as the decoder emits them, EOS included where reached.
      vocab_size: V.

    Raises:
      ValueError: a token is not in the vocabulary.
    """
    tokens = np.concatenate([[previous], np.asarray(tokens, np.int64)])
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"a text has tokens from {tokens.min()} to {tokens.max()}; allowed: 0 to {vocab_size - 1}")
    return tokens[:-1] * vocab_size + tokens[1:]


def frequent_tokens(directory: str, count: int) -> np.ndarray:
    """The tokens that a fitted n-gram saw most often, as many as `count`, the end token among them: int32[count], increasing.

    Raises:
      CheckpointError: there is no n-gram.
    """
    info, arrays = _read(directory, ["unigram"])
    seen = arrays["unigram"].astype(np.float64)
    seen[info.eos_id] = np.inf
    return np.sort(np.argsort(-seen, kind="stable")[:count]).astype(np.int32)


class NGramDraft(nnx.Module):
    """A bigram (or, without followers, unigram) model that meets `LanguageModel`; use it as a draft.

    Attributes:
      unigram: float32[V], p(x).
      starts: int32[V + 1], where each token's row of followers begins in `followers`.
      followers: int32[N], grouped by the token they follow, increasing within a group.
      shares: float32[N], c(y, x) / (c(y) + n(y)).
      backoff: float32[V], the weight of the unigram, 1 - the row's shares; 1 for tokens never seen.
      longest: the longest row.
    """

    encoder_decoder = None  # needs nothing but the last token
    config = None

    def __init__(self, unigram, starts=None, followers=None, shares=None, backoff=None, *, start_id: int, eos_id: int):
        """Of a unigram, nothing but `unigram` is needed.

        Raises:
          ValueError: the arrays do not fit together.
        """
        if starts is None:
            starts, followers, shares, backoff = np.zeros(len(unigram) + 1), np.zeros(0), np.zeros(0), np.ones(len(unigram))
        unigram, starts, followers, shares, backoff = map(np.asarray, (unigram, starts, followers, shares, backoff))
        size, pairs = len(unigram), len(followers)
        if starts.shape != (size + 1,) or backoff.shape != (size,) or shares.shape != (pairs,):
            shapes = [array.shape for array in (unigram, starts, followers, shares, backoff)]
            raise ValueError(f"shapes of {', '.join(_NAMES)} are {shapes}; needed: [V], [V + 1], [N], [N], [V]")
        if starts[0] != 0 or starts[-1] != pairs or np.any(np.diff(starts) < 0):
            raise ValueError(f"starts must rise from 0 to {pairs}, the number of followers")
        if pairs and not 0 <= followers.min() <= followers.max() < size:
            raise ValueError(f"followers are {followers.min()} to {followers.max()}; allowed: 0 to {size - 1}")
        if np.setdiff1d(np.flatnonzero(np.diff(followers) <= 0) + 1, starts).size:
            raise ValueError("followers must increase within a row")
        self.unigram = nnx.Param(jnp.asarray(unigram, jnp.float32))
        self.starts = nnx.Param(jnp.asarray(starts, jnp.int32))
        self.followers = nnx.Param(jnp.asarray(followers, jnp.int32))
        self.shares = nnx.Param(jnp.asarray(shares, jnp.float32))
        self.backoff = nnx.Param(jnp.asarray(backoff, jnp.float32))
        self.vocab_size, self.start_id, self.eos_id = size, start_id, eos_id
        self.longest = int(np.max(np.diff(starts), initial=0))

    @classmethod
    def fit(
        cls,
        texts: Iterable[Sequence[int]],
        vocab_size: int,
        *,
        start_id: int,
        eos_id: int,
        order: int = 2,
        min_count: int = 1,
    ) -> "NGramDraft":
        """Fits to token sequences as the decoder emits them: without the start token, EOS included where reached.

        Raises:
          ValueError: as `from_counts`, or a token is not in the vocabulary.
        """
        pairs = [pair_codes(start_id, text, vocab_size) for text in texts]
        codes, counts = np.unique(np.concatenate(pairs) if pairs else np.zeros(0, np.int64), return_counts=True)
        return cls.from_counts(
            codes, counts, vocab_size, start_id=start_id, eos_id=eos_id, order=order, min_count=min_count
        )

    @classmethod
    def from_counts(
        cls, codes, counts, vocab_size: int, *, start_id: int, eos_id: int, order: int = 2, min_count: int = 1
    ) -> "NGramDraft":
        """From distinct pairs int64[N] as in `pair_codes`, increasing, and how often each was seen, int64[N].

        Args:
          order: 2 for a bigram; 1 for a unigram, which keeps no pair.
          min_count: pairs seen less often are not stored.

        Raises:
          ValueError: order is neither 1 nor 2, or min_count is below 1.
        """
        if order not in (1, 2):
            raise ValueError(f"order is {order}; allowed: 1 (unigram) or 2 (bigram)")
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}; allowed: at least 1")
        codes, counts = np.asarray(codes, np.int64), np.asarray(counts, np.int64)
        first, second = codes // vocab_size, codes % vocab_size
        totals = np.bincount(second, counts, vocab_size)
        kinds = np.count_nonzero(totals)
        unigram = (totals + max(kinds, 1) / vocab_size) / (totals.sum() + max(kinds, 1))
        if order == 1:
            first, second, counts = first[:0], second[:0], counts[:0]
        whole = np.bincount(first, counts, vocab_size) + np.bincount(first, minlength=vocab_size)
        kept = counts >= min_count
        first, second, counts = first[kept], second[kept], counts[kept]
        rest = whole - np.bincount(first, counts, vocab_size)
        return cls(
            unigram,
            np.concatenate([[0], np.cumsum(np.bincount(first, minlength=vocab_size))]),
            second,
            counts / whole[first],
            np.where(whole > 0, rest / np.maximum(whole, 1), 1.0),
            start_id=start_id,
            eos_id=eos_id,
        )

    def save(self, directory: str, about: Mapping[str, Any] | None = None) -> None:
        """Writes `ngram.safetensors` into a directory, local (made where it does not exist) or gs://; of a unigram, p(x) alone.

        Args:
          about: JSON values to be kept with it; see `NGramInfo`.
        """
        arrays = {name: np.asarray(getattr(self, name)[...]) for name in _NAMES}
        arrays = arrays if self.longest else {"unigram": arrays["unigram"]}
        special = {"start_id": self.start_id, "eos_id": self.eos_id}
        metadata = {_KEY: json.dumps({**(about or {}), **special}, sort_keys=True)}
        storage.write_bytes(storage.join(directory, FILE), safetensors.numpy.save(arrays, metadata=metadata))

    @classmethod
    def load(cls, directory: str) -> "NGramDraft":
        """Reads what `save` wrote, from a local directory or gs://.

        Raises:
          CheckpointError: there is no such file, or it is something else.
        """
        info, arrays = _read(directory, _NAMES)
        try:
            return cls(**arrays, start_id=info.start_id, eos_id=info.eos_id)
        except ValueError as error:
            raise CheckpointError(f"{storage.join(directory, FILE)} is damaged: {error}") from error

    def pair_log_probs(self, codes) -> np.ndarray:
        """log p(second | first) of pairs int64[M] as in `pair_codes`, on the host: float64[M]."""
        unigram, starts, followers, shares, backoff = (
            np.asarray(getattr(self, name)[...]).astype(np.int64 if name in ("starts", "followers") else np.float64)
            for name in _NAMES
        )
        codes = np.asarray(codes, np.int64)
        first, second = codes // self.vocab_size, codes % self.vocab_size
        probs = backoff[first] * unigram[second]
        if len(followers):
            known = np.repeat(np.arange(self.vocab_size), np.diff(starts)) * self.vocab_size + followers
            place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
            probs += np.where(known[place] == codes, shares[place], 0.0)
        return np.log(probs)

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        return {}

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        return {}

    def move(self, state: State, starts: jax.Array, order: jax.Array, size: int) -> State:
        return state

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None, tree: Tree | None = None
    ) -> tuple[jax.Array, State]:
        """As in `LanguageModel`.  Work follows the longest row of *these* tokens, not of the vocabulary."""
        if at is not None:
            tokens = jnp.take_along_axis(tokens, at[:, None], axis=1)
        rows = tokens.reshape(-1)
        probs = self.backoff[...][rows][:, None] * self.unigram[...]
        if self.longest:
            starts, ends = self.starts[...][rows][:, None], self.starts[...][rows + 1][:, None]
            block = np.arange(min(_BLOCK, self.longest), dtype=np.int32)
            numbers = np.arange(len(rows), dtype=np.int32)[:, None]

            def add_block(i, probs):
                places = starts + i * len(block) + block
                tokens = self.followers[...].at[places].get(mode="clip")
                # Beyond the row: out of range, distinct and increasing, as the scatter is promised.
                tokens = jnp.where(places < ends, tokens, self.vocab_size + block)
                shares = self.shares[...].at[places].get(mode="clip")
                return probs.at[numbers, tokens].add(
                    shares, mode="drop", unique_indices=True, indices_are_sorted=True
                )

            blocks = (jnp.max(ends - starts) + len(block) - 1) // len(block)
            probs = jax.lax.fori_loop(0, blocks, add_block, probs)
        return jnp.log(probs).reshape(*tokens.shape, self.vocab_size), state
