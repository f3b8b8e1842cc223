"""Vocabularies padded by different amounts: Qwen2's 72B has 152,064 rows, its 0.5B 151,936, their tokeniser fewer."""

from collections.abc import Sequence

import jax

from decoding.models.base import LanguageModel, State, eos_ids
from decoding.models.wrapped import Wrapped


class FirstTokens(Wrapped):
    """A `LanguageModel` without the logits of its last tokens, which so have probability exactly 0.

    Both target and draft are cut before anything is standardised, so that softmax, β, log-probabilities and draws
    are all over the same V tokens.
    """

    def __init__(self, model: LanguageModel, vocab_size: int):
        super().__init__(model)
        self.vocab_size = vocab_size

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        logits, state = self.model.step(tokens, positions, state, at=at)
        return logits[..., : self.vocab_size], state

    def logits(self, decoder_tokens, encoder_tokens=None, encoder_lengths=None) -> jax.Array:
        return self.model.logits(decoder_tokens, encoder_tokens, encoder_lengths)[..., : self.vocab_size]


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
