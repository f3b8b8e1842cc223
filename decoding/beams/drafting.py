"""What is drafted for beams: a forest, whose roots are the newest tokens of the running beams.

A language model searches on as the target would, in a tree cache like its own, with w beams and with u - w more extensions at
each step that hedge them (section A.4 of Leviathan et al. has one search of u beams); a draft that copies follows every beam
with one guess.  Texts that end are not drafted: they leave the search whatever follows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoding.beams.search import Beams, Rules, seen
from decoding.drafts.base import Draft, ModelDraft
from decoding.models.base import LanguageModel, State
from decoding.models.tree import Tree, among, entries, written
from decoding.rows import Rows
from decoding.sampling import log_probs


class Forest(NamedTuple):
    """Nodes level by level, the w roots first; their number is N.

    Attributes:
      tokens: int32[B, N], -1 where there is none.
      parents: int32[B, N], each one's parent, -1 of roots.
      depths: int32[B, N], decoder positions.
      mask: bool[B, N, T], what each sees once it is the `used + i`-th entry of a cache.
    """

    tokens: jax.Array
    parents: jax.Array
    depths: jax.Array
    mask: jax.Array


def draft_forest(draft: Draft, state: State, beams: Beams, gamma: int, rules: Rules) -> tuple[Forest, State]:
    """γ levels below the beams' newest tokens: w + u γ nodes of a draft that is a model, else w + w γ."""
    if isinstance(draft, ModelDraft):
        return _searched(draft.model, state, beams, gamma, rules)
    return _copied(draft, state, beams, gamma, rules), state


def _roots(beams: Beams) -> Forest:
    depths = jnp.broadcast_to(beams.depth[:, None], beams.scores.shape)
    return Forest(beams.newest, jnp.full_like(depths, -1), depths, seen(beams))


def _joined(levels: list[Forest]) -> Forest:
    return Forest(*(jnp.concatenate(parts, axis=1) for parts in zip(*levels)))


def _searched(model: LanguageModel, state: State, beams: Beams, gamma: int, rules: Rules) -> tuple[Forest, State]:
    """The first call feeds what was fed last as well: after all levels were kept, the draft has not seen the deepest."""
    width, (slots, roots, length) = rules.config.draft_width, beams.mask.shape
    forest = _roots(beams)
    tokens = jnp.concatenate([beams.before, forest.tokens], axis=1)
    mask = jnp.concatenate([beams.before_mask, forest.mask], axis=1)
    depths = jnp.concatenate([jnp.maximum(forest.depths - 1, 0), forest.depths], axis=1)
    key_depths = written(beams.key_depths, depths, beams.used - roots)
    logits, state = model.step(tokens, beams.used - roots, state, tree=Tree(depths, key_depths, mask))

    def level(logits, texts, scores, depth):
        """u extensions, those of the search first: parents, tokens, texts, scores."""
        size = logits.shape[2]
        logp = rules.apply(log_probs(logits), texts, depth, beams.start)
        logp = jnp.where(np.isin(np.arange(size), rules.eos), -jnp.inf, logp) + scores[..., None]
        # The search itself, of w beams; then what comes next, of all. A search of u beams would lose some of the w best: what
        # follows its other beams may be likelier than what the search comes to next.
        scores, index = jax.lax.top_k(logp[:, :roots].reshape(slots, -1), roots)
        if width > roots:
            taken = logp.reshape(slots, -1).at[np.arange(slots)[:, None], index].set(-jnp.inf)
            others = jax.lax.top_k(taken, width - roots)
            scores, index = (jnp.concatenate(pair, axis=1) for pair in zip((scores, index), others))
        parents, tokens = index // size, index % size
        at = np.arange(rules.texts_length) == (depth + 1)[:, None, None]
        return parents, tokens, jnp.where(at, tokens[..., None], among(texts, parents)), scores

    def grown(found, mask, offset, above):
        parents, tokens, _, _ = found
        mask = among(mask, parents) | entries(beams.used + offset, width, length)
        return Forest(tokens, above + parents, jnp.zeros_like(tokens), mask)

    found = level(logits[:, roots:], beams.texts, beams.scores, beams.depth)
    first = grown(found, forest.mask, roots, 0)

    def extend(carry, k):
        state, key_depths, found, nodes = carry
        offset = roots + (k - 1) * width
        depths = jnp.broadcast_to((beams.depth + k)[:, None], (slots, width))
        key_depths = written(key_depths, depths, beams.used + offset)
        tree = Tree(depths, key_depths, nodes.mask)
        logits, state = model.step(nodes.tokens, beams.used + offset, state, tree=tree)
        found = level(logits, *found[2:], beams.depth + k)
        nodes = grown(found, nodes.mask, offset + width, offset)
        return (state, key_depths, found, nodes), nodes

    (state, *_), later = jax.lax.scan(extend, (state, key_depths, found, first), jnp.arange(1, gamma, dtype=jnp.int32))
    flat = lambda array: jnp.moveaxis(array, 0, 1).reshape(slots, (gamma - 1) * width, *array.shape[3:])
    forest = _joined([forest, first, Forest(*map(flat, later))])
    below = np.concatenate([np.zeros(roots, np.int32), np.repeat(np.arange(1, gamma + 1, dtype=np.int32), width)])
    return forest._replace(depths=beams.depth[:, None] + below), state


def caught_up(model: LanguageModel, state: State, beams: Beams, since: jax.Array) -> State:
    """A draft's state with the steps that were decided without it, from depth int32[B] `since` of each search on.

    The newest two depths are fed with the next forest.  Searches that lack nothing, those that are done among them, are told by
    a `since` at or above depth - 1; what they have is written again.
    """
    slots, width, length = beams.mask.shape
    missing = since < beams.depth - 1

    def nodes(k, above):
        """Tokens and depths of the entries of depth start + k, where they begin, and what they see."""
        depths = jnp.minimum(beams.start + k, beams.texts.shape[2] - 1)[:, None, None]
        tokens, parents = (jnp.take_along_axis(array, depths, axis=2)[..., 0] for array in (beams.fed, beams.parents))
        used = beams.start + width * (k + 1)
        mask = among(above, parents) | entries(used, width, length)
        return tokens, jnp.broadcast_to(depths[..., 0], (slots, width)), used, mask

    def feed(k, carry):
        mask, state = carry
        tokens, depths, used, mask = nodes(k, mask)
        return mask, model.step(tokens, used, state, tree=Tree(depths, beams.key_depths, mask))[1]

    prompt = jnp.broadcast_to((np.arange(length) < beams.start[:, None])[:, None], beams.mask.shape)
    first = jnp.min(jnp.where(missing, since - beams.start, beams.texts.shape[2]))
    last = jnp.max(jnp.where(missing, beams.depth - 1 - beams.start, 0))
    mask = jax.lax.fori_loop(0, first, lambda k, mask: nodes(k, mask)[3], prompt)
    return jax.lax.fori_loop(first, last, feed, (mask, state))[1]


def _copied(draft: Draft, state: State, beams: Beams, gamma: int, rules: Rules) -> Forest:
    slots, width, length = beams.mask.shape
    flat = lambda array: array.reshape(slots * width, *array.shape[2:])
    each = lambda array: flat(jnp.broadcast_to(array[:, None], (slots, width, *array.shape[1:])))
    zeros = jnp.zeros((slots * width,), jnp.int32)
    rows = Rows(
        previous=flat(beams.token_at(jnp.maximum(beams.depth - 1, 0))),
        last=flat(beams.newest),
        position=each(beams.depth),
        remaining=zeros + rules.config.max_decode_tokens,
        done=zeros > 0,
        keys=jnp.zeros((slots * width, 2), jnp.uint32),
    )
    proposal, _ = draft.propose(draft.of_texts(jax.tree.map(each, state), flat(beams.texts)), rows, gamma, rules.config)
    guessed = np.arange(gamma) < proposal.count[:, None]
    tokens = jnp.where(guessed, proposal.tokens, -1).reshape(slots, width, gamma)
    levels = [_roots(beams)]
    for k in range(1, gamma + 1):
        mask = levels[-1].mask | entries(beams.used + k * width, width, length)
        parents = jnp.broadcast_to((k - 1) * width + np.arange(width), (slots, width))
        levels.append(Forest(tokens[:, :, k - 1], parents, levels[0].depths + k, mask))
    return _joined(levels)
