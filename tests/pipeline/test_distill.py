"""The training job: what it writes, that it goes on to the same weights, and the chain generate, score, distill, generate."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import decoding
from decoding.training.trainer import Trainer
from decoding.training.weights import Weights
from pipeline import analyze, distill, generate, score
from tests.pipeline.conftest import write_config, write_sentences
from tests.pipeline.helpers import files, rows, summary

SHORT = [
    "--config.distill.recipe.steps=12",
    "--config.distill.evaluate_steps=4",
    "--config.distill.recipe.batch_tokens=256",
    "--config.distill.recipe.warmup_steps=2",
]
NEW = [f"--config.distill.shape.{key}={size}" for key, size in (("num_layers", 1), ("num_decoder_layers", 1), ("d_model", 16))]


@pytest.fixture(scope="module")
def texts(tmp_path_factory, models) -> tuple[pathlib.Path, list[str]]:
    """A folder with the target's own texts at temperature 1, and the command line that they were made by."""
    folder = tmp_path_factory.mktemp("texts")
    config = write_config(folder / "config.py", models, write_sentences(folder / "input.jsonl"))
    base = [f"--config={config}", "--config.decoding.num_samples=2"]
    assert generate.main([*base, f"--output={folder / 'sampled'}", "--config.model.draft=", "--config.decoding.gamma=0"]) == 0
    return folder / "sampled", base


@pytest.fixture
def train(texts, tmp_path):
    def arguments(*overrides: str, output: pathlib.Path = tmp_path / "draft") -> list[str]:
        generations, base = texts
        return [*base, f"--output={output}", f"--config.distill.generations={generations}", *SHORT, *overrides]

    return arguments


def weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: pathlib.Path, other: pathlib.Path) -> None:
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_what_a_training_writes(train, texts, tmp_path, models, capsys):
    assert distill.main(train(*NEW)) == 0
    folder = tmp_path / "draft"
    names = ["config.json", "distill.json", "generation_config.json", "model.safetensors", "spiece.model"]
    assert files(folder) == [*names, "training/state.safetensors"]
    record = json.loads((folder / "distill.json").read_text())
    assert (record["steps"], record["left_out"]) == (12, 0) and [entry["step"] for entry in record["history"]] == [0, 4, 8, 12]
    generated = rows(texts[0])
    assert record["texts"] + record["alpha"]["after"][0]["texts"] == len(generated) == 60
    assert record["alpha"]["after"][0]["texts"] == 6  # both samples of a tenth of the examples
    best = max(record["history"][1:], key=lambda entry: entry["alpha"][0]["mean"])
    assert record["best_step"] == best["step"] and record["alpha"]["after"] == best["alpha"]
    alpha = record["alpha"]["after"][0]
    assert alpha["low"] < alpha["mean"] < alpha["high"] and alpha["temperature"] == 1.0
    assert record["parameters"] == sum(tensor.size for tensor in weights(folder).values())
    assert (folder / "spiece.model").read_bytes() == (models["target"] / "spiece.model").read_bytes()
    assert decoding.load_model(str(folder)).config.d_model == 16
    assert f"--config.model.draft={folder}" in capsys.readouterr().out
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert distill.main(train(*NEW)) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("more", [(), pytest.param(("--config.distill.recipe.target_top_k=8",), marks=pytest.mark.soak)])
def test_a_training_that_breaks_off_goes_on_to_the_same_weights(train, tmp_path, monkeypatch, more):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert distill.main(train(*NEW, *more, output=whole)) == 0
    taken, original = [], Trainer.step

    def breaking(self, *args):
        taken.append(args)
        if len(taken) == 7:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Trainer, "step", breaking)
    assert distill.main(train(*NEW, *more, output=broken)) == 130
    monkeypatch.undo()
    assert distill.main(train(*NEW, *more, output=broken)) == 0
    assert_same_weights(whole, broken)
    mine, other = (json.loads((folder / "distill.json").read_text()) for folder in (whole, broken))
    assert mine["history"] == other["history"]


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_weights(train, tmp_path):
    """SIGKILL, wherever it falls: after each look that there is a state of, and in the middle of the steps before it."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = ["--config.distill.recipe.steps=60", "--config.distill.evaluate_steps=10"]

    def begin(output: pathlib.Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "pipeline.distill", *train(*NEW, *steps, output=output)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert begin(whole).wait() == 0
    state, kills = killed / "training" / "state.safetensors", 0
    for delay in (0.0, 0.05):
        before, process = state.stat().st_mtime_ns if state.exists() else 0, begin(killed)
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2 and not (killed / "distill.json").exists()
    assert begin(killed).wait() == 0
    assert_same_weights(whole, killed)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_draft_is_trained_further(train, models, tmp_path, dtype):
    assert distill.main(train(f"--config.distill.start={models['draft']}", f"--config.distill.dtype={dtype}")) == 0
    mine, other = weights(tmp_path / "draft"), weights(models["draft"])
    assert mine.keys() == other.keys() and {str(tensor.dtype) for tensor in mine.values()} == {dtype}
    assert any(np.any(mine[name] != other[name].astype(mine[name].dtype)) for name in mine)


@pytest.mark.slow
def test_layers_of_the_target_and_answers_that_are_made_first(texts, tmp_path):
    command = [*texts[1], f"--output={tmp_path / 'draft'}", *SHORT, "--config.distill.start=layers"]
    assert distill.main([*command, "--config.distill.shape.num_decoder_layers=1", "--config.decoding.temperature=0"]) == 0
    record = json.loads((tmp_path / "draft" / "distill.json").read_text())
    assert record["generations"] == [str(tmp_path / "draft" / "generated")]
    assert record["alpha"]["before"][0]["temperature"] == 0.0
    assert summary(tmp_path / "draft" / "generated")["examples"] == 30


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([], r"distill.shape is {}; allowed with distill.start 'new'"),
        (["--config.distill.shape.d_modell=3"], r"distill.shape has 'd_modell'; allowed: keys of the target's config.json"),
        (["--config.distill.start=layers", "--config.distill.shape.num_layers=9"], r"num_layers is 9; allowed: 1 to"),
        (["--config.distill.start=/nowhere"], r"distill.start is '/nowhere'"),
        (["--config.distill.recipe.kl_weight=2"], r"distill.recipe.kl_weight is 2.0; allowed: from 0 to 1"),
        (["--config.distill.recipe.step=2"], r"unknown setting 'distill.recipe.step'; did you mean 'steps'\?"),
        (["--config.distill.held_out=0", *NEW], r"distill.held_out is 0; allowed: at least 1"),
        ([*NEW, "--direct_num_workers=2"], r"takes no Beam options"),
        ([*NEW, "--config.model.mesh=model:2"], r"model.mesh is 'model:2'; allowed: \"data:N\""),
    ],
)
def test_what_cannot_be_is_refused(train, tmp_path, capsys, overrides, message):
    assert distill.main(train(*overrides)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ")
    assert re.search(message, said), said
    assert not (tmp_path / "draft").exists()


def test_folders_of_others_are_refused(train, tmp_path, models, capsys):
    assert distill.main(train(*NEW)) == 0
    assert distill.main(train(*NEW, "--config.distill.recipe.seed=1")) == 2
    assert "belongs to another training, whose recipe differ" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    assert distill.main(train(*NEW, output=other)) == 2
    assert "holds other files, for example 'thesis.tex'" in capsys.readouterr().err
    assert distill.main(train(*NEW, f"--config.model.target={models['draft']}", output=tmp_path / "third")) == 2
    assert "texts of another target" in capsys.readouterr().err


def test_transformers_loads_the_directory_with_the_same_logits(train, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert distill.main(train(*NEW)) == 0
    folder = str(tmp_path / "draft")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    inputs, fed = np.array([[5, 9, 33, 1]], np.int32), np.array([[0, 7, 8, 20]], np.int32)
    with torch.no_grad():
        given = {"input_ids": torch.tensor(inputs, dtype=torch.long), "decoder_input_ids": torch.tensor(fed, dtype=torch.long)}
        expected = theirs(**given).logits.numpy()
    mine = decoding.load_model(folder, weights="plain").logits(fed, inputs, np.array([4], np.int32))
    np.testing.assert_allclose(mine, expected, atol=1e-4)


@pytest.mark.slow
def test_the_chain_generate_score_distill_generate(texts, tmp_path, capsys):
    """Drafts side by side over the same texts: the distilled one guesses better, and greedy outputs stay what they were."""
    generations, base = texts
    out = {name: tmp_path / name for name in ("draft", "scores", "before", "after", "plain", "report")}
    recipe = [f"--config.distill.recipe.{name}" for name in ("steps=200", "kl_weight=0.5", "batch_tokens=512")]
    command = [*base, f"--config.distill.generations={generations}", "--config.distill.evaluate_steps=50", *recipe, *NEW]
    assert distill.main([*command, f"--output={out['draft']}"]) == 0
    record = json.loads((out["draft"] / "distill.json").read_text())
    assert record["alpha"]["after"][0]["mean"] > record["alpha"]["before"][0]["high"]

    drafts = [f"--config.score.drafts.before={write_untrained(out['draft'], tmp_path / 'untrained')}"]
    drafts += [f"--config.score.drafts.after={out['draft']}", f"--config.score.generations={generations}"]
    assert score.main([*base, f"--output={out['scores']}", *drafts]) == 0
    found = summary(out["scores"])["drafts"]
    assert found["after"]["alpha"]["low"] > found["before"]["alpha"]["high"]

    greedy = [*base, "--config.decoding.temperature=0", "--config.decoding.num_samples=1"]
    runs = (("plain", "", 0), ("before", tmp_path / "untrained", 3), ("after", out["draft"], 3))
    for name, draft, gamma in runs:
        command = [*greedy, f"--config.model.draft={draft}", f"--config.decoding.gamma={gamma}", f"--output={out[name]}"]
        assert generate.main(command) == 0
    plain = rows(out["plain"])
    for name in ("before", "after"):
        for mine, other in zip(rows(out[name])["output_tokens"], plain["output_tokens"]):
            np.testing.assert_array_equal(mine, other)
    capsys.readouterr()
    inputs = ",".join(str(out[name]) for name in ("scores", "plain", "before", "after"))
    assert analyze.main([f"--inputs={inputs}", f"--output={out['report']}"]) == 0
    said = capsys.readouterr().out
    assert "before" in said and "after" in said


def write_untrained(trained: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A draft of the same shape with random weights."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("training", "distill.json"))
    raw = json.loads((folder / "config.json").read_text())
    Weights.new(raw, 7).write(str(folder), {})
    return folder
