"""Intervals: Student's t, and a bootstrap over examples that merges.

Tokens of one example are not independent, so that what is resampled is examples. It is a Poisson bootstrap: in replicate
r, example e counts w(e, r) ~ Poisson(1) times, with w hashed from the example's id. A replicate is then a few sums,
shards merge by adding them, and no example has to be seen twice. `bootstrap_interval` makes the interval of the
replicates.
"""

import hashlib
from statistics import NormalDist

import numpy as np

NUM_REPLICATES = 200
LEVEL = 0.95
INTERVAL = f"Poisson bootstrap over examples, {NUM_REPLICATES} replicates, Student's t on the log-odds scale"

# Distribution function of Poisson(1) at 0, 1, 2, ...: beyond 18 lies less than 1e-17.
_POISSON_CDF = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 19)]))

_LEGENDRE = np.polynomial.legendre.leggauss(64)  # nodes and weights


def poisson_weights(example_id: str, replicates: int = NUM_REPLICATES) -> np.ndarray:
    """int64[replicates], each Poisson(1), a function of the id alone."""
    seed = np.frombuffer(hashlib.blake2b(example_id.encode(), digest_size=8).digest(), np.uint64)
    with np.errstate(over="ignore"):  # splitmix64: the r-th output of a generator seeded with the id's hash
        z = seed + np.arange(1, replicates + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    uniform = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(_POISSON_CDF, uniform, side="right").astype(np.int64)


def half_width(variance: np.ndarray | float, freedom: np.ndarray | float) -> np.ndarray | float:
    """Half of the interval at LEVEL of an estimate with such a variance: Student's t, with `freedom`, of standard errors."""
    return student_quantile(freedom) * np.sqrt(variance)


def student_quantile(freedom: np.ndarray | float) -> np.ndarray:
    """float64[...], below which Student's t is with probability (1 + LEVEL) / 2, as `scipy.special.stdtrit` gives it, whose
    import alone takes a third of the second in which `pipeline.inspect` is to answer.

    Of t = sqrt(freedom) sinh(s) the density is cosh(s)^-freedom over a constant. It is integrated by Gauss and Legendre, and
    its integral, which is concave, is inverted by Newton's method from the normal distribution's quantile, which is below.
    """
    n = np.asarray(freedom, np.float64)
    nodes, weights = _LEGENDRE

    def integral(end: np.ndarray) -> np.ndarray:  # from 0
        return end / 2 * np.sum(weights * np.cosh(end[..., None] / 2 * (nodes + 1)) ** -n[..., None], axis=-1)

    wanted = LEVEL * integral(np.arccosh(np.exp(37 / n)))  # beyond there the density is below 1e-16 of that at 0
    s = np.arcsinh(NormalDist().inv_cdf((1 + LEVEL) / 2) / np.sqrt(n))
    for _ in range(20):
        s = s + (wanted - integral(s)) * np.cosh(s) ** n
    return np.sqrt(n) * np.sinh(s)


def bootstrap_freedom(examples: np.ndarray | float, replicates: np.ndarray | float) -> np.ndarray | float:
    """Degrees of freedom of a variance over replicates: both numbers limit how well it is known. Each is at least 2."""
    return 1 / (1 / (examples - 1) + 1 / (replicates - 1))


def standard_error(replicates: np.ndarray, examples: np.ndarray | float) -> np.ndarray:
    """Standard deviation of bootstrap replicates, corrected by n / (n - 1).

    Args:
      replicates: float64[..., R]; NaN where one has no data.
      examples: n, how many examples they rest on.

    Returns:
      float64[...], NaN where there are fewer than two examples or replicates.
    """
    replicates, n = np.asarray(replicates, np.float64), np.asarray(examples, np.float64)
    known = np.sum(~np.isnan(replicates), axis=-1)
    enough = (n >= 2) & (known >= 2)
    n, known = np.where(enough, n, 2.0), np.where(enough, known, 2)
    centre = np.nansum(replicates, axis=-1, keepdims=True) / known[..., None]
    variance = np.nansum((replicates - centre) ** 2, axis=-1) / (known - 1) * n / (n - 1)
    return np.where(enough, np.sqrt(variance), np.nan)


Estimate = dict[str, float | None]


def estimate(values: np.ndarray, examples: float, *, proportion: bool = False) -> Estimate | None:
    """The estimate of a replicated value, "mean", "low", "high", "standard_error"; None where it has none.

    Ends and error are None where nothing is known of them.

    Args:
      values: float64[1 + R], the value and its bootstrap replicates.
      examples: how many examples it rests on: those that have data of it, not all there are.
      proportion: it is within [0, 1], and so is its interval.
    """
    if not np.isfinite(values[0]):
        return None
    low, high = bootstrap_interval(values[0], values[1:], examples, proportion=proportion)
    ends = {"low": low, "high": high, "standard_error": standard_error(values[1:], examples)}
    return {"mean": float(values[0]), **{name: float(end) if np.isfinite(end) else None for name, end in ends.items()}}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Replicated quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator != 0)


def bootstrap_interval(
    value: np.ndarray | float, replicates: np.ndarray, examples: np.ndarray | float, *, proportion: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval at LEVEL from bootstrap replicates.

    The replicates' standard deviation, corrected by n / (n - 1), times Student's t, whose degrees of freedom count the
    examples and the replicates. Over simulated jobs of 100 clustered texts it covers the truth in 95 of 100, where the
    percentiles of 200 replicates do in 93.5 to 94 (tests/transforms/test_coverage.py).

    Args:
      value: float64[...], the estimates.
      replicates: float64[..., R], their replicates; NaN where a replicate has no data.
      examples: how many examples each estimate rests on.
      proportion: the estimates are within [0, 1], and so shall the interval be: it is made on the log-odds scale. At 0 and
        1 themselves, where no replicate differs, it is Clopper and Pearson's for as many examples without an exception.

    Returns:
      low and high, float64[...]. Where there are fewer than two examples or replicates nothing is known: NaN, or 0 and 1
      for a proportion.
    """
    value, n = np.asarray(value, np.float64), np.asarray(examples, np.float64)
    known = np.sum(~np.isnan(replicates), axis=-1)
    enough = (n >= 2) & (known >= 2)
    n, known = np.where(enough, n, 2.0), np.where(enough, known, 2)
    margin = half_width(standard_error(replicates, examples) ** 2, bootstrap_freedom(n, known))
    low, high = value - margin, value + margin
    if proportion:
        inside = (value > 0) & (value < 1)
        p = np.where(inside, value, 0.5)
        odds, width = np.log(p) - np.log1p(-p), margin / (p * (1 - p))
        edge = ((1 - LEVEL) / 2) ** (1 / n)
        low = np.where(inside, _logistic(odds - width), np.where(value > 0, edge, 0.0))
        high = np.where(inside, _logistic(odds + width), np.where(value > 0, 1.0, 1 - edge))
        low, high = np.where(enough, low, 0.0), np.where(enough, high, 1.0)
    return low, high


def _logistic(odds: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-odds))
