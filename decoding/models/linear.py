"""The one door of products with weights: every projection, embedding and head of every model goes through here.

A weight is an `nnx.Param`; what it holds is known to this module alone.  Everything else takes widths from the model's
config, so that a weight may be held in another form than a plain array.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from decoding import kernels
from decoding.kernels import PackedWeight, logits
from decoding.models.base import ACTIVATIONS, rms_norm, split_fused


def weight(
    rngs: nnx.Rngs,
    *shape: int,
    fan_in: int,
    dtype,
    axes: tuple[str | None, ...] = (),
    parts: tuple[tuple[int, int], ...] = (),
    role: str = "",
    gated: bool = False,
) -> nnx.Param:
    """A randomly initialised parameter of standard deviation fan_in ** -0.5.

    Args:
      role: "product" where `project` or `head_logits` reads it, "table" where `embed` and perhaps `tied_logits` do; only
        these are packed, see `decoding.models.resident`.
      gated: whether its columns are a gate's and as many more.
      axes: logical axes of the last axes of the shape, see `decoding.sharding.RULES`; others are whole on every device.
      parts: where the columns are fused of several projections, (units, columns of a unit) of each: heads and their
        width, or columns and 1.
    """
    value = (jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5).astype(dtype)
    return nnx.Param(value, axes=axes, parts=parts, role=role, gated=gated)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["outputs", "dtype"])
@dataclasses.dataclass(frozen=True)
class RoundedWeight:
    """A weight that is held in fewer bits than it is computed in, for XLA's products, which widen it as they read it.

    Attributes:
      values: int8 or bfloat16[in, out], or [N, d] of a table.
      scale: float32[outputs], what a unit of int8 is worth; None of bfloat16.
      outputs: the axis of `values` that has one scale each: a product's columns, a table's rows.
      dtype: name of the model's, which embeddings have.
    """

    values: jax.Array
    scale: jax.Array | None
    outputs: int
    dtype: str

    def product(self, axes: str, x: jax.Array) -> jax.Array:
        """The einsum of x and the weight, whose outputs are the last axis: float32."""
        result = jnp.einsum(axes, x, self.values.astype(x.dtype), preferred_element_type=jnp.float32)
        return result if self.scale is None else result * self.scale

    def rows(self, ids: jax.Array) -> jax.Array:
        """Rows of a table, in `dtype`."""
        rows = self.values[ids]
        if self.scale is not None:
            rows = rows.astype(jnp.float32) * self.scale[ids][..., None]
        return rows.astype(self.dtype)


class RowNorm(NamedTuple):
    """A norm over the last axis, before a projection.

    Attributes:
      scale: of the features.
      bias: added after it, which makes it a layer norm; None for an RMS norm.
      epsilon: added to the variance or mean square.
      offset: added to the scale.
    """

    scale: nnx.Param
    bias: nnx.Param | None
    epsilon: float
    offset: float = 0.0

    @property
    def factor(self) -> jax.Array:
        """What features are multiplied by."""
        scale = self.scale[...]
        return scale.astype(jnp.float32) + self.offset if self.offset else scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computed in float32, returned in x's dtype."""
        if logits.used() and x.dtype == jnp.float32:
            return logits.normalize(x, *_ends(self))
        if self.bias is None:
            return rms_norm(x, self.factor, self.epsilon)
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
        normed = centred * inverse * self.factor.astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return normed.astype(x.dtype)


def project(
    x: jax.Array,
    weight: nnx.Param,
    *,
    norm: RowNorm | None = None,
    bias: nnx.Param | None = None,
    activation: str | None = None,
    gate_pieces: int = 0,
    residual: jax.Array | None = None,
    real: jax.Array | None = None,
) -> jax.Array:
    """x [..., in] times a weight [in, out], with what comes before and after it: [..., out] in x's dtype.

    Args:
      norm: of x.
      bias: [out].
      activation: a name in ACTIVATIONS.
      gate_pieces: not 0 where the columns are a gate's and as many more, in so many pieces (`split_fused`): the result is
        activation(gate) * rest.
      residual: added last.
      real: int32[], how many rows of x, its leading axes taken together, are wanted; others are not computed by packed
        weights.
    """
    value = weight.get_value()
    if isinstance(value, tuple):  # packed, in several forms side by side
        parts = jnp.concatenate([kernels.product(x, part, norm=_ends(norm), real=real) for part in value], axis=-1)
        return parts if bias is None else parts + bias[...]
    if isinstance(value, PackedWeight):
        return kernels.product(
            x,
            value,
            norm=_ends(norm),
            bias=None if bias is None else bias[...],
            activation=activation,
            residual=residual,
            real=real,
        )
    x = x if norm is None else norm(x)
    x = value.product("...i,io->...o", x).astype(x.dtype) if isinstance(value, RoundedWeight) else _times(x, value)
    if bias is not None:
        x = x + bias[...]
    if gate_pieces:
        gate, rest = split_fused(x, (x.shape[-1] // 2,) * 2, gate_pieces)
        x = ACTIVATIONS[activation](gate) * rest
    elif activation:
        x = ACTIVATIONS[activation](x)
    return x if residual is None else residual + x


def _times(x: jax.Array, value: jax.Array) -> jax.Array:
    """x [..., in] @ value [in, out]; bfloat16 weights of float32 features, which training has, are multiplied in bfloat16."""
    return _mixed(x, value) if x.dtype == jnp.float32 and value.dtype == jnp.bfloat16 else x @ value


@jax.custom_vjp
def _mixed(x: jax.Array, value: jax.Array) -> jax.Array:
    """Factors in bfloat16, sums in float32, in both directions: what matrix units do at several times float32's rate."""
    return jnp.matmul(x.astype(jnp.bfloat16), value, preferred_element_type=jnp.float32)


def _mixed_forward(x, value):
    x = x.astype(jnp.bfloat16)
    return _mixed(x, value), (x, value)


def _mixed_backward(kept, gradient):
    x, value = kept
    rows, gradient = x.reshape(-1, x.shape[-1]), gradient.astype(jnp.bfloat16)
    return _mixed(gradient, value.T), _mixed(rows.T, gradient.reshape(-1, value.shape[1])).astype(value.dtype)


_mixed.defvjp(_mixed_forward, _mixed_backward)


def _ends(norm: RowNorm | None) -> tuple | None:
    return norm and (norm.factor, None if norm.bias is None else norm.bias[...], norm.epsilon)


def embed(tokens: jax.Array, table: nnx.Param) -> jax.Array:
    """Rows of a table [N, d]: int32[...] -> [..., d] in the table's dtype, float32 where it is packed."""
    value = table.get_value()
    if isinstance(value, RoundedWeight):
        return value.rows(tokens)
    return kernels.rows(value, tokens) if isinstance(value, PackedWeight) else value[tokens]


def head_logits(x: jax.Array, weight: nnx.Param, norm: RowNorm | None, scale: float = 1.0) -> jax.Array:
    """Logits by a head of its own: x [B, S, d], normed and scaled if at all, and a weight [d, V] -> float32[B, S, V]."""
    return _logits(x, weight, norm, scale, tied=False)


def tied_logits(x: jax.Array, table: nnx.Param, norm: RowNorm | None, scale: float = 1.0) -> jax.Array:
    """Logits by the input embedding: x [B, S, d], normed and scaled if at all, and a table [V, d] -> float32[B, S, V]."""
    return _logits(x, table, norm, scale, tied=True)


def _logits(x, weight, norm, scale, *, tied: bool) -> jax.Array:
    value = weight.get_value()
    if isinstance(value, PackedWeight) and norm is not None:
        gain, shift, epsilon = _ends(norm)
        scaled = gain * scale, None if shift is None else shift * scale, epsilon
        return kernels.product(x, value, norm=scaled)
    x = x if norm is None else norm(x)
    x = x if scale == 1.0 else x * scale
    if isinstance(value, PackedWeight):
        return kernels.product(x, value)
    axes = "bsd,vd->bsv" if tied else "bsd,dv->bsv"
    if isinstance(value, RoundedWeight):
        return value.product(axes, x)
    if x.dtype != value.dtype:
        return _times(x, value.T if tied else value)
    return jnp.einsum(axes, x, value, preferred_element_type=jnp.float32)


def is_packed(weight: nnx.Param) -> bool:
    """Whether products with it are those of `decoding.kernels`."""
    return isinstance(weight.get_value(), PackedWeight | tuple)


class Linear(nnx.Module):
    """x @ kernel [+ bias]; `axes`, `parts` and `gated` as of `weight`."""

    def __init__(self, rngs: nnx.Rngs, into: int, out: int, *, bias: bool, dtype, axes, parts=(), gated: bool = False):
        metadata = dict(axes=axes, parts=parts, role="product", gated=gated)
        self.kernel = weight(rngs, into, out, fan_in=into, dtype=dtype, **metadata)
        if bias:
            self.bias = nnx.Param(jnp.zeros((out,), dtype), axes=axes[-1:], parts=parts)
        self.has_bias = bias

    def __call__(self, x: jax.Array, **around) -> jax.Array:
        """`project`, with its bias and what else is `around` it."""
        return project(x, self.kernel, bias=self.bias if self.has_bias else None, **around)
