"""Line files: JSON lines, and plain text with one example per line; JSON arrays, too, whose elements are read as lines.

Lines end at "\\n" only ("\\r" before it is whitespace to JSON and cut from text); the file's last line needs none.

There are two ways to plan one. By default it is read once: its lines are counted, its content hashed, and where shards
start is noted. With `bytes_per_shard` an uncompressed file is cut by its size alone; a line belongs to the range in
which it starts, and is named by the byte at which it does. An array is always read once.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator

import numpy as np

from transforms.inputs import arrays, sniff
from transforms.inputs.base import (
    HEAD_BYTES,
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
    sampled_digest,
)
from transforms.records import MAX_RECORD_CHARS, WorkShard

_BLOCK_BYTES = 1 << 22


def plan_file(file: FoundFile, name: str, spec: InputSpec, cut: Cut) -> InputFile:
    digest, num_lines, position, last = hashlib.sha256(), 0, 0, b"\n"
    with open_content(file.path) as (stream, compressed):
        if cut.bytes_per_shard and not compressed:
            sniff.refuse_what_is_no_text(file.path, stream.read(HEAD_BYTES))
            identity = sampled_digest(file.path, file.size_bytes)
            return InputFile(file.path, name, file.size_bytes, file.modified, identity, None)
        cutter = Cutter(stream, cut)
        while block := cutter.read(_BLOCK_BYTES):
            if not position:
                sniff.refuse_what_is_no_text(file.path, cutter.head)
            digest.update(block)
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + 1
            cut_lines = np.arange(-(num_lines + 1) % cut.examples_per_shard, len(ends), cut.examples_per_shard)
            for end in (position + ends[cut_lines]).tolist():
                cutter.end_shard(end)
            num_lines, position, last = num_lines + len(ends), position + len(block), block[-1:]
            cutter.sum_up(position)
    if spec.format == "jsonl" and arrays.begins(cutter.head):
        with contextlib.suppress(arrays.BrokenArray):
            return _plan_array(file, name, cut, digest.hexdigest())
    num_lines += last != b"\n"
    return cutter.planned(file, name, digest.hexdigest(), num_lines, position, compressed=compressed)


def _plan_array(file: FoundFile, name: str, cut: Cut, digest: str) -> InputFile:
    with open_content(file.path) as (stream, compressed):
        cutter = Cutter(stream, cut)
        for _, stored in arrays.elements(cutter, first=True, whole=True):
            cutter.add(stored)
    count, end = cutter.count, cutter.position
    return cutter.planned(file, name, digest, count, end, compressed=compressed, is_array=True)


def read(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    parse = {"jsonl": _parse_json, "text": _parse_text}[spec.format]
    for place, index, line in _lines_and_places(work):
        record = shown(line)
        row, problem = None, None
        if len(line) > MAX_RECORD_BYTES:
            problem = too_long()
        else:
            try:
                text = line.decode("utf-8-sig" if index == work.file_index else "utf-8")
            except UnicodeDecodeError as error:
                problem = ("InvalidUtf8", f"byte {error.start} of the line is not UTF-8: {error.reason}")
            else:
                row, problem = parse(text) if text.strip() else (None, ("EmptyLine", "the line is blank"))
        yield Raw(place, index, row, record, problem)


def shown(line: bytes) -> str:
    """As much of a record as errors/ keeps, and a little more where there is more."""
    return line[: min(MAX_RECORD_BYTES, 4 * (MAX_RECORD_CHARS + 1))].decode("utf-8", "backslashreplace")


def too_long() -> tuple[str, str]:
    return ("RecordTooLong", f"the record is longer than {MAX_RECORD_BYTES >> 20} MiB")


def _parse_json(text: str):
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, ("MalformedJson", str(error))
    if not isinstance(row, dict):
        return None, ("NotAnObject", f"it is {type(row).__name__}, not an object with named fields")
    return row, None


def _parse_text(text: str):
    return {"text": text.removesuffix("\r")}, None


def _lines_and_places(work: WorkShard) -> Iterator[tuple[str, int, bytes]]:
    """(place, index, line) of every line of the shard."""
    if work.num_records is None:
        for position, line in _lines_starting_in(work.path, *work.byte_range):
            yield f"{work.name}@{position}", work.file_index + position, line
        return
    with open_shard(work) as stream:
        lines = _elements(work, stream) if work.is_array else iterate_lines(stream)
        for i, line in enumerate(planned_records(work, lines)):
            yield f"{work.name}:{work.first_record + i + 1}", work.first_index + i, line


def _elements(work: WorkShard, stream) -> Iterator[bytes]:
    whole = work.byte_range is None
    return (element for element, _ in arrays.elements(stream, first=whole or work.byte_range[0] == 0, whole=whole))


def _lines_starting_in(path: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    with open_content(path) as (stream, _):
        position = max(start - 1, 0)
        stream.seek(position)
        lines = iterate_lines(stream, count_lost=True)
        if start:  # the rest of a line that starts before
            position += next(lines, (b"", 0))[1]
        for line, stored in lines:
            if position >= end:
                return
            yield position, line
            position += stored
    if position < end:
        raise InputError(f"{path!r} has changed since the job was planned: it ends at byte {position}, before {end}")


def iterate_lines(stream, count_lost: bool = False) -> Iterator:
    """Lines without their "\\n", the last one also where it lacks it, read in blocks of bounded size.

    Of a line longer than MAX_RECORD_BYTES one byte more than that is kept.

    Args:
      stream: its position is where the first line starts.
      count_lost: yield (line, bytes that it takes in the file, "\\n" included) instead.
    """
    carried, kept, stored = [], 0, 0
    while block := stream.read(_BLOCK_BYTES):
        head, *rest = block.split(b"\n")
        carried.append(head[: MAX_RECORD_BYTES + 1 - kept])
        kept, stored = kept + len(carried[-1]), stored + len(head)
        if rest:
            line = b"".join(carried)
            yield (line, stored + 1) if count_lost else line
            for line in rest[:-1]:
                yield (line, len(line) + 1) if count_lost else line
            carried, kept, stored = [rest[-1]], len(rest[-1]), len(rest[-1])
    if tail := b"".join(carried):
        yield (tail, stored) if count_lost else tail
