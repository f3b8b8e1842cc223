"""Runs are called by what differs between them, in tables and figures too, not by their folders."""

import json

import pytest

from pipeline.report.names import labels
from pipeline.report.sources import open_sources
from tests.pipeline import analysis_folders as folders


def names(*made) -> list[str]:
    return [source.called for source in open_sources(list(map(str, made)))[0]]


def with_decoding(folder, **settings):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["decoding"] |= settings
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def make(tmp_path):
    """Makes a small folder of generations whose name says nothing."""
    count = iter(range(100))
    return lambda **settings: folders.make_generations(tmp_path / f"x{next(count)}", texts=2, **settings)


def test_what_differs_within_a_kind_is_said(make, tmp_path):
    scores, bench = folders.make_scores(tmp_path / "scores"), folders.make_benchmark(tmp_path / "bench")
    assert names(make(), make(seed=1), scores, bench) == [
        "T = 1, γ = 3, seed 0", "T = 1, γ = 3, seed 1", "scores, T = 1", "benchmark",
    ]  # fmt: skip
    other = with_decoding(make(gamma=5, temperature=0.5), num_slots=4, verification="block")
    assert names(make(), other) == ["T = 1, γ = 3, token, 8 slots", "T = 0.5, γ = 5, block, 4 slots"]
    assert names(make(gamma=0, model={**folders.PAIR, "draft": ""}), make()) == ["T = 1, plain", "T = 1, draft, γ = 3"]


def test_what_no_column_has_tells_runs_apart(make):
    sources, _ = open_sources([str(make(code="a")), str(make(code="b"))])
    assert [source.apart for source in sources] == [f"run {source.fingerprint[:8]}" for source in sources]
    assert [source.called for source in sources] == [f"T = 1, γ = 3, {source.apart}" for source in sources]
    short, long = (with_decoding(make(code=str(n)), max_decode_tokens=n) for n in (64, 128))
    assert [source.apart for source in open_sources([str(short), str(long)])[0]] == [
        "max decode tokens 64", "max decode tokens 128",
    ]  # fmt: skip
    assert [source.apart for source in open_sources([str(make(code="c")), str(make(seed=1))])[0]] == ["", ""]


def test_labels_of_a_figure_have_the_draft_and_what_differs():
    row = {"draft": "small", "sampling": "T = 0", "gamma": 3, "num_slots": 1, "called": "c", "seed": 0}
    assert labels([row]) == ["small"]
    assert labels([row, {**row, "gamma": 5}]) == ["small, γ = 3", "small, γ = 5"]
    assert labels([row, {**row, "gamma": None, "draft": "lookup"}]) == ["small, γ = 3", "lookup"]
    assert labels([row, {**row, "called": "d"}]) == ["small, c", "small, d"]
