"""Beam search on scripted models: against enumeration, and with a draft against without."""

import dataclasses
import itertools
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import decoding
from decoding.adaptive import GammaPolicy
from decoding.beams.programs import BeamPrograms
from decoding.beams.run import BeamRun
from decoding.models.resident import pack_model
from pipeline.planning import hlo
from tests.support.noisy import SHAPES, random_inputs
from tests.support.scripted import Scripted, greedy, near, next_logits, random_script

GOLDEN = pathlib.Path(__file__).parents[1] / "testdata" / "golden"
INPUTS = [[2, 3], [4, 5, 2], [3], [3, 3, 3, 3], [5, 2], [2, 2, 4]]
NAMES = [f"input {i}" for i in range(len(INPUTS))]
BASE = decoding.DecodingConfig(
    gamma=0, temperature=0.0, max_decode_tokens=8, num_slots=2, input_buckets=(2, 4), chunk_iterations=3,
    num_beams=2, num_return_sequences=2,
)  # fmt: skip


def search(model, draft=None, inputs=INPUTS, **settings):
    """Results of all inputs, the texts of one adjacent, and the report."""
    config = dataclasses.replace(BASE, **settings)
    results, report = decoding.Generator(model, draft, config).generate_with_report(inputs, NAMES[: len(inputs)])
    assert report.compilations == 0
    return results, report


def enumerated(model: Scripted, inputs, length: int, penalty) -> list[tuple[float, list[int]]]:
    """All texts of up to `length` tokens with their scores, the best first."""
    texts = []
    for tokens in itertools.product(range(model.vocab_size), repeat=length):
        end = tokens.index(model.eos_id) + 1 if model.eos_id in tokens else length
        if any(token != 0 for token in tokens[end:]):  # the same text once
            continue
        text, total = list(tokens[:end]), 0.0
        for i in range(end):
            logits = next_logits(model, inputs, text[:i]).astype(np.float64)
            total += logits[text[i]] - np.log(np.sum(np.exp(logits)))
        texts.append((total / penalty(end), text))
    return sorted(texts, reverse=True)


@pytest.mark.parametrize(
    "settings, penalty",
    [
        (dict(length_penalty=0.0), lambda n: 1.0),
        (dict(length_penalty=1.0), lambda n: n),
        (dict(length_penalty=0.6, length_penalty_form="t5x"), lambda n: ((5 + n) / 6) ** 0.6),
    ],
)
def test_a_search_whose_beams_cover_all_is_brute_force(settings, penalty):
    """4 tokens and 3 steps: 9 beams hold every text that goes on, so the best are the best of all."""
    model = random_script(3, vocab_size=4)
    shape = dict(num_beams=9, num_return_sequences=3, max_decode_tokens=3, early_stopping="never")
    few = [[2, 3], [3, 3, 2], [3]]
    results, _ = search(model, inputs=few, **shape, **settings)
    for i, inputs in enumerate(few):
        wanted = enumerated(model, inputs, 3, penalty)[:3]
        ours = results[3 * i : 3 * i + 3]
        assert [result.tokens.tolist() for result in ours] == [text for _, text in wanted]
        np.testing.assert_allclose([result.score for result in ours], [score for score, _ in wanted], atol=1e-5)


MODEL = random_script(0, vocab_size=9)
DRAFTS = {
    "alike": near(MODEL, 1, 0.5),
    "itself": MODEL,
    "stranger": random_script(7, vocab_size=9),
    "lookup": decoding.PromptLookupDraft(),
    "bigram": decoding.NGramDraft.fit([[3, 4, 5, 1], [2, 6, 7, 8]], 9, start_id=0, eos_id=1),
    "uniform": decoding.UniformDraft(),
}


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        for name in ("tokens", "target_logprob", "score", "finish_reason"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert len(one.steps) == len(other.steps)


_FEW = [("lookup", 2, 1, 3)]
_ALL = list(itertools.product(DRAFTS, (2, 4), (1, 2), (1, 3, 5)))


def _marks(number: int, case: tuple) -> list[pytest.MarkDecorator]:
    """One case in thirteen is run by CI, one of each draft; `make soak` runs the others."""
    return [] if case in _FEW else [pytest.mark.slow] if number % 13 == 0 else [pytest.mark.soak]


@pytest.mark.parametrize(
    "draft, width, times, gamma",
    [pytest.param(*case, marks=_marks(number, case)) for number, case in enumerate(_ALL)],
)
def test_speculative_is_plain_bit_for_bit(draft, width, times, gamma):
    """Ragged inputs, ends inside blocks, refills: texts, scores, log-probabilities and the number of steps."""
    settings = dict(num_beams=width, num_return_sequences=width, max_decode_tokens=11, no_repeat_ngram_size=3)
    plain, _ = search(MODEL, **settings)
    ours, _ = search(MODEL, DRAFTS[draft], gamma=gamma, draft_beams=times * width, **settings)
    assert_equal(ours, plain)
    assert all(result.num_iterations <= len(result.steps) for result in ours)
    assert {result.finish_reason for result in plain} == {"eos", "length"}
    if draft == "itself":  # what the target would do, all of it
        assert all(result.num_iterations == -(-len(result.steps) // (gamma + 1)) for result in ours)


@pytest.mark.parametrize(
    "family, draft",
    [
        pytest.param("scripted", "itself", marks=pytest.mark.slow),
        pytest.param("scripted", "lookup", marks=pytest.mark.soak),
        *(pytest.param(name, "itself", marks=pytest.mark.slow if name == "llama" else pytest.mark.soak) for name in SHAPES),
    ],
)
def test_gamma_may_change_between_chunks(monkeypatch, family, draft):
    """The draft catches up with what was decided without it: one that is the target covers every step for which it drafts."""
    model, inputs = MODEL, INPUTS
    if family != "scripted":
        model = pack_model(SHAPES[family].build(rngs=nnx.Rngs(0), dtype=np.float32))
        inputs = random_inputs(model.vocab_size, len(NAMES))
    shape = dict(max_decode_tokens=16, input_buckets=(2, 12), chunk_iterations=2)
    plain, _ = search(model, inputs=inputs, **shape)
    turns = itertools.cycle([0, 2, 0, 0, 3])
    monkeypatch.setattr(GammaPolicy, "choose", lambda self: (next(turns), False))
    observed = []
    monkeypatch.setattr(GammaPolicy, "observe", lambda self, *chunk: observed.append(chunk))
    config = dataclasses.replace(BASE, gamma="auto", gamma_choices=(0, 2, 3), **shape)
    own = model if draft == "itself" else DRAFTS[draft]
    generator = decoding.Generator(model, own, config, costs={0: 1.0, 2: 1.0, 3: 1.0})
    ours, report = generator.generate_with_report(inputs, NAMES)
    assert_equal(ours, plain)
    assert report.compilations == 0 and set(report.gammas) == {0, 2, 3}
    for result in ours:
        assert set(result.gammas) <= {0, 2, 3} and len(result.gammas) == len(result.accepted)
        assert sum(np.isin(result.steps, (0, 2, 3))) in (result.num_iterations, result.num_iterations - 1)
    for gamma, covered, examined in observed:
        assert len(covered) == len(examined) == gamma and all(covered <= examined)
        if draft == "itself":
            assert covered.tolist() == examined.tolist()


def test_records_say_what_was_covered():
    """A draft that is the target covers every step; one level fewer than the block is a bonus."""
    results, _ = search(MODEL, MODEL, gamma=3)
    for result in results:
        steps = np.arange(len(result.steps))
        np.testing.assert_array_equal(result.steps, np.where(steps % 4 == 3, 2, 1))
        np.testing.assert_array_equal(result.source, result.steps[: len(result.tokens)])
        np.testing.assert_array_equal(result.iteration, steps[: len(result.tokens)] // 4)
        assert result.gammas.tolist() == [3] * result.num_iterations
        assert result.accepted.sum() == np.sum(result.steps == 1)


@pytest.mark.parametrize("gamma", [0, 3])
def test_one_beam_is_greedy(gamma):
    config = dataclasses.replace(BASE, num_beams=1, num_return_sequences=1, gamma=gamma)
    object.__setattr__(config, "early_stopping", True)  # refused of a job, whose one beam is the engine's
    programs = BeamPrograms(MODEL, DRAFTS["alike"] if gamma else None, config, None)
    programs.compile()
    results, _ = BeamRun(programs, INPUTS, NAMES, {}).to_the_end()
    assert [result.tokens.tolist() for result in results] == [greedy(MODEL, one, 8) for one in INPUTS]


def test_logits_that_are_no_numbers_fail_their_input_alone():
    table = np.array(MODEL.table[...])
    table[:, 5] = np.nan
    with pytest.raises(decoding.NonFiniteLogits) as caught:
        search(Scripted(table))
    results, clean = caught.value.results, search(MODEL)[0]
    assert 0 < len(caught.value.faults) < len(INPUTS)
    for i in range(len(INPUTS)):
        if i in caught.value.faults:
            assert results[2 * i : 2 * i + 2] == [None, None]
        else:
            assert_equal(results[2 * i : 2 * i + 2], clean[2 * i : 2 * i + 2])


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(temperature=1.0), "decoding.temperature is 1.0; allowed: 0.0 with num_beams above 1"),
        (dict(num_samples=2), "decoding.num_samples is 2; allowed: 1 with num_beams above 1"),
        (dict(lenience=0.5), "decoding.lenience is 0.5; allowed: 1.0 with num_beams above 1"),
        (dict(verification="block"), "decoding.verification is 'block'; allowed: 'token' with num_beams above 1"),
        (dict(num_return_sequences=3), "decoding.num_return_sequences is 3; allowed: 1 to 2, num_beams"),
        (dict(draft_beams=1), "decoding.draft_beams is 1; allowed: 0, or at least 2, num_beams"),
        (dict(early_stopping="ever"), "decoding.early_stopping is 'ever'; allowed: true, false or \"never\""),
        (dict(min_new_tokens=8), "decoding.min_new_tokens is 8; allowed: 0 to 7"),
        (dict(num_beams=1, num_return_sequences=1, length_penalty=0.6), "decoding.length_penalty is 0.6; allowed: 1.0"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match="decoding") as caught:
        dataclasses.replace(BASE, **settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("gamma", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_no_cache_is_copied(gamma):
    """In the loop of the compiled chunk, of XLA's form: what is written or gathered is a block, whatever beams do."""
    model = decoding.load_model(str(GOLDEN / "t5_v1_1_target"), weights="plain")
    config = dataclasses.replace(BASE, gamma=gamma, max_decode_tokens=20, input_buckets=(17,))  # as long as no block
    programs = BeamPrograms(model, model if gamma else None, config, None)
    chunk = programs.compiler.lowered["chunk", gamma]().compile()
    states = jax.eval_shape(programs._empty)
    caches = {("f32", leaf.shape) for leaf in jax.tree.leaves(states) if len(leaf.shape) == 4}
    text = chunk.as_text()
    assert all(f"f32[{','.join(map(str, shape))}]" in text for _, shape in caches)
    assert hlo.Program(text).copies(caches) == ([], 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(states)) * 4 <= chunk.memory_analysis().alias_size_in_bytes
