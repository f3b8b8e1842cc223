"""Drafts whose head covers some tokens only: logits are the draft's own, q is 0 elsewhere, and the law is the target's."""

import pathlib

import gguf
import numpy as np
import pytest

import decoding
from decoding import DecodingConfig, Generator, NGramDraft
from decoding.drafts.ngram import frequent_tokens
from decoding.models.vocabulary import SomeTokens
from tests.support import reference, tiny_gguf, tiny_t5

GOLDEN = pathlib.Path(__file__).parent.parent / "testdata" / "golden"
TOKENS = [0, 1, 7, 30, 31, 63, 95]


@pytest.mark.parametrize("weights", ["plain", ""])
@pytest.mark.parametrize("name", ["t5_v1_0", "t5_v1_1_draft", "llama", "llama.gguf", "marian", "m2m_100"])
def test_logits_are_the_drafts_own_and_minus_infinity_elsewhere(tmp_path, name, weights):
    path = GOLDEN / name
    if name == "llama.gguf":
        path = tmp_path / name
        directory, kind = GOLDEN / "llama", gguf.GGMLQuantizationType.Q8_0
        tiny_gguf.write(path, tiny_gguf.metadata(directory), tiny_gguf.weights(directory), kind=kind)
    fed, lengths = np.array([[0, 5, 9, 4]], np.int32), np.array([3], np.int32)
    whole, some = (decoding.load_model(str(path), weights=weights, tokens=tokens) for tokens in (None, TOKENS))
    given = (fed, fed, lengths) if whole.encoder_decoder else (fed,)
    expected, found = (np.asarray(model.logits(*given)) for model in (whole, some))
    assert found.shape == expected.shape and some.model.config.head_size == len(TOKENS)
    np.testing.assert_allclose(found[..., TOKENS], expected[..., TOKENS], atol=1e-4)
    others = np.setdiff1d(np.arange(expected.shape[-1]), TOKENS)
    assert np.all(found[..., others] == -np.inf)


def test_frequent_tokens_have_the_end_among_them(tmp_path):
    draft = NGramDraft(
        np.array([0.05, 0.01, 0.5, 0.3, 0.14], np.float32), np.zeros(6, np.int32), np.zeros(0, np.int32),
        np.zeros(0, np.float32), np.ones(5, np.float32), start_id=0, eos_id=1,
    )  # fmt: skip
    draft.save(str(tmp_path / "unigram"), {})
    assert [frequent_tokens(str(tmp_path / "unigram"), k).tolist() for k in (1, 2, 3, 5)] == [
        [1], [1, 2], [1, 2, 3], [0, 1, 2, 3, 4]
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A target of six tokens, and a draft that never guesses two of them, which the target often says."""
    folder = tmp_path_factory.mktemp("pair")

    def path(name: str, seed: int, layers: int) -> str:
        shape = tiny_t5.config(6, layers=layers)
        return str(tiny_t5.write(folder / name, shape, tiny_t5.weights(shape, seed, head=0.6)))

    target = decoding.load_model(path("target", 0, 2))
    return target, decoding.load_model(path("draft", 10, 1), tokens=[1, 2, 4, 5])


@pytest.mark.parametrize(
    "verification", ["token", *(pytest.param(rule, marks=pytest.mark.soak) for rule in ("block", "coupled"))]
)
def test_samples_have_the_targets_law_where_q_is_zero(pair, verification):
    config = DecodingConfig(
        gamma=3, verification=verification, num_samples=10_000, num_slots=256, max_decode_tokens=6, input_buckets=(4,),
        chunk_iterations=4,
    )  # fmt: skip
    rows = Generator(*pair, config).generate([[3, 4, 5]], ["example"])
    tokens, sources = (np.concatenate([getattr(row, name) for row in rows]) for name in ("tokens", "source"))
    assert np.mean(np.isin(tokens, [0, 3])) > 0.1 and np.mean(sources == 1) > 0.1
    assert not np.any(np.isin(tokens[sources == 1], [0, 3]))
    law = reference.sequence_law(pair[0], [3, 4, 5], length=4, temperature=1.0, top_k=0, top_p=1.0)
    found, cells = reference.chi_square([tuple(row.tokens[:4].tolist()) for row in rows], law)
    assert found > 1e-6 and cells >= 20
    # Negative control: were tokens that the draft lacks never said, the same test would notice.
    kept = [row for row in rows if not np.any(np.isin(row.tokens[:4], [0, 3]))]
    found, _ = reference.chi_square([tuple(row.tokens[:4].tolist()) for row in kept], law)
    assert found < 1e-9


def test_greedy_outputs_are_the_plain_ones(pair):
    inputs, ids = [[3, 4, 5], [2, 5], [5, 5, 2, 3]], ["a", "b", "c"]
    settings = dict(temperature=0.0, num_slots=2, max_decode_tokens=12, input_buckets=(4,))
    plain = Generator(pair[0], None, DecodingConfig(gamma=0, **settings)).generate(inputs, ids)
    drafted = Generator(*pair, DecodingConfig(gamma=3, **settings)).generate(inputs, ids)
    assert isinstance(pair[1], SomeTokens)
    for a, b in zip(plain, drafted):
        np.testing.assert_array_equal(a.tokens, b.tokens)
