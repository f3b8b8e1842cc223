"""The paper's formulas for how much speculative decoding gains.

Leviathan, Kalman, Matias, *Fast Inference from Transformers via Speculative Decoding*, ICML 2023, arXiv 2211.17192.
Symbols are the paper's:

  alpha (α)  mean probability that a drafted token is accepted, in [0, 1]
  gamma (γ)  drafted tokens per target call, an integer >= 0; 0 is plain decoding
  c          time of one draft run / time of one target run, >= 0
  c_hat (ĉ)  operations per token of the draft / of the target, >= 0

All formulas take the acceptances of one step's tokens as independent with probability α. Functions take scalars or arrays
that broadcast, and return a Python float for scalars, else float64 arrays (`optimal_gamma`: int, int64); a value outside its
range raises ValueError. The limits are exact: γ = 0 gives 1 token per call and an improvement of 1, α = 1 gives γ + 1 tokens
per call.
"""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Values = npt.ArrayLike   # a number, or an array of them
Result = float | npt.NDArray[np.float64]


def _checked(name: str, value: Values, allowed: str, valid) -> npt.NDArray[np.float64]:
    """`value` as float64; ValueError naming it and what is allowed where `valid` does not hold."""
    array = np.asarray(value, np.float64)
    bad = array[~valid(array)]
    if bad.size:
        raise ValueError(f"{name} = {bad.flat[0]:g}: must be {allowed}")
    return array


def _alpha(value: Values) -> npt.NDArray[np.float64]:
    return _checked("alpha", value, "between 0 and 1", lambda a: (a >= 0) & (a <= 1))


def _gamma(value: Values) -> npt.NDArray[np.float64]:
    return _checked("gamma", value, "an integer of at least 0", lambda g: (g >= 0) & (g == np.floor(g)) & np.isfinite(g))


def _cost(name: str, value: Values) -> npt.NDArray[np.float64]:
    return _checked(name, value, "a finite number of at least 0", lambda c: (c >= 0) & np.isfinite(c))


def _result(array: npt.NDArray[np.float64]) -> Result:
    return float(array) if array.ndim == 0 else array


def _expected_tokens(alpha: npt.NDArray[np.float64], gamma: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # (1 - α^(γ+1)) / (1 - α) = expm1((γ+1) log α) / (α - 1) keeps its digits where α is close to 1.
    inner = (alpha > 0) & (alpha < 1)
    safe = np.where(inner, alpha, 0.5)
    ratio = np.expm1((gamma + 1) * np.log(safe)) / (safe - 1)
    return np.where(inner & (gamma > 0), ratio, np.where(alpha == 1, gamma + 1, 1.0))


def expected_tokens(alpha: Values, gamma: Values) -> Result:
    """Expected tokens per target call, (1 - α^(γ+1)) / (1 - α) (Eq. 1): 1 at α = 0, γ + 1 at α = 1."""
    return _result(_expected_tokens(_alpha(alpha), _gamma(gamma)))


def accepted_lengths(alpha: float, gamma: int) -> npt.NDArray[np.float64]:
    """Law of the number of accepted tokens per target call, float64[γ + 1]: the capped geometric law behind Eq. 1.

    (1 - α) α^k for k < γ, and α^γ for k = γ (§3.1). Its mean plus one is `expected_tokens`.
    """
    value, count = float(_alpha(alpha)), int(_gamma(gamma))
    powers = value ** np.arange(count + 1, dtype=np.float64)
    return np.append(powers[:-1] * (1 - value), powers[-1])


def oracle_expected_tokens(alpha: Values) -> Result:
    """Expected tokens per target call of an oracle that drafts exactly what will be accepted, 1 / (1 - α) (§3.5).

    Infinite at α = 1.
    """
    values = _alpha(alpha)
    return _result(np.where(values < 1, 1 / np.where(values < 1, 1 - values, 1.0), np.inf))


def walltime_improvement(alpha: Values, gamma: Values, c: Values) -> Result:
    """Expected speedup over plain decoding, (1 - α^(γ+1)) / ((1 - α)(γc + 1)) (Theorem 3.8).

    Takes a target run over γ + 1 positions to cost what a run over one costs; `walltime_improvement_measured` does not.
    """
    gammas = _gamma(gamma)
    return _result(_expected_tokens(_alpha(alpha), gammas) / (gammas * _cost("c", c) + 1))


def walltime_improvement_measured(alpha: Values, gamma: Values, c: Values, pass_cost: Values) -> Result:
    """Expected speedup over plain decoding with the measured cost of verification.

    (1 - α^(γ+1)) / ((1 - α)(γc + v)), which is Theorem 3.8 with the measured v in place of 1.

    Args:
      alpha, gamma, c: as everywhere; at γ = 0 plain decoding is meant, whatever `pass_cost` says.
      pass_cost: v, time of a target run over γ + 1 positions / time of a run over one, > 0; broadcasts with gamma.
    """
    gammas = _gamma(gamma)
    cost = _checked("pass_cost", pass_cost, "a finite number above 0", lambda v: (v > 0) & np.isfinite(v))
    tokens = _expected_tokens(_alpha(alpha), gammas)
    return _result(np.where(gammas > 0, tokens / (gammas * _cost("c", c) + cost), 1.0))


def optimal_gamma_measured(alpha: float, c: float, pass_costs: Mapping[int, float]) -> int:
    """The γ that maximises `walltime_improvement_measured`, the smallest where several do.

    Args:
      alpha, c: as everywhere.
      pass_costs: by number of positions n, time of a target run over n / time of a run over one. γ = 0 and every γ with
        γ + 1 among them are considered, and those between two of them, with costs on the line between.
    """
    widths = sorted({1: 1.0, **pass_costs})
    gammas = np.arange(widths[-1], dtype=np.float64)
    costs = np.interp(gammas + 1, widths, [{1: 1.0, **pass_costs}[width] for width in widths])
    improvement = walltime_improvement_measured(alpha, gammas, c, costs)
    return int(np.argmax(improvement >= improvement.max() * (1 - 1e-12)))


def operations_factor(alpha: Values, gamma: Values, c_hat: Values) -> Result:
    """Expected factor of arithmetic operations per token, (1 - α)(γĉ + γ + 1) / (1 - α^(γ+1)) (Theorem 3.11)."""
    gammas = _gamma(gamma)
    return _result((gammas * _cost("c_hat", c_hat) + gammas + 1) / _expected_tokens(_alpha(alpha), gammas))


def guaranteed_improvement(alpha: Values, c: Values) -> Result:
    """The improvement that some γ reaches at least, (1 + α) / (1 + c) where α > c (Corollary 3.9; it is that of γ = 1).

    1 where α <= c: plain decoding is then the guarantee.
    """
    values, costs = _alpha(alpha), _cost("c", c)
    return _result(np.where(values > costs, (1 + values) / (1 + costs), 1.0))


def optimal_gamma(alpha: Values, c: Values, *, max_gamma: int = 64) -> int | npt.NDArray[np.int64]:
    """The γ in 0..max_gamma that maximises Theorem 3.8's improvement (§3.5), the smallest where several do.

    The improvement rises up to γ* and falls after it, so that a result of `max_gamma` says that the optimum is there or
    beyond; at α = 1 and c < 1 it has no finite optimum.

    Args:
      alpha, c: as everywhere.
      max_gamma: the largest γ considered, at least 0.
    """
    if max_gamma < 0 or max_gamma != int(max_gamma):
        raise ValueError(f"max_gamma = {max_gamma}: must be an integer of at least 0")
    values, costs = _alpha(alpha)[..., None], _cost("c", c)[..., None]
    gammas = np.arange(max_gamma + 1, dtype=np.float64)
    improvement = _expected_tokens(values, gammas) / (gammas * costs + 1)                # float64[..., max_gamma + 1]
    best = improvement >= improvement.max(axis=-1, keepdims=True) * (1 - 1e-12)          # equal up to rounding
    first = np.argmax(best, axis=-1)
    return int(first) if first.ndim == 0 else first.astype(np.int64)
