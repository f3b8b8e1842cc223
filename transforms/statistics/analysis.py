"""Sums over texts from which every figure of the analysis is made: exact, mergeable, with their bootstrap replicates.

A part of a generations or score folder becomes a `Texts`, a `Texts` becomes columns (one whole number per text and
column), and the columns, multiplied by the texts' bootstrap weights, become `Sums`. All numbers are whole (β and other
fractions in fixed point), so that merging is exact: the result is the same to the last bit for any sharding and order.

Position in the text, place in the block, and so on are *dimensions*: a column per bucket.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import apache_beam as beam
import numpy as np

from decoding.config import ACCEPTED, CORRECTED
from transforms.statistics.intervals import NUM_REPLICATES, poisson_weights

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
LEVELS = 7  # nested subsets of the texts: all, a half, a quarter, ...
RANKS = (10, 100, 1000, 10_000)  # ends of the buckets of token frequency
RANK_LABELS = ("1–10", "11–100", "101–1,000", "1,001–10,000", "rarer")

_FIXED_POINT = 1 << 26  # 1.5e-8, finer than the float32 that β is stored in; room for 10^11 tokens


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of one draft, as one kind of folder records them. N tokens in n texts, texts one after the other.

    Attributes:
      example_ids: n ids; texts of one example share one, and are drawn together by the bootstrap.
      lengths: int64[n], tokens, EOS included.
      tokens: int64[N].
      beta: float64[N], NaN where no draft distribution was examined.
      acceptance: float64[N], probability that the token, which is there, was accepted, had it been examined; None where
        the folder does not tell. Its mean given the prefix is β.
      place: int64[N], place in the block of its target call, from 0; None for scores.
      source: int64[N], as `Generation.source`; None for scores.
      gammas, accepted: int64[I] per target call; None for scores.
      calls: int64[n], target calls per text; None for scores.
      lenient: β by lenience value, float64[N] each.
    """

    example_ids: Sequence[str]
    lengths: np.ndarray
    tokens: np.ndarray
    beta: np.ndarray
    acceptance: np.ndarray | None = None
    place: np.ndarray | None = None
    source: np.ndarray | None = None
    gammas: np.ndarray | None = None
    accepted: np.ndarray | None = None
    calls: np.ndarray | None = None
    lenient: Mapping[float, np.ndarray] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def row(self) -> np.ndarray:
        """int64[N], of which text a token is."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @functools.cached_property
    def position(self) -> np.ndarray:
        """int64[N], position in the text."""
        return np.arange(len(self.tokens)) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)

    def padded(self, values: np.ndarray) -> np.ndarray:
        """float64[n, longest] of float64[N], 0 beyond a text's end and where a value is NaN."""
        table = np.zeros((len(self.lengths), int(self.lengths.max(initial=0))))
        table[self.row, self.position] = np.nan_to_num(values)
        return table


# Sums.


@dataclasses.dataclass
class Sums:
    """Named sums over texts with their bootstrap replicates: int64[1 + NUM_REPLICATES] each, the first unweighted.

    `counts` are plain numbers, `fractions` are in fixed point; a name that is missing is 0.
    """

    counts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fractions: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def merge(self, other: "Sums") -> "Sums":
        """Sums over the texts of both."""
        return Sums(_added(self.counts, other.counts), _added(self.fractions, other.fractions))

    def count(self, name: str) -> np.ndarray:
        """float64[1 + NUM_REPLICATES]."""
        return self.counts.get(name, _ZEROS).astype(np.float64)

    def fraction(self, name: str) -> np.ndarray:
        """float64[1 + NUM_REPLICATES]."""
        return self.fractions.get(name, _ZEROS) / _FIXED_POINT

    def buckets(self, name: str) -> list[int]:
        """Numbers k for which there is a count `name/k`, increasing."""
        start = name + "/"
        return sorted(int(key[len(start) :]) for key in self.counts if key.startswith(start) and key[len(start) :].isdigit())


_ZEROS = np.zeros(1 + NUM_REPLICATES, np.int64)


def _added(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: a.get(name, _ZEROS) + b.get(name, _ZEROS) for name in a.keys() | b.keys()}


class Columns:
    """Collects the columns of a `Texts`: a whole number per text."""

    def __init__(self, texts: Texts):
        self._texts, self._size = texts, len(texts.lengths)
        self._columns: dict[str, dict[str, np.ndarray]] = {"counts": {}, "fractions": {}}

    def count(self, name: str, values: np.ndarray) -> None:
        """Adds a column of whole numbers, int64[n]."""
        self._columns["counts"][name] = np.asarray(values, np.float64)

    def fraction(self, name: str, values: np.ndarray) -> None:
        """Adds a column of numbers of any kind, float64[n], rounded to fixed point."""
        self._columns["fractions"][name] = np.rint(np.asarray(values, np.float64) * _FIXED_POINT)

    def tokens(self, name: str, values: np.ndarray, where: np.ndarray, bucket: np.ndarray | None = None) -> None:
        """Adds Σ values over the tokens of each text `where` it says, their number, and that of examples that have any.

        Each value is rounded to fixed point first, so that sums do not depend on their order.

        Args:
          name: the fraction is `name`, the counts `name#` and `name@`; with buckets, `name/k`, `name#/k` and `name@/k`.
          values: float64[N].
          where: bool[N].
          bucket: int64[N], or None for one sum.
        """
        row, fixed = self._texts.row[where], np.rint(values[where] * _FIXED_POINT)
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
        ids = [self._texts.example_ids[row] for row in rows]
        first = np.zeros(self._size)
        first[[row for i, row in enumerate(rows) if not i or ids[i - 1] != ids[i]]] = 1
        return first

    def sums(self) -> Sums:
        """The columns' sums under all bootstrap weights."""
        ids = self._texts.example_ids
        weights = np.ones((1 + NUM_REPLICATES, self._size))
        for i, name in enumerate(ids):
            weights[1:, i] = weights[1:, i - 1] if i and ids[i - 1] == name else poisson_weights(name)
        return Sums(*(dict(zip(named, _totals(weights, named))) for named in self._columns.values()))


def _totals(weights: np.ndarray, named: Mapping[str, np.ndarray]) -> np.ndarray:
    """int64[C, 1 + R], exact: whole numbers below 2^53 are multiplied and added in float64 without rounding."""
    if not named:
        return np.zeros((0, len(weights)), np.int64)
    columns = np.stack(list(named.values()), axis=1)  # float64[n, C]
    if np.abs(columns).sum(axis=0).max(initial=0) * weights.max(initial=1) < 2.0**53:
        return (weights @ columns).astype(np.int64).T
    high = np.floor(columns / 2.0**26)
    low = columns - high * 2.0**26
    return ((weights @ high).astype(np.int64) * (1 << 26) + (weights @ low).astype(np.int64)).T


# Columns.


def sums_of_generations(texts: Texts, ranks: np.ndarray) -> Sums:
    """What a batch of generated texts adds: α by all dimensions, target calls, accepted lengths.

    Args:
      texts: with everything that generations record.
      ranks: int64[V], bucket of frequency of each token.
    """
    columns = Columns(texts)
    _alpha_columns(columns, texts, ranks)
    examined = ~np.isnan(texts.beta)
    columns.tokens("beta/place", texts.beta, examined, texts.place)
    known = examined & ((texts.source == ACCEPTED) | (texts.source == CORRECTED))
    columns.tokens("beta/source", texts.beta, known, texts.source)
    call = np.repeat(np.arange(len(texts.lengths)), texts.calls)  # int64[I], of which text a call is
    columns.count("calls", texts.calls)
    # Calls that a text's end may cut are left out, and told by where they start: leaving out those that were cut would
    # leave out long ones more often.
    start = texts.position[texts.place == 0]  # int64[I]
    room = texts.lengths[call] - start
    for gamma in np.unique(texts.gammas):
        of_gamma = texts.gammas == gamma
        columns.count(f"calls/{gamma}", np.bincount(call[of_gamma], minlength=len(texts.lengths)))
        whole = of_gamma & (room > gamma)
        for k in range(gamma + 1):
            chosen = call[whole & (texts.accepted == k)]
            columns.count(f"lengths/{gamma}/{k}", np.bincount(chosen, minlength=len(texts.lengths)))
    return columns.sums()


def sums_of_scores(texts: Texts, ranks: np.ndarray, gammas: Sequence[int]) -> Sums:
    """What a batch of scored texts adds: α by all dimensions, lenience, how β goes together, predicted target calls.

    Args:
      texts: with `beta` for every token at which the draft proposes something.
      ranks: int64[V], bucket of frequency of each token.
      gammas: for which γ target calls are predicted, at least 1 each.
    """
    columns = Columns(texts)
    _alpha_columns(columns, texts, ranks)
    for lenience, beta in texts.lenient.items():
        columns.tokens(f"lenient/{lenience:g}", beta, ~np.isnan(beta))
    _lag_columns(columns, texts)
    _dispersion_columns(columns, texts)
    _prediction_columns(columns, texts, gammas)
    return columns.sums()


def _alpha_columns(columns: Columns, texts: Texts, ranks: np.ndarray) -> None:
    examined = ~np.isnan(texts.beta)
    ids = texts.example_ids
    columns.count("examples", np.array([not i or ids[i - 1] != name for i, name in enumerate(ids)]))
    columns.count("texts", np.ones(len(texts.lengths)))
    columns.count("tokens", texts.lengths)
    columns.tokens("beta", texts.beta, examined)
    columns.tokens("beta^2", texts.beta**2, examined)
    # 0, 1, 2-3, 4-7, 8-15, ...
    columns.tokens("beta/position", texts.beta, examined, np.frexp(texts.position.astype(np.float64))[1])
    columns.tokens("beta/frequency", texts.beta, examined, ranks[texts.tokens])
    level = np.array([_level(name) for name in texts.example_ids], np.int64)
    for k in range(1, LEVELS):
        inside = level >= k
        columns.tokens(f"beta/level/{k}", texts.beta, examined & inside[texts.row])
        columns.count(f"texts/level/{k}", inside)


def _level(example_id: str) -> int:
    """Of the nested random subsets of texts, the smallest that holds this one: at least k with probability 2^-k."""
    digest = int.from_bytes(hashlib.blake2b(f"level {example_id}".encode(), digest_size=8).digest())
    return next((k for k in range(LEVELS - 1) if digest >> k & 1), LEVELS - 1)


def _lag_columns(columns: Columns, texts: Texts) -> None:
    """Sums of pairs of β that are a lag apart in one text: what their correlation is made of."""
    for lag in LAGS:
        if lag >= len(texts.beta):
            break
        x, y, first = texts.beta[:-lag], texts.beta[lag:], np.zeros(len(texts.beta), bool)
        first[:-lag] = (texts.row[:-lag] == texts.row[lag:]) & ~np.isnan(x) & ~np.isnan(y)
        later = np.append(y, np.zeros(lag))
        for name, values in (
            ("x", texts.beta), ("y", later), ("xx", texts.beta**2), ("yy", later**2), ("xy", texts.beta * later)
        ):  # fmt: skip
            columns.tokens(f"lag/{lag}/{name}", values, first)


def _dispersion_columns(columns: Columns, texts: Texts) -> None:
    """What the variance between texts is made of: n_i, n_i², s_i² / n_i for texts with tokens that were examined."""
    examined = ~np.isnan(texts.beta)
    counts = np.bincount(texts.row[examined], minlength=len(texts.lengths))
    fixed = np.rint(texts.beta[examined] * _FIXED_POINT)
    sums = np.bincount(texts.row[examined], weights=fixed, minlength=len(texts.lengths)) / _FIXED_POINT
    columns.count("examined texts", counts > 0)
    columns.count("n^2", counts**2)
    columns.fraction("s^2/n", sums**2 / np.maximum(counts, 1))


def _prediction_columns(columns: Columns, texts: Texts, gammas: Sequence[int]) -> None:
    """Expected tokens of a call that starts anywhere, and expected calls of the walk that decoding takes."""
    beta = texts.padded(texts.beta)
    for gamma, tokens in zip(gammas, expected_tokens_of_windows(beta, gammas)):
        columns.tokens(f"window/{gamma}", tokens[texts.row, texts.position], np.ones(len(texts.tokens), bool))
    acceptance = beta if texts.acceptance is None else texts.padded(texts.acceptance)
    for gamma, calls in zip(gammas, expected_calls(acceptance, texts.lengths, gammas)):
        columns.fraction(f"walk/{gamma}", calls)


def expected_tokens_of_windows(beta: np.ndarray, gammas: Sequence[int]) -> np.ndarray:
    """Expected tokens 1 + β_t + β_t β_{t+1} + ... (γ products) of a call that starts at each position t.

    Args:
      beta: float64[n, T], 0 beyond a text's end.
      gammas: numbers of drafted tokens.

    Returns:
      float64[len(gammas), n, T].
    """
    found = np.zeros((len(gammas), *beta.shape))
    tokens, product = np.ones(beta.shape), np.ones(beta.shape)
    for k in range(max(gammas, default=0) + 1):
        for i, gamma in enumerate(gammas):
            if gamma == k:
                found[i] = tokens
        if k < beta.shape[1]:
            product = product * np.pad(beta[:, k:], ((0, 0), (0, k)))
            tokens = tokens + product
    return found


def expected_calls(acceptance: np.ndarray, lengths: np.ndarray, gammas: Sequence[int]) -> np.ndarray:
    """Expected number of target calls that decode each text with token verification.

    Given the text, the tokens that calls examine are accepted independently, each with its own probability, and a call
    that starts at t ends with the first rejection, or with the bonus token after γ acceptances. The probability that a
    call starts at t follows from those of earlier positions.

    Args:
      acceptance: float64[n, T], probability that a token, which is there, was accepted; 0 beyond a text's end.
      lengths: int64[n].
      gammas: numbers of drafted tokens.

    Returns:
      float64[len(gammas), n].
    """
    order = np.argsort(gammas)[::-1]  # descending, so that those that draft a k-th token come first
    sizes = np.asarray(gammas, np.int64)[order]
    n, longest = acceptance.shape
    most = int(sizes.max(initial=0))
    start = np.zeros((longest + most + 1, len(sizes), n))
    start[0] = 1.0
    padded = np.concatenate([acceptance.T, np.zeros((most, n))])
    for t in range(longest):
        going = start[t].copy()
        for k in range(most):
            drafting = int(np.searchsorted(-sizes, -k))  # those with γ > k
            rejected = going[:drafting] * (1.0 - padded[t + k])
            start[t + k + 1, :drafting] += rejected
            going[:drafting] -= rejected
        for i, gamma in enumerate(sizes):
            start[t + gamma + 1, i] += going[i]
    inside = np.arange(len(start))[:, None] < lengths
    found = np.zeros((len(sizes), n))
    found[order] = np.sum(start * inside[:, None, :], axis=0)
    return found


# Token frequencies.


def count_tokens(tokens: np.ndarray) -> np.ndarray:
    """int64[1 + largest token], occurrences."""
    return np.bincount(tokens).astype(np.int64)


class CombineTokenCounts(beam.CombineFn):
    """Adds occurrences of tokens, int64[any length]."""

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(0, np.int64)

    def add_input(self, accumulator: np.ndarray, element: np.ndarray) -> np.ndarray:
        size = max(len(accumulator), len(element))
        return np.pad(accumulator, (0, size - len(accumulator))) + np.pad(element, (0, size - len(element)))

    def merge_accumulators(self, accumulators: Iterable[np.ndarray]) -> np.ndarray:
        return functools.reduce(self.add_input, accumulators, self.create_accumulator())

    def extract_output(self, accumulator: np.ndarray) -> np.ndarray:
        return accumulator


def rank_buckets(counts: np.ndarray) -> np.ndarray:
    """int64[V], of each token the bucket of its rank by frequency, as RANK_LABELS; equally frequent ones by number."""
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.searchsorted(RANKS, ranks, side="right")
