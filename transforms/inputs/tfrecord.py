"""TFRecord files of tf.train.Example, plain or gzip. Their frames are walked once at launch; contents are hashed.

A record whose checksum does not fit, or that is no tf.train.Example, is one broken record. A frame's broken length is a
broken file, since nothing tells where the next record starts.
"""

import hashlib
import struct
from collections.abc import Iterator
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
    planned_records,
)
from transforms.records import WorkShard

_LENGTH_BYTES, _CRC_BYTES = 8, 4
_SHOWN_BYTES = 1024


def plan_file(file: FoundFile, name: str, spec: InputSpec, cut: Cut) -> InputFile:
    del spec
    digest, cutter = hashlib.sha256(), Cutter(cut)
    with open_content(file.path) as (stream, compressed):
        for data, crc in _frames(stream, file.path):
            digest.update(data + crc)
            cutter.add(_LENGTH_BYTES + 2 * _CRC_BYTES + len(data))
    return cutter.planned(file, name, digest.hexdigest(), compressed=compressed)


def read(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    del spec
    with needs_tensorflow("the format tfrecord"):
        from tensorflow.core.example.example_pb2 import Example
    start, end = work.byte_range or (0, None)
    with open_content(work.path) as (stream, _):
        stream.seek(start)
        frames = _frames(stream, work.path, end)
        for number, (data, crc) in enumerate(planned_records(work, frames)):
            row, problem = None, None
            if crc != _masked_crc(data):
                problem = ("CorruptRecord", "the record's checksum does not fit its content")
            else:
                row, problem = _parse(Example, data)
            place = f"{work.name}:{work.first_record + number + 1}"
            record = str(row) if row is not None else repr(data[:_SHOWN_BYTES])
            yield Raw(place, work.first_index + number, row, record, problem)


def _frames(stream, path: str, end: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """(data, its stored checksum) of every record from the stream's position on, up to the byte `end`."""
    while (end is None or stream.tell() < end) and (header := stream.read(_LENGTH_BYTES + _CRC_BYTES)):
        if len(header) < _LENGTH_BYTES + _CRC_BYTES or header[_LENGTH_BYTES:] != _masked_crc(header[:_LENGTH_BYTES]):
            raise InputError(f"{path!r} is no TFRecord file, or a broken one: no record's length where one must be")
        (length,) = struct.unpack("<Q", header[:_LENGTH_BYTES])
        if length > MAX_RECORD_BYTES:
            raise InputError(f"{path!r} has a record of {length} bytes; allowed: {MAX_RECORD_BYTES}")
        data, crc = stream.read(length), stream.read(_CRC_BYTES)
        if len(data) < length or len(crc) < _CRC_BYTES:
            raise InputError(f"{path!r} ends inside a record")
        yield data, crc


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
