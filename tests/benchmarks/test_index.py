"""The benchmark of the corpus draft runs, at a size of nothing."""

import pathlib

import pytest

from benchmarks import index
from decoding.drafts import suffixes

TARGET = pathlib.Path(__file__).parents[1] / "testdata" / "golden" / "t5_v1_1_target"


@pytest.mark.slow
def test_builds_and_searches(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "TEXTS_PER_ITEM", 100)
    built = index.build(str(tmp_path), 20_000, 384, workers=2)
    assert built["tokens"] == 20_000 and 5.9 < built["bytes"] / built["tokens"] < 6.1
    assert suffixes.read_info(str(tmp_path)).about["texts"] == 400
    target = index.load_target(str(TARGET))
    for temperature in (0.0, 1.0):
        found = index.search_seconds(target, str(tmp_path), slots=2, gamma=2, temperature=temperature, repeats=1)
        assert {*found} == {"target", "index", "lookup", "lookup with hints"} and all(
            0 < one < 10 for one in found.values()
        )
