"""Beam search over rows that share one cache per slot: one step of the search, and what its settings mean.

Words are transformers': a *running* beam can still be extended, a *finished* hypothesis has ended and waits to be beaten.
A step takes the most likely extensions of all running beams; those that end become hypotheses if they are among the first
`num_beams`, the best of the others run on.  Settings mean what they mean in `transformers.GenerationMixin._beam_search`, of
which `advance` is a translation, one input at a time.

The beams of a slot are a tree in its cache (`models.tree`): every step feeds `num_beams` tokens, which become the next
`num_beams` entries whoever their parents are, and a beam has a mask of the entries that are its ancestors.  Beams that move,
part or end move no keys and values.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoding.config import PLAIN, DecodingConfig
from decoding.faults import TARGET_FAULT
from decoding.models.base import LanguageModel, State, eos_ids
from decoding.models.forced import ForcedTokens
from decoding.models.tree import Tree, among, entries, written
from decoding.sampling import is_law, log_probs

# Below every score of a text, and far above -inf, so that what is added to it still orders.
_NEVER = -1.0e9


class Beams(NamedTuple):
    """Searches of B slots with w beams, P decoder positions and T entries of the cache.

    Attributes:
      texts: int32[B, w, P], decoder inputs of running beams by depth, valid up to `depth`.
      fed, parents: int32[B, w, P], by depth: the tokens that ran on there, whether their texts survived or not, and which beam
        of the depth before each came from; the entries of the cache, w by w.
      logprobs: float32[B, w, P], of the raw target, of each token of `texts` that was generated.
      scores: float32[B, w], sums of log-probabilities, the best first.
      start, depth: int32[B], decoder positions of the last token of the prompt, and of the newest one.
      used: int32[B], entries of the cache that are written for good; the newest tokens come there next.
      mask: bool[B, w, T], ancestors of each running beam's newest token.
      key_depths: int32[B, T], decoder positions of the cache's entries.
      before, before_mask: int32[B, w] and bool[B, w, T], what was fed last and what it saw, itself included.
      finished_texts, finished_logprobs, finished_scores: as above, of hypotheses; scores with their length penalty.
      finished_depth: int32[B, w], where each ends.
      finished: bool[B, w], whether there is one.
      improvable: bool[B], running beams may still beat a hypothesis.
      calls: int32[B], of the target.
      call, kind: int32[B, P] and int8[B, P], by depth: the call, from 0, that decided this step, and what the step was, as
        a token's source: ACCEPTED where all its beams had been drafted, CORRECTED where not, BONUS, PLAIN.
      done: bool[B].
      fault: int8[B], as of `Emission`.
    """

    texts: jax.Array
    fed: jax.Array
    parents: jax.Array
    logprobs: jax.Array
    scores: jax.Array
    start: jax.Array
    depth: jax.Array
    used: jax.Array
    mask: jax.Array
    key_depths: jax.Array
    before: jax.Array
    before_mask: jax.Array
    finished_texts: jax.Array
    finished_logprobs: jax.Array
    finished_scores: jax.Array
    finished_depth: jax.Array
    finished: jax.Array
    improvable: jax.Array
    calls: jax.Array
    call: jax.Array
    kind: jax.Array
    done: jax.Array
    fault: jax.Array

    @property
    def newest(self) -> jax.Array:
        """int32[B, w], the last token of each running beam, which is not in the cache yet."""
        return self.token_at(self.depth)

    def token_at(self, depth: jax.Array) -> jax.Array:
        return jnp.take_along_axis(self.texts, depth[:, None, None], axis=2)[:, :, 0]


def positions(config: DecodingConfig) -> int:
    """Entries that caches have beyond a decoder-only model's input: every step's beams, and a block that is being checked.

    The first `num_beams` are room for what a draft is fed again before it is fed anything.
    """
    return config.num_beams * (config.max_decode_tokens + 2) + max(config.gammas) * config.draft_width


@dataclasses.dataclass(frozen=True)
class Rules:
    """The settings of a search.

    Attributes:
      config: `DecodingConfig`.
      eos: tokens that end a text.
      suppressed: tokens that never occur.
      forced: (generated position, token) pairs.
      texts_length: P.
    """

    config: DecodingConfig
    eos: tuple[int, ...]
    suppressed: tuple[int, ...]
    forced: tuple[tuple[int, int], ...]
    texts_length: int

    @classmethod
    def of(cls, model: LanguageModel, config: DecodingConfig) -> "Rules":
        """Those of a target, with the tokens that its checkpoint forces and suppresses."""
        model = model.model if isinstance(model, ForcedTokens) else model
        first, last = getattr(model, "forced_ids", (None, None))
        suppressed = tuple(getattr(getattr(model, "config", None), "suppressed_ids", ()))
        # Of a decoder-only text, the forced first token is the prompt's.
        forced = [(0, first)] if first is not None and model.encoder_decoder and not config.first_from_input else []
        forced += [(config.max_decode_tokens - 1, last)] if last is not None else []
        prompt = 1 if model.encoder_decoder else config.max_input_tokens
        return cls(config, eos_ids(model), suppressed, tuple(forced), prompt + config.max_decode_tokens)

    def apply(self, logp: jax.Array, texts: jax.Array, depth: jax.Array, start: jax.Array) -> jax.Array:
        """Log-probabilities float32[B, n, V] of what follows texts int32[B, n, P] of this depth, -inf where it may not be.

        In the order of transformers' processors, so that what is forced wins.
        """
        config, vocabulary = self.config, np.arange(logp.shape[2])
        if config.no_repeat_ngram_size:
            logp = _without_repeats(logp, texts, depth, config.no_repeat_ngram_size)
        if self.suppressed:
            logp = jnp.where(np.isin(vocabulary, self.suppressed), -jnp.inf, logp)
        generated = (depth - start)[:, None, None]
        if config.min_new_tokens:
            logp = jnp.where(np.isin(vocabulary, self.eos) & (generated < config.min_new_tokens), -jnp.inf, logp)
        for position, token in self.forced:
            alone = jnp.where(vocabulary == token, 0.0, -jnp.inf)
            logp = jnp.where(generated == position, alone, logp)
        return logp

    def penalty(self, length: jax.Array | int) -> jax.Array:
        """What a sum of log-probabilities over so many generated tokens is divided by: float32[...]."""
        lengths, exponent = np.arange(self.config.max_decode_tokens + 1), float(self.config.length_penalty)
        if self.config.length_penalty_form == "t5x":  # Wu et al., 1609.08144, as T5X's `brevity_penalty`
            table = ((5.0 + lengths) / 6.0) ** exponent
        else:
            table = np.maximum(lengths, 1.0) ** exponent
        return jnp.asarray(table, jnp.float32)[length]


def _without_repeats(logp: jax.Array, texts: jax.Array, depth: jax.Array, size: int) -> jax.Array:
    """-inf for tokens that would repeat an n-gram of `size` tokens of their text, the prompt included."""
    batch, count, length = texts.shape
    places = np.arange(length - size + 1)
    same = jnp.broadcast_to(places[None, None] + size - 1 <= depth[:, None, None], (batch, count, len(places)))
    for i in range(size - 1):
        back = jnp.maximum(depth - (size - 2) + i, 0)[:, None, None]
        last = jnp.take_along_axis(texts, jnp.broadcast_to(back, (batch, count, 1)), axis=2)
        same = same & (texts[:, :, places + i] == last)
    rows, beams = np.ogrid[:batch, :count]
    banned = jnp.where(same, -jnp.inf, 0.0)
    return logp.at[rows[..., None], beams[..., None], texts[:, :, places + size - 1]].add(banned)


def empty(rules: Rules, slots: int, length: int) -> Beams:
    """No search in any slot; caches have `length` entries."""
    return begin(rules, jnp.zeros((slots, 1), jnp.int32), jnp.ones((slots,), jnp.int32), length)._replace(
        done=jnp.ones((slots,), bool)
    )


def begin(rules: Rules, prompts: jax.Array, lengths: jax.Array, length: int) -> Beams:
    """Searches at their beginning: the prompt, int32[B, L] of which int32[B] `lengths` are valid, is in the cache but for
    its last token."""
    width, (slots, _), size = rules.config.num_beams, prompts.shape, rules.texts_length
    texts = jnp.zeros((slots, width, size), jnp.int32).at[:, :, : prompts.shape[1]].set(prompts[:, None, :size])
    start, by_depth = lengths - 1, jnp.zeros((slots, size), jnp.int32)
    none = jnp.zeros((slots, width, length), bool)
    floats = jnp.zeros((slots, width, size), jnp.float32)
    scores = jnp.broadcast_to(jnp.where(np.arange(width) == 0, 0.0, _NEVER), (slots, width)).astype(jnp.float32)
    zeros, no = jnp.zeros((slots,), jnp.int32), jnp.zeros((slots,), bool)
    return Beams(
        texts=texts,
        fed=texts,
        parents=jnp.zeros_like(texts),
        logprobs=floats,
        scores=scores,
        start=start,
        depth=start,
        used=start + width,
        mask=none | (np.arange(length) < start[:, None])[:, None],
        key_depths=jnp.zeros((slots, length), jnp.int32) + np.arange(length),
        before=jnp.zeros((slots, width), jnp.int32),
        before_mask=none,
        finished_texts=texts,
        finished_logprobs=floats,
        finished_scores=jnp.full((slots, width), _NEVER, jnp.float32),
        finished_depth=jnp.broadcast_to(start[:, None], (slots, width)),
        finished=jnp.zeros((slots, width), bool),
        improvable=~no,
        calls=zeros,
        call=by_depth,
        kind=by_depth.astype(jnp.int8),
        done=no,
        fault=zeros.astype(jnp.int8),
    )


def renewed(beams: Beams, rules: Rules, prompts: jax.Array, lengths: jax.Array) -> Beams:
    """Searches begun anew where int32[B] `lengths` of prompts int32[B, L] are above 0."""
    fresh = begin(rules, prompts, jnp.maximum(lengths, 1), beams.mask.shape[2])
    return chosen(lengths > 0, fresh, beams)


def chosen(which: jax.Array, yes: Beams, no: Beams) -> Beams:
    """Rows of one where bool[B], of the other elsewhere."""
    pick = lambda a, b: jnp.where(which.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, yes, no)


def seen(beams: Beams) -> jax.Array:
    """bool[B, w, T]: what the newest tokens see once they are written, themselves included."""
    return beams.mask | entries(beams.used, beams.mask.shape[1], beams.mask.shape[2])


def step(model: LanguageModel, state: State, beams: Beams, rules: Rules) -> tuple[State, Beams]:
    """One call of the target, one token for every beam: plain beam search."""
    depths = jnp.broadcast_to(beams.depth[:, None], beams.scores.shape)
    tree = Tree(depths, written(beams.key_depths, depths, beams.used), seen(beams))
    logits, state = model.step(beams.newest, beams.used, state, tree=tree)
    moved, _ = advance(beams, logits, rules)
    moved = recorded(moved, PLAIN)._replace(calls=beams.calls + 1)
    return state, chosen(~beams.done, moved, beams)


def recorded(beams: Beams, kind: jax.Array | int) -> Beams:
    """Beams with what their newest step was, int8[B]."""
    at = np.arange(beams.kind.shape[1]) == beams.depth[:, None]
    kinds = jnp.broadcast_to(jnp.asarray(kind, jnp.int8), beams.depth.shape)[:, None]
    return beams._replace(call=jnp.where(at, beams.calls[:, None], beams.call), kind=jnp.where(at, kinds, beams.kind))


def advance(beams: Beams, logits: jax.Array, rules: Rules) -> tuple[Beams, jax.Array]:
    """A step of the search, decided by the raw logits float32[B, w, V] that follow the newest tokens.

    Returns:
      The searches after it, done ones too, and int32[B, w], which beam each running one comes from.
    """
    config, (slots, width, size) = rules.config, logits.shape
    length = beams.depth + 1 - beams.start
    raw = log_probs(logits)
    total = rules.apply(raw, beams.texts, beams.depth, beams.start) + beams.scores[..., None]
    keep = min(max(2, 1 + len(rules.eos)) * width, width * size)
    top, index = jax.lax.top_k(total.reshape(slots, width * size), keep)
    parent, token = index // size, index % size
    ends = jnp.isin(token, jnp.asarray(rules.eos, jnp.int32)) | (length >= config.max_decode_tokens)[:, None]
    at = np.arange(rules.texts_length) == (beams.depth + 1)[:, None, None]
    texts = jnp.where(at, token[..., None], among(beams.texts, parent))
    logprob = jnp.take_along_axis(raw.reshape(slots, -1), index, axis=1)
    logprobs = jnp.where(at, logprob[..., None], among(beams.logprobs, parent))

    running, best = jax.lax.top_k(top + jnp.where(ends, _NEVER, 0.0), width)
    parents = among(parent, best)

    early = config.early_stopping is True
    just = ends & (np.arange(keep) < width)
    hypothesis = top / rules.penalty(length)[:, None]
    hypothesis += jnp.where(jnp.all(beams.finished, axis=1) & early, _NEVER, 0.0)[:, None]
    hypothesis += jnp.where(beams.improvable, 0.0, _NEVER)[:, None] + jnp.where(just, 0.0, _NEVER)
    finished_scores, kept = jax.lax.top_k(jnp.concatenate([beams.finished_scores, hypothesis], axis=1), width)
    merged = lambda old, new: among(jnp.concatenate([old, new], axis=1), kept)
    finished = merged(beams.finished, just)

    longest = config.max_decode_tokens if config.early_stopping == "never" and config.length_penalty > 0 else length
    best_possible = running[:, :1] / jnp.broadcast_to(rules.penalty(longest), length.shape)[:, None]
    worst = jnp.where(finished, jnp.min(finished_scores, axis=1, keepdims=True), _NEVER)
    improvable = beams.improvable & jnp.any(best_possible > worst, axis=1)
    over = ~improvable | (jnp.all(finished, axis=1) & early) | jnp.all(ends, axis=1)
    # Beams that exist alone decide: at the beginning all are copies of the first.
    fault = jnp.where(jnp.all(is_law(logits), axis=1), 0, TARGET_FAULT).astype(jnp.int8)

    fed = seen(beams)
    moved = beams._replace(
        texts=among(texts, best),
        fed=jnp.where(at, among(token, best)[..., None], beams.fed),
        parents=jnp.where(at, parents[..., None], beams.parents),
        logprobs=among(logprobs, best),
        scores=running,
        depth=beams.depth + 1,
        used=beams.used + width,
        mask=among(fed, parents),
        key_depths=written(beams.key_depths, jnp.broadcast_to(beams.depth[:, None], (slots, width)), beams.used),
        before=beams.newest,
        before_mask=fed,
        finished_texts=merged(beams.finished_texts, texts),
        finished_logprobs=merged(beams.finished_logprobs, logprobs),
        finished_scores=finished_scores,
        finished_depth=merged(beams.finished_depth, jnp.broadcast_to(beams.depth[:, None] + 1, (slots, keep))),
        finished=finished,
        improvable=improvable,
        done=over | (fault > 0),
        fault=fault,
    )
    return moved, parents
