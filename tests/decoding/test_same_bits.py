"""On processors a row's bits depend on nothing but the row: not on slots, γ, or what else is in the batch.

Products, norms, attention and rows over the vocabulary are those of `decoding.kernels`. Nothing is exempted as a tie, and what
is recorded (β, log-probabilities) is compared bit for bit too.
"""

import pathlib

import numpy as np
import pytest
from flax import nnx

import decoding
from decoding import kernels
from decoding.kernels import logits
from tests.support.noisy import SHAPES, random_inputs, random_pair

if kernels.available() is None:
    pytest.skip("the products cannot be built on this machine", allow_module_level=True)

PAIR = pathlib.Path(__file__).parents[2] / "examples" / "models" / "ende_software"


def _run(target, draft, inputs, **settings) -> list[decoding.Generation]:
    config = decoding.DecodingConfig(input_buckets=(6, 12), **settings)
    return decoding.Generator(target, draft if config.gammas != (0,) else None, config).generate(
        inputs, [str(i) for i in range(len(inputs))]
    )


def _bits(generation: decoding.Generation, *names: str) -> bytes:
    """What does not depend on the draft, and what else is named."""
    return b"".join(getattr(generation, name).tobytes() for name in ("tokens", "target_logprob", *names))


RECORDED = ("source", "beta", "draft_logprob", "gammas", "accepted")  # depends on γ


def _check_same_bits(target, draft, inputs, pairs, **settings) -> int:
    """Runs every pair of slots and γ, and returns how many tokens were compared."""
    references, tokens = {}, 0
    for slots, gamma in pairs:
        results = _run(target, draft, inputs, num_slots=slots, gamma=gamma, **settings)
        for key, names in (("any", ()), (gamma, RECORDED)):
            bits = [_bits(result, *names) for result in results]
            assert references.setdefault(key, bits) == bits, (slots, gamma)
        tokens += sum(len(result.tokens) for result in results)
    return tokens


LAWS = {
    "greedy": dict(temperature=0.0),
    "coupled": dict(temperature=1.0, verification="coupled"),
    "coupled, filtered": dict(temperature=0.8, verification="coupled", top_k=40, top_p=0.95),
}


def _mark(family: str, law: str, form: str) -> list[pytest.MarkDecorator]:
    """Of the floats' cases CI runs one of each family, and of other forms one each."""
    if (family, law, form) == ("t5", "coupled", "float32"):
        return []
    soak = form == "float32" and (family, law) not in (("gpt2", "coupled, filtered"), ("llama", "greedy"))
    others = form != "float32" and (family, form) not in (("llama", "bfloat16"), ("t5", "int8"))
    return [pytest.mark.soak if soak or others else pytest.mark.slow]


CASES = [
    pytest.param(family, law, form, marks=_mark(family, law, form))
    for family in SHAPES
    for law in LAWS
    for form in ("float32", "bfloat16", "int8")
    if form == "float32" or (family, law) in (("llama", "greedy"), ("t5", "coupled, filtered"))
]


@pytest.mark.parametrize("family, law, form", CASES)
def test_tokens_are_the_same_bits_for_any_slots_and_gamma(family, law, form):
    target, draft = random_pair(SHAPES[family], form)
    inputs = random_inputs(target.vocab_size, 35)
    _check_same_bits(target, draft, inputs, [(1, 0), (3, 7), (8, 2), (32, 7)], max_decode_tokens=24, **LAWS[law])


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["token", "block"])
def test_sampled_tokens_are_the_same_bits_for_any_slots(verification):
    target, draft = random_pair(SHAPES["llama"])
    inputs = random_inputs(target.vocab_size, 20)
    settings = dict(gamma=3, temperature=1.0, verification=verification, max_decode_tokens=16)
    runs = [_run(target, draft, inputs, num_slots=slots, **settings) for slots in (1, 3, 16)]
    accepted, guesses = (sum(int(np.sum(getattr(result, name))) for result in runs[0]) for name in ("accepted", "gammas"))
    assert 0 < accepted < guesses  # the draft is neither perfect nor useless
    for run in runs[1:]:
        for mine, first in zip(run, runs[0]):
            assert _bits(mine, *RECORDED) == _bits(first, *RECORDED)


@pytest.mark.slow
def test_arrays_of_xla_do_not_promise_it(monkeypatch):
    """Negative control: the same comparison sees the rounding of XLA's sums."""
    target, _ = random_pair(SHAPES["t5"])
    plain = SHAPES["t5"].build(rngs=nnx.Rngs(0), dtype=np.float32)
    inputs = random_inputs(target.vocab_size, 35)
    settings = dict(gamma=0, max_decode_tokens=24, temperature=0.0)
    same = lambda model: [
        _bits(one) == _bits(other)
        for one, other in zip(*(_run(model, None, inputs, num_slots=slots, **settings) for slots in (1, 32)))
    ]
    assert all(same(target))
    monkeypatch.setattr(logits, "available", lambda: None)
    assert np.mean(same(plain)) < 0.5


FEW = [(1, 0), (3, 7), (8, 0), (8, 3), (32, 7)]
ALL = [(slots, gamma) for slots in (1, 3, 8, 32) for gamma in range(8)]


@pytest.mark.soak
@pytest.mark.parametrize("law", ["greedy", "coupled"])
@pytest.mark.parametrize("family", SHAPES)
def test_no_token_of_many_differs_in_any_family(family, law):
    """Zero differing tokens of 1e5, under every number of slots with every γ."""
    target, draft = random_pair(SHAPES[family])
    inputs = random_inputs(target.vocab_size, 140)
    assert _check_same_bits(target, draft, inputs, ALL, max_decode_tokens=24, **LAWS[law]) > 1e5


@pytest.mark.parametrize(
    "law, settings, least",
    [
        pytest.param("greedy", FEW, 2e4, marks=pytest.mark.slow),
        *(pytest.param(law, ALL, 1e5, marks=pytest.mark.soak) for law in ("greedy", "coupled")),
    ],
)
def test_the_pair_on_real_sentences(law, settings, least):
    """Zero differing tokens of the demo pair's, at least so many of them."""
    import json

    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(PAIR / "target" / "spiece.model"))
    lines = (PAIR.parents[1] / "data" / "ende_software.test.jsonl").read_text().splitlines()
    target, draft = (decoding.load_model(str(PAIR / name)) for name in ("target", "draft"))
    texts = [next(value for value in json.loads(line).values() if isinstance(value, str)) for line in lines]
    inputs = [tokens[:12] for text in texts if (tokens := [*pieces.encode(text), target.eos_id])][:250]
    assert _check_same_bits(target, draft, inputs, settings, max_decode_tokens=48, **LAWS[law]) > least
