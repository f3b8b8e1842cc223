"""One iteration of speculative beam search (section A.4 of Leviathan et al., 2211.17192), exact.

    iterate:  draft_forest      w roots and u γ nodes below them                        drafting
              target.step       one call in which each node sees its own ancestors      models
              advance           the true search, step by step, from the target's        search
                                logits, as long as all beams that run on are nodes
              move              entries of the beams' ancestors, to where plain         models
                                beam search would have written them

The first step that leaves the forest is decided all the same, so every call decides at least one. What comes out is plain
beam search's, with its caches, entry for entry.
"""

import jax
import jax.numpy as jnp
import numpy as np

from decoding.beams.drafting import draft_forest
from decoding.beams.search import Beams, Rules, advance, chosen, recorded
from decoding.config import ACCEPTED, BONUS, CORRECTED
from decoding.drafts.base import Draft, ModelDraft
from decoding.models.base import LanguageModel, State
from decoding.models.tree import Tree, among, written


def iterate(
    target: LanguageModel, draft: Draft, states: tuple[State, State], beams: Beams, gamma: int, rules: Rules
) -> tuple[tuple[State, State], Beams]:
    """Decides 1 to γ + 1 steps of every search that is not done."""
    target_state, draft_state = states
    forest, draft_state = draft_forest(draft, draft_state, beams, gamma, rules)
    slots, width = beams.scores.shape
    nodes = forest.tokens.shape[1]
    tree = Tree(forest.depths, written(beams.key_depths, forest.depths, beams.used), forest.mask)
    logits, target_state = target.step(jnp.maximum(forest.tokens, 0), beams.used, target_state, tree=tree)

    def decide(carry):
        k, now, at, order, going = carry
        moved, parents = advance(now, among(logits, at), rules)
        above, tokens = among(at, parents), moved.newest
        same = (forest.parents[:, None] == above[..., None]) & (forest.tokens[:, None] == tokens[..., None])
        covered = jnp.all(jnp.any(same, axis=2), axis=1)
        kind = jnp.where(k == gamma, BONUS, jnp.where(covered, ACCEPTED, CORRECTED))
        now = chosen(going, recorded(moved, kind), now)
        order = jax.lax.dynamic_update_slice_in_dim(order, at, k * width, 1)
        return k + 1, now, jnp.argmax(same, axis=2).astype(jnp.int32), order, going & covered & ~now.done

    at = jnp.broadcast_to(np.arange(width, dtype=np.int32), (slots, width))
    order = jnp.tile(at, (1, gamma + 1))
    carry = (jnp.int32(0), beams, at, order, ~beams.done)
    _, now, _, order, _ = jax.lax.while_loop(lambda carry: (carry[0] <= gamma) & jnp.any(carry[4]), decide, carry)
    # The roots are where they belong.
    starts, order = beams.used + width, order[:, width:] - width
    order = jnp.maximum(order, 0)
    target_state = target.move(target_state, starts, order, nodes - width)
    if isinstance(draft, ModelDraft):
        draft_state = draft.model.move(draft_state, starts, order, nodes - width)
    now = now._replace(calls=jnp.where(beams.done, beams.calls, beams.calls + 1))
    return (target_state, draft_state), now
