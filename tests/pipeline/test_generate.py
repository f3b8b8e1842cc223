"""The job from end to end, with a generator whose results are known."""

import gzip
import json
import pathlib
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import generate
from tests.pipeline import fakes
from transforms.write import SCHEMA, read_footer

TIMES = ["decode_seconds"]
COLUMNS = [
    "example_id", "shard", "index", "inputs", "targets", "prediction", "input_tokens", "output_tokens",
    "finish_reason", "input_truncated", "source", "iteration", "beta", "target_logprob", "draft_logprob",
    "gammas", "accepted", "num_iterations", "decode_seconds",
]  # fmt: skip


def run(args, expect=0, **fake):
    assert generate.main(args, factory=fakes.factory(**fake)) == expect


def files(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def rows(folder: pathlib.Path) -> pd.DataFrame:
    """All rows without shard and times, by example id."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "generations").iterdir())])
    return table.drop_columns(["shard", *TIMES]).to_pandas().sort_values("index").reset_index(drop=True)


def summary(folder: pathlib.Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def errors(folder: pathlib.Path) -> list[dict]:
    found = sorted((folder / "errors").glob("*.jsonl"))
    return [json.loads(line) for path in found for line in path.read_text().splitlines()]


def assert_same_rows(a: pd.DataFrame, b: pd.DataFrame) -> None:
    assert list(a["example_id"]) == list(b["example_id"])
    for column in a.columns:
        for x, y in zip(a[column], b[column]):
            np.testing.assert_array_equal(x, y, err_msg=column)


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
    assert table.schema.remove_metadata().equals(SCHEMA)
    frame = pd.read_parquet(out / "generations" / "part-00001-of-00004.parquet")
    assert list(frame["index"]) == list(range(8, 16))
    assert list(frame["example_id"]) == [f"input.jsonl:{i + 1}" for i in range(8, 16)]
    assert set(frame["shard"]) == {1}
    assert frame["targets"][0] == "Satz 8 hat einen Bezug."
    shown = capsys.readouterr().out
    for word in ("examples", "tokens per second", "target calls per token", "α", "BLEU", str(out)):
        assert word in shown


def test_rows_hold_the_generator_results(command, tmp_path, models):
    from pipeline.config import parse_command_line
    from transforms.tokenize import load_tokenizer

    run(command())
    config = parse_command_line(command()).config.decoding
    tokenizer = load_tokenizer(str(models["target"]))
    frame = rows(tmp_path / "out")
    for _, row in frame.iterrows():
        expected = fakes.fake_generation(config, tuple(row["input_tokens"].tolist()), row["example_id"])
        assert row["input_tokens"][-1] == 1
        np.testing.assert_array_equal(row["output_tokens"], expected.tokens)
        for name in ("source", "iteration", "beta", "target_logprob", "draft_logprob", "gammas", "accepted"):
            np.testing.assert_array_equal(row[name], getattr(expected, name))
        text = [t for t in expected.tokens.tolist() if t != 1]
        assert row["prediction"] == tokenizer.decode(text)
        assert row["finish_reason"] == expected.finish_reason
        assert row["num_iterations"] == expected.num_iterations


def test_summary_adds_up(command, tmp_path):
    run(command())
    frame, total = rows(tmp_path / "out"), summary(tmp_path / "out")
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


def test_summary_bleu_is_the_corpus_bleu(command, tmp_path):
    import sacrebleu

    run(command())
    frame = rows(tmp_path / "out")
    expected = sacrebleu.corpus_bleu(list(frame["prediction"]), [list(frame["targets"])])
    assert summary(tmp_path / "out")["bleu"]["score"] == pytest.approx(expected.score, abs=1e-9)


def test_manifest(command, tmp_path, sentences):
    run(command())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["decoding"]["gamma"] == 3
    assert manifest["exact"] is True
    assert manifest["num_shards"] == 4
    assert manifest["plan"]["files"][0]["num_records"] == 30
    assert len(manifest["fingerprint"]) == 64
    assert manifest["versions"]["jax"]
    footer = read_footer(str(tmp_path / "out" / "generations" / "part-00003-of-00004.parquet"))
    assert (footer.shard, footer.attempt, footer.fingerprint) == (3, 1, manifest["fingerprint"])
    assert footer.statistics.examples == 6


def test_costs_of_gamma_auto_are_frozen_in_the_manifest(command, tmp_path):
    run(command("--config.decoding.gamma=auto"))
    out = tmp_path / "out"
    frozen = json.loads((out / "manifest.json").read_text())["costs"]
    assert [entry[:2] for entry in frozen] == [[bucket, gamma] for bucket in (64, 128) for gamma in (0, 1, 2, 3, 5, 7)]
    assert not [name for name in files(out) if name.startswith("attempts")]


def test_lenience_is_not_exact(command, tmp_path):
    run(command("--config.decoding.lenience=0.5"))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["exact"] is False
    assert summary(tmp_path / "out")["exact"] is False


def test_shards_threads_and_order_change_nothing(command, tmp_path):
    run(command())
    reference = rows(tmp_path / "out")
    for i, (shard_size, workers) in enumerate([(1, 1), (5, 3), (100, 2)]):
        other = tmp_path / f"other{i}"
        run(command(f"--config.shards.examples_per_shard={shard_size}", f"--direct_num_workers={workers}", output=other))
        assert_same_rows(reference, rows(other))
        a, b = summary(tmp_path / "out"), summary(other)
        for volatile in ("timings", "finished", "fingerprint", "shards"):
            a.pop(volatile), b.pop(volatile)
        assert a == b


def test_seed_changes_results(command, tmp_path):
    run(command())
    run(command("--config.decoding.seed=1", output=tmp_path / "other"))
    a, b = rows(tmp_path / "out"), rows(tmp_path / "other")
    assert any(list(x) != list(y) for x, y in zip(a["output_tokens"], b["output_tokens"]))


def test_gzip_gives_the_same_rows(command, tmp_path, sentences):
    packed = tmp_path / "packed" / "input.jsonl"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(sentences.read_bytes()))
    run(command())
    run(command(f"--config.input.pattern={packed}", output=tmp_path / "other"))
    assert_same_rows(rows(tmp_path / "out"), rows(tmp_path / "other"))


def test_plain_decoding_has_no_alpha(command, tmp_path):
    run(command("--config.model.draft=", "--config.decoding.gamma=0"))
    total = summary(tmp_path / "out")
    assert total["alpha"] is None
    assert total["target_calls_per_token"] == 1.0


def test_several_samples_are_adjacent(command, tmp_path):
    run(command("--config.decoding.num_samples=3"))
    table = pq.read_table(tmp_path / "out" / "generations" / "part-00000-of-00004.parquet").to_pandas()
    assert list(table["index"]) == [i for i in range(8) for _ in range(3)]
    assert len({tuple(t) for t in table["output_tokens"][:3]}) == 3
    total = summary(tmp_path / "out")
    assert (total["examples"], total["generations"]) == (30, 90)


# Resuming


def test_finished_folder_is_left_alone(command, tmp_path, capsys):
    run(command())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    loads = fakes.loads
    run(command())
    assert fakes.loads == loads
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert "Finished already" in capsys.readouterr().out


def test_resume_does_only_what_is_missing(command, tmp_path):
    run(command())
    out, reference, total = tmp_path / "out", rows(tmp_path / "out"), summary(tmp_path / "out")
    kept = out / "generations" / "part-00002-of-00004.parquet"
    stamp = kept.stat().st_mtime_ns
    for name in ("_SUCCESS", "summary.json", "generations/part-00000-of-00004.parquet"):
        (out / name).unlink()
    (out / "attempts" / "part-00000-of-00004.parquet.0f.tmp").write_bytes(b"half")
    (out / "attempts" / "part-00000-of-00004.json").write_text('{"shard": 0, "attempt": 2, "error": null}')
    run(command())
    assert kept.stat().st_mtime_ns == stamp
    assert_same_rows(reference, rows(out))
    again = summary(out)
    for volatile in ("timings", "finished"):
        total.pop(volatile), again.pop(volatile)
    assert again == total
    assert read_footer(str(out / "generations" / "part-00000-of-00004.parquet")).attempt == 3
    assert not [name for name in files(out) if name.startswith("attempts")]


def test_only_the_end_is_missing(command, tmp_path):
    run(command())
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "summary.json").unlink()
    loads = fakes.loads
    run(command())
    assert fakes.loads == loads  # no model is loaded for it
    assert summary(tmp_path / "out")["examples"] == 30


def test_crash_while_loading_keeps_the_folder_resumable(command, tmp_path, capsys):
    crash = tmp_path / "crash"
    crash.touch()
    run(command(), expect=1, crash_file=str(crash))
    assert "the accelerator is gone" in capsys.readouterr().err
    assert "_SUCCESS" not in files(tmp_path / "out")
    crash.unlink()
    run(command(), crash_file=str(crash))
    assert summary(tmp_path / "out")["examples"] == 30


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--config.decoding.gamma=4", ["decoding.gamma: 3 there, 4 now"]),
        ("--config.shards.examples_per_shard=9", ["shards.examples_per_shard: 8 there, 9 now"]),
        ("--config.input.prefix=translate", ["input.prefix: '' there, 'translate' now"]),
        ("--config.model.dtype=bfloat16", ["model.dtype"]),
    ],
)
def test_other_settings_are_refused(command, tmp_path, capsys, override, parts):
    run(command())
    fingerprint = json.loads((tmp_path / "out" / "manifest.json").read_text())["fingerprint"]
    capsys.readouterr()
    run(command(override), expect=2)
    message = capsys.readouterr().err
    for part in [fingerprint, "this run's is", *parts]:
        assert part in message
    assert message.count("\n") == 1


def test_other_input_and_weights_are_refused(command, tmp_path, capsys, sentences, models):
    run(command())
    other = tmp_path / "other" / "target"
    shutil.copytree(models["target"], other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    run(command(f"--config.model.target={other}"), expect=2)
    assert "model.target.model.safetensors" in capsys.readouterr().err
    sentences.write_text(sentences.read_text().replace("Retinex", "retinex"))
    run(command(), expect=2)
    assert "input.files.input.jsonl.sha256" in capsys.readouterr().err


def test_moved_input_and_models_continue(command, tmp_path, sentences, models):
    run(command())
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "generations" / "part-00001-of-00004.parquet").unlink()
    moved = tmp_path / "moved"
    shutil.copytree(models["target"], moved / "model")
    shutil.copy(sentences, moved / "input.jsonl")
    sentences.unlink()
    run(command(f"--config.input.pattern={moved}/input.jsonl", f"--config.model.target={moved}/model"))
    assert summary(tmp_path / "out")["examples"] == 30


def test_changed_code_is_refused_unless_allowed(command, tmp_path, capsys, monkeypatch):
    run(command())
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "generations" / "part-00001-of-00004.parquet").unlink()
    monkeypatch.setattr("pipeline.manifest.code_digest", lambda: "other code")
    run(command(), expect=2)
    assert "--allow_code_change" in capsys.readouterr().err
    run(command("--allow_code_change"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [change["code"] for change in manifest["code_changes"]] == ["other code"]
    run(command())  # now the folder's own code


def test_foreign_folder_is_refused(command, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("")
    run(command(), expect=2)
    assert "thesis.txt" in capsys.readouterr().err
    assert files(tmp_path / "out") == ["thesis.txt"]


# Bad input


def test_bad_records_are_recorded_and_the_rest_decoded(command, tmp_path, sentences):
    good = sentences.read_bytes().splitlines()[:10]
    long_line = json.dumps({"en": "word " * 100_000, "de": "Wort"}).encode()
    bad = {
        "MalformedJson": b'{"en": "no end',
        "MissingField": b'{"de": "nur deutsch"}',
        "EmptyInput": b'{"en": "", "de": "leer"}',
        "InvalidUtf8": b'{"en": "caf\xe9"}',
        "WrongType": b'{"en": 3}',
        "NotAnObject": b'["en"]',
        "EmptyLine": b"",
        "InvalidText": b'{"en": "half \\ud83d"}',
    }
    lines = [*good[:4], *bad.values(), long_line, *good[4:]]
    sentences.write_bytes(b"\n".join(lines))
    run(command())
    out = tmp_path / "out"
    found = errors(out)
    assert [error["error_type"] for error in found] == list(bad)
    assert [error["place"] for error in found] == [f"input.jsonl:{i}" for i in range(5, 13)]
    assert [error["example_id"] for error in found] == [error["place"] for error in found]
    assert all(error["stage"] == "read" and error["message"] for error in found)
    assert found[0]["record"] == '{"en": "no end'
    assert "caf\\xe9" in found[3]["record"]
    frame = rows(out)
    assert len(frame) == 11
    truncated = frame[frame["input_truncated"]]
    assert list(truncated["example_id"]) == ["input.jsonl:13"]
    assert len(truncated["input_tokens"].iloc[0]) == 128
    assert truncated["input_tokens"].iloc[0][-1] == 1
    total = summary(out)
    assert total["examples"] + total["errors"]["total"] == len(lines)
    assert (total["errors"]["read"], total["truncated_inputs"], total["complete"]) == (8, 1, True)
    assert {name for name in files(out) if name.startswith("errors")} == {
        "errors/part-00000-of-00003.jsonl",
        "errors/part-00001-of-00003.jsonl",
    }


def test_poisoned_examples_are_found_and_set_aside(command, tmp_path):
    poisoned = ("input.jsonl:3", "input.jsonl:20")
    run(command(), poisoned=poisoned)
    found = errors(tmp_path / "out")
    assert [(e["example_id"], e["stage"], e["error_type"]) for e in found] == [
        (name, "decode", "ArithmeticError") for name in poisoned
    ]
    assert json.loads(found[0]["record"])["de"] == "Satz 2 hat einen Bezug."
    total = summary(tmp_path / "out")
    assert (total["examples"], total["errors"], total["complete"]) == (28, {"total": 2, "decode": 2}, True)


def test_failing_shards_are_listed_and_done_by_the_next_launch(command, tmp_path, capsys):
    run(command(), expect=1, broken=True)
    out = tmp_path / "out"
    assert files(out) == [*(f"attempts/part-0000{i}-of-00004.json" for i in range(4)), "manifest.json", "summary.json"]
    missing = summary(out)["shards"]["missing"]
    assert [shard["shard"] for shard in missing] == [0, 1, 2, 3]
    assert "no device" in missing[0]["error"]["message"]
    assert "shards are missing" in capsys.readouterr().out
    run(command("--allow_failed_shards=3"), expect=1, broken=True)
    run(command("--allow_failed_shards=4"), expect=0, broken=True)
    assert "_SUCCESS" not in files(out)
    run(command())
    assert summary(out)["examples"] == 30
    assert read_footer(str(out / "generations" / "part-00000-of-00004.parquet")).attempt == 4
    assert not [name for name in files(out) if name.startswith("attempts")]


def test_input_that_changes_under_the_job_is_set_aside(command, tmp_path, sentences, monkeypatch):
    """A file that is truncated between planning and reading costs its shards, not the job."""
    from pipeline import manifest

    planned = manifest.plan_input

    def plan_then_cut(*args):
        plan = planned(*args)
        sentences.write_bytes(b"\n".join(sentences.read_bytes().splitlines()[:20]) + b"\n")
        return plan

    monkeypatch.setattr(manifest, "plan_input", plan_then_cut)
    run(command(), expect=1)
    missing = summary(tmp_path / "out")["shards"]["missing"]
    assert [shard["shard"] for shard in missing] == [2, 3]
    assert missing[0]["error"]["stage"] == "read"
    assert "has changed" in missing[0]["error"]["message"]


def test_full_disk_sets_the_shard_aside(command, tmp_path, monkeypatch):
    from transforms.storage import OutputFolder

    create = OutputFolder.create

    def create_or_fail(self, name, data):
        if name.endswith("part-00002-of-00004.parquet"):
            raise OSError(28, "No space left on device")
        return create(self, name, data)

    monkeypatch.setattr(OutputFolder, "create", create_or_fail)
    run(command(), expect=1)
    monkeypatch.undo()
    missing = summary(tmp_path / "out")["shards"]["missing"]
    assert [shard["shard"] for shard in missing] == [2]
    assert "No space left" in missing[0]["error"]["message"]
    run(command())
    assert summary(tmp_path / "out")["examples"] == 30


# Bad settings: each stops before any model is loaded, with one line and status 2.


def test_launch_refuses(command, tmp_path, capsys, models, sentences, spiece_model):
    def refused(*overrides, parts):
        loads = fakes.loads
        run(command(*overrides), expect=2)
        message = capsys.readouterr().err
        assert fakes.loads == loads
        assert message.startswith("error: ") and message.count("\n") == 1, message
        for part in parts:
            assert part in message, message
        assert not (tmp_path / "out").exists()

    refused("--config.input.pattern=/nowhere/*.jsonl", parts=["input.pattern", "/nowhere/*.jsonl", "no file"])
    refused("--config.input.input_field=english", parts=["input.input_field", "'english'", "de, en"])
    refused("--config.input.target_field=german", parts=["input.target_field", "'german'"])
    refused("--config.input.id_field=de.x", parts=["input.id_field"])
    refused("--config.model.target=/nowhere", parts=["model.target", "/nowhere"])
    refused("--config.model.draft=/nowhere", parts=["model.draft", "/nowhere"])
    refused("--config.model.tokenizer=/nowhere", parts=["model.tokenizer", "/nowhere", "spiece.model"])
    refused("--direct_num_wrokers=3", parts=["--direct_num_wrokers=3"])

    small = tmp_path / "small"
    shutil.copytree(models["draft"], small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    refused(f"--config.model.draft={small}", parts=["model.draft", "vocab_size is 100", "384"])

    other = tmp_path / "other"
    shutil.copytree(models["draft"], other)
    (other / "spiece.model").write_bytes(spiece_model.replace(b"\xe2\x96\x81the", b"\xe2\x96\x81tha"))
    refused(f"--config.model.draft={other}", parts=["model.draft", "tokeniser differs", "▁tha", "▁the"])

    (tmp_path / "empty.jsonl").touch()
    refused(f"--config.input.pattern={tmp_path}/empty.jsonl", parts=["input.pattern", "no record"])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(sentences.read_bytes())[:200])
    refused(f"--config.input.pattern={tmp_path}/cut.jsonl.gz", parts=["input.pattern", "cannot be read"])
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"en": "a", "k": 1}\n{"en": "b", "k": 2}\n{"en": "c", "k": "1"}\n')
    refused(
        f"--config.input.pattern={twice}", "--config.input.id_field=k", "--config.input.target_field=",
        parts=["'k'", "'1' at twice.jsonl:1, twice.jsonl:3"],
    )  # fmt: skip


def test_ids_from_the_data(command, tmp_path, sentences):
    named = tmp_path / "named.jsonl"
    named.write_text('{"en": "a word", "k": 7}\n{"en": "b word", "k": "x/../y"}\n{"en": "no id"}\n{"en": "d", "k": true}\n')
    run(
        command(
            f"--config.input.pattern={named}", "--config.input.id_field=k", "--config.input.target_field="
        )
    )
    assert list(rows(tmp_path / "out")["example_id"]) == ["7", "x/../y"]
    assert [e["error_type"] for e in errors(tmp_path / "out")] == ["MissingField", "WrongType"]
    assert summary(tmp_path / "out")["bleu"] is None


def test_read_only_output(command, tmp_path, capsys, monkeypatch):
    from transforms.storage import OutputFolder

    def refuse(self, name, data):
        raise PermissionError(13, "Permission denied", self.path(name))

    monkeypatch.setattr(OutputFolder, "create", refuse)
    run(command(), expect=2)
    assert "cannot be written" in capsys.readouterr().err
