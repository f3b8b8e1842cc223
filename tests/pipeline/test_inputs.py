"""The job over every plain format, and cut in every way: the same rows."""

import csv
import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import generate
from tests.pipeline.helpers import assert_same_rows, errors, rows, run, summary
from tests.support import datasets
from transforms.columns import GENERATIONS

THREE_WAYS = {1: 40, 7: 6, 40: 1}
"""Shards of 40 rows, by examples in each."""


@pytest.fixture
def sentences(tmp_path):
    """40 records of real sentences, two of them broken, with ids."""
    records = [{"k": f"id {i}", **row} for i, row in enumerate(datasets.translations(40))]
    lines = [json.dumps(row) for row in records]
    lines[11], lines[30] = "broken", '{"k": "id 30"}'
    path = tmp_path / "input.jsonl"
    path.write_text("\n".join(lines))
    return path


def all_rows(folder) -> pd.DataFrame:
    table = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "generations").iterdir())])
    return table.to_pandas().sort_values("example_id").reset_index(drop=True)


@pytest.mark.parametrize("id_field", ["", "k"])
def test_three_ways(command, tmp_path, id_field):
    """1, 7 and 40 shards: all columns are equal but those that say where and when; so are errors and totals."""
    found = {}
    for shards, size in THREE_WAYS.items():
        out = tmp_path / f"out{shards}"
        settings = (f"--config.shards.examples_per_shard={size}", f"--config.input.id_field={id_field}")
        run(command(*settings, output=out))
        assert summary(out)["shards"]["total"] == shards
        found[shards] = (all_rows(out), errors(out), summary(out)["alpha"], summary(out)["tokens"])
    frame = found[1][0]
    assert len(frame) == 38 and set(frame.columns) == {column.name for column in GENERATIONS}
    for shards in (7, 40):
        ours = found[shards][0]
        assert_same_rows(
            frame.drop(columns=["shard", "index", "decode_seconds"]), ours.drop(columns=["shard", "index", "decode_seconds"])
        )
        assert set(ours["shard"]) == set(range(shards)) - ({11, 30} if shards == 40 else set())
        assert found[shards][1:] == found[1][1:]


def test_three_ways_of_the_same_bytes(command, tmp_path, sentences):
    """Line files cut by bytes: ids are where a line begins, whatever the cut, and nothing is counted at launch."""
    found = []
    for size in (1 << 20, 4096, 1024):
        out = tmp_path / f"out{size}"
        run(command(f"--config.shards.bytes_per_shard={size}", output=out))
        assert summary(out)["shards"]["total"] == -(-sentences.stat().st_size // size)
        assert json.loads((out / "manifest.json").read_text())["num_records"] is None
        found.append((all_rows(out), errors(out)))
    starts = [0, *(i + 1 for i, byte in enumerate(sentences.read_bytes()) if byte == 10)]
    frame = found[0][0]
    assert set(frame["example_id"]) == {f"input.jsonl@{start}" for i, start in enumerate(starts) if i not in (11, 30)}
    assert [error["place"] for error in found[0][1]] == [f"input.jsonl@{starts[i]}" for i in (11, 30)]
    for other, other_errors in found[1:]:
        assert_same_rows(
            frame.drop(columns=["shard", "decode_seconds"]), other.drop(columns=["shard", "decode_seconds"])
        )
        assert other_errors == found[0][1]


def test_two_ways_with_a_real_pair(command, tmp_path, sentences):
    small = (
        "--config.decoding.num_slots=2", "--config.decoding.input_buckets=(64,)",
        "--config.decoding.max_decode_tokens=8", "--config.decoding.gamma=2", "--config.input.id_field=k",
    )  # fmt: skip
    lines = sentences.read_text().splitlines()
    sentences.write_text("\n".join(lines[:8]))
    found = []
    for size in (8, 3):
        out = tmp_path / f"real{size}"
        assert generate.main(command(*small, f"--config.shards.examples_per_shard={size}", output=out)) == 0
        found.append(rows(out).drop(columns="index"))
    assert len(found[0]) == 8
    assert_same_rows(*found)


def test_every_format_gives_the_same_rows(command, tmp_path):
    """Ids, texts, references and so the generations: only the file that they come from differs."""
    records = [{"k": f"id {i}", **row} for i, row in enumerate(datasets.translations(20))]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    (folder / "a.ndjson.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet", row_group_size=6)
    with (folder / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["k", "en", "de"])
        writer.writeheader()
        writer.writerows(records)
    found = {}
    for name in ("a.jsonl", "a.ndjson.gz", "a.parquet", "a.csv"):
        settings = (f"--config.input.pattern={folder}/{name}", "--config.input.id_field=k")
        run(command(*settings, output=tmp_path / name))
        found[name] = rows(tmp_path / name)
        config = json.loads((tmp_path / name / "manifest.json").read_text())["identity"]["input"]
        assert config["format"] == {"a.parquet": "parquet", "a.csv": "csv"}.get(name, "jsonl")
    assert list(found["a.jsonl"]["example_id"]) == [row["k"] for row in records]
    for name in found:
        assert_same_rows(found["a.jsonl"], found[name])


def test_text_lines(command, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(row["en"].replace("\n", " ") + "\n" for row in datasets.translations(9)))
    settings = ("--config.input.input_field=", "--config.input.target_field=")
    run(command(f"--config.input.pattern={path}", *settings))
    assert list(rows(tmp_path / "out")["inputs"]) == path.read_text().splitlines()
    assert rows(tmp_path / "out")["example_id"][8] == "a.txt:9"


def test_a_finished_plan_is_kept_whatever_the_format(command, tmp_path, capsys):
    records = pa.Table.from_pylist(datasets.translations(20))
    pq.write_table(records, tmp_path / "a.parquet")
    args = command(f"--config.input.pattern={tmp_path}/a.parquet")
    run(args)
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "generations" / "part-00001-of-00003.parquet").unlink()
    run(args)
    assert summary(tmp_path / "out")["examples"] == 20
    pq.write_table(records.slice(1), tmp_path / "a.parquet")
    run(args, expect=2)
    assert "input.files.a.parquet.digest" in capsys.readouterr().err
