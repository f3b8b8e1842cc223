"""A folder that was begun: finished shards stay, missing ones are done, other runs are refused."""

import json
import shutil

import pytest

from pipeline.job import run as manifest
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, run, summary
from transforms.parts import read_footer


def test_finished_folder_is_left_alone(command, tmp_path, capsys):
    run(command())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    loads = fakes.loads
    run(command())
    assert fakes.loads == loads
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert "Finished already" in capsys.readouterr().out


def test_resume_does_only_what_is_missing(command, finished, tmp_path):
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
    for volatile in ("timings", "finished", "compilations"):
        total.pop(volatile), again.pop(volatile)
    assert again == total
    assert read_footer(str(out / "generations" / "part-00000-of-00004.parquet")).attempt == 3
    assert not [name for name in files(out) if name.startswith("attempts")]


def test_what_a_runner_repeats_is_decoded_once(command, tmp_path, monkeypatch):
    """A runner that has lost a worker repeats its bundle; here it repeats them all."""
    decoded, decode = [], fakes.FakeGenerator.generate_with_report

    def count(self, inputs, example_ids):
        decoded.append(example_ids[0])
        return decode(self, inputs, example_ids)

    monkeypatch.setattr(fakes.FakeGenerator, "generate_with_report", count)
    ranges = manifest.ranges
    monkeypatch.setattr(manifest, "ranges", lambda shards: 2 * ranges(shards))
    run(command())
    assert len(decoded) == len(set(decoded)) == 4
    assert summary(tmp_path / "out")["examples"] == 30
    assert not [name for name in files(tmp_path / "out") if name.startswith("attempts")]


def test_only_the_end_is_missing(command, finished, tmp_path):
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
def test_other_settings_are_refused(command, finished, tmp_path, capsys, override, parts):
    fingerprint = json.loads((tmp_path / "out" / "manifest.json").read_text())["fingerprint"]
    capsys.readouterr()
    run(command(override), expect=2)
    message = capsys.readouterr().err
    for part in [fingerprint, "this run's is", *parts]:
        assert part in message
    assert message.count("\n") == 1


def test_other_input_and_weights_are_refused(command, finished, tmp_path, capsys, sentences, models):
    other = tmp_path / "other" / "target"
    shutil.copytree(models["target"], other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    run(command(f"--config.model.target={other}"), expect=2)
    assert "model.target.model.safetensors" in capsys.readouterr().err
    sentences.write_text(sentences.read_text().replace("Retinex", "retinex"))
    run(command(), expect=2)
    assert "input.files.input.jsonl.digest" in capsys.readouterr().err


def test_moved_input_and_models_continue(command, finished, tmp_path, sentences, models):
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "generations" / "part-00001-of-00004.parquet").unlink()
    moved = tmp_path / "moved"
    shutil.copytree(models["target"], moved / "model")
    shutil.copy(sentences, moved / "input.jsonl")
    sentences.unlink()
    run(command(f"--config.input.pattern={moved}/input.jsonl", f"--config.model.target={moved}/model"))
    assert summary(tmp_path / "out")["examples"] == 30


def test_changed_code_is_refused_unless_allowed(command, finished, tmp_path, capsys, monkeypatch):
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "generations" / "part-00001-of-00004.parquet").unlink()
    monkeypatch.setattr("pipeline.job.run.code_digest", lambda: "other code")
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
