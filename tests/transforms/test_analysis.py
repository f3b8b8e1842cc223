"""Sums of the analysis: the same to the last bit for any sharding and order, and right by hand."""

import dataclasses
import itertools
import time

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from decoding import theory
from pipeline.runners.options import LOCAL_RUNNER
from transforms.statistics import analysis
from transforms.statistics.analysis import Texts
from transforms.statistics.combine import CombineStatistics, CombineTokenCounts
from transforms.statistics.intervals import poisson_weights
from transforms.statistics.sums import Sums, totals

RANKS = np.arange(50) % 5


def scored(first: int, count: int, longest: int = 30) -> Texts:
    """Texts number `first` and on, each a function of its number alone."""
    parts = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        length = int(rng.integers(1, longest))
        beta = rng.random(length).astype(np.float32).astype(np.float64)
        beta[rng.random(length) < 0.1] = np.nan
        parts.append((length, rng.integers(0, 50, length), beta, rng.random(length)))
    lengths, tokens, beta, acceptance = zip(*parts)
    return Texts(
        example_ids=[f"id{number}" for number in range(first, first + count)],
        lengths=np.array(lengths), tokens=np.concatenate(tokens), beta=np.concatenate(beta),
        acceptance=np.concatenate(acceptance), lenient={0.5: np.minimum(2 * np.concatenate(beta), 1)},
    )  # fmt: skip


def sums_of(first: int, count: int) -> Sums:
    return analysis.sums_of_scores(scored(first, count), RANKS, (1, 3))


def test_the_same_bits_for_any_sharding_and_order():
    whole = sums_of(0, 60)
    rng = np.random.default_rng(0)
    for pieces in (2, 7, 60):
        edges = [0, *sorted(rng.choice(np.arange(1, 60), pieces - 1, replace=False).tolist()), 60]
        parts = [sums_of(a, b - a) for a, b in itertools.pairwise(edges)]
        merged = Sums()
        for i in rng.permutation(pieces):
            merged = parts[i].merge(merged)
        assert merged == whole
        halves = [CombineStatistics(Sums).merge_accumulators(parts[i::2]) for i in (1, 0)]
        assert CombineStatistics(Sums).merge_accumulators(halves) == whole


def test_beam_combines_to_the_same():
    whole = sums_of(0, 12)
    with beam.Pipeline(runner=LOCAL_RUNNER) as root:
        found = (
            root
            | beam.Create([("key", i) for i in range(12)])
            | beam.Reshuffle()
            | beam.MapTuple(lambda key, i: (key, sums_of(i, 1)))
            | beam.CombinePerKey(CombineStatistics(Sums))
        )
        assert_that(found, equal_to([("key", whole)]))


def test_totals_and_replicates_against_their_definition():
    texts, sums = scored(0, 40), sums_of(0, 40)
    weights = np.stack([np.ones(40), *np.array([poisson_weights(name) for name in texts.example_ids]).T])
    betas = np.split(texts.beta, np.cumsum(texts.lengths)[:-1])
    expected = weights @ np.array([np.nansum(beta) for beta in betas])
    np.testing.assert_allclose(sums.fraction("beta"), expected, rtol=1e-7)
    np.testing.assert_array_equal(sums.count("beta#"), weights @ [np.sum(~np.isnan(beta)) for beta in betas])
    np.testing.assert_array_equal(sums.count("tokens"), weights @ texts.lengths)
    third = [beta[4:8] for beta in betas]
    np.testing.assert_allclose(sums.fraction("beta/position/3"), weights @ [np.nansum(b) for b in third], rtol=1e-6)
    assert sums.buckets("beta#/position") == [] and sums.buckets("beta/position#") == [0, 1, 2, 3, 4, 5]
    pairs = [[(b[i], b[i + 2]) for i in range(len(b) - 2) if not np.isnan(b[i] + b[i + 2])] for b in betas]
    np.testing.assert_allclose(
        sums.fraction("lag/2/xy"), weights @ [sum(x * y for x, y in pair) for pair in pairs], rtol=1e-6
    )
    np.testing.assert_array_equal(sums.count("lag/2/xy#"), weights @ [len(pair) for pair in pairs])
    assert sums.fraction("s^2/n")[0] == pytest.approx(
        sum(np.nansum(b) ** 2 / np.sum(~np.isnan(b)) for b in betas if (~np.isnan(b)).any()), rel=1e-7
    )


def test_subsets_are_nested_and_halve():
    levels = np.array([analysis._level(f"id{i}") for i in range(8000)])
    assert levels.min() == 0 and levels.max() == analysis.LEVELS - 1
    for k in range(1, analysis.LEVELS):
        assert abs(np.mean(levels >= k) - 2.0**-k) < 4 * np.sqrt(2.0**-k / 8000)


def test_large_columns_stay_exact():
    weights = np.ones((3, 2))
    weights[1:] = [[7, 18], [0, 3]]
    columns = {"a": np.array([2.0**52 + 1, 2.0**51 + 3]), "b": np.array([5.0, 6.0])}
    a, b = totals(weights, columns)
    assert a.tolist() == [2**52 + 2**51 + 4, 7 * (2**52 + 1) + 18 * (2**51 + 3), 3 * (2**51 + 3)]
    assert b.tolist() == [11, 143, 18]


def test_samples_of_one_example_are_drawn_together():
    texts = dataclasses.replace(scored(0, 3), example_ids=["a", "a", "b"])
    sums = analysis.sums_of_scores(texts, RANKS, (1,))
    w = {name: np.append(1, poisson_weights(name)) for name in "ab"}
    np.testing.assert_array_equal(sums.count("texts"), 2 * w["a"] + w["b"])
    np.testing.assert_array_equal(sums.count("examples"), w["a"] + w["b"])


# Generations.


def generated() -> Texts:
    """Two texts: calls of (γ, accepted) (2, 2) (2, 0) (2, 1, cut by its end), and (1, 1) (0, 0)."""
    return Texts(
        example_ids=["a", "b"], lengths=np.array([6, 3]), tokens=np.array([1, 2, 3, 4, 5, 6, 7, 8, 9]),
        beta=np.array([0.5, 0.25, np.nan, 0.125, 1.0, 0.75, 0.5, np.nan, np.nan]),
        place=np.array([0, 1, 2, 0, 0, 1, 0, 1, 0]), source=np.array([1, 1, 2, 0, 1, 0, 1, 2, 3]),
        gammas=np.array([2, 2, 2, 1, 0]), accepted=np.array([2, 0, 1, 1, 0]), calls=np.array([3, 2]),
    )  # fmt: skip


def test_generations_by_hand():
    sums = analysis.sums_of_generations(generated(), RANKS)
    one = lambda name: float(sums.fraction(name)[0])
    count = lambda name: int(sums.count(name)[0])
    assert (one("beta"), count("beta#"), count("tokens"), count("calls")) == (3.125, 6, 9, 5)
    assert [one(f"beta/place/{k}") for k in (0, 1)] == [0.5 + 0.125 + 1.0 + 0.5, 1.0]
    assert [count(f"beta/place#/{k}") for k in (0, 1)] == [4, 2]
    assert [one(f"beta/source/{k}") for k in (0, 1)] == [0.875, 2.25]
    assert [count(f"calls/{gamma}") for gamma in (0, 1, 2)] == [1, 1, 3]
    assert [count(f"lengths/2/{k}") for k in range(3)] == [1, 0, 1]  # the text's end may cut its last call
    assert [count(f"lengths/1/{k}") for k in range(2)] == [0, 1]
    assert count("beta/place@/1") == 1  # only the first text has examined a second guess


def test_lengths_of_calls_that_the_end_may_cut_are_left_out_without_bias():
    """Of independent acceptances in short texts, the lengths that are kept have the law's very shares."""
    rng, texts, length, gamma = np.random.default_rng(2), 4000, 9, 3
    source, place, gammas, accepted, calls = [], [], [], [], []
    for _ in range(texts):
        at, made = 0, 0
        while at < length:
            n = int(np.argmin([*(rng.random(gamma) < 0.7), False]))
            emitted = min(n + 1, length - at)
            accepted.append(min(n, emitted))
            source += [1] * min(n, emitted) + [0] * (emitted - min(n, emitted))
            place += range(emitted)
            gammas.append(gamma)
            at, made = at + emitted, made + 1
        calls.append(made)
    tokens = np.ones(texts * length, np.int64)
    sums = analysis.sums_of_generations(
        Texts([f"t{i}" for i in range(texts)], np.full(texts, length), tokens, np.full(texts * length, 0.7), None,
              np.array(place), np.array(source), np.array(gammas), np.array(accepted), np.array(calls)), RANKS,
    )  # fmt: skip
    counts = np.array([sums.count(f"lengths/{gamma}/{k}")[0] for k in range(gamma + 1)])
    error = np.sqrt(0.25 / counts.sum())
    assert np.abs(counts / counts.sum() - theory.accepted_lengths(0.7, gamma)).max() < 4 * error


# Predictions.


def test_windows_by_hand():
    beta = np.array([[0.5, 0.25, 1.0], [1.0, 0.0, 0.0]])
    found = analysis.expected_tokens_of_windows(beta, (1, 2, 9))
    np.testing.assert_allclose(found[0], [[1.5, 1.25, 2.0], [2.0, 1.0, 1.0]])
    np.testing.assert_allclose(found[1], [[1.625, 1.5, 2.0], [2.0, 1.0, 1.0]])
    np.testing.assert_allclose(found[2], [[1.75, 1.5, 2.0], [2.0, 1.0, 1.0]])


@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_the_walk_against_simulated_decoding(gamma):
    rng = np.random.default_rng(3)
    acceptance, lengths = rng.random((2, 9)), np.array([9, 5])
    acceptance[1, 5:] = 0
    calls = np.zeros((2, 8_000))
    for row, length in enumerate(lengths):
        for trial in range(calls.shape[1] if row == 0 else 6_000):
            position = 0
            while position < length:
                accepted = 0
                while accepted < gamma and position + accepted < length and rng.random() < acceptance[row, position + accepted]:
                    accepted += 1
                position += accepted + 1
                calls[row, trial] += 1
    expected = analysis.expected_calls(acceptance, lengths, (gamma,))[0]
    for row, trials in ((0, 8_000), (1, 6_000)):
        simulated = calls[row, :trials]
        assert abs(simulated.mean() - expected[row]) < 5 * simulated.std() / np.sqrt(trials)


def test_several_gammas_are_each_their_own():
    rng = np.random.default_rng(4)
    acceptance, lengths = rng.random((5, 12)), np.array([12, 3, 7, 1, 12])
    acceptance *= np.arange(12) < lengths[:, None]
    together = analysis.expected_calls(acceptance, lengths, (3, 1, 7))
    for i, gamma in enumerate((3, 1, 7)):
        np.testing.assert_array_equal(together[i], analysis.expected_calls(acceptance, lengths, (gamma,))[0])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_independent_equal_acceptance_gives_equation_1(alpha):
    length = 4000
    acceptance = np.full((1, length), alpha)
    calls = analysis.expected_calls(acceptance, np.array([length]), (1, 4))[:, 0]
    np.testing.assert_allclose(length / calls, theory.expected_tokens(alpha, np.array([1, 4])), rtol=2e-3)
    windows = analysis.expected_tokens_of_windows(acceptance, (4,))[0]
    assert windows[0, 0] == pytest.approx(theory.expected_tokens(alpha, 4))


# Token frequencies, speed.


def test_rank_buckets():
    counts = np.zeros(30, np.int64)
    counts[[7, 3]] = [5, 9]
    buckets = analysis.rank_buckets(counts)
    assert buckets[[3, 7]].tolist() == [0, 0]
    assert np.bincount(buckets).tolist() == [10, 20]
    combine = CombineTokenCounts()
    total = combine.merge_accumulators([analysis.count_tokens(np.array([1, 1])), analysis.count_tokens(np.array([4]))])
    assert total.tolist() == [0, 2, 0, 0, 1]


def test_a_million_tokens_take_seconds():
    texts = scored(0, 256, longest=80)
    tokens = len(texts.tokens)
    analysis.sums_of_scores(texts, RANKS, range(1, 9))
    started, passes = time.process_time(), 5
    for _ in range(passes):
        analysis.sums_of_scores(texts, RANKS, range(1, 9))
    seconds = (time.process_time() - started) / (passes * tokens) * 1e6
    print(f"{seconds:.1f} s of processor time for a million tokens")
    assert seconds < 60


def test_copied_guesses_by_origin_and_match():
    """Two texts: calls of 3, 1, 2 and of 1, 2 tokens; the second call proposed nothing and the last is a model's."""
    texts = Texts(
        example_ids=["a", "b"], lengths=np.array([6, 3]), tokens=np.arange(9),
        beta=np.array([1.0, 0.5, np.nan, np.nan, 0.25, 0.75, 0.5, 1.0, 0.125]), place=np.array([0, 1, 2, 0, 0, 1, 0, 0, 1]),
        source=np.array([1, 1, 2, 3, 1, 0, 0, 1, 0]), gammas=np.array([2, 0, 2, 2, 2]), accepted=np.array([2, 0, 1, 0, 1]),
        calls=np.array([3, 2]), origin=np.array([3, -1, 1, 3, 0]), match=np.array([0, 0, 2, 4, 0]),
    )  # fmt: skip
    sums = analysis.sums_of_generations(texts, RANKS)
    read = lambda name, of=sums.count: {k: of(f"{name}/{k}")[0] for k in range(5) if of(f"{name}/{k}")[0]}
    assert read("beta/origin", sums.fraction) == {0: 1.125, 1: 1.0, 3: 2.0}
    assert read("guessed/origin") == {0: 1, 1: 1, 3: 2} and read("kept/origin") == {0: 1, 1: 1, 3: 2}
    assert read("beta/match", sums.fraction) == {0: 1.5, 2: 1.0, 4: 0.5}
    assert read("guessed/match") == {0: 1, 2: 1, 4: 1} and read("kept/match") == {0: 2, 2: 1}
