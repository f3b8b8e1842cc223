"""Weights as `decoding.kernels` holds them: packed once, when they are loaded, and nothing else kept."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from decoding import kernels
from decoding.kernels import PackedWeight
from decoding.models.base import LanguageModel, Shape

# Of weights: rounded to a dtype or, "file", as they are stored.
FORMS = (*kernels.FLOATS, "file")


class Packing:
    """Which parameters of a model are packed, and how: its products' weights; norms, biases and tables stay float32."""

    def __init__(self, shape: Shape, form: str):
        """
        Args:
          shape: of the model.
          form: one of FORMS.
        """
        self._form = form
        abstract = nnx.eval_shape(lambda: shape.build(rngs=nnx.Rngs(0), dtype=jnp.float32))
        leaves = nnx.to_flat_state(nnx.state(abstract))
        self._metadata = {".".join(map(str, keys)): leaf.get_metadata() for keys, leaf in leaves}

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
        kinds = {kind for _, kind in columns}
        if gated or len(columns) == 1:
            if len(kinds) > 1:
                raise ValueError(f"{path}: a gate stored as {' beside '.join(sorted(kinds))} is not supported")
            (kind,) = kinds
            if kind in kernels.BLOCKS:
                return kernels.pack_blocks(np.concatenate([blocks for blocks, _ in columns]), kind, gated=gated)
            return kernels.pack(np.concatenate([values for values, _ in columns], axis=1), kind, gated=gated)
        packed = [kernels.pack_blocks(*part) if part[1] in kernels.BLOCKS else kernels.pack(*part) for part in columns]
        return tuple(packed)


def pack_model(model: LanguageModel, form: str = "float32") -> LanguageModel:
    """A model, loaded as plain arrays or randomly initialised, with its weights packed; those of `model` stay what they are.

    Raises:
      ValueError: they are packed already.
    """
    if any(isinstance(leaf.get_value(), PackedWeight | tuple) for _, leaf in nnx.to_flat_state(nnx.state(model))):
        raise ValueError('the model is packed already; load it with weights="plain"')
    packing = Packing(model.config, form)
    graph, state = nnx.split(model)
    flat = [
        (keys, leaf.replace(packing.place(".".join(map(str, keys)), np.asarray(leaf.get_value()))))
        for keys, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))
