"""Hints: what is proposed from them, worked out by hand; that they cost calls and never tokens; that sampling stays exact."""

import jax.numpy as jnp
import numpy as np
import pytest

import decoding
from decoding.config import HINT, OUTPUT
from decoding.hints import joined_hints
from tests.decoding.test_drafts import CONFIG, rows_at
from tests.support import reference
from tests.support.scripted import greedy, next_logits, random_script, reciting

SETTINGS = {"temperature": 0.0, "num_slots": 2, "input_buckets": (4,)}


def follow(hints: list[list[int]], output: list[int], *, gamma: int = 3, room: int = 16) -> list[tuple[int, list[int], int]]:
    """(position, proposed, match) of every iteration over a row whose output is known; the input has nothing to copy."""
    draft = decoding.PromptLookupDraft(100, encoder_decoder=True, hint_tokens=room)
    hint = np.full((1, room), -1, np.int32)
    joined = joined_hints(hints, 100, room)
    hint[0, : len(joined)] = joined
    state = draft.init_state(1, 2, 40) | draft.prefill(jnp.array([[99, 98]]), jnp.array([2]), jnp.asarray(hint))
    inputs, position, seen = [0, *output], 0, []
    while position < len(output):
        last, previous = inputs[position], inputs[max(position - 1, 0)]
        proposal, state = draft.propose(state, rows_at([position], [previous], [last]), gamma, CONFIG)
        proposed = proposal.tokens[0, : int(proposal.count[0])].tolist()
        seen.append((position, proposed, int(proposal.match[0])))
        right = 0
        while right < len(proposed) and inputs[position + 1 + right : position + 2 + right] == [proposed[right]]:
            right += 1
        position += right + 1
    return seen


def test_a_hint_is_copied_from_its_beginning_to_its_end():
    assert follow([[5, 6, 7, 8, 9, 1]], [5, 6, 7, 8, 9, 1]) == [(0, [5, 6, 7], 0), (4, [9, 1], 4)]


def test_a_replaced_token_is_passed_over():
    # 30 came where 7 stood: the guess is that one token was replaced by one.
    assert follow([[5, 6, 7, 8, 9, 1]], [5, 6, 30, 8, 9, 1]) == [(0, [5, 6, 7], 0), (3, [8, 9, 1], 0)]


def test_an_insertion_is_found_again():
    # After 30 and 31 the guesses are wrong; 7 stands nearest behind 6, and from there all is right.
    seen = follow([[5, 6, 7, 8, 9, 10, 11, 1]], [5, 6, 30, 31, 7, 8, 9, 10, 11, 1])
    assert seen == [(0, [5, 6, 7], 0), (3, [8, 9, 10], 0), (4, [9, 10, 11], 0), (5, [8, 9, 10], 1), (9, [1], 5)]


def test_a_deletion_is_found_again_at_the_nearest_place_ahead():
    hint = [5, 6, 20, 21, 7, 8, 9, 22, 7, 10, 1]
    assert follow([hint], [5, 6, 7, 8, 9, 22, 1]) == [(0, [5, 6, 20], 0), (3, [8, 9, 22], 1)]


def test_the_second_hint_takes_over_where_the_first_is_wrong():
    assert follow([[5, 6], [8, 9, 10, 11, 1]], [8, 9, 10, 11, 1]) == [(0, [5, 6], 0), (1, [9, 10, 11], 1)]


def test_a_longer_match_in_the_output_goes_before_a_hint():
    # The hint has nothing but the comma, 3; the output has stood at "5 3" before.
    draft = decoding.PromptLookupDraft(100, encoder_decoder=True, hint_tokens=4)
    state = draft.init_state(1, 2, 40) | draft.prefill(
        jnp.array([[99, 98]]), jnp.array([2]), jnp.array([[40, 3, 41, -1]], jnp.int32)
    )
    _, state = draft.propose(state, rows_at([0], [0], [0]), 1, CONFIG)
    state = draft.follow(state, jnp.array([[0, 5, 3, 7, 8, 5]]), jnp.array([0]))
    proposal, _ = draft.propose(state, rows_at([6], [5], [3]), 2, CONFIG)
    assert proposal.tokens.tolist() == [[7, 8]] and proposal.origin.tolist() == [OUTPUT]


def test_hints_are_joined_and_cut_and_lose_what_the_vocabulary_lacks():
    assert joined_hints([[3, 4], [], [500, -7], [5, 500, 6]], 100, 16).tolist() == [3, 4, -1, 5, 6]
    assert joined_hints([[3, 4], [5, 6]], 100, 4).tolist() == [3, 4, -1, 5]
    assert joined_hints([np.arange(100_000) % 50], 100, 8).tolist() == [*range(8)]
    assert joined_hints([], 100, 8).tolist() == []


HARMLESS = {
    "empty": [],
    "of no tokens": [[]],
    "another text": [[3, 3, 2, 4, 5, 5, 2]],
    "100,000 tokens": [[2, 3, 4, 5] * 25_000],
    "beyond the vocabulary": [[99, -1, 7, 1 << 40]],
}


@pytest.fixture(scope="module")
def scripted():
    """A scripted target and its generator with room for hints."""
    target = random_script(1)
    config = decoding.DecodingConfig(gamma=3, max_decode_tokens=24, hint_tokens=24, **SETTINGS)
    return target, decoding.Generator(target, decoding.PromptLookupDraft(), config)


@pytest.mark.parametrize("hints", HARMLESS.values(), ids=HARMLESS)
def test_no_hint_does_harm(scripted, hints):
    target, generator = scripted
    inputs = [[2, 3], [4], [5, 2, 2]]
    results = generator.generate(inputs, ["a", "b", "c"], [hints] * 3)
    assert [result.tokens.tolist() for result in results] == [greedy(target, tokens, 24) for tokens in inputs]


def test_an_output_as_its_own_hint_takes_the_fewest_calls(scripted):
    _, generator = scripted
    inputs, ids = [[2, 3], [4], [5, 2, 2], [3]], ["a", "b", "c", "d"]
    first = generator.generate(inputs, ids)
    again = generator.generate(inputs, ids, [[result.tokens] for result in first])
    for before, now in zip(first, again):
        np.testing.assert_array_equal(now.tokens, before.tokens)
        assert now.num_iterations == -(-len(now.tokens) // 4)
        assert set(now.origin[now.gammas > 0].tolist()) == {HINT}


def test_rows_and_their_hints_stay_together(scripted):
    """Nine rows pass through two slots in another order than they came; each is guided by its own hint."""
    target, generator = scripted
    inputs = [[2 + i % 4, 2 + i // 4] for i in range(9)]
    texts = [greedy(target, tokens, 24) for tokens in inputs]
    results = generator.generate(inputs, [str(i) for i in range(9)], [[text] for text in texts])
    assert all(result.num_iterations == -(-len(text) // 4) for result, text in zip(results, texts))


def test_hints_are_as_many_as_inputs_and_need_a_draft_that_looks_at_them(scripted):
    target, generator = scripted
    with pytest.raises(ValueError, match="2 inputs and 1 rows of hints"):
        generator.generate([[2], [3]], ["a", "b"], [[]])
    config = decoding.DecodingConfig(gamma=2, hint_tokens=8, **SETTINGS)
    with pytest.raises(ValueError, match="hint_tokens is 8; allowed: 0 with a draft that does not look at hints"):
        decoding.Generator(target, random_script(2), config)


def test_after_plain_chunks_the_hint_is_found_again():
    """γ = "auto" with costs that let it begin plainly: what came without the draft is fed to it, and the hint goes on."""
    text = [*range(2, 20), 1]
    target = reciting(text, vocab_size=24)
    costs = {0: 1.0, 3: 1.01}
    config = decoding.DecodingConfig(
        gamma="auto", gamma_choices=(0, 3), max_decode_tokens=40, chunk_iterations=4, hint_tokens=40, **SETTINGS
    )
    generator = decoding.Generator(target, decoding.PromptLookupDraft(), config, costs)
    (result,) = generator.generate([[3]], ["a"], [[text]])
    assert result.tokens.tolist() == text and result.num_iterations <= 8


def law(target, inputs: list[int], length: int, text: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    """Probability of every text, cut to so many tokens."""
    if len(text) == length or text[-1:] == (target.eos_id,):
        return {text: 1.0}
    probs = reference.standardize(next_logits(target, inputs, text))
    return {
        whole: probs[token] * rest
        for token in range(target.vocab_size)
        for whole, rest in law(target, inputs, length, (*text, token)).items()
    }


def _pvalue(hints, verification: str, spoilt: bool = False) -> float:
    """χ² of the first three tokens of texts at temperature 1 against the law of a scripted target."""
    target = random_script(3, vocab_size=5, contexts=7, scale=1.0)
    config = decoding.DecodingConfig(
        gamma=2, verification=verification, max_decode_tokens=6, num_slots=64, input_buckets=(2,), num_samples=4000,
        hint_tokens=6,
    )  # fmt: skip
    results = decoding.Generator(target, decoding.PromptLookupDraft(), config).generate([[2, 3]], ["x"], [hints])
    assert np.mean([result.origin[0] == HINT for result in results]) == 1
    texts = [tuple(result.tokens[:3].tolist()) for result in results]
    if spoilt:  # what a rule would do that keeps a hint's guesses once in ten times unasked
        texts[::10] = [tuple(hints[0])] * len(texts[::10])
    return reference.chi_square(texts, law(target, [2, 3], 3))[0]


@pytest.mark.parametrize(
    "verification", ["token", *(pytest.param(rule, marks=pytest.mark.soak) for rule in ("block", "coupled"))]
)
def test_sampled_texts_have_the_targets_law(verification):
    assert _pvalue([[2, 3, 2], [3]], verification) > 1e-3


def test_a_law_that_trusts_the_hint_is_noticed():
    assert _pvalue([[2, 3, 2], [3]], "token", spoilt=True) < 1e-6
