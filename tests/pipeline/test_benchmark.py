"""The benchmark: its arithmetic on made-up timings, its bookkeeping with a generator whose results are known, and a
whole run with a tiny T5 pair."""

import copy
import json
import math
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import decoding
from decoding import DecodingConfig, compilation, theory
from pipeline import benchmark, measurement
from pipeline.benchmark import Settings, group_settings, parse, used_buckets
from pipeline.config import ConfigError
from pipeline.measurement import Group, Measurements, Pass, PassTimer, Ratio, Runner, Setting, interleaved
from tests import scripted
from tests.pipeline.conftest import SENTENCES
from transforms.aggregate import DecodedText, shard_statistics
from transforms.records import Example

# Ratios and order.


def test_ratio_of_known_logs():
    logs = np.array([0.1, 0.2, 0.3])
    found = Ratio.of(list(2.0 * np.exp(logs)), [2.0] * 3)
    margin = 4.302653 * 0.1 / math.sqrt(3)  # t quantile of 2 degrees of freedom, from a table; standard deviation 0.1
    assert found.mean == pytest.approx(math.exp(0.2))
    assert (found.low, found.high) == pytest.approx((math.exp(0.2 - margin), math.exp(0.2 + margin)))
    assert found.repeats == 3


def test_what_slows_a_whole_repeat_cancels():
    found = Ratio.of([1.0, 10.0, 100.0], [0.5, 5.0, 50.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_one_repeat_has_no_interval():
    assert Ratio.of([3.0], [2.0]) == Ratio(pytest.approx(1.5), None, None, 1)


@pytest.mark.parametrize(("base", "other"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_no_ratio(base, other):
    with pytest.raises(ValueError, match=r"repeats|negative"):
        Ratio.of(base, other)


def test_interval_keeps_its_level():
    """Of 4,000 experiments of 7 repeats, 95% cover the truth: 3 standard errors are 1.04%."""
    rng = np.random.default_rng(0)
    noise = np.exp(rng.normal(0.0, 0.1, (4000, 7)))
    found = [Ratio.of(list(1.3 * one), [1.0] * 7) for one in noise]
    covered = np.mean([ratio.low <= 1.3 <= ratio.high for ratio in found])
    assert abs(covered - 0.95) < 0.0104


def test_order():
    groups = [["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]
    order = list(interleaved(groups, repeats=20, seed=5))
    assert [repeat for repeat, _ in order] == [repeat for repeat in range(21) for _ in groups]
    for start in range(0, len(order), 3):  # every repeat has every group once, and each all its settings once
        assert sorted(sorted(found) for _, found in order[start : start + 3]) == groups
    assert len({tuple(found) for _, found in order if len(found) == 3}) == 6
    assert len({tuple(found[0][0] for _, found in order[i : i + 3]) for i in range(0, len(order), 3)}) == 6
    assert list(interleaved(groups, repeats=20, seed=5)) == order
    assert list(interleaved(groups, repeats=20, seed=6)) != order


# What is compared.


def settings(**changes) -> Settings:
    known = dict(gammas=(0, 2, "auto"), num_slots=(4,), verifications=("token", "block"), temperatures=(0.0, 1.0))
    return Settings(**(known | dict(repeats=2, examples=5, seed=0) | changes))


def test_groups():
    greedy, sampled = group_settings(settings())
    assert greedy.plain == Setting(4, 0.0, "token", 0)
    assert greedy.speculative == (Setting(4, 0.0, "token", 2), Setting(4, 0.0, "token", "auto"))
    assert sampled.plain == Setting(4, 1.0, "token", 0)
    assert [(one.gamma, one.verification) for one in sampled.speculative] == [
        (2, "token"), (2, "block"), ("auto", "token"), ("auto", "block"),
    ]  # fmt: skip


def test_plain_is_measured_though_not_asked_for_and_coupled_has_its_own():
    found = group_settings(settings(gammas=(3,), verifications=("coupled", "block"), num_slots=(1, 2)))
    assert [group.settings for group in found if group.plain.num_slots == 2] == [
        (Setting(2, 0.0, "coupled", 0), Setting(2, 0.0, "coupled", 3)),
        (Setting(2, 1.0, "block", 0), Setting(2, 1.0, "block", 3)),
        (Setting(2, 1.0, "coupled", 0), Setting(2, 1.0, "coupled", 3)),
    ]
    assert [one.same_tokens for one in (found[1].plain, found[2].plain, found[0].plain)] == [False, True, True]
    assert len(found) == 6


def test_used_buckets():
    assert used_buckets((8, 16, 32, 64), [1, 8, 17, 32]) == (8, 32)
    assert used_buckets((8, 16), [9]) == (16,)


# Rows, from made-up timings.


def generation(beta: list[float], tokens=(5, 6, 1)) -> decoding.Generation:
    count = len(tokens)
    zeros = np.zeros(count, np.float32)
    return decoding.Generation(
        tokens=np.array(tokens, np.int32), source=np.ones(count, np.int8), iteration=np.zeros(count, np.int32),
        beta=np.array(beta, np.float32), target_logprob=zeros, draft_logprob=zeros, gammas=np.array([1], np.int16),
        accepted=np.array([1], np.int16), finish_reason="eos", decode_seconds=1.0,
    )  # fmt: skip


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
    row = benchmark.setting_row(Setting(2, 1.0, "token", 1), plain, fast, passes)
    assert row["speedup"] == pytest.approx({"mean": 2.0, "low": 2.0, "high": 2.0, "repeats": 2})
    assert row["iteration_cost"]["mean"] == pytest.approx(0.75)
    assert row["alpha"]["mean"] == pytest.approx(0.5)
    # α = 1/2, γ = 1, c = 1/4, pass cost 3/2: 1.5 tokens per call, in 1 + 1/4 or 3/2 + 1/4 target steps.
    assert row["predicted"] == pytest.approx({"theorem_3_8": 1.2, "with_pass_cost": 6 / 7})
    assert row["slot_occupancy"] == pytest.approx(30 / 40)
    assert row["tokens_per_second"] == pytest.approx(120 / 9)
    assert row["tokens_per_target_call"] == pytest.approx(4.0)
    assert row["same_tokens_expected"] is False
    cost = benchmark.cost_row(2, passes)
    assert cost["c"]["mean"] == pytest.approx(0.25)
    assert {width: ratio["mean"] for width, ratio in cost["pass_cost"].items()} == pytest.approx({"1": 1, "2": 1.5})
    assert cost["draft_seconds"] == [0.5, 1.0]

    alone = benchmark.setting_row(Setting(2, 0.0, "token", 0), plain, plain, {})
    assert (alone["speedup"], alone["predicted"], alone["alpha"]) == (None, None, None)
    assert alone["same_tokens_expected"] is True
    lenient = benchmark.setting_row(Setting(2, 0.0, "token", 1), plain, fast, passes, exact=False)
    assert lenient["same_tokens_expected"] is False
    auto = benchmark.setting_row(Setting(2, 1.0, "token", "auto"), plain, fast, passes)
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
    found = benchmark.remarks(results)
    assert found == [] if word is None else word in found[0] and len(found) == 1


# Running, with models and generators whose results are known.


class FakeGenerator:
    """Three tokens per example and per repeat; γ = 2 gets one example wrong in every repeat, at any temperature."""

    calls: list[tuple]

    def __init__(self, target, draft, config, vocab_size=None):
        self.config, self.costs = config, {}

    def generate_with_report(self, inputs, example_ids):
        FakeGenerator.calls.append((self.config.gamma, tuple(example_ids)))
        found = []
        for name in example_ids:
            wrong = self.config.gamma == 2 and name.startswith(("b/", "input.jsonl:2/"))
            found += [generation([0.5, 0.5, math.nan], (5, 7 if wrong else 6, 1))] * self.config.num_samples
        return found, decoding.EngineReport(4, 7, 0.875, 1, 0.5, 0, {self.config.gamma: 4})


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
    assert runner.measured[groups[1].plain].statistics.examples == 9
    assert runner.span == 3
    assert {one: len(seconds) for one, seconds in runner.passes.items()} == {
        Pass(2, "target", 1): 3, Pass(2, "target", 3): 3, Pass(2, "draft", 1): 3,
    }  # fmt: skip


class Watched(scripted.Scripted):
    """Tells `seen` every step's positions, number of tokens and state."""

    seen: list

    def step(self, tokens, positions, state, *, at=None):
        jax.debug.callback(lambda *found: Watched.seen.append(found), positions, tokens, state["input"])
        return super().step(tokens, positions, state, at=at)


def test_single_passes(monkeypatch):
    monkeypatch.setattr(Watched, "seen", [], raising=False)
    monkeypatch.setattr(measurement, "_MAX_PASSES", 8)
    table = np.zeros((1, 1, 8), np.float32)
    table[..., 3] = 1.0
    timer = PassTimer(Watched(table), num_slots=2, input_bucket=4, max_positions=12, positions=(1, 3), min_seconds=99)
    found = timer.seconds([2, 3], 9, (3, 1))
    jax.effects_barrier()
    assert list(found) == [3, 1] and all(0 < seconds < 99 for seconds in found.values())
    for width in (1, 3):
        steps = [[np.asarray(array) for array in step] for step in Watched.seen if step[1].shape[1] == width]
        starts = sorted(int(positions[0]) for positions, _, _ in steps)
        # Two single passes to see how many make a run, then one run of 8 over positions 0 to 8: 9k // 8.
        assert starts == sorted([0, 0, *range(8)])
        assert all(positions[0] == positions[1] for positions, _, _ in steps)
        assert all(inputs.tolist() == [2 + 2 * 3] * 2 for _, _, inputs in steps)  # every row holds the example
        # A pass feeds what the one before it yielded, so that none can be left out; a run begins with token 0.
        fed = sorted({(int(positions[0]) > 0, *tokens.flat) for positions, tokens, _ in steps})
        assert fed == [(False, *[0] * 2 * width), (True, *[3] * 2 * width)]


class Slow(scripted.Scripted):
    """A prefill that takes long: tenths of a second."""

    def prefill(self, inputs, lengths):
        start = jnp.full((256, 256), 1e-3) * inputs[0, 0]
        end = jax.lax.fori_loop(0, 300, lambda _, x: jnp.tanh(x @ x), start)
        return super().prefill(inputs + (end[0, 0] > 9), lengths)


def test_the_prefill_is_no_part_of_a_timed_run(monkeypatch):
    """It is dispatched asynchronously; with a long input it took ten times a pass, which the first run then seemed to."""
    timer = PassTimer(Slow(np.eye(8)[None, :1]), num_slots=1, input_bucket=4, max_positions=9, positions=(1,), min_seconds=0)
    fill, filled, ready = timer._programs["fill"], [], []
    monkeypatch.setitem(timer._programs, "fill", lambda *arguments: filled.append(fill(*arguments)) or filled[-1])
    timed = timer._timed

    def watched(state, *arguments):
        ready.append(all(leaf.is_ready() for leaf in jax.tree.leaves(state)))
        return timed(state, *arguments)

    monkeypatch.setattr(timer, "_timed", watched)
    timer.seconds([2, 3], 5, (1,))
    timer.seconds([2, 3], 5, (1,))
    assert len(filled) == 2 and all(ready)


class DecoderOnly(Watched):
    encoder_decoder = False


@pytest.mark.parametrize(("model", "first"), [(Watched, 0), (DecoderOnly, 2)])
def test_passes_start_where_decoding_does(monkeypatch, model, first):
    monkeypatch.setattr(Watched, "seen", [], raising=False)
    monkeypatch.setattr(measurement, "_MAX_PASSES", 4)
    timer = PassTimer(model(np.eye(8)[None, :1]), num_slots=1, input_bucket=4, max_positions=12, positions=(1,))
    timer.seconds([2, 3, 4], 8, (1,))
    jax.effects_barrier()
    assert [int(positions[0]) for positions, _, _ in Watched.seen][-4:] == [first, first + 2, first + 4, first + 6]


def test_passes_are_compiled_as_the_engines_programs(monkeypatch):
    monkeypatch.setitem(compilation._OPTIONS, jax.default_backend(), {"no_such_option": "1"})
    with pytest.raises(Exception, match="no_such_option"):
        PassTimer(scripted.reciting([3]), num_slots=1, input_bucket=4, max_positions=9, positions=(1,))


def test_a_run_of_passes_is_as_long_as_asked(monkeypatch):
    timer = PassTimer(
        scripted.reciting([3]), num_slots=1, input_bucket=4, max_positions=9, positions=(1,), min_seconds=1.0
    )
    asked = []

    def timed(state, width, passes, first, span):  # 0.1 s of dispatch and 0.01 s per pass
        asked.append(passes)
        return state, 0.1 + 0.01 * passes

    monkeypatch.setattr(timer, "_timed", timed)
    assert timer.seconds([2], 5, (1,)) == {1: pytest.approx(0.01 + 0.1 / asked[-1])}
    assert asked[:4] == [1, 1, 10, 50]
    assert 0.1 + 0.01 * asked[-1] >= 1.0 and asked[-1] == asked[-2]
    before = len(asked)
    timer.seconds([2], 5, (1,))
    assert asked[before:] == [asked[-1]]


# The command line.


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--gammas=1,x", ["--gammas", "'1,x'", '"auto"']),
        ("--gammas=", ["--gammas", "''"]),
        ("--gammas=65", ["decoding.gamma", "65", "0 to 64"]),
        ("--num_slots=0", ["decoding.num_slots", "0", "at least 1"]),
        ("--num_slots=2.5", ["--num_slots", "'2.5'", "whole numbers"]),
        ("--verifications=token,blok", ["--verifications", "'token,blok'", "block"]),
        ("--temperatures=-1", ["decoding.temperature", "-1.0", "at least 0"]),
        ("--temperatures=nan", ["decoding.temperature", "nan"]),
        ("--repeats=1", ["--repeats", "'1'", "at least 2"]),
        ("--examples=0", ["--examples", "'0'", "at least 1"]),
        ("--seed=-1", ["--seed", "'-1'", "at least 0"]),
        ("--gamas=1", ["'--gamas=1'", "not an option"]),
        ("--runner=DirectRunner", ["'--runner=DirectRunner'", "not an option"]),
        ("--config.decoding.gamma=3", ["--config.decoding.gamma=3", "--gammas=..."]),
        ("--config.decoding.num_slots=3", ["--config.decoding.num_slots=3", "--num_slots=..."]),
        ("--config.decoding.lenience=0.5", ["decoding.lenience", "0.5", "block"]),
        ("--config.model.draft=", ["--gammas", "model.draft is empty", "0"]),
        ("--config.input.input_field=fr", ["input.input_field", "'fr'"]),
        ("--config.input.pattern=/nowhere/*.jsonl", ["input.pattern", "/nowhere"]),
        ("--config.model.target=/nowhere", ["model.target", "/nowhere"]),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_done(command, tmp_path, capsys, override, parts):
    assert benchmark.main(command(override)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "Traceback" not in shown
    for part in parts:
        assert part in shown
    assert not (tmp_path / "out").exists()


def test_flags(command, tmp_path):
    config, output, found = parse(command("--gammas=auto, 3,0,3", "--num_slots=2", "--config.decoding.top_k=5"))
    assert found.gammas == ("auto", 3, 0) and found.num_slots == (2,)
    assert found.verifications == ("token", "block") and found.temperatures == (0.0, 1.0)
    assert config.decoding.top_k == 5
    assert output == str(tmp_path / "out")
    assert parse(command("--gammas=0", "--config.model.draft="))[2].gammas == (0,)
    assert parse(command("--gammas=2", "--verifications=token", "--config.decoding.lenience=0.5"))
    with pytest.raises(ConfigError, match="--config is missing"):
        parse(["--output=x"])


def test_a_folder_with_results_is_refused(command, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    for content, word in (('{"rows": [{}, {}]}', "of 2 settings"), ("[]", "none of this job's"), ("no", "none of this job's")):
        (folder / "benchmark.json").write_text(content)
        assert benchmark.main(command("--gammas=1")) == 2
        assert word in capsys.readouterr().err
        assert (folder / "benchmark.json").read_text() == content
    # One that was interrupted before anything was measured is no obstacle.
    (folder / "benchmark.json").write_text('{"complete": false, "rows": []}')
    assert benchmark.open_folder(str(folder)).root == str(folder)


def test_inputs_are_the_first_that_can_be_read(command, tmp_path, sentences, models):
    lines = sentences.read_text().splitlines(keepends=True)
    sentences.write_text("".join([*lines[:3], "{broken\n", *lines[3:]]))
    config, _, _ = parse(command("--config.input.prefix=x: ", "--config.decoding.input_buckets=(12,)"))
    checked = benchmark.check_models(config)
    found = benchmark.read_inputs(config, checked, 10)
    assert [example.index for example in found.examples] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert found.failed == 1
    assert all(example.tokens[-1] == 1 and len(example.tokens) <= 12 for example in found.examples)
    told = found.to_json()
    assert told["truncated"] == sum(example.truncated for example in found.examples) > 0
    assert (told["examples"], told["longest"], told["first"]) == (10, 12, "input.jsonl:1")
    assert len(benchmark.read_inputs(config, checked, 1000).examples) == 30
    sentences.write_text("[]\n")
    with pytest.raises(ConfigError, match="none of its 1 records"):
        benchmark.read_inputs(config, checked, 10)


# A whole run.


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
            patch.setattr(benchmark, "Console", lambda: shown)
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
    assert [set(one["seconds_per_iteration"]) for one in results["costs_of_auto"]] == [{"64/0", "64/2"}]
    assert results["shapes"]["input_buckets"] == [64]
    assert "0/5" in shown and "should not" not in shown


@pytest.fixture(scope="module")
def run(whole):
    """A whole run with the models loaded, and a generator whose results are known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "Generator", FakeGenerator)
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
        "repeats": 2, "examples": 9, "seed": 0,
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
        benchmark.print_results(console, results)
    text = console.export_text()
    assert "…" not in text
    for word in ("2 slots", "1 slot", "greedy", "plain,", "coupled", "token", "123,456", "10.10 [9.20, 11.30]", "0.500"):
        assert word in text
    for word in ("1/5", "0/5", "Single passes", "0.123 [0.100, 0.200]", "1.23 [1.00, 2.00]", "4 settings differ"):
        assert word in text


def test_progress_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.setattr(benchmark, "_LINE_SECONDS", 0.0)
    with benchmark._Progress(2, 1) as progress:
        progress.show(0, "plain")
        progress.show(1, "γ 2")
    assert capsys.readouterr().err.splitlines() == [
        "0/2 runs, first repeat, not counted, plain",
        "1/2 runs, repeat 1 of 1, γ 2",
    ]
