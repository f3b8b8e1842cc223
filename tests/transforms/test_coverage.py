"""The 95% intervals hold the truth in 95 of 100 jobs, where β goes together within a text; intervals over tokens do not.

A simulated job has 100 texts. Text i has its own level z_i, its β follow an autoregression around it, and its length
grows or shrinks with z_i. The truth, E[Σβ] / E[tokens], is an integral over z alone.
"""

import math

import numpy as np
import pytest
from scipy.special import ndtr, stdtrit

from transforms.statistics.intervals import LEVEL, bootstrap_interval, poisson_weights, student_quantile

TEXTS, JOBS_PER_SET, SETS = 100, 100, 40
BETWEEN, WITHIN, CORRELATION, LONGEST = 0.6, 1.0, 0.7, 60


def truth(level: float, slope: float) -> float:
    """E[n β] / E[n] by Gauss-Hermite quadrature over z."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    length = 5 + expected_length(nodes, slope)
    beta = ndtr((level + BETWEEN * nodes) / np.sqrt(1 + WITHIN**2))
    return float(np.sum(weights * length * beta) / np.sum(weights * length))


def expected_length(z: np.ndarray, slope: float) -> np.ndarray:
    """Mean of the binomial part of a text's length."""
    return (LONGEST - 5) * ndtr(slope * z - 0.5)


def simulate(rng: np.random.Generator, level: float, slope: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Σβ, Σβ² and tokens of every text, float64[JOBS_PER_SET, TEXTS] each."""
    shape = (JOBS_PER_SET, TEXTS)
    z = rng.standard_normal(shape)
    lengths = 5 + rng.binomial(LONGEST - 5, ndtr(slope * z - 0.5))
    state = rng.standard_normal(shape, np.float32)
    sums, squares = np.zeros((2, *shape))
    for position in range(LONGEST):
        beta = np.where(position < lengths, ndtr(level + BETWEEN * z + WITHIN * state), 0.0)
        sums, squares = sums + beta, squares + beta**2
        noise = rng.standard_normal(shape, np.float32)
        state = np.float32(CORRELATION) * state + np.float32(np.sqrt(1 - CORRELATION**2)) * noise
    return sums, squares, lengths.astype(np.float64)


@pytest.mark.parametrize(("level", "slope"), [(0.6, 0.5), (-1.8, -0.3)], ids=["alpha 0.68", "alpha 0.11"])
def test_coverage_over_4000_jobs(level, slope):
    rng, known = np.random.default_rng(11), truth(level, slope)
    covered = dict.fromkeys(("bootstrap", "over tokens"), 0)
    for number in range(SETS):
        weights = np.stack([poisson_weights(f"{number}/{text}") for text in range(TEXTS)]).astype(np.float64)
        sums, squares, lengths = simulate(rng, level, slope)
        mean = sums.sum(1) / lengths.sum(1)
        low, high = bootstrap_interval(mean, (sums @ weights) / (lengths @ weights), TEXTS, proportion=True)
        covered["bootstrap"] += np.sum((low <= known) & (known <= high))
        tokens = lengths.sum(1)
        naive = 1.96 * np.sqrt((squares.sum(1) / tokens - mean**2) / tokens)  # as if all tokens were independent
        covered["over tokens"] += np.sum(np.abs(mean - known) <= naive)
    rates = {name: count / (SETS * JOBS_PER_SET) for name, count in covered.items()}
    assert SETS * JOBS_PER_SET == 4000
    assert 0.93 <= rates["bootstrap"] <= 0.965, rates
    assert rates["over tokens"] < 0.75, rates


def test_interval_by_hand():
    assert LEVEL == 0.95
    low, high = bootstrap_interval(0.5, np.array([0.4, 0.6]), 2)
    # Standard deviation 0.1 √2, times √(2 / 1), and t with 1 / (1/1 + 1/1) degrees of freedom.
    assert high - 0.5 == pytest.approx(0.2 * stdtrit(0.5, 0.975))
    assert 0.5 - low == pytest.approx(high - 0.5)


def test_a_proportion_stays_within_its_bounds():
    replicates = np.random.default_rng(0).normal(0.02, 0.02, 200)
    low, high = bootstrap_interval(0.02, replicates, 50, proportion=True)
    assert 0 < low < 0.02 < high < 1
    assert bootstrap_interval(0.02, replicates, 50)[0] < 0


def test_a_proportion_without_an_exception():
    """All replicates are the same: what ten examples leave open is Clopper and Pearson's."""
    edge = 0.025 ** (1 / 10)
    assert bootstrap_interval(1.0, np.ones(200), 10, proportion=True) == pytest.approx((edge, 1))
    assert bootstrap_interval(0.0, np.zeros(200), 10, proportion=True) == pytest.approx((0, 1 - edge))


def test_little_data_is_little_known():
    assert bootstrap_interval(0.3, np.array([0.3, 0.3]), 1, proportion=True) == (0, 1)
    assert np.isnan(bootstrap_interval(0.3, np.array([0.3, np.nan]), 9)).all()
    low, high = bootstrap_interval(0.3, np.array([0.2, np.nan, 0.4]), 9)
    assert (low, high) == pytest.approx(bootstrap_interval(0.3, np.array([0.2, 0.4]), 9))
    low, high = bootstrap_interval(np.array([0.3, 0.5]), np.array([[0.2, 0.4], [0.4, 0.6]]), np.array([9, 1]))
    assert np.isnan([low[1], high[1]]).all() and not np.isnan([low[0], high[0]]).any()


def test_students_quantile():
    """Against closed forms, and against scipy, whose own is right to nine digits."""
    p = (1 + LEVEL) / 2
    known = [math.tan(math.pi * (p - 0.5)), (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))]
    np.testing.assert_allclose(student_quantile(np.array([1.0, 2.0])), known, rtol=1e-11)
    freedom = np.concatenate([np.linspace(0.5, 5, 50), np.logspace(0, 7, 50)])
    np.testing.assert_allclose(student_quantile(freedom), stdtrit(freedom, p), rtol=1e-8)
