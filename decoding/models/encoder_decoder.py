"""Encoder-decoders of the Transformer's line: Marian, BART, mBART, M2M-100 with NLLB, Pegasus.

Vaswani et al., "Attention Is All You Need", 2017, with the few choices that `EncoderDecoderConfig` names: norms before or
after, whether embeddings are scaled and normed, and a bias of the logits.  Positions are rows of a table, learned or filled
with sinusoids when weights are loaded.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
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
from decoding.models.linear import Linear, RowNorm, embed, head_logits, is_packed, tied_logits, weight
from decoding.models.tree import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(EncoderDecoderShape):
    """Shape of an encoder-decoder; `num_heads` and `d_ff` are the decoder's.

    Attributes:
      source_vocab_size: rows of the encoder's own table of embeddings; 0 where both sides share one.
      encoder_heads, encoder_d_ff: the encoder's.
      max_positions: of an input, and of an output: rows of the tables of positions.
      norm_first: norms stand before attention and feed-forward, and one more at the end of each side; else after each
        residual.
      embedding_norm: embeddings with their positions are normed.
      scale_embedding: embeddings are multiplied by sqrt(d_model).
      pad_without_position: a pad token among outputs has no position (fairseq's tables).
      tied: logits come from the decoder's embedding.
      logits_bias: added to the logits.
    """

    encoder_heads: int
    encoder_d_ff: int
    max_positions: int
    norm_first: bool
    embedding_norm: bool
    scale_embedding: bool
    activation: str
    logits_bias: bool
    tied: bool = True
    source_vocab_size: int = 0
    pad_without_position: bool = False
    norm_epsilon: float = 1e-5

    def build(self, *, rngs: nnx.Rngs, dtype) -> "EncoderDecoder":
        return EncoderDecoder(self, rngs=rngs, dtype=dtype)

    def check(self) -> None:
        super().check()
        for heads in (self.num_heads, self.encoder_heads):
            if self.d_model % heads:
                raise ValueError(f"d_model is {self.d_model}; allowed: multiples of its {heads} heads")

    @property
    def sizes(self) -> dict[str, int]:
        """What divides both sides' divides their greatest common divisor."""
        return super().sizes | {
            "heads": math.gcd(self.num_heads, self.encoder_heads),
            "feed_forward": math.gcd(self.d_ff, self.encoder_d_ff),
        }

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads

    @property
    def operations_per_token(self) -> float:
        layer = 6 * self.d_model**2 + 2 * self.d_model * self.d_ff  # own: q, k, v, out; cross: q, out
        return 2.0 * (self.num_decoder_layers * layer + self.d_model * self.head_size)

    def read_by_step(self, path: str) -> bool:
        unread = path.startswith("encoder") or ".cross.kv." in path or path == "decoder.positions"
        return not unread and (path != "embedding" or self.tied)


class Norm(nnx.Module):
    """Layer norm over the last axis."""

    def __init__(self, config: EncoderDecoderConfig, dtype):
        self.epsilon = config.norm_epsilon
        self.scale = nnx.Param(jnp.ones((config.d_model,), dtype))
        self.bias = nnx.Param(jnp.zeros((config.d_model,), dtype))

    @property
    def row_norm(self) -> RowNorm:
        return RowNorm(self.scale, self.bias, self.epsilon)


class Sublayer(nnx.Module):
    """What self-attention, cross-attention and feed-forward have in common: a norm, before or after, and a residual."""

    def __init__(self, config: EncoderDecoderConfig, dtype):
        self.norm_first = config.norm_first
        self.norm = Norm(config, dtype)

    @property
    def before(self) -> RowNorm | None:
        """The norm in front of the first projection."""
        return self.norm.row_norm if self.norm_first else None

    def after(self, x: jax.Array) -> jax.Array:
        """Of the sum with the residual."""
        return x if self.norm_first else self.norm.row_norm(x)


def _projections(config: EncoderDecoderConfig, heads: int, rngs: nnx.Rngs, dtype):
    """Makes projections into so many of `heads`, side by side, and the one out of them."""
    width = config.d_model

    def into(fans: int) -> Linear:
        parts = ((heads, width // heads),) * fans
        return Linear(rngs, width, fans * width, bias=True, dtype=dtype, axes=(None, "heads"), parts=parts)

    return into, Linear(rngs, width, width, bias=True, dtype=dtype, axes=("heads", None))


class SelfAttention(Sublayer):
    def __init__(self, config: EncoderDecoderConfig, heads: int, rngs: nnx.Rngs, dtype):
        super().__init__(config, dtype)
        into, self.out = _projections(config, heads, rngs, dtype)
        self.qkv = into(3)


class CrossAttention(Sublayer):
    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs, dtype):
        super().__init__(config, dtype)
        into, self.out = _projections(config, config.num_heads, rngs, dtype)
        self.query, self.kv = into(1), into(2)


class FeedForward(Sublayer):
    def __init__(self, config: EncoderDecoderConfig, d_ff: int, rngs: nnx.Rngs, dtype):
        super().__init__(config, dtype)
        self.activation, width = config.activation, config.d_model
        parts = ((d_ff, 1),)
        self.wi = Linear(rngs, width, d_ff, bias=True, dtype=dtype, axes=(None, "feed_forward"), parts=parts)
        self.wo = Linear(rngs, d_ff, width, bias=True, dtype=dtype, axes=("feed_forward", None))

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        hidden = self.wi(x, norm=self.before, activation=self.activation, real=real)
        return self.after(self.wo(hidden, residual=x, real=real))


class EncoderLayer(nnx.Module):
    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs, dtype):
        self.attention = SelfAttention(config, config.encoder_heads, rngs, dtype)
        self.feed_forward = FeedForward(config, config.encoder_d_ff, rngs, dtype)


class DecoderLayer(nnx.Module):
    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs, dtype):
        self.attention = SelfAttention(config, config.num_heads, rngs, dtype)
        self.cross = CrossAttention(config, rngs, dtype)
        self.feed_forward = FeedForward(config, config.d_ff, rngs, dtype)


class Side(nnx.Module):
    """Encoder or decoder: a table of positions, norms at its beginning and end where the config has them, layers."""

    def __init__(self, config: EncoderDecoderConfig, layers: list[nnx.Module], rngs: nnx.Rngs, dtype):
        self.config = config
        self.positions = weight(rngs, config.max_positions, config.d_model, fan_in=config.d_model, dtype=dtype)
        if config.embedding_norm:
            self.first_norm = Norm(config, dtype)
        self.layers = nnx.List(layers)
        if config.norm_first:
            self.last_norm = Norm(config, dtype)

    def begin(self, tokens: jax.Array, places: jax.Array, table: nnx.Param) -> jax.Array:
        """Embeddings with their positions of int32[...] tokens: [..., d_model]."""
        config = self.config
        x = embed(tokens, table)
        x = x * config.d_model**0.5 if config.scale_embedding else x
        # Rows that are done may stand anywhere; only places that are never read can be out of range.
        placed = embed(jnp.minimum(places, config.max_positions - 1), self.positions)
        if config.pad_without_position:
            placed = jnp.where((tokens == config.pad_id)[..., None], 0, placed)
        x = x + placed
        return self.first_norm.row_norm(x) if config.embedding_norm else x

    @property
    def end(self) -> RowNorm | None:
        """The norm in front of what reads this side."""
        return self.last_norm.row_norm if self.config.norm_first else None


class EncoderDecoder(nnx.Module):
    """An encoder-decoder model that meets `decoding.models.base.LanguageModel`.

    State: `{"lengths": int32[B], "cross": [Cache of L positions] * layers, "self": [Cache of T positions] * layers}`, see
    `decoding.models.attention`.
    """

    encoder_decoder = True

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.vocab_size, self.start_id, self.eos_ids = config.vocab_size, config.start_id, config.eos_ids
        self.eos_id, self.forced_ids = config.eos_ids[0], (config.forced_bos_id, config.forced_eos_id)
        self.max_positions = config.max_positions
        new = functools.partial(weight, rngs, fan_in=config.d_model, dtype=dtype)
        table = dict(axes=("vocabulary", None), role="table")
        self.embedding = new(config.vocab_size, config.d_model, **table)
        if config.source_vocab_size:
            self.encoder_embedding = new(config.source_vocab_size, config.d_model, role="table")
        encoder = [EncoderLayer(config, rngs, dtype) for _ in range(config.num_layers)]
        decoder = [DecoderLayer(config, rngs, dtype) for _ in range(config.num_decoder_layers)]
        self.encoder, self.decoder = Side(config, encoder, rngs, dtype), Side(config, decoder, rngs, dtype)
        if not config.tied:
            self.head = new(config.d_model, config.head_size, axes=("vocabulary",), role="product")
        if config.logits_bias:
            self.logits_bias = nnx.Param(jnp.zeros((config.head_size,), jnp.float32), axes=("vocabulary",))

    @property
    def _heads(self) -> Heads:
        config = self.config
        return Heads(config.num_heads, config.num_heads, config.head_dim, config.attention_shards)

    def encode(self, inputs: jax.Array, lengths: jax.Array, compact: Compact | None = None) -> jax.Array:
        """inputs int32[P, L], lengths int32[P] -> encodings before the last norm, [P, L, d_model] in the parameters' dtype.

        Given `compact`, which packed weights need, they are [P L, d_model] in its order.
        """
        config, length = self.config, inputs.shape[1]
        heads = self._heads._replace(
            queries=config.encoder_heads, keys=config.encoder_heads, width=config.d_model // config.encoder_heads
        )
        tokens, places, real = inputs, jnp.broadcast_to(np.arange(length), inputs.shape), None
        if compact:
            tokens, places = (array.reshape(-1)[compact.order] for array in (tokens, places))
            real = compact.real
        x = self.encoder.begin(tokens, places, self.encoder_embedding if config.source_vocab_size else self.embedding)
        bias = jnp.zeros((heads.queries, 2 * length - 1), jnp.float32)
        for layer in self.encoder.layers:
            own = layer.attention
            qkv = own.qkv(x, norm=own.before, real=real)
            attended = attend_itself(qkv, lengths, bias, heads, compact is not None, scale=heads.width**-0.5)
            x = layer.feed_forward(own.after(own.out(attended, residual=x, real=real)), real)
        return x

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        layers, own = self.config.num_decoder_layers, is_packed(self.decoder.layers[0].attention.qkv.kernel)
        return encoder_decoder_state(layers, batch, input_length, max_positions, self._heads, self.dtype, own)

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        own, length, cross = is_packed(self.decoder.layers[0].cross.kv.kernel), inputs.shape[1], []
        compact = Compact.of(lengths, length) if own else None
        encoded = self.encode(inputs, lengths, compact)
        for layer in self.decoder.layers:
            fused = layer.cross.kv(encoded, norm=self.encoder.end, real=compact and compact.real)
            cross.append(Cache.of(compact.spread(fused, length) if compact else fused, self._heads, own))
        return {"lengths": lengths, "cross": cross}

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None, tree: Tree | None = None
    ) -> tuple[jax.Array, State]:
        config, steps, heads = self.config, tokens.shape[1], self._heads
        scale = config.head_dim**-0.5
        places = positions[:, None] + np.arange(steps) if tree is None else tree.depths
        x = self.decoder.begin(tokens, places, self.embedding)
        caches, place = [], where(state["self"][0], positions, steps, tree=tree)
        for layer, cross, cache in zip(self.decoder.layers, state["cross"], state["self"]):
            own = layer.attention
            attended, cache = attend_cache(own.qkv(x, norm=own.before), cache, place, heads, scale=scale)
            caches.append(cache)
            x = own.after(own.out(attended, residual=x))
            query = layer.cross.query(x, norm=layer.cross.before)
            attended = attend_input(query, cross, state["lengths"], heads, scale=scale)
            x = layer.feed_forward(layer.cross.after(layer.cross.out(attended, residual=x)))
        if at is not None:
            x = jnp.take_along_axis(x, at[:, None, None], axis=1)
        norm = self.decoder.end
        logits = tied_logits(x, self.embedding, norm) if config.tied else head_logits(x, self.head, norm)
        return logits + self.logits_bias[...] if config.logits_bias else logits, state | {"self": caches}

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

        Raises:
          ValueError: texts are longer than the model's positions.
        """
        longest, limit = max(decoder_tokens.shape[1], encoder_tokens.shape[1]), self.config.max_positions
        if longest > limit:
            raise ValueError(f"a text has {longest} positions; allowed: at most the model's {limit}")
        return encoder_decoder_logits(*nnx.split(self), decoder_tokens, encoder_tokens, encoder_lengths)
