"""Decoder-only transformers: GPT-2, GPT-NeoX, OPT, the paper's GPT-like pair, the Llama family, Gemma, LaMDA's shape.

One pre-norm block with a few choices, which `DecoderConfig` names: the norm (layer norm or RMS), where positions enter
(a learned table, rotary, or T5's relative bias), the feed-forward (plain or gated), how many heads share a key
(grouped-query attention), which projections have a bias, how far back each layer sees, and what is capped.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding import compilation
from decoding.models.attention import Cache, Compact, Heads, Where, attend_cache, where, with_moved_entries
from decoding.models.base import Shape, State, soft_cap
from decoding.models.linear import Linear, RowNorm, embed, head_logits, is_packed, tied_logits, weight
from decoding.models.tree import Tree


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al., 2104.09864) on halves of a head, as Llama has them.

    Attributes:
      theta: base of the frequencies.
      scaling: "none", "linear" (all frequencies divided by `factor`), "llama3" (low frequencies divided, high ones
        kept, a ramp between) or "factors" (each divided by its own of `factors`).
      factors: one per frequency, as GGUF files hold them.
      factor, low_frequency_factor, high_frequency_factor, original_positions: of the scaling.
      rotated: how many dimensions of a head rotate, 0 for all; where others stand still, `order` is how a head lies.
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192
    factors: tuple[float, ...] = ()
    rotated: int = 0

    def frequencies(self, head_dim: int) -> np.ndarray:
        """float32[head_dim / 2], radians per position."""
        width = self.rotated or head_dim
        base = 1.0 / self.theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
        if self.scaling == "linear":
            base = base / self.factor
        elif self.scaling == "llama3":
            turns = self.original_positions * base / (2 * math.pi)
            low, high = self.low_frequency_factor, self.high_frequency_factor
            keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
            base = base * (keep + (1 - keep) / self.factor)
        elif self.scaling == "factors":
            base = base / np.asarray(self.factors, np.float64)
        still = max(head_dim // 2 - len(base), 0) if self.rotated else 0
        return np.pad(base, (0, still)).astype(np.float32)

    def order(self, head_dim: int) -> np.ndarray:
        """int[head_dim]: of each of our dimensions the one of checkpoints, where those that rotate come first, half and half.

        Here every dimension of a head's first half has its partner in the second, and those that stand still theirs too.
        """
        turning = -(-(self.rotated or head_dim) // 2)
        still = head_dim // 2 - turning
        turned, rest = np.arange(2 * turning).reshape(2, -1), 2 * turning + np.arange(2 * still).reshape(2, -1)
        return np.concatenate([turned, rest], axis=1).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(Shape):
    """Shape of a decoder-only model.

    Attributes:
      norm: "layer" (with bias) or "rms".
      position: "learned" (a table of `max_positions` rows), "rotary" or "relative" (T5's buckets).
      max_positions: of inputs and outputs together: beyond it there is no row of the table, or rotary positions that were
        never trained; 0 for no limit.
      activation: of the feed-forward: "relu", "gelu", "gelu_new" or "silu".
      gated: two input projections, `act(gate x) * up x`.
      qkv_bias, out_bias, feed_forward_bias: which projections have one.
      qk_norm: RMS norm of every query and key head (Qwen3).
      scale_attention: divide scores by sqrt(head_dim); T5's convention, which LaMDA follows, does not.
      scale_width: what they are divided by the square root of in place of head_dim; 0 for head_dim.
      tied: logits come from the input embedding.
      unit_offset: RMS norms multiply by 1 + their parameter, and embeddings are multiplied by sqrt(d_model) (Gemma).
      post_norms: what attention and feed-forward add is normed too.
      parallel: the feed-forward reads what attention does, and not its result (GPT-NeoX).
      attention_cap, logits_cap: of scores and logits, see `base.soft_cap`; 0 for none.
      windows: of each layer, how many positions a position sees, the last ones; 0 for all. Empty where all layers see all.
      local_rotary: of layers with a window; None for the same.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    norm: str
    position: str
    activation: str
    gated: bool
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    feed_forward_bias: bool = False
    qk_norm: bool = False
    scale_attention: bool = True
    scale_width: float = 0.0
    unit_offset: bool = False
    post_norms: bool = False
    parallel: bool = False
    attention_cap: float = 0.0
    logits_cap: float = 0.0
    windows: tuple[int, ...] = ()
    local_rotary: Rotary | None = None
    norm_epsilon: float = 1e-6
    max_positions: int = 0
    rotary: Rotary = Rotary()
    relative_buckets: int = 32
    relative_max_distance: int = 128

    encoder_decoder = False

    def build(self, *, rngs: nnx.Rngs, dtype) -> "DecoderOnly":
        return DecoderOnly(self, rngs=rngs, dtype=dtype)

    def check(self) -> None:
        super().check()
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads cannot share {self.num_kv_heads} key heads evenly")
        if len(self.windows) not in (0, self.num_layers):
            raise ValueError(f"{len(self.windows)} layers have a kind of attention, and there are {self.num_layers}")
        if self.position != "rotary":
            return
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; allowed with rotary positions: even ones")
        for rotary in filter(None, (self.rotary, self.local_rotary)):
            try:
                with np.errstate(all="ignore"):
                    frequencies = rotary.frequencies(self.head_dim)
            except (ArithmeticError, TypeError) as error:
                raise ValueError(f"the rotary positions cannot be used: {error}") from error
            if frequencies.shape != (self.head_dim // 2,) or not np.isfinite(frequencies).all():
                raise ValueError(f"{rotary!r:.300} gives no finite frequency for each pair of {self.head_dim}")

    def divided(self, ways: int) -> "DecoderConfig":
        """Keys' heads are repeated until there is one for every device."""
        split = super().divided(ways)
        return dataclasses.replace(split, num_kv_heads=math.lcm(self.num_kv_heads, split.attention_shards))

    @property
    def decoder_layers(self) -> int:
        return self.num_layers

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by."""
        return (self.scale_width or self.head_dim) ** -0.5 if self.scale_attention else 1.0

    def window(self, layer: int) -> int:
        """How many positions a position sees there; 0 for all."""
        return self.windows[layer] if self.windows else 0

    def frequencies(self, window: int) -> np.ndarray | None:
        """Of the rotary positions of layers with this window; None where positions are not rotary."""
        rotary = self.local_rotary if window and self.local_rotary else self.rotary
        return rotary.frequencies(self.head_dim) if self.position == "rotary" else None

    @property
    def operations_per_token(self) -> float:
        attention = 2 * self.d_model * self.head_dim * (self.num_heads + self.num_kv_heads)
        feed_forward = (3 if self.gated else 2) * self.d_model * self.d_ff
        return 2.0 * (self.num_layers * (attention + feed_forward) + self.d_model * self.head_size)

    def read_by_step(self, path: str) -> bool:
        return path != "positions" and (path != "embedding" or self.tied)


class Norm(nnx.Module):
    """Layer norm with bias, or RMS norm, in float32; of a head's width, where that is given."""

    def __init__(self, config: DecoderConfig, dtype, head_dim: int = 0):
        self.kind, self.epsilon = "rms" if head_dim else config.norm, config.norm_epsilon
        self.offset = float(config.unit_offset)
        width = head_dim or config.d_model
        self.scale = nnx.Param(jnp.full((width,), 1 - self.offset, dtype))
        if self.kind == "layer":
            self.bias = nnx.Param(jnp.zeros((width,), dtype))

    @property
    def row_norm(self) -> RowNorm:
        return RowNorm(self.scale, self.bias if self.kind == "layer" else None, self.epsilon, self.offset)


class Block(nnx.Module):
    """Attention and feed-forward, each with its norm before, perhaps one after, and its residual around."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype):
        self.config = config
        width, heads, kv_heads, dim = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        fans = 2 if config.gated else 1
        self.attention_norm = Norm(config, dtype)
        self.qkv = Linear(
            rngs,
            width,
            (heads + 2 * kv_heads) * dim,
            bias=config.qkv_bias,
            dtype=dtype,
            axes=(None, "heads"),
            parts=((heads, dim), (kv_heads, dim), (kv_heads, dim)),
        )
        self.out = Linear(rngs, heads * dim, width, bias=config.out_bias, dtype=dtype, axes=("heads", None))
        if config.qk_norm:
            self.query_norm = Norm(config, dtype, dim)
            self.key_norm = Norm(config, dtype, dim)
        if config.post_norms:
            self.after_attention = Norm(config, dtype)
            self.after_feed_forward = Norm(config, dtype)
        self.feed_forward_norm = Norm(config, dtype)
        self.wi = Linear(
            rngs,
            width,
            fans * config.d_ff,
            bias=config.feed_forward_bias,
            dtype=dtype,
            axes=(None, "feed_forward"),
            parts=((config.d_ff, 1),) * fans,
            gated=config.gated,
        )
        self.wo = Linear(
            rngs, config.d_ff, width, bias=config.feed_forward_bias, dtype=dtype, axes=("feed_forward", None)
        )

    def __call__(self, x: jax.Array, cache: Cache, place: Where) -> tuple[jax.Array, Cache]:
        """x [B, S, d_model], or compact, at positions `place`: the block's output and the cache with them."""
        config = self.config
        norms = {}
        if config.qk_norm:
            scales = dict(query_norm=self.query_norm.row_norm.factor, key_norm=self.key_norm.row_norm.factor)
            norms = dict(**scales, epsilon=config.norm_epsilon)
        heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim, config.attention_shards)
        real = place.real
        qkv = self.qkv(x, norm=self.attention_norm.row_norm, real=real)
        attended, cache = attend_cache(
            qkv, cache, place, heads, scale=config.score_scale, cap=config.attention_cap, **norms
        )
        if config.post_norms:
            x = read = x + self.after_attention.row_norm(self.out(attended, real=real))
        else:
            read, x = x, self.out(attended, residual=x, real=real)
            read = read if config.parallel else x
        hidden = self.wi(
            read,
            norm=self.feed_forward_norm.row_norm,
            activation=config.activation,
            gate_pieces=config.feed_forward_shards if config.gated else 0,
            real=real,
        )
        if config.post_norms:
            return x + self.after_feed_forward.row_norm(self.wo(hidden, real=real)), cache
        return self.wo(hidden, residual=x, real=real), cache


class DecoderOnly(nnx.Module):
    """A decoder-only model that meets `decoding.models.base.LanguageModel`.

    State: `{"self": [Cache of T positions] * layers}`, see `decoding.models.attention`.
    """

    encoder_decoder = False

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.vocab_size, self.start_id, self.eos_ids = config.vocab_size, config.start_id, config.eos_ids
        self.max_positions = config.max_positions
        self.eos_id, self.forced_ids = config.eos_ids[0], (config.forced_bos_id, config.forced_eos_id)
        new = functools.partial(weight, rngs, fan_in=config.d_model, dtype=dtype)
        self.embedding = new(config.vocab_size, config.d_model, axes=("vocabulary", None), role="table")
        if config.position == "learned":
            self.positions = new(config.max_positions, config.d_model)
        if config.position == "relative":
            self.relative = new(config.relative_buckets, config.num_heads, axes=("heads",))
        self.blocks = nnx.List([Block(config, rngs, dtype) for _ in range(config.num_layers)])
        self.norm = Norm(config, dtype)
        if not config.tied:
            self.head = new(config.d_model, config.head_size, axes=("vocabulary",), role="product")

    def init_state(self, batch: int, input_length: int, max_positions: int) -> State:
        config, dtype = self.config, self.dtype
        length = input_length + max_positions
        heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim)
        return {"self": [Cache.zeros(batch, heads, length, dtype, is_packed(block.qkv.kernel)) for block in self.blocks]}

    def prefill(self, inputs: jax.Array, lengths: jax.Array) -> State:
        """Keys and values of a prompt.  What lies beyond its length is written over before it is attended to."""
        batch, length = inputs.shape
        compact = Compact.of(lengths, length) if is_packed(self.blocks[0].qkv.kernel) else None
        return self._run(inputs, jnp.zeros((batch,), jnp.int32), self.init_state(batch, length, 0), compact)[1]

    def step(
        self, tokens: jax.Array, positions: jax.Array, state: State, *, at: jax.Array | None = None, tree: Tree | None = None
    ) -> tuple[jax.Array, State]:
        x, state = self._run(tokens, positions, state, tree=tree)
        if at is not None:
            x = jnp.take_along_axis(x, at[:, None, None], axis=1)
        norm = self.norm.row_norm
        logits = tied_logits(x, self.embedding, norm) if self.config.tied else head_logits(x, self.head, norm)
        return soft_cap(logits, self.config.logits_cap), state

    def _run(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        state: State,
        compact: Compact | None = None,
        tree: Tree | None = None,
    ) -> tuple[jax.Array, State]:
        """Blocks over int32[B, S] tokens from `positions` on: [B, S, d_model] before the last norm, and the state.

        Given `compact`, the tokens are inputs without what it leaves out, and the first result is [B S, d_model].
        """
        config, steps = self.config, tokens.shape[1]
        # Rows that are done may stand anywhere; only places that are never read can be out of range.
        places = positions[:, None] + np.arange(steps) if tree is None else tree.depths
        places = jnp.minimum(places, max(config.max_positions - 1, 0))
        if compact:
            tokens, places = (array.reshape(-1)[compact.order] for array in (tokens, places))
        x = embed(tokens, self.embedding)
        x = x * config.d_model**0.5 if config.unit_offset else x
        if config.position == "learned":
            x = x + embed(places, self.positions)
        caches, kinds = [], {
            window: where(
                state["self"][0],
                positions,
                steps,
                table=self.relative[...] if config.position == "relative" else None,
                max_distance=config.relative_max_distance,
                frequencies=config.frequencies(window),
                compact=compact,
                tree=tree,
                window=window,
            )
            for window in dict.fromkeys(map(config.window, range(config.num_layers)))
        }
        for layer, (block, cache) in enumerate(zip(self.blocks, state["self"])):
            x, cache = block(x, cache, kinds[config.window(layer)])
            caches.append(cache)
        return x, {"self": caches}

    def move(self, state: State, starts: jax.Array, order: jax.Array, size: int) -> State:
        return with_moved_entries(state, starts, order, size)

    def logits(self, decoder_tokens, encoder_tokens=None, encoder_lengths=None) -> jax.Array:
        """Teacher-forced logits.

        Args:
          decoder_tokens: int32[B, T].
          encoder_tokens, encoder_lengths: must be None; the text so far is part of `decoder_tokens`.

        Returns:
          float32[B, T, V]; `[b, t]` is the distribution of the token after `decoder_tokens[b, :t + 1]`.

        Raises:
          ValueError: something is given for an encoder, or the text is longer than the model's positions.
        """
        if encoder_tokens is not None or encoder_lengths is not None:
            raise ValueError("a decoder-only model has no encoder; put the input in front of decoder_tokens")
        length, limit = decoder_tokens.shape[1], self.config.max_positions
        if limit and length > limit:
            raise ValueError(f"decoder_tokens has {length} positions; allowed: at most the model's {limit}")
        return _teacher_forced(*nnx.split(self), decoder_tokens)


@functools.partial(compilation.jit, static_argnums=0)
def _teacher_forced(graph, params, tokens):
    model = nnx.merge(graph, params)
    batch, length = tokens.shape
    return model.step(tokens, jnp.zeros((batch,), jnp.int32), model.init_state(batch, length, 0))[0]
