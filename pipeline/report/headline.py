"""What a reader sees first: one sentence of verdict, a few numbers, and what has to be known about them."""

from collections.abc import Mapping
from typing import Any

from pipeline.benchmarking.verdict import of_settings, verdict
from pipeline.report.names import slots_label
from pipeline.report.tables import Column


def verdict_of(results: Mapping[str, Any]) -> str:
    """Whether speculation pays, and why: by a benchmark, else by speedups within jobs, else what is known without either."""
    if measured := of_settings([{**one, "speedup": one["measured"]} for one in results["speedups"]]):
        return measured
    if results["in_job"]:
        return _within_job(results, max(results["in_job"], key=lambda one: one["speedup"]["mean"]))
    ran = [one for one in results["series"] if one["kind"] == "generations" and one["alpha"]]
    if ran:
        best = max(ran, key=lambda one: one["tokens_per_call"]["mean"])
        known = (
            f"of {best['draft']}'s guesses {best['alpha']['mean']:.0%} were accepted (α), "
            f"{best['tokens_per_call']['mean']:.2f} tokens a target call, at γ = {best['gamma']}, {best['sampling']}"
        )
    elif scored := [one for one in results["series"] if one.get("alpha_over_all")]:
        best = max(scored, key=lambda one: one["alpha_over_all"]["mean"])
        known = f"of {best['draft']}'s guesses {best['alpha_over_all']['mean']:.0%} would be accepted (α), {best['sampling']}"
    else:
        return ""
    return (
        f"Whether speculation pays was not measured. What is known: {known}. Speed is measured by pipeline.benchmark, or by a "
        "job with shards.baseline_fraction."
    )


def _within_job(results: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    series = next((one for one in results["series"] if (one["run"], one["draft"]) == (best["run"], best["draft"])), {})
    alpha, tokens = (series.get(name) for name in ("alpha", "tokens_per_call"))
    slots = f"{slots_label(best['num_slots'])}, " if best["num_slots"] else ""
    return verdict(
        best["speedup"],
        gamma=best["gamma"],
        where=f"{slots}{best['sampling']}, draft {best['draft']}, within the job",
        alpha=alpha and alpha["mean"],
        tokens_per_call=tokens and tokens["mean"],
    )


def headlines(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few numbers to see first, each once: (value, what it is)."""
    found, alpha, ratio = [], Column("", "estimate", 3), Column("", "estimate", 2)
    for one in [one for one in results["two_definitions"] if one["over_target_text"]][:2]:
        found.append(
            (alpha.show(one["over_target_text"]), f"α of {one['draft']} over the target's text, {one['sampling']}")
        )
    if not found:
        found = [
            (alpha.show(o["alpha"]), f"α of {o['draft']}, {o['sampling']}") for o in results["series"][:2] if o["alpha"]
        ]
    for one in results["tokens_per_call"][:2]:
        caption = f"tokens per target call: {one['draft']}, γ = {one['gamma']}, {one['sampling']}"
        found.append((ratio.show(one["observed"]), caption))
    if measured := [one for one in results["speedups"] if one["measured"]]:
        best = max(measured, key=lambda one: one["measured"]["mean"])
        caption = (
            f"largest measured speedup of {len(measured)} settings: γ = {best['gamma']}, {best['sampling']}, "
            f"{slots_label(best['num_slots'])}"
        )
        found.append((ratio.show(best["measured"]).replace(" ", "× ", 1), caption))
    seen: set[str] = set()  # runs that differ by their seed alone have one caption
    return [one for one in found if not (one[1] in seen or seen.add(one[1]))]


def caveats(results: Mapping[str, Any]) -> list[str]:
    """Notes for the reader, and what was measured on which machine."""
    found = list(results["notes"])
    for one in results["machines"]:
        machine, inputs = one["machine"], one["inputs"]
        cores = f"{machine['usable_cores']} core{'s' if machine['usable_cores'] != 1 else ''}"
        found.append(
            f"The {one['run']} was measured on {cores} of {machine['processor']} "
            f"({machine['device']['kind']}), over {inputs['examples']} inputs of {inputs['shortest']} to "
            f"{inputs['longest']} tokens, with jax {machine['versions']['jax']}."
        )
    return found
