"""CSV with a header line, quoted as RFC 4180 says, where fields in quotes may hold line ends, or not quoted at all.

Where a record ends depends on all quotes before it, so a file is read once at launch and cut between records. What is
wrong with one record costs that record only: after a stray quote, reading goes on at the next line.
"""

import codecs
import collections
import csv
import hashlib
import logging
import zlib
from collections.abc import Iterator

from transforms.inputs import lines, sniff
from transforms.inputs.base import (
    MAX_RECORD_BYTES,
    Cut,
    Cutter,
    FoundFile,
    InputError,
    InputFile,
    InputSpec,
    Raw,
    open_content,
    open_shard,
    planned_records,
)
from transforms.records import WorkShard


def plan_file(file: FoundFile, name: str, spec: InputSpec, cut: Cut) -> InputFile:
    digest = hashlib.sha256()
    with open_content(file.path) as (stream, compressed):
        cutter, warned = Cutter(stream, cut), False
        records = _records(cutter, spec)
        header = next(records, None)
        sniff.refuse_what_is_no_text(file.path, cutter.head)
        if header is not None:
            _header(file.path, header)
            cutter.skip_header(header.stored, _seed(header))
            digest.update(header.line + b"\n")
        for record in records:
            cutter.add(record.stored)
            digest.update(record.line + b"\n")
            if not warned and _looks_swallowed(record, spec):
                warned = True
                logging.getLogger(__name__).warning(
                    "record %d of %r has a quoted field with line ends and delimiters in it: %.80r. If quotes mean nothing in "
                    'this file, set input.quoting to "none"',
                    cutter.count,
                    file.path,
                    record.line.decode("utf-8", "replace"),
                )
    count, end = cutter.count, cutter.position
    return cutter.planned(file, name, digest.hexdigest(), count, end, compressed=compressed)


def read(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    with open_content(work.path) as (stream, _):
        first = next(_records(stream, spec), None)
        header = _header(work.path, first)
    at_start = work.byte_range is None or work.byte_range[0] == 0
    with open_shard(work, _seed(first)) as stream:
        records = _records(stream, spec, marked=at_start)
        if at_start:
            next(records, None)  # the header
        for number, record in enumerate(planned_records(work, records)):
            yield _raw(work, number, record, header)


def _seed(header: "_Record") -> int:
    """Makes the checksum of every shard depend on the fields' names as well."""
    return zlib.crc32(header.line)


def _looks_swallowed(record: "_Record", spec: InputSpec) -> bool:
    return b"\n" in record.line and any("\n" in value and spec.delimiter in value for value in record.values)


def _raw(work: WorkShard, number: int, record: "_Record", header: list[str]) -> Raw:
    row, problem = None, record.problem
    if problem is None and len(record.line) > MAX_RECORD_BYTES:
        problem = lines.too_long()
    elif problem is None and not record.values:
        problem = ("EmptyLine", "the line is blank")
    elif problem is None and len(record.values) != len(header):
        problem = ("WrongNumberOfFields", f"{len(record.values)} fields where the header has {len(header)}")
    if problem is None:
        row = dict(zip(header, record.values))
        try:
            "".join(record.values).encode()
        except UnicodeEncodeError:
            row, problem = None, ("InvalidUtf8", "a field is not UTF-8")
    place = f"{work.name}:{work.first_record + number + 1}"
    return Raw(place, work.first_index + number, row, lines.shown(record.line), problem)


class _Record:
    """A record's bytes without the last line end, how many it takes in the file, its fields, or what is wrong."""

    __slots__ = ("line", "problem", "stored", "values")

    def __init__(self, line: bytes, stored: int, values: list[str], problem: tuple[str, str] | None = None):
        self.line, self.stored, self.values, self.problem = line, stored, values, problem


def _records(stream, spec: InputSpec, marked: bool = True) -> Iterator[_Record]:
    """Every record from the stream's position on. `marked`: there may be a byte order mark."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    ahead, rest = collections.deque(), lines.iterate_lines(stream, count_lost=True)

    def take() -> tuple[bytes, int] | None:
        return ahead.popleft() if ahead else next(rest, None)

    while (first := take()) is not None:
        if marked:  # before a quote it would make the quote part of the first name
            first, marked = (first[0].removeprefix(codecs.BOM_UTF8), first[1]), False
        if spec.quoting == "none" or b'"' not in first[0]:
            line = first[0].removesuffix(b"\r")
            values = line.decode("utf-8", "surrogateescape").split(spec.delimiter) if line.strip() else []
            yield _Record(*first, values)
            continue
        taken = [first]

        def texts(taken=taken) -> Iterator[str]:
            yield taken[0][0].decode("utf-8", "surrogateescape") + "\n"
            while (line := take()) is not None:
                taken.append(line)
                yield line[0].decode("utf-8", "surrogateescape") + "\n"

        try:
            values = next(csv.reader(texts(), delimiter=spec.delimiter, strict=True))
        except csv.Error as error:
            ahead.extendleft(reversed(taken[1:]))
            yield _Record(*first, [], ("MalformedCsv", str(error)))
            continue
        yield _Record(b"\n".join(line for line, _ in taken), sum(stored for _, stored in taken), values)


def _header(path: str, record: _Record | None) -> list[str]:
    if record is None:
        raise InputError(f"{path!r} has no header line, which names the fields")
    names = record.values
    if record.problem or not names or len(set(names)) < len(names):
        shown = record.line[:200].decode("utf-8", "replace")
        raise InputError(f"{path!r} begins with {shown!r}; allowed: a header line with the fields' names, all distinct")
    return names
