"""Counting for n-gram drafts: exact under any cutting and merging, and the same file."""

import numpy as np
import pyarrow as pa
import pytest

import decoding
from decoding.drafts import ngram
from transforms.ngram import (
    FIT,
    CountTexts,
    FitSettings,
    MergeCounts,
    ReadGenerations,
    Texts,
    Totals,
    fit,
    is_held_out,
    merge_counts,
)
from transforms.parts import Footer, encode_table
from transforms.statistics.generations import Statistics


def texts(count=200, vocabulary=150):
    rng = np.random.default_rng(0)
    return [(int(rng.integers(0, 3)), (rng.zipf(1.5, rng.integers(0, 40)) % vocabulary).astype(np.int32)) for _ in range(count)]


def fit_cut(tmp_path, cuts, held_out=0.2, **changes):
    """Fits to `texts()` cut into so many shards, merged in an order of its own."""
    count, combine, found, totals = CountTexts(150, held_out), MergeCounts(), {}, Totals()
    rng = np.random.default_rng(cuts)
    for places in np.array_split(rng.permutation(200), cuts):
        for output in count.process(Texts(tuple(texts()[place] for place in places), failed=1)):
            if isinstance(output, tuple):
                found.setdefault(output[0], []).append(output[1])
            else:
                totals += output.value
    merged = []
    for key, parts in found.items():
        middle = rng.integers(0, len(parts) + 1)
        accumulators = []
        for half in (parts[:middle], parts[middle:]):
            accumulator = combine.create_accumulator()
            for part in half:
                accumulator = combine.add_input(accumulator, part)
            accumulators.append(combine.compact(accumulator))
        merged.append((key, combine.extract_output(combine.merge_accumulators(accumulators))))
    settings = {"order": 2, "min_count": 1} | changes
    directory = str(tmp_path / f"{cuts}")
    fit(FitSettings(directory, 150, 0, 1, held_out=held_out, about={"source": "test"}, **settings), merged, totals)
    return directory, totals


def test_any_cutting_gives_the_same_bytes(tmp_path):
    written = []
    for cuts in (1, 7, 40):
        directory, totals = fit_cut(tmp_path, cuts)
        assert totals.failed == cuts and totals.texts + totals.held_out_texts == 200
        about = ngram.read_info(directory).about
        written.append(decoding.NGramDraft.load(directory))
        assert about["tokens"] == totals.tokens and about["stored_pairs"] == len(written[-1].followers[...])
        assert about["held_out_perplexity"] == ngram.read_info(str(tmp_path / "1")).about["held_out_perplexity"]
    for other in written[1:]:
        for name in ("unigram", "starts", "followers", "shares", "backoff"):
            np.testing.assert_array_equal(getattr(written[0], name)[...], getattr(other, name)[...])


def test_it_is_the_model_that_fit_makes(tmp_path):
    """Every text that is not held out, each after its own first token."""
    directory, _ = fit_cut(tmp_path, 3, min_count=2)
    kept = [(previous, tokens) for previous, tokens in texts() if not is_held_out(tokens, 0.2)]
    held_out = [(previous, tokens) for previous, tokens in texts() if is_held_out(tokens, 0.2)]
    assert 20 < len(held_out) < 60
    codes = np.concatenate([ngram.pair_codes(previous, tokens, 150) for previous, tokens in kept])
    expected = decoding.NGramDraft.from_counts(
        *np.unique(codes, return_counts=True), 150, start_id=0, eos_id=1, min_count=2
    )
    found = decoding.NGramDraft.load(directory)
    np.testing.assert_array_equal(found.shares[...], expected.shares[...])
    np.testing.assert_array_equal(found.backoff[...], expected.backoff[...])
    apart = np.concatenate([ngram.pair_codes(previous, tokens, 150) for previous, tokens in held_out])
    perplexity = ngram.read_info(directory).about["held_out_perplexity"]
    np.testing.assert_allclose(perplexity, np.exp(-expected.pair_log_probs(apart).mean()), rtol=1e-6)
    assert 2 < perplexity < 150


def test_sums_of_sparse_counts():
    a = np.array([3, 7, 1 << 40]), np.array([1, 2, 3])
    b = np.array([0, 7]), np.array([5, 6])
    codes, counts = merge_counts([a, b, a])
    assert codes.tolist() == [0, 3, 7, 1 << 40] and counts.tolist() == [5, 2, 10, 6]
    for nothing in ([], [(np.zeros(0, np.int64), np.zeros(0, np.int64))]):
        codes, counts = merge_counts(nothing)
        assert codes.dtype == counts.dtype == np.int64 and len(codes) == len(counts) == 0


def test_nothing_to_fit_to_and_nothing_held_out(tmp_path):
    with pytest.raises(ValueError, match="no token"):
        fit(FitSettings(str(tmp_path), 6, 0, 1, 2, 1, 0.0, {}), [], Totals(failed=3))
    counts = (np.array([2]), np.array([1]))
    fit(FitSettings(str(tmp_path), 6, 0, 1, 2, 1, 0.0, {}), [((FIT, 0), counts)], Totals(texts=1, tokens=1))
    assert ngram.read_info(str(tmp_path)).about["held_out_perplexity"] is None


@pytest.mark.parametrize(("start_id", "before"), [(0, [0, 0]), (None, [6, 9])])
def test_generations_follow_the_start_token_or_their_prompts(tmp_path, start_id, before):
    path = tmp_path / "part.parquet"
    table = pa.table({"input_tokens": [[5, 6], [9]], "output_tokens": [[7, 1], [8]], "other": [1, 2]})
    path.write_bytes(encode_table(table, Footer(0, "f00", 1, "cpu", Statistics())))
    (read,) = ReadGenerations(start_id, "f00").process(str(path))
    assert [(previous, tokens.tolist()) for previous, tokens in read.texts] == list(zip(before, [[7, 1], [8]]))
