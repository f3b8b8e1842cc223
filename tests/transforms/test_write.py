"""Committing: errors first, the part once, and nothing that an earlier or a second attempt left behind."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from decoding import DecodingConfig
from tests.pipeline.fakes import fake_generation
from transforms import attempts, columns, finish, shards, storage
from transforms.decode import DecodedShard, DecodeFailure, EngineCounters
from transforms.parts import Footer, encode_table, read_footer
from transforms.records import Example, TokenizedShard, WorkShard, example_error
from transforms.storage import OutputFolder
from transforms.write import finish_shard, rows_and_errors, rows_table

CONFIG = DecodingConfig(gamma=2, max_decode_tokens=9)
PART, ERRORS = "generations/part-00001-of-00003.parquet", "errors/part-00001-of-00003.jsonl"


class Letters:
    def decode(self, ids):
        return " ".join(map(str, ids))


def shard(*, failing=(), errors=(), attempt=1, salt="") -> DecodedShard:
    work = WorkShard(1, 3, "f", "f", 0, 4, 10, None)
    examples = tuple(
        Example(f"id{i}", 10 + i, f"text {i}", None if i else "Bezug", np.array([3, 4, 1], np.int32), i == 2, f"f:{i}", "raw")
        for i in range(4)
    )
    results = tuple(
        DecodeFailure("ValueError", "bad") if i in failing else (fake_generation(CONFIG, (3, 4, 1), f"id{i}{salt}"),)
        for i in range(4)
    )
    return DecodedShard(TokenizedShard(work, attempt, examples, tuple(errors)), results, EngineCounters(40, 10, 0, 2.0), "cpu")


def commit(folder, one, tokenizer=None) -> bool:
    finish = lambda: finish_shard(one, tokenizer or Letters(), eos_ids=(1,), fingerprint="f00")
    return shards.commit(folder, one.place, storage.GENERATIONS, finish) is not None


@pytest.fixture
def folder(tmp_path):
    return OutputFolder(str(tmp_path))


def test_a_text_that_cannot_be_detokenised_is_its_examples_error(folder):
    class Choosy(Letters):
        def decode(self, ids):
            if ids == refused:
                raise RuntimeError("no such text")
            return super().decode(ids)

    one = shard()
    refused = [token for token in one.results[2][0].tokens.tolist() if token != 1]
    assert commit(folder, one, Choosy())
    assert pq.read_table(folder.path(PART))["index"].to_pylist() == [10, 11, 13]
    (error,) = map(json.loads, folder.read(ERRORS).decode().splitlines())
    assert (error["index"], error["stage"], error["message"]) == (12, "decode", "no such text")
    statistics = read_footer(folder.path(PART)).statistics
    assert (statistics.examples, statistics.errors, statistics.truncated) == (3, {"decode": 1}, 0)


def test_part_and_footer(folder):
    assert commit(folder, shard(attempt=2))
    table = pq.read_table(folder.path(PART))
    assert table.schema.remove_metadata().equals(columns.schema(columns.GENERATIONS))
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == [10, 11, 12, 13]
    assert [row["targets"] for row in rows] == ["Bezug", None, None, None]
    assert [row["input_truncated"] for row in rows] == [False, False, True, False]
    for i, row in enumerate(rows):
        expected = fake_generation(CONFIG, (3, 4, 1), f"id{i}")
        np.testing.assert_array_equal(np.array(row["beta"], np.float32), expected.beta)
        text = expected.tokens.tolist()
        assert row["prediction"] == " ".join(map(str, text[:-1] if text[-1] == 1 else text))
        assert row["num_iterations"] == len(row["gammas"])
    footer = read_footer(folder.path(PART))
    assert (footer.shard, footer.attempt, footer.device, footer.fingerprint) == (1, 2, "cpu", "f00")
    assert footer.statistics.generate_seconds == 2.0
    assert footer.statistics.slot_iterations == 40
    assert footer.statistics.truncated == 1
    assert footer.statistics.input_tokens == 12
    assert list(folder.list()) == [PART]


def test_nan_stays_nan(folder):
    commit(folder, shard())
    column = pq.read_table(folder.path(PART))["beta"].combine_chunks().flatten()
    assert column.null_count == 0
    assert np.isnan(column.to_numpy()).any()


def test_equal_rows_give_equal_bytes():
    rows, _ = rows_and_errors(shard(), Letters(), 1)
    footer = Footer.from_bytes(Footer(1, "f00", 1, "cpu", shard_statistics_of(rows)).to_bytes())
    assert encode_table(rows_table(rows, 1), footer) == encode_table(rows_table(rows, 1), footer)


def shard_statistics_of(rows):
    from transforms.statistics.generations import DecodedText, shard_statistics

    texts = [DecodedText(row.example.example_id, row.generation, row.prediction, None) for row in rows]
    return shard_statistics(texts, [], num_examples=len(rows), input_tokens=0, truncated=0)


def test_errors_of_every_stage_in_order(folder):
    early = example_error("f:0", 9, "read", "MalformedJson", "what", "f:0", "{")
    late = example_error("f:9", 14, "tokenize", "NoTokens", "why", "f:9", "{}")
    commit(folder, shard(failing=(2,), errors=(late, early)))
    lines = [json.loads(line) for line in folder.read(ERRORS).decode().splitlines()]
    assert [(line["index"], line["stage"], line["error_type"]) for line in lines] == [
        (9, "read", "MalformedJson"),
        (12, "decode", "ValueError"),
        (14, "tokenize", "NoTokens"),
    ]
    assert lines[1] == {
        "example_id": "id2", "index": 12, "stage": "decode", "error_type": "ValueError", "message": "bad",
        "place": "f:2", "record": "raw", "record_truncated": False,
    }  # fmt: skip
    statistics = read_footer(folder.path(PART)).statistics
    assert statistics.errors == {"decode": 1, "read": 1, "tokenize": 1}
    assert (statistics.examples, statistics.truncated, statistics.input_tokens) == (3, 0, 9)


def test_all_examples_failed_leaves_an_empty_part(folder):
    commit(folder, shard(failing=range(4)))
    assert pq.read_table(folder.path(PART)).num_rows == 0
    assert read_footer(folder.path(PART)).statistics.errors == {"decode": 4}


def test_second_commit_changes_nothing(folder):
    assert commit(folder, shard())
    before = folder.read(PART)
    assert not commit(folder, shard(salt="other", failing=(1,)))
    assert folder.read(PART) == before
    assert list(folder.list()) == [PART]


def test_second_commit_that_runs_at_the_same_time(folder, monkeypatch):
    """Both looked and saw no part; the slower one must lose at the commit itself."""
    commit(folder, shard())
    before = folder.read(PART)
    monkeypatch.setattr(OutputFolder, "exists", lambda self, name: False)
    assert not commit(folder, shard(salt="other"))
    assert folder.read(PART) == before
    assert list(folder.list()) == [PART]


def test_errors_are_there_before_the_part(folder, monkeypatch):
    def fail(self, name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OutputFolder, "create", fail)
    with pytest.raises(OSError, match="No space"):
        commit(folder, shard(failing=(0,)))
    assert list(folder.list()) == [ERRORS]
    monkeypatch.undo()
    assert commit(folder, shard())  # the retry has no errors, so neither has the folder
    assert list(folder.list()) == [PART]


def test_errors_that_a_second_attempt_replaced_are_noticed_at_the_end(folder):
    """One attempt failed an example in passing and won the part; the other had no errors, and so deleted them."""
    for failing in ((0,), ()):
        assert commit(folder, shard(failing=failing))
        if failing:
            folder.delete([ERRORS])  # as the second one does between looking for the part and losing it
        else:
            folder.put(ERRORS, b"{}\n")
        footer = read_footer(folder.path(PART))
        found = list(
            finish._part_statistics(
                (1, ERRORS in folder.list()), folder.root, 3, storage.GENERATIONS, "f00", type(footer.statistics)
            )
        )
        if failing:  # the shard is done again
            assert found == [] and PART not in folder.list()
            (missing,) = [one for one in attempts.missing_shards(folder, 3) if one["shard"] == 1]
            assert missing["error"]["error_type"] == "ErrorsReplaced"
        else:  # errors of an attempt that lost
            assert found == [footer.statistics] and ERRORS not in folder.list() and PART in folder.list()
