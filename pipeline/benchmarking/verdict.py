"""One sentence computed from measurements: whether speculation pays here, and why."""

from collections.abc import Mapping, Sequence
from typing import Any


def verdict(
    speedup: Mapping[str, Any],
    *,
    gamma: int | str,
    where: str,
    pass_cost: Mapping[str, Any] | None = None,
    alpha: float | None = None,
    tokens_per_call: float | None = None,
    draft_cost: float | None = None,
    positions: int | None = None,
    plain_positions: int = 1,
) -> str:
    """What the interval of a speedup says, and what it is made of.

    Args:
      speedup: of speculative over plain decoding, as `dataclasses.asdict` of a `Ratio` or any mapping with its names.
      gamma: guesses per call, or "auto".
      where: what it was measured at, as "1 slot, temperature 0".
      pass_cost: of a target call over γ + 1 positions, in calls over one; a mapping as `speedup`.
      alpha: acceptance rate.
      tokens_per_call: tokens per target call.
      draft_cost: of one draft call, in target calls over one position: the paper's c. None where it costs nothing.
      positions, plain_positions: of a target call, γ + 1 where None, and of one of plain decoding; several are beam search's,
        whose α is the share of steps covered, and whose tokens are steps.
    """
    mean, low, high = (speedup[name] for name in ("mean", "low", "high"))
    if low is None or low <= 1 <= high:
        says = "Whether speculation pays here is open"
    else:
        says = "Speculation pays here" if low > 1 else "Speculation does not pay here"
    interval = "" if low is None else f" ({low:.2f} to {high:.2f})"
    text = f"{says}: at {where}, γ = {gamma} is {mean:.2f} times{interval} as fast as plain decoding"
    reasons = []
    if pass_cost is not None and gamma != "auto":
        one = "a single position" if plain_positions == 1 else f"{plain_positions}"
        cost = f"a call over {positions or gamma + 1} positions costs {pass_cost['mean']:.2f} of one over {one}"
        if draft_cost:
            cost += f", {gamma} draft calls {gamma * draft_cost:.2f}"
        reasons.append(cost)
    if alpha is not None:
        beams = plain_positions > 1
        brings = "" if tokens_per_call is None else f", {tokens_per_call:.2f} {'steps' if beams else 'tokens'} a call"
        told = f"of the steps {alpha:.0%} are covered" if beams else f"of the guesses {alpha:.0%} are accepted (α)"
        reasons.append(told + brings)
    return text + (f", because {', and '.join(reasons)}." if reasons else ".")


def of_benchmark(results: Mapping[str, Any]) -> str:
    """The verdict of benchmark.json's content; "" where no speedup was measured."""
    costs = {cost["num_slots"]: cost for cost in results["costs"]}
    rows = []
    for row in results["rows"]:
        cost = costs[row["num_slots"]]
        passes = None if row["gamma"] == "auto" else cost["pass_cost"].get(str(row.get("positions") or row["gamma"] + 1))
        rows.append({**row, "pass_cost": passes, "c": cost["c"], "plain_positions": cost.get("plain_positions", 1)})
    return of_settings(rows)


def of_settings(rows: Sequence[Mapping[str, Any]]) -> str:
    """The verdict at the setting with the largest speedup, with γ = "auto" where it alone wins; "" where none was measured.

    Where speculation loses elsewhere among them, a second sentence says so.

    Args:
      rows: of benchmark.json, each with the "pass_cost" and "c" of its setting; None where they are not known. Where
        they are of several drafts ("draft"), the sentence names the one that it is about.
    """
    rows = [row for row in rows if row["speedup"]]
    if not rows:
        return ""
    several = len({row.get("draft") for row in rows}) > 1
    where = lambda row: f"{_where(row)}, draft {row['draft']}" if several else _where(row)
    # Why a choice of γ = "auto" wins is seen at the γ that it takes: it is told of only where it alone is sure to win.
    fixed = [row for row in rows if row["gamma"] != "auto"]
    winning = [row for row in rows if row["speedup"]["low"] is not None and row["speedup"]["low"] > 1]
    only_auto = winning and all(row["gamma"] == "auto" for row in winning)
    best = max(winning if only_auto else fixed or rows, key=lambda row: row["speedup"]["mean"])
    text = verdict(
        best["speedup"],
        gamma=best["gamma"],
        where=where(best),
        pass_cost=best["pass_cost"],
        alpha=best["alpha"]["mean"] if best["alpha"] else None,
        tokens_per_call=best["tokens_per_target_call"],
        draft_cost=best["c"]["mean"] if best["c"] else None,
        positions=best.get("positions"),
        plain_positions=best.get("plain_positions", 1),
    )
    losing = [row for row in rows if row["speedup"]["high"] is not None and row["speedup"]["high"] < 1]
    if losing and best not in losing:
        worst = min(losing, key=lambda row: row["speedup"]["mean"])
        text += (
            f" It loses in {len(losing)} of {len(rows)} settings, most at {where(worst)}, γ = {worst['gamma']}: "
            f"{worst['speedup']['mean']:.2f} times."
        )
    return text


def _where(row: Mapping[str, Any]) -> str:
    slots = row["num_slots"]
    rule = f", {row['verification']}" if row["temperature"] > 0 else ""
    rule += f", u = {row['draft_beams']}" if row.get("draft_beams") else ""
    return f"{slots} slot{'s' if slots != 1 else ''}, temperature {row['temperature']:g}{rule}"
