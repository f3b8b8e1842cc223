"""What every figure of the analysis is made of: sums over generated or scored texts, by all dimensions.

A part of a generations or score folder becomes a `Texts`, and a `Texts` becomes `Sums`. Position in the text, place in the
block, and so on are *dimensions*: a column per bucket.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from decoding.config import ACCEPTED, CORRECTED
from transforms.statistics.sums import FIXED_BITS, Columns, Sums

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
LEVELS = 7  # nested subsets of the texts: all, a half, a quarter, ...
RANKS = (10, 100, 1000, 10_000)  # ends of the buckets of token frequency
RANK_LABELS = ("1–10", "11–100", "101–1,000", "1,001–10,000", "rarer")


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
      origin, match: int64[I] as of `Generation`; None where the draft does not copy.
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
    origin: np.ndarray | None = None
    match: np.ndarray | None = None
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


def sums_of_generations(texts: Texts, ranks: np.ndarray) -> Sums:
    """What a batch of generated texts adds: α by all dimensions, target calls, accepted lengths.

    Args:
      texts: with everything that generations record.
      ranks: int64[V], bucket of frequency of each token.
    """
    columns = Columns(texts.example_ids, texts.lengths)
    _alpha_columns(columns, texts, ranks)
    examined = ~np.isnan(texts.beta)
    columns.tokens("beta/place", texts.beta, examined, texts.place)
    known = examined & ((texts.source == ACCEPTED) | (texts.source == CORRECTED))
    columns.tokens("beta/source", texts.beta, known, texts.source)
    call = np.repeat(np.arange(len(texts.lengths)), texts.calls)  # int64[I], of which text a call is
    columns.count("calls", texts.calls)
    if texts.origin is not None:
        emitted = np.diff(np.append(np.flatnonzero(texts.place == 0), len(texts.tokens)))  # int64[I]
        for dimension, bucket in (("origin", texts.origin), ("match", np.where(texts.origin > 0, texts.match, -1))):
            of_token = np.repeat(bucket, emitted)
            columns.tokens(f"beta/{dimension}", texts.beta, examined & (of_token >= 0), of_token)
            for k in np.unique(bucket[bucket >= 0]):
                chosen = bucket == k
                columns.count(f"guessed/{dimension}/{k}", np.bincount(call, chosen, len(texts.lengths)))
                columns.count(f"kept/{dimension}/{k}", np.bincount(call, texts.accepted * chosen, len(texts.lengths)))
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
    columns = Columns(texts.example_ids, texts.lengths)
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
    fixed = np.rint(texts.beta[examined] * (1 << FIXED_BITS))
    sums = np.bincount(texts.row[examined], weights=fixed, minlength=len(texts.lengths)) / (1 << FIXED_BITS)
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


def rank_buckets(counts: np.ndarray) -> np.ndarray:
    """int64[V], of each token the bucket of its rank by frequency, as RANK_LABELS; equally frequent ones by number."""
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.searchsorted(RANKS, ranks, side="right")
