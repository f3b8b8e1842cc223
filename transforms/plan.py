"""The plan of a job over line files: which work shards there are, made in one pass over the input and then frozen.

Planning counts lines, hashes the content, notes where every shard starts and, where ids come from the data, finds
duplicates. Its memory is 8 bytes per id and one number per shard. The plan stands in the manifest; workers get shard
numbers and look the rest up there, so a job's graph does not grow with its input.

A record is one line. Lines end at "\\n" only; the file's last line needs none. Gzip is told by a file's first bytes.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from transforms import storage
from transforms.records import WorkShard

_BLOCK_BYTES = 1 << 22
_GZIP_MAGIC = b"\x1f\x8b"
_PROBED_RECORDS = 100
_SHOWN_DUPLICATES = 3


class InputError(ValueError):
    """An input that cannot be planned, or that is no longer what was planned."""


@dataclasses.dataclass(frozen=True)
class RecordFields:
    """Where in a record things are. `targets` and `example_id` may be "": no reference, and ids from file and line."""

    inputs: str
    targets: str = ""
    example_id: str = ""


@dataclasses.dataclass(frozen=True)
class InputFile:
    """One file of the plan.

    Attributes:
      path: where it is read from.
      name: short name, unique in the plan, used in example ids.
      size_bytes, modified: of the stored file, to see whether it is still the same without reading it.
      sha256: of its (uncompressed) content.
      num_records: lines.
      shard_bytes: bytes[shards of this file], whose running sum gives where each starts; () where it is compressed.
    """

    path: str
    name: str
    size_bytes: int
    modified: float
    sha256: str
    num_records: int
    shard_bytes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All work shards of a job: each file cut every `examples_per_shard` records."""

    files: tuple[InputFile, ...]
    examples_per_shard: int

    @property
    def shards_per_file(self) -> list[int]:
        return [-(-file.num_records // self.examples_per_shard) for file in self.files]

    @property
    def num_shards(self) -> int:
        return sum(self.shards_per_file)

    @property
    def num_records(self) -> int:
        return sum(file.num_records for file in self.files)

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plan: dict) -> "Plan":
        files = (InputFile(**{**file, "shard_bytes": tuple(file["shard_bytes"])}) for file in plan["files"])
        return cls(tuple(files), plan["examples_per_shard"])


class ShardTable:
    """Looks up the `WorkShard` of a number in a plan."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._first_shards = np.cumsum([0, *plan.shards_per_file])
        self._first_indices = np.cumsum([0, *(file.num_records for file in plan.files)])
        self._starts = [np.cumsum([0, *file.shard_bytes]) for file in plan.files]

    def __getitem__(self, shard: int) -> WorkShard:
        i = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        file, within = self._plan.files[i], shard - int(self._first_shards[i])
        first = within * self._plan.examples_per_shard
        return WorkShard(
            shard=shard,
            num_shards=int(self._first_shards[-1]),
            path=file.path,
            name=file.name,
            first_record=first,
            num_records=min(self._plan.examples_per_shard, file.num_records - first),
            first_index=int(self._first_indices[i]) + first,
            byte_range=(
                (int(self._starts[i][within]), int(self._starts[i][within + 1])) if file.shard_bytes else None
            ),
        )


@dataclasses.dataclass(frozen=True)
class FoundFile:
    """A file that a pattern matched."""

    path: str
    size_bytes: int
    modified: float


def find_files(patterns: Sequence[str]) -> list[FoundFile]:
    """All files that the patterns match, each once, ordered by path.

    Raises:
      InputError: a pattern matches nothing, or cannot be listed.
    """
    found = {}
    for pattern in patterns:
        try:
            matched = FileSystems.match([pattern])[0].metadata_list
        except (BeamIOError, ValueError) as error:
            raise InputError(f"{pattern!r} cannot be listed: {error}") from error
        if not matched:
            raise InputError(f"{pattern!r} matches no file")
        for file in matched:
            modified = float(file.last_updated_in_seconds or 0.0)
            found[file.path] = FoundFile(file.path, int(file.size_in_bytes), modified)
    return [found[path] for path in sorted(found)]


def short_names(paths: Sequence[str]) -> list[str]:
    """As much of each path's end as tells all of them apart: the file name, where possible."""
    parts = [path.replace("\\", "/").split("/") for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("an input file is listed twice")


def plan_input(
    files: Sequence[FoundFile], fields: RecordFields, examples_per_shard: int, known: Plan | None = None
) -> Plan:
    """Plans `files`. One that `known` holds with the same path, size and time of change is not read again.

    Raises:
      InputError: no records, a named field that no record has, duplicate ids, an unreadable file.
    """
    kept = {(file.path, file.size_bytes, file.modified): file for file in known.files} if known else {}
    if known and known.examples_per_shard != examples_per_shard:
        kept = {}
    ids, planned = _IdHashes(), []
    for file, name in zip(files, short_names([file.path for file in files])):
        same = kept.get((file.path, file.size_bytes, file.modified))
        if same is not None and same.name == name:
            planned.append(same)
            continue
        _probe(file.path, fields)
        planned.append(_plan_file(file, name, examples_per_shard, ids.add_from(fields.example_id)))
    plan = Plan(tuple(planned), examples_per_shard)
    if plan.num_records == 0:
        raise InputError(f"no record in {', '.join(repr(file.path) for file in files)}")
    if suspects := ids.repeated():
        _refuse_duplicates(plan, fields, suspects)
    return plan


def _plan_file(
    file: FoundFile, name: str, examples_per_shard: int, on_lines: Callable[[Iterator[bytes]], None] | None
) -> InputFile:
    digest, cuts, num_lines, position, last = hashlib.sha256(), [], 0, 0, b"\n"

    def blocks(stream) -> Iterator[bytes]:
        nonlocal num_lines, position, last
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + 1
            cut_lines = np.arange(-(num_lines + 1) % examples_per_shard, len(ends), examples_per_shard)
            cuts.extend((position + ends[cut_lines]).tolist())
            num_lines, position, last = num_lines + len(ends), position + len(block), block[-1:]
            yield block

    try:
        with open_lines(file.path) as (stream, compressed):
            if on_lines is None:
                for _ in blocks(stream):
                    pass
            else:
                on_lines(_lines_of_blocks(blocks(stream)))
    except (OSError, EOFError, BeamIOError) as error:
        raise InputError(f"{file.path!r} cannot be read: {error}") from error
    num_lines += last != b"\n"
    if position > (cuts[-1] if cuts else 0):
        cuts.append(position)
    shard_bytes = () if compressed else tuple(np.diff([0, *cuts]).tolist())
    return InputFile(file.path, name, file.size_bytes, file.modified, digest.hexdigest(), num_lines, shard_bytes)


@contextlib.contextmanager
def open_lines(path: str):
    """Opens a line file: `with` gives (stream of its content, whether it is compressed)."""
    with storage.open_raw(path) as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        yield (gzip.GzipFile(fileobj=raw) if compressed else raw), compressed


def iterate_lines(stream) -> Iterator[bytes]:
    """The stream's lines without their "\\n", in blocks of bounded size."""
    return _lines_of_blocks(iter(lambda: stream.read(_BLOCK_BYTES), b""))


def _lines_of_blocks(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their "\\n", the last one also where it lacks it."""
    carried = []
    for block in blocks:
        head, *rest = block.split(b"\n")
        carried.append(head)
        if rest:
            yield b"".join(carried)
            yield from rest[:-1]
            carried = [rest[-1]]
    if tail := b"".join(carried):
        yield tail


class _IdHashes:
    """64 bits of every id seen: enough to find candidates for duplicates, which a second pass then tells by name."""

    def __init__(self):
        self._chunks: list[np.ndarray] = []

    def add_from(self, field: str) -> Callable[[Iterator[bytes]], None] | None:
        """A consumer of lines that notes their ids, or None where ids do not come from the data."""
        return (lambda lines: self._add(lines, field)) if field else None

    def _add(self, lines: Iterator[bytes], field: str) -> None:
        buffer = np.empty(1 << 16, np.uint64)
        used = 0
        for line in lines:
            example_id = _id_of(line, field)
            if example_id is None:
                continue
            buffer[used] = _id_hash(example_id)
            used += 1
            if used == len(buffer):
                self._chunks.append(buffer.copy())
                used = 0
        self._chunks.append(buffer[:used].copy())

    def repeated(self) -> set[int]:
        if not self._chunks:
            return set()
        hashes = np.sort(np.concatenate(self._chunks))
        return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def _id_hash(example_id: str) -> int:
    digest = hashlib.blake2b(example_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _id_of(line: bytes, field: str) -> str | None:
    try:
        return read_id(json.loads(line), field)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def read_id(row: dict, field: str) -> str:
    """The id of a record: text, or a whole number as text. Raises KeyError or TypeError."""
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise TypeError(f"{field!r} is {value!r:.100}; a non-empty string or a whole number is needed")
    return str(value)


def _refuse_duplicates(plan: Plan, fields: RecordFields, suspects: set[int]) -> None:
    places: dict[str, list[str]] = {}
    for file in plan.files:
        with open_lines(file.path) as (stream, _):
            for number, line in enumerate(iterate_lines(stream), start=1):
                example_id = _id_of(line, fields.example_id)
                if example_id is not None and _id_hash(example_id) in suspects:
                    places.setdefault(example_id, []).append(f"{file.name}:{number}")
    repeated = {example_id: found for example_id, found in places.items() if len(found) > 1}
    if not repeated:
        return
    shown = "; ".join(
        f"{example_id!r} at {', '.join(found[:3])}" for example_id, found in list(repeated.items())[:_SHOWN_DUPLICATES]
    )
    raise InputError(
        f"{len(repeated)} example ids occur more than once in field {fields.example_id!r}: {shown}. "
        "Every example needs its own id: the random numbers of its tokens are derived from it"
    )


def _probe(path: str, fields: RecordFields) -> None:
    """Refuses a field name that none of the file's first records has, where they are records at all."""
    rows = []
    try:
        with open_lines(path) as (stream, _):
            for _, line in zip(range(_PROBED_RECORDS), iterate_lines(stream)):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict):
                    rows.append(row)
    except (OSError, EOFError, BeamIOError) as error:
        raise InputError(f"{path!r} cannot be read: {error}") from error
    for setting, name in (
        ("input_field", fields.inputs),
        ("target_field", fields.targets),
        ("id_field", fields.example_id),
    ):
        if name and rows and not any(name in row for row in rows):
            seen = sorted({str(key) for row in rows for key in row})[:20]
            raise InputError(
                f"input.{setting} is {name!r}, which none of the first {len(rows)} records of {path!r} has; "
                f"fields there: {', '.join(seen)}"
            )
