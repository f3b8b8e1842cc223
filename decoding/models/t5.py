"""T5 in every published shape: v1.0 (ReLU, tied), v1.1 and Flan (gated GELU, untied), mT5, umT5, any depths.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020,
and Shazeer, "GLU Variants Improve Transformer", 2020.  Weights are stored fused ([q k v], [wi_0 wi_1]) because
a decode step at small batch is bound by the number of operations and by reading weights once.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from decoding.models.attention import (
    Cache,
    Compact,
    Heads,
    attend_cache,
    attend_input,
    attend_itself,
    encoder_decoder_state,
    where,
    with_moved_entries,
)
from decoding.models.base import EncoderDecoderShape, State, encoder_decoder_logits
from decoding.models.linear import RowNorm, embed, head_logits, is_packed, project, tied_logits, weight
from decoding.models.relative import both_ways_table
from decoding.models.tree import Tree

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(EncoderDecoderShape):
    """Shape of a T5 model.  Field names are those of Hugging Face's config where one exists.

    Attributes:
      gated: two input projections (`act(wi_0 x) * wi_1 x`) instead of one.
      activation: "relu", "gelu" (exact), "gelu_new" (tanh approximation) or "silu".
      tied: logits come from the input embedding instead of a separate head.
      scale_decoder_outputs: multiply the decoder's output by d_model ** -0.5 before the logits.
      bias_per_layer: every layer has its own table of relative positions (umT5, T5X's scanned layers), not the first
        one's.
    """

    d_kv: int
    gated: bool
    activation: str
    tied: bool
    scale_decoder_outputs: bool
    bias_per_layer: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    def build(self, *, rngs: nnx.Rngs, dtype) -> "T5":
        return T5(self, rngs=rngs, dtype=dtype)

    @property
    def attention_width(self) -> int:
        """Columns of each of query, key and value: all heads."""
        return self.num_heads * self.d_kv

    @property
    def head_dim(self) -> int:
        return self.d_kv

    @property
    def operations_per_token(self) -> float:
        attention = 6 * self.d_model * self.attention_width  # own: q, k, v, o; cross: q, o
        feed_forward = (3 if self.gated else 2) * self.d_model * self.d_ff
        return 2.0 * (self.num_decoder_layers * (attention + feed_forward) + self.d_model * self.head_size)

    def read_by_step(self, path: str) -> bool:
        encoder = path.startswith("encoder") or path.endswith("cross.kv")
        return not encoder and (path != "embedding" or self.tied)


def bias_shape(config: T5Config, layers: int) -> tuple[int, ...]:
    """Shape of one side's tables of relative positions: [buckets, H], or [layers, buckets, H] with one per layer."""
    table = (config.relative_attention_num_buckets, config.num_heads)
    return (layers, *table) if config.bias_per_layer else table


class FeedForward(nnx.Module):
    """`wo(act(wi_0 x) * wi_1 x)`, or `wo(act(wi_0 x))` where the config is not gated, with its norm and residual."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype):
        self.config = config
        fans = 2 if config.gated else 1
        self.norm = nnx.Param(jnp.ones((config.d_model,), dtype))
        self.wi = weight(
            rngs,
            config.d_model,
            fans * config.d_ff,
            fan_in=config.d_model,
            dtype=dtype,
            axes=("feed_forward",),
            parts=((config.d_ff, 1),) * fans,
            role="product",
            gated=config.gated,
        )
        wo = dict(fan_in=config.d_ff, dtype=dtype, axes=("feed_forward", None), role="product")
        self.wo = weight(rngs, config.d_ff, config.d_model, **wo)

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        config = self.config
        hidden = project(
            x,
            self.wi,
            norm=RowNorm(self.norm, None, config.layer_norm_epsilon),
            activation=config.activation,
            gate_pieces=config.feed_forward_shards if config.gated else 0,
            real=real,
        )
        return project(hidden, self.wo, residual=x, real=real)


def _into_heads(config: T5Config, fans: int, rngs: nnx.Rngs, dtype) -> nnx.Param:
    """[d_model, fans * H * d_kv], fused of `fans` projections."""
    parts = ((config.num_heads, config.d_kv),) * fans
    shape = (config.d_model, fans * config.attention_width)
    return weight(rngs, *shape, fan_in=config.d_model, dtype=dtype, axes=("heads",), parts=parts, role="product")


def _out_of_heads(config: T5Config, rngs: nnx.Rngs, dtype) -> nnx.Param:
    inner = config.attention_width
    return weight(rngs, inner, config.d_model, fan_in=inner, dtype=dtype, axes=("heads", None), role="product")


class SelfAttention(nnx.Module):
    """Projections of one self-attention block, norm included."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype):
        self.config = config
        self.norm = nnx.Param(jnp.ones((config.d_model,), dtype))
        self.qkv = _into_heads(config, 3, rngs, dtype)
        self.out = _out_of_heads(config, rngs, dtype)

    def query_key_value(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """x [B, S, d_model] -> query, key and value side by side, [B, S, 3 H d_kv]."""
        return project(x, self.qkv, norm=RowNorm(self.norm, None, self.config.layer_norm_epsilon), real=real)


class CrossAttention(nnx.Module):
    """Projections of one encoder-decoder attention block, norm included."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype):
        self.config = config
        self.norm = nnx.Param(jnp.ones((config.d_model,), dtype))
        self.query = _into_heads(config, 1, rngs, dtype)
        self.kv = _into_heads(config, 2, rngs, dtype)
        self.out = _out_of_heads(config, rngs, dtype)


class EncoderLayer(nnx.Module):
    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype):
        self.attention = SelfAttention(config, rngs, dtype)
        self.feed_forward = FeedForward(config, rngs, dtype)


class DecoderLayer(nnx.Module):
    def __init__(self, config: T5Config, rngs: nnx.Rngs, dtype):
        self.attention = SelfAttention(config, rngs, dtype)
        self.cross = CrossAttention(config, rngs, dtype)
        self.feed_forward = FeedForward(config, rngs, dtype)


class T5(nnx.Module):
    """An encoder-decoder model that meets `decoding.models.base.LanguageModel`.

    State: `{"lengths": int32[B], "cross": [Cache of L positions] * layers, "self": [Cache of T positions] *
    layers}`, see `decoding.models.attention`.
    """

    encoder_decoder = True

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.vocab_size, self.start_id, self.eos_ids = config.vocab_size, config.start_id, config.eos_ids
        self.eos_id, self.forced_ids = config.eos_ids[0], (config.forced_bos_id, config.forced_eos_id)
        new = functools.partial(weight, rngs, dtype=dtype)
        self.embedding = new(config.vocab_size, config.d_model, fan_in=1, axes=("vocabulary", None), role="table")
        self.encoder_bias = new(*bias_shape(config, config.num_layers), fan_in=config.d_model, axes=("heads",))
        self.decoder_bias = new(*bias_shape(config, config.num_decoder_layers), fan_in=config.d_model, axes=("heads",))
        self.encoder = nnx.List([EncoderLayer(config, rngs, dtype) for _ in range(config.num_layers)])
        self.encoder_norm = nnx.Param(jnp.ones((config.d_model,), dtype))
        self.decoder = nnx.List([DecoderLayer(config, rngs, dtype) for _ in range(config.num_decoder_layers)])
        self.decoder_norm = nnx.Param(jnp.ones((config.d_model,), dtype))
        if not config.tied:
            head = dict(fan_in=config.d_model, axes=("vocabulary",), role="product")
            self.head = new(config.d_model, config.head_size, **head)

    @property
    def _heads(self) -> Heads:
        config = self.config
        return Heads(config.num_heads, config.num_heads, config.d_kv, config.attention_shards)

    def _norm(self, scale: nnx.Param) -> RowNorm:
        return RowNorm(scale, None, self.config.layer_norm_epsilon)

    def encode(self, inputs: jax.Array, lengths: jax.Array, compact: Compact | None = None) -> jax.Array:
        """inputs int32[P, L], lengths int32[P] -> encodings before their norm, [P, L, d_model] in the parameters' dtype.

        Given `compact`, which packed weights need, they are [P L, d_model] in its order.
        """
        table = functools.partial(
            both_ways_table, length=inputs.shape[1], max_distance=self.config.relative_attention_max_distance
        )
        tokens, real = (inputs, None) if compact is None else (inputs.reshape(-1)[compact.order], compact.real)
        x = embed(tokens, self.embedding)
        for layer, bias in zip(self.encoder, self._biases(self.encoder_bias, table)):
            qkv = layer.attention.query_key_value(x, real)
            attended = attend_itself(qkv, lengths, bias, self._heads, compact is not None)
            x = layer.feed_forward(project(attended, layer.attention.out, residual=x, real=real), real)
        return x

    def _biases(self, tables: nnx.Param, make: Callable[[jax.Array], T]) -> Iterable[T]:
        """`make` of every layer's table; computed once where the layers share one."""
        if self.config.bias_per_layer:
            return [make(table) for table in tables[...]]
        return itertools.repeat(make(tables[...]))

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        layers, own = self.config.num_decoder_layers, is_packed(self.decoder[0].attention.qkv)
        return encoder_decoder_state(layers, batch, input_length, max_positions, self._heads, self.dtype, own)

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        own, length, norm = is_packed(self.decoder[0].cross.kv), inputs.shape[1], self._norm(self.encoder_norm)
        compact = Compact.of(lengths, length) if own else None
        encoded, cross = self.encode(inputs, lengths, compact), []
        for layer in self.decoder:
            fused = project(encoded, layer.cross.kv, norm=norm, real=compact and compact.real)
            cross.append(Cache.of(compact.spread(fused, length) if compact else fused, self._heads, own))
        return {"lengths": lengths, "cross": cross}

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None, tree: Tree | None = None
    ) -> tuple[jax.Array, State]:
        config, steps = self.config, tokens.shape[1]
        places = self._biases(
            self.decoder_bias,
            lambda table: where(
                state["self"][0],
                positions,
                steps,
                table=table,
                max_distance=config.relative_attention_max_distance,
                tree=tree,
            ),
        )
        x = embed(tokens, self.embedding)
        caches = []
        for layer, cross, cache, place in zip(self.decoder, state["cross"], state["self"], places):
            attended, cache = attend_cache(layer.attention.query_key_value(x), cache, place, self._heads)
            caches.append(cache)
            x = project(attended, layer.attention.out, residual=x)
            query = project(x, layer.cross.query, norm=self._norm(layer.cross.norm))
            attended = attend_input(query, cross, state["lengths"], self._heads)
            x = layer.feed_forward(project(attended, layer.cross.out, residual=x))
        if at is not None:
            x = jnp.take_along_axis(x, at[:, None, None], axis=1)
        ends = dict(norm=self._norm(self.decoder_norm), scale=config.d_model**-0.5 if config.scale_decoder_outputs else 1.0)
        logits = tied_logits(x, self.embedding, **ends) if config.tied else head_logits(x, self.head, **ends)
        return logits, state | {"self": caches}

    def move(self, state: State, starts: jax.Array, order: jax.Array, size: int) -> State:
        return with_moved_entries(state, starts, order, size)

    def logits(self, decoder_tokens, encoder_tokens, encoder_lengths) -> jax.Array:
        """Teacher-forced logits.

        Args:
          decoder_tokens: int32[B, T], the decoder's inputs, start token first.
          encoder_tokens: int32[B, L].
          encoder_lengths: int32[B].

        Returns:
          float32[B, T, V]; `[b, t]` is the distribution of the token after `decoder_tokens[b, :t + 1]`.
        """
        return encoder_decoder_logits(*nnx.split(self), decoder_tokens, encoder_tokens, encoder_lengths)
