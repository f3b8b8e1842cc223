"""Figures with their intervals, from sums over texts.

An estimate is a JSON object {"mean", "low", "high"}; the ends are those of the 95% interval, None where it is unknown. One
that was not computed from others has its "standard_error" too.
A *replicated* value is float64[1 + R]: the value itself, then its bootstrap replicates, one for each set of weights.
Arithmetic on replicated values keeps what goes together together, and intervals of ratios and differences come out right.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import fdtrc, ndtri

from decoding import theory
from decoding.config import ORIGINS
from transforms.statistics.analysis import LAGS, LEVELS, RANK_LABELS
from transforms.statistics.intervals import (
    LEVEL,
    NUM_REPLICATES,
    Estimate,
    bootstrap_freedom,
    estimate,
    half_width,
    ratio,
)
from transforms.statistics.sums import Sums

WANTED = (0.02, 0.01, 0.005)
"""Half-widths of an interval that the number of tokens needed is told for."""
PAPER_TOKENS = 10_000
_SOURCES = {0: "corrected", 1: "accepted"}


# Estimates.


def exactly(value: float) -> Estimate:
    """An estimate that is known."""
    return {"mean": float(value), "low": float(value), "high": float(value)}


def propagated(function: Callable[..., float], *estimates: Estimate) -> Estimate:
    """`function` of independent estimates: each is moved to its ends alone, and the deviations add in squares."""
    means = [one["mean"] for one in estimates]
    middle, below, above = function(*means), 0.0, 0.0
    for i, one in enumerate(estimates):
        if one["low"] is None or one["high"] is None:
            return {"mean": middle, "low": None, "high": None}
        ends = [function(*means[:i], end, *means[i + 1 :]) - middle for end in (one["low"], one["high"])]
        below, above = math.hypot(below, min(*ends, 0.0)), math.hypot(above, max(*ends, 0.0))
    return {"mean": middle, "low": middle - below, "high": middle + above}


def ratio_of(numerator: Estimate, denominator: Estimate) -> Estimate:
    """numerator / denominator - 1 of independent estimates: by how much the first misses the second."""
    return propagated(lambda a, b: a / b - 1, numerator, denominator)


# One series: a draft over the texts of one folder.


class Series:
    """Replicated quantities of one draft in one folder."""

    def __init__(self, sums: Sums):
        self.sums = sums
        self.examples = float(sums.count("examples")[0])

    def mean_beta(self) -> np.ndarray:
        return self.sums.mean("beta")

    def alpha(self, name: str = "beta", suffix: str = "") -> Estimate | None:
        """Of the tokens that are summed under `name`, over the examples that have any."""
        return estimate(self.sums.mean(name, suffix), self._having(name, suffix), proportion=True)

    def _having(self, name: str, suffix: str = "") -> float:
        return min(float(self.sums.count(f"{name}@{suffix}")[0]), self.examples)

    def alpha_over_all(self) -> np.ndarray:
        """Replicated mean acceptance where a position at which the draft proposes nothing counts as 0."""
        return ratio(self.sums.fraction("beta"), self.sums.count("tokens"))

    def proposed(self) -> Estimate | None:
        shares = ratio(self.sums.count("beta#"), self.sums.count("tokens"))
        return estimate(shares, self.examples, proportion=True)

    def tokens_per_call(self) -> np.ndarray:
        return ratio(self.sums.count("tokens"), self.sums.count("calls"))

    def by(self, dimension: str, label: Callable[[int], str]) -> list[dict]:
        """α in every bucket of a dimension; where it is one of target calls, how many they are and what they accepted."""
        name, found = f"beta/{dimension}", []
        for k in self.sums.buckets(f"{name}#"):
            if value := self.alpha(name, f"/{k}"):
                positions = int(self.sums.count(f"{name}#/{k}")[0])
                found.append({"bucket": k, "label": label(k), "alpha": value, "positions": positions})
                calls = self.sums.count(f"guessed/{dimension}/{k}")
                if calls[0]:
                    kept = ratio(self.sums.count(f"kept/{dimension}/{k}"), calls)
                    found[-1] |= {"calls": int(calls[0]), "accepted": estimate(kept, self._having(name, f"/{k}"))}
        return found

    def lenient(self) -> dict[str, Estimate]:
        names = [name for name in self.sums.fractions if name.startswith("lenient/")]
        return {name.split("/")[1]: self.alpha(name) for name in sorted(names, key=lambda name: -float(name.split("/")[1]))}

    # Is β independent, and alike?

    def autocorrelation(self) -> list[dict]:
        """Correlation of β at two positions of one text that are a lag apart."""
        found = []
        for lag in LAGS:
            count = self.sums.count(f"lag/{lag}/xy#")
            if count[0] < 30:
                continue
            x, y, xx, yy, xy = (ratio(self.sums.fraction(f"lag/{lag}/{s}"), count) for s in ("x", "y", "xx", "yy", "xy"))
            variances = (xx - x * x) * (yy - y * y)
            correlation = ratio(xy - x * y, np.sqrt(np.where(variances > 1e-12, variances, 0.0)))
            if value := estimate(correlation, self._having(f"lag/{lag}/xy")):
                found.append({"lag": lag, "correlation": value, "pairs": int(count[0])})
        return found

    def between_texts(self) -> dict | None:
        """Variance components of β by one-way analysis of variance, texts of unequal length."""
        s, n, texts = self.sums.fraction("beta"), self.sums.count("beta#"), self.sums.count("examined texts")
        if texts[0] < 2 or n[0] <= texts[0]:
            return None
        squares, between = self.sums.fraction("beta^2"), self.sums.fraction("s^2/n")
        mean_between = ratio(between - ratio(s * s, n), texts - 1)
        mean_within = ratio(squares - between, n - texts)
        size = ratio(n - ratio(self.sums.count("n^2"), n), texts - 1)
        spread = ratio(mean_between - mean_within, size)
        return {
            "mean_square_ratio": estimate(ratio(mean_between, mean_within), self.examples),
            "intraclass_correlation": estimate(ratio(spread, spread + mean_within), self.examples),
            "deviation_between_texts": estimate(np.sqrt(np.maximum(spread, 0.0)), self.examples),
        }

    def predicted_tokens_per_call(self, gamma: int) -> dict[str, np.ndarray]:
        """Replicated predictions from scores, by method: Eq. 1, windows of β, and the walk along the texts."""
        tokens = self.sums.count("tokens")
        return {
            "iid": expected_tokens(self.alpha_over_all(), gamma),
            "windows": ratio(self.sums.fraction(f"window/{gamma}"), tokens),
            "walk": ratio(tokens, self.sums.fraction(f"walk/{gamma}")),
        }

    def accepted_lengths(self, gamma: int, *, law: bool) -> dict | None:
        """The distribution of accepted lengths with γ drafted tokens, and whether it is the capped geometric law.

        The test is Wald's: the differences between observed and predicted shares against their covariance over bootstrap
        replicates, which texts, not calls, make; its F distribution allows for a covariance estimated from so many texts.
        """
        counts = np.stack([self.sums.count(f"lengths/{gamma}/{k}") for k in range(gamma + 1)])  # float64[γ+1, 1+R]
        calls = counts.sum(axis=0)
        if calls[0] == 0:
            return None
        shares = np.stack([ratio(count, calls) for count in counts])
        found: dict[str, Any] = {
            "gamma": gamma,
            "calls": int(calls[0]),
            "observed": [estimate(share, self.examples, proportion=True) for share in shares],
        }
        if law:
            alphas = np.clip(self.mean_beta(), 0, 1)
            unknown = np.full(gamma + 1, np.nan)
            laws = [theory.accepted_lengths(alpha, gamma) if np.isfinite(alpha) else unknown for alpha in alphas]
            expected = np.stack(laws, axis=1)
            found["geometric"] = [estimate(share, self.examples, proportion=True) for share in expected]
            found["distance"] = estimate(np.abs(shares - expected).sum(axis=0) / 2, self.examples)
            found["test"] = wald_test((shares - expected)[:-1], self.examples)
        return found

    # How many tokens are enough?

    def sample_size(self) -> dict | None:
        """Design effect, and the interval's width against tokens and texts."""
        alpha, positions = self.alpha(), float(self.sums.count("beta#")[0])
        if alpha is None or self.examples < 2:
            return None
        values = self.mean_beta()
        variance = float(np.nanvar(values[1:], ddof=1)) * self.examples / (self.examples - 1)
        independent = float(ratio(self.sums.fraction("beta^2"), self.sums.count("beta#"))[0] - values[0] ** 2) / positions
        if variance <= 0 or independent <= 0:
            return None
        width = float(half_width(variance, bootstrap_freedom(self.examples, NUM_REPLICATES)))
        normal = float(ndtri((1 + LEVEL) / 2))
        needed = lambda wanted: math.ceil(positions * variance * (normal / wanted) ** 2)
        texts = float(self.sums.count("texts")[0])
        return {
            "positions": int(positions),
            "texts": int(texts),
            "half_width": width,
            "half_width_if_independent": normal * math.sqrt(independent),
            "design_effect": variance / independent,
            "effective_tokens": positions * independent / variance,
            "half_width_at_10000_tokens": normal * math.sqrt(variance * positions / PAPER_TOKENS),
            "needed": [
                {"half_width": w, "tokens": needed(w), "texts": math.ceil(needed(w) * texts / positions)} for w in WANTED
            ],
            "measured": self._widths_of_subsets(),
        }

    def _widths_of_subsets(self) -> list[dict]:
        """Half-widths measured over nested random subsets of the texts."""
        found = []
        for k in range(LEVELS):
            name = f"beta/level/{k}" if k else "beta"
            texts = float(self.sums.count(f"texts/level/{k}" if k else "texts")[0])
            value = self.alpha(name)
            if value and value["low"] is not None and texts >= 10:
                width = (value["high"] - value["low"]) / 2
                positions = int(self.sums.count(f"{name}#")[0])
                found.append({"texts": int(texts), "positions": positions, "half_width": width, "alpha": value})
        return found


def expected_tokens(alphas: np.ndarray, gamma: int) -> np.ndarray:
    """Eq. 1 of a replicated α; NaN where there is none."""
    known = np.isfinite(alphas)
    return np.where(known, theory.expected_tokens(np.clip(np.where(known, alphas, 0.0), 0, 1), gamma), np.nan)


def wald_test(differences: np.ndarray, examples: float) -> dict | None:
    """Tests that replicated differences, float64[d, 1 + R], are 0. None where there is too little to tell."""
    replicates = differences[:, 1:][:, np.isfinite(differences[:, 1:]).all(axis=0)]
    size = len(differences)
    freedom = bootstrap_freedom(examples, replicates.shape[1]) if examples > 1 and replicates.shape[1] > 1 else 0
    if size == 0 or freedom <= size:
        return None
    covariance = np.atleast_2d(np.cov(replicates)) * examples / (examples - 1)
    scale = np.sqrt(np.diag(covariance))
    if (scale == 0).any() or np.linalg.cond(covariance / np.outer(scale, scale)) > 1e10:
        return None
    value = differences[:, 0] @ np.linalg.solve(covariance, differences[:, 0])
    below = freedom - size + 1
    return {
        "statistic": float(value),
        "degrees_of_freedom": [size, float(below)],
        "p_value": float(fdtrc(size, below, value * below / (freedom * size))),
        "method": "Wald test with the covariance of bootstrap replicates over examples",
    }


def position_label(bucket: int) -> str:
    """Positions of the bucket that np.frexp gives them: 0, 1, 2–3, 4–7, ..."""
    if bucket < 2:
        return str(bucket)
    return f"{2 ** (bucket - 1)}–{2**bucket - 1}"


def describe(series: Series, *, scores: bool, gammas: Sequence[int], law: bool) -> dict:
    """Everything that is told of one series.

    Args:
      series: of which.
      scores: whether it is of a score folder.
      gammas: for which target calls are predicted (scores), or which were used (generations).
      law: whether accepted lengths are to be held against the capped geometric law: token verification alone has it.
    """
    found: dict[str, Any] = {
        "texts": int(series.sums.count("texts")[0]),
        "examples": int(series.examples),
        "tokens": int(series.sums.count("tokens")[0]),
        "positions": int(series.sums.count("beta#")[0]),
        "alpha": series.alpha(),
        "by": {
            "position": series.by("position", position_label),
            "frequency": series.by("frequency", lambda k: RANK_LABELS[k]),
        },
        "sample_size": series.sample_size(),
    }
    if scores:
        found["alpha_over_all"] = estimate(series.alpha_over_all(), series.examples, proportion=True)
        found["proposed"] = series.proposed()
        found["lenient"] = series.lenient()
        found["autocorrelation"] = series.autocorrelation()
        found["between_texts"] = series.between_texts()
        found["predicted"] = {
            str(gamma): {
                name: estimate(values, series.examples)
                for name, values in series.predicted_tokens_per_call(gamma).items()
            }
            for gamma in gammas
        }
    else:
        found["calls"] = int(series.sums.count("calls")[0])
        found["tokens_per_call"] = estimate(series.tokens_per_call(), series.examples)
        found["by"]["place"] = series.by("place", lambda k: str(k + 1))
        found["by"]["source"] = series.by("source", _SOURCES.__getitem__)
        found["by"]["origin"] = series.by("origin", lambda k: ORIGINS[k][0])
        found["by"]["match"] = series.by("match", str)
        found["accepted_lengths"] = [one for gamma in gammas if (one := series.accepted_lengths(gamma, law=law))]
    return found


def time_ratio(timings: Sequence[Mapping[str, Any]]) -> dict | None:
    """Speedup within one job: plain shards' seconds per token over the others', with an interval over shards.

    Each side is a ratio of sums over its shards; the interval is that of the log ratio, with Welch's degrees of freedom.

    Args:
      timings: per shard "baseline", "tokens" and "seconds".
    """
    log, variance, parts, counts = 0.0, 0.0, [], {}
    for baseline, sign in ((True, 1), (False, -1)):
        mine = [(one["seconds"], one["tokens"]) for one in timings if one["baseline"] == baseline and one["tokens"]]
        counts["plain_shards" if baseline else "speculative_shards"] = len(mine)
        if not mine:
            return None
        seconds, tokens = np.array(mine, np.float64).T
        rate, n = seconds.sum() / tokens.sum(), len(mine)
        log += sign * math.log(rate)
        if n > 1:
            share = n / (n - 1) * float(np.sum((seconds - rate * tokens) ** 2)) / float(seconds.sum()) ** 2
            parts.append((share, n - 1))
            variance += share
    speedup = {"mean": math.exp(log), "low": None, "high": None, "standard_error": None}
    if len(parts) == 2 and variance > 0:
        freedom = variance**2 / sum(share**2 / n for share, n in parts)
        margin, error = float(half_width(variance, freedom)), math.sqrt(variance) * math.exp(log)
        speedup |= {"low": math.exp(log - margin), "high": math.exp(log + margin), "standard_error": error}
    return {"speedup": speedup, **counts}
