"""A job of 10^8 examples on 256 workers, simulated from measured costs: how large should a work shard be?

    python -m benchmarks.simulation [--costs=FILE] [--examples=1e8] [--workers=256] [--slots=8] [--figure=FILE] [--output=FILE]

Workers take shards from one queue. A worker is *preempted* at random moments, on average so many times an hour: the shard
in progress is lost and goes back into the queue, and after a delay a replacement loads the models and goes on. An attempt
at a shard takes what its examples take, times a random factor (stragglers), times what its machine is slower by. At the
end workers wait for the last shard, and then for the summary.

Discrete events, seeded. Every worker has random numbers of its own, so its timeline does not depend on the others until
the queue is empty: that far all of a worker's attempts are drawn and summed up at once, and only the end goes through a
heap, event by event. The result is the same to the last bit.

`--costs` takes what `benchmarks.stages --output` writes; docs/shards.md has the results and where the other costs come
from.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SHARDS = (16, 64, 256, 1024, 4096, 16384)
PREEMPTIONS_PER_HOUR = {"never": 0.0, "1 a day": 1 / 24, "1 in 6 h": 1 / 6, "1 an hour": 1.0}
MEASURED = Path(__file__).resolve().parent / "simulation_costs.json"
_MARGIN = 20  # shards per worker that are left to the heap: more than start while the slowest attempt lasts
_BLOCK = 4096
_DRAIN_SHARDS = 8


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds.

    Attributes:
      decode: per example, with every slot in use.
      read, commit: per example; reading includes tokenising.
      per_shard: what a shard costs whatever its size: requests to the store, notes, Beam.
      load: of models and programs, when a worker starts.
      restart: from a preemption until there is a replacement that can load.
      list_part: per part at the end, by one worker; footer: per part at the end, shared by all workers.
      overlapped: whether other threads read and commit while one decodes.
    """

    decode: float
    read: float = 0.0
    commit: float = 0.0
    per_shard: float = 0.0
    load: float = 0.0
    restart: float = 0.0
    list_part: float = 0.0
    footer: float = 0.0
    overlapped: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """What is simulated.

    Attributes:
      examples: in all.
      shard: examples per shard.
      workers: how many.
      costs: of everything.
      occupancy: share of slots in use over a shard of this size, by `drain_occupancy`.
      preemptions: per second and worker.
      spread: standard deviation of the logarithm of an attempt's random factor, whose mean is 1.
      slow_share, slow_factor: share of the workers that take so many times as long.
      seed: of all random numbers.
    """

    examples: int
    shard: int
    workers: int
    costs: Costs
    occupancy: float = 1.0
    preemptions: float = 0.0
    spread: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 1.0
    seed: int = 0

    @property
    def shards(self) -> int:
        return -(-self.examples // self.shard)

    @property
    def parts(self) -> dict[str, float]:
        """What the seconds of an attempt are spent on, at factor 1: decoding, waiting for the last rows, all else."""
        costs = self.costs
        decode = costs.decode * self.shard
        drain = decode / self.occupancy - decode
        beside = (costs.read + costs.commit) * self.shard + costs.per_shard
        if costs.overlapped:
            beside = max(0.0, beside - decode - drain)
        return {"decode": decode, "drain": drain, "beside": beside}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
      makespan: seconds from the launch to the summary.
      shares: of all worker-seconds: "decode", with full slots; "drain", slots that wait for a shard's last rows;
        "beside", reading, committing and requests; "load" at the start; "lost", attempts that were preempted; "restart",
        being replaced, loading included; "idle", at the end, the summary included.
      preemptions: how many attempts were lost.
      parts: objects that hold results.
    """

    makespan: float
    shares: dict[str, float]
    preemptions: int
    parts: int

    @property
    def wasted(self) -> float:
        """Share of worker-seconds that decoded nothing that was kept, or decoded with empty slots."""
        return 1.0 - self.shares["decode"]


class Worker:
    """One worker's timeline, from its own random numbers."""

    def __init__(self, job: Job, number: int, seed: np.random.SeedSequence):
        durations, uptimes = seed.spawn(2)
        self._durations, self._uptimes = np.random.default_rng(durations), np.random.default_rng(uptimes)
        slow = number < round(job.slow_share * job.workers)
        self._job, self._base = job, sum(job.parts.values()) * (job.slow_factor if slow else 1.0)
        self._block, self._used = np.empty(0), 0
        self.clock = job.costs.load
        self.preempted = self.clock + self._uptime()
        self.done = self.losses = 0
        self.worked = self.lost = 0.0

    def _uptime(self) -> float:
        rate = self._job.preemptions
        return self._uptimes.exponential(1 / rate) if rate else math.inf

    def _next(self) -> np.ndarray:
        """Seconds of the next attempts, at least one: what is left of the current block."""
        if self._used == len(self._block):
            spread = self._job.spread
            normal = self._durations.standard_normal(_BLOCK) if spread else np.zeros(_BLOCK)
            self._block, self._used = self._base * np.exp(spread * normal - spread**2 / 2), 0
        return self._block[self._used :]

    def advance(self, until: float) -> None:
        """Does all attempts that begin before `until`, one after the other."""
        while self.clock < until:
            # edges[i] is where attempt i begins and edges[i + 1] where it would end.
            edges = np.cumsum(np.concatenate([[self.clock], self._next()]))
            uninterrupted = int(np.searchsorted(edges[1:], self.preempted, side="right"))
            begun = int(np.searchsorted(edges[:-1], until, side="left"))
            count = min(uninterrupted, begun)
            self.done, self._used = self.done + count, self._used + count
            self.worked, self.clock = self.worked + float(edges[count] - edges[0]), float(edges[count])
            if count < begun:
                self._used += 1
                self._lose()

    def _lose(self) -> None:
        """The attempt that begins now is preempted."""
        self.losses, self.lost = self.losses + 1, self.lost + self.preempted - self.clock
        self.clock = self.preempted + self._job.costs.restart + self._job.costs.load
        self.preempted = self.clock + self._uptime()

    def attempt(self, now: float) -> tuple[float, bool]:
        """Begins one attempt. Returns when it is over and whether it was lost; `clock` is when the worker can go on."""
        if self.preempted < now:  # while it had nothing to do, which costs nothing
            self.preempted = now + self._uptime()
        self.clock, seconds = now, float(self._next()[0])
        self._used += 1
        if now + seconds <= self.preempted:
            self.done, self.worked, self.clock = self.done + 1, self.worked + seconds, now + seconds
            return self.clock, False
        over = self.preempted
        self._lose()
        return over, True


def simulate(job: Job) -> Outcome:
    """Runs `job`."""
    seeds = np.random.SeedSequence(job.seed).spawn(job.workers)
    workers = [Worker(job, number, seed) for number, seed in enumerate(seeds)]
    left, fastest, margin = job.shards, sum(job.parts.values()), _MARGIN * job.workers
    until = job.costs.load
    while left > 3 * margin:  # no worker is that fast, so the queue is not empty before `until`
        until += 0.8 * (left - margin) * fastest / job.workers
        for worker in workers:
            worker.advance(until)
        left = job.shards - sum(worker.done for worker in workers)
    finished = _end(job, workers, left)
    summary = job.shards * (job.costs.list_part + job.costs.footer / job.workers)
    return _account(job, workers, finished, summary)


def _end(job: Job, workers: Sequence[Worker], queued: int) -> float:
    """Runs the last `queued` shards event by event. Returns when the last one is done."""
    finished = 0.0
    events = [(worker.clock, number, "free") for number, worker in enumerate(workers)]
    heapq.heapify(events)
    idle: list[int] = []
    unfinished = queued
    while unfinished:
        now, number, what = heapq.heappop(events)
        if what == "lost":
            queued += 1
            heapq.heappush(events, (workers[number].clock, number, "free"))
            if not idle:
                continue
            number = idle.pop()
        elif what == "done":
            unfinished -= 1
            finished = max(finished, now)
        if not queued:
            idle.append(number)
            continue
        queued -= 1
        over, lost = workers[number].attempt(now)
        heapq.heappush(events, (over, number, "lost" if lost else "done"))
    return finished


def _account(job: Job, workers: Sequence[Worker], finished: float, summary: float) -> Outcome:
    makespan, parts = finished + summary, job.parts
    total = makespan * job.workers
    worked = sum(worker.worked for worker in workers) / sum(parts.values())
    # A replacement that is not there yet when the last shard is done is not waited for.
    away = sum(
        worker.losses * (job.costs.restart + job.costs.load) - max(0.0, worker.clock - finished) for worker in workers
    )
    seconds = {name: worked * of_attempt for name, of_attempt in parts.items()}
    seconds["load"] = job.costs.load * job.workers
    seconds["lost"] = sum(worker.lost for worker in workers)
    seconds["restart"] = away
    seconds["idle"] = total - sum(seconds.values())
    shares = {name: value / total for name, value in seconds.items()}
    return Outcome(makespan, shares, sum(worker.losses for worker in workers), job.shards)


def expected_seconds(seconds: float, preemptions: float, restart: float = 0.0) -> float:
    """Expected time until an attempt of `seconds` goes through, restarts included: (exp(λs) - 1)(1/λ + restart)."""
    if not preemptions:
        return seconds
    return math.expm1(preemptions * seconds) * (1 / preemptions + restart)


def drain_occupancy(texts: Sequence[Sequence[int]], shard: int, slots: int, seed: int = 0) -> float:
    """Share of slots in use while the engine decodes shards of so many texts, refilling slots as it does.

    Args:
      texts: (input tokens, target calls) of texts to draw from.
      shard: texts in a shard.
      slots: rows that are decoded together.
      seed: of the drawing.
    """
    texts, random = np.asarray(texts), np.random.default_rng(seed)
    used = iterations = 0
    for _ in range(_DRAIN_SHARDS):
        drawn = texts[random.integers(len(texts), size=shard)]
        calls = drawn[np.argsort(-drawn[:, 0], kind="stable"), 1]  # the longest inputs first
        used, iterations = used + int(calls.sum()), iterations + _shard_iterations(calls, slots)
    return used / (iterations * slots)


def _shard_iterations(calls: np.ndarray, slots: int) -> int:
    """Iterations until all rows are done, where finished ones are replaced when an eighth of the slots is free."""
    rows, given, iterations = np.zeros(slots, np.int64), 0, 0
    while given < len(calls) or rows.any():
        free = np.flatnonzero(rows == 0)[: len(calls) - given]
        rows[free] = calls[given : given + len(free)]
        given += len(free)
        running = np.sort(rows[rows > 0])
        step = running[min(max(1, slots // 8), len(running)) - 1] if given < len(calls) else running[-1]
        iterations += int(step)
        rows = np.maximum(rows - step, 0)
    return iterations


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


def sweep(scenario: Scenario, texts, *, examples: int, workers: int, spread: float, slow: tuple[float, float], seed: int):
    """[(shard, preemptions' name, Outcome)] over all sizes and rates."""
    for shard in SHARDS:
        occupancy = drain_occupancy(texts, shard, scenario.slots)
        for name, per_hour in PREEMPTIONS_PER_HOUR.items():
            job = Job(
                examples, shard, workers, scenario.costs, occupancy, per_hour / 3600, spread, slow[0], slow[1], seed
            )  # fmt: skip
            yield shard, name, simulate(job)


def table(rows: Sequence[tuple[int, str, Outcome]]) -> str:
    """Markdown of one scenario: makespan and waste for every size and rate, and what the waste is at 1 in 6 hours."""
    lines = [
        "| examples per shard | parts | " + " | ".join(f"{name}: hours, wasted" for name in PREEMPTIONS_PER_HOUR)
        + " | drain | beside | lost | restart | idle |",
        "|--:|--:|" + "--:|" * (len(PREEMPTIONS_PER_HOUR) + 5),
    ]  # fmt: skip
    for shard in dict.fromkeys(shard for shard, _, _ in rows):
        of = {name: outcome for size, name, outcome in rows if size == shard}
        cells = [f"{outcome.makespan / 3600:.2f}, {outcome.wasted:.1%}" for outcome in of.values()]
        shares = of["1 in 6 h"].shares
        cells += [f"{shares[name]:.1%}" for name in ("drain", "beside", "lost", "restart", "idle")]
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
