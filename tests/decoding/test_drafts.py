"""Drafts without a model: what they propose, worked out by hand, and that the output stays the target's.

Transformer drafts have tests/decoding/test_exactness.py, n-grams their own.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import decoding
from decoding.drafts import fitted
from decoding.rows import Rows
from tests.support import reference, tiny_t5
from tests.support.scripted import reciting

GOLDEN = pathlib.Path(__file__).parents[1] / "testdata" / "golden"
CONFIG = decoding.DecodingConfig(gamma=3)


def rows_at(position, previous, last) -> Rows:
    count = len(position)
    as_int = lambda values: jnp.asarray(values, jnp.int32)
    zeros = jnp.zeros((count, 2), jnp.uint32)
    done = jnp.zeros((count,), bool)
    return Rows(as_int(previous), as_int(last), as_int(position), as_int([9] * count), done, zeros)


def test_copies_from_the_input_after_the_longest_match():
    draft = decoding.PromptLookupDraft(50, encoder_decoder=True, max_ngram=2)
    state = draft.init_state(2, 8, 20) | {
        "input": jnp.array([[5, 6, 7, 9, 6, 8], [5, 6, 7, 1, 0, 0]]),
        "lengths": jnp.array([6, 4]),
    }
    proposal, state = draft.propose(state, rows_at([0, 0], [0, 0], [0, 0]), 3, CONFIG)
    assert proposal.count.tolist() == [0, 0]  # the start token occurs nowhere
    # Row 0: "6" matches at 1 and 4, the later one leaves one token; row 1: nothing follows token 30.
    proposal, state = draft.propose(state, rows_at([1, 1], [0, 0], [6, 30]), 3, CONFIG)
    assert proposal.count.tolist() == [1, 0] and proposal.tokens[0, 0] == 8
    # Row 0: "6 7" matches longer at 2 than anything else and goes on 9 6 8; row 1: "30 5" matches one token at 0.
    proposal, _ = draft.propose(state, rows_at([2, 2], [6, 30], [7, 5]), 3, CONFIG)
    assert proposal.count.tolist() == [3, 3]
    assert proposal.tokens.tolist() == [[9, 6, 8], [6, 7, 1]]


def test_a_longer_match_in_the_input_wins_over_a_later_one_in_the_output():
    draft = decoding.PromptLookupDraft(50, encoder_decoder=True)
    state = draft.init_state(1, 4, 20) | {"input": jnp.array([[5, 6, 7, 9]]), "lengths": jnp.array([4])}
    state = draft.follow(state, jnp.array([[0, 6, 30]]), jnp.array([0]))
    proposal, state = draft.propose(state, rows_at([4], [5], [6]), 3, CONFIG)  # the text is 0 6 30 5 6
    assert proposal.count.tolist() == [2] and proposal.tokens[0, :2].tolist() == [7, 9]
    # Of equal ones the output's is the later: the text is 0 6 30 5 6 31 6, and "6" alone stood before 31.
    state = draft.follow(state, jnp.array([[5, 6, 31]]), jnp.array([3]))
    proposal, _ = draft.propose(state, rows_at([6], [31], [6]), 1, CONFIG)
    assert proposal.tokens.tolist() == [[31]]


def test_copies_from_the_output_and_from_a_prompt():
    draft = decoding.PromptLookupDraft(50, encoder_decoder=False, max_ngram=3)
    state = draft.init_state(1, 4, 12)
    state = {"text": state["text"].at[:, :4].set(jnp.array([[7, 8, 9, 7]]))}
    proposal, state = draft.propose(state, rows_at([3], [9], [7]), 3, CONFIG)
    assert proposal.count.tolist() == [3] and proposal.tokens.tolist() == [[8, 9, 7]]
    # 8 was kept and 20 came instead of 9; two tokens later the text is 7 8 9 7 8 20 8: "8" last occurred at 4.
    state = draft.follow(state, jnp.array([[8, 20]]), jnp.array([4]))
    proposal, _ = draft.propose(state, rows_at([6], [20], [8]), 3, CONFIG)
    assert proposal.tokens[0, :2].tolist() == [20, 8] and proposal.count.tolist() == [2]


def test_wrong_lengths_of_ngrams_are_refused():
    with pytest.raises(ValueError, match="min_ngram is 3 and max_ngram 2"):
        decoding.PromptLookupDraft(50, min_ngram=3, max_ngram=2)


@pytest.mark.parametrize("name", ["t5_v1_1_target", "llama"])
def test_greedy_output_is_the_targets_and_rows_without_a_match_draft_nothing(name):
    target = decoding.load_model(str(GOLDEN / name))
    inputs = [np.random.default_rng(i).integers(3, 384, size=12).tolist() for i in range(5)]
    ids = [str(i) for i in range(5)]
    settings = {"temperature": 0.0, "max_decode_tokens": 40, "num_slots": 2, "input_buckets": (16,)}
    plain = decoding.Generator(target, None, decoding.DecodingConfig(gamma=0, **settings)).generate(inputs, ids)
    draft = decoding.PromptLookupDraft()
    results = decoding.Generator(target, draft, decoding.DecodingConfig(gamma=4, **settings)).generate(inputs, ids)
    gammas = np.concatenate([result.gammas for result in results])
    assert gammas.min() == 0 and gammas.max() > 0
    for result, expected in zip(results, plain):
        np.testing.assert_array_equal(result.tokens, expected.tokens)
        first = np.searchsorted(result.iteration, np.arange(result.num_iterations))
        np.testing.assert_array_equal(np.isnan(result.beta[first]), result.gammas == 0)
        assert np.all((result.source[first] == 3) == (result.gammas == 0))
        drafted = ~np.isnan(result.draft_logprob)
        assert set(result.draft_logprob[drafted].tolist()) <= {0.0, -np.inf}


def test_a_repeating_text_is_copied():
    """The target recites 3 4 5 6 3 4 5 6 ...: once a round is over, every guess is right."""
    target = reciting([3, 4, 5, 6], vocab_size=16)
    config = decoding.DecodingConfig(gamma=3, temperature=0.0, max_decode_tokens=24, num_slots=1, input_buckets=(4,))
    (result,) = decoding.Generator(target, decoding.PromptLookupDraft(), config).generate([[9, 1]], ["a"])
    assert result.tokens.tolist() == [3, 4, 5, 6] * 6
    assert result.gammas[:4].tolist() == [0, 0, 0, 0]
    assert np.all(result.accepted[5:-1] == 3)


def test_uniform_guesses_are_uniform():
    draft, config = decoding.UniformDraft(7), decoding.DecodingConfig(gamma=4)
    keys = jnp.stack([jnp.arange(5000, dtype=jnp.uint32), jnp.zeros(5000, jnp.uint32)], axis=1)
    rows = rows_at(*np.zeros((3, 5000), np.int32))._replace(keys=keys)
    proposal, _ = draft.propose({}, rows, 4, config)
    assert proposal.count.tolist() == [4] * 5000
    np.testing.assert_allclose(proposal.probs, 1 / 7, rtol=1e-6)
    counts = np.bincount(np.asarray(proposal.tokens).reshape(-1), minlength=7)
    assert len(counts) == 7 and stats.chisquare(counts).pvalue > 1e-6
    again, _ = draft.propose({}, rows._replace(position=rows.position + 1), 4, config)
    assert np.mean(np.asarray(again.tokens) == np.asarray(proposal.tokens)) < 0.2
    assert draft.propose({}, rows, 4, decoding.DecodingConfig(gamma=4, temperature=0.0))[0].probs is None


@pytest.mark.parametrize("draft", [decoding.PromptLookupDraft(max_ngram=2), decoding.UniformDraft()])
@pytest.mark.parametrize("vocab_size", [None, 12])
def test_drafts_take_vocabulary_and_kind_from_their_target(draft, vocab_size):
    target = reciting([3, 4], vocab_size=16)
    cut, bound = fitted(target, draft, vocab_size)
    assert bound.vocab_size == cut.vocab_size == (vocab_size or 16)
    assert draft.vocab_size is None
    if isinstance(bound, decoding.PromptLookupDraft):
        assert (bound.encoder_decoder, bound.max_ngram) == (True, 2)
    with pytest.raises(ValueError, match="both be encoder-decoder models or both be decoder-only"):
        fitted(target, decoding.PromptLookupDraft(encoder_decoder=False))


def test_drafts_by_name(tmp_path):
    assert decoding.load_draft("") is None
    lookup = decoding.load_draft("prompt_lookup", max_ngram=2)
    assert isinstance(lookup, decoding.PromptLookupDraft) and lookup.max_ngram == 2
    assert isinstance(decoding.load_draft("uniform"), decoding.UniformDraft)
    decoding.NGramDraft.fit([[2, 3]], 16, start_id=0, eos_id=1).save(str(tmp_path))
    assert isinstance(decoding.load_draft(str(tmp_path)), decoding.NGramDraft)
    assert decoding.load_draft(str(GOLDEN / "llama"), dtype="bfloat16").vocab_size == 384
    with pytest.raises(decoding.CheckpointError, match="nowhere"):
        decoding.load_draft("nowhere")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    shape = tiny_t5.config(6, layers=2)
    return decoding.load_model(tiny_t5.write(tmp_path_factory.mktemp("tiny"), shape, tiny_t5.weights(shape, 0, head=0.6)))


def narrow_bigram() -> decoding.NGramDraft:
    """Rows that miss some tokens altogether: p is positive where q is 0."""
    follows = {0: {2: 0.5, 3: 0.5}, 2: {2: 0.2, 4: 0.8}, 3: {1: 0.3, 5: 0.7}, 4: {3: 1.0}, 5: {1: 0.4, 2: 0.6}}
    starts = np.cumsum([0] + [len(follows.get(token, {})) for token in range(6)])
    followers = [x for token in range(6) for x in follows.get(token, {})]
    shares = [share for token in range(6) for share in follows.get(token, {}).values()]
    backoff = [0.0 if token in follows else 1.0 for token in range(6)]
    return decoding.NGramDraft(np.full(6, 1 / 6), starts, followers, shares, backoff, start_id=0, eos_id=1)


DRAFTS = {
    "bigram": narrow_bigram,
    "lookup": lambda: decoding.PromptLookupDraft(max_ngram=2),
    "uniform": decoding.UniformDraft,
}


def check_law(target, draft, rounds: int, **settings):
    config = decoding.DecodingConfig(
        num_samples=rounds, num_slots=256, max_decode_tokens=6, input_buckets=(4,), chunk_iterations=4, **settings
    )
    rows = decoding.Generator(target, draft, config).generate([[3, 4, 5]], ["example"])
    sources = np.concatenate([row.source[:4] for row in rows])
    assert np.mean(sources == 0) > 0.05 and np.mean(sources == 1) > 0.05
    filters = {name: settings.get(name, default) for name, default in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0))}
    law = reference.sequence_law(target, [3, 4, 5], length=4, **filters)
    found, _ = reference.chi_square([tuple(row.tokens[:4].tolist()) for row in rows], law)
    assert found > 1e-6


@pytest.mark.parametrize(
    ("draft", "verification"),
    [
        pytest.param("bigram", "token", marks=pytest.mark.slow),
        ("lookup", "block"),
        pytest.param("uniform", "block", marks=pytest.mark.soak),
    ],
)
def test_samples_have_the_targets_law(tiny, draft, verification):
    check_law(tiny, DRAFTS[draft](), 8_000, gamma=3, verification=verification)


# Every draft with every verification, and both filters with every draft and every verification; With those above CI
# runs each draft and each verification once.
MORE = [
    pytest.param(
        draft,
        verification,
        ({"temperature": 0.7}, {"top_p": 0.9})[(i + j) % 2],
        marks=pytest.mark.slow if (draft, verification) == ("uniform", "coupled") else pytest.mark.soak,
    )
    for i, draft in enumerate(DRAFTS)
    for j, verification in enumerate(("token", "block", "coupled"))
]


@pytest.mark.parametrize(("draft", "verification", "settings"), MORE, ids=str)
def test_samples_have_the_targets_law_over_more_settings(tiny, draft, verification, settings):
    check_law(tiny, DRAFTS[draft](), 100_000, gamma=3, verification=verification, **settings)
