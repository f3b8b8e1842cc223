"""The output folder, local or on any filesystem that Beam knows: whole objects appear at once or not at all.

Every write goes through `OutputFolder`, in one of two ways:

* `put` replaces an object atomically (manifest, summary, errors, attempts);
* `create` makes an object that must not exist yet, and says whether this caller was the one who made it. A work shard
  is committed by one `create`, so two workers that decode the same shard cannot both commit it, nor tear each other's
  file.

On a local disk both write a temporary file in `attempts/` first; `create` then links it to its final name, which fails
where the name exists, and `put` renames it. On gs:// an upload is atomic by itself, and `create` asks for the
precondition "generation 0", that is, no such object.

What passes by itself (429, 5xx, a reset connection) is retried with back-off by the client of the store, for up to two
minutes a request. What does not pass is raised as the OSError that a local disk would raise, with the path in it.
Where the environment has STORAGE_EMULATOR_HOST, gs:// is the emulator there.

Beam's filesystems are imported once a path is not local: what looks into a local folder shall not wait for Beam.
"""

import contextlib
import dataclasses
import functools
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, TypeVar

from decoding import hub

GENERATIONS = "generations"
SCORES = "scores"
ERRORS = "errors"
ATTEMPTS = "attempts"
DAMAGED = "damaged"
MANIFEST = "manifest.json"
SUMMARY = "summary.json"
SUCCESS = "_SUCCESS"

_PLACEHOLDER = re.compile(r"<[^<>]+>|\$\{?\w+\}?|\{\w+\}|(?<![A-Za-z])YOUR[-_]\w+|(?<=gs://)your[-_][\w.-]+|(?<=/)\.\.\.(?=/|$)")
_BUCKET = re.compile(r"[a-z0-9._-]*")
_T = TypeVar("_T")
_TRIES = 5
_URL_QUERY = re.compile(r"(\w+://[^\s?'\"]*)\?[\w.-]+=[^\s'\"]*")
_URL_PASSWORD = re.compile(r"(\w+://)[^\s/@'\"]+:[^\s/@'\"]+@")


def is_remote(path: str) -> bool:
    """Whether `path` names a scheme (gs://, hdfs://) rather than a local file."""
    return "://" in path


@contextlib.contextmanager
def open_raw(path: str) -> Iterator[BinaryIO]:
    """Opens `path` for reading bytes as they are stored, without guessing a compression from the name."""
    if not is_remote(path):
        with open(hub.local(path), "rb") as stream:
            yield stream
        return
    from apache_beam.io.filesystem import CompressionTypes

    is_gcs, raw = path.startswith("gs://"), CompressionTypes.UNCOMPRESSED
    with store_errors(path), _gcs().open(path) if is_gcs else _filesystems().open(path, compression_type=raw) as stream:
        yield stream


def read_bytes(path: str) -> bytes:
    with open_raw(path) as stream:
        return stream.read()


def join(root: str, *names: str) -> str:
    return _filesystems().join(root, *names) if is_remote(root) else os.path.join(root, *names)


def exists(path: str) -> bool:
    """Whether there is such an object. One in a bucket that does not exist is not there either."""
    if not is_remote(path):
        return os.path.exists(hub.local(path))
    with store_errors(path):
        return _gcs().exists(path) if path.startswith("gs://") else _filesystems().exists(path)


def size_and_time(path: str) -> tuple[int, float]:
    """Bytes of a file, and when it was written last, in seconds; 0.0 where its store does not say."""
    with store_errors(path):
        found = _filesystems().get_filesystem(path).metadata(path)
    return int(found.size_in_bytes), float(found.last_updated_in_seconds or 0.0)


@contextlib.contextmanager
def store_errors(path: str) -> Iterator[None]:
    """While the body runs, makes what the clients of gs:// (Google's, gcsfs) raise for `path` an OSError that names it.

    Raises:
      FileNotFoundError: no such bucket or object.
      PermissionError: this account, or no account, may not.
      OSError: whatever else did not pass in time.
    """
    if not path.startswith("gs://"):
        yield
        return
    if found := placeholder_in(path):
        raise OSError(f"{path!r} has the placeholder {found!r} in it; allowed: the name of a bucket and an object in it")
    import aiohttp
    from gcsfs.retry import HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    # NotImplementedError is Beam's for an object whose Content-Encoding it cannot undo.
    except (GoogleAPIError, GoogleAuthError, HttpError, aiohttp.ClientError, NotImplementedError) as error:
        kinds = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
        kind = kinds.get(getattr(error, "code", None), OSError)
        raise kind(f"{path!r}: {type(error).__name__}: {without_query(str(error))}") from error


def without_query(text: str) -> str:
    """`text` without the passwords and queries of the URLs in it: a signed URL carries its signature there."""
    return _URL_QUERY.sub(r"\1?...", _URL_PASSWORD.sub(r"\1...@", text))


def carries_credential(path: str) -> bool:
    """Whether `path` is a URL with a password or a query. A "?" alone is a glob's."""
    return without_query(path) != path


def placeholder_in(path: str) -> str:
    """What in `path` stands for something that was to be filled in ("BUCKET" of gs://BUCKET/x), "" for nothing.

    A bucket's name has no capitals (https://cloud.google.com/storage/docs/buckets#naming), so that one is known without
    asking. A local path that exists is what it is.
    """
    if found := _PLACEHOLDER.search(path):
        return "" if not is_remote(path) and os.path.exists(path) else found.group()
    bucket = path.removeprefix("gs://").split("/", 1)[0] if path.startswith("gs://") else ""
    return "" if _BUCKET.fullmatch(bucket) else bucket


def list_tree(root: str) -> dict[str, int]:
    """Sizes in bytes of all files below `root`, by path relative to it, found by one listing; {} where there is none."""
    base = root.rstrip("/") + "/"
    if root.startswith("gs://"):
        try:
            with store_errors(root):  # by prefix: a folder's name may hold what is special in a pattern
                found = [(path, int(size)) for path, size in _gcs().list_files(base)]
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # a proxy's page, an object without a size
            raise OSError(f"{root!r}: the answer is no listing: {type(error).__name__}: {error}") from error
        return {path[len(base) :]: size for path, size in found if not path.endswith("/")}
    if is_remote(root):
        matched = _filesystems().match([base + "**"])[0].metadata_list
        return {found.path[len(base) :]: found.size_in_bytes for found in matched if not found.path.endswith("/")}
    return {
        os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/"): size
        for folder, _, names in os.walk(root, onerror=_raise_unless_absent)
        for name in names
        if (size := _size_or_none(os.path.join(folder, name))) is not None
    }


def _raise_unless_absent(error: OSError) -> None:
    """Left alone, `os.walk` takes a folder that cannot be read for an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _size_or_none(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:  # a temporary file that its writer has just renamed
        return None


@dataclasses.dataclass(frozen=True)
class OutputFolder:
    """The documented files of one run below `root`."""

    root: str

    def path(self, name: str) -> str:
        """Full path of `name`, which is relative to the folder with forward slashes."""
        return join(self.root, *name.split("/"))

    def list(self) -> dict[str, int]:
        """Everything in the folder, name to size in bytes: one listing."""
        return list_tree(self.root)

    def read(self, name: str) -> bytes:
        return read_bytes(self.path(name))

    def exists(self, name: str) -> bool:
        return exists(self.path(name))

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Writes `name` atomically, replacing what was there.

        Without `durable` a crash of the machine, not one of the process, may leave it empty; no disk is waited for.
        """
        if is_remote(self.root):
            _upload(self.path(name), data)
            return
        self._write_and(lambda scratch: os.replace(scratch, self.path(name)), name, data, durable)

    def create(self, name: str, data: bytes) -> bool:
        """Writes `name` atomically unless it exists. Returns whether this call made it."""
        final = self.path(name)
        if final.startswith("gs://"):
            return _create_on_gcs(final, data)
        if is_remote(self.root):
            return _create_by_rename(final, self.path(_scratch_name(name)), data)
        return self._write_and(lambda scratch: self._name_new(scratch, final), name, data)

    @staticmethod
    def _name_new(scratch: str, final: str) -> bool:
        try:
            os.link(scratch, final)
            return True
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise
        except OSError:  # a filesystem without hard links: the window between look and rename is the best it offers
            if os.path.exists(final):
                return False
            os.replace(scratch, final)
            return True
        finally:
            _remove_if_there(scratch)

    def check_writable(self) -> None:
        """Writes a file and deletes it.

        Raises:
          OSError: this folder, or this account, takes no files now.
        """
        name = _scratch_name("launch")
        self.put(name, name.encode())
        self.delete([name])

    def move(self, name: str, to: str) -> None:
        """Renames a file; where it is gone by now, somebody else has.

        On gs:// it is copied and then deleted.
        """
        if is_remote(self.root):
            if self.exists(name):
                with store_errors(self.path(name)):
                    _filesystems().rename([self.path(name)], [self.path(to)])
            return
        self._make_parents(to)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path(name), self.path(to))

    def delete(self, names: Iterable[str]) -> None:
        """Deletes the named files; those already gone are no error."""
        for name in names:
            if not is_remote(self.root):
                _remove_if_there(self.path(name))
            elif self.root.startswith("gs://"):
                with store_errors(self.path(name)):
                    _gcs().delete(self.path(name))
            elif self.exists(name):
                _filesystems().delete([self.path(name)])

    def _write_and(self, finish: Callable[[str], _T], name: str, data: bytes, durable: bool = True) -> _T:
        """Writes a temporary file and has `finish` give it its name. Both again where another launch, which has just come
        to its end, has emptied attempts/ in between."""
        for more in reversed(range(_TRIES)):
            self._make_parents(name)
            try:
                return finish(self._write_scratch(name, data, durable))
            except FileNotFoundError:
                if not more:
                    raise
        raise AssertionError("unreachable")

    def _make_parents(self, name: str) -> None:
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        os.makedirs(self.path(ATTEMPTS), exist_ok=True)

    def _write_scratch(self, name: str, data: bytes, durable: bool = True) -> str:
        scratch = self.path(_scratch_name(name))
        try:
            with open(scratch, "xb") as stream:
                stream.write(data)
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
        except OSError:
            _remove_if_there(scratch)
            raise
        return scratch


def part_stem(shard: int, num_shards: int) -> str:
    """"part-00003-of-00100": the name of a shard's files without folder and suffix."""
    return f"part-{shard:05d}-of-{num_shards:05d}"


def part_name(shard: int, num_shards: int, folder: str = GENERATIONS) -> str:
    return f"{folder}/{part_stem(shard, num_shards)}.parquet"


def errors_name(shard: int, num_shards: int) -> str:
    return f"{ERRORS}/{part_stem(shard, num_shards)}.jsonl"


def attempt_name(shard: int, num_shards: int) -> str:
    return f"{ATTEMPTS}/{part_stem(shard, num_shards)}.json"


def _scratch_name(name: str) -> str:
    return f"{ATTEMPTS}/{name.rsplit('/', 1)[-1]}.{uuid.uuid4().hex}.tmp"


def _remove_if_there(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def _filesystems() -> type:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _gcs():
    """Beam's client of gs://: its credentials, its retries, its open connections. A process makes one, in a second."""
    return _new_gcs(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.lru_cache(maxsize=1)
def _new_gcs(_process: int, _emulator: str | None):
    from apache_beam.io.gcp import gcsio

    return gcsio.GcsIO()


def _upload(path: str, data: bytes) -> None:
    if path.startswith("gs://"):
        _put_on_gcs(path, data)
        return
    from apache_beam.io.filesystem import CompressionTypes

    with _filesystems().create(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        stream.write(data)


def _put_on_gcs(path: str, data: bytes, **preconditions: int) -> None:
    """One upload, whole or not at all."""
    from apache_beam.io.gcp import gcsio

    bucket, name = gcsio.parse_gcs_path(path)
    with store_errors(path):
        blob = _gcs().client.bucket(bucket).blob(name)
        blob.upload_from_string(data, content_type="application/octet-stream", **preconditions)


def _create_on_gcs(path: str, data: bytes) -> bool:
    from google.api_core.exceptions import PreconditionFailed

    try:
        _put_on_gcs(path, data, if_generation_match=0)
    except OSError as error:
        if not isinstance(error.__cause__, PreconditionFailed):
            raise
        # There is one. Where the reply to a first request was lost and this was its repetition, it is this one.
        return False
    return True


def _create_by_rename(final: str, scratch: str, data: bytes) -> bool:
    from apache_beam.io.filesystem import BeamIOError

    if exists(final):
        return False
    _upload(scratch, data)
    try:
        _filesystems().rename([scratch], [final])
    except BeamIOError:
        if exists(final):
            _filesystems().delete([scratch])
            return False
        raise
    return True
