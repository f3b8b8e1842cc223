"""The plan of a job: which work shards there are, made from as little of the input as its format allows, then frozen.

The plan stands in the manifest; workers get shard numbers and look the rest up there, so a job's graph does not grow with
its input. It holds a few numbers per file and, for line files, CSV and TFRecord, one more per shard: where it starts.

Every example needs its own id, since the random numbers of its tokens are derived from it. Places are distinct by
construction. Ids that come from a field are all read at launch, whatever the format, and duplicates are refused by
name; that takes 8 bytes of memory per id.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from transforms.inputs import FILE_FORMATS, format_module, sniff
from transforms.inputs.base import (
    HEAD_BYTES,
    Cut,
    FoundFile,
    InputError,
    InputFile,
    InputSpec,
    Raw,
    RecordFields,
    find_field,
    open_content,
    read_id,
)
from transforms.inputs.files import find_files, short_names
from transforms.inputs.texts import read_text
from transforms.records import ExampleError, WorkShard

__all__ = [
    "Cut", "FoundFile", "InputError", "InputFile", "InputSpec", "Plan", "RecordFields", "ShardTable", "find_files",
    "plan_input", "short_names",
]  # fmt: skip

_PROBED_RECORDS = 100
_SHOWN_DUPLICATES = 3
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Plan:
    """All work shards of a job: each file cut every `examples_per_shard` records, or every `bytes_per_shard` bytes."""

    files: tuple[InputFile, ...]
    examples_per_shard: int
    bytes_per_shard: int = 0

    @property
    def shards_per_file(self) -> list[int]:
        return [
            -(-file.size_bytes // self.bytes_per_shard)
            if file.num_records is None
            else -(-file.num_records // self.examples_per_shard)
            for file in self.files
        ]

    @property
    def num_shards(self) -> int:
        return sum(self.shards_per_file)

    @property
    def num_records(self) -> int | None:
        """Records in the whole input; None where they have not been counted."""
        counts = [file.num_records for file in self.files]
        return None if None in counts else sum(counts)

    def to_json(self) -> dict:
        plan = dataclasses.asdict(self)
        for file in plan["files"]:  # there may be many, and most have none of it
            for name in ("checksums", "is_array"):
                if not file[name]:
                    del file[name]
        return plan

    @classmethod
    def from_json(cls, plan: dict) -> "Plan":
        files = (InputFile(**{**file, "shard_bytes": tuple(file["shard_bytes"])}) for file in plan["files"])
        return cls(tuple(files), plan["examples_per_shard"], plan["bytes_per_shard"])


class ShardTable:
    """Looks up the `WorkShard` of a number in a plan."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._first_shards = np.cumsum([0, *plan.shards_per_file])
        lengths = (file.size_bytes if file.num_records is None else file.num_records for file in plan.files)
        self._first_indices = np.cumsum([0, *lengths])
        self._starts = [np.cumsum([0, *file.shard_bytes]) for file in plan.files]

    def __getitem__(self, shard: int) -> WorkShard:
        i = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        file, within = self._plan.files[i], shard - int(self._first_shards[i])
        if file.num_records is None:
            first, num_records = within * self._plan.bytes_per_shard, None
            byte_range = (first, min(first + self._plan.bytes_per_shard, file.size_bytes))
        else:
            first = within * self._plan.examples_per_shard
            num_records = min(self._plan.examples_per_shard, file.num_records - first)
            starts = self._starts[i]
            byte_range = (int(starts[within]), int(starts[within + 1])) if file.shard_bytes else None
        checksum = int(file.checksums[8 * within : 8 * within + 8], 16) if file.checksums else None
        return WorkShard(
            shard=shard,
            num_shards=int(self._first_shards[-1]),
            path=file.path,
            name=file.name,
            first_record=file.first_record + first,
            num_records=num_records,
            first_index=int(self._first_indices[i]) + first,
            byte_range=byte_range,
            checksum=checksum,
            size_bytes=file.size_bytes,
            modified=file.modified,
            digest=file.digest,
            is_array=file.is_array,
        )


def plan_input(spec: InputSpec, cut: Cut, known: Plan | None = None, output: str = "") -> Plan:
    """Plans an input. A file that `known` holds with the same path, size and time of change is not read again.

    Files below `output`, the folder that the job writes to, are not part of it.

    Raises:
      InputError: no records, a named field that no record has, duplicate ids, something that cannot be read.
    """
    if spec.format in FILE_FORMATS:
        files, unread = _plan_files(spec, cut, known, output)
    else:
        files = format_module(spec.format).plan(spec)
        unread = [file for file in files if not (known and file in known.files)]
        _refuse_unreadable(files, [_probe(file, spec, cut) for file in unread])
    plan = Plan(tuple(files), cut.examples_per_shard, cut.bytes_per_shard)
    if plan.num_shards == 0:
        raise InputError(f"no record in {', '.join(repr(file.path) for file in files)}{_hint(files[0], spec)}")
    if unread and spec.fields.example_id:
        _refuse_duplicates(plan, spec)
    return plan


def _plan_files(
    spec: InputSpec, cut: Cut, known: Plan | None, output: str
) -> tuple[list[InputFile], list[InputFile]]:
    """All files' entries, and those that are new."""
    found = find_files(spec.patterns, output)
    kept = {(file.path, file.size_bytes, file.modified, file.name): file for file in known.files} if known else {}
    if known and Cut(known.examples_per_shard, known.bytes_per_shard) != cut:
        kept = {}
    module = format_module(spec.format)

    def plan_one(file: FoundFile, name: str) -> tuple[InputFile, bool, str]:
        if same := kept.get((file.path, file.size_bytes, file.modified, name)):
            return same, False, ""
        with _readable(file.path):
            planned = module.plan_file(file, name, spec, cut)
        return planned, True, _probe(planned, spec, cut)

    names = short_names([file.path for file in found])
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # waiting for a store, mostly
        planned = list(pool.map(plan_one, found, names))
    files, unread = [file for file, _, _ in planned], [file for file, new, _ in planned if new]
    _refuse_unreadable(files, [problem for _, _, problem in planned])
    return files, unread


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever a store's client, a decompressor or a format's library raises
        raise InputError(f"{path!r} cannot be read: {error}") from error


def _refuse_unreadable(files: Sequence[InputFile], problems: Sequence[str]) -> None:
    """Refuses an input of which nothing can be read: a setting is wrong, or the files are not what they seem."""
    if problems and len(problems) == len(files) and all(problems):
        raise InputError(problems[0])


def _probe(file: InputFile, spec: InputSpec, cut: Cut) -> str:
    """What keeps all of the file's first records from being read; "" where one of them can be, or there is none.

    Raises:
      InputError: a named field that none of them has.
    """
    plan = Plan((file,), cut.examples_per_shard, cut.bytes_per_shard)
    raws = list(itertools.islice(_raws(plan, spec, _PROBED_RECORDS), _PROBED_RECORDS))
    rows = [raw.row for raw in raws if raw.row is not None]
    for setting, name in (
        ("input_field", spec.fields.inputs),
        ("target_field", spec.fields.targets),
        ("id_field", spec.fields.example_id),
        *(("hint_field", name) for name in spec.fields.hints),
    ):
        if name and rows and not any(_has(row, name) for row in rows):
            seen = sorted({str(key) for row in rows for key in row})[:20]
            raise InputError(
                f"input.{setting} is {name!r}, which none of the first {len(rows)} records of {file.path!r} has; "
                f"fields there: {', '.join(seen)}{_hint(file, spec)}"
            )
    texts = (read_text(raw, spec, lambda ids: "", may_be_empty=True, may_be_list=True) for raw in raws)
    errors = [text for text in texts if isinstance(text, ExampleError)]
    if not raws or len(errors) < len(raws):
        return ""
    first = errors[0]
    return (
        f"none of the first {len(raws)} records of {file.path!r} can be read; {first.place}: {first.error_type}, "
        f"{first.message}{_hint(file, spec)}"
    )


def _hint(file: InputFile, spec: InputSpec) -> str:
    if spec.format not in ("jsonl", "csv") or file.is_array:
        return ""
    with _readable(file.path), open_content(file.path) as (stream, _):
        cause = sniff.likely_cause(stream.read(HEAD_BYTES), spec)
    return cause and f"; {cause}"


def _has(row, name: str) -> bool:
    try:
        find_field(row, name)
    except KeyError:
        return False
    return True


def _raws(plan: Plan, spec: InputSpec, step: int = 10_000) -> Iterator[Raw]:
    """All records; files in one go, data sets, whose records are held in memory, `step` at a time."""
    if not plan.bytes_per_shard:
        files = tuple(dataclasses.replace(file, shard_bytes=(), checksums="") for file in plan.files)
        plan = Plan(files, 1 << 62 if spec.format in FILE_FORMATS else step)
    table, read = ShardTable(plan), format_module(spec.format).read
    for shard in range(plan.num_shards):
        work = table[shard]
        with _readable(work.path):
            yield from read(work, spec)


def _refuse_duplicates(plan: Plan, spec: InputSpec) -> None:
    """Two passes: one over 64 bits of every id, and, where two of them are the same, one that tells them by name."""
    field = spec.fields.example_id
    spec = dataclasses.replace(spec, fields=RecordFields(field, example_id=field))  # where columns are read singly
    hashes = np.fromiter((_id_hash(name) for _, name in _ids(plan, spec)), np.uint64)
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    places: dict[str, list[str]] = {}
    for place, example_id in _ids(plan, spec):
        if _id_hash(example_id) in suspects:
            places.setdefault(example_id, []).append(place)
    repeated = {example_id: found for example_id, found in places.items() if len(found) > 1}
    if not repeated:
        return
    shown = "; ".join(
        f"{example_id!r} at {', '.join(found[:3])}" for example_id, found in list(repeated.items())[:_SHOWN_DUPLICATES]
    )
    raise InputError(
        f"{len(repeated)} example ids occur more than once in field {field!r}: {shown}. "
        "Every example needs its own id: the random numbers of its tokens are derived from it"
    )


def _ids(plan: Plan, spec: InputSpec) -> Iterator[tuple[str, str]]:
    """(place, id) of every record that has one; the others fail when they are read."""
    for raw in _raws(plan, spec):
        try:
            if raw.row is not None:
                yield raw.place, read_id(raw.row, spec.fields.example_id)
        except (KeyError, TypeError):
            continue


def _id_hash(example_id: str) -> int:
    digest = hashlib.blake2b(example_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
