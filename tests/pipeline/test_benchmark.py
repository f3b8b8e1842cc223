"""A whole run of the benchmark with a tiny T5 pair."""

import copy
import json
import math
import os
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

import decoding
from decoding import theory
from pipeline import benchmark
from pipeline.benchmarking import measure, runner
from pipeline.benchmarking.tables import print_results
from tests.pipeline.benchmark_fakes import FakeGenerator, FakeTimer
from tests.pipeline.conftest import SENTENCES


@pytest.fixture(scope="module")
def whole(tmp_path_factory, models):
    """Runs the command: whole(name, *flags) -> (output folder, what it printed, its benchmark.json, its arguments)."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "input.jsonl").write_text("".join(json.dumps({"en": text}) + "\n" for text in SENTENCES[:5]))
    (folder / "config.py").write_text(
        f"""
from ml_collections import config_dict
def get_config():
    return config_dict.ConfigDict(dict(
        input=dict(pattern={str(folder / "input.jsonl")!r}, input_field="en"),
        model=dict(target={str(models["target"])!r}, draft={str(models["draft"])!r}),
        decoding=dict(max_decode_tokens=6, input_buckets=(4, 64, 128), gamma_choices=(0, 2), chunk_iterations=4),
    ))
"""
    )

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    def run(name: str, *flags: str):
        args = [f"--config={folder / 'config.py'}", f"--output={folder / name}", "--repeats=2", *flags]
        with pytest.MonkeyPatch.context() as patch, open(os.devnull, "w") as nowhere:
            shown = Console(record=True, width=80, file=nowhere)
            patch.setattr(benchmark, "make_console", lambda: shown)
            assert benchmark.main(args) == 0
        results = json.loads((folder / name / "benchmark.json").read_text(), parse_constant=refuse)
        return folder / name, shown.export_text(), results, args

    return run


@pytest.mark.slow
def test_greedy_texts_of_a_real_pair_are_plain_decodings(whole):
    _, shown, results, _ = whole("greedy", "--gammas=2,auto", "--num_slots=2", "--verifications=block", "--temperatures=0")
    rows = results["rows"]
    assert [one["gamma"] for one in rows] == [0, 2, "auto"]
    for one in rows:
        assert one["tokens"] == [rows[0]["tokens"][0]] * 2
        assert one["differing_generations"] == [0, 0] and one["same_tokens_expected"]
        assert one["compilations"] == [0, 0]
        assert one["generations"] == 5
        assert 0 < one["slot_occupancy"] <= 1
        assert sum(one["gammas"].values()) == sum(one["iterations"])
        assert all(seconds > 0 for seconds in one["seconds"])
    assert rows[0]["row_iterations"] == rows[0]["tokens"]  # plain decoding: a call per token
    assert 0 <= rows[1]["alpha"]["low"] <= rows[1]["alpha"]["mean"] <= rows[1]["alpha"]["high"] <= 1
    assert [set(one["seconds_per_iteration"]) for one in results["costs_of_auto"]] == [{"0", "2"}]
    assert results["shapes"]["input_buckets"] == [64]
    assert "0/5" in shown and "should not" not in shown


@pytest.fixture(scope="module")
def run(whole):
    """A whole run with the models loaded, and a generator and a timer whose results are known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "Generator", FakeGenerator)
        patch.setattr(runner, "PassTimer", FakeTimer)
        patch.setattr(FakeGenerator, "calls", [], raising=False)
        flags = ("--gammas=2,4", "--num_slots=2,1", "--verifications=token,coupled", "--temperatures=0,1")
        return whole("sampled", *flags, "--examples=9")


def test_rows_of_a_run(run):
    _, _, results, _ = run
    assert [(one["num_slots"], one["temperature"], one["verification"], one["gamma"]) for one in results["rows"]] == [
        (num_slots, temperature, name, gamma)
        for num_slots in (2, 1)
        for temperature, name in ((0, "token"), (1, "token"), (1, "coupled"))
        for gamma in (0, 2, 4)
    ]
    assert results["complete"] is True and len(results["rows"]) == 18
    for one in results["rows"]:
        for name in ("seconds", "tokens", "iterations", "row_iterations", "compilations", "differing_generations"):
            assert len(one[name]) == 2
        if one["gamma"] != 0:
            assert one["speedup"]["low"] <= one["speedup"]["mean"] <= one["speedup"]["high"]
        assert one["same_tokens_expected"] == (one["temperature"] == 0 or one["verification"] == "coupled")
        assert one["differing_generations"] == [int(one["gamma"] == 2)] * 2


def test_predictions_of_a_run(run):
    _, _, results, _ = run
    cost, other = results["costs"]
    assert (cost["num_slots"], other["num_slots"]) == (2, 1)
    assert set(cost["target_seconds"]) == {"1", "3", "5"}
    assert cost["pass_cost"]["1"]["mean"] == 1
    assert cost["first_positions"] == [0, 2]  # texts of three tokens
    assert cost["state_positions"] == 6 + 5
    assert all(len(seconds) == 2 for seconds in (*cost["target_seconds"].values(), cost["draft_seconds"]))
    ratios = np.array(cost["draft_seconds"]) / np.array(cost["target_seconds"]["1"])
    assert cost["c"]["mean"] == pytest.approx(math.sqrt(ratios.prod()))
    for one in results["rows"][:9]:
        gamma, c = one["gamma"], cost["c"]["mean"]
        if gamma == 0:
            assert one["predicted"] is None
            continue
        v = cost["pass_cost"][str(gamma + 1)]["mean"]
        assert one["alpha"]["mean"] == 0.5
        assert one["predicted"]["theorem_3_8"] == theory.walltime_improvement(0.5, gamma, c)
        assert one["predicted"]["with_pass_cost"] == theory.walltime_improvement_measured(0.5, gamma, c, v)


def test_a_run_says_what_it_was(run):
    folder, _, results, args = run
    assert results["settings"] == {
        "gammas": [2, 4], "num_slots": [2, 1], "verifications": ["token", "coupled"], "temperatures": [0.0, 1.0],
        "repeats": 2, "examples": 9, "seed": 0, "draft_beams": [0],
    }  # fmt: skip
    assert "gamma" not in results["config"]["decoding"] and results["config"]["decoding"]["max_decode_tokens"] == 6
    assert results["config"]["model"]["dtype"] == "float32"
    assert results["machine"]["versions"]["jax"] == jax.__version__
    assert results["machine"]["device"]["kind"] == jax.devices()[0].device_kind
    assert results["models"]["target"]["vocab_size"] == results["models"]["draft"]["vocab_size"] == 384
    assert results["models"]["target"]["shape"]["d_model"] == 48
    assert results["inputs"]["examples"] == 5
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["benchmark.json"]
    assert benchmark.main(args) == 2  # never over results


def test_a_run_is_shown(run):
    folder, shown, results, _ = run
    assert str(folder / "benchmark.json") in shown
    assert "fewer than --examples=9" in shown
    assert "4 settings differ from plain decoding" in shown
    # Timings of nothing are wild; with sane ones 80 columns are enough.
    results = copy.deepcopy(results)
    for one in results["rows"]:
        one["tokens_per_second"] = 123456.0
        one["speedup"] = one["speedup"] and {"mean": 10.104, "low": 9.2, "high": 11.3}
    for one in results["costs"]:
        one["c"] = {"mean": 0.1234, "low": 0.1, "high": 0.2}
        one["pass_cost"] = {width: {"mean": 1.234, "low": 1.0, "high": 2.0} for width in one["pass_cost"]}
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=80, file=nowhere)
        print_results(console, results)
    text = console.export_text()
    assert "…" not in text
    for word in ("2 slots", "1 slot", "greedy", "plain,", "coupled", "token", "123,456", "10.10 [9.20, 11.30]", "0.500"):
        assert word in text
    for word in ("1/5", "0/5", "Single passes", "0.123 [0.100, 0.200]", "1.23 [1.00, 2.00]", "4 settings differ"):
        assert word in text


def test_progress_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.setattr(measure, "_LINE_SECONDS", 0.0)
    with measure._Progress(2, 1) as progress:
        progress.show(0, "plain")
        progress.show(1, "γ 2")
    assert capsys.readouterr().err.splitlines() == [
        "0/2 runs, first repeat, not counted, plain",
        "1/2 runs, repeat 1 of 1, γ 2",
    ]
