"""The contract between a model and the decoder, and the arithmetic every model shares.

A model is an `nnx.Module` with the attributes and methods of `LanguageModel`.  Everything per row is an
array over the batch: rows stand at different positions and move by different amounts, so a position is an
argument of `step`, never part of the state.  A state is therefore rolled back by calling `step` with an
earlier position: what lies at or beyond a row's position is garbage by definition and is never attended to.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

# Additive mask.  Finite, so that a row whose keys are all masked yields a uniform softmax and not NaN.
MASKED = -1e30

State = Any  # a pytree whose leaves all have the batch as their first axis


class LanguageModel(Protocol):
    """What `decoding.engine` needs of a target or draft model.

    Attributes:
      vocab_size: V, the last axis of the logits.
      start_id: the first decoder input token.
      eos_id: the token that ends a generation.
    """

    vocab_size: int
    start_id: int
    eos_id: int

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        """Zeroed resident state for `batch` rows, inputs up to `input_length` and `max_positions` decoder positions."""

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        """State rows of new inputs.

        Args:
          inputs: int32[P, L], padded with anything beyond `lengths`.
          lengths: int32[P], at least 1.

        Returns:
          A subtree of `init_state`'s tree whose leaves are [P, ...] with every other axis at most as long as
          there: it is written at the origin of a slot's row.
        """

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        """Feeds S tokens per row at positions `positions[b] .. positions[b] + S - 1`.

        Args:
          tokens: int32[B, S], the decoder's input tokens.
          positions: int32[B], the position of `tokens[:, 0]`.
          state: as from `init_state`; rows hold valid entries before `positions`.
          at: int32[B], or None.  Where given, logits are computed for the one position `at[b]` of the S only.

        Returns:
          logits float32[B, S, V] (or [B, 1, V] with `at`) and the state with the S positions written.
        """


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean_square + epsilon) * scale.astype(jnp.float32)).astype(x.dtype)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array) -> jax.Array:
    """Softmax attention with an additive bias, the softmax in float32.

    Args:
      query: [B, H, S, D].
      key: [B, H, T, D].
      value: [B, H, T, D].
      bias: float32, broadcastable to [B, H, S, T]; carries the mask.

    Returns:
      [B, H, S, D] in value's dtype.
    """
    scores = jnp.einsum("bhsd,bhtd->bhst", query, key, preferred_element_type=jnp.float32) + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhst,bhtd->bhsd", weights, value, preferred_element_type=jnp.float32).astype(value.dtype)


def write_cache(cache: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """Writes `new` [B, H, S, D] into `cache` [B, H, T, D] at time `positions[b]` of each row.

    Positions must satisfy `positions + S <= T`: the caller allocates enough room.
    """
    if cache.shape[0] == 1:
        # A scatter of one row is rewritten by XLA into a bounds-checked select that copies the cache.
        return jax.lax.dynamic_update_slice(cache, new, (0, 0, positions[0], 0))
    return jax.vmap(lambda row, update, at: jax.lax.dynamic_update_slice(row, update, (0, at, 0)))(
        cache, new, positions
    )
