"""T5X checkpoints: `checkpoint_<step>/` with an index and one zarr array per parameter, read through tensorstore.

The index is msgpack and may hold small arrays itself; everything of the optimizer is left alone. Nothing is unpickled.
"""

import functools
import re
import types
from collections.abc import Iterator, Mapping

import numpy as np

from decoding.checkpoints import architecture, special_tokens, storage, t5x_names
from decoding.checkpoints.arrays import Arrays
from decoding.checkpoints.checkpoint import Checkpoint
from decoding.checkpoints.fill import stream
from decoding.checkpoints.storage import CheckpointError
from decoding.registry import FAMILIES

INDEX = "checkpoint"
_TARGET = "target."
_STEP = re.compile(r"checkpoint_(\d+)")


def is_t5x(names: list[str]) -> bool:
    """Whether a directory of these names is a T5X checkpoint or holds some."""
    return INDEX in names or any(_STEP.fullmatch(name) for name in names)


def find(path: str, names: list[str], given: str | Mapping | None) -> Checkpoint:
    """A checkpoint, or the newest of a directory of checkpoints.

    Args:
      path: the directory.
      names: what lies in it.
      given: the architecture; not needed where a config.json lies in the directory or beside the checkpoint.

    Raises:
      CheckpointError: no finished checkpoint, no architecture, or a broken index or array.
    """
    folder, beside = path, names
    if INDEX not in names:
        path, names = _newest(path, names)
        folder, beside = (path, names) if "config.json" in names else (folder, beside)
    config_file = storage.join(folder, "config.json")
    own = special_tokens.read_config(folder, beside) if "config.json" in beside else None
    raw, config = architecture.settle(own, config_file, given)
    arrays = _Target(path, names)
    family = FAMILIES.get(raw["model_type"])
    if family.t5x is None:
        raise CheckpointError(f"{path}: a {raw['model_type']!r} is not read from T5X's checkpoints")
    raw, config, sources = family.t5x(raw, config, arrays.shapes, path)

    def parameters(dtype) -> Iterator[tuple[str, np.ndarray]]:
        if not t5x_names.is_scanned(arrays.shapes):
            return stream(path, sources, arrays, dtype)
        # Layer after layer takes its part of the same arrays, of up to three at a time, which are let go at the end.
        kept = types.SimpleNamespace(shapes=arrays.shapes, read=functools.lru_cache(maxsize=3)(arrays.read))
        return stream(path, sources, kept, dtype)

    files = [file for file in storage.list_files(path) if file.split("/")[-2].startswith(_TARGET)]
    return Checkpoint(raw, config, (storage.join(path, INDEX), *files), parameters)


def _newest(path: str, names: list[str]) -> tuple[str, list[str]]:
    steps = sorted((int(match[1]), name) for name in names if (match := _STEP.fullmatch(name)))
    for _, name in reversed(steps):
        inside = storage.list_names(storage.join(path, name))
        if INDEX in inside:
            return storage.join(path, name), inside
    raise CheckpointError(f"{path}: none of {[name for _, name in steps]} has the file {INDEX!r} of a finished checkpoint")


class _Target:
    """`decoding.checkpoints.fill.Tensors` over a checkpoint's target, by names without "target.".

    Attributes:
      shapes: by name.

    Raises:
      CheckpointError: the index or an array is not what T5X writes.
    """

    def __init__(self, path: str, names: list[str]):
        self._inline = _inline_arrays(storage.join(path, INDEX))
        own = [name.removeprefix(_TARGET) for name in names if name.startswith(_TARGET)]
        directories = {name: storage.join(path, _TARGET + name) + "/" for name in own}
        kvstores = {name: storage.tensorstore_spec(directory) for name, directory in directories.items()}
        self._arrays = Arrays(path, "zarr", kvstores)
        self.shapes = self._arrays.shapes | {name: array.shape for name, array in self._inline.items()}

    def read(self, name: str) -> np.ndarray:
        return self._inline[name] if name in self._inline else self._arrays.read(name)


def _inline_arrays(path: str) -> dict[str, np.ndarray]:
    """The target's arrays that the index holds itself, by dotted name."""
    from flax import serialization

    try:
        index = serialization.msgpack_restore(storage.read_bytes(path))
        target = index.get("optimizer", index)["target"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except Exception as error:  # msgpack raises whatever a foreign file leads it to
        raise CheckpointError(f"{path} is not the index of a T5X checkpoint: {error}") from error
    found = {}

    def walk(node, path: tuple[str, ...]) -> None:
        if isinstance(node, np.ndarray):
            found[".".join(path)] = node
        elif isinstance(node, dict) and "driver" not in node:
            for key, below in node.items():
                walk(below, (*path, str(key)))

    walk(target, ())
    return found
