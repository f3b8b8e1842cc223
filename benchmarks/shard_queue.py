"""Workers that take shards from one queue, some of them slow, all of them preempted now and then, as discrete events.

A worker is *preempted* at random moments, on average so many times an hour: the shard in progress is lost and goes back
into the queue, and after a delay a replacement loads the models and goes on. An attempt at a shard takes what its examples
take, times a random factor (stragglers), times what its machine is slower by. At the end workers wait for the last shard,
and then for the summary.

All is seeded. Every worker has random numbers of its own, so its timeline does not depend on the others until the queue is
empty: that far all of a worker's attempts are drawn and summed up at once, and only the end goes through a heap, event by
event. The result is the same to the last bit.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence

import numpy as np

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
class SimulatedJob:
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

    def __init__(self, job: SimulatedJob, number: int, seed: np.random.SeedSequence):
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


def simulate(job: SimulatedJob) -> Outcome:
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


def _end(job: SimulatedJob, workers: Sequence[Worker], queued: int) -> float:
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


def _account(job: SimulatedJob, workers: Sequence[Worker], finished: float, summary: float) -> Outcome:
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
