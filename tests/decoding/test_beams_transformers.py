"""Beam search against what transformers found with the same weights: tests/support/hf_beams.py."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import decoding
from tests.support.hf_beams import FAMILIES, INPUTS, NEW_TOKENS

GOLDEN = pathlib.Path(__file__).parents[1] / "testdata" / "golden"
FOUND = json.loads((GOLDEN / "beams.json").read_text())
FAST, SOAK = ("t5_v1_1_target", "llama"), ("gemma2", "gpt_neox", "opt")  # one of each kind; more of the second


def found(model, draft, settings: dict, **more) -> list[list[decoding.Generation]]:
    """Per input its texts, over two slots with refills."""
    shape = dict(max_decode_tokens=NEW_TOKENS, num_slots=2, input_buckets=(8, 24), chunk_iterations=5)
    config = decoding.DecodingConfig(temperature=0.0, **(shape | {"gamma": 0} | settings | more))
    names = [f"input {i}" for i in range(len(INPUTS))]
    results, report = decoding.Generator(model, draft, config).generate_with_report(INPUTS, names)
    assert report.compilations == 0
    each = config.num_return_sequences
    return [results[i * each : (i + 1) * each] for i in range(len(INPUTS))]


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def _soak(*values):
    return pytest.param(*values, marks=pytest.mark.soak)


@pytest.fixture(
    scope="module", params=[name if name in FAST else (_soak if name in SOAK else _slow)(name) for name in FAMILIES]
)
def family(request):
    return request.param, decoding.load_model(str(GOLDEN / request.param))


@pytest.mark.parametrize("number", [0, _slow(1), *map(_soak, range(2, 5))])
def test_texts_and_scores_are_transformers(family, number):
    name, model = family
    wanted = [one for one in FOUND if one["family"] == name][number]
    for ours, theirs in zip(found(model, None, wanted["settings"]), wanted["texts"], strict=True):
        assert [result.tokens.tolist() for result in ours] == [text["tokens"] for text in theirs]
        np.testing.assert_allclose([result.score for result in ours], [text["score"] for text in theirs], atol=1e-4)


@pytest.mark.parametrize(
    "family", [_slow(name) if name in ("t5_v1_1_target", "llama") else _soak(name) for name in FAMILIES], indirect=True
)
@pytest.mark.parametrize("width, gamma", [_soak(4, 1), (4, 4), _soak(8, 3)])
def test_speculative_is_plain(family, width, gamma):
    """A draft of the same weights with noise; copied guesses; the same texts, and scores but for the last bits."""
    _, model = family
    settings = dict(num_beams=4, num_return_sequences=4, no_repeat_ngram_size=4)
    plain = found(model, None, settings)
    for draft in (noisy(model), decoding.PromptLookupDraft()):
        for ours, theirs in zip(found(model, draft, settings, gamma=gamma, draft_beams=width), plain, strict=True):
            assert [result.tokens.tolist() for result in ours] == [result.tokens.tolist() for result in theirs]
            np.testing.assert_allclose([one.score for one in ours], [one.score for one in theirs], atol=1e-5)
            assert len(ours[0].steps) == len(theirs[0].steps)


def noisy(model):
    """The model with a little noise on its last projections: often right."""
    graph, params = nnx.split(model)
    rng = np.random.default_rng(0)

    def disturb(path, leaf):
        last = any("embedding" in str(key) or "norm" in str(key) for key in path)
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf + rng.normal(size=leaf.shape, scale=0.02).astype(leaf.dtype) if last and floats else leaf

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(disturb, params))
