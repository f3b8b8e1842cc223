"""Drafts: whatever proposes tokens.

A draft is a `Draft`; docs/drafts.md adds one of one's own.  A language model becomes one through `ModelDraft` (the engine
does that by itself).  Verification keeps the output exact whatever a draft does, as long as its `Proposal` says truthfully
which distribution each token was drawn from.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding.config import DecodingConfig
from decoding.models.base import LanguageModel, Shape, State
from decoding.models.vocabulary import cut
from decoding.rows import Rows
from decoding.verification import Proposal, rule_for


class Draft(nnx.Module):
    """What the engine needs of a draft.  A subclass says what it proposes; the rest is that of one with nothing to remember.

    Attributes:
      vocab_size: V, None where it goes with any.
      encoder_decoder: as in `LanguageModel`, equal to the target's; None where it does not matter.
      config: the `Shape` of a draft that is split over a mesh as the target is, None of others.
      hint_tokens: room for hints of a row, 0 where it is given none.
      may_rest: whether an iteration costs less in which no row needs its model, as of a cascade.
    """

    vocab_size: int | None = None
    encoder_decoder: bool | None = None
    config: Shape | None = None
    hint_tokens: int = 0
    may_rest: bool = False

    def for_target(self, target: LanguageModel) -> "Draft":
        """This draft with what it takes from its target: its vocabulary, its kind."""
        return self

    def with_hints(self, hint_tokens: int) -> "Draft":
        """This draft with room for so many tokens of hints per row.

        Raises:
          ValueError: it is none that looks at hints.
        """
        raise ValueError(f"decoding.hint_tokens is {hint_tokens}; allowed: 0 with a draft that does not look at hints")

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        """As in `LanguageModel`; an empty dict where there is nothing to remember."""
        return {}

    def prefill(self, inputs: jax.Array, lengths: jax.Array, hints: jax.Array | None = None) -> State:
        """As in `LanguageModel`.

        Args:
          hints: int32[B, hint_tokens], a row's hints one after the other, -1 between them and behind the last; only where
            `hint_tokens` is not 0.
        """
        return {}

    def follow(self, state: State, tokens: jax.Array, positions: jax.Array) -> State:
        """Takes in int32[B, K] decoder inputs from `positions` on, which were decoded without this draft."""
        return state

    def of_texts(self, state: State, texts: jax.Array) -> State:
        """The state, rows of which are beams, where their decoder inputs are int32[B, P] by position, up to the row's."""
        return state

    def propose(self, state: State, rows: Rows, gamma: int, config: DecodingConfig) -> tuple[Proposal, State]:
        """Proposes γ tokens per row, to follow `rows.last` at `rows.position`, or fewer: `Proposal.count`.

        A draft that draws does so as the config's rule has it (`verification.Rule.guess`).  Of what it proposed before, it
        learns from `rows` alone how much was kept: positions up to `rows.position` are final.
        """
        raise NotImplementedError


class ModelDraft(Draft):
    """A language model as a draft: γ tokens drawn autoregressively from its standardised distributions."""

    def __init__(self, model: LanguageModel):
        self.model = model
        self.vocab_size, self.encoder_decoder = model.vocab_size, model.encoder_decoder
        self.config = getattr(model, "config", None)

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        return self.model.init_state(batch, input_length, max_positions)

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        return self.model.prefill(inputs, lengths)

    def follow(self, state: State, tokens: jax.Array, positions: jax.Array) -> State:
        return self.model.step(tokens, positions, state, at=jnp.zeros_like(positions))[1]

    def propose(
        self, state: State, rows: Rows, gamma: int, config: DecodingConfig, instead: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[Proposal, State]:
        """The first step feeds the last *two* tokens.

        After full acceptance the draft has never seen its own last token: with inputs a b | x y accepted and bonus z,
        its cache holds a b x, and the next iteration must feed y z.  Where the cache holds y already it is written
        again with the same values.

        Args:
          instead: bool[B] and int32[B, γ]: rows for which these tokens are proposed by another draft, and so are what this
            one is fed in place of its own. Where they are all that go on, it is fed in one step, and guesses nothing.
        """
        guess = lambda state: self._guess(state, rows, gamma, config, instead)
        if instead is None:
            return guess(state)
        head = jnp.where(rows.position[:, None] > 0, jnp.stack([rows.previous, rows.last], axis=1), rows.last[:, None])
        # A row at position 0 has one token before its guesses, and so is fed the last guess as well.
        first = jnp.where(rows.position > 0, 0, 1)[:, None] + np.arange(gamma + 1)
        block = jnp.take_along_axis(jnp.concatenate([head, instead[1]], axis=1), first, axis=1)
        rests = jnp.all(instead[0] | rows.done).astype(jnp.int32)
        # Loops of one turn or none: where they were branches, XLA would copy the caches.
        feed = lambda _, state: self.follow(state, block, jnp.maximum(rows.position - 1, 0))
        state = jax.lax.fori_loop(0, rests, feed, state)
        nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(guess, state)[0])
        return jax.lax.fori_loop(rests, 1, lambda _, carry: guess(carry[1]), (nothing, state))

    def _guess(self, state, rows, gamma, config, instead) -> tuple[Proposal, State]:
        rule = rule_for(config)
        randomness = rule.randomness(rows.noise, gamma, self.vocab_size)
        head, tail = (jax.tree.map(lambda leaf, part=part: leaf[part], randomness) for part in (0, slice(1, None)))
        start = jnp.maximum(rows.position - 1, 0)
        first = rows.position - start  # 0 for a row at position 0, which has no token before its last
        pair = jnp.stack([jnp.where(first == 1, rows.previous, rows.last), rows.last], axis=1)
        logits, state = self.model.step(pair, start, state, at=first)
        token, probs = rule.guess(logits[:, 0], head)

        def extend(carry, inputs):
            token, state = carry
            offset, others, randomness = inputs
            token = token if instead is None else jnp.where(instead[0], others, token)
            logits, state = self.model.step(token[:, None], rows.position + offset, state)
            token, probs = rule.guess(logits[:, 0], randomness)
            return (token, state), (token, logits[:, 0], probs)

        offsets = jnp.arange(1, gamma, dtype=jnp.int32)
        others = None if instead is None else instead[1][:, :-1].T
        (_, state), later = jax.lax.scan(extend, (token, state), (offsets, others, tail))
        tokens, all_logits, all_probs = jax.tree.map(
            lambda head, tail: jnp.moveaxis(jnp.concatenate([head[None], tail]), 0, 1),
            (token, logits[:, 0], probs),
            later,
        )
        return Proposal(tokens, all_logits, all_probs, jnp.full((tokens.shape[0],), gamma, jnp.int32)), state


def as_draft(model: Draft | LanguageModel) -> Draft:
    """The draft itself, or a language model as one."""
    return model if isinstance(model, Draft) else ModelDraft(model)


def fitted(
    target: LanguageModel, draft: Draft | LanguageModel | None, vocab_size: int | None = None
) -> tuple[LanguageModel, Draft | LanguageModel | None]:
    """A target and a draft that go together: of one kind, and of the same number of tokens.

    Where sizes differ nothing is cut unasked: a target without some of its real tokens has another distribution.

    Args:
      draft: a language model, which is cut like the target, a `Draft`, which is not, or None.
      vocab_size: what both are cut to, None for nothing.

    Raises:
      ValueError: sizes or kinds differ, or a model lacks some of the `vocab_size` tokens.
    """
    of_tables = draft is None or isinstance(draft, Draft)
    target, *others = cut([target] if of_tables else [target, draft], vocab_size)
    draft = draft if of_tables else others[0]
    if isinstance(draft, Draft):
        draft = draft.for_target(target)
    if draft is None:
        return target, None
    if draft.vocab_size not in (None, target.vocab_size):
        raise ValueError(
            f"the draft's vocabulary has {draft.vocab_size} tokens and the target's {target.vocab_size}; they must share "
            "one tokeniser, and where only their padding differs, give its number of tokens as vocab_size"
        )
    if draft.encoder_decoder not in (None, target.encoder_decoder):
        raise ValueError("target and draft must both be encoder-decoder models or both be decoder-only")
    return target, draft
