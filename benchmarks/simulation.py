"""A job of 10^8 examples on 256 workers, simulated from measured costs: how large should a work shard be?

    python -m benchmarks.simulation [--costs=FILE] [--examples=1e8] [--workers=256] [--slots=8] [--figure=FILE] [--output=FILE]

What is simulated, and how: `benchmarks.shard_queue`.

`--costs` takes what `benchmarks.stages --output` writes; docs/shards.md has the results and where the other costs come
from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shard_queue import Costs, Outcome, SimulatedJob, drain_occupancy, simulate

SHARDS = (16, 64, 256, 1024, 4096, 16384)
PREEMPTIONS_PER_HOUR = {"never": 0.0, "1 a day": 1 / 24, "1 in 6 h": 1 / 6, "1 an hour": 1.0}
MEASURED = Path(__file__).resolve().parent / "simulation_costs.json"

RESTART = 180.0
"""Seconds until a preempted machine is replaced. Assumed."""
STORE_REQUEST, STORE_REQUESTS = 0.05, 9
"""Seconds of a small request to gs://, assumed; how many a shard needs, counted in `transforms`."""
LOCAL_FOOTER = 0.0006
"""Reading a footer on a local disk: a profile of 200 of them, on one core."""
THREADS = 12
"""Of a worker, where there are several: while one decodes, others read and commit; at the end all read footers. Assumed."""
LIST_PART = 0.3 / 1000
"""Listing takes pages of 1,000 names, 0.3 s each. Assumed."""
XXL_DECODE = {1: 0.121, 8: 0.0151}
"""T5 v1.1 XXL with T5-small on one chip of v4, 40 tokens per example: docs/tpu.md's bounds, γ = 7, α = 0.75."""
XXL_LOAD = 45.0 + 34.0
"""22.4 GB at 0.5 GB/s, assumed, and compiling its loop, measured on one core (docs/tpu.md)."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Costs under a name, with the number of slots that they are of."""

    name: str
    slots: int
    costs: Costs


def scenarios(measured: Sequence[dict]) -> list[Scenario]:
    """The studied ones: of what was measured, on a local disk and on a store, and of T5 v1.1 XXL as predicted."""
    found = []
    for one in measured:
        costs = Costs(
            decode=one["decode_per_example"],
            read=one["read_per_example"],
            commit=one["commit_per_example"],
            per_shard=one["per_shard"],
            load=one["load"],
            restart=RESTART,
            footer=LOCAL_FOOTER,
        )
        remote = dataclasses.replace(
            costs, per_shard=costs.per_shard + STORE_REQUESTS * STORE_REQUEST, list_part=LIST_PART, footer=3 * STORE_REQUEST
        )
        name = f"pair, {one['slots']} slot{'s' * (one['slots'] > 1)}"
        found += [Scenario(f"{name}, local disk", one["slots"], costs), Scenario(f"{name}, gs://", one["slots"], remote)]
        threads = dataclasses.replace(remote, footer=remote.footer / THREADS, overlapped=True)
        found.append(Scenario(f"{name}, gs://, threads", one["slots"], threads))
    for slots, decode in XXL_DECODE.items():
        costs = dataclasses.replace(threads, decode=decode, load=XXL_LOAD)
        found.append(Scenario(f"XXL, {slots} slot{'s' * (slots > 1)}, gs://, threads", slots, costs))
    return found


def sweep(scenario: Scenario, texts, *, examples: int, workers: int, spread: float, slow: tuple[float, float], seed: int):
    """[(shard, preemptions' name, Outcome)] over all sizes and rates."""
    for shard in SHARDS:
        occupancy = drain_occupancy(texts, shard, scenario.slots)
        for name, per_hour in PREEMPTIONS_PER_HOUR.items():
            job = SimulatedJob(
                examples=examples,
                shard=shard,
                workers=workers,
                costs=scenario.costs,
                occupancy=occupancy,
                preemptions=per_hour / 3600,
                spread=spread,
                slow_share=slow[0],
                slow_factor=slow[1],
                seed=seed,
            )
            yield shard, name, simulate(job)


def table(rows: Sequence[tuple[int, str, Outcome]]) -> str:
    """Markdown of one scenario: makespan and waste for every size and rate, and what the waste is at 1 in 6 hours."""
    kinds = ("drain", "beside", "lost", "restart", "idle")
    hours = (f"{name}: hours, wasted" for name in PREEMPTIONS_PER_HOUR)
    head = ("examples per shard", "parts", *hours, *kinds)
    lines = [f"| {' | '.join(head)} |", "|" + "--:|" * len(head)]
    for shard in dict.fromkeys(shard for shard, _, _ in rows):
        of = {name: outcome for size, name, outcome in rows if size == shard}
        cells = [f"{outcome.makespan / 3600:.2f}, {outcome.wasted:.1%}" for outcome in of.values()]
        shares = of["1 in 6 h"].shares
        cells += [f"{shares[name]:.1%}" for name in kinds]
        lines.append(f"| {shard:,} | {of['never'].parts:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(found: dict[str, list[tuple[int, str, Outcome]]], rate: str = "1 in 6 h") -> str:
    """Markdown: what is wasted at one rate of preemptions, a row per scenario, the least in bold."""
    lines = [
        f"| wasted, preempted {rate} | " + " | ".join(f"{shard:,}" for shard in SHARDS) + " |",
        "|---|" + "--:|" * len(SHARDS),
    ]
    for name, rows in found.items():
        wasted = {shard: outcome.wasted for shard, which, outcome in rows if which == rate}
        least = min(wasted.values())
        cells = [f"**{share:.1%}**" if share == least else f"{share:.1%}" for share in wasted.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: dict[str, list[tuple[int, str, Outcome]]], path: str) -> None:
    """The share of worker-seconds that is wasted, over the shard's size, a panel per scenario."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.9 * rows), sharex=True, sharey=True, squeeze=False)
    for axis, (name, outcomes) in zip(axes.flat, found.items()):
        for rate, colour in zip(PREEMPTIONS_PER_HOUR, ("#4c72b0", "#55a868", "#dd8452", "#c44e52")):
            of = [(shard, 100 * outcome.wasted) for shard, which, outcome in outcomes if which == rate]
            axis.plot(*zip(*of), marker="o", markersize=3, color=colour, label=rate)
        axis.axvline(256, color="0.7", linewidth=0.8, linestyle="--")
        axis.set(title=name, xscale="log", yscale="log", ylim=(0.3, 100), xticks=SHARDS)
        axis.set_xticklabels([f"{shard:,}" for shard in SHARDS], fontsize=7)
        axis.tick_params(labelbottom=True)
        axis.set_yticks([0.3, 1, 3, 10, 30, 100], ["0.3", "1", "3", "10", "30", "100"])
        axis.minorticks_off()
        axis.title.set_fontsize(9)
        axis.grid(color="0.92")
    for axis in axes[-1]:
        axis.set_xlabel("examples per shard")
    for axis in axes[:, 0]:
        axis.set_ylabel("wasted worker time, %")
    unused = list(axes.flat)[len(found) :]
    for axis in unused:
        axis.set_axis_off()
    lines, names = axes.flat[0].get_legend_handles_labels()
    place = (unused or [axes.flat[0]])[0]
    place.legend(lines, names, title="a worker is preempted", fontsize=8, title_fontsize=8, loc="center")
    figure.tight_layout()
    figure.savefig(path, dpi=72)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--costs", default=str(MEASURED), help="JSON file of benchmarks.stages")
    parser.add_argument("--examples", type=float, default=1e8)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--slots", default="", help="only scenarios of these numbers of slots, comma-separated")
    parser.add_argument("--spread", type=float, default=0.2, help="of the logarithm of an attempt's random factor")
    parser.add_argument("--slow-share", type=float, default=0.05, help="of the workers")
    parser.add_argument("--slow-factor", type=float, default=1.5, help="how many times as long slow workers take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="", help="PNG file")
    parser.add_argument("--output", default="", help="JSON file")
    args = parser.parse_args(argv)
    measured = json.loads(Path(args.costs).read_text())["costs"]
    wanted = [int(slots) for slots in args.slots.split(",") if slots]
    found = {}
    for scenario in scenarios(measured):
        if wanted and scenario.slots not in wanted:
            continue
        settings = dict(examples=int(args.examples), workers=args.workers, spread=args.spread, seed=args.seed)
        texts = measured[0]["texts"]
        found[scenario.name] = list(sweep(scenario, texts, slow=(args.slow_share, args.slow_factor), **settings))
        print(f"\n#### {scenario.name}\n\n{table(found[scenario.name])}", flush=True)
    print(f"\n#### {args.examples:,.0f} examples, {args.workers} workers\n\n{summary(found)}")
    if args.figure:
        draw(found, args.figure)
    if args.output:
        result = {
            name: [[shard, rate, dataclasses.asdict(outcome)] for shard, rate, outcome in rows]
            for name, rows in found.items()
        }
        Path(args.output).write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
