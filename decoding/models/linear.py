"""The one door of products with weights: every projection, embedding and head of every model goes through here.

A weight is an `nnx.Param`; what it holds is known to this module alone.  Everything else takes widths from the model's
config, so that a weight may be held in another form than a plain array.
"""

import jax
import jax.numpy as jnp
from flax import nnx


def weight(
    rngs: nnx.Rngs,
    *shape: int,
    fan_in: int,
    dtype,
    axes: tuple[str | None, ...] = (),
    parts: tuple[tuple[int, int], ...] = (),
) -> nnx.Param:
    """A randomly initialised parameter of standard deviation fan_in ** -0.5.

    Args:
      axes: logical axes of the last axes of the shape, see `decoding.sharding.RULES`; others are whole on every device.
      parts: where the columns are fused of several projections, (units, columns of a unit) of each: heads and their
        width, or columns and 1.
    """
    value = (jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5).astype(dtype)
    return nnx.Param(value, axes=axes, parts=parts)


def project(x: jax.Array, weight: nnx.Param) -> jax.Array:
    """x [..., in] times a weight [in, out]: [..., out] in x's dtype."""
    return x @ weight.get_value()


def embed(tokens: jax.Array, table: nnx.Param) -> jax.Array:
    """Rows of a table [N, d]: int32[...] -> [..., d] in the table's dtype."""
    return table.get_value()[tokens]


def head_logits(x: jax.Array, weight: nnx.Param) -> jax.Array:
    """Logits by a head of its own: x [B, S, d] and a weight [d, V] -> float32[B, S, V]."""
    return jnp.einsum("bsd,dv->bsv", x, weight.get_value(), preferred_element_type=jnp.float32)


def tied_logits(x: jax.Array, table: nnx.Param) -> jax.Array:
    """Logits by the input embedding: x [B, S, d] and a table [V, d] -> float32[B, S, V]."""
    return jnp.einsum("bsd,vd->bsv", x, table.get_value(), preferred_element_type=jnp.float32)


class Linear(nnx.Module):
    """x @ kernel [+ bias]; `axes` and `parts` as of `weight`."""

    def __init__(self, rngs: nnx.Rngs, into: int, out: int, *, bias: bool, dtype, axes, parts=()):
        self.kernel = weight(rngs, into, out, fan_in=into, dtype=dtype, axes=axes, parts=parts)
        if bias:
            self.bias = nnx.Param(jnp.zeros((out,), dtype), axes=axes[-1:], parts=parts)
        self.has_bias = bias

    def __call__(self, x: jax.Array) -> jax.Array:
        x = project(x, self.kernel)
        return x + self.bias[...] if self.has_bias else x
