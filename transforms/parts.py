"""A part: one Parquet object with a shard's rows, whose footer says what it is of, and by which damage is noticed.

Beside the footer lies the SHA-256 of all of the object's bytes, with 64 zeros in its own place. A part of an earlier
version has none, and is taken as it is.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.records import ExampleError
from transforms.statistics.generations import Statistics

FOOTER_KEY, _SEAL_KEY = b"specbeam", b"specbeam.sha256"
_BLANK = b"0" * 64
_NAME = re.compile(r"part-(\d+)-of-\d+\.parquet$")


class PartError(ValueError):
    """A file that is not the part that it is taken for; the message names it."""


@dataclasses.dataclass(frozen=True)
class Footer:
    """What a committed part says of itself.

    Attributes:
      shard: its number.
      fingerprint: of the run that it belongs to.
      attempt: how often the shard had been begun when this one succeeded, from 1.
      device: kind of the accelerator that decoded it.
      statistics: of its generations, counts of its errors and its times included.
      baseline: whether it was decoded plainly, to be compared with the others.
      errors_sha256: of the shard's file in errors/ as this attempt wrote it, "" for none; None: the part does not say.
      sealed: whether the part has a checksum, as `encode_table` gives it.
    """

    shard: int
    fingerprint: str
    attempt: int
    device: str
    statistics: Statistics
    baseline: bool = False
    errors_sha256: str | None = None
    sealed: bool = False

    def to_bytes(self) -> bytes:
        # Not dataclasses.asdict, which copies the bootstrap's lists number by number and takes ten times as long.
        return json.dumps(vars(self), default=lambda value: value.to_json(), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, statistics: type = Statistics) -> "Footer":
        values = json.loads(data)
        return cls(**{**values, "statistics": statistics.from_json(values["statistics"])})


def encode_table(table: pa.Table, footer: Footer) -> bytes:
    """A part of these rows. Equal rows and footers give equal bytes."""
    table = table.replace_schema_metadata({FOOTER_KEY: dataclasses.replace(footer, sealed=True).to_bytes(), _SEAL_KEY: _BLANK})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    at = data.rindex(_BLANK)  # nothing that may look like it follows
    return data[:at] + _seal(data, at) + data[at + len(_BLANK) :]


def read_footer(path: str, statistics: type = Statistics) -> Footer:
    """Reads the footer of a committed part, not its rows. `statistics` is the class of what it holds.

    Raises:
      PartError: it is no part.
    """
    with storage.open_raw(path) as stream, _part(path):
        return Footer.from_bytes(pq.read_metadata(stream).metadata[FOOTER_KEY], statistics)


def check_part(path: str, fingerprint: str, statistics: type = Statistics) -> Footer:
    """`read_footer` of a part of this run, every byte of which is checked.

    Raises:
      PartError: as of `open_part`.
    """
    data = open_part(path, fingerprint)
    with _part(path):
        return Footer.from_bytes(pq.read_metadata(data).metadata[FOOTER_KEY], statistics)


def open_part(path: str, fingerprint: str | None = None) -> pa.BufferReader:
    """Reads a part, and checks every byte of it. Returns the file, for `pyarrow.parquet`.

    Args:
      path: of the part; its name tells the shard.
      fingerprint: of the run whose it has to be; None for any.

    Raises:
      PartError: it is no part, of another run or shard, or not as it was committed.
    """
    data = storage.read_bytes(path)
    with _part(path):
        metadata = pq.read_metadata(pa.BufferReader(data)).metadata
        footer, seal = json.loads(metadata[FOOTER_KEY]), metadata.get(_SEAL_KEY)
        is_of, shard = footer["fingerprint"], footer["shard"]
    if fingerprint not in (None, is_of):
        raise PartError(f"{path!r} belongs to another run: its fingerprint is {is_of}, not {fingerprint}")
    name = _NAME.search(path)
    if name and int(name.group(1)) != shard:
        raise PartError(f"{path!r} is a copy of another part, that of shard {shard}")
    if (seal or footer.get("sealed")) and (seal is None or _seal(data, data.rfind(seal)) != seal):
        raise PartError(f"{path!r} is damaged: its checksum is not that of its content")
    return pa.BufferReader(data)


def read_rows(path: str, columns: Iterable[str] | None = None, fingerprint: str | None = None) -> pa.Table:
    """Rows of a part, every byte of which is checked; of those columns, or of all. Without metadata.

    Raises:
      PartError: as of `open_part`.
      pyarrow.ArrowException: it has no such columns.
    """
    wanted = None if columns is None else list(columns)
    # Arrow's threads may let go of the file after `read` has returned, while the interpreter ends, and abort it.
    with pq.ParquetFile(open_part(path, fingerprint)) as part:
        if absent := set(wanted or ()) - set(part.schema_arrow.names):
            raise pa.ArrowInvalid(f"{path!r} has no columns {sorted(absent)}; allowed: {', '.join(part.schema_arrow.names)}")
        table = part.read(wanted, use_threads=False)
    return (table if wanted is None else table.select(wanted)).replace_schema_metadata()


def read_footer_json(path: str) -> dict:
    """A part's footer as JSON values, whatever job wrote it, without its rows.

    Raises:
      PartError: it is no part.
    """
    with storage.open_raw(path) as stream, _part(path):
        return json.loads(pq.read_metadata(stream).metadata[FOOTER_KEY])


def read_schema(path: str) -> pa.Schema:
    """Columns of a part, without its rows and without metadata.

    Raises:
      PartError: it is no part.
    """
    with storage.open_raw(path) as stream, _part(path):
        return pq.read_schema(stream).remove_metadata()


def _seal(data: bytes, at: int) -> bytes:
    """SHA-256 of a part, in hexadecimal, but for the place of this very number."""
    digest = hashlib.sha256(data[:at])
    digest.update(_BLANK)
    digest.update(memoryview(data)[at + len(_BLANK) :])
    return digest.hexdigest().encode()


@contextlib.contextmanager
def _part(path: str) -> Iterator[None]:
    """Names the part in whatever Arrow and JSON raise at a file that is none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # Arrow's own, of what it reads, has none
            raise
        raise PartError(f"{path!r} is damaged: it cannot be read as a part: {error}") from error
    except (pa.ArrowException, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        raise PartError(f"{path!r} is damaged: it cannot be read as a part: {type(error).__name__}: {error}") from error


def encode_errors(errors: Sequence[ExampleError]) -> bytes:
    """A shard's file in errors/: JSON lines, one per failed record."""
    lines = "".join(json.dumps(dataclasses.asdict(error), ensure_ascii=False) + "\n" for error in errors)
    return lines.encode(errors="backslashreplace")  # half a surrogate pair, of which this is JSON's form


def errors_digest(errors: Sequence[ExampleError]) -> str:
    """SHA-256 of a shard's file in errors/, "" where there are none and so no file."""
    return hashlib.sha256(encode_errors(errors)).hexdigest() if errors else ""
