"""A report whose inputs, ids, outputs and folder names are hostile, for tests of what comes out."""

import json
import pathlib

import pytest

from pipeline import analyze
from pipeline.report import write
from tests.pipeline import analysis_folders as folders

NASTY = "<script>alert(1)</script> <img src=x onerror=alert(1)> \" ' & | ~~~~ \u202eabc"
PIECES = ("<script>", "alert(1)", "</script>", " שלום", " \u202eevil", '"onmouseover="x', "&amp;", " `|`", "\n~~~~\n", " word")


class Pieces:
    """A tokeniser of the nastiest pieces."""

    def decode(self, tokens) -> str:
        return "".join(PIECES[token % len(PIECES)] for token in tokens)


def make_report(root: pathlib.Path) -> tuple[pathlib.Path, dict]:
    """Makes the report of a run, scores and a benchmark below `root`. Returns its folder and analysis.json's content."""
    folders.make_generations(
        root / "a <b>|run", baseline=lambda shard: shard in (1, 2), inputs=lambda n: f"{NASTY} {n}", name="<i>data.jsonl"
    )
    folders.make_scores(root / "scores")
    folders.make_benchmark(root / "bench")
    inputs = ",".join(str(root / name) for name in ("a <b>|run", "scores", "bench"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "load_tokenizer", lambda path: Pieces())
        assert analyze.main([f"--inputs={inputs}", f"--output={root / 'report'}"]) == 0
    return root / "report", json.loads((root / "report" / "analysis.json").read_text())
