"""pipeline.analyze over folders whose β are known: figures, matching of folders, and what is refused or labelled."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from decoding import theory
from pipeline import analyze
from pipeline.report import comparison, content, estimates
from tests.pipeline import analysis_folders as folders


def run(capsys, *inputs, output, expect=0, options=()) -> dict | str:
    """Content of analysis.json, or the message on standard error where the job is expected to fail."""
    joined = ",".join(map(str, inputs))
    assert analyze.main([f"--inputs={joined}", f"--output={output}", *options]) == expect
    return read(output) if expect == 0 else capsys.readouterr().err


def read(folder) -> dict:
    """analysis.json, which must be JSON: Python's own reader takes NaN and infinities for numbers."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads((folder / "analysis.json").read_text(), parse_constant=refuse)


@pytest.fixture(scope="module", autouse=True)
def without_report():
    """Figures and pages are test_report's matter, and take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyze, "_report_writer", lambda: lambda results, folder: None)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, without_report):
    """Two seeds with a baseline within, scores of the same texts, a benchmark; and what the analysis makes of them."""
    root = tmp_path_factory.mktemp("folders")
    folders.make_generations(root / "sampled", baseline=lambda shard: shard == 1)
    folders.make_generations(root / "again", seed=1, baseline=lambda shard: shard in (0, 2))
    folders.make_scores(root / "scores")
    folders.make_benchmark(root / "bench")
    inputs = [root / name for name in ("sampled", "again", "scores", "bench")]
    assert analyze.main([f"--inputs={','.join(map(str, inputs))}", f"--output={root / 'report'}"]) == 0
    return root, read(root / "report")


def series(results: dict, run: str, draft: str = "small") -> dict:
    (found,) = (one for one in results["series"] if (one["run"], one["draft"]) == (run, draft))
    return found


def test_alpha_by_hand(made):
    _, results = made
    betas = [folders.betas(n).astype(np.float32).astype(np.float64) for n in range(folders.TEXTS)]
    scored = series(results, "scores")
    assert scored["alpha"]["mean"] == pytest.approx(np.concatenate(betas).mean(), abs=1e-7)
    assert scored["alpha"]["low"] < scored["alpha"]["mean"] < scored["alpha"]["high"]
    assert scored["tokens"] == sum(map(len, betas))
    lookup = series(results, "scores", "lookup")
    assert lookup["proposed"]["mean"] == pytest.approx(sum(-(-len(b) // 3) for b in betas) / scored["tokens"])
    assert lookup["alpha"]["mean"] == pytest.approx(np.concatenate([b[::3] / 2 for b in betas]).mean(), abs=1e-7)
    assert lookup["alpha_over_all"]["mean"] == pytest.approx(
        sum(b[::3].sum() / 2 for b in betas) / scored["tokens"], abs=1e-7
    )
    early = {bucket["label"]: bucket["alpha"]["mean"] for bucket in scored["by"]["position"]}
    assert early["0"] == pytest.approx(np.mean([b[0] for b in betas]), abs=1e-7)
    assert early["4–7"] == pytest.approx(np.concatenate([b[4:8] for b in betas]).mean(), abs=1e-7)
    assert scored["lenient"]["0.5"]["mean"] == pytest.approx(np.minimum(np.concatenate(betas) * 2, 1).mean(), abs=1e-6)


def test_generations_leave_out_the_baseline(made):
    _, results = made
    one = series(results, "sampled")
    numbers = [n for n in range(folders.TEXTS) if n // folders.SHARD != 1]
    decoded = [folders.generation(n, 3, 0, folders.betas(n)) for n in numbers]
    assert one["texts"] == len(numbers)
    assert one["calls"] == sum(g.num_iterations for g in decoded)
    assert one["tokens_per_call"]["mean"] == pytest.approx(sum(len(g.tokens) for g in decoded) / one["calls"])
    examined = np.concatenate([g.beta for g in decoded]).astype(np.float64)
    assert one["alpha"]["mean"] == pytest.approx(np.nanmean(examined), abs=1e-7)
    by_source = {bucket["label"]: bucket["alpha"]["mean"] for bucket in one["by"]["source"]}
    assert by_source["accepted"] > one["alpha"]["mean"] > by_source["corrected"]


def test_predictions_and_their_misses(made):
    """β goes together within a text: Eq. 1 promises too much, the joint behaviour tells it."""
    _, results = made
    for row in results["tokens_per_call"]:
        assert row["scores"] == "scores, T = 1"
        iid, walk = row["predicted"]["iid"], row["predicted"]["walk"]
        assert iid["miss"]["mean"] == pytest.approx(iid["tokens"]["mean"] / row["observed"]["mean"] - 1)
        assert iid["miss"]["low"] > 0
        assert walk["miss"]["low"] < 0 < walk["miss"]["high"]
        alpha = series(results, "scores")["alpha"]["mean"]
        assert iid["tokens"]["mean"] == pytest.approx(theory.expected_tokens(alpha, 3), rel=1e-9)


def test_beta_is_not_iid_and_the_diagnostics_say_so(made):
    _, results = made
    lags = {lag["lag"]: lag["correlation"] for lag in series(results, "scores")["autocorrelation"]}
    assert lags[1]["low"] > 0.5 and lags[1]["mean"] > lags[4]["mean"] > lags[12]["mean"]
    between = series(results, "scores")["between_texts"]
    assert between["mean_square_ratio"]["low"] > 2
    (lengths,) = series(results, "sampled")["accepted_lengths"]
    assert lengths["test"]["p_value"] < 1e-3
    assert sum(one["mean"] for one in lengths["observed"]) == pytest.approx(1)
    size = series(results, "scores")["sample_size"]
    assert size["design_effect"] > 5
    assert size["effective_tokens"] == pytest.approx(size["positions"] / size["design_effect"])
    needed = {one["half_width"]: one["tokens"] for one in size["needed"]}
    assert needed[0.01] == pytest.approx(4 * needed[0.02], rel=1e-3)


def test_independent_equal_beta_passes_the_same_diagnostics(tmp_path, capsys):
    folders.make_generations(tmp_path / "g", constant=0.6)
    folders.make_scores(tmp_path / "s", constant=0.6)
    results = run(capsys, tmp_path / "g", tmp_path / "s", output=tmp_path / "report")
    (lengths,) = series(results, "g")["accepted_lengths"]
    assert lengths["test"]["p_value"] > 0.01
    scored = series(results, "s")
    assert scored["alpha"]["mean"] == pytest.approx(0.6, abs=1e-7)
    assert scored["sample_size"] is None  # no variance at all
    (row,) = results["tokens_per_call"]
    assert abs(row["predicted"]["walk"]["miss"]["mean"]) < 0.03


@pytest.mark.parametrize(("constant", "ends"), [(0.0, (0.0, 1 - 0.025 ** (1 / 120))), (1.0, (0.025 ** (1 / 120), 1.0))])
def test_nothing_or_everything_is_accepted(tmp_path, capsys, constant, ends):
    with np.errstate(divide="ignore"):
        folders.make_generations(tmp_path / "g", constant=constant)
        folders.make_scores(tmp_path / "s", constant=constant)
    folders.make_benchmark(tmp_path / "b")
    results = run(capsys, *(tmp_path / name for name in "gsb"), output=tmp_path / "report")
    for name in "gs":
        alpha = series(results, name)["alpha"]
        assert (alpha["mean"], alpha["low"], alpha["high"]) == pytest.approx((constant, *ends))
    (row,) = results["tokens_per_call"]
    assert row["predicted"]["walk"]["miss"]["mean"] == pytest.approx(0, abs=1e-9)
    assert content.all_tables(results)


def test_the_law_test_keeps_its_level():
    """Accepted lengths of clustered but geometric calls: a text's own rate varies with nothing but chance."""
    rng, rejected, trials = np.random.default_rng(5), 0, 200
    weights = rng.poisson(1, (100, 200))
    for _ in range(trials):
        lengths = rng.choice(4, p=theory.accepted_lengths(0.6, 3), size=(100, 12))
        counts = np.stack([(lengths == k).sum(1) for k in range(4)], axis=1).astype(np.float64)  # [texts, 4]
        shares = np.concatenate([counts.sum(0)[:, None], counts.T @ weights], axis=1)
        shares /= shares.sum(0)
        difference = shares[:-1] - theory.accepted_lengths(0.6, 3)[:-1, None]
        rejected += estimates.wald_test(difference, 100)["p_value"] < 0.05
    assert 2 <= rejected <= 22


def test_the_best_draft_is_ahead_of_the_others_on_the_same_texts(made):
    _, results = made
    (row,) = results["best_drafts"]
    small, lookup = (series(results, "scores", name)["alpha_over_all"] for name in ("small", "lookup"))
    assert (row["draft"], row["best"], row["alpha"], row["best_alpha"]) == ("lookup", "small", lookup, small)
    assert row["ahead"]["mean"] == pytest.approx(small["mean"] - lookup["mean"])
    apart = np.hypot(small["standard_error"], lookup["standard_error"])
    assert row["ahead"]["standard_error"] < apart  # paired
    tables = content.all_tables(results)["acceptance"]
    (shown,) = (one for one in tables if one.name == "best_drafts")
    assert len(shown.rows) == 1 and shown.rows[0][-1] == row["ahead"]


def test_two_definitions_and_their_difference(made):
    _, results = made
    row = results["two_definitions"][0]
    assert row["difference"]["mean"] == pytest.approx(row["over_target_text"]["mean"] - row["on_policy"]["mean"])
    alone = row["on_policy"]["high"] - row["on_policy"]["low"]
    assert row["difference"]["high"] - row["difference"]["low"] < alone  # paired: the same texts


def test_speed(made):
    _, results = made
    fixed, auto = results["speedups"]
    assert (fixed["gamma"], auto["gamma"]) == (3, "auto")
    theorem = fixed["predicted"]["theorem_3_8"]
    assert theorem["speedup"]["mean"] == pytest.approx(theory.walltime_improvement(0.6, 3, 0.1))
    assert theorem["miss"]["mean"] == pytest.approx(theorem["speedup"]["mean"] / 1.5 - 1)
    with_cost = fixed["predicted"]["with_pass_cost"]["speedup"]
    assert with_cost["mean"] == pytest.approx(theory.walltime_improvement_measured(0.6, 3, 0.1, 1.3))
    tokens = series(results, "scores")["predicted"]["3"]["walk"]["mean"]
    assert fixed["predicted"]["joint_with_pass_cost"]["speedup"]["mean"] == pytest.approx(tokens / (0.3 + 1.3))
    assert auto["predicted"] == {} and auto["measured"]["mean"] == 1.6


def test_a_benchmark_of_a_draft_that_is_no_model(made, tmp_path, capsys):
    """It has no pass to time: c is 0, as in the benchmark's own predictions."""
    root, _ = made
    path = folders.make_benchmark(tmp_path / "bench") / "benchmark.json"
    results = json.loads(path.read_text())
    results["costs"][0]["c"] = None
    path.write_text(json.dumps(results))
    results = run(capsys, root / "scores", tmp_path / "bench", output=tmp_path / "report")
    fixed = results["speedups"][0]
    assert fixed["c"] == {"mean": 0, "low": 0, "high": 0}
    assert fixed["predicted"]["theorem_3_8"]["speedup"]["mean"] == pytest.approx(theory.walltime_improvement(0.6, 3, 0))
    row = next(one for one in results["best_gammas"] if one["draft"] == "small")
    assert row["costs"][0]["gamma_measured"]["mean"] == theory.optimal_gamma_measured(
        row["alpha"]["mean"], 0, {1: 1.0, 2: 1.1, 4: 1.3, 8: 1.7}
    )


def test_in_job_speedup(made):
    _, results = made
    by_run = {one["run"]: one for one in results["in_job"]}
    assert (by_run["sampled"]["plain_shards"], by_run["sampled"]["speculative_shards"]) == (1, 3)
    assert by_run["sampled"]["speedup"]["mean"] == pytest.approx(2.0, rel=0.02)
    assert by_run["sampled"]["speedup"]["low"] is None  # one plain shard tells no spread
    again = by_run["again"]["speedup"]
    assert again["low"] < 2.0 < again["high"]


def test_time_ratio_covers_the_truth():
    rng, covered, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        tokens = rng.integers(500, 1500, 40)
        rate = np.where(np.arange(40) < 12, 3.0, 2.0) * np.exp(rng.normal(0, 0.1, 40))
        timings = [{"baseline": i < 12, "tokens": int(n), "seconds": float(n * rate[i])} for i, n in enumerate(tokens)]
        found = estimates.time_ratio(timings)["speedup"]
        covered += found["low"] <= 1.5 <= found["high"]
    assert 0.92 <= covered / trials <= 0.98


def test_best_gammas_and_operations(made):
    _, results = made
    row = next(one for one in results["best_gammas"] if one["run"] == "scores" and one["draft"] == "small")
    (cost,) = row["costs"]
    alpha = row["alpha"]["mean"]
    assert cost["gamma"]["mean"] == theory.optimal_gamma(alpha, 0.1)
    assert cost["otherwise"] == "γ* between measured γ"
    ran = next(one for one in results["best_gammas"] if one["run"] == "sampled")
    assert ran["costs"][0]["otherwise"].startswith("at 1 slot, the run had 8")
    assert cost["gamma"]["low"] <= cost["gamma"]["mean"] <= cost["gamma"]["high"]
    assert cost["gamma_measured"]["mean"] == theory.optimal_gamma_measured(alpha, 0.1, {1: 1.0, 2: 1.1, 4: 1.3, 8: 1.7})
    assert row["oracle"]["mean"] == pytest.approx(1 / (1 - alpha))
    one = next(one for one in results["operations"] if one["run"] == "sampled")
    target = 2 * (3 * (6 * 256 * 256 + 3 * 256 * 768) + 256 * 8192)
    draft = 2 * (1 * (6 * 96 * 128 + 3 * 96 * 256) + 96 * 8192)
    assert one["c_hat"] == pytest.approx(draft / target)
    assert one["predicted"]["mean"] == pytest.approx(theory.operations_factor(one["alpha"]["mean"], 3, draft / target))
    calls = series(results, "sampled")["tokens_per_call"]["mean"]
    assert one["observed"]["mean"] == pytest.approx((3 * draft / target + 4) / calls)


def test_seeds(made):
    _, results = made
    (group,) = results["seeds"]
    assert group["seeds"] == [0, 1]
    means = [series(results, name)["alpha"]["mean"] for name in ("sampled", "again")]
    assert group["alpha"]["mean"] == pytest.approx(np.mean(means))
    assert group["alpha"]["deviation_between_seeds"] == pytest.approx(np.std(means, ddof=1))
    assert 0 < group["alpha"]["p_value"] <= 1


def test_the_spread_is_held_against_standard_errors():
    """Two runs of 3 + 3 shards with speedups 1.50 and 1.58: z = 1.50, p = 0.134 by hand.

    Shards' times are spread by 3% to either side. A side's share of the log's variance is 0.03² / 3, and both sides' standard
    error 2.45%: 0.0367 and 0.0387. Their intervals are made with 4 degrees of freedom, 2.78 of these errors to either side.
    """
    shards = lambda baseline, rate: [
        {"baseline": baseline, "tokens": 1000, "seconds": 1000 * rate * factor} for factor in (0.97, 1.0, 1.03)
    ]
    speedups = [estimates.time_ratio(shards(True, speedup) + shards(False, 1.0))["speedup"] for speedup in (1.5, 1.58)]
    assert [one["standard_error"] for one in speedups] == pytest.approx([0.03674, 0.03870], abs=1e-5)
    assert speedups[0]["high"] == pytest.approx(1.5 * np.exp(2.7764 * 0.024495), abs=1e-4)
    found = comparison.spread(speedups)
    assert found["p_value"] == pytest.approx(0.134, abs=5e-4)
    assert found["mean_standard_error"] == pytest.approx(0.0377, abs=1e-4)


def test_any_number_of_workers_gives_the_same_bits(made, tmp_path, capsys):
    root, results = made
    inputs = [root / name for name in ("sampled", "again", "scores", "bench")]
    other = run(capsys, *inputs, output=tmp_path / "other", options=["--direct_num_workers=2"])
    for name in results.keys() - {"written"}:
        assert results[name] == other[name], name


# What is refused or labelled.


def test_an_unfinished_folder(tmp_path, capsys):
    made = folders.make_generations(tmp_path / "g")
    (made / "generations" / "part-00002-of-00004.parquet").unlink()
    (made / "_SUCCESS").unlink()
    message = run(capsys, made, output=tmp_path / "report", expect=2)
    assert "is unfinished: 3 of 4 shards are committed" in message and "--allow_unfinished" in message
    assert not (tmp_path / "report").exists()
    results = run(capsys, made, output=tmp_path / "report", options=["--allow_unfinished"])
    assert results["notes"][0] == "T = 1, γ = 3 (folder g) is unfinished: 1 parts are missing, and its figures are of the rest."
    assert series(results, "g", "draft")["texts"] == 90


def test_an_unfinished_benchmark(tmp_path, capsys):
    made = folders.make_benchmark(tmp_path / "b", complete=False)
    assert "benchmark.json is not complete" in run(capsys, made, output=tmp_path / "report", expect=2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("", "", "is empty or does not exist"),
        ("file", "x", "holds 1 files and no manifest.json"),
        ("manifest.json", "{", "cannot be used: Expecting property name"),
        ("manifest.json", '{"name": "an app", "config": {}}', "cannot be used: it lacks fingerprint, identity, num_shards"),
        ("benchmark.json", "[]", "benchmark.json lacks config, identity"),
    ],
)
def test_a_folder_that_is_no_run(tmp_path, capsys, name, content, message):
    (tmp_path / "what").mkdir()
    if name:
        (tmp_path / "what" / name).write_text(content)
    assert message in run(capsys, tmp_path / "what", output=tmp_path / "report", expect=2)


def fingerprint(folder) -> str:
    return json.loads((folder / "manifest.json").read_text())["fingerprint"]


def test_parts_of_another_run(tmp_path, capsys):
    made, other = folders.make_generations(tmp_path / "a"), folders.make_generations(tmp_path / "b", seed=5)
    part = "generations/part-00001-of-00004.parquet"
    shutil.copy(other / part, made / part)
    message = run(capsys, made, output=tmp_path / "report", expect=2)
    assert "belongs to another run" in message and all(fingerprint(folder) in message for folder in (made, other))
    assert not (tmp_path / "report" / "analysis.json").exists()


def test_a_draft_that_is_missing(tmp_path, capsys):
    made, scores = folders.make_generations(tmp_path / "a", temperature=0.5), folders.make_scores(tmp_path / "s")
    results = run(capsys, made, scores, output=tmp_path / "report")
    note = "T = 0.5, γ = 3 (folder a): none of the scores are of small under T = 0.5; its predictions are from its own α alone."
    assert note in results["notes"]
    assert any(note.startswith("ĉ is not known for small") for note in results["notes"])
    part = scores / "scores" / "part-00001-of-00004.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["beta_lookup"]), part)
    message = run(capsys, scores, output=tmp_path / "other", expect=2)
    assert "lacks what its manifest promises" in message and "beta_lookup" in message


def test_scores_are_without_lenience(tmp_path, capsys):
    """Whatever their config says; that the texts were decoded with it is said."""
    made, scores = folders.make_generations(tmp_path / "a"), folders.make_scores(tmp_path / "s")
    manifest = json.loads((scores / "manifest.json").read_text())
    manifest["config"]["decoding"]["lenience"], manifest["text"]["exact"] = 0.5, False
    (scores / "manifest.json").write_text(json.dumps(manifest))
    results = run(capsys, made, scores, output=tmp_path / "report")
    assert [one["run"] for one in results["two_definitions"]] == ["a"]
    assert series(results, "s")["sampling"] == "T = 1"
    note = "scores, T = 1 (folder s) scores texts that were decoded with lenience: its α is not that of Corollary 3.6."
    assert [one for one in results["notes"] if "lenience" in one] == [note]


def test_the_same_run_twice(tmp_path, capsys):
    made = folders.make_generations(tmp_path / "a")
    shutil.copytree(made, tmp_path / "b")
    message = run(capsys, made, tmp_path / "b", output=tmp_path / "report", expect=2)
    assert "are the same run" in message and "would count twice" in message


def test_no_draft_at_all(tmp_path, capsys):
    model = {**folders.PAIR, "draft": ""}
    made = folders.make_generations(tmp_path / "plain", gamma=0, model=model)
    assert "none of the inputs has a draft" in run(capsys, made, output=tmp_path / "report", expect=2)
    results = run(capsys, made, folders.make_scores(tmp_path / "s"), output=tmp_path / "report")
    assert "T = 1, plain (folder plain) is plain decoding: it has no draft, and nothing of it enters α." in results["notes"]


def test_the_same_settings_with_other_fingerprints_stand_apart(tmp_path, capsys):
    a, b = folders.make_generations(tmp_path / "a"), folders.make_generations(tmp_path / "b", code="c1")
    results = run(capsys, a, b, output=tmp_path / "report")
    (note,) = (note for note in results["notes"] if "same settings" in note)
    assert "what differs: code" in note
    assert len(results["series"]) == 2 and results["seeds"] == []
    apart = [f"run {source['fingerprint'][:8]}" for source in results["sources"]]
    assert [one["apart"] for one in results["series"]] == apart
    assert [one["called"] for one in results["series"]] == [f"T = 1, γ = 3, {one}" for one in apart]


def test_models_of_one_name_are_told_apart(tmp_path, capsys):
    a = folders.make_generations(tmp_path / "a")
    b = folders.make_generations(tmp_path / "b", seed=2, weights={"target": {"w": "other"}, "draft": {"w": "bb"}})
    results = run(capsys, a, b, output=tmp_path / "report")
    assert any("are of 2 targets" in note for note in results["notes"])
    assert len({one["target"] for one in results["series"]}) == 2
    assert results["seeds"] == []


def test_the_output_of_a_run_is_not_written_into(tmp_path, capsys):
    made = folders.make_generations(tmp_path / "a")
    assert "which holds a run" in run(capsys, made, output=made, expect=2)


@pytest.mark.parametrize(("args", "message"), [
    (["--output=x"], "--inputs is missing"),
    (["--inputs=x"], "--output is missing"),
    (["--inputs=x", "--output=y", "--gama=3"], "'--gama' is neither an option of this job nor of Beam"),
])  # fmt: skip
def test_commands_that_are_wrong(capsys, args, message):
    assert analyze.main(args) == 2
    assert message in capsys.readouterr().err
