"""The job from end to end with the reference T5 pair: what only real models can show."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pipeline import generate
from tests.pipeline.helpers import assert_same_rows, rows, summary
from tests.support import tiny_gguf

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = (
    "--config.decoding.num_slots=2",
    "--config.decoding.input_buckets=(64,)",
    "--config.decoding.max_decode_tokens=8",
    "--config.decoding.gamma=2",
)


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "input.jsonl"
    texts = ["A tool.", "Reads and writes files in many formats.", "Editor", "It is advised to save.", "Network daemon"]
    path.write_text("".join(json.dumps({"en": text, "de": "Wort"}) + "\n" for text in texts))
    return path


def test_greedy_is_plain_greedy_however_it_is_cut(command, tmp_path):
    greedy = (*SMALL, "--config.decoding.temperature=0.0")
    plain = ("--config.model.draft=", "--config.decoding.gamma=0")
    assert generate.main(command(*greedy)) == 0
    assert generate.main(command(*greedy, *plain, output=tmp_path / "plain")) == 0
    cut = ("--config.shards.examples_per_shard=2", "--direct_num_workers=2")
    assert generate.main(command(*greedy, *cut, output=tmp_path / "cut")) == 0
    speculative = rows(tmp_path / "out")
    assert len(speculative) == 5
    for a, b in zip(speculative["output_tokens"], rows(tmp_path / "plain")["output_tokens"]):
        assert a.tolist() == b.tolist()
    assert_same_rows(speculative, rows(tmp_path / "cut"))
    assert summary(tmp_path / "out")["compilations_while_decoding"] == 0
    mixed = (*cut[:1], "--config.shards.baseline_fraction=0.5")
    assert generate.main(command(*greedy, *mixed, output=tmp_path / "mixed")) == 0
    for a, b in zip(speculative["output_tokens"], rows(tmp_path / "mixed")["output_tokens"]):
        assert a.tolist() == b.tolist()
    assert {3} < {int(source) for row in rows(tmp_path / "mixed")["source"] for source in row}
    assert 0 < summary(tmp_path / "out")["slot_occupancy"] <= 1


def test_as_a_command(command, tmp_path):
    """In a process of its own: the fork works with a real engine, and nothing tries to import TensorFlow.

    Greedy as the test above, whose compiled programs it finds.
    """
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "tensorflow.py").write_text("import os; print('TensorFlow was imported', flush=True); os._exit(77)")
    found = subprocess.run(
        [sys.executable, "-m", "pipeline.generate", *command(*SMALL, "--config.decoding.temperature=0.0")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(trap)},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Traceback" not in found.stderr and "os.fork" not in found.stderr
    assert "target calls per token" in found.stdout
    assert (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.slow
def test_gguf_files_are_their_directories(command, models, spiece_model, tmp_path):
    """Both models from files of llama.cpp's, their tokeniser inside."""
    vocabulary, settings = tiny_gguf.t5_vocabulary(spiece_model, padding=3), [*SMALL, "--config.decoding.temperature=0.0"]
    files = {name: tiny_gguf.of_directory(tmp_path / f"{name}.gguf", models[name], values=vocabulary) for name in models}
    assert generate.main(command(*settings)) == 0
    named = [f"--config.model.{name}={file}" for name, file in files.items()]
    assert generate.main(command(*settings, *named, output=tmp_path / "files")) == 0
    expected, found = rows(tmp_path / "out"), rows(tmp_path / "files")
    for column in ("inputs", "input_tokens", "output_tokens", "prediction", "accepted"):
        assert [list(value) for value in found[column]] == [list(value) for value in expected[column]], column
