"""Filling a model with the tensors of a checkpoint, one parameter at a time.

Every format is read through `Tensors` and every family is described by `Source`s, so that a missing or misshaped
weight is reported the same way whatever the file.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding.checkpoints.storage import CheckpointError


class Tensors(Protocol):
    """The tensors of an open checkpoint.

    Attributes:
      shapes: by name.
    """

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """The tensor, in the file's dtype."""


class Source(NamedTuple):
    """Where one of our parameters comes from: tensors of the file, their shapes there, and how they are joined."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    combine: Callable[..., np.ndarray]


def as_is(name: str, *shape: int) -> Source:
    """A tensor that is stored as we hold it."""
    return Source((name,), (shape,), lambda tensor: tensor)


def linear(names: Sequence[str], outs: Sequence[int], into: int) -> Source:
    """PyTorch's linear weights [out, in], fused side by side to [in, sum of outs]."""
    shapes = tuple((out, into) for out in outs)
    return Source(tuple(names), shapes, lambda *tensors: np.concatenate([t.T for t in tensors], axis=1))


def vectors(names: Sequence[str], widths: Sequence[int]) -> Source:
    """Biases, one after the other."""
    return Source(tuple(names), tuple((width,) for width in widths), lambda *tensors: np.concatenate(tensors))


def fill(
    shown: str, build: Callable[[], nnx.Module], sources: dict[str, Source], tensors: Tensors, dtype, ignored=frozenset()
) -> nnx.Module:
    """A model whose parameters are read and cast one by one.

    The peak of host memory is the resident model plus the largest fused parameter.

    Args:
      shown: the checkpoint's path, for messages.
      build: constructs the model; run on abstract values only.
      sources: by the path of our parameter.
      tensors: the checkpoint.
      dtype: of the parameters.
      ignored: names in the checkpoint that need no place in the model.

    Raises:
      CheckpointError: tensors are missing, unexpected or misshaped; each is listed, with both shapes.
    """
    _check(shown, sources, tensors, ignored)
    graph, state = nnx.split(nnx.eval_shape(build))
    flat = []
    for keys, leaf in nnx.to_flat_state(state):
        source = sources[".".join(str(key) for key in keys)]
        parts = [np.asarray(tensors.read(name)).astype(dtype) for name in source.names]
        value = jnp.asarray(source.combine(*parts))
        assert value.shape == leaf.shape and value.dtype == dtype, (keys, value.shape, leaf.shape)
        flat.append((keys, leaf.replace(value)))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _check(shown: str, sources: dict[str, Source], tensors: Tensors, ignored) -> None:
    wanted = {name: shape for source in sources.values() for name, shape in zip(source.names, source.shapes)}
    lines = [f"missing weight {name} {list(shape)}" for name, shape in wanted.items() if name not in tensors.shapes]
    lines += [
        f"unexpected weight {name} {list(shape)}"
        for name, shape in sorted(tensors.shapes.items())
        if name not in wanted and name not in ignored
    ]
    lines += [
        f"{name}: the file has {list(tensors.shapes[name])}, the config says {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors.shapes and tuple(tensors.shapes[name]) != tuple(shape)
    ]
    if lines:
        raise CheckpointError(f"{shown} does not match its config:\n  " + "\n  ".join(lines))
