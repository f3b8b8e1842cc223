"""A language model whose answers are known by hand.

`Scripted` meets `decoding.models.base.LanguageModel` with a table in place of weights.  Its logits at position t are

    table[t mod P, context_t]           table: float32[P, C, V]
    context_t = (Σ_i (i + 1) inputs_i  +  Σ_{s <= t} w_s (fed_s + 1)) mod C,     w_s = 1 + s mod (C - 1)

where fed_s is the token that the *state* holds at position s, not the token that should be there.  With C a prime
above V, every w_s is invertible mod C, so one missing or stale token anywhere in the row's past selects another
context: a hole in the cache, a row at a wrong position or a neighbour's input changes the logits.  In a tree step, s runs
over the depths of the entries that a node sees.

Worked example, C = 7, inputs [2, 3], start token 0: context_0 = 2 + 6 + 1 * (0 + 1) = 9 mod 7 = 2.  Feeding token 4
at position 1 gives context_1 = 9 + 2 * (4 + 1) = 19 mod 7 = 5.

With C = 1 the context is always 0 and the model recites: `reciting([3, 4, 1])` has 3 as argmax at position 0, 4 at
position 1, 1 at position 2, then 3 again.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding.models.tree import written


class Scripted(nnx.Module):
    """Args:
    table: float32[P, C, V], logits by position and context.
    """

    encoder_decoder = True

    def __init__(self, table, *, start_id: int = 0, eos_id: int = 1, eos_ids: tuple[int, ...] = ()):
        self.table = nnx.Param(jnp.asarray(table, jnp.float32))
        self.periods, self.contexts, self.vocab_size = self.table.shape
        self.start_id, self.eos_id, self.eos_ids = start_id, eos_id, eos_ids or (eos_id,)

    def init_state(self, batch: int, input_length: int, max_positions: int):
        del input_length
        return {"input": jnp.zeros((batch,), jnp.int32), "fed": jnp.zeros((batch, max_positions), jnp.int32)}

    def prefill(self, inputs, lengths):
        span = jnp.arange(inputs.shape[1])
        weighted = jnp.where(span[None, :] < lengths[:, None], inputs * (span + 1), 0)
        return {"input": jnp.sum(weighted, axis=1, dtype=jnp.int32)}

    def move(self, state, starts, order, size):
        block = jax.vmap(lambda row, at: jax.lax.dynamic_slice(row, (at,), (size,)))(state["fed"], starts)
        return state | {"fed": written(state["fed"], jnp.take_along_axis(block, order, axis=1), starts)}

    def step(self, tokens, positions, state, *, at=None, tree=None):
        write = jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice(row, new, (start,)))
        fed = write(state["fed"], tokens + 1, positions)
        span = jnp.arange(fed.shape[1])
        now = positions[:, None] + jnp.arange(tokens.shape[1])
        weights = 1 + span % max(self.contexts - 1, 1)
        past = jnp.where(span[None, None, :] <= now[:, :, None], (fed * weights)[:, None, :], 0)
        if tree is not None:
            now, weights = tree.depths, 1 + tree.key_depths % max(self.contexts - 1, 1)
            past = jnp.where(tree.mask, (fed * weights)[:, None, :], 0)
        context = (state["input"][:, None] + jnp.sum(past, axis=-1)) % self.contexts
        logits = self.table[...][now % self.periods, context]
        if at is not None:
            logits = jnp.take_along_axis(logits, at[:, None, None], axis=1)
        return logits, state | {"fed": fed}


def random_script(seed: int, *, vocab_size: int = 6, contexts: int = 13, periods: int = 3, scale: float = 2.0):
    """A model with normally distributed logits, EOS a little less likely than the others."""
    table = np.random.default_rng(seed).normal(size=(periods, contexts, vocab_size)) * scale
    table[:, :, 1] -= 1.0
    return Scripted(table)


def near(model: Scripted, seed: int, noise: float = 1.0) -> Scripted:
    """A draft that often agrees with `model`: its table plus normal noise."""
    table = np.asarray(model.table[...])
    return Scripted(table + np.random.default_rng(seed).normal(size=table.shape) * noise)


def reciting(tokens, *, vocab_size: int = 8, certainty: float = 9.0) -> Scripted:
    """A model whose argmax at position t is `tokens[t mod len(tokens)]`, whatever it was fed."""
    table = np.zeros((len(tokens), 1, vocab_size))
    table[np.arange(len(tokens)), 0, tokens] = certainty
    return Scripted(table)


def next_logits(model: Scripted, inputs, emitted) -> np.ndarray:
    """float32[V]: logits of the token after `emitted`, by the docstring's formula in plain Python."""
    fed = [model.start_id, *emitted]
    context = sum((i + 1) * token for i, token in enumerate(inputs))
    context += sum((1 + s % max(model.contexts - 1, 1)) * (token + 1) for s, token in enumerate(fed))
    return np.asarray(model.table[...])[(len(fed) - 1) % model.periods, context % model.contexts]


def greedy(model: Scripted, inputs, max_tokens: int) -> list[int]:
    """Plain greedy decoding of one input, by `next_logits`."""
    tokens: list[int] = []
    while len(tokens) < max_tokens and (not tokens or tokens[-1] != model.eos_id):
        tokens.append(int(np.argmax(next_logits(model, inputs, tokens))))
    return tokens
