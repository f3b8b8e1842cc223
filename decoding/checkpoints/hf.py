"""Hugging Face directories: config.json and safetensors, whole or split with an index.  Nothing is unpickled."""

import contextlib
from collections.abc import Iterator

import numpy as np
import safetensors

from decoding.checkpoints import storage
from decoding.checkpoints.storage import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_config(path: str) -> dict:
    """The directory's `config.json`.

    Raises:
      CheckpointError: there is no such directory, or no readable config in it.
    """
    return storage.read_json(storage.join(path, "config.json"))


def weight_files(path: str) -> list[str]:
    """Paths of the directory's safetensors files, sorted.

    Raises:
      CheckpointError: there are none; where only pickled weights exist the message says so.
    """
    names = storage.list_names(path)
    if not names:
        raise CheckpointError(f"{path} does not exist or is empty; a Hugging Face directory is needed")
    if INDEX in names:
        wanted = sorted(set(_weight_map(path).values()))
        missing = [name for name in wanted if name not in names]
        if missing or not wanted:
            raise CheckpointError(f"{path}/{INDEX} names files that are not there: {missing or 'none at all'}")
        return [storage.join(path, name) for name in wanted]
    if SINGLE in names:
        return [storage.join(path, SINGLE)]
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    hint = f"; {pickled} hold pickles, which are never loaded: convert them to safetensors" if pickled else ""
    raise CheckpointError(f"{path} has neither {SINGLE} nor {INDEX}{hint}")


def _weight_map(path: str) -> dict[str, str]:
    return storage.read_json(storage.join(path, INDEX)).get("weight_map", {})


def tensor_names(path: str) -> set[str]:
    """Names of all tensors, from the index or the file's header."""
    if INDEX in storage.list_names(path):
        return set(_weight_map(path))
    with open_tensors(path) as tensors:
        return set(tensors.shapes)


class SafeTensors:
    """`decoding.checkpoints.fill.Tensors` over open safetensors files."""

    def __init__(self, handles: dict[str, object]):
        self._handle_of = {name: handle for handle in handles.values() for name in handle.keys()}  # noqa: SIM118
        self.shapes = {name: tuple(h.get_slice(name).get_shape()) for name, h in self._handle_of.items()}

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self._handle_of[name].get_tensor(name))


@contextlib.contextmanager
def open_tensors(path: str) -> Iterator[SafeTensors]:
    """The directory's tensors; files on gs:// are copied to local disk while the context lasts.

    Raises:
      CheckpointError: a file is missing or is not a readable safetensors file.
    """
    with contextlib.ExitStack() as stack:
        handles = {}
        for file in weight_files(path):
            local = stack.enter_context(storage.local_file(file))
            try:
                # "flax" yields JAX arrays, the only framework besides torch in which safetensors reads bfloat16.
                handles[file] = stack.enter_context(safetensors.safe_open(local, framework="flax"))
            except safetensors.SafetensorError as error:
                raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
        yield SafeTensors(handles)
