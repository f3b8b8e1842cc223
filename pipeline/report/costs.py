"""What passes, drafts and iterations cost, as benchmarks measured it, and which γ is best for that."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from decoding import theory
from pipeline.report.estimates import Estimate, Series, exactly, propagated
from pipeline.report.names import identify, slots_label
from pipeline.report.source import BENCHMARK, GENERATIONS, SCORES, Source


def estimate_of(value: Mapping[str, Any]) -> Estimate:
    """A measured ratio's mean and interval."""
    return {name: value[name] for name in ("mean", "low", "high")}


def draft_cost(cost: Mapping[str, Any]) -> Estimate:
    """c; as the benchmark has it, 0 for a draft that is no model, which costs next to nothing."""
    return estimate_of(cost["c"]) if cost["c"] else exactly(0.0)


def measured_costs(sources: Sequence[Source]) -> list[dict]:
    """By benchmark and number of slots: c, passes by positions, and whole iterations, in target passes over one position.

    An iteration's cost is everything that was measured, over the iterations that it was measured in: draft and target,
    verification and drawing, the host, and the iteration's share of prefill.
    """
    found = []
    for source in sources:
        for cost in source.results["costs"] if source.kind == BENCHMARK and source.drafts else ():
            rows = [row for row in source.results["rows"] if row["num_slots"] == cost["num_slots"]]
            one_pass = math.exp(np.log(cost["target_seconds"][str(cost.get("plain_positions", 1))]).mean())
            plain = {
                row["temperature"]: sum(row["seconds"]) / sum(row["iterations"]) / one_pass for row in rows if row["gamma"] == 0
            }
            told = ("temperature", "verification", "gamma")
            found.append(
                {
                    **identify(source, ""),
                    "num_slots": cost["num_slots"],
                    "c": draft_cost(cost),
                    "pass_cost": {width: estimate_of(value) for width, value in cost["pass_cost"].items()},
                    "iterations": [
                        {
                            **{name: row[name] for name in told},
                            "cost": plain[row["temperature"]] * (row["iteration_cost"]["mean"] if row["gamma"] else 1.0),
                        }
                        for row in rows
                        if row["gamma"] != "auto"
                    ],
                }
            )
    return found


def best_gammas(
    sources: Sequence[Source], series: Mapping[tuple[int, str], Series], described: Mapping[tuple[int, str], dict]
) -> list[dict]:
    """γ* for the α of every series and the costs that benchmarks of the same pair measured, and the oracle's bound."""
    found = []
    for (number, name), one in series.items():
        source, alpha = sources[number], described[number, name]["alpha"]
        if source.kind == SCORES:  # a position at which nothing is proposed accepts nothing
            alpha = described[number, name]["alpha_over_all"]
        if not alpha:
            continue
        oracle = propagated(theory.oracle_expected_tokens, _capped(alpha)) if alpha["mean"] < 1 else None
        row = {**identify(source, name), "alpha": alpha, "oracle": oracle, "costs": []}
        for bench in sources:
            if bench.kind != BENCHMARK or not bench.drafts or source.drafts[name].digest != bench.drafts[""].digest:
                continue
            if source.target.digest != bench.target.digest:
                continue
            for cost in bench.results["costs"]:
                best = _best_for(alpha, cost)
                row["costs"].append({"benchmark": bench.called, **best, "otherwise": _measured_otherwise(source, cost, best)})
        if one.sums.count("beta#")[0]:
            found.append(row)
    return found


def _capped(alpha: Estimate) -> Estimate:
    """An α whose ends stay below 1, where the oracle's bound is infinite."""
    return {name: value if value is None else min(value, 1 - 1e-9) for name, value in alpha.items()}


def _measured_otherwise(source: Source, cost: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """In what the costs were measured otherwise than the run was made, and where they were not measured at all."""
    told, passes = [], {int(width) for width in cost["pass_cost"]}
    slots, gamma = source.decoding.get("num_slots"), source.decoding.get("gamma")
    if source.kind == GENERATIONS:
        if slots is not None and slots != cost["num_slots"]:
            told.append(f"at {slots_label(cost['num_slots'])}, the run had {slots}")
        if isinstance(gamma, int) and gamma + 1 not in passes:
            told.append(f"not at the run's γ = {gamma}")
    if best["gamma_measured"]["mean"] + 1 not in passes:
        told.append("γ* between measured γ")
    return "; ".join(told)


def _best_for(alpha: Estimate, cost: Mapping[str, Any]) -> dict:
    c = draft_cost(cost)
    passes = {int(width): value["mean"] for width, value in cost["pass_cost"].items()}
    ends = [a for a in alpha.values() if a is not None]
    costs = [value for value in c.values() if value is not None]
    by_theorem = [theory.optimal_gamma(a, x) for a in ends for x in costs]
    by_costs = [theory.optimal_gamma_measured(a, x, passes) for a in ends for x in costs]
    best, best_measured = by_theorem[0], by_costs[0]
    speed = theory.walltime_improvement(alpha["mean"], best, c["mean"])
    widths = sorted(passes)
    v = float(np.interp(best_measured + 1, widths, [passes[width] for width in widths]))
    speed_measured = theory.walltime_improvement_measured(alpha["mean"], best_measured, c["mean"], v)
    return {
        "num_slots": cost["num_slots"],
        "c": c,
        "gamma": {"mean": best, "low": min(by_theorem), "high": max(by_theorem)},
        "speedup": speed,
        "gamma_measured": {"mean": best_measured, "low": min(by_costs), "high": max(by_costs)},
        "speedup_measured": speed_measured,
        "widest_pass": widths[-1],
    }
