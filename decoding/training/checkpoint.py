"""A training's state as one safetensors file, so that it goes on from where it was, to equal weights."""

import json
from collections.abc import Mapping

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from decoding.checkpoints.storage import CheckpointError
from decoding.training.trainer import TrainState

_ABOUT = "about"


def pack(state: TrainState, about: Mapping) -> bytes:
    """A state, and what belongs to it as JSON values."""
    leaves, _ = jax.tree.flatten(jax.device_get(state))
    arrays = {f"{i:05d}": np.array(leaf, order="C") for i, leaf in enumerate(leaves)}
    return save({**arrays, _ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)})


def unpack(data: bytes, like: TrainState, shown: str) -> tuple[TrainState, dict]:
    """The inverse of `pack`.

    Args:
      like: a state of the same training.
      shown: where the bytes come from, for messages.

    Raises:
      CheckpointError: they are those of another training, or damaged.
    """
    leaves, structure = jax.tree.flatten(like)
    try:
        arrays = load(data)
        about = json.loads(arrays.pop(_ABOUT).tobytes())
    except (SafetensorError, LookupError, ValueError) as error:
        raise CheckpointError(f"{shown} is no state of a training: {error}") from error
    values = [arrays[name] for name in sorted(arrays)]
    if [value.shape for value in values] != [leaf.shape for leaf in leaves]:
        raise CheckpointError(f"{shown} is the state of another training: its arrays have other shapes")
    return jax.tree.unflatten(structure, [jax.device_put(value, leaf.sharding) for value, leaf in zip(values, leaves)]), about
