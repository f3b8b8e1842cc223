"""What all input formats share: which input is meant, its files, and the records that a format makes of a work shard.

A format is a module of this package with two functions:

* `plan_file(file, name, spec, cut)` or `plan(spec)`: an `InputFile` for every file (or split of a data set), from as
  little of it as the format allows;
* `read(work, spec)`: the `Raw` records of one work shard, in order. A record that is broken is a `Raw` that says so; an
  exception means that the shard as a whole cannot be read.
"""

import bz2
import collections
import contextlib
import dataclasses
import gzip
import hashlib
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from transforms import storage
from transforms.records import WorkShard

MAX_RECORD_BYTES = 64 << 20
"""A record beyond it is dead-lettered instead of being held in memory."""

HEAD_BYTES = 4096
_BLOCK_BYTES = 1 << 22
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


class InputError(ValueError):
    """An input that cannot be planned, or that is no longer what was planned."""


@dataclasses.dataclass(frozen=True)
class RecordFields:
    """Where in a record things are.

    `targets`, `example_id` and `language` may be "": no reference, ids from the place, one target language for all.
    `hints` hold texts that the output nearly is.
    """

    inputs: str
    targets: str = ""
    example_id: str = ""
    language: str = ""
    hints: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """The fields that are read, each once."""
        named = (self.inputs, self.targets, self.example_id, self.language, *self.hints)
        return list(dict.fromkeys(filter(None, named)))


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """Which input is meant; small enough for workers to be told.

    Attributes:
      format: a name in `transforms.inputs.FORMATS`.
      fields: of a record.
      patterns: paths and globs, for formats of files.
      name: of the TFDS data set, or of the SeqIO task or mixture.
      split: of it.
      data_dir: where TFDS finds prepared data sets.
      module: Python module whose import registers the SeqIO task.
      tokenizer: file of the target's tokeniser, the vocabulary of tasks that are registered here.
      delimiter: between the fields of a CSV file.
      quoting: whether quotes mean something in it: "csv" for RFC 4180, or "none".
    """

    format: str
    fields: RecordFields
    patterns: tuple[str, ...] = ()
    name: str = ""
    split: str = ""
    data_dir: str = ""
    module: str = ""
    tokenizer: str = ""
    delimiter: str = ","
    quoting: str = "csv"


@dataclasses.dataclass(frozen=True)
class Cut:
    """How an input is cut: every so many records; line files, where `bytes_per_shard` is not 0, every so many bytes."""

    examples_per_shard: int
    bytes_per_shard: int = 0


@dataclasses.dataclass(frozen=True)
class FoundFile:
    """A file that a pattern matched."""

    path: str
    size_bytes: int
    modified: float


@dataclasses.dataclass(frozen=True)
class InputFile:
    """One file of the plan, or one split of a data set.

    Attributes:
      path: where it is read from.
      name: short name, unique in the plan, used in example ids.
      size_bytes, modified: of the stored file, to see whether it is still the same without reading it.
      digest: of its content: SHA-256 where planning reads it all, "sampled-" and SHA-256 of size and samples where not.
      num_records: records; None where the file is cut by bytes and nobody has counted.
      shard_bytes: bytes[shards of this file], whose running sum gives where each starts; () where that is not known.
      first_record: number of its first record, for a slice of a split.
      checksums: CRC-32 of the bytes of each shard, eight hexadecimal digits each; "" where their bytes are not known.
      is_array: whether it is one JSON array.
    """

    path: str
    name: str
    size_bytes: int
    modified: float
    digest: str
    num_records: int | None
    shard_bytes: tuple[int, ...] = ()
    first_record: int = 0
    checksums: str = ""
    is_array: bool = False


class Cutter:
    """A file's content as it is read at launch: counts its records, and notes where its shards end and what is in them.

    What was read is kept until it has become part of a shard's checksum.

    Attributes:
      count: records so far.
      position: the byte behind the last one.
      head: the beginning of the content.
    """

    def __init__(self, stream, cut: Cut):
        self._stream, self._cut = stream, cut
        self._ends, self._checksums, self._blocks, self._seed = [], [], collections.deque(), 0
        self._checksum, self._summed = 0, 0
        self.count, self.position, self.head = 0, 0, b""

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._blocks.append(memoryview(block))
        self.head = self.head or block[:HEAD_BYTES]
        return block

    def skip_header(self, stored: int, seed: int) -> None:
        """What is before the first record and of importance to all: so many bytes, which make their checksums differ."""
        self.position, self._seed, self._checksum = stored, seed, seed

    def add(self, stored: int) -> None:
        """A record of so many bytes."""
        self.count, self.position = self.count + 1, self.position + stored
        if self.count % self._cut.examples_per_shard == 0:
            self.end_shard(self.position)
        elif self.position - self._summed > _BLOCK_BYTES:
            self.sum_up(self.position)

    def end_shard(self, position: int) -> None:
        """A shard ends before the byte at `position`."""
        self.sum_up(position)
        self._ends.append(position)
        self._checksums.append(f"{self._checksum:08x}")
        self._checksum = self._seed

    def planned(
        self, file: FoundFile, name: str, digest: str, count: int, end: int, *, compressed: bool, is_array: bool = False
    ) -> InputFile:
        """The file once all of its `count` records were read, the last of which ends before the byte at `end`.

        The first shard starts at byte 0.
        """
        if len(self._ends) * self._cut.examples_per_shard < count:
            self.end_shard(end)
        where = {}
        if not compressed:
            sizes = tuple(end - start for start, end in zip([0, *self._ends], self._ends))
            where = {"shard_bytes": sizes, "checksums": "".join(self._checksums)}
        return InputFile(file.path, name, file.size_bytes, file.modified, digest, count, is_array=is_array, **where)

    def sum_up(self, end: int) -> None:
        """Takes the bytes up to `end`, which belong to the shard that has not ended, into its checksum."""
        while self._summed < end and self._blocks:
            block = self._blocks.popleft()
            piece, rest = block[: end - self._summed], block[end - self._summed :]
            self._checksum, self._summed = zlib.crc32(piece, self._checksum), self._summed + len(piece)
            if rest:
                self._blocks.appendleft(rest)


@dataclasses.dataclass(frozen=True)
class Raw:
    """One record as its format gives it, broken or not.

    Attributes:
      place: where it is, for people, and its example id where none comes from the data: file name and record number.
      index: its number in the whole input.
      row: its fields; None where it is broken.
      record: the raw record, for errors/.
      problem: (short name to count by, what is wrong) where it is broken.
    """

    place: str
    index: int
    row: Mapping[str, Any] | None
    record: str
    problem: tuple[str, str] | None = None


def _zstd(raw):
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")  # others take a truncated file for a whole one


_COMPRESSIONS = (
    (rb"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw)),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", bz2.BZ2File),
    (rb"\xfd7zXZ\x00", lzma.LZMAFile),
    (rb"\x28\xb5\x2f\xfd", _zstd),
)


@contextlib.contextmanager
def open_content(path: str):
    """Opens a file for its content: `with` gives (stream, whether it is stored compressed), which is told by content.

    A compressed one can only be read from its beginning to its end.
    """
    with storage.open_raw(path) as raw:
        head = raw.read(16)
        raw.seek(0)
        unpack = next((unpack for magic, unpack in _COMPRESSIONS if re.match(magic, head)), None)
        yield (raw if unpack is None else unpack(raw)), unpack is not None


class _Part:
    """So many bytes of a stream, and the checksum of those that were read, as `Cutter` takes it."""

    def __init__(self, stream, num_bytes: int, seed: int):
        self._stream, self._left, self.checksum = stream, num_bytes, seed

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left))
        self._left, self.checksum = self._left - len(data), zlib.crc32(data, self.checksum)
        return data


@contextlib.contextmanager
def open_shard(work: WorkShard, seed: int = 0):
    """Opens what a shard's records are in: its own bytes or, where these are not known, the whole file's content.

    Raises:
      InputError: when they were read: they are not what they were when the job was planned.
    """
    with open_content(work.path) as (stream, _):
        if work.byte_range is None:
            yield stream
            return
        start, end = work.byte_range
        if start:
            stream.seek(start)
        part = _Part(stream, end - start, seed)
        yield part
        if work.checksum is not None and part.checksum != work.checksum:
            raise InputError(
                f"{work.path!r} has changed since the job was planned: bytes {start} to {end} have the checksum "
                f"{part.checksum:08x} where {work.checksum:08x} was"
            )


def sampled_digest(path: str, size_bytes: int) -> str:
    """Identity of a file that is not read at launch: its size, its beginning and end, and blocks spread over it."""
    digest = hashlib.sha256(str(size_bytes).encode())
    with storage.open_raw(path) as stream:
        if size_bytes <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(stream.read())
        else:
            for i in range(_SAMPLES):
                stream.seek((size_bytes - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return "sampled-" + digest.hexdigest()


def refuse_changed(work: WorkShard) -> None:
    """Raises InputError where a file is not the one that was planned: by size and time, and by samples of its content
    where that is how it was planned and only its time is another."""
    if not work.modified:
        return
    size, modified = storage.size_and_time(work.path)
    if (size, modified) == (work.size_bytes, work.modified):
        return
    sampled = work.digest.startswith("sampled-")
    if size == work.size_bytes and sampled and sampled_digest(work.path, size) == work.digest:
        return
    raise InputError(
        f"{work.path!r} has changed since the job was planned: {size} bytes of time {modified} where there were "
        f"{work.size_bytes} of {work.modified}"
    )


def find_field(row: Mapping[str, Any], name: str) -> Any:
    """The field `name`, or, where there is none of that name, the one at this dotted path. Raises KeyError."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(name)
        value = value[part]
    return value


def read_id(row: Mapping[str, Any], field: str) -> str:
    """The id of a record: text, or a whole number as text. Raises KeyError or TypeError."""
    value = find_field(row, field)
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            value = value.decode()
    if hasattr(value, "item") and not getattr(value, "shape", None):  # a NumPy number
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise TypeError(f"{field!r} is {value!r:.100}; a non-empty string or a whole number is needed")
    return str(value)


def changed(path: str, was: int, found: int) -> InputError:
    """A shard's records are not as many as were planned."""
    return InputError(f"{path!r} has changed since the job was planned: {found} records where {was} were")


def planned_records(work: WorkShard, records: Iterator) -> Iterator:
    """The shard's of `records`, which begin where its bytes do or, where these are not known, where the file does.

    Raises:
      InputError: there are fewer, or in its bytes more, than were planned.
    """
    if work.byte_range is None:
        records = itertools.islice(records, work.first_record, work.first_record + work.num_records)
    count = 0
    for count, record in enumerate(records, start=1):
        if count > work.num_records:
            raise changed(work.path, work.num_records, count)
        yield record
    if count < work.num_records:
        raise changed(work.path, work.num_records, count)


@contextlib.contextmanager
def needs_tensorflow(what: str) -> Iterator[None]:
    """Around imports of TensorFlow, TFDS and SeqIO, which a job over plain files does without.

    TensorFlow reads and preprocesses on the processor; left alone it would take the whole memory of every accelerator.
    """
    try:
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # somebody has used its devices before
            for kind in ("GPU", "TPU"):
                tf.config.set_visible_devices([], kind)
        yield
    except ImportError as error:
        raise InputError(f"{what} needs {error.name or 'TensorFlow'}: install the extra 'tasks' (specbeam[tasks])") from error
