"""Sums over texts with their bootstrap replicates: exact, mergeable, the one machine under all statistics.

A shard's texts become columns (one whole number per text and column), and the columns, multiplied by the texts' bootstrap
weights, become `Sums`. All numbers are whole (β and other fractions in fixed point), so that merging is exact: the result is
the same to the last bit for any sharding and order.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from transforms.statistics.intervals import INTERVAL, LEVEL, NUM_REPLICATES, estimate, poisson_weights, ratio

FIXED_BITS = 26  # 1.5e-8, finer than the float32 that β is stored in; room for 10^11 tokens


@dataclasses.dataclass(eq=False)
class Sums:
    """Named sums over texts with their bootstrap replicates: int64[1 + NUM_REPLICATES] each, the first unweighted.

    `counts` are plain numbers, `fractions` are in fixed point; a name that is missing is 0. Values of tokens are a fraction
    `name` and two counts: `name#`, how many there are, and `name@`, how many examples have any.
    """

    counts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fractions: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def merge(self, other: "Sums") -> "Sums":
        """Sums over the texts of both."""
        return Sums(_added(self.counts, other.counts), _added(self.fractions, other.fractions))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sums):
            return NotImplemented
        pairs = ((self.counts, other.counts), (self.fractions, other.fractions))
        return all(np.array_equal(a.get(name, ZEROS), b.get(name, ZEROS)) for a, b in pairs for name in a.keys() | b.keys())

    def count(self, name: str) -> np.ndarray:
        """float64[1 + NUM_REPLICATES]."""
        return self.counts.get(name, ZEROS).astype(np.float64)

    def fraction(self, name: str) -> np.ndarray:
        """float64[1 + NUM_REPLICATES]."""
        return self.fractions.get(name, ZEROS) / (1 << FIXED_BITS)

    def mean(self, name: str, suffix: str = "") -> np.ndarray:
        """float64[1 + NUM_REPLICATES], of the values of tokens, NaN where there are none."""
        return ratio(self.fraction(name + suffix), self.count(f"{name}#{suffix}"))

    def buckets(self, name: str) -> list[int]:
        """Numbers k for which there is a count `name/k`, increasing."""
        start = name + "/"
        return sorted(int(key[len(start) :]) for key in self.counts if key.startswith(start) and key[len(start) :].isdigit())

    def alpha(self, name: str, definition: str, *, examples: float) -> dict | None:
        """`mean` with its interval and what it is, for summary.json; None where there is none. `examples`: as of `estimate`."""
        if (found := estimate(self.mean(name), examples, proportion=True)) is None:
            return None
        positions = int(self.count(name + "#")[0])
        return {**found, "level": LEVEL, "positions": positions, "definition": definition, "interval": INTERVAL}

    def to_json(self) -> dict[str, dict[str, list[int]]]:
        return {kind: {name: v.tolist() for name, v in sorted(named.items())} for kind, named in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Mapping[str, Sequence[int]]]) -> "Sums":
        """Inverse of `to_json`; other names among `values` are left alone."""
        kinds = (values["counts"], values["fractions"])
        return cls(*({name: np.array(v, np.int64) for name, v in named.items()} for named in kinds))


ZEROS = np.zeros(1 + NUM_REPLICATES, np.int64)


def _added(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: a.get(name, ZEROS) + b.get(name, ZEROS) for name in a.keys() | b.keys()}


@dataclasses.dataclass(frozen=True)
class Totals:
    """What shards add up to, as classes that have more fields: numbers, `Sums`, tuples of numbers, and numbers by name.

    Without arguments it is the neutral element of `merge`.

    Attributes:
      parts: committed shards.
      errors: what failed, by stage.
    """

    parts: int = 0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)

    def merge(self, other: Self) -> Self:
        """The totals of both."""
        return type(self)(**{name: _add(value, getattr(other, name)) for name, value in vars(self).items()})

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())


def _add(a, b):
    if isinstance(a, Sums):
        return a.merge(b)
    if isinstance(a, dict):
        return {name: a.get(name, 0) + b.get(name, 0) for name in sorted(a.keys() | b.keys())}
    if isinstance(a, tuple):
        return tuple(x + y for x, y in zip(a, b))
    return a + b


def quotient(a: float, b: float) -> float | None:
    """a / b for JSON, None where b is 0."""
    return a / b if b else None


class Columns:
    """Collects columns: a whole number per text."""

    def __init__(self, example_ids: Sequence[str], lengths: np.ndarray):
        """
        Args:
          example_ids: n ids; texts of one example are adjacent, and drawn together by the bootstrap.
          lengths: int64[n], tokens of each text; N in all.
        """
        self._ids, self._size = example_ids, len(lengths)
        self._row = np.repeat(np.arange(self._size), lengths)
        self._columns: dict[str, dict[str, np.ndarray]] = {"counts": {}, "fractions": {}}

    def count(self, name: str, values: np.ndarray) -> None:
        """Adds a column of whole numbers, int64[n]."""
        self._columns["counts"][name] = np.asarray(values, np.float64)

    def fraction(self, name: str, values: np.ndarray) -> None:
        """Adds a column of numbers of any kind, float64[n], rounded to fixed point."""
        self._columns["fractions"][name] = np.rint(np.asarray(values, np.float64) * (1 << FIXED_BITS))

    def tokens(self, name: str, values: np.ndarray, where: np.ndarray, bucket: np.ndarray | None = None) -> None:
        """Adds Σ values over the tokens of each text `where` it says, their number, and that of examples that have any.

        Each value is rounded to fixed point first, so that sums do not depend on their order.

        Args:
          name: the fraction is `name`, the counts `name#` and `name@`; with buckets, `name/k`, `name#/k` and `name@/k`.
          values: float64[N].
          where: bool[N].
          bucket: int64[N], or None for one sum.
        """
        row, fixed = self._row[where], np.rint(values[where] * (1 << FIXED_BITS))
        size = 1 if bucket is None else int(bucket[where].max(initial=-1)) + 1
        index = row * size + (0 if bucket is None else bucket[where])
        sums = np.bincount(index, weights=fixed, minlength=self._size * size).reshape(self._size, size)
        counts = np.bincount(index, minlength=self._size * size).reshape(self._size, size)
        for k in range(size):
            if bucket is None or counts[:, k].any():
                suffix = "" if bucket is None else f"/{k}"
                self._columns["fractions"][name + suffix] = sums[:, k]
                self._columns["counts"][f"{name}#{suffix}"] = counts[:, k].astype(np.float64)
                self._columns["counts"][f"{name}@{suffix}"] = self._first_of_examples(counts[:, k] > 0)

    def _first_of_examples(self, chosen: np.ndarray) -> np.ndarray:
        """float64[n], 1 at the first chosen text of every example that has one; texts of one example are adjacent."""
        rows = np.flatnonzero(chosen)
        ids = [self._ids[row] for row in rows]
        first = np.zeros(self._size)
        first[[row for i, row in enumerate(rows) if not i or ids[i - 1] != ids[i]]] = 1
        return first

    def sums(self) -> Sums:
        """The columns' sums under all bootstrap weights."""
        weights = np.ones((1 + NUM_REPLICATES, self._size))
        for i, name in enumerate(self._ids):
            weights[1:, i] = weights[1:, i - 1] if i and self._ids[i - 1] == name else poisson_weights(name)
        return Sums(*(dict(zip(named, totals(weights, named))) for named in self._columns.values()))


def totals(weights: np.ndarray, named: Mapping[str, np.ndarray]) -> np.ndarray:
    """int64[C, 1 + R], exact: whole numbers below 2^53 are multiplied and added in float64 without rounding."""
    if not named:
        return np.zeros((0, len(weights)), np.int64)
    columns = np.stack(list(named.values()), axis=1)  # float64[n, C]
    if np.abs(columns).sum(axis=0).max(initial=0) * weights.max(initial=1) < 2.0**53:
        return (weights @ columns).astype(np.int64).T
    high = np.floor(columns / 2.0**26)
    low = columns - high * 2.0**26
    return ((weights @ high).astype(np.int64) * (1 << 26) + (weights @ low).astype(np.int64)).T
