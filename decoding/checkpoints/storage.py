"""Files of a checkpoint, local or `gs://`, through fsspec (gcsfs answers for `gs://`)."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

import fsspec


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the file, what was found and what is needed."""


def join(directory: str, name: str) -> str:
    return directory.rstrip("/") + "/" + name


def exists(path: str) -> bool:
    filesystem, inner = fsspec.core.url_to_fs(path)
    return filesystem.exists(inner)


def list_names(directory: str) -> list[str]:
    """Base names in a directory, sorted; empty where it does not exist."""
    filesystem, inner = fsspec.core.url_to_fs(directory)
    if not filesystem.isdir(inner):
        return []
    return sorted(os.path.basename(path.rstrip("/")) for path in filesystem.ls(inner, detail=False))


def read_json(path: str) -> dict:
    """The JSON object in a file.

    Raises:
      CheckpointError: the file is missing, is not JSON, or holds something other than an object.
    """
    try:
        with fsspec.open(path, "rb") as file:
            value = json.loads(file.read().decode("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; a checkpoint directory needs it") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


@contextlib.contextmanager
def local_file(path: str) -> Iterator[str]:
    """A local path of the file: itself where it is local, else a copy that lives as long as the context."""
    filesystem, inner = fsspec.core.url_to_fs(path)
    if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
        yield inner
        return
    with tempfile.TemporaryDirectory(prefix="specbeam-") as directory:
        copy = os.path.join(directory, os.path.basename(inner))
        filesystem.get_file(inner, copy)
        yield copy
