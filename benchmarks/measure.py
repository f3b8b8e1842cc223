"""What one run of a system took and gave: seconds per token, and how far outputs agree.

A *cell* is one (system, batch size). In which order cells run, and the ratio of two systems with its interval, is
`pipeline.benchmarking.paired`'s: all cells are one group, and the first repeat warms caches and is dropped.
"""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class TimedRun:
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


def timed(call: Callable[[], list[list[int]]]) -> tuple[float, float, list[list[int]]]:
    """Seconds of wall clock and of this process's processor time that `call` took, and its result."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - start, time.process_time() - cpu_start, result


def seconds_per_token(runs: Sequence[TimedRun], system: str, batch: int) -> list[float]:
    """Seconds per generated token of one cell, repeat by repeat, the dropped first one left out.

    Two cells' are compared with `pipeline.benchmarking.paired.Ratio.of(base, system)`: how many times faster the system is.
    """
    mine = {r.repeat: r.seconds_per_token for r in runs if (r.system, r.batch) == (system, batch) and r.repeat > 0}
    return [mine[repeat] for repeat in sorted(mine)]


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
