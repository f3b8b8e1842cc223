"""Figures as SVG: the paper's Figures 2 to 5 with our points on them, and what is told of β.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, and every colour comes with a marker or a line
style of its own. Axes and letters are drawn in `currentColor`, so that a page shows them in the colour of its text.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from decoding import theory
from pipeline.report.estimates import Estimate
from pipeline.report.names import labels, slots_label
from pipeline.report.trace import trace

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (9, 2, 1, 1.5, 1, 1.5, 1, 2)), (0, (2, 4)))
_INK, _GRID = "#010203", "#040506"  # replaced by currentColor
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _GRID,
}
_ALPHAS = np.linspace(0, 0.98, 99)
_GAMMAS = (1, 3, 5, 7, 10)
_MOST_LINES = 6


def all_figures(results: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """SVG and title by name; figures that have nothing to show are left out."""
    makers: dict[str, tuple[str, Callable]] = {
        "tokens": ("Tokens per target call over α (the paper's Figure 2)", tokens_over_alpha),
        "best_gamma": ("The best γ over α and c (the paper's Figure 3)", gamma_over_alpha),
        "speed": ("Speedup over α, c = 0 (the paper's Figure 4)", speed_over_alpha),
        "operations": ("Operations per token over α, ĉ = 0 (the paper's Figure 4)", operations_over_alpha),
        "trace": ("Where the time of one text goes (the paper's Figure 5)", trace),
        "autocorrelation": ("Correlation of β along a text", autocorrelation),
        "lengths": ("Accepted tokens per call, and the capped geometric law", accepted_lengths),
        "position": ("α by position in the text", lambda axes, r: dimension(axes, r, "position", "position")),
        "place": ("α by place in the block", lambda axes, r: dimension(axes, r, "place", "place in the block")),
        "frequency": ("α by frequency of the token", lambda axes, r: dimension(axes, r, "frequency", "rank")),
        "widths": ("Half-width of the interval over tokens", widths),
    }
    found = {}
    for name, (title, draw) in makers.items():
        if (svg := render(name, title, draw, results)) is not None:
            found[name] = (svg, title)
    return found


def render(
    name: str, title: str, draw: Callable[[Axes, Mapping[str, Any]], bool], results: Mapping[str, Any]
) -> str | None:
    """The SVG of one figure, None where `draw` says that there is nothing to show. Equal input gives equal bytes."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        if not draw(axes, results):
            return None
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _plain_svg(stream.getvalue(), name, title)


def _plain_svg(svg: str, name: str, title: str) -> str:
    """Without prologue, metadata and fixed size; ids of its own; axes in currentColor; a title for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', svg)
    svg = re.sub(r"<style type=\"text/css\">\*\{[^}]*\}</style>", "", svg)  # would be the whole page's style
    svg = svg.replace(f"stroke: {_GRID}", "stroke: currentColor; stroke-opacity: 0.15").replace(_INK, "currentColor")
    return svg.replace(">", f' role="img" aria-label="{title}">', 1)


def standalone(svg: str) -> str:
    """An SVG for a file of its own, readable on a light and on a dark background."""
    style = (
        "<style>svg{color:#1b1f24;background:#fff;stroke-linejoin:round;stroke-linecap:butt}"
        "@media(prefers-color-scheme:dark){svg{color:#e6e8eb;background:#14171a}}</style>"
    )
    end = svg.index(">") + 1
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg[:end] + style + svg[end:]


# Points and lines.


def _style(number: int) -> dict:
    return {"color": PALETTE[number % len(PALETTE)], "marker": _MARKERS[number % len(_MARKERS)]}


def _point(axes: Axes, x: Estimate, y: Estimate, number: int, label: str | None) -> None:
    errors = [
        None if one["low"] is None else [[max(one["mean"] - one["low"], 0)], [max(one["high"] - one["mean"], 0)]]
        for one in (x, y)
    ]
    axes.errorbar(
        x["mean"],
        y["mean"],
        xerr=errors[0],
        yerr=errors[1],
        **_style(number),
        label=label,
        capsize=2,
        elinewidth=1.2,
        linestyle="none",
        zorder=5,
        markeredgecolor="white",
        markeredgewidth=0.8,
    )


def _curves(axes: Axes, curve: Callable[[int], np.ndarray], top: float, *, falling: bool = False) -> None:
    """Theory's curves for several γ: grey, told apart by line style and named where they end or leave the axes."""
    for i, gamma in enumerate(_GAMMAS):
        y = curve(gamma)
        axes.plot(_ALPHAS, y, color="#8a8f98", linestyle=_LINES[i % len(_LINES)], linewidth=1.3, zorder=2)
        inside = np.flatnonzero(y <= top)
        at, place = (
            (inside[0], {"xytext": (3, 6), "ha": "left"}) if falling else (inside[-1], {"xytext": (4, 0), "ha": "left"})
        )
        axes.annotate(
            f"γ={gamma}",
            (_ALPHAS[at], y[at]),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
            **place,
        )


def _alpha_axis(axes: Axes) -> None:
    axes.set(xlabel="α", xlim=(0, 1))


def _legend(axes: Axes, **where: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**{"loc": "upper left", **where})


# The paper's figures.


def tokens_over_alpha(axes: Axes, results: Mapping[str, Any]) -> bool:
    _curves(axes, lambda gamma: theory.expected_tokens(_ALPHAS, gamma), 9)
    rows = [row for row in results["tokens_per_call"] if "iid on policy" in row["predicted"]][:_MOST_LINES]
    alphas = {(one["run"], one["draft"]): one["alpha"] for one in results["series"]}
    for number, (row, label) in enumerate(zip(rows, labels(rows))):
        _point(axes, alphas[row["run"], row["draft"]], row["observed"], number, label)
    _alpha_axis(axes)
    axes.set(ylabel="tokens per target call", ylim=(0.9, 9))
    _legend(axes)
    return True


def gamma_over_alpha(axes: Axes, results: Mapping[str, Any]) -> bool:
    def best(c: float) -> np.ndarray:
        return theory.optimal_gamma(_ALPHAS, c, max_gamma=30).astype(np.float64)

    for i, c in enumerate((0.02, 0.05, 0.1, 0.2, 0.5)):
        axes.step(
            _ALPHAS,
            best(c),
            where="mid",
            color="#8a8f98",
            linestyle=_LINES[i % len(_LINES)],
            linewidth=1.3,
            label=f"c = {c:g}",
        )
    rows = [{**row, **cost} for row in results["best_gammas"] for cost in row["costs"]]
    seen: set[tuple] = set()
    shown = [
        row for row in rows if not ((key := (row["draft"], row["sampling"], row["num_slots"])) in seen or seen.add(key))
    ]
    shown = shown[:_MOST_LINES]
    named = labels([{**row, "gamma": None, "num_slots": None} for row in shown])  # these are of the costs
    for number, (row, label) in enumerate(zip(shown, named)):
        costs = f"c = {row['c']['mean']:.2f}, {slots_label(row['num_slots'])}"
        _point(axes, row["alpha"], row["gamma"], number, f"{label}: {costs}")
    _alpha_axis(axes)
    axes.set(ylabel="γ* (Theorem 3.8)", ylim=(-0.5, 20), yticks=range(0, 21, 5))
    _legend(axes)
    return True


def speed_over_alpha(axes: Axes, results: Mapping[str, Any]) -> bool:
    _curves(axes, lambda gamma: theory.walltime_improvement(_ALPHAS, gamma, 0.0), 9)
    rows = [row for row in results["speedups"] if row["alpha"] and row["gamma"] != "auto"]
    rows = sorted(rows, key=lambda row: row["num_slots"])[:_MOST_LINES]
    for number, (row, label) in enumerate(zip(rows, labels(rows))):
        _point(axes, row["alpha"], row["measured"], number, label)
    axes.axhline(1, color=_INK, linewidth=0.8, alpha=0.6)
    _alpha_axis(axes)
    axes.set(ylabel="speedup", ylim=(0, 9))
    _legend(axes)
    return True


def operations_over_alpha(axes: Axes, results: Mapping[str, Any]) -> bool:
    _curves(axes, lambda gamma: theory.operations_factor(_ALPHAS, gamma, 0.0), 11.5, falling=True)
    rows = [row for row in results["operations"] if row.get("observed")]
    rows = rows[:_MOST_LINES]
    for number, (row, label) in enumerate(zip(rows, labels(rows))):
        _point(axes, row["alpha"], row["observed"], number, label)
    _alpha_axis(axes)
    axes.set(ylabel="operations, factor", ylim=(0.5, 12))
    _legend(axes, loc="upper right")
    return True


# What is told of β.


def autocorrelation(axes: Axes, results: Mapping[str, Any]) -> bool:
    rows = [one for one in results["series"] if one.get("autocorrelation")]
    rows = sorted(rows, key=lambda one: -one["positions"])[:_MOST_LINES]
    for number, (one, label) in enumerate(zip(rows, labels(rows))):
        lags = [lag["lag"] for lag in one["autocorrelation"]]
        _line(axes, lags, [lag["correlation"] for lag in one["autocorrelation"]], number, label)
    axes.axhline(0, color=_INK, linewidth=0.8, alpha=0.6)
    axes.set(xlabel="lag, tokens", ylabel="correlation of β", xscale="log")
    ticks = [1, 2, 4, 8, 16, 32]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    _legend(axes, loc="upper right")
    return bool(rows)


def _line(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], number: int, label: str) -> None:
    style = _style(number)
    axes.plot(x, [one["mean"] for one in estimates], label=label, linestyle=_LINES[number % len(_LINES)], **style)
    if all(one["low"] is not None for one in estimates):
        axes.fill_between(
            x,
            [one["low"] for one in estimates],
            [one["high"] for one in estimates],
            color=style["color"],
            alpha=0.12,
            linewidth=0,
        )


def accepted_lengths(axes: Axes, results: Mapping[str, Any]) -> bool:
    found = [(one, lengths) for one in results["series"] for lengths in one.get("accepted_lengths", ())][:3]
    rows = [{**one, "gamma": lengths["gamma"]} for one, lengths in found]
    for number, ((_, lengths), label) in enumerate(zip(found, labels(rows))):
        x = np.arange(len(lengths["observed"])) + 0.14 * (number - (len(found) - 1) / 2)
        for k, observed in zip(x, lengths["observed"]):
            _point(axes, {"mean": k, "low": None, "high": None}, observed, number, label if k == x[0] else None)
        if "geometric" in lengths:
            axes.plot(
                x,
                [one["mean"] for one in lengths["geometric"]],
                color=PALETTE[number],
                linewidth=1.2,
                linestyle=_LINES[number % len(_LINES)],
                zorder=1,
            )
    if found:
        axes.set_xticks(range(max(len(lengths["observed"]) for _, lengths in found)))
    axes.set(xlabel="accepted tokens", ylabel="share of calls (line: geometric law)", ylim=(0, None))
    _legend(axes, loc="upper right")
    return bool(found)


def dimension(axes: Axes, results: Mapping[str, Any], name: str, title: str) -> bool:
    rows = [one for one in results["series"] if one["by"].get(name)]
    chosen = [one for one in rows if one["kind"] == "scores"] or rows
    chosen = chosen[:_MOST_LINES]
    most = max((bucket["bucket"] for one in chosen for bucket in one["by"][name]), default=0)
    for number, (one, label) in enumerate(zip(chosen, labels(chosen))):
        buckets = one["by"][name]
        _line(axes, [bucket["bucket"] for bucket in buckets], [bucket["alpha"] for bucket in buckets], number, label)
    known = {bucket["bucket"]: bucket["label"] for one in chosen for bucket in one["by"][name]}
    axes.set_xticks(range(most + 1), [known.get(k, "") for k in range(most + 1)], rotation=25 if name != "place" else 0)
    axes.set(xlabel=title, ylabel="α", ylim=(0, 1))
    _legend(axes, loc="best")
    return bool(chosen)


def widths(axes: Axes, results: Mapping[str, Any]) -> bool:
    rows = [one for one in results["series"] if one.get("sample_size") and one["sample_size"]["measured"]]
    chosen = [one for one in rows if one["kind"] == "scores"] or rows
    chosen = chosen[:_MOST_LINES]
    for number, (one, label) in enumerate(zip(chosen, labels(chosen))):
        size = one["sample_size"]
        axes.plot(
            [n["positions"] for n in size["measured"]],
            [n["half_width"] for n in size["measured"]],
            linestyle="none",
            label=label,
            **_style(number),
        )
        x = np.geomspace(100, 1e6, 50)
        y = size["half_width_at_10000_tokens"] * np.sqrt(1e4 / x)
        axes.plot(x, y, color=PALETTE[number % len(PALETTE)], linestyle=_LINES[number % len(_LINES)], linewidth=1.2)
    axes.axvline(1e4, color=_INK, linewidth=0.8, alpha=0.6)
    axes.annotate(
        "the paper's 10K",
        (1e4, 1.0),
        xycoords=("data", "axes fraction"),
        fontsize=8.5,
        xytext=(3, -10),
        textcoords="offset points",
    )
    axes.set(xlabel="tokens", ylabel="half-width of α's 95% interval", xscale="log", yscale="log")
    _legend(axes, loc="lower left")
    return bool(chosen)
