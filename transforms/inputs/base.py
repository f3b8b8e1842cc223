"""What all input formats share: which input is meant, its files, and the records that a format makes of a work shard.

A format is a module of this package with two functions:

* `plan_file(file, name, spec, cut)` or `plan(spec)`: an `InputFile` for every file (or split of a data set), from as
  little of it as the format allows;
* `read(work, spec)`: the `Raw` records of one work shard, in order. A record that is broken is a `Raw` that says so; an
  exception means that the shard as a whole cannot be read.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from transforms import storage
from transforms.records import WorkShard

MAX_RECORD_BYTES = 64 << 20
"""A record beyond it is dead-lettered instead of being held in memory; a TFRecord file that has one is refused."""

_GZIP_MAGIC = b"\x1f\x8b"
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


class InputError(ValueError):
    """An input that cannot be planned, or that is no longer what was planned."""


@dataclasses.dataclass(frozen=True)
class RecordFields:
    """Where in a record things are. `targets` and `example_id` may be "": no reference, and ids from the place."""

    inputs: str
    targets: str = ""
    example_id: str = ""

    def names(self) -> list[str]:
        """The fields that are read, each once."""
        return list(dict.fromkeys(name for name in dataclasses.astuple(self) if name))


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
    """

    path: str
    name: str
    size_bytes: int
    modified: float
    digest: str
    num_records: int | None
    shard_bytes: tuple[int, ...] = ()
    first_record: int = 0


class Cutter:
    """Counts a file's records while it is read at launch, and notes where its shards end.

    Attributes:
      count: records so far.
      position: the byte behind the last one.
    """

    def __init__(self, cut: Cut, position: int = 0):
        self._cut, self._ends = cut, []
        self.count, self.position = 0, position

    def add(self, stored: int) -> None:
        """A record of so many bytes."""
        self.count, self.position = self.count + 1, self.position + stored
        if self.count % self._cut.examples_per_shard == 0:
            self._ends.append(self.position)

    def planned(self, file: FoundFile, name: str, digest: str, *, compressed: bool) -> InputFile:
        """The file once all of its records were counted. The first shard starts at byte 0."""
        ends = [*self._ends, self.position] if self.count % self._cut.examples_per_shard else self._ends
        shard_bytes = () if compressed else tuple(end - start for start, end in zip([0, *ends], ends))
        return InputFile(file.path, name, file.size_bytes, file.modified, digest, self.count, shard_bytes)


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


@contextlib.contextmanager
def open_content(path: str):
    """Opens a file for its content: `with` gives (stream, whether it is stored compressed). Gzip is told by content."""
    with storage.open_raw(path) as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        yield (gzip.GzipFile(fileobj=raw) if compressed else raw), compressed


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
