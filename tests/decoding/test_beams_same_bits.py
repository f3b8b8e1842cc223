"""On processors a beam search with a draft has the bits of one without, and one beam those of greedy decoding.

Nothing is exempted as a tie: a node of a tree has the bits of a position of its own text (`decoding.kernels.attention`).
Plain and speculative searches run over different numbers of slots, so that batches, and what is refilled when, differ too.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

import decoding
from benchmarks.workloads import read_sentences
from decoding import kernels
from decoding.beams.programs import BeamPrograms
from decoding.beams.run import BeamRun
from decoding.config import ACCEPTED, CORRECTED
from tests.decoding.test_same_bits import PAIR
from tests.support.noisy import SHAPES, random_inputs, random_pair

if kernels.available() is None:
    pytest.skip("the products cannot be built on this machine", allow_module_level=True)

NEW_TOKENS = 20
ENDS = tuple(range(1, 1003, 40))  # so that random models end texts, within blocks too


@functools.cache
def models(family: str):
    """Target, draft and inputs of ragged lengths."""
    if family == "pair":
        target, draft = (decoding.load_model(str(PAIR / name)) for name in ("target", "draft"))
        data = PAIR.parents[1] / "data" / "ende_software.test.jsonl"
        return target, draft, read_sentences(data, PAIR / "target" / "spiece.model", 24)[:12]
    target, draft = random_pair(dataclasses.replace(SHAPES[family], eos_ids=ENDS))
    return target, draft, random_inputs(target.vocab_size, 8)


def drafts(family: str, kind: str):
    target, draft, inputs = models(family)
    ends = dict(start_id=target.start_id, eos_id=target.eos_id)
    others = {
        "model": lambda: draft,
        "lookup": decoding.PromptLookupDraft,
        "bigram": lambda: decoding.NGramDraft.fit(inputs, target.vocab_size, **ends),
        "uniform": decoding.UniformDraft,
    }
    return others[kind]()


def search(family: str, width: int, draft=None, draft_beams: int = 0, **settings) -> list[decoding.Generation]:
    target, _, inputs = models(family)
    # A job's one beam is greedy decoding and no search, so its settings are those of two until they are checked.
    config = decoding.DecodingConfig(
        temperature=0.0, max_decode_tokens=NEW_TOKENS, input_buckets=(24,), chunk_iterations=5, length_penalty=0.6,
        num_beams=max(width, 2), num_return_sequences=width, early_stopping=width == 1, **settings,
    )  # fmt: skip
    for name, value in (("num_beams", width), ("draft_beams", draft_beams)):
        object.__setattr__(config, name, value)
    programs = BeamPrograms(target, draft, config, None)
    programs.compile()
    return BeamRun(programs, inputs, list(map(str, range(len(inputs)))), {}).to_the_end()[0]


@functools.cache
def plain(family: str, width: int) -> list[decoding.Generation]:
    return search(family, width, gamma=0, num_slots=3)


@functools.cache
def greedy(family: str) -> list[decoding.Generation]:
    target, _, inputs = models(family)
    settings = dict(max_decode_tokens=NEW_TOKENS, input_buckets=(24,), num_slots=3)
    config = decoding.DecodingConfig(gamma=0, temperature=0.0, **settings)
    return decoding.Generator(target, None, config).generate(inputs, list(map(str, range(len(inputs)))))


def assert_same_bits(ours, others, *names: str):
    for one, other in zip(ours, others, strict=True):
        for name in ("tokens", "target_logprob", "finish_reason", *names):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


# u matters to drafts that search.
CASES = [
    (family, width, times, gamma, draft)
    for family, width, gamma, (draft, times) in itertools.product(
        (*SHAPES, "pair"),
        (1, 2, 4),
        (1, 3, 5),
        [("model", 1), ("model", 2), ("bigram", 1), ("bigram", 2), ("lookup", 1), ("uniform", 1)],
    )
]
SLOW = [
    ("t5", 2, 2, 3, "model"),
    ("llama", 4, 2, 3, "model"),
    ("gpt2", 1, 1, 5, "model"),
    ("pair", 1, 1, 3, "bigram"),
    ("pair", 4, 1, 1, "lookup"),
]


def _marks(case: tuple) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow if case in SLOW else pytest.mark.soak]


@pytest.mark.parametrize("family, width, times, gamma, draft", [pytest.param(*case, marks=_marks(case)) for case in CASES])
def test_speculative_is_plain_bit_for_bit(family, width, times, gamma, draft):
    ours = search(family, width, drafts(family, draft), gamma=gamma, num_slots=2, draft_beams=times * width)
    assert_same_bits(ours, plain(family, width), "score")
    assert [len(one.steps) for one in ours] == [len(other.steps) for other in plain(family, width)]
    if width == 1:
        assert_same_bits(ours, greedy(family))
    if draft == "model":  # which is neither useless nor perfect
        kinds = np.concatenate([one.steps for one in ours])
        assert {CORRECTED, ACCEPTED} <= set(kinds)


@pytest.mark.parametrize("family", [pytest.param(family, marks=pytest.mark.slow) for family in (*SHAPES, "pair")])
def test_texts_end_in_blocks_and_at_the_largest_length(family):
    """What the other tests compare: both kinds of ends, more inputs than slots, and inputs of many lengths."""
    found = plain(family, 4)
    assert {one.finish_reason for one in found} == {"eos", "length"}
    assert len({len(tokens) for tokens in models(family)[2]}) > 3 < len({len(one.tokens) for one in found})
