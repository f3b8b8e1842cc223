"""The comparison's arithmetic, on numbers worked out by hand."""
import pytest

from benchmarks import measure
from pipeline.benchmarking.paired import Ratio


def runs(system: str, seconds: list[float], tokens: int = 10, batch: int = 1) -> list[measure.TimedRun]:
    return [measure.TimedRun(system, batch, repeat, s, s, tokens) for repeat, s in enumerate(seconds)]


def test_the_first_repeat_is_dropped_and_time_is_per_token():
    both = runs("a", [99.0, 2.0, 4.0, 3.0]) + runs("b", [99.0, 1.0, 1.0, 1.0]) + runs("a", [0.0, 7.0], batch=8)
    times = measure.seconds_per_token(both, "a", 1)
    assert times == pytest.approx([0.2, 0.4, 0.3])
    assert measure.Spread.of(times) == measure.Spread(
        pytest.approx(0.3), pytest.approx(0.2), pytest.approx(0.4))


def test_no_repeat_to_summarise_is_refused():
    with pytest.raises(ValueError, match="at least one repeat"):
        measure.Spread.of([])


def test_speeds_are_in_the_order_of_repeats_and_compared_within_them():
    # The machine is twice as slow in repeat 2: both systems suffer, and the ratio does not move.
    both = runs("a", [9.0, 3.0, 6.0, 3.0]) + runs("b", [9.0, 1.0, 2.0, 1.0])
    base, system = (measure.seconds_per_token(both[::-1], name, 1) for name in "ab")
    assert base == pytest.approx([0.3, 0.6, 0.3])
    assert Ratio.of(base, system) == Ratio(pytest.approx(3.0), pytest.approx(3.0), pytest.approx(3.0), 3)


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
