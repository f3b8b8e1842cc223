"""Plans for people."""

import functools

from rich.console import Console

from pipeline.job.terminal import add_row, facts
from pipeline.planning import chips


def _gib(count: float) -> str:
    return f"{count / chips.GIB:.2f} GiB"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"


def measured_lines(result: dict) -> list[str]:
    """What was measured on this machine, rounded, and what follows for the α that is assumed."""
    lines = [f"Measured here, on {result['device']}, num_slots {result['num_slots']}:"]
    for row in result["passes"]:
        beside = f", roofline {milliseconds(row['roofline'])}, ratio {row['ratio']:.2f}" if "ratio" in row else ""
        positions = f"{row['positions']} position{'s' if row['positions'] > 1 else ''}"
        lines.append(f"{row['model']} over {positions}: {milliseconds(row['seconds'])}{beside}")
    if "speedup" in result:
        lines.append(
            f"c = {result['c']:.3f}. Speedup {result['speedup']:.2f} with γ = {result['gamma']}, if α is {result['alpha']:g}: "
            "assumed, not measured; --alpha=A assumes another."
        )
    return lines


def report(result: dict, console: Console) -> None:
    """Prints a plan."""
    held, said = result["memory"], result["predicted"]
    table = facts([])
    add = functools.partial(add_row, table)
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    add("slice", f"{result['topology']}, {result['chips']} chips used: {mesh}; draft: {result['draft']}")
    add("slots", str(result["num_slots"]))
    how = "compiled by libtpu" if held["compiled"] else "estimated from shapes, nothing was compiled"
    add("memory per chip", f"{_gib(held['total'])} of {_gib(held['limit'])} ({how})")
    for name in ("parameters", "states", "staged", "temporary"):
        add(f"  {name}", _gib(held[name]))
    for name, program in result["programs"].items():
        if "collectives" in program:
            copies = program["cache_copies"]
            shown = f"{len(copies)} ({', '.join(copies[:4])}, ...)" if len(copies) > 4 else ", ".join(copies) or "none"
            add(f"{name}", f"whole caches copied in the loop: {shown}")
            counts = ", ".join(f"{count} {kind}" for kind, count in program["collectives"].items()) or "no collectives"
            add("", f"{counts}, {program['collective_bytes'] / 1e6:.2f} MB per iteration")
    add("target pass", f"{milliseconds(said['target_seconds'])} at least")
    add(f"over {said['gamma'] + 1} positions", f"{milliseconds(said['verify_seconds'])} at least")
    add("draft pass", f"{milliseconds(said['draft_seconds'])} at least; c = {said['c']:.4f}")
    best = f"{said['best_speedup']:.2f} with γ = {said['best_gamma']}, the best"
    add(f"speedup, α = {said['alpha']:g}", f"{said['speedup']:.2f} with γ = {said['gamma']}; {best}")
    add("tokens per second", f"{said['tokens_per_second']:,.0f} at most, plain {said['plain_tokens_per_second']:,.0f}")
    if "cost_per_million_tokens" in said:
        plain = said["plain_cost_per_million_tokens"]
        add("per million tokens", f"{said['cost_per_million_tokens']:.3f} at least, plain {plain:.3f}, in the price's money")
    console.print(table)
    for line in result["undivided"]:
        console.print(line, markup=False)
    if not held["fits"]:
        console.print(f"Does not fit: {_gib(held['short'])} too much on each chip. What would: {held['advice']}.", markup=False)
