"""Planning: shards cover every record exactly once, for every shape of file, and what cannot be planned is named."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms import plan as planning
from transforms import storage
from transforms.inputs import lines, parquet, read_records
from transforms.plan import (
    Cut,
    InputError,
    InputSpec,
    Plan,
    RecordFields,
    ShardTable,
    find_files,
    plan_input,
    short_names,
)

FIELDS = RecordFields("en")


def spec_of(paths, fields=FIELDS, format="jsonl") -> InputSpec:
    return InputSpec(format, fields, tuple(str(path) for path in paths))


def make_plan(paths, size, fields=FIELDS, known=None) -> Plan:
    return plan_input(spec_of(paths, fields), Cut(size), known)


def all_records(plan: Plan, spec: InputSpec) -> list[list[str]]:
    table, read = ShardTable(plan), planning.format_module(spec.format).read
    return [[raw.record for raw in read(table[shard], spec)] for shard in range(plan.num_shards)]


CONTENTS = [b"a\n", b"a", b"a\nbb\n", b"a\nbb", b"\n\n\n", b"a\n\nccc\n\n", b"ab\r\ncd\r\n", b"x" * 20 + b"\ny\nz\nz\nz\nz"]


def lines_of(content: bytes) -> list[str]:
    expected = content.decode().split("\n")
    return expected[:-1] if content.endswith(b"\n") else expected


@pytest.fixture
def unprobed(monkeypatch):
    """Planning takes lines that are no records, and nothing else."""
    monkeypatch.setattr(planning, "_probe", lambda *_: "")


@pytest.mark.parametrize("block", [3, 7, 1 << 22])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("content", CONTENTS)
def test_shards_cover_every_line_once(tmp_path, monkeypatch, unprobed, block, size, compressed, content):
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(gzip.compress(content) if compressed else content)
    plan = make_plan([path], size)
    shards = all_records(plan, spec_of([path]))
    assert [line for shard in shards for line in shard] == lines_of(content)
    assert all(len(shard) == size for shard in shards[:-1])
    assert plan.num_records == len(lines_of(content))


@pytest.mark.parametrize("block", [3, 7, 1 << 22])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("content", CONTENTS)
def test_byte_ranges_cover_every_line_once(tmp_path, monkeypatch, unprobed, block, size, content):
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(content)
    spec = spec_of([tmp_path / "*.txt"], RecordFields("text"), "text")
    plan = plan_input(spec, Cut(256, size))
    assert (plan.num_records, plan.num_shards) == (None, 2 * -(-len(content) // size))
    table = ShardTable(plan)
    raws = [raw for shard in range(plan.num_shards) for raw in lines.read(table[shard], spec)]
    assert [raw.record for raw in raws] == 2 * lines_of(content)
    starts = [len("\n".join(["", *lines_of(content)[:i]])) for i in range(len(lines_of(content)))]
    assert [raw.place for raw in raws] == [f"{name}@{start}" for name in ("a.txt", "b.txt") for start in starts]
    assert [raw.index for raw in raws] == [base + start for base in (0, len(content)) for start in starts]


def test_byte_ranges_are_planned_without_reading(tmp_path, monkeypatch):
    """But for the first records, and for samples that tell whether the content is the same."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"en": "x"}\n' * 1_000_000)
    plan = plan_input(spec_of([path]), Cut(256, 4096))
    assert plan.num_shards == 2930
    assert len(json.dumps(plan.to_json())) < 400
    digest = plan.files[0].digest
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    assert plan_input(spec_of([path]), Cut(256, 4096)).files[0].digest != digest


def test_a_file_that_lost_its_end_is_not_read_as_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\n" * 4)
    spec = spec_of([path], RecordFields("text"), "text")
    table = ShardTable(plan_input(spec, Cut(256, 8)))
    path.write_bytes(b"abc\n" * 3)
    assert [raw.place for raw in lines.read(table[0], spec)] == ["a.txt@0", "a.txt@4"]
    with pytest.raises(InputError, match="has changed .* ends at byte 12, before 16"):
        list(lines.read(table[1], spec))


def test_files_are_ordered_and_indices_run_through(tmp_path):
    for name, count in (("b.jsonl", 3), ("a.jsonl", 4), ("empty.jsonl", 0), ("c.jsonl", 2)):
        (tmp_path / name).write_text("".join(f'{{"en": "{name} {i}"}}\n' for i in range(count)))
    plan = make_plan([tmp_path / "*.jsonl"], 2)
    table = ShardTable(plan)
    shards = [table[i] for i in range(plan.num_shards)]
    assert [(s.name, s.first_record, s.num_records, s.first_index) for s in shards] == [
        ("a.jsonl", 0, 2, 0), ("a.jsonl", 2, 2, 2), ("b.jsonl", 0, 2, 4), ("b.jsonl", 2, 1, 6), ("c.jsonl", 0, 2, 7),
    ]  # fmt: skip
    assert {s.num_shards for s in shards} == {5}


def test_plan_survives_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"en": "x"}\n' * 5)
    plan = make_plan([tmp_path / "a.jsonl"], 2)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.files[0].shard_bytes == (24, 24, 12)


def test_a_file_matched_twice_is_read_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"en": "x"}\n')
    assert make_plan([tmp_path / "a.jsonl", tmp_path / "*.jsonl"], 2).num_records == 1


def test_short_names():
    assert short_names(["/x/a", "/y/b"]) == ["a", "b"]
    assert short_names(["/x/1/a", "/x/2/a"]) == ["1/a", "2/a"]


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"en": "x", "k": 1}\n')
    fields = RecordFields("en", example_id="k")
    plan = make_plan([tmp_path / "a.jsonl"], 2, fields)
    monkeypatch.setattr(lines, "plan_file", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(lines, "read", lambda *_: pytest.fail("read again"))
    assert make_plan([tmp_path / "a.jsonl"], 2, fields, known=plan) == plan


def test_changed_files_are_read_again(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"en": "x"}\n' * 5)
    plan = make_plan([tmp_path / "a.jsonl"], 2)
    (tmp_path / "a.jsonl").write_text('{"en": "x"}\n' * 6)
    again = make_plan([tmp_path / "a.jsonl"], 2, known=plan)
    assert again.num_records == 6
    assert again.files[0].digest != plan.files[0].digest
    assert make_plan([tmp_path / "a.jsonl"], 3, known=again).num_shards == 2  # another cutting is another plan


def test_duplicate_ids_are_refused_by_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"en": "x", "k": "one"}\n{"en": "y", "k": "two"}\nnot json\n{"en": "z"}\n')
    (tmp_path / "b.jsonl").write_text('{"en": "x", "k": "three"}\n{"en": "y", "k": "two"}')
    with pytest.raises(InputError, match=r"1 example ids .* 'two' at a.jsonl:2, b.jsonl:2"):
        make_plan([tmp_path / "*.jsonl"], 2, RecordFields("en", example_id="k"))


def test_a_collision_of_hashes_is_no_duplicate(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_id_hash", lambda example_id: 7)
    (tmp_path / "a.jsonl").write_text('{"en": "x", "k": "one"}\n{"en": "y", "k": "two"}\n')
    assert make_plan([tmp_path / "a.jsonl"], 2, RecordFields("en", example_id="k")).num_records == 2


@pytest.mark.parametrize("packed", [False, True])
def test_ids_across_blocks(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 5)
    text = "".join(f'{{"en": "x", "k": {i}}}\n' for i in [*range(50), 17]).encode()
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(text) if packed else text)
    with pytest.raises(InputError, match=r"'17' at a.jsonl:18, a.jsonl:51"):
        make_plan([tmp_path / "a.jsonl"], 2, RecordFields("en", example_id="k"))


def damaged_parquet(path, group: int):
    """600 records in two row groups, of which one's first page of ids is no page any more."""
    table = pa.table({"en": ["x"] * 600, "k": list(map(str, range(600)))})
    pq.write_table(table, path, row_group_size=300, use_dictionary=False, compression="none")
    page = pq.read_metadata(path).row_group(group).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[page : page + 8] = b"\xff" * 8
    path.write_bytes(data)
    return spec_of([path], RecordFields("en", example_id="k"), "parquet")


def test_a_row_group_that_cannot_be_read_costs_its_records(tmp_path):
    """Planning reads a Parquet file's end and its first records; the ids, and a shard, are in all of it."""
    spec = damaged_parquet(tmp_path / "a.parquet", 1)
    table = ShardTable(plan_input(spec, Cut(250)))
    raws = [raw for shard in range(3) for raw in read_records(table[shard], spec)]
    assert [raw.index for raw in raws] == list(range(600))
    assert [raw.row and raw.row["k"] for raw in raws] == [*(str(i).encode() for i in range(300)), *[None] * 300]
    assert {raw.problem and (raw.problem[0], raw.problem[1][:28]) for raw in raws} == {
        None, ("CorruptRecord", "row group 2 cannot be read: "),
    }  # fmt: skip


def test_a_parquet_file_whose_beginning_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none of the first 100 records of .* can be read; .* CorruptRecord, row group 1"):
        plan_input(damaged_parquet(tmp_path / "a.parquet", 0), Cut(100))


def test_a_store_that_fails_is_no_damaged_row_group(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if armed and size > 100:
                raise OSError("Forbidden")
            return super().read(size)

    spec = damaged_parquet(tmp_path / "a.parquet", 1)
    work, armed = ShardTable(plan_input(spec, Cut(250)))[0], False
    data = (tmp_path / "a.parquet").read_bytes()
    monkeypatch.setattr(storage, "open_raw", lambda path: Failing(data))
    raws = parquet.read(work, spec)
    assert next(raws).row["k"] == b"0"
    armed = True
    with pytest.raises(OSError, match="Forbidden"):
        list(parquet.read(work, spec))


@pytest.mark.parametrize(
    ("fields", "setting"),
    [(RecordFields("text"), "input_field"), (RecordFields("en", "fr"), "target_field")],
)
def test_a_field_that_no_record_has(tmp_path, fields, setting):
    (tmp_path / "a.jsonl").write_text('broken\n{"en": "x", "de": "y"}\n')
    with pytest.raises(InputError, match=f"input.{setting} .* fields there: de, en"):
        make_plan([tmp_path / "a.jsonl"], 2, fields)


@pytest.mark.parametrize("cut", [Cut(2), Cut(2, 4096)])
def test_utf16_is_refused(tmp_path, cut):
    (tmp_path / "a.jsonl").write_text('{"en": "x"}\n', encoding="utf-16")
    with pytest.raises(InputError, match="UTF-16; allowed: UTF-8"):
        plan_input(spec_of([tmp_path / "a.jsonl"]), cut)


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match="matches no file"):
        find_files([str(tmp_path / "*.jsonl")])
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match="no record"):
        make_plan([tmp_path / "a.jsonl"], 2)
