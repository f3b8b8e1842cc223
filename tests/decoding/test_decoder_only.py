"""GPT-2 and Llama against transformers' logits and greedy tokens, in one pass and through the engine."""

import pathlib

import numpy as np
import pytest

import decoding

GOLDEN = pathlib.Path(__file__).parents[1] / "testdata" / "golden"
FAMILIES = {"gpt2": 1e-4, "llama": 5e-4}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    arrays = np.load(GOLDEN / request.param / "golden.npz")
    texts = [arrays[f"input_ids_{i}"].reshape(-1).astype(np.int32) for i in range(3)]
    return request.param, decoding.load_model(str(GOLDEN / request.param)), arrays, texts


def test_logits_agree_with_the_reference(family):
    name, model, arrays, texts = family
    for i, text in enumerate(texts):
        logits = np.asarray(model.logits(text[None]))
        np.testing.assert_allclose(logits, arrays[f"logits_{i}"].reshape(logits.shape), atol=FAMILIES[name])


@pytest.mark.parametrize("gamma", [0, 3])
def test_greedy_tokens_from_ragged_prompts_equal_the_reference(family, gamma):
    """Three prompts of 70, 23 and 4 tokens over two slots: buckets, refill and ragged positions all take part."""
    _, model, arrays, texts = family
    config = decoding.DecodingConfig(
        gamma=gamma, temperature=0.0, max_decode_tokens=32, num_slots=2, input_buckets=(8, 80)
    )
    generator = decoding.Generator(model, model if gamma else None, config)
    results, report = generator.generate_with_report([text.tolist() for text in texts], ["a", "b", "c"])
    for i, (text, result) in enumerate(zip(texts, results)):
        expected = arrays[f"greedy_{i}"].reshape(-1)[len(text) :][: len(result.tokens)]
        np.testing.assert_array_equal(result.tokens, expected)
        assert result.finish_reason == ("eos" if result.tokens[-1] == model.eos_id else "length")
        if gamma:  # the draft is the target: only a hole in a cache could make it disagree with itself
            assert np.all(result.accepted[:-1] == gamma)
    assert report.compilations == 0


def test_a_learned_position_table_that_is_too_short_is_refused():
    model = decoding.load_model(str(GOLDEN / "gpt2"))
    config = decoding.DecodingConfig(gamma=0, max_decode_tokens=250, num_slots=1, input_buckets=(80,))
    with pytest.raises(ValueError, match="the model has 256"):
        decoding.Generator(model, None, config)


def test_a_decoder_only_model_refuses_encoder_inputs(family):
    _, model, _, texts = family
    with pytest.raises(ValueError, match="no encoder"):
        model.logits(texts[0][None], texts[1][None], np.array([3]))


def test_an_encoder_decoder_draft_is_refused(family):
    _, model, _, _ = family
    draft = decoding.load_model(str(GOLDEN / "t5_v1_1_draft"))
    with pytest.raises(ValueError, match="both"):
        decoding.Generator(model, draft, decoding.DecodingConfig(num_slots=1))


@pytest.mark.parametrize("gamma", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_text_from_the_start_token_alone(family, gamma):
    """Unconditional generation: position 0, where nothing stands before the last token."""
    _, model, _, _ = family
    config = decoding.DecodingConfig(
        gamma=gamma, temperature=0.0, max_decode_tokens=8, num_slots=2, input_buckets=(4,)
    )
    generator = decoding.Generator(model, model if gamma else None, config)
    (result,) = generator.generate([[model.start_id]], ["a"])
    text = np.zeros((1, 9), np.int32)
    text[0, : len(result.tokens) + 1] = [model.start_id, *result.tokens]
    best = np.asarray(model.logits(text)).argmax(-1)[0]
    np.testing.assert_array_equal(result.tokens, best[: len(result.tokens)])
    assert len(result.tokens) == 8 or result.tokens[-1] == model.eos_id
