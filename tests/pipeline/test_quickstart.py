"""The comparison of two runs, and translations with every token's source in sight."""

import io
import json

import pytest
from rich.console import Console

from pipeline import generate, quickstart
from tests.pipeline import fakes
from transforms.tokenize import load_tokenizer


@pytest.fixture
def tokenizer(models):
    return load_tokenizer(str(models["target"]))


def test_marks_tell_sources_apart_without_colour(tokenizer):
    ids = tokenizer.encode("files in many formats")
    sources = [1] * len(ids)
    assert quickstart.marked_text(ids, sources, tokenizer).plain == "files in many formats"
    sources[-1] = 0
    plain = quickstart.marked_text(ids, sources, tokenizer).plain
    assert plain.endswith("]") and plain.count("[") == 1 and plain.replace("[", "").replace("]", "") == tokenizer.decode(ids)
    assert quickstart.marked_text(ids, [2] * len(ids), tokenizer).plain.count("{") == len(ids)


def test_colours_differ_as_well(tokenizer):
    ids = tokenizer.encode("files in")
    colours = [str(quickstart.marked_text(ids, [s] * len(ids), tokenizer).spans[0].style) for s in (0, 1, 2)]
    assert len(set(colours)) == 3


def test_characters_of_several_tokens_stay_whole(tokenizer):
    ids = tokenizer.encode("für 漢")
    marked = quickstart.marked_text(ids, [1, 0] * len(ids), tokenizer).plain
    assert "\ufffd" not in marked
    assert marked.replace("[", "").replace("]", "") == "für 漢"


def test_count_equal():
    a = {"x": {"output_tokens": [1, 2]}, "y": {"output_tokens": [3]}, "z": {"output_tokens": []}}
    b = {"x": {"output_tokens": [1, 2]}, "y": {"output_tokens": [4]}}
    assert quickstart.count_equal(a, b) == (1, 2)


def test_comparison_of_two_runs(command, tmp_path):
    plain, speculative = tmp_path / "plain", tmp_path / "speculative"
    factory = fakes.factory()
    assert generate.main(command("--config.model.draft=", "--config.decoding.gamma=0", output=plain), factory) == 0
    assert generate.main(command("--config.decoding.temperature=0.0", output=speculative), factory) == 0
    console = Console(file=io.StringIO(), width=120)
    quickstart.print_comparison(console, {"plain": plain, "speculative": speculative})
    shown = console.file.getvalue()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (plain, speculative)]
    speeds = [summary["timings"]["tokens_per_second"] for summary in summaries]
    assert f"speculative: speedup {speeds[1] / speeds[0]:.2f}x" in shown
    assert "equal outputs " in shown and " of 30" in shown
    for word in ("accepted: drafted", "[text]  corrected", "{text}  bonus"):
        assert word in shown


@pytest.mark.parametrize("joined", [True, False])
def test_all_runs_get_the_overrides(tmp_path, monkeypatch, joined):
    seen = []
    monkeypatch.setattr(generate, "main", lambda args: seen.append(list(args)) or 0)
    monkeypatch.setattr(quickstart, "print_comparison", lambda *_: None)
    output = [f"--output={tmp_path}"] if joined else ["--output", str(tmp_path)]
    assert quickstart.main([*output, "--config.decoding.num_slots=2"]) == 0
    plain, speculative, auto = seen
    assert f"--output={tmp_path}/plain" in plain and f"--output={tmp_path}/speculative" in speculative
    assert "--config.decoding.gamma=0" in plain and "--config.decoding.gamma=0" not in speculative
    assert auto[-2:] == ["--config.decoding.gamma=auto", f"--output={tmp_path}/auto"]
    assert all("--config.decoding.num_slots=2" in args for args in seen)
    assert sum(arg.startswith("--output") for arg in plain) == 1
