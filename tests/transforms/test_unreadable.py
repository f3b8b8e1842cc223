"""Compressed files and JSON arrays are read; an input of which nothing can be read is refused with the likely cause."""

import bz2
import gzip
import json
import logging
import lzma

import pyarrow as pa
import pytest

from transforms.inputs import arrays, read_records
from transforms.inputs.base import InputError
from transforms.plan import Cut, InputSpec, RecordFields, ShardTable, plan_input

FIELDS = RecordFields("text")
ROWS = [{"text": f'the [dog], {i} "ü" {{}}', "id": i} for i in range(8)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
PACKED = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def records(path, size=3, fields=FIELDS, format="jsonl", **settings) -> list:
    """Row or (type, message) of every record."""
    spec = InputSpec(format, fields, (str(path),), **settings)
    plan = plan_input(spec, Cut(size))
    table = ShardTable(plan)
    raws = [raw for shard in range(plan.num_shards) for raw in read_records(table[shard], spec)]
    assert [raw.index for raw in raws] == list(range(plan.num_records))
    return [raw.problem if raw.row is None else raw.row for raw in raws]


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("format", ["jsonl", "csv", "text"])
def test_compressed_files_are_read(tmp_path, kind, format):
    """Whatever their names say, in one piece or in several, and a truncated one is refused."""
    content = {"jsonl": LINES, "csv": b"text,id\na,1\nb,2\nc,3\nd,4\n", "text": b"a\nb\nc\nd\n"}[format]
    (tmp_path / "plain").write_bytes(content)
    expected = records(tmp_path / "plain", format=format)
    packed = PACKED[kind](content)
    (tmp_path / "packed").write_bytes(packed)
    assert records(tmp_path / "packed", format=format) == expected
    (tmp_path / "twice").write_bytes(PACKED[kind](content[:10]) + PACKED[kind](content[10:]))
    assert records(tmp_path / "twice", format=format) == expected
    (tmp_path / "packed").write_bytes(packed[:-3])
    with pytest.raises(InputError, match="packed' cannot be read"):
        records(tmp_path / "packed", format=format)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("block", [5, 1 << 22])
@pytest.mark.parametrize("pack", [None, "xz", "zstd"])
def test_an_array_is_as_many_records(tmp_path, monkeypatch, size, block, pack):
    monkeypatch.setattr(arrays, "_BLOCK_BYTES", block)
    texts = (json.dumps(ROWS), "\ufeff\n" + json.dumps(ROWS, indent=1, ensure_ascii=False) + "\n\n")
    for data in (text.encode() for text in texts):
        (tmp_path / "a.json").write_bytes(PACKED[pack](data) if pack else data)
        assert records(tmp_path / "a.json", size) == ROWS


def test_a_broken_element_costs_itself(tmp_path):
    content = b'[{"text": "a"}, 12, [1, 2], null, {"text": "\xff"}, {"text": "b\x01"}, %s, {"text": "\xc3\xbc"}]'
    (tmp_path / "a.json").write_bytes(content % (b"9" * 5000))
    found = records(tmp_path / "a.json", 2)
    assert [one if isinstance(one, dict) else one[0] for one in found] == [
        {"text": "a"}, *["NotAnObject"] * 3, "InvalidUtf8", "MalformedJson", "MalformedJson", {"text": "ü"},
    ]  # fmt: skip


def test_lines_that_begin_with_a_list_are_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('["x", 1]\n{"text": "a"}\n')
    assert [type(one) for one in records(tmp_path / "a.jsonl")] == [tuple, dict]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b'[{"text": "a"}, {"text"', {}, "MalformedJson.*; it begins like a JSON array, and is not a whole one"),
        (b'{\n "text": "a"\n}\n', {}, "MalformedJson.*; it looks like pretty-printed JSON"),
        (b"<xml>\n<text>a</text>\n", {}, "it looks like XML"),
        (b"text,id\na,1\n", {}, 'it looks like CSV; set input.format to "csv"'),
        (b"[1, 2]", {}, "none of the first 2 records of .* NotAnObject, it is int"),
        (b"PK\x03\x04" + b"x" * 99, {}, "a ZIP archive"),
        (b"x" * 257 + b"ustar\x0000", {}, "a tar archive"),
        (gzip.compress(b"x" * 257 + b"ustar\x0000", mtime=0), {}, "a tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", {"format": "text"}, "is Git LFS's pointer to a file"),
        (b"\x2a" + bytes(7) + b"\x93\x1f\x02\x88\n", {}, 'is a TFRecord file; set input.format to "tfrecord"'),
        (b'{"text": "a"}\r{"text": "b"}\r', {}, r"MalformedJson.*; its lines end with \\r alone"),
        (b"text,id\ra,1\r", {"format": "csv"}, r"no record in .*; its lines end with \\r alone"),
        (b"\x04\x22\x4d\x18" + bytes(99), {}, "compressed by LZ4; allowed: gzip, bzip2, xz, zstd"),
        ('{"text": "a"}\n'.encode("utf-16"), {}, "is UTF-16; allowed: UTF-8"),
        ('{"text": "a"}\n'.encode("utf-16-le"), {}, "is UTF-16; allowed: UTF-8"),
        ('{"text": "a"}\n'.encode("utf-16-be"), {}, "is UTF-16; allowed: UTF-8"),
        ("a text\n".encode("utf-16-le"), {"format": "text"}, "is UTF-16; allowed: UTF-8"),
        ("text,id\na,1\n".encode("utf-32"), {"format": "csv"}, "is UTF-(16|32); allowed: UTF-8"),
        (b"id;text\n1;a, b\n", {"format": "csv"}, "WrongNumberOfFields.*input.delimiter is ',', .* parted by ';'"),
        (b"id\ttext\n1\ta\n", {"format": "csv"}, r"input.input_field is 'text'.*input.delimiter is ',', .* by '\\t'"),
        (b"\n\n", {"format": "text"}, "EmptyLine"),
        (b'{"text": "a", "id": 1.0}\n{"text": "b", "id": 2.0}\n', {"fields": RecordFields("text", "", "id")},
         "none of the first 2 records of .* WrongType, 'id' is 1.0"),
        (b'{"text": 1}\n{"text": 2}\n', {}, "WrongType, field 'text' holds int"),
    ],
)  # fmt: skip
def test_nothing_readable_is_refused_with_its_likely_cause(tmp_path, content, settings, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=message):
        records(tmp_path / "a", **settings)


def test_one_readable_file_is_enough(tmp_path):
    """A file of broken records among others costs those records, as ever; one that is no text is refused."""
    (tmp_path / "a.jsonl").write_text("broken\n")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    assert [type(one) for one in records(tmp_path / "*.jsonl")] == [tuple, dict]
    (tmp_path / "b.jsonl").write_text("broken, too\n")
    with pytest.raises(InputError, match="none of the first 1 records of '.*a.jsonl'"):
        records(tmp_path / "*.jsonl")


TABS = b'id\ttext\n1\t"Hello, she said.\n2\tthe dog\n3\tand he said: bye"\r\n4\tthe end\n'


def test_quotes_that_mean_nothing(tmp_path, caplog):
    (tmp_path / "a.tsv").write_bytes(TABS)
    found = records(tmp_path / "a.tsv", 1, format="csv", delimiter="\t", quoting="none")
    assert [row["text"] for row in found] == ['"Hello, she said.', "the dog", 'and he said: bye"', "the end"]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        found = records(tmp_path / "a.tsv", 1, format="csv", delimiter="\t")
    assert len(found) == 2
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "record 1 of" in warning and 'set input.quoting to "none"' in warning
