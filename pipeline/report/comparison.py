"""What several folders say together: predictions against measurements, seeds against each other, both kinds of α.

Folders are matched by the digests of target and draft and by the sampling settings, never by names.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import chdtrc

from decoding import theory
from pipeline.report import estimates
from pipeline.report.costs import draft_cost, estimate_of
from pipeline.report.estimates import Estimate, Series, estimate, propagated, ratio_of
from pipeline.report.names import identify, sampling_label
from pipeline.report.source import BENCHMARK, GENERATIONS, SCORES, Source

SeriesOf = Mapping[tuple[int, str], Series]
"""Series by number of the source and name of the draft in it."""


def scores_of(sources: Sequence[Source], series: SeriesOf, target: str, draft: str, sampling: tuple) -> list[tuple]:
    """(number, draft's name) of the series that score this pair under this sampling, over the target's own texts."""
    return [
        (number, name)
        for number, name in series
        if sources[number].kind == SCORES
        and sources[number].target.digest == target
        and sources[number].drafts[name].digest == draft
        and sources[number].sampling == sampling
        and sources[number].text.get("of_target", True)
    ]


def unmatched(sources: Sequence[Source], series: SeriesOf) -> list[str]:
    """Notes on generations whose draft is not among the scores that were given."""
    notes = []
    for number, name in series if any(source.kind == SCORES for source in sources) else ():
        source = sources[number]
        if source.kind != GENERATIONS:
            continue
        if not scores_of(sources, series, source.target.digest, source.drafts[name].digest, source.sampling):
            notes.append(
                f"{source.told}: none of the scores are of {source.drafts[name].name} under "
                f"{sampling_label(source.decoding)}; its predictions are from its own α alone."
            )
    return notes


def fixed_gamma(source: Source) -> int | None:
    """The γ of a folder of generations with one, None where it is 0 or varies."""
    gamma = source.decoding.get("gamma")
    return gamma if isinstance(gamma, int) and gamma > 0 else None


def tokens_per_call(sources: Sequence[Source], series: SeriesOf) -> list[dict]:
    """Observed tokens per target call beside every prediction that there is, each with its miss.

    A prediction and the observation may be of the same examples: their replicates share weights, so that the miss has
    the interval of a paired comparison.
    """
    found = []
    for (number, name), one in series.items():
        source, gamma = sources[number], fixed_gamma(sources[number])
        if source.kind != GENERATIONS or gamma is None:
            continue
        observed, examples = one.tokens_per_call(), one.examples
        predicted = {"iid on policy": estimates.expected_tokens(one.mean_beta(), gamma)}
        matches = scores_of(sources, series, source.target.digest, source.drafts[name].digest, source.sampling)
        for match in matches[:1]:
            predicted |= series[match].predicted_tokens_per_call(gamma)
            examples = min(examples, series[match].examples)
        found.append(
            {
                **identify(source, name),
                "scores": sources[matches[0][0]].called if matches else None,
                "observed": estimate(observed, one.examples),
                "predicted": {
                    method: {"tokens": estimate(values, examples), "miss": estimate(values / observed - 1, examples)}
                    for method, values in predicted.items()
                    if np.isfinite(values[0])
                },
            }
        )
    return found


def two_definitions(sources: Sequence[Source], series: SeriesOf) -> list[dict]:
    """α over the positions that runs examined beside α over the target's texts, and their difference."""
    found = []
    for (number, name), one in series.items():
        source = sources[number]
        if source.kind != GENERATIONS:
            continue
        matches = scores_of(sources, series, source.target.digest, source.drafts[name].digest, source.sampling)
        for match in matches[:1]:
            other = series[match]
            found.append(
                {
                    **identify(source, name),
                    "on_policy": one.alpha(),
                    "over_target_text": other.alpha(),
                    "difference": estimate(other.mean_beta() - one.mean_beta(), min(one.examples, other.examples)),
                }
            )
    return found


def best_drafts(sources: Sequence[Source], series: SeriesOf, described: Mapping[tuple[int, str], Mapping]) -> list[dict]:
    """By how much the best draft of a folder of scores is ahead of each other there in α, paired: they score the same texts."""
    found = []
    for number, source in enumerate(sources):
        drafts = {name: one for (of, name), one in series.items() if of == number and source.kind == SCORES}
        alphas = {name: alpha for name, one in drafts.items() if np.isfinite((alpha := one.alpha_over_all())[0])}
        ranked = sorted(alphas, key=lambda name: -alphas[name][0])
        for name in ranked[1:]:
            best = ranked[0]
            examples = min(drafts[best].examples, drafts[name].examples)
            found.append(
                {
                    **identify(source, name),
                    "best": source.drafts[best].name,
                    "alpha": described[number, name]["alpha_over_all"],
                    "best_alpha": described[number, best]["alpha_over_all"],
                    "ahead": estimate(alphas[best] - alphas[name], examples),
                }
            )
    return found


# Benchmarks.


def measured_speedups(sources: Sequence[Source], series: SeriesOf) -> list[dict]:
    """Rows of benchmarks with a fixed γ: measured speedup beside each prediction, with its miss."""
    found = []
    for source in sources:
        if source.kind != BENCHMARK or not source.drafts:
            continue
        costs = {cost["num_slots"]: cost for cost in source.results["costs"]}
        for row in source.results["rows"]:
            if row["gamma"] == 0:
                continue
            found.append(_speedup_row(source, row, costs[row["num_slots"]], sources, series))
    return found


def _speedup_row(
    source: Source, row: Mapping[str, Any], cost: Mapping[str, Any], sources: Sequence[Source], series: SeriesOf
) -> dict:
    gamma, speedup = row["gamma"], estimate_of(row["speedup"])
    found = {
        **identify(source, ""),
        "temperature": row["temperature"],
        "sampling": sampling_label({**source.decoding, "temperature": row["temperature"]}),
        "gamma": gamma,
        "num_slots": row["num_slots"],
        "verification": row["verification"],
        "alpha": row["alpha"] and estimate_of(row["alpha"]),
        "measured": speedup,
        "tokens_per_target_call": row["tokens_per_target_call"],
        "c": None,
        "pass_cost": None,
        "predicted": {},
    }
    if gamma == "auto" or not row["alpha"] or row.get("draft_beams"):
        return found
    alpha, c = found["alpha"], draft_cost(cost)
    v = estimate_of(cost["pass_cost"][str(gamma + 1)])
    predicted = {
        "theorem_3_8": propagated(lambda a, c: theory.walltime_improvement(a, gamma, c), alpha, c),
        "with_pass_cost": propagated(
            lambda a, c, v: theory.walltime_improvement_measured(a, gamma, c, v), alpha, c, v
        ),
    }
    sampling = (row["temperature"], *source.sampling[1:])
    matches = scores_of(sources, series, source.target.digest, source.drafts[""].digest, sampling)
    if matches and (row["verification"] == "token" or row["temperature"] == 0):
        one = series[matches[0]]
        tokens = estimate(one.predicted_tokens_per_call(gamma)["walk"], one.examples)
        if tokens:
            predicted["joint_with_pass_cost"] = propagated(lambda t, c, v: t / (gamma * c + v), tokens, c, v)
    found |= {
        "c": c,
        "pass_cost": v,
        "predicted": {
            method: {"speedup": value, "miss": ratio_of(value, speedup)} for method, value in predicted.items()
        },
    }
    return found


# Operations, seeds.


def operations(
    sources: Sequence[Source], series: SeriesOf, counted: Mapping[str, float | None]
) -> list[dict]:
    """Operations factor (Theorem 3.11) of every folder with a fixed γ, predicted from α, and from the calls it made.

    Args:
      sources, series: all.
      counted: operations per token of a model, by digest; None or missing where its architecture is not known.
    """
    found = []
    for (number, name), one in series.items():
        source, gamma = sources[number], fixed_gamma(sources[number])
        if source.kind != GENERATIONS or gamma is None:
            continue
        target, draft = counted.get(source.target.digest), counted.get(source.drafts[name].digest)
        c_hat = draft / target if target and draft is not None else None
        row = {**identify(source, name), "alpha": one.alpha(), "c_hat": c_hat}
        if c_hat is not None and row["alpha"]:
            per_call = gamma * c_hat + gamma + 1
            row["predicted"] = propagated(lambda a: theory.operations_factor(a, gamma, c_hat), row["alpha"])  # noqa: B023
            row["observed"] = estimate(per_call / one.tokens_per_call(), one.examples)
        found.append(row)
    return found


def seeds(sources: Sequence[Source], series: SeriesOf, in_job: Mapping[int, dict]) -> list[dict]:
    """Groups of runs that differ by seed alone: the spread between them against the intervals of each.

    The test of homogeneity asks whether they differ by more than their own intervals say. Where all decode the same
    inputs they differ by less: the intervals also cover the choice of inputs.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for number, name in series:
        source = sources[number]
        decoding = {key: value for key, value in source.decoding.items() if key != "seed"}
        key = json.dumps([source.kind, source.target.digest, source.drafts[name].digest, decoding, source.task], sort_keys=True)
        groups.setdefault(key, []).append((number, name))
    found = []
    for members in groups.values():
        if len({sources[number].seed for number, _ in members}) < 2:
            continue
        row: dict[str, Any] = {
            **identify(sources[members[0][0]], members[0][1]),
            "runs": [sources[number].called for number, _ in members],
            "seeds": [sources[number].seed for number, _ in members],
        }
        del row["run"], row["called"], row["seed"]
        row["alpha"] = spread([series[member].alpha() for member in members])
        if sources[members[0][0]].kind == GENERATIONS:
            calls = [estimate(series[member].tokens_per_call(), series[member].examples) for member in members]
            row["tokens_per_call"] = spread(calls)
            speedups = [in_job[number]["speedup"] for number, _ in members if number in in_job]
            if len(speedups) > 1:
                row["speedup"] = spread(speedups)
        found.append(row)
    return found


def spread(values: Sequence[Estimate | None]) -> dict | None:
    """How far apart estimates of the same thing are, against their standard errors (Cochran's Q)."""
    known = [value for value in values if value and value["standard_error"] is not None]
    if len(known) < 2:
        return None
    means = np.array([value["mean"] for value in known])
    errors = np.array([value["standard_error"] for value in known])
    found = {
        "values": known,
        "mean": float(means.mean()),
        "deviation_between_seeds": float(means.std(ddof=1)),
        "mean_standard_error": float(np.sqrt(np.mean(errors**2))),
    }
    if (errors > 0).all():
        weights = errors**-2
        statistic = float(np.sum(weights * (means - np.sum(weights * means) / weights.sum()) ** 2))
        found |= {"heterogeneity": statistic, "p_value": float(chdtrc(len(known) - 1, statistic))}
    return found


