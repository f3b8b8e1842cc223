"""The arithmetic of a comparison: interleaved runs, seconds per token, paired ratios with intervals, output agreement.

A *cell* is one (system, batch size). Every repeat runs every cell once, in a fresh random order, so that a change of the
machine's speed (heat, neighbours, background work) falls on all systems alike; the first repeat warms caches and is
dropped. Systems are compared within repeats: the ratio of a repeat is base seconds per token / system seconds per token.
"""
from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Run:
    """One timed run of a system over the whole workload of a batch size."""

    system: str
    batch: int
    repeat: int           # 0 is the dropped one
    seconds: float        # wall clock
    cpu_seconds: float    # of the system's process, all threads; far below threads x seconds where others took the cores
    tokens: int           # generated, each sequence's EOS included, padding and start tokens not

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / self.tokens


@dataclasses.dataclass(frozen=True)
class Spread:
    """A statistic over repeats with its extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median, minimum and maximum of `values`; ValueError where there are none."""
        if not len(values):
            raise ValueError("no values: at least one repeat after the dropped one is needed")
        return cls(float(np.median(values)), float(np.min(values)), float(np.max(values)))


def interleaved(cells: Sequence[tuple[str, int]], repeats: int, seed: int) -> Iterator[tuple[int, str, int]]:
    """Yields (repeat, system, batch) for repeats 0..repeats, each a fresh random order of all cells."""
    order = random.Random(seed)
    for repeat in range(repeats + 1):
        yield from ((repeat, *cell) for cell in order.sample(list(cells), len(cells)))


def timed(call: Callable[[], list[list[int]]]) -> tuple[float, float, list[list[int]]]:
    """Seconds of wall clock and of this process's processor time that `call` took, and its result."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - start, time.process_time() - cpu_start, result


def seconds_per_token(runs: Sequence[Run], system: str, batch: int) -> dict[int, float]:
    """Seconds per generated token of one cell by repeat, the dropped first repeat left out."""
    return {r.repeat: r.seconds_per_token for r in runs if (r.system, r.batch) == (system, batch) and r.repeat > 0}


def paired_ratio(base: dict[int, float], system: dict[int, float]) -> Spread:
    """How many times faster `system` is than `base`: geometric mean over the repeats both have, with a 95% interval.

    The interval is Student's t of the logarithms: a bootstrap over five repeats is too narrow by a third.

    Args:
      base, system: seconds per token by repeat; at least two repeats in common for an interval, else it is infinite.
    """
    repeats = sorted(base.keys() & system.keys())
    if not repeats:
        raise ValueError(f"no repeat in common: base has {sorted(base)}, system has {sorted(system)}")
    logs = np.log([base[r] / system[r] for r in repeats])                              # float64[R]
    if len(logs) == 1:
        return Spread(math.exp(logs[0]), 0.0, math.inf)
    half = stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / math.sqrt(len(logs))
    return Spread(math.exp(logs.mean()), math.exp(logs.mean() - half), math.exp(logs.mean() + half))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far a system's greedy outputs equal the reference's."""

    equal_sequences: int
    sequences: int
    equal_prefix_tokens: int   # reference tokens before each sequence's first difference
    tokens: int                # of the reference


def agreement(reference: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> Agreement:
    """Compares outputs sequence by sequence; ValueError where their numbers differ."""
    if len(reference) != len(outputs):
        raise ValueError(f"{len(outputs)} outputs for {len(reference)} inputs")
    prefix = [next((i for i, (a, b) in enumerate(zip(r, o)) if a != b), min(len(r), len(o)))
              for r, o in zip(reference, outputs)]
    return Agreement(
        equal_sequences=sum(list(r) == list(o) for r, o in zip(reference, outputs)),
        sequences=len(reference),
        equal_prefix_tokens=sum(prefix),
        tokens=sum(map(len, reference)),
    )


def until_eos(tokens: Sequence[int], eos: int, limit: int) -> list[int]:
    """The generated part of a padded row: at most `limit` tokens, up to and including the first `eos`."""
    row = [int(t) for t in tokens[:limit]]
    return row[: row.index(eos) + 1] if eos in row else row
