"""Folders that an earlier version wrote are still read.

tests/testdata/earlier holds two that commit 6c2d59b left: `generated`, six texts in two shards by the reference T5 models with
γ = 3, and `scored`, the same texts scored. Their footers, manifests and summaries are of that version.
"""

import json
import pathlib
import shutil

import pytest

import specbeam
from pipeline import analyze, inspect

EARLIER = pathlib.Path(__file__).resolve().parents[1] / "testdata" / "earlier"


def assert_agrees(found, expected, where=""):
    """All that `expected` says, `found` says too; β was added up in other units, and what was compiled is counted anew."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            if name != "compilations":
                assert_agrees(found[name], value, f"{where}.{name}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", ["generated", "scored"])
def test_inspect(name, tmp_path, capsys):
    folder = shutil.copytree(EARLIER / name, tmp_path / name)
    assert inspect.main([str(folder), "--json"]) == 0
    found, summary = json.loads(capsys.readouterr().out), json.loads((folder / "summary.json").read_text())
    assert found["complete"] and not found["problems"] and found["versions"]["specbeam"]
    totals = {name: value for name, value in summary.items() if name in found["totals"]}
    assert totals.keys() >= {"examples", "tokens", "errors", "timings"}
    assert_agrees(found["totals"], totals)
    assert inspect.main([str(folder)]) == 0
    assert "2 of 2 are done" in capsys.readouterr().out


def test_analyze(tmp_path):
    folders = [shutil.copytree(EARLIER / name, tmp_path / name) for name in ("generated", "scored")]
    assert analyze.main([f"--inputs={folders[0]},{folders[1]}", f"--output={tmp_path / 'report'}"]) == 0
    found = json.loads((tmp_path / "report" / "analysis.json").read_text())
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    expected = [summaries[0]["alpha"]["mean"], summaries[1]["drafts"]["draft"]["alpha"]["mean"]]
    assert [one["alpha"]["mean"] for one in found["series"]] == pytest.approx(expected, rel=1e-6)
    assert [one["tokens"] for one in found["series"]] == [one["tokens"] for one in summaries]


def test_rows():
    table = specbeam.read(str(EARLIER / "generated"))
    summary = json.loads((EARLIER / "generated" / "summary.json").read_text())
    assert table.num_rows == 6
    assert sum(map(len, table["output_tokens"].to_pylist())) == summary["tokens"]
