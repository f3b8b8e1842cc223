"""Logits that are not finite make errors of the inputs that met them, and of no others."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import decoding
from decoding import DecodingConfig, Generator, NonFiniteLogits
from decoding.models.resident import pack_model
from decoding.scoring import Scorer
from tests.support import scripted
from tests.support.records import assert_same

BAD = [np.nan, np.inf, "all -inf"]
METHODS = [dict(temperature=0.0), *(dict(verification=name) for name in ("token", "block", "coupled"))]
# Every method meets one kind here, and all of them in the slow tests.
CASES = [
    pytest.param(bad, method, marks=() if i == j % len(BAD) else pytest.mark.slow)
    for (i, bad), (j, method) in itertools.product(enumerate(BAD), enumerate(METHODS))
]
CONTEXT = 5  # whose logits are spoilt; the script has 13


def config(**changes) -> DecodingConfig:
    return DecodingConfig(**dict(max_decode_tokens=8, num_slots=3, input_buckets=(8,), chunk_iterations=4) | changes)


def spoilt(model: scripted.Scripted, bad) -> scripted.Scripted:
    table = np.array(model.table[...])
    if bad == "all -inf":
        table[:, CONTEXT] = -np.inf
    else:
        table[:, CONTEXT, 3] = bad
    return scripted.Scripted(table)


def examples(count: int = 40) -> tuple[list[list[int]], list[str]]:
    rng = np.random.default_rng(3)
    return [rng.integers(2, 6, rng.integers(1, 9)).tolist() for _ in range(count)], [f"ex-{i}" for i in range(count)]


def run(generator: Generator, inputs, ids) -> tuple[dict[int, str], list]:
    try:
        return {}, generator.generate(inputs, ids)
    except NonFiniteLogits as error:
        return error.faults, error.results


def meets(model: scripted.Scripted, given: list[int], tokens) -> bool:
    """Whether a text was predicted from the spoilt context anywhere."""
    contexts = sum((i + 1) * token for i, token in enumerate(given))
    for position, fed in enumerate([model.start_id, *tokens[:-1]]):
        contexts += (1 + position % (model.contexts - 1)) * (fed + 1)
        if contexts % model.contexts == CONTEXT:
            return True
    return False


@pytest.mark.parametrize(("bad", "method"), CASES, ids=str)
def test_a_target_that_fails_in_one_context_fails_for_those_who_meet_it(bad, method):
    target = scripted.random_script(0)
    inputs, ids = examples()
    clean = Generator(target, None, config(gamma=0, **method)).generate(inputs, ids)
    met = {i for i, row in enumerate(clean) if meets(target, inputs[i], row.tokens)}
    assert 5 < len(met) < 35
    faults, rows = run(Generator(spoilt(target, bad), None, config(gamma=0, **method)), inputs, ids)
    assert faults == dict.fromkeys(met, "target model")
    assert [row is None for row in rows] == [i in met for i in range(len(ids))]
    sound = [i for i in range(len(ids)) if i not in met]
    assert_same([clean[i] for i in sound], [rows[i] for i in sound])


@pytest.mark.parametrize(("bad", "method"), CASES, ids=str)
def test_speculation_tells_who_failed_and_leaves_no_trace_in_a_text(bad, method):
    target = scripted.random_script(0)
    draft = scripted.near(target, 1, noise=0.7)
    inputs, ids = examples()
    for pair, whose in (((spoilt(target, bad), draft), "target model"), ((target, spoilt(draft, bad)), "draft model")):
        faults, rows = run(Generator(*pair, config(gamma=3, **method)), inputs, ids)
        assert 5 < len(faults) < 40 and set(faults.values()) == {whose}
        for i, row in enumerate(rows):
            assert (row is None) == (i in faults)
            if row is not None:
                assert np.isfinite(row.target_logprob).all()
                assert whose == "draft model" or not meets(target, inputs[i], row.tokens)
    if method == dict(temperature=0.0):  # whom a rejected guess led astray is no error: as many as without a draft
        plain, _ = run(Generator(spoilt(target, bad), None, config(gamma=0, **method)), inputs, ids)
        faults, _ = run(Generator(spoilt(target, bad), draft, config(gamma=3, **method)), inputs, ids)
        assert faults == plain


@pytest.mark.slow
def test_a_model_may_ban_tokens():
    target = scripted.random_script(0)
    table = np.array(target.table[...])
    table[:, :, 4] = -np.inf
    inputs, ids = examples()
    for method in METHODS:
        rows = Generator(scripted.Scripted(table), target, config(gamma=2, **method)).generate(inputs, ids)
        assert not any(np.any(row.tokens == 4) for row in rows)


def with_embedding(path: str, weights: str, change):
    """The model at a path, held as `weights` says, with its table of embeddings changed."""
    model = decoding.load_model(path, weights="plain")
    model.embedding[...] = change(model.embedding[...])
    return model if weights == "plain" else pack_model(model)


@pytest.mark.parametrize("weights", ["", "plain"])
@pytest.mark.slow
def test_caches_of_a_failed_row_spoil_nobody(golden, weights):
    """An embedding that is NaN: whoever has the token fills a slot's caches with NaN, and others come after."""
    path = str(golden / "t5_v1_1_target")
    target, draft = decoding.load_model(path, weights=weights), decoding.load_model(str(golden / "t5_v1_1_draft"))
    rng = np.random.default_rng(0)
    inputs = [[*rng.integers(10, 380, 6).tolist(), 7 if i % 5 == 2 else 8, 1] for i in range(25)]
    ids = [f"{i}" for i in range(25)]
    plain = config(gamma=0, temperature=0.0, max_decode_tokens=10, num_slots=2)
    drafted = dataclasses.replace(plain, gamma=2)
    clean = Generator(target, None, plain).generate(inputs, ids)
    met = {i for i, row in enumerate(clean) if 7 in inputs[i] or 7 in row.tokens[:-1]}
    target = with_embedding(path, weights, lambda table: table.at[7].set(jnp.nan))
    faults, rows = run(Generator(target, None, plain), inputs, ids)
    assert faults == dict.fromkeys(met, "target model") and len(met) >= 5
    sound = [i for i in range(25) if i not in met]
    assert_same([clean[i] for i in sound], [rows[i] for i in sound])
    # A guess of that token spoils the pass that it is checked in: a few more fail, and nobody who comes after them.
    faults, rows = run(Generator(target, draft, drafted), inputs, ids)
    assert met <= faults.keys() and len(faults) < len(met) + 8
    sound = [i for i in range(25) if i not in faults]
    assert_same([clean[i] for i in sound], [rows[i] for i in sound], ["tokens"])


@pytest.mark.parametrize("weights", ["", "plain"])
def test_all_weights_nan_is_an_error_of_every_input(golden, weights):
    target = with_embedding(str(golden / "t5_v1_1_target"), weights, lambda table: table * jnp.nan)
    settings = config(gamma=0, temperature=0.0, input_buckets=(8,))
    message = "logits of the target model are not finite: 3 of 3 inputs, the first of them 'a'"
    with pytest.raises(NonFiniteLogits, match=message):
        Generator(target, None, settings).generate([[5, 1], [6, 1], [8, 1]], ["a", "b", "c"])


@pytest.mark.parametrize(("bad", "temperature"), list(itertools.product(BAD, [0.0, 1.0])), ids=str)
def test_scores_of_texts_that_meet_such_logits_are_errors(bad, temperature):
    target = scripted.random_script(0)
    draft = scripted.near(target, 1, noise=0.7)
    inputs, _ = examples()
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 6, rng.integers(1, 9)).tolist() for _ in inputs]
    met = {i for i, tokens in enumerate(texts) if meets(target, inputs[i], tokens)}
    assert 5 < len(met) < 35
    score = lambda *pair: Scorer(pair[0], {"small": pair[1]}, config(temperature=temperature)).score(inputs, texts)
    clean = score(target, draft)
    for pair, whose in (((spoilt(target, bad), draft), "target model"), ((target, spoilt(draft, bad)), "draft 'small'")):
        with pytest.raises(NonFiniteLogits) as caught:
            score(*pair)
        assert caught.value.faults == dict.fromkeys(met, whose)
        for i, scores in enumerate(caught.value.results):
            assert (scores is None) == (i in met)
            if scores is not None:
                np.testing.assert_array_equal(scores.target_logprob, clean[i].target_logprob)
                np.testing.assert_array_equal(scores.drafts["small"].beta, clean[i].drafts["small"].beta)
