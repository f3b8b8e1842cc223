"""What travels through a job: a work shard's place in the input, its examples, and the records that failed."""

from __future__ import annotations

import dataclasses
import typing

if typing.TYPE_CHECKING:
    import numpy as np

MAX_RECORD_CHARS = 4096  # of a failed record that are kept in errors/
MAX_MESSAGE_CHARS = 1024

READ, TOKENIZE, DECODE, COMMIT = "read", "tokenize", "decode", "commit"


@dataclasses.dataclass(frozen=True)
class Example:
    """One input, ready to be decoded.

    Attributes:
      example_id: stable name, from the data.
      index: number of its record in the whole input, whatever the shards.
      inputs: the text that was read, without the task's prefix.
      targets: the reference, None where there is none.
      tokens: int32[n], prefix and EOS included, cut to the longest input allowed.
      truncated: whether tokens were cut off.
      place: file and line.
      record: the raw record, for errors/; at most MAX_RECORD_CHARS + 1 of it.
      hints: int32[n] each, texts that its output nearly is, EOS included; cut to the room for them.
      hints_cut: how many of them were cut.
    """

    example_id: str
    index: int
    inputs: str
    targets: str | None
    tokens: np.ndarray
    truncated: bool
    place: str = ""
    record: str = ""
    hints: tuple[np.ndarray, ...] = ()
    hints_cut: int = 0


@dataclasses.dataclass(frozen=True)
class ExampleError:
    """A record that yielded no generation, and why.

    Attributes:
      example_id: its id, or file name and line number where no id could be read.
      index: number of its record in the whole input.
      stage: READ, TOKENIZE or DECODE.
      error_type: a short name to count by.
      message: what is wrong, for people.
      place: file and line.
      record: the raw record, at most MAX_RECORD_CHARS of it.
      record_truncated: whether `record` was cut.
    """

    example_id: str
    index: int
    stage: str
    error_type: str
    message: str
    place: str
    record: str
    record_truncated: bool = False


def example_error(example_id: str, index: int, stage: str, error_type: str, message: str, place: str, record: str):
    """An `ExampleError` with message and record cut to what errors/ keeps."""
    cut = len(record) > MAX_RECORD_CHARS
    return ExampleError(
        example_id, index, stage, error_type, message[:MAX_MESSAGE_CHARS], place, record[:MAX_RECORD_CHARS], cut
    )


def failure_of(example: typing.Any, stage: str, error_type: str, message: str) -> ExampleError:
    """The `example_error` of something that has an id, an index, a place and a record."""
    return example_error(
        example.example_id, example.index, stage, error_type, message, example.place, example.record
    )


@dataclasses.dataclass(frozen=True)
class WorkShard:
    """The unit of reading, decoding, committing and retrying: consecutive records of one file or split.

    Attributes:
      shard, num_shards: its number, and how many there are.
      path: the file.
      name: the file's name in example ids and places.
      first_record: its first record's number in the file, from 0; where the file is cut by bytes, the range's start.
      num_records: how many records; None where the file is cut by bytes.
      first_index: its first record's number in the whole input, from 0; bytes, where the input is cut by bytes.
      byte_range: (start, end) in the file, None where that is not known and the format finds the records itself.
      checksum: of these bytes, None where that is not known.
      size_bytes, modified, digest, is_array: of the file, as of `transforms.inputs.base.InputFile`.
    """

    shard: int
    num_shards: int
    path: str
    name: str
    first_record: int
    num_records: int | None
    first_index: int
    byte_range: tuple[int, int] | None
    checksum: int | None = None
    size_bytes: int = 0
    modified: float = 0.0
    digest: str = ""
    is_array: bool = False

    @property
    def file_index(self) -> int:
        """What `first_index` would be for the file's first record."""
        return self.first_index - self.first_record


@dataclasses.dataclass(frozen=True)
class TokenizedShard:
    """A shard that was read: every one of its records is in `examples` or in `errors`."""

    work: WorkShard
    attempt: int
    examples: tuple[Example, ...]
    errors: tuple[ExampleError, ...]


@dataclasses.dataclass(frozen=True)
class ShardFailure:
    """A shard that was set aside: it stays uncommitted, and a later launch does it again."""

    shard: int
    stage: str
    error_type: str
    message: str


def shard_failure(shard: int, stage: str, error: Exception) -> ShardFailure:
    """A `ShardFailure` because of `error`, in this stage unless the error knows better."""
    stage = getattr(error, "stage", stage)
    return ShardFailure(shard, stage, type(error).__name__, str(error)[:MAX_MESSAGE_CHARS])
