"""examples/report.py: its commands are the jobs' own, and the chain runs."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from pipeline import analyze, benchmark
from pipeline.settings import parse_command_line

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "examples" / "report.py"


@pytest.fixture
def commands(tmp_path, monkeypatch) -> list[tuple[str, list[str]]]:
    """Module and arguments of every step of a quick run, none of which is run."""
    spec = importlib.util.spec_from_file_location("report_example", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = []
    run = lambda words, **_: found.append((words[2], words[3:])) or subprocess.CompletedProcess(words, 0)
    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["report.py", f"--output={tmp_path / 'out'}", "--quick"])
    script.main()
    return found


def test_every_command_is_understood(commands, tmp_path):
    assert [module.removeprefix("pipeline.") for module, _ in commands] == [
        "generate", "fit_ngram", "fit_ngram", "generate", "generate", "score", "score", "benchmark", "analyze",
    ]  # fmt: skip
    for module, args in commands:
        assert importlib.util.find_spec(module)
        if module in ("pipeline.generate", "pipeline.score"):
            parsed = parse_command_line(args)
            assert parsed.beam_args == ()
            if module == "pipeline.score":
                assert set(parsed.config.score.drafts) == {"small", "bigram", "unigram", "prompt_lookup"}
        elif module == "pipeline.benchmark":
            assert benchmark.parse(args)[2].gammas == (3,)
        elif module == "pipeline.analyze":
            assert [pathlib.Path(folder).name for folder in analyze.parse(args)[0]] == [
                "greedy", "sampled-0", "scores-greedy", "scores-sampled", "benchmark",
            ]  # fmt: skip
    lines = [(tmp_path / "out" / name).read_text().splitlines() for name in ("sentences.jsonl", "apart.jsonl")]
    assert (len(lines[0]), len(lines[1])) == (30, 15)
    assert not {*lines[0]} & {*lines[1]}  # what n-grams are fitted to is not scored


@pytest.mark.soak
def test_the_whole_chain(tmp_path):
    subprocess.run([sys.executable, str(SCRIPT), f"--output={tmp_path}", "--quick"], check=True, timeout=1500)
    results = json.loads((tmp_path / "report" / "analysis.json").read_text())
    drafts = {(one["draft"], one["sampling"]) for one in results["series"] if one["kind"] == "scores"}
    assert drafts == {(draft, s) for draft in ("small", "bigram", "unigram", "prompt lookup") for s in ("T = 0", "T = 1")}
    misses = [row["predicted"]["walk"]["miss"]["mean"] for row in results["tokens_per_call"]]
    assert len(misses) == 2 and max(map(abs, misses)) < 0.25
    assert len(results["speedups"]) == 2 and all(row["predicted"] for row in results["speedups"])
    assert (tmp_path / "report" / "report.html").exists()
