"""The formulas against the paper's printed numbers, exact rational arithmetic, and their limits."""
from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from decoding import theory

# alpha, gamma, operations, speed; c = ĉ = 0 (Table 1).
TABLE_1 = [
    (0.6, 2, 1.53, 1.96), (0.7, 3, 1.58, 2.53), (0.8, 2, 1.23, 2.44),
    (0.8, 5, 1.63, 3.69), (0.9, 2, 1.11, 2.71), (0.9, 10, 1.60, 6.86),
]

# gamma, alpha, c, predicted improvement: the rows of Tables 2 and 4, T5-small, base and large drafts.
TABLE_4 = [
    (7, 0.75, 0.02, 3.2), (7, 0.80, 0.04, 3.3), (7, 0.82, 0.11, 2.5),
    (7, 0.62, 0.02, 2.3), (5, 0.68, 0.04, 2.4), (3, 0.71, 0.11, 2.0),
    (5, 0.65, 0.02, 2.4), (5, 0.73, 0.04, 2.6), (3, 0.74, 0.11, 2.0),
    (5, 0.53, 0.02, 1.9), (3, 0.55, 0.04, 1.8), (3, 0.56, 0.11, 1.6),
]

ALPHAS = [0.0, 0.05, 0.3, 0.5, 0.75, 0.9, 0.99, 1 - 1e-9, 1.0]


def exact_tokens(alpha: float, gamma: int) -> Fraction:
    """Eq. 1 as the sum it abbreviates, Σ α^i for i in 0..γ, in rational arithmetic."""
    return sum((Fraction(alpha) ** i for i in range(gamma + 1)), Fraction(0))


@pytest.mark.parametrize(("alpha", "gamma", "operations", "speed"), TABLE_1)
def test_table_1_to_the_printed_digits(alpha, gamma, operations, speed):
    assert f"{theory.operations_factor(alpha, gamma, 0):.2f}" == f"{operations:.2f}"
    assert f"{theory.walltime_improvement(alpha, gamma, 0):.2f}" == f"{speed:.2f}"


@pytest.mark.parametrize(("gamma", "alpha", "c", "predicted"), TABLE_4)
def test_table_4_predictions_within_the_rounding_of_their_inputs(gamma, alpha, c, predicted):
    lowest = theory.walltime_improvement(alpha - 0.005, gamma, c + 0.005)
    highest = theory.walltime_improvement(alpha + 0.005, gamma, c - 0.005)
    assert lowest - 0.05 <= predicted <= highest + 0.05
    assert highest - lowest < 0.4   # the band is narrow enough to tell a wrong formula


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gamma", [0, 1, 2, 7, 40])
def test_expected_tokens_is_the_geometric_sum(alpha, gamma):
    assert theory.expected_tokens(alpha, gamma) == pytest.approx(float(exact_tokens(alpha, gamma)), rel=1e-13)


def test_expected_tokens_agrees_with_simulated_steps():
    alpha, gamma = 0.7, 4
    accepted = np.random.default_rng(0).random((200_000, gamma)) < alpha
    tokens = 1 + np.cumprod(accepted, axis=1).sum(axis=1)
    error = tokens.std() / math.sqrt(len(tokens))
    assert abs(tokens.mean() - theory.expected_tokens(alpha, gamma)) < 5 * error


def test_limits_are_exact():
    assert theory.expected_tokens(0, 7) == 1
    assert theory.expected_tokens(1, 7) == 8
    assert theory.expected_tokens(0.3, 0) == 1
    assert theory.walltime_improvement(0.3, 0, 0.5) == 1
    assert theory.walltime_improvement(1, 4, 0.25) == 5 / 2
    assert theory.operations_factor(0.3, 0, 0.5) == 1
    assert theory.operations_factor(1, 4, 0) == 1
    assert theory.operations_factor(0, 4, 0) == 5
    assert theory.oracle_expected_tokens(0) == 1
    assert theory.oracle_expected_tokens(0.75) == 4
    assert theory.oracle_expected_tokens(1) == math.inf
    assert theory.optimal_gamma(0, 0) == 0
    assert theory.optimal_gamma(1, 0, max_gamma=9) == 9


def test_fixed_gamma_approaches_the_oracle_and_never_passes_it():
    tokens = theory.expected_tokens(0.8, np.arange(200))
    assert np.all(np.diff(tokens) >= 0)
    assert np.all(tokens <= theory.oracle_expected_tokens(0.8) * (1 + 1e-15))
    assert tokens[-1] == pytest.approx(theory.oracle_expected_tokens(0.8))


@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.1, 0.3, 0.5, 0.62, 0.75, 0.9, 0.97])
@pytest.mark.parametrize("c", [0.0, 0.02, 0.1, 0.11, 0.5, 0.75, 1.0, 2.0])
def test_optimal_gamma_against_brute_force_in_rational_arithmetic(alpha, c):
    improvement = [exact_tokens(alpha, g) / (g * Fraction(c) + 1) for g in range(65)]
    best = max(improvement)
    if c == 0 and alpha > 0:   # rises for ever, by less than rounding at the end
        assert improvement[theory.optimal_gamma(alpha, c)] >= best * (1 - Fraction(1, 10**11))
    else:
        assert theory.optimal_gamma(alpha, c) == improvement.index(best)


def test_optimal_gamma_of_arrays_is_that_of_their_elements():
    alphas, costs = np.array([[0.5], [0.9]]), np.array([0.02, 0.1, 1.0])
    expected = [[theory.optimal_gamma(float(a), float(c)) for c in costs] for a in alphas[:, 0]]
    result = theory.optimal_gamma(alphas, costs)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("c", [0.0, 0.05, 0.2, 0.5, 0.95])
def test_corollary_3_9(alpha, c):
    best = theory.walltime_improvement(alpha, theory.optimal_gamma(alpha, c), c)
    guaranteed = theory.guaranteed_improvement(alpha, c)
    assert best >= guaranteed * (1 - 1e-12)
    assert guaranteed == (pytest.approx((1 + alpha) / (1 + c)) if alpha > c else 1)
    assert (theory.optimal_gamma(alpha, c) > 0) == (alpha > c)


def test_measured_cost_of_one_is_theorem_3_8_and_costlier_passes_gain_less():
    alpha, gamma, c = 0.75, np.array([1, 3, 7]), 0.1
    measured = theory.walltime_improvement_measured(alpha, gamma, c, 1.0)
    np.testing.assert_allclose(measured, theory.walltime_improvement(alpha, gamma, c), rtol=1e-15)
    costly = theory.walltime_improvement_measured(alpha, gamma, c, np.array([1.1, 1.5, 2.5]))
    assert np.all(costly < measured)
    assert costly[1] == pytest.approx(theory.expected_tokens(alpha, 3) / (0.3 + 1.5))
    assert theory.walltime_improvement_measured(alpha, 0, c, 3.0) == 1


def test_accepted_lengths_are_the_capped_geometric_law():
    np.testing.assert_allclose(theory.accepted_lengths(0.5, 3), [0.5, 0.25, 0.125, 0.125])
    np.testing.assert_array_equal(theory.accepted_lengths(0.0, 2), [1, 0, 0])
    np.testing.assert_array_equal(theory.accepted_lengths(1.0, 2), [0, 0, 1])
    np.testing.assert_array_equal(theory.accepted_lengths(0.7, 0), [1])
    for alpha, gamma in ((0.3, 1), (0.8, 7)):
        law = theory.accepted_lengths(alpha, gamma)
        assert law.sum() == pytest.approx(1, rel=1e-14)
        assert 1 + law @ np.arange(gamma + 1) == pytest.approx(theory.expected_tokens(alpha, gamma), rel=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("c", [0.0, 0.05, 0.2])
def test_optimal_gamma_for_measured_costs_against_brute_force(alpha, c):
    free = dict.fromkeys(range(1, 22), 1.0)
    assert theory.optimal_gamma_measured(alpha, c, free) == theory.optimal_gamma(alpha, c, max_gamma=20)
    costs = {1: 1.0, 2: 1.3, 4: 1.5, 8: 2.6}   # 3 positions cost 1.4, 5 to 7 are on the line from 1.5 to 2.6
    known = {0: 1.0, 1: 1.3, 2: 1.4, 3: 1.5, 4: 1.775, 5: 2.05, 6: 2.325, 7: 2.6}
    speeds = {g: 1.0 if g == 0 else float(exact_tokens(alpha, g)) / (g * c + v) for g, v in known.items()}
    assert theory.optimal_gamma_measured(alpha, c, costs) == max(speeds, key=lambda g: (round(speeds[g], 12), -g))


def test_without_measured_costs_there_is_no_choice():
    assert theory.optimal_gamma_measured(0.9, 0.0, {}) == 0


def test_scalars_give_floats_and_arrays_broadcast():
    assert isinstance(theory.expected_tokens(0.5, 2), float)
    assert isinstance(theory.optimal_gamma(0.5, 0.1), int)
    grid = theory.walltime_improvement(np.linspace(0, 1, 5)[:, None], np.arange(4), 0.1)
    assert grid.shape == (5, 4)
    assert grid.dtype == np.float64
    assert grid[2, 3] == theory.walltime_improvement(0.5, 3, 0.1)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: theory.expected_tokens(1.5, 2), r"alpha = 1.5: must be between 0 and 1"),
    (lambda: theory.expected_tokens(np.array([0.5, -0.1]), 2), r"alpha = -0.1: must be between 0 and 1"),
    (lambda: theory.expected_tokens(math.nan, 2), r"alpha = nan: must be between 0 and 1"),
    (lambda: theory.expected_tokens(0.5, -1), r"gamma = -1: must be an integer of at least 0"),
    (lambda: theory.expected_tokens(0.5, 1.5), r"gamma = 1.5: must be an integer of at least 0"),
    (lambda: theory.walltime_improvement(0.5, 2, -0.1), r"c = -0.1: must be a finite number of at least 0"),
    (lambda: theory.walltime_improvement_measured(0.5, 2, 0, 0), r"pass_cost = 0: must be a finite number above 0"),
    (lambda: theory.operations_factor(0.5, 2, math.inf), r"c_hat = inf: must be a finite number of at least 0"),
    (lambda: theory.guaranteed_improvement(2, 0), r"alpha = 2: must be between 0 and 1"),
    (lambda: theory.oracle_expected_tokens(-1), r"alpha = -1: must be between 0 and 1"),
    (lambda: theory.optimal_gamma(0.5, 0.1, max_gamma=-3), r"max_gamma = -3: must be an integer of at least 0"),
])
def test_values_out_of_range_are_named_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
