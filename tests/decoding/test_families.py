"""Speculative greedy decoding equals plain greedy decoding, for every family of targets and every kind of draft."""

import dataclasses
import pathlib

import numpy as np
import pytest
from flax import nnx

import decoding
from decoding.models.decoder_only import DecoderConfig, DecoderOnly, Rotary

GOLDEN = pathlib.Path(__file__).parents[1] / "testdata" / "golden"
VOCABULARY = 384


def random_model(seed: int, **changes) -> DecoderOnly:
    """Two small layers with random weights, by default of Qwen2's kind."""
    shape = DecoderConfig(
        vocab_size=VOCABULARY, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=32,
        norm="rms", position="rotary", activation="silu", gated=True, tied=True, qkv_bias=True,
    )  # fmt: skip
    return DecoderOnly(dataclasses.replace(shape, **changes), rngs=nnx.Rngs(seed))


LAMDA = {"position": "relative", "activation": "gelu_new", "num_kv_heads": 4, "qkv_bias": False, "scale_attention": False}
TARGETS = {
    "t5": lambda: decoding.load_model(str(GOLDEN / "t5_v1_1_target")),
    "gpt2": lambda: decoding.load_model(str(GOLDEN / "gpt2")),
    "llama": lambda: decoding.load_model(str(GOLDEN / "llama")),
    "lamda": lambda: random_model(0, **LAMDA),
    "qwen": lambda: random_model(1, qk_norm=True, rotary=Rotary(theta=1e6)),
}
DRAFTS = ("transformer", "bigram", "unigram", "prompt_lookup", "uniform")
SETTINGS = {"temperature": 0.0, "max_decode_tokens": 20, "num_slots": 2, "input_buckets": (12,)}


# What a draft that is no model does hardly depends on the target's family; test_drafts.py has prompt lookup by default.
PAIRS = [
    pytest.param(
        target, kind, id=f"{target}-{kind}",
        marks=[] if kind == "transformer" or (target in ("t5", "llama") and kind == "bigram") else pytest.mark.slow,
    )
    for target in TARGETS for kind in DRAFTS
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(request):
    """A target, inputs of ragged lengths that repeat themselves, and their plain greedy outputs."""
    target = TARGETS[request.param]()
    rng = np.random.default_rng(0)
    inputs = [np.tile(rng.integers(3, target.vocab_size, n), 2).tolist() for n in (6, 2, 4)]
    results = decoding.Generator(target, None, decoding.DecodingConfig(gamma=0, **SETTINGS)).generate(inputs, "abc")
    return target, inputs, [result.tokens.tolist() for result in results]


def draft_for(kind: str, target, outputs):
    if kind in ("bigram", "unigram"):
        order = 2 if kind == "bigram" else 1
        special = {"start_id": target.start_id, "eos_id": target.eos_id}
        return decoding.NGramDraft.fit(outputs, target.vocab_size, order=order, **special)
    if kind != "transformer":
        return decoding.load_draft(kind)
    if target.encoder_decoder:
        return decoding.load_model(str(GOLDEN / "t5_v1_1_draft"))
    return random_model(2, vocab_size=target.vocab_size, num_layers=1)


@pytest.mark.parametrize(("plain", "kind"), PAIRS, indirect=["plain"])
def test_greedy_output_is_plain_decodings(plain, kind):
    target, inputs, expected = plain
    draft = draft_for(kind, target, expected)
    config = decoding.DecodingConfig(gamma=3, **SETTINGS)
    results, report = decoding.Generator(target, draft, config).generate_with_report(inputs, "abc")
    assert [result.tokens.tolist() for result in results] == expected
    gammas = np.concatenate([result.gammas for result in results])
    assert gammas.max() == 3 and (kind == "prompt_lookup" or gammas.min() == 3)
    assert kind != "bigram" or sum(result.accepted.sum() for result in results) > 0
    assert report.compilations == 0
