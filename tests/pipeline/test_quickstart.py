"""Jobs beside their measurements, and texts with every token's source in sight."""

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


def ratio(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "repeats": 5}


def row(gamma, speedup, differing):
    return {
        "num_slots": 1, "temperature": 0.0, "verification": "token", "gamma": gamma, "seconds": [1.0, 1.0],
        "tokens_per_second": 90.0 * (speedup["mean"] if speedup else 1), "tokens_per_target_call": 2.5, "speedup": speedup,
        "alpha": {"mean": 0.81} if gamma else None, "generations": 4, "differing_generations": differing,
    }  # fmt: skip


def test_results_show_texts_speeds_equal_outputs_and_the_verdict(command, tmp_path):
    assert generate.main(command("--config.decoding.temperature=0.0", output=tmp_path / "out"), fakes.factory()) == 0
    benchmark = {
        "rows": [row(0, None, [0, 0]), row(3, ratio(1.7), [0, 1]), row("auto", ratio(1.6), [0, 0])],
        "costs": [{"num_slots": 1, "c": None, "pass_cost": {"1": ratio(1.0), "4": ratio(1.25)}}],
    }
    (tmp_path / "out" / "benchmark").mkdir()
    (tmp_path / "out" / "benchmark" / "benchmark.json").write_text(json.dumps(benchmark))
    console = Console(file=io.StringIO(), width=80)
    quickstart.print_results(console, {"a pair translates": tmp_path / "out"})
    shown = console.file.getvalue()
    for word in ("accepted: drafted", "[text]  corrected", "{text}  bonus", "a pair translates"):
        assert word in shown
    cells = [[cell for cell in line.split("  ") if cell.strip()] for line in shown.splitlines()]
    cells = [[cell.strip() for cell in line] for line in cells]
    assert ["γ = 3", "153", "1.70x [1.60, 1.80]", "0.81", "7 of 8"] in cells
    assert ["γ = auto", "144", "1.60x [1.50, 1.70]", "0.81", "8 of 8"] in cells
    assert "Speculation pays here: at 1 slot, temperature 0, γ = 3 is 1.70 times" in shown


@pytest.mark.parametrize("joined", [True, False])
def test_jobs_and_measurements_get_the_overrides(tmp_path, monkeypatch, joined):
    jobs, measured = [], []
    monkeypatch.setattr(quickstart.generate, "main", lambda args: jobs.append(list(args)) or 0)
    monkeypatch.setattr(quickstart.benchmark, "main", lambda args: measured.append(list(args)) or 0)
    monkeypatch.setattr(quickstart, "print_results", lambda *_: None)
    output = [f"--output={tmp_path}"] if joined else ["--output", str(tmp_path)]
    assert quickstart.main([*output, "--config.decoding.seed=5"]) == 0
    assert [args[-1] for args in jobs] == [f"--output={tmp_path}/correction", f"--output={tmp_path}/translation"]
    assert [args[-1] for args in measured] == [
        f"--output={tmp_path}/correction/benchmark",
        f"--output={tmp_path}/translation/benchmark",
    ]
    for args in (*jobs, *measured):
        assert "--config.decoding.seed=5" in args
        assert sum(arg.startswith("--output") for arg in args) == 1
    texts = (tmp_path / "correction.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(texts) == 6 and f"--config.input.pattern={tmp_path}/correction.jsonl" in jobs[0]
    assert "--gammas=3,auto" in measured[0] and "--gammas=2,auto" in measured[1]


def test_a_run_that_fails_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart.generate, "main", lambda args: 2)
    monkeypatch.setattr(quickstart.benchmark, "main", lambda args: pytest.fail("measured a job that failed"))
    assert quickstart.main([f"--output={tmp_path}"]) == 2
