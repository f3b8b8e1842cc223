"""Tokens that checkpoints or inputs prescribe: what texts begin with, how the longest ones end, what never occurs."""

import jax
import jax.numpy as jnp
import numpy as np

from decoding.config import DecodingConfig
from decoding.models.base import MASKED, LanguageModel, State
from decoding.models.wrapped import Wrapped


class ForcedTokens(Wrapped):
    """A `LanguageModel` that gives one token all probability at some decoder positions, and others none anywhere.

    The target is changed before anything is standardised, so a draft need not know: what it guesses there is verified
    like any other guess, and the sampled law is the prescribed one.

    Args:
      model: taken over.
      forced: token by the decoder position that predicts it.
      suppressed: tokens that never occur, unless they are forced.
      from_input: the first token of an input is what its text begins with, and the rest is the model's input. The state of
        `model` is a dictionary, to which "first" is added.
    """

    def __init__(
        self, model: LanguageModel, forced: dict[int, int], suppressed: tuple[int, ...] = (), from_input: bool = False
    ):
        super().__init__(model)
        self.forced_ids, self._forced = (None, None), tuple(sorted(forced.items()))
        self._suppressed, self._from_input = tuple(suppressed), from_input

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        if not self._from_input:
            return super().init_state(batch, input_length, max_positions)
        return super().init_state(batch, input_length - 1, max_positions) | {"first": jnp.zeros((batch,), jnp.int32)}

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        if not self._from_input:
            return super().prefill(inputs, lengths)
        # Rows that fill up a batch have one token, of which nothing is ever read.
        return super().prefill(inputs[:, 1:], jnp.maximum(lengths - 1, 1)) | {"first": inputs[:, 0]}

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None, **options
    ) -> tuple[jax.Array, State]:
        logits, state = self.model.step(tokens, positions, state, at=at, **options)
        places = positions[:, None] + (np.arange(tokens.shape[1]) if at is None else at[:, None])
        if (tree := options.get("tree")) is not None:
            places = tree.depths if at is None else jnp.take_along_axis(tree.depths, at[:, None], axis=1)
        vocabulary = np.arange(self.vocab_size)
        if self._suppressed:
            logits = jnp.where(np.isin(vocabulary, self._suppressed), MASKED, logits)
        first = [(0, state["first"][:, None, None])] if self._from_input else []
        for position, token in [*first, *self._forced]:
            alone = jnp.where(vocabulary == token, 0.0, MASKED)
            logits = jnp.where((places == position)[:, :, None], alone, logits)
        return logits, state


def with_forced_tokens(target: LanguageModel, config: DecodingConfig) -> LanguageModel:
    """The target, wrapped where its checkpoint forces or suppresses tokens, or inputs say what texts begin with.

    As in transformers, the last token of the budget wins where it is the first one, too.

    Raises:
      ValueError: a forced end of a decoder-only model, whose last position differs from row to row, or first tokens in its
        inputs.
    """
    if isinstance(target, ForcedTokens):  # of a generator whose plain one this is
        return target
    first, last = getattr(target, "forced_ids", (None, None))
    suppressed, from_input = getattr(getattr(target, "config", None), "suppressed_ids", ()), config.first_from_input
    if last is not None and not target.encoder_decoder:
        raise ValueError(f"the model forces texts to end with token {last}, which is supported for encoder-decoder models only")
    if from_input and not target.encoder_decoder:
        raise ValueError("decoding.first_from_input is True; allowed: False for decoder-only models")
    forced = {0: first} if first is not None and not from_input else {}
    if last is not None:
        forced[config.max_decode_tokens - 1] = last
    if config.beam_search:  # whose rules have them, after log-probabilities are made, as transformers has
        forced, suppressed = {}, ()
    return ForcedTokens(target, forced, suppressed, from_input) if forced or suppressed or from_input else target


def without_first_tokens(draft, config: DecodingConfig):
    """A draft, wrapped if it is a model and inputs begin with what is not the encoder's."""
    return ForcedTokens(draft, {}, from_input=True) if config.first_from_input and hasattr(draft, "step") else draft
