"""Tokens that a checkpoint prescribes: the first of every text, and the last of one that reaches the budget."""

import jax
import jax.numpy as jnp
import numpy as np

from decoding.config import DecodingConfig
from decoding.models.base import MASKED, LanguageModel, State
from decoding.models.wrapped import Wrapped


class ForcedTokens(Wrapped):
    """A `LanguageModel` that gives one token all probability at some decoder positions.

    The target is changed before anything is standardised, so a draft need not know: what it guesses there is verified
    like any other guess, and the sampled law is the prescribed one.

    Args:
      model: taken over.
      forced: token by the decoder position that predicts it.
    """

    def __init__(self, model: LanguageModel, forced: dict[int, int]):
        super().__init__(model)
        self.forced_ids, self._forced = (None, None), tuple(sorted(forced.items()))

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        logits, state = self.model.step(tokens, positions, state, at=at)
        places = positions[:, None] + (np.arange(tokens.shape[1]) if at is None else at[:, None])
        for position, token in self._forced:
            alone = jnp.where(np.arange(self.vocab_size) == token, 0.0, MASKED)
            logits = jnp.where((places == position)[:, :, None], alone, logits)
        return logits, state


def with_forced_tokens(target: LanguageModel, config: DecodingConfig) -> LanguageModel:
    """The target, wrapped where its checkpoint forces tokens.

    As in transformers, the last token of the budget wins where it is the first one, too.

    Raises:
      ValueError: a forced end of a decoder-only model, whose last position differs from row to row.
    """
    first, last = getattr(target, "forced_ids", (None, None))
    if last is not None and not target.encoder_decoder:
        raise ValueError(f"the model forces texts to end with token {last}, which is supported for encoder-decoder models only")
    forced = {0: first, config.max_decode_tokens - 1: last} if last is not None else {0: first}
    forced = {position: token for position, token in forced.items() if token is not None}
    return ForcedTokens(target, forced) if forced else target
