"""Planning: shards cover every record exactly once, for every shape of file, and what cannot be planned is named."""

import gzip
import json

import pytest

from transforms import plan as planning
from transforms.plan import InputError, Plan, RecordFields, ShardTable, find_files, plan_input, short_names
from transforms.read import read_lines

FIELDS = RecordFields("en")


def make_plan(paths, size, fields=FIELDS, known=None) -> Plan:
    return plan_input(find_files([str(path) for path in paths]), fields, size, known)


def all_lines(plan: Plan) -> list[list[bytes]]:
    table = ShardTable(plan)
    return [read_lines(table[shard]) for shard in range(plan.num_shards)]


@pytest.mark.parametrize("block", [3, 7, 1 << 22])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "content",
    [b"a\n", b"a", b"a\nbb\n", b"a\nbb", b"\n\n\n", b"a\n\nccc\n\n", b"ab\r\ncd\r\n", b"x" * 20 + b"\ny\nz\nz\nz\nz"],
)
def test_shards_cover_every_line_once(tmp_path, monkeypatch, block, size, compressed, content):
    monkeypatch.setattr(planning, "_BLOCK_BYTES", block)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(gzip.compress(content) if compressed else content)
    expected = content.split(b"\n")
    expected = expected[:-1] if content.endswith(b"\n") else expected
    plan = make_plan([path], size)
    shards = all_lines(plan)
    assert [line for shard in shards for line in shard] == expected
    assert all(len(shard) == size for shard in shards[:-1])
    assert plan.num_records == len(expected)


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
    (tmp_path / "a.jsonl").write_text('{"en": "x"}\n' * 5)
    plan = make_plan([tmp_path / "a.jsonl"], 2)
    monkeypatch.setattr(planning, "_plan_file", lambda *_: pytest.fail("read again"))
    assert make_plan([tmp_path / "a.jsonl"], 2, known=plan) == plan


def test_changed_files_are_read_again(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"en": "x"}\n' * 5)
    plan = make_plan([tmp_path / "a.jsonl"], 2)
    (tmp_path / "a.jsonl").write_text('{"en": "x"}\n' * 6)
    again = make_plan([tmp_path / "a.jsonl"], 2, known=plan)
    assert again.num_records == 6
    assert again.files[0].sha256 != plan.files[0].sha256
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


def test_ids_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_BLOCK_BYTES", 5)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"en": "x", "k": {i}}}\n' for i in [*range(50), 17]))
    with pytest.raises(InputError, match=r"'17' at a.jsonl:18, a.jsonl:51"):
        make_plan([tmp_path / "a.jsonl"], 2, RecordFields("en", example_id="k"))


@pytest.mark.parametrize(
    ("fields", "setting"),
    [(RecordFields("text"), "input_field"), (RecordFields("en", "fr"), "target_field")],
)
def test_a_field_that_no_record_has(tmp_path, fields, setting):
    (tmp_path / "a.jsonl").write_text('broken\n{"en": "x", "de": "y"}\n')
    with pytest.raises(InputError, match=f"input.{setting} .* fields there: de, en"):
        make_plan([tmp_path / "a.jsonl"], 2, fields)


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match="matches no file"):
        find_files([str(tmp_path / "*.jsonl")])
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match="no record"):
        make_plan([tmp_path / "a.jsonl"], 2)
