"""Ratios and their intervals, and the order of runs."""

import math

import numpy as np
import pytest

from pipeline.benchmarking.paired import Ratio, interleaved


def test_ratio_of_known_logs():
    logs = np.array([0.1, 0.2, 0.3])
    found = Ratio.of(list(2.0 * np.exp(logs)), [2.0] * 3)
    margin = 4.302653 * 0.1 / math.sqrt(3)  # t quantile of 2 degrees of freedom, from a table; standard deviation 0.1
    assert found.mean == pytest.approx(math.exp(0.2))
    assert (found.low, found.high) == pytest.approx((math.exp(0.2 - margin), math.exp(0.2 + margin)))
    assert found.repeats == 3


def test_what_slows_a_whole_repeat_cancels():
    found = Ratio.of([1.0, 10.0, 100.0], [0.5, 5.0, 50.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_one_repeat_has_no_interval():
    assert Ratio.of([3.0], [2.0]) == Ratio(pytest.approx(1.5), None, None, 1)


@pytest.mark.parametrize(("base", "other"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_no_ratio(base, other):
    with pytest.raises(ValueError, match=r"repeats|negative"):
        Ratio.of(base, other)


def test_interval_keeps_its_level():
    """Of 4,000 experiments of 7 repeats, 95% cover the truth: 3 standard errors are 1.04%."""
    rng = np.random.default_rng(0)
    noise = np.exp(rng.normal(0.0, 0.1, (4000, 7)))
    found = [Ratio.of(list(1.3 * one), [1.0] * 7) for one in noise]
    covered = np.mean([ratio.low <= 1.3 <= ratio.high for ratio in found])
    assert abs(covered - 0.95) < 0.0104


def test_order():
    groups = [["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]
    order = list(interleaved(groups, repeats=20, seed=5))
    assert [repeat for repeat, _ in order] == [repeat for repeat in range(21) for _ in groups]
    for start in range(0, len(order), 3):  # every repeat has every group once, and each all its settings once
        assert sorted(sorted(found) for _, found in order[start : start + 3]) == groups
    assert len({tuple(found) for _, found in order if len(found) == 3}) == 6
    assert len({tuple(found[0][0] for _, found in order[i : i + 3]) for i in range(0, len(order), 3)}) == 6
    assert list(interleaved(groups, repeats=20, seed=5)) == order
    assert list(interleaved(groups, repeats=20, seed=6)) != order


def test_a_ratio_is_shown_with_its_interval_where_it_has_one():
    assert f"{Ratio(1.3, 1.21, 1.394, 7):.2f}" == "1.30 (1.21 to 1.39)"
    assert f"{Ratio(1.5, None, None, 1):.1f}" == "1.5"
