"""Weights in another form than a plain array: as `decoding.kernels` holds them or, for XLA's products, in fewer bits.

They are packed or rounded once, when they are loaded, and nothing else is kept.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from decoding import kernels
from decoding.kernels import PackedWeight
from decoding.models.base import LanguageModel, Shape
from decoding.models.linear import RoundedWeight

# Of weights: rounded to a dtype or, "file", as they are stored.
FORMS = (*kernels.FLOATS, "file")
ROUNDED = ("bfloat16", "int8")  # those that XLA's products take too


class Packing:
    """Which parameters of a model are packed, and how: its products' weights; norms, biases and tables stay float32."""

    def __init__(self, shape: Shape, form: str):
        """
        Args:
          shape: of the model.
          form: one of FORMS.
        """
        self._form = form
        self._metadata = _metadata(shape)

    def place(self, path: str, value) -> PackedWeight | tuple[PackedWeight, ...] | jax.Array:
        """The parameter at a path, an array or `checkpoints.gguf.Blocks`, packed where products read it."""
        role, gated = (self._metadata[path].get(name) for name in ("role", "gated"))
        if not role:
            return jax.device_put(value.astype(np.float32), may_alias=False)
        if hasattr(value, "columns"):
            return self._pack_blocks(path, value.columns, gated)
        form = self._form
        if form == "file":
            form = "bfloat16" if value.dtype == ml_dtypes.bfloat16 else "float32"
        return kernels.pack(value.T if role == "table" else value, form, gated=bool(gated))

    def _pack_blocks(self, path: str, columns, gated: bool) -> PackedWeight | tuple[PackedWeight, ...]:
        """Neighbours of one kind are one weight: fewer products, each of more columns."""
        parts = []
        for kind, group in itertools.groupby(columns, key=lambda part: part[1]):
            values = [value for value, _ in group]
            if kind in kernels.BLOCKS:
                parts.append(kernels.pack_blocks(np.concatenate(values), kind, gated=gated))
            else:
                parts.append(kernels.pack(np.concatenate(values, axis=1), kind, gated=gated))
        if len(parts) == 1:
            return parts[0]
        if gated:
            raise ValueError(f"{path}: a gate stored as {' beside '.join(part.kind for part in parts)} is not supported")
        return tuple(parts)


def _metadata(shape: Shape) -> dict[str, dict]:
    """What is said of every parameter where it is made, by its path."""
    abstract = nnx.eval_shape(lambda: shape.build(rngs=nnx.Rngs(0), dtype=jnp.float32))
    leaves = nnx.to_flat_state(nnx.state(abstract))
    return {".".join(map(str, keys)): leaf.get_metadata() for keys, leaf in leaves}


class Rounding:
    """Which parameters of a model for XLA's products are held in fewer bits, and how: the same as of `Packing`."""

    def __init__(self, shape: Shape, form: str, dtype: str):
        """
        Args:
          shape: of the model.
          form: one of ROUNDED.
          dtype: the model's, "float32" or "bfloat16".
        """
        self._form, self._dtype = form, dtype
        self._roles = {path: metadata.get("role") for path, metadata in _metadata(shape).items()}

    def round(self, path: str, value):
        """The parameter at a path, NumPy's or a shape with perhaps a sharding."""
        role = self._roles[path]
        if not role:
            return value
        outputs = 1 if role == "product" else 0
        if isinstance(value, jax.ShapeDtypeStruct):
            return self._abstract(value, outputs)
        if self._form == "bfloat16":
            return RoundedWeight(value.astype(ml_dtypes.bfloat16), None, outputs, self._dtype)
        integers, scale = kernels.round_to_int8(value.T if outputs else value)
        return RoundedWeight(integers.T if outputs else integers, scale, outputs, self._dtype)

    def _abstract(self, value: jax.ShapeDtypeStruct, outputs: int) -> RoundedWeight:
        place = value.sharding
        values = jax.ShapeDtypeStruct(value.shape, self._form, sharding=place)
        if place is not None:
            place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec(place.spec[outputs]))
        scale = jax.ShapeDtypeStruct(value.shape[outputs : outputs + 1], jnp.float32, sharding=place)
        return RoundedWeight(values, scale if self._form == "int8" else None, outputs, self._dtype)


def round_abstract(model: LanguageModel, form: str) -> LanguageModel:
    """A model of shapes, perhaps on a mesh, as one that is loaded in this form."""
    rounding = Rounding(model.config, form, model.dtype.name)
    return replaced(model, rounding.round)


def replaced(model: LanguageModel, place: Callable[[str, Any], Any]) -> LanguageModel:
    """A model whose parameters are what `place` makes of a path and a value; those of `model` stay what they are."""
    graph, state = nnx.split(model)
    flat = [(keys, leaf.replace(place(".".join(map(str, keys)), leaf.get_value()))) for keys, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def pack_model(model: LanguageModel, form: str = "float32") -> LanguageModel:
    """A model, loaded as plain arrays or randomly initialised, with its weights packed; those of `model` stay what they are.

    Raises:
      ValueError: they are packed already.
    """
    if any(isinstance(leaf.get_value(), PackedWeight | tuple) for _, leaf in nnx.to_flat_state(nnx.state(model))):
        raise ValueError('the model is packed already; load it with weights="plain"')
    packing = Packing(model.config, form)
    return replaced(model, lambda path, value: packing.place(path, np.asarray(value)))
