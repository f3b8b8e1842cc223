"""Jobs with hints: settings, fingerprint, what reaches the engine, and what hints save."""

import json
import pathlib
import random
import re

import numpy as np
import pytest

from configs import quickstart
from decoding.config import HINT
from pipeline import analyze, generate
from pipeline.settings import ConfigError, JobConfig, parse_command_line
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, run, summary
from tests.transforms.test_read import read
from transforms.folder import read_manifest
from transforms.hints import EarlierOutputs, HintSettings
from transforms.inputs.base import RecordFields
from transforms.storage import OutputFolder

RECORDS = ("example_id", "index", "inputs", "targets", "prediction", "output_tokens", "finish_reason")


def settings(command, *overrides) -> JobConfig:
    return parse_command_line(command(*overrides)).config


def test_a_job_with_hints_and_no_draft_copies(command):
    config = settings(command, "--config.model.draft=", "--config.input.hint_field=de")
    assert (config.model.draft, config.decoding.gamma, config.decoding.hint_tokens) == ("prompt_lookup", 3, 12)
    config = settings(command, "--config.model.draft=prompt_lookup", "--config.input.hint_field=('de', 'en')")
    assert config.input.hint_fields == ("de", "en") and config.decoding.hint_tokens == 25
    config = settings(command, "--config.model.draft=", "--config.input.hint_field=de", "--config.decoding.hint_tokens=7")
    assert config.decoding.hint_tokens == 7


def test_what_has_no_use_for_hints_is_refused(command):
    with pytest.raises(ConfigError, match='model.draft is .*draft.; allowed: "prompt_lookup", which "" means here'):
        settings(command, "--config.input.hint_field=de")
    with pytest.raises(ConfigError, match="decoding.hint_tokens is 5; allowed: 0 where there is neither"):
        settings(command, "--config.decoding.hint_tokens=5")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.input.hint_field=fr"], "input.hint_field is 'fr', which none of the first 30 records"),
        (["--config.input.hint_folder=nowhere"], "input.hint_folder: .*nowhere.* is empty or does not exist"),
    ],
)
def test_hints_that_are_not_there_stop_the_launch(command, capsys, overrides, message):
    run(command("--config.model.draft=", *overrides), expect=2)
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error)


def test_hints_reach_the_engine_and_the_fingerprint(command, finished_run, tmp_path, monkeypatch):
    given = {}

    def note(self, inputs, example_ids, hints=None):
        given.update(zip(example_ids, hints))
        return kept(self, inputs, example_ids)

    kept = fakes.FakeGenerator.generate_with_report
    monkeypatch.setattr(fakes.FakeGenerator, "generate_with_report", note)
    hinted = command("--config.model.draft=", "--config.input.hint_field=de", f"--config.input.hint_folder={finished_run}")
    run(hinted)
    written = rows(tmp_path / "out")
    for name, tokens in zip(written["example_id"], rows(finished_run)["output_tokens"]):
        of_field, earlier = given[name]
        assert len(of_field) == 12  # its share, as the tokens of these texts are bytes
        np.testing.assert_array_equal(earlier, tokens)
    identity = json.loads((tmp_path / "out/manifest.json").read_text())["identity"]
    fingerprint = json.loads((finished_run / "manifest.json").read_text())["fingerprint"]
    assert identity["input"]["hint_fields"] == ["de"] and identity["input"]["hint_folder"] == fingerprint
    # Every reference is longer than its share of the room, and so is no earlier output.
    assert summary(tmp_path / "out")["hints"] == {"inputs": 30, "cut": 30} and "hints" not in summary(finished_run)
    run(hinted)  # the same command finds it finished
    run(command("--config.model.draft=", "--config.input.hint_field=de"), expect=2)
    # A job without hints says nothing of them, so that folders begun before there were any are continued.
    identity = json.loads((finished_run / "manifest.json").read_text())["identity"]
    assert "hint" not in json.dumps(identity)


@pytest.mark.parametrize("by_text", [False, True])
def test_an_earlier_run_is_joined_by_example_id(finished_run, by_text):
    written = rows(finished_run)
    fingerprint = read_manifest(OutputFolder(str(finished_run))).fingerprint
    earlier = EarlierOutputs(HintSettings(64, 1, str(finished_run), fingerprint, by_text))
    # Of other shards than the part that is looked into first, in any order, and one that the run does not have.
    ids = [written["example_id"][i] for i in (20, 3, 9)]
    found = earlier.find([*ids, "unknown"], shard=0)
    assert set(found) == set(ids)
    for i, name in zip((20, 3, 9), ids):
        expected = written["prediction" if by_text else "output_tokens"][i]
        np.testing.assert_array_equal(found[name], expected)
    assert earlier.find(["unknown"], shard=99) == {}


def test_an_earlier_output_comes_after_the_records_own_hints(tmp_path, finished_run):
    path = tmp_path / "input.jsonl"  # whose records are named as those of that run's input
    path.write_text(json.dumps({"en": "x", "old": "a"}) + "\n")
    fingerprint = read_manifest(OutputFolder(str(finished_run))).fingerprint
    settings = HintSettings(64, 1, str(finished_run), fingerprint)
    fields = RecordFields("en", hints=("old",))
    (example,) = read(path, fields=fields, hints=settings, earlier=EarlierOutputs(settings)).examples
    assert example.hints[0].tolist() == [10, 1]
    np.testing.assert_array_equal(example.hints[1], rows(finished_run)["output_tokens"][0])


@pytest.mark.slow
def test_what_hints_save_with_the_pair_that_comes_with_specbeam(tmp_path):
    """A job redone with its own output as hint takes at most 1/γ + 5% calls per token, and at most 0.45 with a tenth of the
    words changed; tokens are the same."""
    pattern = pathlib.Path(quickstart.get_config().input.pattern)
    texts = tmp_path / "ende_software.test.jsonl"  # ids hold the file's name
    texts.write_text("".join(pattern.read_text(encoding="utf-8").splitlines(keepends=True)[:64]), encoding="utf-8")

    def job(name: str, *overrides: str, pattern: pathlib.Path = texts):
        preset = pathlib.Path(quickstart.__file__)
        arguments = [f"--config={preset}", f"--output={tmp_path / name}", f"--config.input.pattern={pattern}"]
        arguments += ["--config.decoding.gamma=7", "--config.decoding.num_slots=16", "--config.decoding.input_buckets=(256,)"]
        assert generate.main([*arguments, "--config.model.draft=", *overrides]) == 0
        return rows(tmp_path / name), summary(tmp_path / name)["target_calls_per_token"]

    first, _ = job("first", "--config.decoding.gamma=0")
    again, calls = job("again", f"--config.input.hint_folder={tmp_path / 'first'}")
    assert_same_rows(first[[*RECORDS]], again[[*RECORDS]])
    assert calls <= 1.05 / 7
    assert set(np.concatenate(again["origin"])) == {HINT}
    np.testing.assert_array_equal([*map(len, again["match"])], again["num_iterations"])
    assert "origin" not in first
    draw, words = random.Random(0), [word for text in first["prediction"] for word in text.split()]
    changed = tmp_path / "changed" / texts.name
    changed.parent.mkdir()
    with changed.open("w", encoding="utf-8") as file:
        for line, text in zip(texts.read_text(encoding="utf-8").splitlines(), first["prediction"]):
            hint = " ".join(draw.choice(words) if draw.random() < 0.1 else word for word in text.split())
            file.write(json.dumps({**json.loads(line), "hint": hint}) + "\n")
    other, calls = job("other", "--config.input.hint_field=hint", pattern=changed)
    assert_same_rows(first[[*RECORDS]], other[[*RECORDS]])
    assert calls <= 0.45
    assert files(tmp_path / "other") == files(tmp_path / "first")
    assert analyze.main([f"--inputs={tmp_path / 'other'}", f"--output={tmp_path / 'report'}"]) == 0
    (series,) = json.loads((tmp_path / "report/analysis.json").read_text())["series"]
    origins = {bucket["label"]: bucket for bucket in series["by"]["origin"]}
    assert origins["hint"]["accepted"]["mean"] > origins["output"]["accepted"]["mean"] if "output" in origins else True
    drafted = sum(int(np.sum(gammas > 0)) for gammas in other["gammas"])
    assert sum(bucket["calls"] for bucket in origins.values()) == drafted
    kept = sum(bucket["calls"] * bucket["accepted"]["mean"] for bucket in series["by"]["match"])
    assert kept == pytest.approx(sum(int(np.sum(accepted)) for accepted in other["accepted"]))
