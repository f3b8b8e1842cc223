"""Statistics: merging is exact in any order, the interval covers what it should, BLEU is the corpus's."""

import dataclasses
import json

import apache_beam as beam
import numpy as np
import pytest
import sacrebleu
from apache_beam.testing.util import assert_that, equal_to

from decoding import DecodingConfig, Generation
from pipeline.report import estimates
from pipeline.runners.options import LOCAL_RUNNER
from tests.pipeline.fakes import fake_generation
from transforms.records import example_error
from transforms.statistics.analysis import Texts, sums_of_generations
from transforms.statistics.combine import CombineStatistics
from transforms.statistics.generations import DecodedText, Statistics, shard_statistics
from transforms.statistics.intervals import NUM_REPLICATES, poisson_weights
from transforms.statistics.sums import FIXED_BITS, Sums

CONFIG = DecodingConfig(gamma=3, max_decode_tokens=20)


def decoded(i: int, targets: str | None = "a b c d") -> DecodedText:
    return DecodedText(f"id{i}", fake_generation(CONFIG, (i,), f"id{i}"), f"a b c {i % 3} d e", targets)


def statistics(indices, **kwargs) -> Statistics:
    texts = [decoded(int(i)) for i in indices]
    return shard_statistics(texts, kwargs.pop("errors", []), num_examples=len(texts), input_tokens=7, truncated=1)


def without_times(one: Statistics) -> Statistics:
    return dataclasses.replace(one, row_seconds=0.0)


def test_known_sums():
    generation = Generation(
        tokens=np.array([5, 6, 7, 1], np.int32),
        source=np.array([1, 0, 1, 2], np.int8),
        iteration=np.array([0, 0, 1, 1], np.int32),
        beta=np.array([0.5, 0.25, 1.0, np.nan], np.float32),
        target_logprob=np.zeros(4, np.float32),
        draft_logprob=np.zeros(4, np.float32),
        gammas=np.array([2, 1], np.int16),
        accepted=np.array([1, 1], np.int16),
        finish_reason="eos",
        decode_seconds=2.0,
    )
    error = example_error("x", 3, "decode", "ValueError", "", "f:1", "")
    one = shard_statistics(
        [DecodedText("id", generation, "text", None)], [error], num_examples=1, input_tokens=4, truncated=0
    )
    total = one.summary()
    assert total["tokens"] == 4
    assert total["target_calls"] == 2
    assert total["target_calls_per_token"] == 0.5
    assert total["accepted_per_target_call"] == 1.0
    assert total["draft_tokens"] == {"proposed": 3, "accepted": 2}
    assert total["alpha"]["mean"] == (0.5 + 0.25 + 1.0) / 3
    assert total["alpha"]["positions"] == 3
    assert total["sources"] == {"resampled": 1, "accepted": 2, "bonus": 1, "plain": 0}
    assert total["finish_reasons"] == {"eos": 1}
    assert total["errors"] == {"total": 1, "decode": 1}
    assert total["bleu"] is None
    assert total["timings"]["row_seconds"] == 2.0


def test_merge_is_exact_in_any_order():
    whole = statistics(range(40))
    rng = np.random.default_rng(0)
    for pieces in (2, 7, 40):
        parts = [statistics(chunk) for chunk in np.array_split(rng.permutation(40), pieces)]
        merged = Statistics()
        for part in rng.permutation(np.array(parts, dtype=object)):
            merged = merged.merge(part)
        expected = dataclasses.replace(whole, parts=pieces, input_tokens=7 * pieces, truncated=pieces)
        assert without_times(merged) == without_times(expected)


def test_neutral_element_and_json():
    one = statistics(range(5), errors=[example_error("x", 0, "read", "E", "", "", "")])
    assert one.merge(Statistics()) == one == Statistics().merge(one)
    assert Statistics.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.errors == {"read": 1}


def test_beam_combines_to_the_same():
    parts = [statistics([i]) for i in range(9)]
    expected = CombineStatistics().merge_accumulators(parts)
    with beam.Pipeline(runner=LOCAL_RUNNER) as root:
        total = root | beam.Create(parts) | beam.Reshuffle() | beam.CombineGlobally(CombineStatistics())
        assert_that(total | beam.Map(without_times), equal_to([without_times(expected)]))


def test_poisson_weights():
    weights = np.stack([poisson_weights(f"example {i}") for i in range(3000)])
    assert weights.shape == (3000, NUM_REPLICATES)
    expected = np.exp(-1) / np.array([1, 1, 2, 6, 24, 120])
    observed = np.array([np.mean(weights == k) for k in range(6)])
    np.testing.assert_allclose(observed, expected, atol=6 * np.sqrt(expected / weights.size).max())
    # Neither replicates nor examples go together.
    assert np.abs(np.corrcoef(weights[:, :20].T) - np.eye(20)).max() < 0.1
    assert np.abs(np.corrcoef(weights[:20]) - np.eye(20)).max() < 0.35


def test_poisson_weights_never_change():
    """Footers of different versions must merge: these numbers are fixed for ever."""
    assert poisson_weights("input.jsonl:1")[:12].tolist() == PINNED
    assert poisson_weights("ü")[:4].tolist() == PINNED_UMLAUT


PINNED = [3, 1, 0, 0, 4, 0, 0, 0, 2, 2, 2, 0]
PINNED_UMLAUT = [1, 0, 2, 1]


def test_interval_covers_the_mean():
    """Clustered data: all tokens of an example share one β. The interval must be as wide as examples, not tokens, ask."""
    rng = np.random.default_rng(1)
    covered, widths = 0, []
    for trial in range(100):
        betas = rng.beta(2, 1, 80).astype(np.float32)
        one = Statistics()
        sums, counts = np.zeros((2, NUM_REPLICATES), np.int64)
        fixed = np.rint(betas.astype(np.float64) * 2**FIXED_BITS).astype(np.int64)
        for i in range(80):
            weights = poisson_weights(f"{trial} {i}")
            sums += weights * fixed[i] * 25
            counts += weights * 25
        one = Statistics(
            examples=80, examined=80,
            sums=Sums({"beta#": np.array([80 * 25, *counts])}, {"beta": np.array([fixed.sum() * 25, *sums])}),
        )  # fmt: skip
        alpha = one.alpha()
        covered += alpha["low"] <= 2 / 3 <= alpha["high"]
        widths.append(alpha["high"] - alpha["low"])
    assert 86 <= covered <= 100
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(1 / 18 / 80), rel=0.1)


def generation_of(beta, *, plain: bool = False) -> Generation:
    """Of which every call drafts one token, or none."""
    beta = np.array(beta, np.float32)
    size = len(beta)
    return Generation(
        tokens=np.arange(2, 2 + size, dtype=np.int32), source=np.full(size, 3 if plain else 1, np.int8),
        iteration=np.arange(size, dtype=np.int32), beta=beta, target_logprob=0 * beta, draft_logprob=0 * beta,
        gammas=np.full(size, 0 if plain else 1, np.int16), accepted=np.full(size, 0 if plain else 1, np.int16),
        finish_reason="length", decode_seconds=0.0,
    )  # fmt: skip


def test_the_interval_of_alpha_rests_on_examples_that_were_drafted():
    """Plain shards and rows without a match tell nothing of α; and the analysis of the same rows says the same."""
    rng = np.random.default_rng(0)
    drafted = {
        "one": [("a", [1.0] * 4)],
        "all accepted": [(f"a{i}", [1.0, 1.0]) for i in range(5)],
        "mixed": [(f"x{i}", rng.beta(2, 2, 10)) for i in range(4)],
        "samples": [(f"x{i // 3}", rng.beta(2, 2, 10)) for i in range(12)],
    }
    plain = [(f"p{i}", generation_of([np.nan] * 4, plain=True)) for i in range(300)]
    for name, betas in drafted.items():
        rows = [(key, generation_of(beta)) for key, beta in betas]
        alphas = []
        for some in (rows, rows + plain):
            texts = [DecodedText(key, one, "", None) for key, one in some]
            examples = len({key for key, _ in some})
            one = shard_statistics(texts, [], num_examples=examples, input_tokens=0, truncated=0)
            assert one.examined == len({key for key, _ in rows})
            alphas.append(one.alpha())
            analysed = estimates.Series(sums_of_generations(texts_of(some), np.zeros(50, np.int64))).alpha()
            for end in ("mean", "low", "high", "standard_error"):
                known = alphas[-1][end]
                assert analysed[end] == (None if known is None else pytest.approx(known, rel=1e-6)), (name, end)
        assert alphas[0] == alphas[1]
        if name == "one":
            assert [alphas[0][end] for end in ("low", "high", "standard_error")] == [0, 1, None]


def texts_of(rows) -> Texts:
    joined = lambda field: np.concatenate([getattr(one, field) for _, one in rows])
    return Texts(
        example_ids=[key for key, _ in rows], lengths=np.array([len(one.tokens) for _, one in rows]),
        tokens=joined("tokens").astype(np.int64), beta=joined("beta").astype(np.float64),
        place=np.zeros(sum(len(one.tokens) for _, one in rows), np.int64), source=joined("source").astype(np.int64),
        gammas=joined("gammas").astype(np.int64), accepted=joined("accepted").astype(np.int64),
        calls=np.array([one.num_iterations for _, one in rows]),
    )  # fmt: skip


def test_bleu_of_merged_shards_is_the_corpus_bleu():
    texts = [decoded(i) for i in range(20)]
    expected = sacrebleu.corpus_bleu([t.prediction for t in texts], [[t.targets for t in texts]])
    merged = statistics(range(13)).merge(statistics(range(13, 20))).bleu()
    assert merged["score"] == pytest.approx(expected.score, abs=1e-12)
    assert merged["references"] == 20
    assert merged["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_bleu_counts_only_rows_with_a_reference():
    texts = [decoded(0), decoded(1, targets=None), decoded(2, targets="")]
    one = shard_statistics(texts, [], num_examples=3, input_tokens=3, truncated=0)
    assert one.references == 2


def test_nothing_decoded():
    total = Statistics(parts=1).summary()
    assert total["alpha"] is None
    assert total["target_calls_per_token"] is None
    assert total["timings"]["tokens_per_second"] is None
