"""Drafts: whatever proposes tokens.

A draft meets the `Draft` protocol below; docs/drafts.md adds one of one's own.  A language model becomes one through
`ModelDraft` (the engine does that by itself); `PromptLookupDraft` copies from the text so far and `UniformDraft` guesses
blindly, both at next to no cost (section 3.6 of Leviathan et al.).  Verification keeps the output exact whatever a draft
does, as long as its `Proposal` says truthfully which distribution each token was drawn from.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding.checkpoints import load_model
from decoding.config import PROMPT_LOOKUP, UNIFORM, DecodingConfig
from decoding.models.base import LanguageModel, State, state_length
from decoding.models.ngram import NGramDraft, is_ngram
from decoding.rows import Rows
from decoding.sampling import argmax
from decoding.verification import Proposal, rule_for


class Draft(Protocol):
    """What the engine needs of a draft; an `nnx.Module`.

    Attributes:
      vocab_size: V, equal to the target's.
      encoder_decoder: as in `LanguageModel`, equal to the target's; None where it does not matter.
    """

    vocab_size: int
    encoder_decoder: bool | None

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        """As in `LanguageModel`; an empty dict where there is nothing to remember."""

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        """As in `LanguageModel`."""

    def propose(self, state: State, rows: Rows, gamma: int, config: DecodingConfig) -> tuple[Proposal, State]:
        """Proposes γ tokens per row, to follow `rows.last` at `rows.position`, or fewer: `Proposal.count`.

        Random numbers come from `sampling.uniforms(rows.keys, rows.position, DRAFT_STREAM, ...)`.  Of what it proposed
        before, a draft learns from `rows` alone how much was kept: positions up to `rows.position` are final.
        """

    def follow(self, state: State, tokens: jax.Array, positions: jax.Array) -> State:
        """Takes in int32[B, K] decoder inputs from `positions` on, which were decoded without this draft."""


class ModelDraft(nnx.Module):
    """A language model as a draft: γ tokens drawn autoregressively from its standardised distributions."""

    def __init__(self, model: LanguageModel):
        self.model = model

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def encoder_decoder(self) -> bool | None:
        return self.model.encoder_decoder

    @property
    def config(self):
        return getattr(self.model, "config", None)

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        return self.model.init_state(batch, input_length, max_positions)

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        return self.model.prefill(inputs, lengths)

    def follow(self, state: State, tokens: jax.Array, positions: jax.Array) -> State:
        return self.model.step(tokens, positions, state, at=jnp.zeros_like(positions))[1]

    def propose(self, state: State, rows: Rows, gamma: int, config: DecodingConfig) -> tuple[Proposal, State]:
        """The first step feeds the last *two* tokens.

        After full acceptance the draft has never seen its own last token: with inputs a b | x y accepted and bonus z,
        its cache holds a b x, and the next iteration must feed y z.  Where the cache holds y already it is written
        again with the same values.
        """
        rule = rule_for(config)
        randomness = rule.randomness(rows.noise, gamma)
        head, tail = (jax.tree.map(lambda leaf, part=part: leaf[part], randomness) for part in (0, slice(1, None)))
        start = jnp.maximum(rows.position - 1, 0)
        first = rows.position - start  # 0 for a row at position 0, which has no token before its last
        pair = jnp.stack([jnp.where(first == 1, rows.previous, rows.last), rows.last], axis=1)
        logits, state = self.model.step(pair, start, state, at=first)
        token, probs = rule.guess(logits[:, 0], head)

        def extend(carry, inputs):
            token, state = carry
            offset, randomness = inputs
            logits, state = self.model.step(token[:, None], rows.position + offset, state)
            token, probs = rule.guess(logits[:, 0], randomness)
            return (token, state), (token, logits[:, 0], probs)

        offsets = jnp.arange(1, gamma, dtype=jnp.int32)
        (_, state), later = jax.lax.scan(extend, (token, state), (offsets, tail))
        tokens, all_logits, all_probs = jax.tree.map(
            lambda head, tail: jnp.moveaxis(jnp.concatenate([head[None], tail]), 0, 1),
            (token, logits[:, 0], probs),
            later,
        )
        return Proposal(tokens, all_logits, all_probs, jnp.full((tokens.shape[0],), gamma, jnp.int32)), state


class PromptLookupDraft(nnx.Module):
    """Copies what followed the last tokens where they occurred before, in the input or in the output so far.

    The longest match of `min_ngram` to `max_ngram` tokens wins, and among equals the latest.  A row without a match
    proposes nothing in that iteration.  Proposals are deterministic: q is one-hot.

    State: `{"text": int32[B, T]}`, the decoder's inputs by position (a decoder-only model's prompt among them), and
    for encoder-decoder targets `{"input": int32[B, L], "lengths": int32[B]}`.
    """

    def __init__(self, vocab_size: int, *, encoder_decoder: bool = True, max_ngram: int = 3, min_ngram: int = 1):
        """Raises:
        ValueError: not 1 <= min_ngram <= max_ngram.
        """
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"min_ngram is {min_ngram} and max_ngram {max_ngram}; allowed: 1 <= min_ngram <= max_ngram")
        self.vocab_size, self.encoder_decoder = vocab_size, encoder_decoder
        self.max_ngram, self.min_ngram = max_ngram, min_ngram

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


class UniformDraft(nnx.Module):
    """Draws every token of the vocabulary with the same probability (section 3.6).

    The baseline of all drafts: α = 1 / V.  q and its logits are one number each, broadcast into what reads them.  They are
    parameters because XLA would evaluate sums over a constant [B, γ, V] while it compiles, for minutes.
    """

    encoder_decoder = None

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.logit = nnx.Param(jnp.zeros(()))
        self.prob = nnx.Param(jnp.array(1.0 / vocab_size))

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        return {}

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        return {}

    def follow(self, state: State, tokens: jax.Array, positions: jax.Array) -> State:
        return state

    def propose(self, state: State, rows: Rows, gamma: int, config: DecodingConfig) -> tuple[Proposal, State]:
        batch = rows.last.shape[0]
        logits = jnp.broadcast_to(self.logit[...], (batch, gamma, self.vocab_size))
        probs = None if config.temperature == 0.0 else jnp.broadcast_to(self.prob[...], logits.shape)
        tokens = rule_for(config).guess_evenly(rows.noise, gamma, self.vocab_size)
        return Proposal(tokens, logits, probs, jnp.full((batch,), gamma, jnp.int32)), state


def as_draft(model: Draft | LanguageModel) -> Draft:
    """The model itself where it proposes on its own, else through `ModelDraft`."""
    return model if hasattr(model, "propose") else ModelDraft(model)


def load_draft(
    name: str,
    target: LanguageModel,
    *,
    vocab_size: int | None = None,
    max_ngram: int = 3,
    min_ngram: int = 1,
    **options,
) -> Draft | LanguageModel | None:
    """Loads or makes the draft that a job's `model.draft` names.

    Args:
      name: "prompt_lookup", "uniform", the directory of an n-gram or of a model, or "" for none.
      target: whose draft it is to be.
      vocab_size: as of `Generator`; None for the target's.
      max_ngram, min_ngram: of `PromptLookupDraft`.
      options: of `load_model`, where it is a model.

    Raises:
      CheckpointError: the directory holds neither.
    """
    size = vocab_size or target.vocab_size
    if not name:
        return None
    if name == PROMPT_LOOKUP:
        return PromptLookupDraft(
            size, encoder_decoder=target.encoder_decoder, max_ngram=max_ngram, min_ngram=min_ngram
        )
    if name == UNIFORM:
        return UniformDraft(size)
    return NGramDraft.load(name) if is_ngram(name) else load_model(name, **options)
