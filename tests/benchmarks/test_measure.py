"""The comparison's arithmetic, on numbers worked out by hand."""
import itertools
import math

import pytest

from benchmarks import measure


def runs(system: str, seconds: list[float], tokens: int = 10, batch: int = 1) -> list[measure.Run]:
    return [measure.Run(system, batch, repeat, s, s, tokens) for repeat, s in enumerate(seconds)]


def test_every_repeat_runs_every_cell_once_and_in_its_own_order():
    cells = [(system, batch) for system in "abc" for batch in (1, 8)]
    order = list(measure.interleaved(cells, repeats=5, seed=0))
    rounds = [[(s, b) for _, s, b in group] for _, group in itertools.groupby(order, key=lambda run: run[0])]
    assert [repeat for repeat, *_ in order] == [r for r in range(6) for _ in cells]
    assert all(sorted(one) == cells for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert list(measure.interleaved(cells, repeats=5, seed=0)) == order
    assert list(measure.interleaved(cells, repeats=5, seed=1)) != order


def test_the_first_repeat_is_dropped_and_time_is_per_token():
    both = runs("a", [99.0, 2.0, 4.0, 3.0]) + runs("b", [99.0, 1.0, 1.0, 1.0]) + runs("a", [0.0, 7.0], batch=8)
    times = measure.seconds_per_token(both, "a", 1)
    assert times == pytest.approx({1: 0.2, 2: 0.4, 3: 0.3})
    assert measure.Spread.of(list(times.values())) == measure.Spread(
        pytest.approx(0.3), pytest.approx(0.2), pytest.approx(0.4))


def test_no_repeat_to_summarise_is_refused():
    with pytest.raises(ValueError, match="at least one repeat"):
        measure.Spread.of([])
    with pytest.raises(ValueError, match=r"base has \[1\], system has \[2\]"):
        measure.paired_ratio({1: 1.0}, {2: 1.0})


def test_ratios_are_of_the_same_repeat():
    # The machine is twice as slow in repeat 2: both systems suffer, and the ratio does not move.
    ratio = measure.paired_ratio({1: 0.3, 2: 0.6, 3: 0.3}, {1: 0.1, 2: 0.2, 3: 0.1})
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((3.0, 3.0, 3.0))


def test_the_interval_of_a_ratio_covers_its_geometric_mean_and_narrows_with_repeats():
    def ratio(repeats: int) -> measure.Spread:
        return measure.paired_ratio(dict.fromkeys(range(repeats), 1.0), {r: (0.25, 1.0)[r % 2] for r in range(repeats)})

    few, many = ratio(4), ratio(64)
    assert few.median == many.median == pytest.approx(2.0)
    assert few.low < many.low < 2.0 < many.high < few.high
    # Logs of 0 and log 4 in turn; Student's t with 63 and with 3 degrees of freedom: 1.998 and 3.182.
    spread = lambda repeats: math.log(4) / 2 * math.sqrt(repeats / (repeats - 1)) / math.sqrt(repeats)
    assert math.log(many.high / many.median) == pytest.approx(1.998 * spread(64), rel=1e-3)
    assert math.log(few.high / few.median) == pytest.approx(3.182 * spread(4), rel=1e-3)
    assert (ratio(1).low, ratio(1).high) == (0.0, math.inf)


def test_tokens_end_with_the_first_eos_or_at_the_limit():
    assert measure.until_eos([5, 6, 1, 0, 0], eos=1, limit=4) == [5, 6, 1]
    assert measure.until_eos([5, 6, 7, 8, 1], eos=1, limit=4) == [5, 6, 7, 8]
    assert measure.until_eos([1, 1], eos=1, limit=4) == [1]


def test_agreement_counts_equal_sequences_and_equal_prefixes():
    reference = [[5, 6, 1], [5, 6, 7, 1], [8, 1]]
    outputs = [[5, 6, 1], [5, 9, 7, 1], [8, 1, 1]]
    assert measure.agreement(reference, outputs) == measure.Agreement(
        equal_sequences=1, sequences=3, equal_prefix_tokens=3 + 1 + 2, tokens=9)
    with pytest.raises(ValueError, match="1 outputs for 3 inputs"):
        measure.agreement(reference, [[1]])
