"""Several drafts, of which each row takes the first that found something."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from decoding.config import MODEL_GUESS, DecodingConfig
from decoding.drafts.base import Draft, ModelDraft, as_draft, fitted
from decoding.models.base import LanguageModel, State
from decoding.rows import Rows
from decoding.verification import Proposal, spread


class CascadeDraft(Draft):
    """Drafts that copy, which cost nothing, and behind them one that guesses always: a row takes the first whose match is long.

    All propose in one iteration, as a batch has one shape; the last, where it is a model, is fed what was taken instead of
    its own guesses, so that it has seen all of its row at no further cost, and where no row needs it, in one step.  A row for
    which no match has `min_match` tokens takes the last one's guesses.

    State: that of each draft, by its number.
    """

    def __init__(self, drafts: Sequence[Draft | LanguageModel], *, min_match: int = 2):
        """
        Args:
          drafts: two at least; all but the last copy (`PromptLookupDraft`, `CorpusDraft`).
          min_match: last tokens that have to match at least for one of these to be taken.

        Raises:
          ValueError: there are not two, or a model or a cascade is not the last.
        """
        drafts = [as_draft(draft) for draft in drafts]
        if len(drafts) < 2 or any(isinstance(draft, ModelDraft | CascadeDraft) for draft in drafts[:-1]):
            raise ValueError("a cascade has two drafts at least, and a model only at its end")
        if isinstance(drafts[-1], CascadeDraft):
            raise ValueError("a cascade has no cascade in it")
        self.drafts, self.min_match = nnx.List(drafts), min_match
        self.vocab_size = next((draft.vocab_size for draft in reversed(drafts) if draft.vocab_size), None)
        self.encoder_decoder = drafts[-1].encoder_decoder
        self.config = drafts[-1].config
        self.hint_tokens = max(draft.hint_tokens for draft in drafts)
        self.may_rest = isinstance(drafts[-1], ModelDraft)

    def for_target(self, target: LanguageModel) -> "CascadeDraft":
        size = target.vocab_size  # of models with more padding, no more
        own = [
            fitted(target, draft.model, size)[1] if isinstance(draft, ModelDraft) else fitted(target, draft)[1]
            for draft in self.drafts
        ]
        return CascadeDraft(own, min_match=self.min_match)

    def with_hints(self, hint_tokens: int) -> "CascadeDraft":
        """The first is given them.

        Raises:
          ValueError: it does not look at hints.
        """
        first, *others = self.drafts
        return CascadeDraft([first.with_hints(hint_tokens), *others], min_match=self.min_match)

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        return {str(i): draft.init_state(batch, input_length, max_positions) for i, draft in enumerate(self.drafts)}

    def prefill(self, inputs: jax.Array, lengths: jax.Array, hints: jax.Array | None = None) -> State:
        given = lambda draft: (hints,) if draft.hint_tokens else ()
        return {str(i): draft.prefill(inputs, lengths, *given(draft)) for i, draft in enumerate(self.drafts)}

    def follow(self, state: State, tokens: jax.Array, positions: jax.Array) -> State:
        return {str(i): draft.follow(state[str(i)], tokens, positions) for i, draft in enumerate(self.drafts)}

    def propose(self, state: State, rows: Rows, gamma: int, config: DecodingConfig) -> tuple[Proposal, State]:
        state, taken = dict(state), None
        for i, draft in enumerate(self.drafts):
            if taken is None:
                proposal, state[str(i)] = draft.propose(state[str(i)], rows, gamma, config)
                taken, settled = proposal, self._settles(proposal)
                continue
            if isinstance(draft, ModelDraft):
                proposal, state[str(i)] = draft.propose(state[str(i)], rows, gamma, config, (settled, taken.tokens))
            else:
                proposal, state[str(i)] = draft.propose(state[str(i)], rows, gamma, config)
            taken = _choose(settled, taken, proposal, self.vocab_size)
            settled = settled | self._settles(proposal)
        for i, draft in enumerate(self.drafts):
            if not isinstance(draft, ModelDraft):
                state[str(i)] = draft.follow(state[str(i)], taken.tokens, rows.position + 1)
        return taken, state

    def _settles(self, proposal: Proposal) -> jax.Array:
        """bool[B], whether a row takes this proposal."""
        if proposal.match is None:
            return jnp.ones(proposal.count.shape, bool)
        return (proposal.count > 0) & (proposal.match >= self.min_match)


def _choose(first: jax.Array, one: Proposal, other: Proposal, vocab_size: int) -> Proposal:
    """The proposal `one` in rows bool[B] `first`, in the others `other`."""
    pair, wide = (one, other), first[:, None, None]
    laws = [(None, None, None)] * 2
    if any(proposal.logits is not None for proposal in pair):
        drawn = any(proposal.probs is not None for proposal in pair)
        sizes = [_size(proposal) for proposal in pair]
        if all(sizes):
            laws = [_listed(proposal, max(sizes), drawn) for proposal in pair]
        else:
            laws = [_whole(proposal, vocab_size, drawn) for proposal in pair]
    support, logits, probs = (None if mine is None else jnp.where(wide, mine, others) for mine, others in zip(*laws))
    nothing = jnp.zeros_like(one.count)
    origins = [MODEL_GUESS if p.origin is None else p.origin for p in (one, other)]
    matches = [nothing if p.match is None else p.match for p in (one, other)]
    return Proposal(
        jnp.where(first[:, None], one.tokens, other.tokens),
        logits,
        probs,
        jnp.where(first, one.count, other.count),
        jnp.where(first, *origins).astype(jnp.int8),
        jnp.where(first, *matches),
        support,
    )


def _size(proposal: Proposal) -> int:
    """At how many tokens its q can be above 0, where it says which; 0 where at any."""
    if proposal.support is not None:
        return proposal.support.shape[-1]
    return 1 if proposal.logits is None else 0


def _listed(proposal: Proposal, size: int, drawn: bool) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """`Proposal.support`, logits and, where some guesses are `drawn`, probabilities of a proposal, S being `size`."""
    tokens = proposal.tokens[..., None]
    support = tokens if proposal.support is None else proposal.support
    logits = jnp.zeros(tokens.shape) if proposal.logits is None else proposal.logits
    probs = (support == tokens) * 1.0 if proposal.probs is None else proposal.probs
    room = ((0, 0), (0, 0), (0, size - support.shape[-1]))
    support, logits, probs = (
        jnp.pad(support, room),
        jnp.pad(logits, room, constant_values=-jnp.inf),
        jnp.pad(probs, room),
    )
    return support, logits, probs if drawn else None


def _whole(proposal: Proposal, vocab_size: int, drawn: bool) -> tuple[None, jax.Array, jax.Array | None]:
    """As `_listed`, of the whole vocabulary."""
    logits, probs = proposal.logits, proposal.distribution(vocab_size) if drawn else None
    if size := _size(proposal):
        support, logits, _ = _listed(proposal, size, drawn)
        logits = spread(support, logits, vocab_size, -jnp.inf)
    return None, logits, probs
