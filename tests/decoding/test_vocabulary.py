"""Vocabularies padded by different amounts: padding has probability 0 in both models, and nothing else changes."""

import numpy as np
import pytest

import decoding
from decoding.models.vocabulary import FirstTokens
from tests.support import reference, tiny_t5
from tests.support.scripted import Scripted, greedy, near

INPUTS, LENGTH, LONGEST, REAL = [3, 4, 5], 4, 6, 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Six real tokens; the target has 9 rows, the draft 8, and the padding is as likely as anything."""
    folder = tmp_path_factory.mktemp("padded")

    def build(name: str, size: int, seed: int, layers: int):
        shape = tiny_t5.config(size, layers=layers)
        return decoding.load_model(tiny_t5.write(folder / name, shape, tiny_t5.weights(shape, seed, head=0.6)))

    return build("target", 9, 0, 2), build("draft", 8, 10, 1)


def generate(pair, vocab_size, rounds=1, **settings):
    config = decoding.DecodingConfig(
        num_samples=rounds, num_slots=min(rounds, 256), max_decode_tokens=LONGEST, input_buckets=(4,), chunk_iterations=4,
        **settings,
    )  # fmt: skip
    return decoding.Generator(*pair, config, vocab_size=vocab_size).generate([INPUTS], ["example"])


def logits_along(model, tokens) -> np.ndarray:
    """float32[T, V], the whole model's, teacher forced; of one shape, so that it is compiled once."""
    fed = np.zeros((1, LONGEST), np.int32)
    fed[0, 1 : len(tokens)] = tokens[:-1]
    return np.asarray(model.logits(fed, np.array([INPUTS]), np.array([3])))[0, : len(tokens)]


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["token", "block"])
def test_samples_have_the_law_of_the_target_without_its_padding(pair, verification):
    for model in pair:
        assert reference.standardize(logits_along(model, [0]))[0, REAL:].sum() > 0.05, "padding must matter"
    rows = generate(pair, REAL, 8_000, gamma=3, verification=verification)
    cut = FirstTokens(pair[0], REAL)
    law = reference.sequence_law(cut, INPUTS, length=LENGTH, temperature=1.0, top_k=0, top_p=1.0)
    assert reference.chi_square([tuple(row.tokens[:LENGTH].tolist()) for row in rows], law)[0] > 1e-6
    assert max(row.tokens.max() for row in rows) < REAL
    sources = np.concatenate([row.source for row in rows])
    assert np.mean(sources == 0) > 0.05 and np.mean(sources == 1) > 0.05
    for row in rows[:3]:
        p, q = (reference.standardize(logits_along(model, row.tokens)[:, :REAL]) for model in pair)
        at = np.arange(len(row.tokens))
        np.testing.assert_allclose(row.target_logprob, np.log(p[at, row.tokens]), atol=1e-4)
        examined = ~np.isnan(row.beta)
        np.testing.assert_allclose(row.beta[examined], np.minimum(p, q).sum(axis=1)[examined], atol=1e-5)
        np.testing.assert_allclose(row.draft_logprob[examined], np.log(q[at, row.tokens])[examined], atol=1e-4)


@pytest.mark.parametrize("draft", ["model", "uniform"])
def test_greedy_is_the_argmax_of_the_real_tokens(draft):
    table = np.random.default_rng(0).normal(size=(3, 13, 9)) * 2
    table[:, :, REAL:] += 20  # uncut, nothing but padding would come
    table[:, :, 1] -= 9
    whole, cut = Scripted(table), Scripted(table[:, :, :REAL])
    other = near(Scripted(table[:, :, :8]), 1) if draft == "model" else decoding.UniformDraft()
    (row,) = generate((whole, other), REAL, gamma=2, temperature=0.0)
    assert row.tokens.tolist() == greedy(cut, INPUTS, 6)
    assert len(row.tokens) == 6 and greedy(whole, INPUTS, 1)[0] >= REAL


def test_nothing_is_cut_unasked_and_nothing_real_may_be(pair):
    config = decoding.DecodingConfig(num_slots=1)
    with pytest.raises(ValueError, match="8 tokens and the target's 9.*vocab_size"):
        decoding.Generator(*pair, config)
    for size in (1, 9):
        with pytest.raises(ValueError, match=f"vocab_size is {size}; allowed: 2 .* to 8"):
            decoding.Generator(*pair, config, vocab_size=size)
    with pytest.raises(ValueError, match="7 tokens and the target's 6"):
        decoding.Generator(pair[0], decoding.UniformDraft(7), config, vocab_size=6)
