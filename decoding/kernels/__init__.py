"""Products of few or many rows with a resident weight on processors, called through `jax.ffi`.

XLA packs a weight anew for every product of more than one row, so that a call over four positions costs two to three
times one over a single position. Here a weight is packed once, when it is loaded, and read once for all rows of a call.
A row's sum runs over its inputs in one order, so that its bits depend on no other row (product.cc).

Where the library cannot be built `available()` is None, and XLA's products are used.
"""

import ctypes
import functools
import os
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

from decoding.kernels import build
from decoding.kernels.packing import BLOCKS, FLOATS, KINDS, PackedWeight, pack, pack_blocks, round_to_int8

__all__ = [
    "ACTIVATIONS", "BLOCKS", "FLOATS", "KINDS", "PackedWeight",
    "arithmetic", "available", "instruction_sets", "pack", "pack_blocks", "product", "round_to_int8", "rows", "select",
]  # fmt: skip

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")  # in the order of `Activation` in product.h
VARIABLE = "SPECBEAM_KERNELS"
_CALLS = (
    *("product", "columns", "normalize", "attend_cache", "attend_input", "attend_itself"),
    *("log_normalizer", "standardize", "overlap", "residual", "draw", "draw_coupled", "times", "argmax"),
)
_lock = threading.Lock()


def available() -> str | None:
    """The instruction set of the products ("avx512_amx", "avx512_vnni", "avx512", "avx2", "neon" or
    "plain"), or None without them.

    The first call builds the library where it is not yet built, and says on stderr where that fails. The environment
    variable SPECBEAM_KERNELS chooses an instruction set, or "off".

    Raises:
      ValueError: SPECBEAM_KERNELS names an instruction set that this machine does not have.
    """
    library = _library()
    return library and library.specbeam_select(b"").decode()


def instruction_sets() -> tuple[str, ...]:
    """Those that this machine has, the best first; empty where `available()` is None."""
    library, names = _library(), []
    while library and (name := library.specbeam_target(len(names))):
        names.append(name.decode())
    return tuple(names)


def select(instruction_set: str) -> None:
    """Makes all later products of this process, compiled programs included, use an instruction set.

    Raises:
      ValueError: this machine does not have it.
    """
    _select(_library(), instruction_set)


def arithmetic(kind: str) -> str:
    """How products with a weight of this kind are summed: "float32", or "int32" over activations rounded to int8 by row.

    Blocks of a file are float32's too where VNNI sums them in integers, which are as fine (blocks.h).
    """
    return "int32" if kind == "int8" and _library().specbeam_integer_sums() else "float32"


def product(
    x: jax.Array,
    weight: PackedWeight,
    *,
    norm: tuple[jax.Array, jax.Array | None, float] | None = None,
    bias: jax.Array | None = None,
    activation: str | None = None,
    residual: jax.Array | None = None,
    real: jax.Array | None = None,
) -> jax.Array:
    """x @ weight, float32, with what comes before and after it.

    Args:
      x: [..., inputs]; computed in float32.
      weight: packed on the same processor.
      norm: of the rows of x first: scale [inputs], shift [inputs] or None, and epsilon. RMS norm without a shift, layer norm
        with one.
      bias: [outputs], added.
      activation: one of ACTIVATIONS, of the sum with its bias. Of a gated weight, of its first half's, which is then
        multiplied by the second half's.
      residual: [..., outputs], added last.
      real: int32[], how many rows of x, its leading axes taken together, are wanted; results of the others are zeros.

    Returns:
      float32[..., outputs], or half as many of a gated weight.
    """
    if x.shape[-1] != weight.inputs:
        raise ValueError(f"x has {x.shape[-1]} features (shape {x.shape}); the weight takes {weight.inputs}")
    lead, width = x.shape[:-1], weight.outputs // (2 if weight.gated else 1)
    flat = x.reshape(-1, weight.inputs).astype(jnp.float32)
    real = np.int32(flat.shape[0]) if real is None else jnp.asarray(real, jnp.int32)
    scale, shift, epsilon = norm or (None, None, 0.0)
    residual = None if residual is None else residual.reshape(-1, width)
    result = jax.ShapeDtypeStruct((flat.shape[0], width), jnp.float32)
    call = jax.ffi.ffi_call(targets()["product"], result, vmap_method="sequential")
    static = dict(
        kind=np.int32(KINDS.index(weight.kind)),
        epsilon=np.float32(epsilon),
        activation=np.int32(ACTIVATIONS.index(activation) + 1 if activation else 0),
        gated=weight.gated,
    )
    ends = [optional(array) for array in (scale, shift, bias, residual)]
    return call(flat, weight.words, real, *ends, **static).reshape(*lead, width)


def optional(array: jax.Array | None) -> jax.Array | np.ndarray:
    """An operand that may be missing, for a custom call: float32, without elements where there is none.

    Such a one is NumPy's, which tracing takes as it is; to trace JAX's took a third of all the time of a deep model's programs.
    """
    return np.zeros((0, 0), np.float32) if array is None else array.astype(jnp.float32)


def rows(weight: PackedWeight, ids: jax.Array) -> jax.Array:
    """Columns of the weight as rows: what a table of embeddings, which is the transposed weight of a tied head, is asked for.

    Args:
      weight: of shape [features, vocabulary].
      ids: int32[...]; ids outside the vocabulary give its first or last row.

    Returns:
      float32[..., features].
    """
    flat = ids.reshape(-1).astype(jnp.int32)
    result = jax.ShapeDtypeStruct((flat.shape[0], weight.inputs), jnp.float32)
    call = jax.ffi.ffi_call(targets()["columns"], result, vmap_method="sequential")
    static = dict(kind=np.int32(KINDS.index(weight.kind)), outputs=np.int32(weight.outputs))
    return call(weight.words, flat, **static).reshape(*ids.shape, weight.inputs)


def _library() -> ctypes.CDLL | None:
    with _lock:
        return _load()


@functools.cache
def _load() -> ctypes.CDLL | None:
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off":
        return None
    try:
        library = build.load()
    except build.BuildError as error:
        print(f"products of the processor's own are not used: {error}", file=sys.stderr)
        return None
    for function in (library.specbeam_select, library.specbeam_target):
        function.restype = ctypes.c_char_p
    if wanted:
        _select(library, wanted)
    return library


def _select(library: ctypes.CDLL | None, instruction_set: str) -> None:
    if library is None or not library.specbeam_select(instruction_set.encode()):
        raise ValueError(f"{VARIABLE} is {instruction_set!r}, which is no instruction set of this machine")


@functools.cache
def targets() -> dict[str, str]:
    """Names of the registered custom calls. A source's own: a program kept from another version must not call this one."""
    library = _library()
    if library is None:
        raise RuntimeError("the products are not available on this machine; ask `available()` before packing")
    version = build.sources_key()
    names = {name: f"specbeam_{name}_{version}" for name in _CALLS}
    for name, registered in names.items():
        handler = jax.ffi.pycapsule(getattr(library, f"specbeam_{name}"))
        jax.ffi.register_ffi_target(registered, handler, platform="cpu")
    return names
