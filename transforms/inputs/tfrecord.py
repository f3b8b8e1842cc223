"""TFRecord files of tf.train.Example, compressed or not. Their frames are walked once at launch; contents are hashed.

A record whose checksum does not fit, or that is no tf.train.Example, is one broken record. A frame's broken length is a
broken file, since nothing tells where the next record starts.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c

from transforms.inputs.base import (
    MAX_RECORD_BYTES,
    Cut,
    Cutter,
    FoundFile,
    InputError,
    InputFile,
    InputSpec,
    Raw,
    needs_tensorflow,
    open_content,
    open_shard,
    planned_records,
)
from transforms.records import MAX_RECORD_CHARS, WorkShard

_LENGTH_BYTES, _CRC_BYTES = 8, 4
_SHOWN_BYTES = 1024
_BLOCK_BYTES = 1 << 22


def plan_file(file: FoundFile, name: str, spec: InputSpec, cut: Cut) -> InputFile:
    del spec
    digest = hashlib.sha256()
    with open_content(file.path) as (stream, compressed):
        cutter = Cutter(stream, cut)

        def see(block: bytes) -> None:  # it belongs to the shard that has not ended, so that nothing piles up
            digest.update(block)
            cutter.sum_up(1 << 62)

        for length, *_ in _frames(cutter, file.path, see):
            cutter.add(_LENGTH_BYTES + 2 * _CRC_BYTES + length)
    count, end = cutter.count, cutter.position
    return cutter.planned(file, name, digest.hexdigest(), count, end, compressed=compressed)


def read(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    del spec
    with needs_tensorflow("the format tfrecord"):
        from tensorflow.core.example.example_pb2 import Example
    with open_shard(work) as stream:
        frames = _frames(stream, work.path)
        for number, (length, blocks, crc) in enumerate(planned_records(work, frames)):
            data, row = b"".join(blocks), None
            if length > MAX_RECORD_BYTES:
                problem = ("RecordTooLong", f"the record has {length} bytes; allowed: {MAX_RECORD_BYTES}")
            elif crc != _masked_crc(data):
                problem = ("CorruptRecord", "the record's checksum does not fit its content")
            else:
                row, problem = _parse(Example, data)
            place = f"{work.name}:{work.first_record + number + 1}"
            record = str(row)[: 2 * MAX_RECORD_CHARS] if row is not None else repr(data[:_SHOWN_BYTES])
            yield Raw(place, work.first_index + number, row, record, problem)


def _frames(stream, path: str, see: Callable[[bytes], None] = lambda block: None) -> Iterator[tuple[int, list[bytes], bytes]]:
    """(length, data in blocks, its stored checksum) of every record from the stream's position on.

    Of the data of a record longer than MAX_RECORD_BYTES the first block is kept; `see` is given all.
    """
    while header := stream.read(_LENGTH_BYTES + _CRC_BYTES):
        if len(header) < _LENGTH_BYTES + _CRC_BYTES or header[_LENGTH_BYTES:] != _masked_crc(header[:_LENGTH_BYTES]):
            raise InputError(f"{path!r} is no TFRecord file, or a broken one: no record's length where one must be")
        (length,) = struct.unpack("<Q", header[:_LENGTH_BYTES])
        blocks, left = [], length
        while left and (block := stream.read(min(left, _BLOCK_BYTES))):
            see(block)
            if length <= MAX_RECORD_BYTES or not blocks:
                blocks.append(block)
            left -= len(block)
        crc = stream.read(_CRC_BYTES)
        see(crc)
        if left or len(crc) < _CRC_BYTES:
            raise InputError(f"{path!r} ends inside a record")
        yield length, blocks, crc


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _parse(message: type, data: bytes) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
    try:
        example = message.FromString(data)
    except Exception as error:  # protobuf's implementations differ in what they raise
        return None, ("MalformedExample", f"the record is no tf.train.Example: {error}")
    return {name: _value(feature) for name, feature in example.features.feature.items()}, None


def _value(feature) -> Any:
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return values[0] if len(values) == 1 else (values or None)
