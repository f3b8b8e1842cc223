"""Filling a model with the tensors of a checkpoint, one parameter at a time.

Every format is read through `Tensors` and every family is described by `Source`s, so that a missing or misshaped
weight is reported the same way whatever the file.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding.checkpoints.storage import CheckpointError

_SHOWN = 8  # faults of a checkpoint


class Tensors(Protocol):
    """The tensors of an open checkpoint.

    Attributes:
      shapes: by name.
    """

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """The tensor, in the file's dtype."""


class Source(NamedTuple):
    """Where one of our parameters comes from: tensors of the file, their shapes there, and how they are joined.

    `combine` moves values and changes none, of NumPy's arrays and of JAX's alike: its transpose is its inverse.
    `side_by_side` says that they are weights [out, in] whose transposes are joined column by column, and nothing else;
    `otherwise` is the source to take where the file lacks one of the tensors, None where it must have them.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    combine: Callable[..., np.ndarray]
    side_by_side: bool = False
    otherwise: "Source | None" = None


def as_is(name: str, *shape: int) -> Source:
    """A tensor that is stored as we hold it."""
    return Source((name,), (shape,), lambda tensor: tensor)


def made(make: Callable[[], np.ndarray]) -> Source:
    """What is computed and lies in no file."""
    return Source((), (), make)


def linear(names: Sequence[str], outs: Sequence[int], into: int) -> Source:
    """PyTorch's linear weights [out, in], fused side by side to [in, sum of outs]."""
    shapes = tuple((out, into) for out in outs)
    return Source(tuple(names), shapes, lambda *tensors: _of(tensors).concatenate([t.T for t in tensors], axis=1), True)


def vectors(names: Sequence[str], widths: Sequence[int]) -> Source:
    """Biases, one after the other."""
    return Source(tuple(names), tuple((width,) for width in widths), lambda *tensors: _of(tensors).concatenate(tensors))


def reordered(source: Source, columns: np.ndarray) -> Source:
    """A source whose last axis is taken in another order."""
    return source._replace(combine=lambda *tensors: source.combine(*tensors)[..., columns], side_by_side=False)


def stacked(names: Sequence[str], *shape: int) -> Source:
    """Equal tensors on a new first axis."""
    return Source(tuple(names), (shape,) * len(names), lambda *tensors: _of(tensors).stack(tensors))


def _of(tensors: Sequence):
    """The library whose arrays they are."""
    return jnp if isinstance(tensors[0], jax.Array) else np


def available(source: Source, shapes: Container[str]) -> Source:
    """The source, or what stands for it where tensors of these names do not have all of its."""
    while source.otherwise is not None and not all(name in shapes for name in source.names):
        source = source.otherwise
    return source


def stream(
    shown: str, sources: dict[str, Source], tensors: Tensors, dtype, ignored=frozenset()
) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters, read, joined and cast one by one in the order of `sources`.

    Args:
      shown: the checkpoint's path, for messages.
      sources: by the path of our parameter.
      tensors: the checkpoint.
      dtype: of the parameters; None for that of the file.
      ignored: names in the checkpoint that need no place in the model.

    Yields:
      The path of a parameter and its value.

    Raises:
      CheckpointError: tensors are missing, unexpected or misshaped; the first are listed, with both shapes.
    """
    check(shown, sources, tensors.shapes, ignored)
    for path, source in sources.items():
        yield path, _read(source, tensors, dtype)


def _read(source: Source, tensors: Tensors, dtype) -> np.ndarray:
    """A function of its own, so that nothing read lives on while the parameter is placed."""
    value = np.asarray(source.combine(*(tensors.read(name) for name in source.names)))
    return value if dtype is None else value.astype(dtype, copy=False)


def fill(
    build: Callable[[], nnx.Module],
    parameters: Iterable[tuple[str, np.ndarray]],
    place: Callable[[str, np.ndarray], jax.Array] = lambda path, value: jax.device_put(value, may_alias=False),
) -> nnx.Module:
    """A model of these parameters.

    The peak of host memory is the resident model plus about twice the largest parameter: initial weights are never
    made, and a parameter leaves the host's hands before the next is read.

    Args:
      build: constructs the model; run on abstract values only.
      parameters: path and value of every parameter, in any order.
      place: puts a parameter on its device, or on its devices.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    leaves = {".".join(map(str, keys)): (keys, leaf) for keys, leaf in nnx.to_flat_state(state)}
    flat = []
    for path, value in parameters:
        keys, leaf = leaves.pop(path)
        assert tuple(value.shape) == leaf.shape, (path, value.shape, leaf)
        flat.append((keys, leaf.replace(place(path, value))))
        del value  # else it would live on while the next is read
    assert not leaves, f"parameters without a value: {sorted(leaves)}"
    return nnx.merge(graph, nnx.from_flat_state(flat))


def parameter_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters, abstract ones too, by their path."""
    return {".".join(map(str, keys)): leaf.shape for keys, leaf in nnx.to_flat_state(nnx.state(model))}


def check(shown: str, sources: dict[str, Source], found: dict[str, tuple[int, ...]], ignored=frozenset()) -> None:
    """Raises CheckpointError that names the missing, unexpected and misshaped tensors, of many the first ones."""
    wanted = {name: shape for source in sources.values() for name, shape in zip(source.names, source.shapes)}
    faults = [f"missing weight {name} {list(shape)}" for name, shape in wanted.items() if name not in found]
    faults += [
        f"unexpected weight {name} {list(shape)}"
        for name, shape in sorted(found.items())
        if name not in wanted and name not in ignored
    ]
    faults += [
        f"{name}: the file has {list(found[name])}, the config says {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CheckpointError(f"{shown} does not match its config: {'; '.join(faults[:_SHOWN])}{more}")
