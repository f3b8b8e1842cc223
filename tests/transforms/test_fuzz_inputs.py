"""Every reader over thousands of broken files: one line at launch, or one error for each record that is broken."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import struct
import time

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.inputs.base import InputError
from transforms.plan import Cut, InputSpec, RecordFields, ShardTable, plan_input
from transforms.read import read_shard

INPUTS, HANG_SECS = 1000, 10
FIELDS = RecordFields("en", "de", "k")
ROWS = [{"k": f"id {i}", "en": f"sentence {i}, with ümlauts", "de": f'"Satz" {i}'} for i in range(9)]
PIECES = [
    b'"', b"'", b"\n", b"\r\n", b"\r", b",", b";", b"\t", b"[", b"]", b"{", b"}", b":", b"\\", b"\\ud800", b"\x00", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xff", b"\xc3", b"null", b"NaN", b"1e999", b"-", b"9" * 5000, b"[" * 3000,
    b'{"a":' * 3000,
    b"PK\x03\x04", b"BZh9", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1", b"en,de,k", b" " * 100, b"x" * 5000,
]  # fmt: skip


class Letters:
    begin = ()

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord(rows) -> bytes:
    from tensorflow.core.example.example_pb2 import Example

    frames = []
    for row in rows:
        example = Example()
        for name, value in row.items():
            example.features.feature[name].bytes_list.value.append(value.encode())
        data = example.SerializeToString()
        length = struct.pack("<Q", len(data))
        frames += [length, masked_crc(length), data, masked_crc(data)]
    return b"".join(frames)


def parquet(rows) -> bytes:
    stream = io.BytesIO()
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    pq.write_table(table.set_column(2, "de", table["de"].dictionary_encode()), stream, row_group_size=4)
    return stream.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
WRITERS = {
    "jsonl": ("jsonl", lambda: LINES),
    "array": ("jsonl", lambda: json.dumps(ROWS, indent=1).encode()),
    "csv": ("csv", lambda: b"k,en,de\n" + b"".join(f'{i},"a ""b"" {i}\nc",d\n'.encode() for i in range(9))),
    "tsv": ("csv", lambda: b"k\ten\tde\n" + b"".join(f'{i}\t"a {i}\td\n'.encode() for i in range(9))),
    "text": ("text", lambda: "".join(row["en"] + "\n" for row in ROWS).encode()),
    "parquet": ("parquet", lambda: parquet(ROWS)),
    "tfrecord": ("tfrecord", lambda: tfrecord(ROWS)),
    "gzip": ("jsonl", lambda: gzip.compress(LINES)),
    "bzip2": ("jsonl", lambda: bz2.compress(LINES)),
    "xz": ("jsonl", lambda: lzma.compress(LINES)),
    "zstd": ("jsonl", lambda: pa.compress(LINES, codec="zstd", asbytes=True)),
}


def broken(data: bytes, rng: random.Random) -> bytes:
    """`data` with something flipped, put in, left out, moved or cut off; now and then nothing of it is left."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(300))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        end = min(end, at + rng.choice((1, 4, 40, 10_000)))
        match rng.randrange(6):
            case 0 if at < len(data):
                data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
            case 1:
                data = data[:at] + rng.choice(PIECES) + data[at:]
            case 2:
                data = data[:at] + data[end:]
            case 3:
                data = data[:at]
            case 4:
                data = data[:at] + rng.randbytes(end - at) + data[end:]
            case _:
                data = data[:end] + data[at:]
    return data


def attempt(spec: InputSpec, cut: Cut) -> tuple[int, int] | None:
    """(examples, errors) of an input; None where it is refused."""
    try:
        plan = plan_input(spec, cut)
    except InputError as error:
        assert str(error)
        return None
    table, examples, errors = ShardTable(plan), 0, 0
    for shard in range(plan.num_shards):
        read = read_shard(table[shard], spec, Letters(), prefix="", eos_id=1, max_input_tokens=64)
        examples, errors = examples + len(read.examples), errors + len(read.errors)
    assert plan.num_records in (None, examples + errors)
    return examples, errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_broken_files(tmp_path, kind):
    name, make = WRITERS[kind]
    good, rng, path = make(), random.Random(kind), tmp_path / "input"
    slowest, refused, examples, errors = 0.0, 0, 0, 0
    here = sorted(os.listdir())
    for i in range(INPUTS):
        path.write_bytes(broken(good, rng))
        fields = RecordFields("text") if name == "text" else FIELDS if i % 3 == 0 else RecordFields("en", "de")
        delimiter, quoting = ("\t", "none") if kind == "tsv" else (",", "csv")
        spec = InputSpec(name, fields, (str(path),), delimiter=delimiter, quoting=quoting)
        by_bytes = kind in ("jsonl", "text", "gzip") and i % 5 == 1 and not fields.example_id
        started = time.process_time()
        found = attempt(spec, Cut(rng.choice((1, 2, 4, 100)), 64 if by_bytes else 0))
        slowest = max(slowest, time.process_time() - started)
        refused += found is None
        examples, errors = examples + (found or (0, 0))[0], errors + (found or (0, 0))[1]
    assert slowest < HANG_SECS
    assert refused and examples  # the files are broken, and not all of each
    assert errors or kind in ("gzip", "bzip2", "xz", "zstd", "text")
    assert os.listdir(tmp_path) == ["input"] and sorted(os.listdir()) == here
