"""A model that is another one but for what is changed about it."""

import jax
from flax import nnx

from decoding.models.base import LanguageModel, State, eos_ids


class Wrapped(nnx.Module):
    """A `LanguageModel` that is `model`; subclasses have a `step` of their own, and change what else is to differ."""

    def __init__(self, model: LanguageModel):
        self.model, self.vocab_size = model, model.vocab_size
        self.start_id, self.eos_id, self.eos_ids = model.start_id, model.eos_id, eos_ids(model)
        self.encoder_decoder, self.forced_ids = model.encoder_decoder, getattr(model, "forced_ids", (None, None))
        self.config, self.max_positions = getattr(model, "config", None), getattr(model, "max_positions", 0)

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        return self.model.init_state(batch, input_length, max_positions)

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        return self.model.prefill(inputs, lengths)

    def move(self, state: State, starts: jax.Array, order: jax.Array, size: int) -> State:
        return self.model.move(state, starts, order, size)
