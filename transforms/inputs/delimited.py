"""CSV with a header line, quoted as RFC 4180 says; quoted fields may hold line ends.

Where a record ends depends on all quotes before it, so a file is read once at launch and cut between records. What is
wrong with one record costs that record only: after a stray quote, reading goes on at the next line.
"""

import codecs
import collections
import csv
import hashlib
from collections.abc import Iterator

from transforms.inputs import lines
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
    planned_records,
)
from transforms.records import WorkShard


def plan_file(file: FoundFile, name: str, spec: InputSpec, cut: Cut) -> InputFile:
    digest, cutter = hashlib.sha256(), Cutter(cut)
    with open_content(file.path) as (stream, compressed):
        lines.refuse_utf16(file.path, stream.read(2))
        stream.seek(0)
        records = _records(stream, spec)
        header = next(records, None)
        if header is not None:
            _header(file.path, header)
            cutter = Cutter(cut, header.stored)
            digest.update(header.line + b"\n")
        for record in records:
            cutter.add(record.stored)
            digest.update(record.line + b"\n")
    return cutter.planned(file, name, digest.hexdigest(), compressed=compressed)


def read(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    start, end = work.byte_range or (0, None)
    with open_content(work.path) as (stream, _):
        header = _header(work.path, next(_records(stream, spec), None))
        stream.seek(start)
        records = _records(stream, spec, None if end is None else end - start)
        if start == 0:
            next(records, None)  # the header
        for number, record in enumerate(planned_records(work, records)):
            yield _raw(work, number, record, header)


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
    raw = record.line[:MAX_RECORD_BYTES].decode("utf-8", "backslashreplace")
    return Raw(f"{work.name}:{work.first_record + number + 1}", work.first_index + number, row, raw, problem)


class _Record:
    """A record's bytes without the last line end, how many it takes in the file, its fields, or what is wrong."""

    __slots__ = ("line", "problem", "stored", "values")

    def __init__(self, line: bytes, stored: int, values: list[str], problem: tuple[str, str] | None = None):
        self.line, self.stored, self.values, self.problem = line, stored, values, problem


def _records(stream, spec: InputSpec, num_bytes: int | None = None) -> Iterator[_Record]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    marked = stream.tell() == 0
    ahead, rest = collections.deque(), lines.iterate_lines(stream, num_bytes, count_lost=True)

    def take() -> tuple[bytes, int] | None:
        return ahead.popleft() if ahead else next(rest, None)

    while (first := take()) is not None:
        if marked:  # before a quote it would make the quote part of the first name
            first, marked = (first[0].removeprefix(codecs.BOM_UTF8), first[1]), False
        if b'"' not in first[0]:
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
