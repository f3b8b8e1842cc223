"""Models over other tokens than their own: vocabularies padded by different amounts (Qwen2's 72B has 152,064 rows, its 0.5B
151,936, their tokeniser fewer), and drafts that guess frequent tokens only."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding.models.base import LanguageModel, Shape, State, eos_ids
from decoding.models.wrapped import Wrapped


class OtherTokens(Wrapped):
    """A `LanguageModel` whose logits `over` turns into those of `vocab_size` tokens; all else is the model's."""

    def __init__(self, model: LanguageModel, vocab_size: int):
        super().__init__(model)
        self.vocab_size = vocab_size

    def step(self, tokens: jax.Array, positions: jax.Array, state: State, **options) -> tuple[jax.Array, State]:
        logits, state = self.model.step(tokens, positions, state, **options)
        return self.over(logits), state

    def logits(self, decoder_tokens, encoder_tokens=None, encoder_lengths=None) -> jax.Array:
        return self.over(self.model.logits(decoder_tokens, encoder_tokens, encoder_lengths))

    def over(self, logits: jax.Array) -> jax.Array:
        """float32[..., the model's] -> float32[..., V]."""
        raise NotImplementedError


class FirstTokens(OtherTokens):
    """A model without the logits of its last tokens, which so have probability exactly 0.

    Both target and draft are cut before anything is standardised, so that softmax, β, log-probabilities and draws
    are all over the same V tokens.
    """

    def over(self, logits: jax.Array) -> jax.Array:
        return logits[..., : self.vocab_size]


class SomeTokens(OtherTokens):
    """A draft whose head covers k of the V tokens; the others have q = 0 (FR-Spec, Zhao et al., 2502.14856).

    What it never guesses, the target says itself after a rejection: the output's law is untouched, and the head, most of a
    small draft's cost, is k columns wide.
    """

    def __init__(self, model: LanguageModel, tokens: Sequence[int]):
        """
        Args:
          model: with logits of those tokens alone, in their order.
          tokens: distinct, each below the model's V.
        """
        super().__init__(model, model.vocab_size)
        columns = np.full(model.vocab_size, len(tokens), np.int32)  # beyond the last lies -inf
        columns[np.asarray(tokens)] = np.arange(len(tokens))
        self.columns = nnx.Variable(jnp.asarray(columns))

    def over(self, logits: jax.Array) -> jax.Array:
        banned = jnp.full((*logits.shape[:-1], 1), -jnp.inf, logits.dtype)
        return jnp.concatenate([logits, banned], axis=-1)[..., self.columns[...]]


def with_head_of(config: Shape, count: int) -> Shape:
    """A shape whose head is its own and has `count` columns; where it was tied, the embedding stays whole."""
    return dataclasses.replace(config, tied=False, head_tokens=count)


def cut(models: Sequence[LanguageModel], vocab_size: int | None) -> list[LanguageModel]:
    """The models with `vocab_size` tokens each, or as they are for None.

    Raises:
      ValueError: one has fewer, or the first's special tokens are not among them.
    """
    if vocab_size is None:
        return list(models)
    smallest, special = min(model.vocab_size for model in models), max(models[0].start_id, *eos_ids(models[0]))
    if not special < vocab_size <= smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}; allowed: {special + 1} (all special tokens) to {smallest} (all models)"
        )
    return [model if model.vocab_size == vocab_size else FirstTokens(model, vocab_size) for model in models]
