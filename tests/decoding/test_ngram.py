"""Unigram and bigram models: probabilities by the formula, pruning, long rows, files."""

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import decoding
from decoding.drafts import ngram


def fitted(texts, order=2, min_count=1):
    return decoding.NGramDraft.fit(texts, 6, start_id=0, eos_id=1, order=order, min_count=min_count)


def probabilities(draft, tokens) -> np.ndarray:
    """float64[N, V], p(. | token), computed on device."""
    return np.exp(np.asarray(draft.step(jnp.asarray(tokens)[None], jnp.array([0]), {})[0][0], np.float64))


def test_bigram_probabilities_are_those_of_the_formula():
    draft = fitted([[2, 3, 2, 3, 1], [2, 4, 1]])
    # Eight tokens: 1 twice, 2 three times, 3 twice, 4 once; four kinds of six.
    unigram = (np.array([0, 2, 3, 2, 1, 0]) + 4 / 6) / 12
    np.testing.assert_allclose(draft.unigram[...], unigram, rtol=1e-6)
    logits, _ = draft.step(jnp.array([[2, 5]]), jnp.array([0]), {})
    # 2 was followed by 3 twice and by 4 once: c = 3, n = 2.  5 was never seen.
    after_two = (np.array([0, 0, 0, 2, 1, 0]) + 2 * unigram) / 5
    np.testing.assert_allclose(np.exp(logits[0, 0]), after_two, rtol=1e-5)
    np.testing.assert_allclose(np.exp(logits[0, 1]), unigram, rtol=1e-5)
    at_last, _ = draft.step(jnp.array([[5, 2]]), jnp.array([0]), {}, at=jnp.array([1]))
    np.testing.assert_array_equal(at_last[:, 0], logits[:, 0])


def test_what_pruned_pairs_counted_goes_to_the_unigram():
    draft = fitted([[2, 3, 2, 3, 1], [2, 4, 1]], min_count=2)
    unigram = (np.array([0, 2, 3, 2, 1, 0]) + 4 / 6) / 12
    np.testing.assert_allclose(draft.unigram[...], unigram, rtol=1e-6)
    assert draft.followers[...].tolist() == [2, 3]  # after the start token and after 2, both seen twice
    # 2 was followed by 3 twice and by 4 once: the 4 joins n = 2.
    np.testing.assert_allclose(probabilities(draft, [2])[0], (np.array([0, 0, 0, 2, 0, 0]) + 3 * unigram) / 5, rtol=1e-5)
    # 3 was followed by 2 and by 1, once each: both are gone.
    np.testing.assert_allclose(probabilities(draft, [3])[0], unigram, rtol=1e-5)


def test_rows_of_all_lengths_in_one_batch():
    """Rows of 0 to 300 followers: none, one block of the loop, several, and a full last one."""
    rng = np.random.default_rng(0)
    lengths = {2: 1, 3: 127, 4: 128, 5: 129, 6: 256, 7: 300}
    codes = np.concatenate([y * 400 + np.sort(rng.choice(400, n, replace=False)) for y, n in lengths.items()])
    counts = rng.integers(1, 9, len(codes))
    draft = decoding.NGramDraft.from_counts(codes, counts, 400, start_id=0, eos_id=1)
    assert draft.longest == 300
    dense = np.zeros((400, 400))
    dense[codes // 400, codes % 400] = counts
    unigram = np.asarray(draft.unigram[...], np.float64)
    distinct = np.count_nonzero(dense, axis=1, keepdims=True)
    tokens = [7, 2, 9, 5, 6, 3, 4]
    expected = (dense + np.maximum(distinct, 1) * unigram) / np.maximum(dense.sum(1) + distinct[:, 0], 1)[:, None]
    np.testing.assert_allclose(probabilities(draft, tokens), expected[tokens], rtol=2e-5)
    np.testing.assert_allclose(probabilities(draft, tokens).sum(axis=1), 1.0, rtol=1e-5)
    sample = rng.integers(0, 400 * 400, 500)
    np.testing.assert_allclose(draft.pair_log_probs(sample), np.log(expected[sample // 400, sample % 400]), rtol=2e-5)


def test_rows_are_distributions_and_survive_saving(tmp_path):
    for order in (1, 2):
        draft = fitted([[2, 3, 2, 3, 1], [4, 4, 1], []], order)
        found = probabilities(draft, np.arange(6))
        np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-5)
        directory = str(tmp_path / "new" / str(order))
        draft.save(directory, {"order": order})
        np.testing.assert_array_equal(probabilities(decoding.NGramDraft.load(directory), np.arange(6)), found)
        assert ngram.read_info(directory) == ngram.NGramInfo(6, 0, 1, {"order": order})
        arrays = safetensors.numpy.load_file(tmp_path / "new" / str(order) / ngram.FILE)
        assert list(arrays) == ["unigram"] if order == 1 else len(arrays) == 5
        assert [path.name for path in (tmp_path / "new" / str(order)).iterdir()] == [ngram.FILE]


def test_files_on_other_filesystems():
    draft = fitted([[2, 3, 1]])
    assert not ngram.is_ngram("memory://bucket/bigram")
    draft.save("memory://bucket/bigram/")
    assert ngram.is_ngram("memory://bucket/bigram") and fsspec.filesystem("memory").exists(f"/bucket/bigram/{ngram.FILE}")
    np.testing.assert_array_equal(decoding.NGramDraft.load("memory://bucket/bigram").shares[...], draft.shares[...])


def test_what_is_no_ngram_is_refused(tmp_path):
    with pytest.raises(decoding.CheckpointError, match="does not exist"):
        decoding.NGramDraft.load(str(tmp_path))
    path = tmp_path / ngram.FILE
    fitted([[2, 3, 1]]).save(str(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(decoding.CheckpointError, match="not an n-gram model"):
        decoding.NGramDraft.load(str(tmp_path))
    arrays = safetensors.numpy.load(whole)
    for changed, message in (
        ({"followers": arrays["followers"] + 9}, "allowed: 0 to 5"),
        ({"starts": arrays["starts"][1:]}, "shapes"),
        ({"starts": np.array([0, 3, 3, 3, 3, 3, 3], np.int32)}, "increase within a row"),
    ):
        path.write_bytes(safetensors.numpy.save(arrays | changed, {"specbeam": '{"start_id": 0, "eos_id": 1}'}))
        with pytest.raises(decoding.CheckpointError, match=message):
            decoding.NGramDraft.load(str(tmp_path))
    path.write_bytes(safetensors.numpy.save(arrays))
    with pytest.raises(decoding.CheckpointError, match="not an n-gram model"):
        ngram.read_info(str(tmp_path))


def test_bad_texts_and_settings_are_refused():
    with pytest.raises(ValueError, match="allowed: 0 to 5"):
        fitted([[6]])
    with pytest.raises(ValueError, match="order is 3"):
        fitted([[2]], order=3)
    with pytest.raises(ValueError, match="min_count is 0"):
        fitted([[2]], min_count=0)
