"""Comparing settings by repeats: in which order they run, and the interval of their ratio.

*Order.* Settings that are compared with each other form a group. Every repeat runs every group once, in a random
order, and within the group every setting, in a random order: what disturbs the machine for longer than a group takes
falls on all of its settings alike, and no setting always follows the same other one. Repeat 0 warms everything up and
is not counted.

*Interval.* A speedup is the geometric mean over repeats of (plain seconds per token / seconds per token), both from
the same repeat. Its interval is Student's t interval of the mean log ratio. With the usual 5 to 10 repeats it keeps
its level for roughly normal log ratios, where a percentile bootstrap over so few repeats is too narrow (it divides by
n in place of n - 1 and has the normal's quantiles in place of t's: 0.74 of the t interval's width at 7 repeats).
"""

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from transforms.statistics.intervals import half_width

METHOD = "geometric mean over repeats of the ratio within a repeat; Student's t interval of the mean log ratio"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio measured in several repeats.

    Attributes:
      mean: geometric mean over repeats.
      low, high: ends of the interval at LEVEL; None where fewer than two repeats leave it unknown.
      repeats: how many were counted.
    """

    mean: float
    low: float | None
    high: float | None
    repeats: int

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> "Ratio":
        """The ratio of two measurements, paired by repeat. See the module's docstring.

        Raises:
          ValueError: different numbers of repeats, none, or values that are not above 0.
        """
        if len(numerators) != len(denominators) or not numerators:
            raise ValueError(f"{len(numerators)} and {len(denominators)} repeats; as many of both, at least 1, are needed")
        if min(*numerators, *denominators) <= 0:
            raise ValueError("a measurement is 0 or negative; ratios need positive ones")
        logs = np.log(numerators) - np.log(denominators)  # float64[repeats]
        count, mean = len(logs), float(np.mean(logs))
        if count < 2:
            return cls(math.exp(mean), None, None, count)
        margin = float(half_width(np.var(logs, ddof=1) / count, count - 1))
        return cls(math.exp(mean), math.exp(mean - margin), math.exp(mean + margin), count)

    def __format__(self, digits: str) -> str:
        """f"{ratio:.2f}" is "1.30 (1.21 to 1.39)", or "1.30" where the interval is unknown."""
        mean = format(self.mean, digits)
        return mean if self.low is None else f"{mean} ({format(self.low, digits)} to {format(self.high, digits)})"


def interleaved(groups: Sequence[Sequence[T]], repeats: int, seed: int) -> Iterator[tuple[int, list[T]]]:
    """Yields (repeat, settings of one group in the order to run) for repeats 0, not to be counted, to `repeats`."""
    order = random.Random(seed)
    for repeat in range(repeats + 1):
        for group in order.sample(list(groups), len(groups)):
            yield repeat, order.sample(list(group), len(group))
