"""The presets' parameter counts are the published ones; nothing is allocated to count them."""

import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from decoding.checkpoints.architecture import abstract_model
from decoding.checkpoints.fill import parameter_shapes
from decoding.checkpoints.presets import PRESETS

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "models.md"
EMBEDDINGS = ("embedding", "positions", "encoder.positions", "decoder.positions", "head", "logits_bias")


@functools.cache
def counts(name: str) -> tuple[int, int]:
    """Parameters of a preset: all of them, and those outside embeddings and head."""
    shapes = parameter_shapes(abstract_model(name))
    made = PRESETS[name]["model_type"] in ("m2m_100", "marian")  # tables of sinusoids are no parameters
    sizes = {path: math.prod(shape) for path, shape in shapes.items() if not (made and path.endswith(".positions"))}
    return sum(sizes.values()), sum(size for path, size in sizes.items() if path not in EMBEDDINGS)


# Those of published weights are exact; the others were published rounded: (count, relative tolerance).
EXACT = {
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "nllb-200-3.3b": 3_344_863_232,
    "nllb-200-1.3b": 1_370_638_336,
    "nllb-200-600m": 615_073_792,
    "smollm2-135m": 134_515_008,
    "pythia-12b": 11_846_072_320,
    "pythia-410m": 405_334_016,
    "gemma-2-27b": 27_227_128_320,
    "gemma-2-2b": 2_614_341_888,
    "llama-2-70b": 68_976_648_192,
}
ROUNDED = {
    "gpt-97m": (97e6, 0.01), "gpt-6m": (6e6, 0.05), "bart-large": (406.3e6, 0.001), "distilbart-6-6": (230e6, 0.001),
    "opus-mt": (298e6 / 4, 0.01),  # of transformers' docs: 298 MB on disk
    "opus-mt-big": (213e6 + (58101 - 37000) * 1024, 0.01),  # Vaswani et al., table 3, with 37,000 pieces
}  # fmt: skip
WITHOUT_EMBEDDINGS = {  # as LaMDA's paper counts
    "lamda-137b": (137e9, 0.005),
    "lamda-8b": (8e9, 0.08),
    "lamda-2b": (2e9, 0.05),
    "lamda-100m": (100e6, 0.01),
}


def test_every_preset_has_a_published_count():
    assert {*EXACT, *ROUNDED, *WITHOUT_EMBEDDINGS} == set(PRESETS)


@pytest.mark.parametrize("name", EXACT)
def test_counts_of_published_weights(name):
    assert counts(name)[0] == EXACT[name]


@pytest.mark.parametrize("name", [*ROUNDED, *WITHOUT_EMBEDDINGS])
def test_counts_published_rounded(name):
    found = counts(name)[0 if name in ROUNDED else 1]
    published, tolerance = (ROUNDED | WITHOUT_EMBEDDINGS)[name]
    assert abs(found / published - 1) < tolerance


def test_tying_the_gpt_pair_would_miss_its_count():
    embeddings = PRESETS["gpt-97m"]["vocab_size"] * PRESETS["gpt-97m"]["n_embd"]
    assert abs((counts("gpt-97m")[0] - embeddings) / 97e6 - 1) > 0.05


def test_the_table_in_the_docs():
    rows = re.findall(r"^\| `([a-z0-9.-]+)` \|.*\| ([0-9,]+) \| ([0-9,]+) \|", DOCS.read_text(), re.MULTILINE)
    table = {name: tuple(int(count.replace(",", "")) for count in found) for name, *found in rows}
    assert table == {name: counts(name) for name in PRESETS}


def test_nothing_is_allocated():
    leaves = jax.tree.leaves(nnx.state(abstract_model("lamda-137b")))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == jnp.bfloat16 for leaf in leaves)


def test_relative_positions_and_no_scaled_scores_are_lamdas():
    config = abstract_model("lamda-2b").config
    assert (config.position, config.scale_attention, config.gated, config.d_ff) == ("relative", False, True, 8 * 2560)
    assert config.num_heads * config.head_dim == 2 * config.d_model
