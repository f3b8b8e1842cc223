"""The job from end to end, with a generator whose results are known: the folder, its rows, its totals."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, run, summary
from transforms.columns import GENERATIONS, schema
from transforms.decode import is_baseline
from transforms.parts import read_footer

COLUMNS = [
    "example_id", "shard", "index", "sample", "inputs", "targets", "prediction", "input_tokens", "output_tokens",
    "finish_reason", "input_truncated", "source", "iteration", "beta", "target_logprob", "draft_logprob",
    "gammas", "accepted", "num_iterations", "decode_seconds",
]  # fmt: skip


def test_folder_and_columns(command, tmp_path, capsys):
    run(command())
    out = tmp_path / "out"
    assert files(out) == [
        "_SUCCESS",
        *(f"generations/part-0000{i}-of-00004.parquet" for i in range(4)),
        "manifest.json",
        "summary.json",
    ]
    table = pq.read_table(out / "generations" / "part-00001-of-00004.parquet")
    assert table.schema.names == COLUMNS
    assert table.schema.remove_metadata().equals(schema(GENERATIONS))
    frame = pd.read_parquet(out / "generations" / "part-00001-of-00004.parquet")
    assert list(frame["index"]) == list(range(8, 16))
    assert list(frame["example_id"]) == [f"input.jsonl:{i + 1}" for i in range(8, 16)]
    assert set(frame["shard"]) == {1}
    assert frame["targets"][0] == "Satz 8 hat einen Bezug."
    shown = capsys.readouterr().out
    for word in ("examples", "tokens per second", "target calls per token", "α", "BLEU", str(out)):
        assert word in shown


def test_rows_hold_the_generator_results(command, finished_run, models):
    from pipeline.settings import parse_command_line
    from transforms.tokenize import load_tokenizer

    config = parse_command_line(command()).config.decoding
    tokenizer = load_tokenizer(str(models["target"]))
    for _, row in rows(finished_run).iterrows():
        expected = fakes.fake_generation(config, tuple(row["input_tokens"].tolist()), row["example_id"])
        assert row["input_tokens"][-1] == 1
        np.testing.assert_array_equal(row["output_tokens"], expected.tokens)
        for name in ("source", "iteration", "beta", "target_logprob", "draft_logprob", "gammas", "accepted"):
            np.testing.assert_array_equal(row[name], getattr(expected, name))
        text = [t for t in expected.tokens.tolist() if t != 1]
        assert row["prediction"] == tokenizer.decode(text)
        assert row["finish_reason"] == expected.finish_reason
        assert row["num_iterations"] == expected.num_iterations


def test_summary_adds_up(finished_run):
    frame, total = rows(finished_run), summary(finished_run)
    beta = np.concatenate(frame["beta"].to_list()).astype(np.float64)
    assert total["complete"] and total["exact"]
    assert total["examples"] == len(frame) == 30
    assert total["tokens"] == sum(map(len, frame["output_tokens"]))
    assert total["target_calls"] == frame["num_iterations"].sum()
    assert total["accepted_per_target_call"] == pytest.approx(
        np.concatenate(frame["accepted"].to_list()).sum() / frame["num_iterations"].sum()
    )
    assert total["alpha"]["mean"] == pytest.approx(np.nanmean(beta), abs=1e-9)
    assert total["alpha"]["low"] < total["alpha"]["mean"] < total["alpha"]["high"]
    assert total["alpha"]["positions"] == np.sum(~np.isnan(beta))
    assert sum(total["sources"].values()) == total["tokens"]
    assert total["errors"] == {"total": 0}
    assert total["bleu"]["references"] == 30


def test_summary_bleu_is_the_corpus_bleu(finished_run):
    import sacrebleu

    frame = rows(finished_run)
    expected = sacrebleu.corpus_bleu(list(frame["prediction"]), [list(frame["targets"])])
    assert summary(finished_run)["bleu"]["score"] == pytest.approx(expected.score, abs=1e-9)


def test_manifest(finished_run):
    manifest = json.loads((finished_run / "manifest.json").read_text())
    assert manifest["config"]["decoding"]["gamma"] == 3
    assert manifest["exact"] is True
    assert manifest["num_shards"] == 4
    assert manifest["plan"]["files"][0]["num_records"] == 30
    assert len(manifest["fingerprint"]) == 64
    assert manifest["versions"]["jax"]
    footer = read_footer(str(finished_run / "generations" / "part-00003-of-00004.parquet"))
    assert (footer.shard, footer.attempt, footer.fingerprint) == (3, 1, manifest["fingerprint"])
    assert footer.statistics.examples == 6


def test_costs_of_gamma_auto_are_frozen_in_the_manifest(command, tmp_path):
    run(command("--config.decoding.gamma=auto"))
    out = tmp_path / "out"
    frozen = json.loads((out / "manifest.json").read_text())["costs"]
    assert list(frozen) == ["0", "1", "2", "3", "5", "7"]
    assert not [name for name in files(out) if name.startswith("attempts")]


def test_lenience_is_not_exact(command, tmp_path):
    run(command("--config.decoding.lenience=0.5"))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["exact"] is False
    assert summary(tmp_path / "out")["exact"] is False


def test_shards_threads_and_order_change_nothing(command, tmp_path, finished_run):
    reference = rows(finished_run)
    for i, (shard_size, workers) in enumerate([(1, 1), (5, 3), (100, 2)]):
        other = tmp_path / f"other{i}"
        run(command(f"--config.shards.examples_per_shard={shard_size}", f"--direct_num_workers={workers}", output=other))
        assert_same_rows(reference, rows(other))
        a, b = summary(finished_run), summary(other)
        for volatile in ("timings", "finished", "compilations", "fingerprint", "shards"):
            a.pop(volatile), b.pop(volatile)
        assert a == b


def test_seed_changes_results(command, tmp_path, finished_run):
    run(command("--config.decoding.seed=1"))
    a, b = rows(finished_run), rows(tmp_path / "out")
    assert any(list(x) != list(y) for x, y in zip(a["output_tokens"], b["output_tokens"]))


def test_gzip_gives_the_same_rows(command, tmp_path, sentences, finished_run):
    packed = tmp_path / "packed" / "input.jsonl"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(sentences.read_bytes()))
    run(command(f"--config.input.pattern={packed}"))
    assert_same_rows(rows(finished_run), rows(tmp_path / "out"))


def test_plain_decoding_has_no_alpha(command, tmp_path):
    run(command("--config.model.draft=", "--config.decoding.gamma=0"))
    total = summary(tmp_path / "out")
    assert total["alpha"] is None
    assert total["target_calls_per_token"] == 1.0


def test_a_baseline_within_the_job(command, tmp_path):
    run(command("--config.shards.baseline_fraction=0.5"))
    parts = sorted((tmp_path / "out" / "generations").iterdir())
    plain = [read_footer(str(part)).baseline for part in parts]
    assert plain == [is_baseline(shard, 0.5, 0) for shard in range(4)]
    assert {True, False} == set(plain)
    for part, baseline in zip(parts, plain):
        sources = {source for row in pq.read_table(part)["source"].to_pylist() for source in row}
        assert (sources == {3}) == baseline
    run(command("--config.shards.baseline_fraction=0.25"), expect=2)  # another result, so another run


def test_several_samples_are_adjacent(command, tmp_path, capsys):
    run(command("--config.decoding.num_samples=3"))
    table = pq.read_table(tmp_path / "out" / "generations" / "part-00000-of-00004.parquet").to_pandas()
    assert list(table["index"]) == [i for i in range(8) for _ in range(3)]
    assert list(table["sample"]) == 8 * [0, 1, 2]
    assert len({tuple(t) for t in table["output_tokens"][:3]}) == 3
    total = summary(tmp_path / "out")
    assert (total["examples"], total["generations"]) == (30, 90)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["examples", "30"] in shown and ["generations", "90"] in shown
