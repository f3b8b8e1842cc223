"""Files of a checkpoint, local, on `gs://` or of the hub, through fsspec (gcsfs answers for `gs://`)."""

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator

import fsspec

from decoding import hub

LFS_POINTER = b"version https://git-lfs"
"""What a file begins with that Git has fetched without Git LFS: three lines in place of its content."""
_LONGEST_MESSAGE = 2000  # names and values in it come from files that may hold anything


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the file, what was found and what is needed, in one line."""

    def __init__(self, message: str):
        line = " ".join(message.split())
        super().__init__(line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + " ...")


def locate(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem that has a path, and how the path is called there.

    Raises:
      HubError: a model of the hub that cannot be had.
    """
    return fsspec.core.url_to_fs(hub.local(path))


def join(directory: str, name: str) -> str:
    return directory.rstrip("/") + "/" + name


def exists(path: str) -> bool:
    filesystem, inner = locate(path)
    return filesystem.exists(inner)


def list_names(directory: str) -> list[str]:
    """Base names in a directory, sorted; empty where it does not exist."""
    filesystem, inner = locate(directory)
    if not filesystem.isdir(inner):
        return []
    return sorted(os.path.basename(path.rstrip("/")) for path in filesystem.ls(inner, detail=False))


def list_files(directory: str) -> list[str]:
    """Paths of all files below a directory, sorted."""
    filesystem, inner = locate(directory)
    return sorted(filesystem.unstrip_protocol(path) if "://" in directory else path for path in filesystem.find(inner))


def remove_directory(directory: str) -> None:
    filesystem, inner = locate(directory)
    filesystem.rm(inner, recursive=True)


def read_bytes(path: str) -> bytes:
    """A whole file.  Raises FileNotFoundError."""
    filesystem, inner = locate(path)
    return filesystem.cat_file(inner)


def tensorstore_spec(directory: str) -> dict:
    """TensorStore's description of a directory, local or gs://, honouring an emulator of the latter.

    Raises:
      CheckpointError: some other kind of storage.
    """
    if directory.startswith("gs://"):
        if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):  # TensorStore has a variable of its own for it
            host = emulator if "://" in emulator else f"http://{emulator}"
            os.environ["TENSORSTORE_GCS_HTTP_URL"] = host.rstrip("/")
        bucket, _, inner = directory.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": inner}
    if "://" in directory:
        raise CheckpointError(f"{directory}: arrays are read from local directories and gs:// only")
    directory = hub.local(directory)
    return {"driver": "file", "path": os.path.abspath(directory) + ("/" if directory.endswith("/") else "")}


def read_json(path: str) -> dict:
    """The JSON object in a file.

    Raises:
      CheckpointError: the file is missing, is not JSON, or holds something other than an object.
    """
    try:
        value = json.loads(read_bytes(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; a checkpoint directory needs it") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


@contextlib.contextmanager
def local_file(path: str, head_bytes: int | None = None) -> Iterator[str]:
    """A local path of the file: itself where it is local, else a copy that lives as long as the context.

    Args:
      path: of the file.
      head_bytes: how much of a remote file is copied, None for all; the rest of the copy is then a hole.
    """
    filesystem, inner = locate(path)
    if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
        yield inner
        return
    with tempfile.TemporaryDirectory(prefix="specbeam-") as directory:
        copy = os.path.join(directory, os.path.basename(inner))
        if head_bytes is None:
            filesystem.get_file(inner, copy)
        else:
            with filesystem.open(inner, "rb") as source, open(copy, "wb") as head:
                head.write(source.read(head_bytes))
            os.truncate(copy, filesystem.size(inner))
        yield copy


@contextlib.contextmanager
def written_locally(directory: str) -> Iterator[str]:
    """A local path at which to make a directory: the directory itself, or a place from which it is then copied."""
    filesystem, inner = locate(directory)
    if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
        yield inner
        return
    with tempfile.TemporaryDirectory(prefix="specbeam-") as scratch:
        local = os.path.join(scratch, "directory")
        yield local
        for folder, _, names in os.walk(local):
            for name in names:
                file = os.path.join(folder, name)
                filesystem.put_file(file, join(inner, os.path.relpath(file, local).replace(os.sep, "/")))


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file, whole or not at all, replacing what was there; a local directory is made where there is none."""
    filesystem, inner = locate(path)
    if not isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
        filesystem.pipe_file(inner, data)
        return
    os.makedirs(os.path.dirname(inner), exist_ok=True)
    scratch = f"{inner}.{uuid.uuid4().hex}.tmp"
    try:
        with open(scratch, "xb") as file:
            file.write(data)
        os.replace(scratch, inner)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(scratch)
