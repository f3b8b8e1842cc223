"""The contract between a model and the decoder, and the arithmetic every model shares.

A model is an `nnx.Module` with the attributes and methods of `LanguageModel`. Everything per row is an array over the batch:
rows stand at different positions and move by different amounts, so a position is an argument of `step`, never part of the
state. So a state is rolled back by calling `step` with an earlier position: what lies at or beyond a row's position is
garbage by definition and is never attended to.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding import compilation
from decoding.models.tree import Tree

# Additive mask.  Finite, so that a row whose keys are all masked yields a uniform softmax and not NaN.
MASKED = -1e30

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),  # the tanh approximation
    "silu": jax.nn.silu,
}

State = Any  # a pytree whose leaves all have the batch as their first axis


def install(
    resident: State, prefilled: State, rows: jax.Array | None = None, slots: jax.Array | None = None
) -> State:
    """A resident state with prefilled rows written into its own, at the origin of every axis but the first.

    Args:
      resident: as from `LanguageModel.init_state`.
      prefilled: as from `LanguageModel.prefill`; its leaves are at most as long along every axis but the first.
      rows, slots: int32[N] each: row rows[i] is written into slot slots[i], which is out of range behind the last one that
        is to be written.  None where there is a row for every slot, in order, or one for all of them.
    """
    if isinstance(prefilled, dict):
        return resident | {name: install(resident[name], new, rows, slots) for name, new in prefilled.items()}

    def write(old, new):
        return jax.lax.dynamic_update_slice(old, jnp.broadcast_to(new, (len(old), *new.shape[1:])), (0,) * old.ndim)

    if rows is None:
        return jax.tree.map(write, resident, prefilled)
    return jax.lax.platform_dependent(resident, prefilled, rows, slots, cpu=_install_in_turn, default=_install_at_once)


def _install_at_once(resident: State, prefilled: State, rows: jax.Array, slots: jax.Array) -> State:
    def write(old, new):
        window = (slots, *(slice(0, size) for size in new.shape[1:]))
        return old.at[window].set(new[rows], mode="drop")

    return jax.tree.map(write, resident, prefilled)


def _install_in_turn(resident: State, prefilled: State, rows: jax.Array, slots: jax.Array) -> State:
    """Copies what is to be written and no more: XLA's scatter on processors gathers a row for every slot first."""

    def write(i, state):
        def into(old, new):
            row = jax.lax.dynamic_slice_in_dim(new, rows[i], 1)
            return jax.lax.dynamic_update_slice(old, row, (slots[i], *(0,) * (old.ndim - 1)))

        return jax.tree.map(into, state, prefilled)

    count = jnp.sum(slots < len(jax.tree.leaves(resident)[0]))
    return jax.lax.fori_loop(0, count, write, resident)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a model: what the config of every family has, and answers for all who ask about its family.

    Attributes:
      num_heads: of queries.
      d_ff: width of the feed-forward.
      start_id, eos_ids, pad_id, forced_bos_id, forced_eos_id: special tokens, see `LanguageModel`.
      suppressed_ids: tokens that never occur.
      head_tokens: how many tokens a head of its own has logits of, 0 for all: see `vocabulary.SomeTokens`.
      attention_shards, feed_forward_shards: pieces that the columns of fused projections lie in, see
        `decoding.sharding`; 1 unless the model is split over devices.
      encoder_decoder: as of `LanguageModel`.
    """

    vocab_size: int
    d_model: int
    num_heads: int
    d_ff: int
    start_id: int = 0
    eos_ids: tuple[int, ...] = (1,)
    pad_id: int = 0
    forced_bos_id: int | None = None
    forced_eos_id: int | None = None
    suppressed_ids: tuple[int, ...] = ()
    head_tokens: int = 0
    attention_shards: int = 1
    feed_forward_shards: int = 1

    encoder_decoder: ClassVar[bool]

    def build(self, *, rngs: nnx.Rngs, dtype) -> "LanguageModel":
        """A randomly initialised model of this shape."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises ValueError where values contradict each other; types and ranges have been looked at."""

    @property
    def sizes(self) -> dict[str, int]:
        """By logical axis, what a number of devices must divide for the axis to be split over them."""
        return {"heads": self.num_heads, "feed_forward": self.d_ff, "vocabulary": self.vocab_size}

    @property
    def head_size(self) -> int:
        """Columns of the product that makes logits."""
        return self.head_tokens or self.vocab_size

    @property
    def pieces(self) -> dict[str, int]:
        """By logical axis, the pieces that columns of fused projections lie in."""
        return {"heads": self.attention_shards, "feed_forward": self.feed_forward_shards}

    def divided(self, ways: int) -> "Shape":
        """The shape of the same model split over so many devices."""
        attention, feed_forward = (ways if self.sizes[axis] % ways == 0 else 1 for axis in ("heads", "feed_forward"))
        return dataclasses.replace(self, attention_shards=attention, feed_forward_shards=feed_forward)

    # What decoding a token takes, for planning and reports.  `head_dim`, `num_kv_heads` and `decoder_layers` are those of
    # the decoder, fields or properties of every config.

    @property
    def operations_per_token(self) -> float:
        """Operations of the decoder's matrix products for one token, a multiplication and an addition counting two.

        The encoder and the keys and values of cross-attention are computed once per input and not per token, so they are
        not in it; attention over the cache, norms, the softmax and the lookup of embeddings are small beside the products
        and left out, as in the paper's ratio.
        """
        raise NotImplementedError

    def read_by_step(self, path: str) -> bool:
        """Whether a decoding step reads the whole parameter at this path."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderShape(Shape):
    """`Shape` of a family with an encoder, whose decoder has a key and a value for every head of its queries.

    Attributes:
      num_layers: of the encoder.
      num_decoder_layers: of the decoder.
    """

    num_layers: int
    num_decoder_layers: int

    encoder_decoder = True

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers


class LanguageModel(Protocol):
    """What `decoding.engine` needs of a target or draft model.

    Attributes:
      vocab_size: V, the last axis of the logits.
      start_id: the first decoder input token of an encoder-decoder model; begins a text of a decoder-only one.
      eos_id: ends a generation, and the inputs of an encoder-decoder model.
      eos_ids: all tokens that end a generation, `eos_id` first. A model that has no other may lack the attribute.
      forced_ids: the token that every text begins with, and the one that a text of the largest length ends with; None
        for none. A model may lack the attribute.
      max_positions: of inputs and outputs together or, for encoder-decoder models, of each; 0 for no limit. A model may
        lack it.
      encoder_decoder: inputs go to an encoder, and decoding starts at position 0 with `start_id`.  Otherwise an input
        of n tokens is the text so far, and decoding starts at position n - 1 with its last token.
      config: its `Shape`, from which it can be split over a mesh; None, or absent, where it has none.
    """

    vocab_size: int
    start_id: int
    eos_id: int
    encoder_decoder: bool

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        """Zeroed resident state of `batch` rows for inputs up to `input_length` tokens and, beyond what a
        decoder-only model's input takes, `max_positions` decoder positions."""

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        """State rows of new inputs.

        Args:
          inputs: int32[P, L], padded with anything beyond `lengths`.
          lengths: int32[P], at least 1.

        Returns:
          A subtree of `init_state`'s tree whose leaves are [P, ...] with every other axis at most as long as
          there: `install` writes it at the origin of a slot's row.
        """

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None, tree: Tree | None = None
    ) -> tuple[jax.Array, State]:
        """Feeds S tokens per row at positions `positions[b] .. positions[b] + S - 1`.

        Args:
          tokens: int32[B, S], the decoder's input tokens.
          positions: int32[B], the position of `tokens[:, 0]`.
          state: as from `init_state`; rows hold valid entries before `positions`.
          at: int32[B], or None.  Where given, logits are computed for the one position `at[b]` of the S only.
          tree: where given, the tokens are its nodes, and positions those of their entries in the cache.  A model that is
            not asked for beams may lack the argument, and `move`.

        Returns:
          logits float32[B, S, V] (or [B, 1, V] with `at`) and the state with the S positions written.
        """


    def move(self, state: State, starts: jax.Array, order: jax.Array, size: int) -> State:
        """The state after a tree step in which entry starts[b] + order[b, i] has become starts[b] + i, for all i at once.

        Args:
          starts: int32[B].
          order: int32[B, M], below `size`; entries from starts[b] + M on are garbage afterwards.
        """


def eos_ids(model: LanguageModel) -> tuple[int, ...]:
    """The tokens that end a generation of a model, at least one."""
    return getattr(model, "eos_ids", (model.eos_id,))


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, S, H * D] -> [B, H, S, D]."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x: jax.Array) -> jax.Array:
    """[B, H, S, D] -> [B, S, H * D]."""
    batch, heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


def split_fused(x: jax.Array, widths: tuple[int, ...], shards: int = 1) -> list[jax.Array]:
    """The parts of a fused projection's output: [B, S, sum of widths] -> [B, S, width] each.

    Args:
      x: its columns lie in `shards` pieces, each with its share of every part; see `decoding.sharding`.
    """
    batch, length, _ = x.shape
    ends = np.cumsum([width // shards for width in widths])[:-1]
    if shards == 1:
        return jnp.split(x, ends, axis=-1)
    pieces = x.reshape(batch, length, shards, -1)
    return [part.reshape(batch, length, -1) for part in jnp.split(pieces, ends, axis=-1)]


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean_square + epsilon) * scale.astype(jnp.float32)).astype(x.dtype)


# Keys per step of the loop in `attend_existing`; states hold a multiple of it where they hold more.
KEY_BLOCK = 128


def state_length(length: int) -> int:
    """Length of a cache for `length` positions: rounded up to whole key blocks where it needs more than one."""
    return length if length <= KEY_BLOCK else -(-length // KEY_BLOCK) * KEY_BLOCK


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """cap tanh(x / cap), between cap and its opposite; x where cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def attend(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, cap: float = 0.0) -> jax.Array:
    """Softmax attention with an additive bias, the softmax in float32.

    Args:
      query: [B, H, S, D].
      key: [B, H, T, D].
      value: [B, H, T, D].
      bias: float32, broadcastable to [B, H, S, T]; carries the mask.
      cap: of scores, before the bias, see `soft_cap`.

    Returns:
      [B, H, S, D] in value's dtype.
    """
    scores = soft_cap(jnp.einsum("bhsd,bhtd->bhst", query, key, preferred_element_type=jnp.float32), cap) + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhst,bhtd->bhsd", weights, value, preferred_element_type=jnp.float32).astype(value.dtype)


def attend_existing(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, existing: jax.Array, cap: float = 0.0
) -> jax.Array:
    """`attend`, with work that follows how many keys there are instead of how many there could be.

    The softmax is accumulated over blocks of keys (Milakov and Gimelshein, 1805.02867) in a loop whose trip count is
    known on device only.

    Args:
      query, key, value, bias, cap: as in `attend`.  Blocks are skipped where T is a multiple of KEY_BLOCK, as
        `state_length` makes it; a shorter or odd T, as of a prefill that was never inserted, is attended to whole.
      existing: int32[], every row's keys at or beyond it are masked by the bias.
    """
    attend_blocks = functools.partial(_attend_blocks, cap)
    if query.shape[2] > 1:
        return attend_blocks(query, key, value, bias, existing)
    # A TPU turns a product with one row into a sum, for which it wants caches laid out otherwise than for products with
    # several: a draft's first step has two, its others one, and every iteration would lay its caches out anew.
    twice = lambda query, *rest: attend_blocks(jnp.repeat(query, 2, axis=2), *rest)[:, :, :1]
    return jax.lax.platform_dependent(query, key, value, bias, existing, tpu=twice, default=attend_blocks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_blocks(cap, query, key, value, bias, existing) -> jax.Array:
    length = key.shape[2]
    if length <= KEY_BLOCK or length % KEY_BLOCK:
        return attend(query, key, value, bias, cap)
    rows, heads, steps, width = query.shape

    def add_block(i, carry):
        peak, total, mixed = carry
        block = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=i * KEY_BLOCK, slice_size=KEY_BLOCK)
        scores = jnp.einsum("bhsd,bhtd->bhst", query, block(key, axis=2), preferred_element_type=jnp.float32)
        scores = soft_cap(scores, cap) + block(bias, axis=3)
        new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
        weights, kept = jnp.exp(scores - new_peak), jnp.exp(peak - new_peak)
        values = block(value, axis=2)
        new = jnp.einsum("bhst,bhtd->bhsd", weights.astype(value.dtype), values, preferred_element_type=jnp.float32)
        return new_peak, total * kept + jnp.sum(weights, axis=-1, keepdims=True), mixed * kept + new

    column = (rows, heads, steps, 1)
    empty = (jnp.full(column, 2 * MASKED), jnp.zeros(column), jnp.zeros((rows, heads, steps, width)))
    blocks = jnp.clip((existing + KEY_BLOCK - 1) // KEY_BLOCK, 1, length // KEY_BLOCK)
    _, total, mixed = jax.lax.fori_loop(0, blocks, add_block, empty)
    return (mixed / total).astype(value.dtype)


def _attend_backward(cap, operands, gradient):
    """Of `attend`, which computes the same: a loop whose trip count is known on device only has no transpose."""
    *arrays, existing = operands
    return (*jax.vjp(functools.partial(attend, cap=cap), *arrays)[1](gradient), np.zeros(existing.shape, jax.dtypes.float0))


_attend_blocks.defvjp(lambda cap, *operands: (_attend_blocks(cap, *operands), operands), _attend_backward)


@functools.partial(compilation.jit, static_argnums=0)
def encoder_decoder_logits(graph, params, decoder_tokens, encoder_tokens, encoder_lengths) -> jax.Array:
    """Teacher-forced logits float32[B, T, V] of a model with an encoder, split by `nnx.split`: see `LanguageModel.logits`."""
    model = nnx.merge(graph, params)
    batch, length = decoder_tokens.shape
    state = model.init_state(batch, encoder_tokens.shape[1], length)
    state = state | model.prefill(encoder_tokens, encoder_lengths)
    return model.step(decoder_tokens, jnp.zeros((batch,), jnp.int32), state)[0]
