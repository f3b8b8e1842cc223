"""The terminal's view of benchmark.json, and its remarks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.benchmarking.settings import Setting, slots
from pipeline.benchmarking.verdict import of_benchmark
from pipeline.job.terminal import add_row
from transforms.statistics.intervals import LEVEL


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Prints the verdict on benchmark.json's content, tables that fit 80 columns, and what is not as it should be."""
    if sentence := of_benchmark(results):
        console.print(sentence, "", style="bold", highlight=False, markup=False)
    for cost in results["costs"]:
        rows = [row for row in results["rows"] if row["num_slots"] == cost["num_slots"]]
        console.print(_settings_table(rows, slots(cost["num_slots"])), "")
    console.print(_costs_table(results["costs"]), "")
    for text in remarks(results):
        console.print(text, style="bold", highlight=False, markup=False)


def _table(title: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
    )


def _settings_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    table, speedup = _table(title), f"speedup [{LEVEL:.0%}]"
    for name in ("temp.", "how", "γ"):
        table.add_column(name)
    for name in ("tok/s", speedup, "α", "Thm 3.8", "with pass cost", "differ"):
        table.add_column(name, justify="right", no_wrap=name in (speedup, "α"))
    for row in rows:
        plain, predicted = row["gamma"] == 0, row["predicted"]
        if plain and table.row_count:
            table.add_section()
        comparable = row["same_tokens_expected"] and not plain
        add_row(
            table,
            f"{row['temperature']:g}",
            Setting(*(row[field.name] for field in dataclasses.fields(Setting))).name,
            "" if plain else str(row["gamma"]),
            f"{row['tokens_per_second']:,.0f}",
            "1" if plain else _shown(row["speedup"]),
            f"{row['alpha']['mean']:.3f}" if row["alpha"] else "",
            f"{predicted['theorem_3_8']:.2f}" if predicted else "",
            f"{predicted['with_pass_cost']:.2f}" if predicted else "",
            f"{max(row['differing_generations'])}/{row['generations']}" if comparable else "",
        )
    return table


def _costs_table(costs: Sequence[Mapping[str, Any]]) -> Table:
    table, level = _table("Single passes"), f"[{LEVEL:.0%}]"
    for name in ("slots", "target pass", f"c {level}", "positions", f"cost of a pass {level}"):
        table.add_column(name, justify="right")
    for cost in costs:
        plain = str(cost["plain_positions"])
        one = cost["target_seconds"][plain]
        first = [str(cost["num_slots"]), f"{1e3 * sum(one) / len(one):.3f} ms", _shown(cost["c"], 3)]
        wider = [(width, _shown(ratio)) for width, ratio in cost["pass_cost"].items() if width != plain]
        for i, cells in enumerate(wider or [("", "")]):
            add_row(table, *(["", "", ""] if i else first), *cells)
        table.add_section()
    return table


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers has to know about this run."""
    found, rows = [], results["rows"]
    if differing := [row for row in rows if row["same_tokens_expected"] and max(row["differing_generations"])]:
        found.append(
            f"{len(differing)} settings differ from plain decoding in some texts where they should not: in float32 "
            "only ties closer than about 1e-4 may; in bfloat16 passes over one and several positions round differently."
        )
    if compiled := sum(sum(row["compilations"]) for row in rows):
        found.append(f"{compiled} programs were compiled while decoding: timings include it.")
    if drained := sorted({row["num_slots"] for row in rows if row["slot_occupancy"] < 0.8}):
        found.append(
            f"Slots were idle more than a fifth of the time at num_slots {', '.join(map(str, drained))}: "
            f"{results['inputs']['examples']} examples are few for it; see --examples."
        )
    if results["config"]["decoding"]["lenience"] < 1:
        found.append("Lenience is below 1: outputs are biased towards the draft, not plain decoding's.")
    return found


def _shown(ratio: Mapping[str, Any] | None, digits: int = 2) -> str:
    if ratio is None:
        return "none"
    return f"{ratio['mean']:.{digits}f} [{ratio['low']:.{digits}f}, {ratio['high']:.{digits}f}]"
