"""The paper's Figure 5 of one text: its draft and target calls to scale, with everything that an iteration takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pipeline.report.names import slots_label

_CALLS = 12
"""The most target calls that are drawn: more are too narrow to see."""
_DRAFT = {"facecolor": "#E69F00", "label": "draft call"}
_TARGET = {"facecolor": "#0072B2", "hatch": "//", "label": "target call"}
_REST = {"facecolor": "#b9bec6", "hatch": "..", "label": "all else"}


def trace(axes: Axes, results: Mapping[str, Any]) -> bool:
    """The first calls of the first text above plain decoding of the same tokens, in target passes over one position.

    Widths are of whole iterations as a benchmark measured them; what draft and target, run alone, do not take of them is
    all else: drawing, verification, the host, the iteration's share of prefill. Without a benchmark of the pair only the
    number of calls is drawn.
    """
    if not results["texts"]:
        return False
    text = results["texts"][0]
    row, cost = text["row"], costs_for(text, results["costs"])
    gammas = row["gammas"][:_CALLS]
    tokens = sum(call < len(gammas) for call in row["iteration"])
    calls = [iteration(gamma, text, cost) for gamma in gammas]
    ends = [_bars(axes, 1.1, calls), _bars(axes, 0.1, [iteration(0, text, cost)] * tokens)]
    kinds = (_DRAFT, _TARGET, _REST) if cost else (_TARGET,)
    for style in kinds:
        axes.add_patch(Rectangle((0, 0), 0, 0, edgecolor="white", linewidth=0.4, **style))
    axes.set(xlim=(0, max(ends) * 1.01), ylim=(-0.1, 3.0), yticks=(0.4, 1.4))
    axes.set_xlabel("time, in target passes over one position" if cost else "target calls; what they cost was not measured")
    axes.set_yticklabels(["plain", "speculative"])
    axes.grid(False)
    for end, at, number in ((ends[0], 1.78, len(calls)), (ends[1], 0.78, tokens)):
        shown = f"{number} iterations, {end:.1f}" if cost else f"{number} calls"
        axes.annotate(shown, (0, at), textcoords="offset points", xytext=(4, 0), fontsize=8.5)
    first = "the first" if len(row["gammas"]) > _CALLS else "all"
    about = f"{first} {tokens} tokens" + (f"; costs measured at {_measured_at(gammas, text, cost)}" if cost else "")
    axes.annotate(about, (0, 2.25), textcoords="offset points", xytext=(4, 0), fontsize=8.5)
    axes.legend(loc="upper left", ncols=len(kinds), handlelength=1.6)
    return True


def _bars(axes: Axes, bottom: float, iterations: Sequence[Sequence[tuple[dict, float]]]) -> float:
    """Draws iterations one behind the other. Returns where the last ends."""
    at = 0.0
    for parts in iterations:
        for style, width in parts:
            look = {name: value for name, value in style.items() if name != "label"}
            axes.add_patch(Rectangle((at, bottom), width, 0.6, edgecolor="white", linewidth=0.4, **look))
            at += width
    return at


def costs_for(text: Mapping[str, Any], costs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The measured costs of a text's pair, at its run's number of slots or the nearest to it; None without any."""
    mine = [one for one in costs if (one["target"], one["draft"]) == (text["target"], text["draft"])]
    slots = text["num_slots"] or 1
    return min(mine, key=lambda one: abs(one["num_slots"] - slots), default=None)


def iteration(gamma: int, text: Mapping[str, Any], cost: Mapping[str, Any] | None) -> list[tuple[dict, float]]:
    """What an iteration with γ guesses consists of, and the width of each part; γ between measured ones on their line."""
    if cost is None:
        return [(_TARGET, 1.0)]
    whole = _on_line(gamma, {one["gamma"]: one["cost"] for one in _iterations(text, cost)})
    one_pass = _on_line(gamma + 1, {int(width): value["mean"] for width, value in cost["pass_cost"].items()})
    parts = [(_DRAFT, cost["c"]["mean"])] * gamma + [(_TARGET, one_pass)]
    alone = sum(width for _, width in parts)
    if alone >= whole:  # alone, passes took longer than in the run, whose time is what counts
        return [(style, width * whole / alone) for style, width in parts]
    return [*parts, (_REST, whole - alone)]


def _iterations(text: Mapping[str, Any], cost: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Measured iterations at the temperature nearest to the text's, with its verification where that was measured."""
    temperature = min((one["temperature"] for one in cost["iterations"]), key=lambda t: abs(t - text["temperature"]))
    near = [one for one in cost["iterations"] if one["temperature"] == temperature]
    others = [one for one in near if one["gamma"] and one["verification"] != text["verification"]]
    same = [one for one in near if one not in others]
    return same if any(one["gamma"] for one in same) else near


def _measured_at(gammas: Sequence[int], text: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    """At what the costs were measured, and in what that is otherwise than the text's run."""
    used = _iterations(text, cost)
    said = slots_label(cost["num_slots"])
    if cost["num_slots"] != text["num_slots"]:
        said += f" (run: {text['num_slots']})"
    temperature = used[0]["temperature"]
    if temperature != text["temperature"]:
        said += f", T = {temperature:g} (run: {text['temperature']:g})"
    if not set(gammas) <= {one["gamma"] for one in used}:
        said += ", other γ"
    return said


def _on_line(x: int, known: Mapping[int, float]) -> float:
    xs = sorted(known)
    return float(np.interp(x, xs, [known[one] for one in xs]))
