"""The cascade: who is taken in which row, that the model behind has seen its whole row, and that outputs stay the target's."""

import pathlib

import jax
import numpy as np
import pytest

import decoding
from decoding.config import HINT, INDEX, MODEL_GUESS, NOTHING
from decoding.drafts import cascade, suffixes
from decoding.drafts.suffixes import IndexInfo
from tests.decoding.test_hints import law
from tests.support import reference
from tests.support.scripted import greedy, near, random_script

INPUTS, IDS = [[2, 3], [4], [2, 2], [3, 3]], ["a", "b", "c", "d"]
SETTINGS = {"gamma": 3, "temperature": 0.0, "max_decode_tokens": 30, "num_slots": 2, "input_buckets": (2,)}


@pytest.fixture(scope="module")
def target():
    return random_script(3, vocab_size=5, contexts=7, scale=1.0)


def lookup() -> decoding.PromptLookupDraft:
    return decoding.PromptLookupDraft(max_ngram=3)


@pytest.mark.parametrize("num_slots", [1, 2])
def test_rows_take_what_matches_and_a_perfect_model_else(target, num_slots):
    """The model behind is the target itself: whatever it guesses is accepted, if it was fed everything that came before.

    `Scripted` answers from its whole past, so one token that it had not seen, or saw wrong, would make a guess wrong: also
    one that it was fed while it rested, as it does in every copied iteration of a row alone.
    """
    config = decoding.DecodingConfig(**SETTINGS | {"num_slots": num_slots})
    draft = decoding.CascadeDraft([lookup(), random_script(3, vocab_size=5, contexts=7, scale=1.0)], min_match=2)
    results = decoding.Generator(target, draft, config).generate(INPUTS, IDS)
    origins = np.concatenate([one.origin for one in results])
    assert {*origins.tolist()} > {MODEL_GUESS} and NOTHING not in origins
    for tokens, one in zip(INPUTS, results):
        assert one.tokens.tolist() == greedy(target, tokens, 30)
        assert all(one.match[one.origin != MODEL_GUESS] >= 2) and not one.match[one.origin == MODEL_GUESS].any()
        whole = one.origin[:-1] == MODEL_GUESS  # the last may be cut
        np.testing.assert_array_equal(one.accepted[:-1][whole], one.gammas[:-1][whole])


def test_three_in_a_row_with_hints_and_an_index(target, tmp_path):
    texts = [greedy(target, tokens, 30) for tokens in INPUTS]
    suffixes.save(str(tmp_path), suffixes.divided(texts[2:3], 5), IndexInfo(5, 0, 1, {}))
    draft = decoding.CascadeDraft([lookup(), decoding.CorpusDraft.load(str(tmp_path)), near(target, 1)], min_match=3)
    config = decoding.DecodingConfig(**SETTINGS, hint_tokens=30)
    results = decoding.Generator(target, draft, config).generate(INPUTS, IDS, [[texts[0]], [], [], []])
    assert [one.tokens.tolist() for one in results] == texts
    origins = [{*one.origin.tolist()} for one in results]
    assert HINT in origins[0] and INDEX in origins[2] and all(MODEL_GUESS in one for one in origins)


def test_after_plain_chunks_all_are_fed(target):
    config = decoding.DecodingConfig(**SETTINGS | {"gamma": "auto", "gamma_choices": (0, 2), "chunk_iterations": 3})
    draft = decoding.CascadeDraft([lookup(), near(target, 1, 3.0)])
    for costs in ({0: 1.0, 2: 1.0}, {0: 1.0, 2: 1.5}, {0: 1.0, 2: 9.0}, {0: 1.0, 2: 3.0, -2: 1.0}, None):
        generator = decoding.Generator(target, draft, config, costs)
        assert set(generator.costs) == (set(costs) if costs else {0, 2, -2})
        results = generator.generate(INPUTS, IDS)
        assert [one.tokens.tolist() for one in results] == [greedy(target, tokens, 30) for tokens in INPUTS]


def test_what_a_cascade_may_be(target, tmp_path):
    with pytest.raises(ValueError, match="two drafts at least, and a model only at its end"):
        decoding.CascadeDraft([target, lookup()])
    with pytest.raises(ValueError, match="two drafts at least"):
        decoding.CascadeDraft([lookup()])
    suffixes.save(str(tmp_path), suffixes.divided([[3, 4, 1]], 5), IndexInfo(5, 0, 1, {}))
    loaded = decoding.load_draft(f"lookup,{tmp_path},uniform", min_match=4, max_ngram=5)
    assert [type(one).__name__ for one in loaded.drafts] == ["PromptLookupDraft", "CorpusDraft", "UniformDraft"]
    assert loaded.min_match == loaded.drafts[1].min_match == 4 and loaded.drafts[0].max_ngram == 5


@pytest.mark.parametrize(
    "verification", [pytest.param(rule, marks=pytest.mark.slow) for rule in ("token", "block", "coupled")]
)
def test_sampled_texts_have_the_targets_law(target, verification):
    assert _pvalue(target, verification) > 1e-3


@pytest.mark.slow
def test_a_cascade_that_misstates_who_drew_is_noticed(target, monkeypatch):
    def swapped(first, one, other, vocab_size):
        return choose(first, one, other, vocab_size)._replace(probs=choose(~first, one, other, vocab_size).probs)

    choose = cascade._choose
    monkeypatch.setattr(cascade, "_choose", swapped)
    assert _pvalue(target, "token") < 1e-6


def _pvalue(target, verification: str) -> float:
    config = decoding.DecodingConfig(
        gamma=2, verification=verification, max_decode_tokens=6, num_slots=64, input_buckets=(2,), num_samples=4000
    )
    draft = decoding.CascadeDraft([decoding.PromptLookupDraft(max_ngram=2), near(target, 1, 1.5)], min_match=1)
    results = decoding.Generator(target, draft, config).generate([[2, 3]], ["x"])
    assert len({int(origin) for one in results for origin in one.origin}) > 1
    return reference.chi_square([tuple(one.tokens[:3].tolist()) for one in results], law(target, [2, 3], 3))[0]


@pytest.mark.slow
def test_no_iteration_copies_a_cache():
    """Also not where the model may rest: the compiled chunk has no copy of what has a cache's shape."""
    models = pathlib.Path(__file__).parents[1] / "testdata" / "golden"
    target, model = (decoding.load_model(str(models / f"t5_v1_1_{name}")) for name in ("target", "draft"))
    config = decoding.DecodingConfig(gamma=3, temperature=0.0, num_slots=3, input_buckets=(8,), max_decode_tokens=50)
    lowered = decoding.Generator.lowered(target, decoding.CascadeDraft([lookup(), model]), config)
    text = lowered["chunk", 3]().compile().as_text()
    caches = {leaf.shape for leaf in jax.tree.leaves(model.init_state(3, 8, 54)) if leaf.ndim == 4}
    shapes = [f"f32[{','.join(map(str, shape))}]" for shape in caches]
    assert all(shape in text for shape in shapes)
    assert not [line for line in text.splitlines() if " copy(" in line and any(f"= {shape}" in line for shape in shapes)]
