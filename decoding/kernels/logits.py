"""Rows over the vocabulary on processors, called through `jax.ffi`: logits.cc.

Each result is of one row, whose sums run in one order, so that its bits depend neither on other rows nor on how many there
are. `decoding.sampling` is the door to these functions; they are used inside `used_by`.
"""

import contextvars
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from decoding.kernels import available, optional, targets

_used = contextvars.ContextVar("used", default=False)


def used() -> bool:
    """Whether what is being traced computes its rows here."""
    return _used.get()


def used_by(function: Callable) -> Callable:
    """A function that, where it is traced for this machine's processor, computes its rows over the vocabulary here.

    It has no derivatives then, and is for programs of one device: XLA would gather the rows of a mesh for every call.
    """

    def inside(*args, **kwargs):
        own = jax.default_backend() == "cpu" and jax.config.jax_threefry_partitionable and available() is not None
        token = _used.set(own)
        try:
            return function(*args, **kwargs)
        finally:
            _used.reset(token)

    # What the program is called, in traces and in JAX's cache.
    inside.__name__ = getattr(function, "func", function).__name__
    return inside


def _call(name: str, shape, dtype, *operands: jax.Array, **static):
    result = jax.ShapeDtypeStruct(shape, dtype)
    return jax.ffi.ffi_call(targets()[name], result, vmap_method="broadcast_all")(*operands, **static)


def log_normalizer(logits: jax.Array) -> jax.Array:
    """log Σ e^x over the last axis: float32[..., V] -> float32[...]; not finite for a row of no distribution."""
    return _call("log_normalizer", logits.shape[:-1], jnp.float32, logits)


def standardize(logits: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """As `decoding.sampling.standardize`."""
    static = dict(
        temperature=np.float32(min(temperature, float(np.finfo(np.float32).max))),
        top_k=np.int32(min(top_k, logits.shape[-1])),
        top_p=np.float32(top_p),
    )
    return _call("standardize", logits.shape, jnp.float32, logits, **static)


def overlap(p: jax.Array, q: jax.Array, lenience: float) -> jax.Array:
    """Σ min(p / lenience, q): float32[B, M, V] and float32[B, N, V], N at most M, of whose first N rows -> float32[B, N]."""
    return _call("overlap", q.shape[:-1], jnp.float32, p, q, lenience=np.float32(lenience))


def residual(p: jax.Array, q: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """max(scale p - q, 0) and its sum: float32[..., V] twice and float32[...] -> float32[..., V] and float32[...]."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (p.shape, p.shape[:-1])]
    return tuple(jax.ffi.ffi_call(targets()["residual"], results, vmap_method="broadcast_all")(p, q, scale))


def draw(weights: jax.Array, times: jax.Array) -> jax.Array:
    """As `decoding.sampling.draw`."""
    return _call("draw", weights.shape[:-1], jnp.int32, weights, times)


def draw_coupled(weights: jax.Array, keys: jax.Array) -> jax.Array:
    """The winner of a race of all weights: float32[..., V] -> int32[...].

    Args:
      keys: uint32[..., 2], whose random bits the times of the V weights are made from.
    """
    return _call("draw_coupled", weights.shape[:-1], jnp.int32, weights, keys)


def times(words: jax.Array) -> jax.Array:
    """Exponential times of random words: uint32[...] -> float32[...]."""
    return _call("times", words.shape, jnp.float32, words)


def argmax(values: jax.Array) -> jax.Array:
    """As `decoding.sampling.argmax`."""
    return _call("argmax", values.shape[:-1], jnp.int32, values)


def normalize(x: jax.Array, scale: jax.Array, shift: jax.Array | None, epsilon: float) -> jax.Array:
    """RMS norm or, with a shift, layer norm over the last axis: float32[..., d] -> float32[..., d]."""
    operands = x, scale.astype(jnp.float32), optional(shift)
    return _call("normalize", x.shape, jnp.float32, *operands, epsilon=np.float32(epsilon))
