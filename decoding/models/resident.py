"""Weights as `decoding.kernels` holds them: packed once, when they are loaded, and nothing else kept."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding import kernels
from decoding.kernels import PackedWeight
from decoding.models.base import LanguageModel, Shape


class Packing:
    """Which parameters of a model are packed, and how: its products' weights; norms, biases and tables stay as they are."""

    def __init__(self, shape: Shape, form: str):
        """
        Args:
          shape: of the model.
          form: of weights, one of `kernels.FLOATS`.
        """
        self._form = form
        abstract = nnx.eval_shape(lambda: shape.build(rngs=nnx.Rngs(0), dtype=jnp.float32))
        state = nnx.to_flat_state(nnx.state(abstract))
        self._roles = {".".join(map(str, keys)): leaf.get_metadata().get("role") for keys, leaf in state}
        self._gated = {
            ".".join(map(str, keys)): leaf.get_metadata().get("gated", False) for keys, leaf in state
        }

    def place(self, path: str, value: np.ndarray) -> PackedWeight | jax.Array:
        """The parameter at a path, packed where products read it."""
        role = self._roles[path]
        if role == "product":
            return kernels.pack(value, self._form, gated=self._gated[path])
        if role == "tied":
            return kernels.pack(value.T, self._form)
        return jax.device_put(value, may_alias=False)


def pack_model(model: LanguageModel, form: str = "float32") -> LanguageModel:
    """A model, loaded or randomly initialised, with its weights packed; those of `model` itself stay what they are."""
    packing = Packing(model.config, form)
    graph, state = nnx.split(model)
    flat = [
        (keys, leaf.replace(packing.place(".".join(map(str, keys)), np.asarray(leaf.get_value()))))
        for keys, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))
