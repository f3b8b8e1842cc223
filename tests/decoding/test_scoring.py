"""Scores against hand-known pairs, direct float64 computation, and what generation recorded."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import decoding
from decoding import DecodingConfig, Generator, NGramDraft, PromptLookupDraft, UniformDraft
from decoding.scoring import Scorer
from tests.support import reference, scripted

NEVER = -1e9
LENIENCE = (0.5, 0.1)


@pytest.fixture(scope="module")
def t5(golden):
    return [decoding.load_model(str(golden / f"t5_v1_1_{name}")) for name in ("target", "draft")]


@pytest.fixture(scope="module")
def texts():
    """Inputs and texts of the reference models' vocabulary, of all length classes of `settings`."""
    rng = np.random.default_rng(5)
    lengths = [(5, 3), (37, 11), (16, 16), (17, 2), (3, 24), (40, 24), (1, 1)]
    return [[rng.integers(2, 384, size) for size in sizes] for sizes in zip(*lengths)]


def settings(**changes):
    return DecodingConfig(**{"input_buckets": (16, 40), "max_decode_tokens": 24, "gamma": 0, **changes})


@pytest.fixture(scope="module")
def scorer(t5):
    """Scorers of the reference pair by sampling method, each built once."""

    @functools.cache
    def get(**sampling) -> Scorer:
        return Scorer(t5[0], {"draft": t5[1]}, settings(**sampling), lenience=LENIENCE, batch_tokens=100)

    return get


@pytest.fixture(scope="module")
def direct(t5, texts):
    """Teacher-forced logits of target and draft, float32[T, V] by text."""
    lengths = np.array([len(given) for given in texts[0]], np.int32)
    given, fed = np.zeros((len(lengths), 40), np.int32), np.zeros((len(lengths), 24), np.int32)
    for i, (tokens, text) in enumerate(zip(*texts)):
        given[i, : len(tokens)], fed[i, 1 : len(text)] = tokens, text[:-1]
    logits = [np.asarray(model.logits(fed, given, lengths)) for model in t5]
    return [[one[i, : len(text)] for one in logits] for i, text in enumerate(texts[1])]


def log_softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def table(*rows):
    """A scripted model whose logits at position t are rows[t], whatever it was fed."""
    return scripted.Scripted(np.array(rows)[:, None, :])


def test_hand_known_pair():
    p = table([0, 0, NEVER, NEVER], [0, 0, 0, 0], [NEVER, 0, NEVER, NEVER])
    q = table([NEVER, 0, 0, NEVER], [0, NEVER, NEVER, NEVER], [NEVER, 0, NEVER, NEVER])
    scorer = Scorer(p, {"q": q, "p": p}, settings(input_buckets=(16,)), lenience=(0.5, 0.25))
    (scores,) = scorer.score([[2, 3]], [[1, 0, 1]])
    assert scores.drafts["q"].beta.tolist() == [0.5, 0.25, 1.0]
    assert scores.drafts["q"].lenient_beta.tolist() == [[0.5, 0.5], [0.5, 1.0], [1.0, 1.0]]
    assert scores.drafts["p"].beta.tolist() == [1.0, 1.0, 1.0]
    assert np.mean(scores.drafts["q"].beta) == 7 / 12
    np.testing.assert_allclose(scores.target_logprob, [-np.log(2), -np.log(4), 0], atol=1e-6)
    np.testing.assert_allclose(scores.target_entropy, [np.log(2), np.log(4), 0], atol=1e-6)
    np.testing.assert_allclose(scores.drafts["q"].logprob, [-np.log(2), 0, 0], atol=1e-6)
    np.testing.assert_allclose(scores.drafts["q"].entropy, [np.log(2), 0, 0], atol=1e-6)
    assert scores.drafts["q"].argmax_agrees.tolist() == [False, True, True]


def test_hand_known_pair_at_temperature_0():
    p, q = table([3, 2, 0, 0], [0, 3, 0, 0], [0, 0, 0, 4]), table([1, 9, 0, 0], [0, 1, 0, 0], [5, 0, 0, 0])
    scorer = Scorer(p, {"q": q}, settings(temperature=0.0, input_buckets=(16,)), lenience=(0.5, 0.3, 0.01))
    (scores,) = scorer.score([[2]], [[0, 1, 3]])
    found = scores.drafts["q"]
    assert found.beta.tolist() == [0.0, 1.0, 0.0]
    # exp(2 - 3) = 0.37 and exp(0 - 4) = 0.018 of the target's best.
    assert found.lenient_beta.tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert found.entropy.tolist() == scores.target_entropy.tolist() == [0, 0, 0]
    np.testing.assert_allclose(found.logprob, [log_softmax([1, 9, 0, 0])[0], log_softmax([0, 1, 0, 0])[1],
                                               log_softmax([5, 0, 0, 0])[3]], atol=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_p": 0.9},
        *(pytest.param(one, marks=pytest.mark.slow) for one in ({}, {"temperature": 0.7, "top_k": 20}, {"temperature": 0.0})),
    ],
)
def test_golden_models_against_float64(scorer, texts, direct, sampling):
    """The mean within 1e-6, every β within 1e-5, nucleus edges closer than 1e-5 exempt."""
    scorer, means = scorer(**sampling), []
    compiled = scorer.compilations()
    found = scorer.score(*texts)
    assert scorer.compilations() == compiled
    for scores, logits, text in zip(found, direct, texts[1]):
        raw = [log_softmax(one) for one in logits]
        greedy = sampling.get("temperature") == 0.0
        clear = np.ones(len(text), bool)
        if greedy:
            p, q = (np.eye(one.shape[-1])[np.argmax(one, axis=-1)] for one in logits)
            chosen = np.take_along_axis(raw[0], np.argmax(logits[1], axis=-1)[:, None], axis=-1)
            lenient = chosen >= raw[0].max(axis=-1, keepdims=True) + np.log(LENIENCE)
        else:
            sampled = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **sampling}
            p, q = (reference.standardize(one, **sampled) for one in logits)
            lenient = np.stack([np.minimum(p / value, q).sum(axis=-1) for value in LENIENCE], axis=-1)
            if sampled["top_p"] < 1:
                clear = np.min([reference.nucleus_margin(one, **sampled) for one in logits], axis=0) > 1e-5
        beta, draft = np.minimum(p, q).sum(axis=-1), scores.drafts["draft"]
        np.testing.assert_allclose(draft.beta[clear], beta[clear], atol=1e-5)
        np.testing.assert_allclose(draft.lenient_beta[clear], lenient[clear], atol=1e-5)
        picked = np.arange(len(text)), text
        np.testing.assert_allclose(scores.target_logprob, raw[0][picked], atol=1e-5)
        np.testing.assert_allclose(draft.logprob, raw[1][picked], atol=1e-5)
        assert draft.argmax_agrees.tolist() == (np.argmax(logits[0], -1) == np.argmax(logits[1], -1)).tolist()
        for entropy, law in ((scores.target_entropy, p), (draft.entropy, q)):
            with np.errstate(divide="ignore", invalid="ignore"):
                np.testing.assert_allclose(entropy[clear], -np.nansum(law * np.log(law), axis=-1)[clear], atol=1e-5)
        means.append([draft.beta[clear].sum(), beta[clear].sum(), clear.sum()])
    mine, exact, count = np.sum(means, axis=0)
    assert count > 60 and abs(mine - exact) / count < 1e-6


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.8, "top_k": 12}, pytest.param({"temperature": 0.0}, marks=pytest.mark.slow)]
)
def test_same_as_generation_recorded(t5, texts, sampling):
    config = settings(gamma=3, num_slots=4, input_buckets=(40,), **sampling)
    ids = [str(i) for i in range(len(texts[0]))]
    check_recorded(t5[0], t5[1], config, texts[0], ids)


def test_same_as_generation_recorded_decoder_only(golden, texts):
    target = decoding.load_model(str(golden / "llama"))
    prompts = [prompt % target.vocab_size for prompt in texts[0]]
    bigram = NGramDraft.fit(prompts, target.vocab_size, start_id=target.start_id, eos_id=target.eos_id)
    config = settings(gamma=2, num_slots=4, input_buckets=(40,))
    check_recorded(target, bigram, config, prompts, [str(i) for i in range(len(prompts))])


@pytest.mark.parametrize("temperature", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_same_as_generation_recorded_prompt_lookup(temperature):
    """With γ = 1, where every proposal is made right there."""
    config = settings(gamma=1, num_slots=4, input_buckets=(16,), temperature=temperature)
    inputs = [[5, 6, 7, 5, 6, 7, 1], [9, 9, 9, 1], [11, 12, 1]]
    # A target that repeats itself, so that there is something to look up.
    target = scripted.near(scripted.reciting([4, 5, 6, 7]), seed=1, noise=0.5)
    lookup = PromptLookupDraft()
    inputs = [[token % 8 for token in given] for given in inputs]
    found = check_recorded(target, lookup, config, inputs, ["a", "b", "c"])
    assert any(np.isnan(scores.drafts["draft"].beta).any() for scores in found)
    for scores in found:
        silent = np.isnan(scores.drafts["draft"].beta)
        assert np.array_equal(np.isnan(scores.drafts["draft"].logprob), silent)
        assert np.array_equal(np.isnan(scores.drafts["draft"].entropy), silent)
        assert not scores.drafts["draft"].argmax_agrees[silent].any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_uniform_draft(temperature):
    target = scripted.random_script(3, vocab_size=8)
    scorer = Scorer(target, {"uniform": UniformDraft()}, settings(temperature=temperature, input_buckets=(16,)))
    texts = [np.random.default_rng(1).integers(0, 8, 24) for _ in range(40)]
    found = [one.drafts["uniform"] for one in scorer.score([[2, 3]] * 40, texts)]
    beta = np.concatenate([one.beta for one in found])
    np.testing.assert_allclose(np.concatenate([one.logprob for one in found]), -np.log(8), atol=1e-6)
    if temperature:
        assert np.all((beta > 1 / 8) & (beta < 1))
    else:
        assert abs(np.mean(beta) - 1 / 8) < 0.05 and set(beta) == {0.0, 1.0}


def check_recorded(target, draft, config, inputs, ids):
    """β, log p and log q at every position that generation examined equal the scores there."""
    generations = Generator(target, draft, config).generate(inputs, ids)
    found = Scorer(target, {"draft": draft}, config).score(inputs, [one.tokens for one in generations])
    compared = 0
    for generation, scores in zip(generations, found):
        examined = ~np.isnan(generation.beta)
        compared += examined.sum()
        mine = scores.drafts["draft"]
        np.testing.assert_allclose(mine.beta[examined], generation.beta[examined], atol=1e-5)
        np.testing.assert_allclose(mine.logprob[examined], generation.draft_logprob[examined], atol=1e-4)
        np.testing.assert_allclose(scores.target_logprob, generation.target_logprob, atol=1e-4)
    assert compared > 20
    return found


def test_neighbours_change_nothing(scorer, texts):
    scorer = scorer(top_p=0.9)
    together = scorer.score(*texts)
    order = [4, 2, 6, 0, 5, 1, 3]
    shuffled = scorer.score(*([column[i] for i in order] for column in texts))
    for place, i in enumerate(order):
        (alone,) = scorer.score([texts[0][i]], [texts[1][i]])
        for other in (shuffled[place], alone):
            np.testing.assert_array_equal(other.target_logprob, together[i].target_logprob)
            for name, array in vars(other.drafts["draft"]).items():
                np.testing.assert_array_equal(array, getattr(together[i].drafts["draft"], name), err_msg=name)


def test_what_cannot_be_scored(t5):
    scorer = Scorer(table([0.0] * 4), {}, settings())
    for given, text, reason in (
        ([], [1], "the input has 0 tokens; allowed: 1 to 40"),
        ([1], [0] * 25, "the text has 25 tokens; allowed: 1 to 24"),
        ([1], [4], "the text has the token 4; allowed: 0 to 3"),
        ([-1], [1], "the input has the token -1"),
    ):
        assert reason in scorer.problem(given, text)
        with pytest.raises(ValueError, match=reason):
            scorer.score([given], [text])
    with pytest.raises(ValueError, match="vocabulary has 384 tokens and the target's 4"):
        Scorer(table([0.0] * 4), {"t5": t5[1]}, settings())
    assert jnp.isfinite(scorer.score([[1]], [[2]])[0].target_logprob).all()
