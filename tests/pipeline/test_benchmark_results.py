"""The benchmark's arithmetic on made-up timings, and its bookkeeping with a generator whose results are known."""

import math

import numpy as np
import pytest

import decoding
from decoding import DecodingConfig
from pipeline.benchmarking.passes import Pass
from pipeline.benchmarking.results import cost_row, setting_row
from pipeline.benchmarking.runner import Measurements, Runner
from pipeline.benchmarking.settings import Group, Setting
from pipeline.benchmarking.tables import remarks
from tests.pipeline.benchmark_fakes import FakeGenerator, generation
from tests.support import scripted
from transforms.records import Example
from transforms.statistics.generations import DecodedText, shard_statistics


def measurements(seconds, tokens, beta=None) -> Measurements:
    found = Measurements(
        seconds=seconds, tokens=tokens, iterations=[10, 10], row_iterations=[15, 15], compilations=[0, 0],
        differing=[0, 1], generations=3,
    )  # fmt: skip
    if beta is not None:
        decoded = [DecodedText(f"id{i}", generation(beta), "", None) for i in range(4)]
        found.statistics = shard_statistics(decoded, [], num_examples=4, input_tokens=4, truncated=0)
    return found


def test_rows_of_made_up_timings():
    passes = {
        Pass(2, "target", 1): [2.0, 4.0], Pass(2, "target", 2): [3.0, 6.0], Pass(2, "draft", 1): [0.5, 1.0],
    }  # fmt: skip
    plain = measurements([4.0, 8.0], [40, 40])
    fast = measurements([3.0, 6.0], [60, 60], beta=[0.25, 0.75, math.nan])
    row = setting_row(Setting(2, 1.0, "token", 1), plain, fast, passes)
    assert row["speedup"] == pytest.approx({"mean": 2.0, "low": 2.0, "high": 2.0, "repeats": 2})
    assert row["iteration_cost"]["mean"] == pytest.approx(0.75)
    assert row["alpha"]["mean"] == pytest.approx(0.5)
    # α = 1/2, γ = 1, c = 1/4, pass cost 3/2: 1.5 tokens per call, in 1 + 1/4 or 3/2 + 1/4 target steps.
    assert row["predicted"] == pytest.approx({"theorem_3_8": 1.2, "with_pass_cost": 6 / 7})
    assert row["slot_occupancy"] == pytest.approx(30 / 40)
    assert row["tokens_per_second"] == pytest.approx(120 / 9)
    assert row["tokens_per_target_call"] == pytest.approx(4.0)
    assert row["same_tokens_expected"] is False
    cost = cost_row(2, passes)
    assert cost["c"]["mean"] == pytest.approx(0.25)
    assert {width: ratio["mean"] for width, ratio in cost["pass_cost"].items()} == pytest.approx({"1": 1, "2": 1.5})
    assert cost["draft_seconds"] == [0.5, 1.0]

    alone = setting_row(Setting(2, 0.0, "token", 0), plain, plain, {})
    assert (alone["speedup"], alone["predicted"], alone["alpha"]) == (None, None, None)
    assert alone["same_tokens_expected"] is True
    lenient = setting_row(Setting(2, 0.0, "token", 1), plain, fast, passes, exact=False)
    assert lenient["same_tokens_expected"] is False
    auto = setting_row(Setting(2, 1.0, "token", "auto"), plain, fast, passes)
    assert auto["predicted"] is None and auto["speedup"]["mean"] == pytest.approx(2.0)


def row(**changes) -> dict:
    known = {"same_tokens_expected": True, "differing_generations": [0, 0], "compilations": [0, 0]}
    return known | {"slot_occupancy": 0.9, "num_slots": 8} | changes


@pytest.mark.parametrize(
    ("changes", "lenience", "word"),
    [
        ({}, 1.0, None),
        ({"differing_generations": [0, 2]}, 1.0, "1 settings differ"),
        ({"differing_generations": [2, 2], "same_tokens_expected": False}, 1.0, None),
        ({"compilations": [0, 3]}, 1.0, "3 programs were compiled"),
        ({"slot_occupancy": 0.5}, 1.0, "num_slots 8: 5 examples"),
        ({}, 0.5, "Lenience"),
    ],
)
def test_remarks(changes, lenience, word):
    config = {"decoding": {"lenience": lenience}}
    results = {"rows": [row(), row(**changes)], "config": config, "inputs": {"examples": 5}}
    found = remarks(results)
    assert found == [] if word is None else word in found[0] and len(found) == 1


def examples() -> list[Example]:
    return [Example(name, i, "", None, np.arange(2, 3 + i, dtype=np.int32), False) for i, name in enumerate("abc")]


@pytest.mark.parametrize("num_samples", [1, 2])
def test_runner(monkeypatch, num_samples):
    monkeypatch.setattr(decoding, "Generator", FakeGenerator)
    monkeypatch.setattr(FakeGenerator, "calls", [], raising=False)
    plain, fast = Setting(2, 0.0, "token", 0), Setting(2, 0.0, "token", 2)
    model, draft = scripted.reciting([3, 4, 1]), scripted.reciting([3, 4])
    base = DecodingConfig(max_decode_tokens=9, input_buckets=(4,), num_samples=num_samples)
    groups = [Group(plain, (fast,)), Group(Setting(2, 1.0, "token", 0), ())]
    runner = Runner(model, draft, base, groups, examples(), min_seconds=0)
    steps = []
    assert list(runner.run(3, 0, lambda *step: steps.append(step))) == [0, 1, 2, 3]
    assert runner.num_runs == 4 and len(steps) == 16
    assert {repeat for repeat, _ in steps} == {0, 1, 2, 3}
    # Every setting sees the same ids in a repeat, and other ones in the next.
    for gamma, times in ((0, 2), (2, 1)):
        seen = [ids for one, ids in FakeGenerator.calls if one == gamma]
        assert seen == [(f"a/{r}", f"b/{r}", f"c/{r}") for r in range(4) for _ in range(times)]
    for setting in (plain, fast):
        found = runner.measured[setting]
        assert found.tokens == [9 * num_samples] * 3
        assert found.iterations == [4] * 3 and found.row_iterations == [7] * 3 and len(found.seconds) == 3
        assert found.gammas == {setting.gamma: 12}
        assert found.statistics.examples == 3  # greedy repeats are the same: one stands for all
        assert found.statistics.generations == 3 * num_samples
    assert runner.measured[plain].differing == [0, 0, 0]
    assert runner.measured[fast].differing == [num_samples] * 3
    sampled = runner.measured[groups[1].plain].statistics
    assert (sampled.examples, sampled.generations) == (3, 9 * num_samples)  # α's interval rests on examples, not on repeats
    assert runner.span == 3
    assert {one: len(seconds) for one, seconds in runner.passes.items()} == {
        Pass(2, "target", 1): 3, Pass(2, "target", 3): 3, Pass(2, "draft", 1): 3,
    }  # fmt: skip
