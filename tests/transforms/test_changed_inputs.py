"""An input that is rewritten while a job runs: every shard is what was planned, or is not read."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.transforms.test_fuzz_inputs import tfrecord
from transforms.inputs import read_records
from transforms.inputs.base import InputError
from transforms.plan import Cut, InputSpec, Plan, RecordFields, ShardTable, plan_input


def rows(word="word"):
    return [{"en": f"{word} {i}", "de": f"Wort {i}"} for i in range(6)]


def lines(found) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in found)


def parquet(found) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({name: [row[name] for row in found] for name in found[0]}), stream)
    return stream.getvalue().to_pybytes()


FORMATS = {
    "jsonl": ("jsonl", lines, 0),
    "array": ("jsonl", lambda found: json.dumps(found).encode(), 0),
    "csv": ("csv", lambda found: b"en,de\n" + b"".join(f"{row['en']},{row['de']}\n".encode() for row in found), 0),
    "tfrecord": ("tfrecord", tfrecord, 0),
    "gzip": ("jsonl", lambda found: gzip.compress(lines(found), mtime=0), 0),
    "parquet": ("parquet", parquet, 0),
    "bytes": ("jsonl", lines, 64),
}
CHECKED_BY_CONTENT = ("jsonl", "array", "csv", "tfrecord")


def planned(tmp_path, kind) -> tuple[ShardTable, InputSpec, int]:
    name, encode, num_bytes = FORMATS[kind]
    (tmp_path / "input").write_bytes(encode(rows()))
    spec = InputSpec(name, RecordFields("en", "de"), (str(tmp_path / "input"),))
    plan = Plan.from_json(json.loads(json.dumps(plan_input(spec, Cut(2, num_bytes)).to_json())))
    return ShardTable(plan), spec, plan.num_shards


def rewrite(path, data: bytes, seconds: float) -> None:
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, (before.st_atime, before.st_mtime + seconds))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seconds", [0, 1])
def test_other_content_of_the_same_size(tmp_path, kind, seconds):
    table, spec, num_shards = planned(tmp_path, kind)
    if not seconds and kind not in CHECKED_BY_CONTENT:
        pytest.skip("of such a file, the same size and the same time are taken for the same content")
    assert sum(len(list(read_records(table[i], spec))) for i in range(num_shards)) == 6
    rewrite(tmp_path / "input", FORMATS[kind][1](rows("WORD")), seconds)
    for shard in range(num_shards):
        with pytest.raises(InputError, match="has changed since the job was planned"):
            list(read_records(table[shard], spec))


@pytest.mark.parametrize("kind", FORMATS)
def test_while_a_shard_is_read(tmp_path, kind):
    table, spec, _ = planned(tmp_path, kind)
    if kind in CHECKED_BY_CONTENT:
        pytest.skip("the block that was read is what counts")
    found = read_records(table[0], spec)
    next(found)
    rewrite(tmp_path / "input", FORMATS[kind][1](rows("WORD")), 1)
    with pytest.raises(InputError, match="has changed since the job was planned"):
        list(found)


@pytest.mark.parametrize("kind", [*CHECKED_BY_CONTENT, "parquet"])
def test_the_same_content_written_again(tmp_path, kind):
    table, spec, num_shards = planned(tmp_path, kind)
    rewrite(tmp_path / "input", FORMATS[kind][1](rows()), 1)
    assert sum(len(list(read_records(table[i], spec))) for i in range(num_shards)) == 6


def test_other_names_of_the_fields(tmp_path):
    """They stand in the first line only, and are every shard's."""
    table, spec, num_shards = planned(tmp_path, "csv")
    content = (tmp_path / "input").read_bytes()
    rewrite(tmp_path / "input", content.replace(b"en,de", b"de,en"), 0)
    for shard in range(num_shards):
        with pytest.raises(InputError, match="has changed since the job was planned"):
            list(read_records(table[shard], spec))


def test_a_file_that_grows_is_read_as_far_as_it_was_planned(tmp_path):
    table, spec, num_shards = planned(tmp_path, "jsonl")
    with open(tmp_path / "input", "ab") as stream:
        stream.write(lines(rows("more")))
    found = [raw.row["en"] for shard in range(num_shards) for raw in read_records(table[shard], spec)]
    assert found == [row["en"] for row in rows()]


def test_checksums_take_little_room(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(rows() * 1000))
    plan = plan_input(InputSpec("jsonl", RecordFields("en"), (str(tmp_path / "a.jsonl"),)), Cut(2))
    assert len(plan.files[0].checksums) == 8 * plan.num_shards == 24_000
    assert len({plan.files[0].checksums[i : i + 8] for i in range(0, 24_000, 8)}) == 3
