"""The score job from end to end: what it writes, that it resumes, and that its α is generation's where both look."""

import dataclasses
import json
import pathlib
import shutil

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns

import transforms.score
import transforms.shards
from decoding import NGramDraft
from pipeline import generate, score
from pipeline.runners.supervise import Launch
from pipeline.settings import ConfigError, ScoreConfig, parse_command_line
from tests.pipeline.conftest import write_config, write_sentences
from tests.pipeline.helpers import assert_same_rows, errors, files, run, summary
from tests.pipeline.score_fakes import beta_of, fake, scores
from transforms.folder import read_manifest
from transforms.parts import encode_table, read_footer
from transforms.storage import OutputFolder


@pytest.fixture(scope="module")
def two_samples(tmp_path_factory, models) -> pathlib.Path:
    """A folder of fake generations, two samples of 30 examples in 4 shards."""
    folder = tmp_path_factory.mktemp("two_samples")
    config = write_config(folder / "config.py", models, write_sentences(folder / "input.jsonl"))
    run([f"--config={config}", f"--output={folder / 'out'}", "--config.decoding.num_samples=2"])
    return folder / "out"


@pytest.fixture
def generated(tmp_path, two_samples) -> pathlib.Path:
    """A copy of it."""
    return shutil.copytree(two_samples, tmp_path / "generated")


@pytest.fixture
def score_command(command, generated, tmp_path):
    def arguments(*overrides, output=tmp_path / "out"):
        return command(f"--config.score.generations={generated}", *overrides, output=output)

    return arguments


COLUMNS = [
    "example_id", "shard", "index", "sample", "input_tokens", "tokens", "text_truncated", "target_logprob",
    "target_entropy", "beta_draft", "draft_logprob_draft", "draft_entropy_draft", "argmax_agrees_draft",
    "lenient_beta_draft",
]  # fmt: skip


def test_folder_columns_and_statistics(score_command, generated, tmp_path, capsys):
    assert score.main(score_command(), fake()) == 0
    out = tmp_path / "out"
    parts = [f"scores/part-{i:05d}-of-00004.parquet" for i in range(4)]
    assert files(out) == ["_SUCCESS", "manifest.json", *parts, "summary.json"]
    table = pq.read_table(out / parts[1])
    assert table.column_names == COLUMNS
    assert str(table.schema.field("lenient_beta_draft").type).startswith("list<element: list<element: float")
    shown = capsys.readouterr().out
    assert "on policy" in shown and "l=0.3" in shown and "…" not in shown
    rows = scores(out)
    originals = pa.concat_tables([pq.read_table(path) for path in sorted((generated / "generations").iterdir())]).to_pandas()
    assert len(rows) == len(originals) == 60 and rows["sample"].tolist() == [0, 1] * 30
    for mine, other in (("tokens", "output_tokens"), ("input_tokens", "input_tokens"), ("example_id", "example_id")):
        for a, b in zip(rows[mine], originals[other]):
            np.testing.assert_array_equal(a, b)
    found, tokens = summary(out), np.concatenate(rows["tokens"])
    alpha = found["drafts"]["draft"]["alpha"]
    assert alpha["mean"] == beta_of(tokens).astype(np.float64).mean() and alpha["low"] < alpha["mean"] < alpha["high"]
    assert (alpha["positions"], found["tokens"], found["texts"], found["examples"]) == (len(tokens), len(tokens), 60, 30)
    assert list(found["drafts"]["draft"]["lenient"]) == ["0.5", "0.3", "0.1"]
    assert found["drafts"]["draft"]["agreement"]["mean"] == pytest.approx(np.mean(tokens % 2 == 0), abs=1e-7)
    on_policy = found["drafts"]["draft"]["on_policy"]
    assert on_policy["alpha"]["mean"] == pytest.approx(summary(generated)["alpha"]["mean"], abs=1e-7)
    assert on_policy["difference"]["mean"] == pytest.approx(alpha["mean"] - on_policy["alpha"]["mean"], abs=1e-12)
    assert found["text"]["of_target"] and found["text"]["same_sampling"] and found["exact"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["job"], manifest["drafts"], manifest["lenience"]) == ("score", ["draft"], [0.5, 0.3, 0.1])
    assert score.main(score_command(), fake()) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert score.main(score_command("--config.score.lenience=(0.5,)"), fake()) == 2
    message = capsys.readouterr().err
    assert "belongs to another run" in message and manifest["fingerprint"] in message and "score.lenience" in message


def test_several_drafts(score_command, tmp_path):
    drafts = ("--config.score.drafts.silent=uniform", "--config.score.drafts.copy=prompt_lookup")
    assert score.main(score_command(*drafts, "--config.score.lenience=()"), fake()) == 0
    rows, found = scores(tmp_path / "out"), summary(tmp_path / "out")["drafts"]
    assert "lenient_beta_copy" not in rows and np.isnan(np.concatenate(rows["beta_silent"])).all()
    assert found["silent"] == {"alpha": None, "proposed": 0.0, "agreement": None, "lenient": {}, "on_policy": None}
    assert found["copy"]["proposed"] == 1.0 and found["copy"]["on_policy"] is None


def test_shards_change_nothing(command, score_command, tmp_path):
    """Of the job; that neighbours in a batch change nothing is a test of the scorer."""
    out, whole, one_shard = tmp_path / "out", tmp_path / "whole", "--config.shards.examples_per_shard=100"
    run(command("--config.decoding.num_samples=2", one_shard, output=tmp_path / "generated1"))
    assert score.main(score_command(), fake()) == 0
    arguments = command(one_shard, f"--config.score.generations={tmp_path / 'generated1'}", output=whole)
    assert score.main(arguments, fake()) == 0
    assert [len(list((folder / "scores").iterdir())) for folder in (out, whole)] == [4, 1]
    assert_same_rows(scores(out), scores(whole))


def test_what_fails_is_set_aside_and_resumed(score_command, tmp_path, capsys):
    undisturbed, out, trap = tmp_path / "undisturbed", tmp_path / "out", tmp_path / "trap"
    assert score.main(score_command(output=undisturbed), fake()) == 0
    trap.write_text("")
    assert score.main(score_command(), fake(trap=str(trap))) == 1
    assert "4 of 4 shards are missing" in capsys.readouterr().out and not (out / "_SUCCESS").exists()
    assert summary(out)["shards"]["missing"][0]["error"]["message"] == "the accelerator is gone"
    trap.unlink()
    assert score.main(score_command(), fake(trap=str(trap))) == 0
    (out / "scores" / "part-00002-of-00004.parquet").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    assert score.main(score_command(), fake()) == 0
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}.items()
    assert files(out) == files(undisturbed)
    assert_same_rows(scores(out), scores(undisturbed))
    totals = [summary(folder) for folder in (undisturbed, out)]
    for total in totals:
        total.pop("timings"), total.pop("finished"), total.pop("compilations")
    assert totals[0] == totals[1]


def test_a_shard_that_is_committed_by_now_is_not_read_again(score_command, generated, tmp_path):
    """A runner repeats a whole bundle where a worker is lost."""
    out = tmp_path / "out"
    assert score.main(score_command(), fake()) == 0
    (out / "scores" / "part-00002-of-00004.parquet").unlink()
    fingerprint = json.loads((generated / "manifest.json").read_text())["fingerprint"]
    reader = transforms.score.ReadGenerations(str(generated), fingerprint=fingerprint, num_shards=4)
    read = transforms.shards._ReadShard(str(out), reader, "launch", "scores")
    read.setup()
    assert [[texts.shard for texts in read.process(shard)] for shard in range(4)] == [[], [], [2], []]
    assert [path.name for path in (out / "attempts").iterdir()] == ["part-00002-of-00004.json"]


def test_texts_that_cannot_be_scored(score_command, tmp_path, generated):
    part = generated / "generations" / "part-00001-of-00004.parquet"
    table = pq.read_table(part)
    tokens = table["output_tokens"].to_pylist()
    tokens[3] = [5] * 13
    place, field = table.column_names.index("output_tokens"), table.schema.field("output_tokens")
    part.write_bytes(encode_table(table.set_column(place, field, pa.array(tokens, field.type)), read_footer(str(part))))
    assert score.main(score_command(), fake()) == 0
    (error,) = errors(tmp_path / "out")
    assert (error["stage"], error["error_type"], error["message"]) == ("score", "NotScorable", "too long")
    assert error["example_id"] == table["example_id"][3].as_py()
    assert summary(tmp_path / "out")["errors"] == {"total": 1, "score": 1} and summary(tmp_path / "out")["texts"] == 59


def test_references(command, sentences, tmp_path, spiece_model, capsys):
    lines = sentences.read_text().splitlines()
    lines[4] = json.dumps({"en": "No reference."})
    lines[6] = json.dumps({"en": "A long one.", "de": "Satz " * 30})
    sentences.write_text("\n".join(lines) + "\n")
    assert score.main(command(), fake()) == 0
    rows = scores(tmp_path / "out")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=spiece_model)
    assert len(rows) == 29 and rows["text_truncated"].sum() == summary(tmp_path / "out")["truncated_texts"]
    for row in rows.itertuples():
        expected = [*pieces.encode(json.loads(lines[row.index])["de"]), 1]
        assert row.tokens.tolist() == expected[:12] and row.text_truncated == (len(expected) > 12)
    (error,) = errors(tmp_path / "out")
    assert (error["index"], error["stage"], error["error_type"]) == (4, "tokenize", "NoReference")
    assert "not the target's own texts" in capsys.readouterr().out
    assert not summary(tmp_path / "out")["exact"]


def refused(args, capsys) -> str:
    assert score.main(args, fake()) == 2
    return capsys.readouterr().err


def test_what_is_refused(score_command, command, generated, tmp_path, capsys):
    assert "score.drafts is {}" in refused(score_command("--config.model.draft=", "--config.decoding.gamma=0"), capsys)
    assert "input.target_field is ''" in refused(command("--config.input.target_field="), capsys)
    assert "score.drafts.small is" in refused(score_command("--config.score.drafts.small=nowhere"), capsys)
    short = refused(score_command("--config.decoding.max_decode_tokens=11"), capsys)
    assert "decoding.max_decode_tokens is 11" in short and "up to 12 at least" in short
    assert "is empty or does not exist" in refused(command(f"--config.score.generations={tmp_path / 'no'}"), capsys)
    (generated / "_SUCCESS").unlink()
    (generated / "generations" / "part-00001-of-00004.parquet").unlink()
    assert "unfinished: 3 of 4 shards are committed" in refused(score_command(), capsys)
    manifest = dataclasses.replace(read_manifest(OutputFolder(str(generated))), job="score")
    (generated / "manifest.json").write_bytes(manifest.encode())
    assert "a folder of pipeline.score" in refused(score_command(), capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("values, message", [
    ({"drafts": {"a-b": "uniform"}}, "score.drafts is 'a-b'; allowed: names of letters"),
    ({"drafts": {"a": ""}}, "score.drafts.a is ''"),
    ({"lenience": (0.5, 0.5)}, "score.lenience is (0.5, 0.5); allowed: distinct numbers between 0 and 1"),
    ({"lenience": (1.0,)}, "score.lenience is (1.0,)"),
    ({"batch_tokens": 0}, "score.batch_tokens is 0; allowed: at least 1"),
])  # fmt: skip
def test_settings_that_are_refused(values, message):
    with pytest.raises(ConfigError) as error:
        ScoreConfig(**values)
    assert message in str(error.value)


SMALL = ("--config.decoding.num_slots=2", "--config.decoding.input_buckets=(64,)", "--config.decoding.max_decode_tokens=8",
         "--config.decoding.gamma=2", "--config.score.batch_tokens=128")  # fmt: skip


def test_golden_models(command, tmp_path, models, sentences):
    """With real models: the recorded β is met within 1e-5."""
    sentences.write_text("".join(sentences.read_text().splitlines(keepends=True)[:9]))
    generated, out = tmp_path / "generated", tmp_path / "out"
    assert generate.main(command(*SMALL, output=generated)) == 0
    texts = [row.as_py() for part in (generated / "generations").iterdir() for row in pq.read_table(part)["output_tokens"]]
    NGramDraft.fit(texts, 384, start_id=0, eos_id=1).save(str(tmp_path / "bigram"))
    drafts = (f"--config.score.drafts.t5={models['draft']}", f"--config.score.drafts.bigram={tmp_path / 'bigram'}",
              "--config.score.drafts.lookup=prompt_lookup", "--config.score.drafts.uniform=uniform")  # fmt: skip
    assert score.main(command(*SMALL, *drafts, f"--config.score.generations={generated}", output=out)) == 0
    found = summary(out)["drafts"]
    assert found["t5"]["on_policy"]["alpha"]["mean"] == pytest.approx(summary(generated)["alpha"]["mean"], abs=1e-7)
    assert 0 <= found["t5"]["on_policy"]["beta_max_difference"] < 1e-5
    assert all(found[name]["on_policy"] is None for name in ("bigram", "lookup", "uniform"))
    assert found["bigram"]["alpha"]["mean"] > found["uniform"]["alpha"]["mean"] > 1 / 384
    assert summary(out)["compilations_while_scoring"] == 0


@pytest.mark.parametrize("over", ["generations", "the input's own texts"])
def test_under_prime_every_step_from_reading_to_committing_has_the_same_hints(score_command, over):
    """Dataflow would not fuse steps with different ones."""
    arguments = score_command("--config.score.generations=") if over != "generations" else score_command()
    planned = score.prepare(parse_command_line(arguments), None, Launch(dry_run=True))
    flags = ["--runner=DataflowRunner", "--temp_location=gs://a-bucket/tmp", "--dataflow_service_options=enable_prime"]
    pipeline = beam.Pipeline(runner="DirectRunner", options=PipelineOptions(flags))
    score.build_pipeline(pipeline, run=planned, factory=fake())
    components = pipeline.to_runner_api().components
    hints = {
        transform.unique_name: dict(components.environments[transform.environment_id].resource_hints)
        for transform in components.transforms.values()
        if transform.spec.urn == common_urns.primitives.PAR_DO.urn
    }
    steps = ("Read/", "References/", "Score/", "Commit/", "References")
    among = {name: found for name, found in hints.items() if name.startswith(steps) and "Reshuffle" not in name}
    assert {name.split("/")[0] for name in among} >= {"Read", "Score", "Commit"}
    memory = str(8 << 30).encode()
    assert all(found == {common_urns.resource_hints.MIN_RAM_BYTES.urn: memory} for found in among.values()), among
    assert hints["Finish/ReadFooters"] == {}
