"""Gemma 1, 2 and 3, Mistral, Phi-3, GPT-NeoX and OPT against transformers' logits and greedy tokens, with what is new."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import decoding
from decoding import kernels
from decoding.checkpoints.architecture import parse_config
from decoding.models.base import install
from decoding.models.decoder_only import Rotary
from tests.support import hf_models, reference
from tests.support.golden import greedy, inputs_of

GOLDEN = hf_models.GOLDEN_DIRECTORY
FAMILIES = tuple(hf_models.DECODER_ONLY)
FORMS = ["float32", pytest.param("plain", marks=pytest.mark.slow)] if kernels.available() else ["plain"]

# Every family, and one that has most of what is new for the others.
ONE = [pytest.param(name, marks=[] if name == "gemma2" else pytest.mark.slow) for name in FAMILIES]
WITH_WINDOWS = [one for one in ONE if one.values[0] in ("gemma2", "gemma3", "mistral", "phi3")]
TABLES = [pytest.param(kind, marks=pytest.mark.soak) for kind in ("bigram", "prompt_lookup")]

BUCKETS = (4, 24)


def tolerance(name: str) -> float:
    return 5e-4 if "gemma" in name else 1e-4


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, dict(np.load(GOLDEN / request.param / "golden.npz"))


@pytest.fixture(scope="module", params=FORMS)
def loaded(request, family):
    name, arrays = family
    return name, decoding.load_model(str(GOLDEN / name), weights=request.param), arrays


def references(arrays) -> list[list[int]]:
    return [[token for token in row if token >= 0] for row in arrays["greedy"].tolist()]


def test_logits_are_transformers(loaded):
    name, model, arrays = loaded
    np.testing.assert_allclose(model.logits(arrays["inputs"]), arrays["logits"], atol=tolerance(name))


@pytest.mark.parametrize("name", WITH_WINDOWS)
@pytest.mark.slow
def test_windows_are_noticed(name):
    """The reference texts are longer than the windows: a model that saw everything would not pass."""
    model = decoding.load_model(str(GOLDEN / name), weights="plain")
    arrays = np.load(GOLDEN / name / "golden.npz")
    blind = type(model)(dataclasses.replace(model.config, windows=()), rngs=nnx.Rngs(0))
    nnx.update(blind, nnx.state(model))
    difference = np.abs(np.asarray(blind.logits(arrays["inputs"])) - arrays["logits"]).max(axis=(0, 2))
    window = max(model.config.windows)
    assert difference[:window].max() < 5e-4 or name == "gemma3"  # whose layers with a window rotate otherwise
    assert difference[window:].max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.soak), 8])
def test_steps_are_one_pass(loaded, steps):
    """Rows that stand at different positions, several of them fed again after they were rolled back."""
    name, model, arrays = loaded
    rows, length = arrays["inputs"].shape
    lengths, most = arrays["lengths"], max(arrays["lengths"])
    state = model.init_state(rows, most, length - most + steps)
    prefilled = model.prefill(arrays["inputs"][:, :most], lengths)
    state = install(state, prefilled)
    fed, at = np.pad(arrays["inputs"], ((0, 0), (0, steps))), np.array(lengths - 1, np.int32)
    for moved in ([1, steps, steps], [steps, steps, 1], [steps - 1, 1, steps], [steps, 1, 0], *[[steps] * 3] * (40 // steps)):
        tokens = np.stack([row[start : start + steps] for row, start in zip(fed, at)])
        logits, state = model.step(jnp.asarray(tokens), jnp.asarray(at), state)
        for row, start in enumerate(at):
            valid = min(steps, length - start)
            expected = arrays["logits"][row, start : start + valid]
            np.testing.assert_allclose(logits[row, :valid], expected, atol=tolerance(name))
        at = np.minimum(at + np.array(moved, np.int32), length - 1).astype(np.int32)


@pytest.mark.parametrize("gamma", [pytest.param(0, marks=pytest.mark.soak), 3])
@pytest.mark.parametrize("name", ONE)
def test_greedy_tokens_are_transformers(name, gamma):
    """From ragged prompts over two slots; the draft is the target."""
    arrays = np.load(GOLDEN / name / "golden.npz")
    model = decoding.load_model(str(GOLDEN / name))
    assert greedy(model, model if gamma else None, inputs_of(arrays), gamma, input_buckets=BUCKETS) == references(arrays)


@pytest.mark.parametrize("kind", ["transformer", *TABLES])
@pytest.mark.parametrize("name", ONE)
def test_speculative_is_plain(name, kind, tmp_path):
    arrays = np.load(GOLDEN / name / "golden.npz")
    target = decoding.load_model(str(GOLDEN / name))
    if kind == "transformer":
        draft = small(tmp_path, name)
    elif kind == "bigram":
        special = dict(start_id=target.start_id, eos_id=target.eos_id)
        draft = decoding.NGramDraft.fit(references(arrays), target.vocab_size, order=2, **special)
    else:
        draft = decoding.load_draft(kind)
    assert greedy(target, draft, inputs_of(arrays), 3, input_buckets=BUCKETS) == references(arrays)


def small(folder, name: str):
    """A model with the first layer of the family's alone."""
    shutil.copytree(GOLDEN / name, folder / name)
    file = folder / name / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1}))
    file = folder / name / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if ".layers." not in key or ".layers.0." in key}
    save_file(kept, file)
    return decoding.load_model(str(folder / name))


LAWS = {
    "gemma2": dict(sliding_window=3, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, head_dim=4, intermediate_size=12),
    "gpt_neox": dict(rotary_pct=0.5, intermediate_size=12),
    "opt": dict(ffn_dim=12, max_position_embeddings=16),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "opt" else pytest.mark.soak) for name in LAWS]
)
def test_samples_have_the_targets_law(name):
    """By chi-square as in test_exactness.py, of models of six tokens."""
    raw = {
        "model_type": name, "vocab_size": 6, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    } | LAWS[name]  # fmt: skip
    target, draft = (parse_config(raw | {"num_hidden_layers": layers}, "").build(rngs=nnx.Rngs(seed), dtype=jnp.float32)
                     for layers, seed in ((2, 0), (1, 5)))  # fmt: skip
    config = decoding.DecodingConfig(
        gamma=3, temperature=1.0, num_samples=10_000, num_slots=256, max_decode_tokens=6, input_buckets=(6,), chunk_iterations=4
    )
    prompt = [0, 3, 4, 5, 2]
    rows = decoding.Generator(target, draft, config).generate([prompt], ["example"])
    found = [tuple(row.tokens[:3].tolist()) for row in rows]
    law = reference.sequence_law(target, prompt, length=3, temperature=1.0, top_k=0, top_p=1.0)
    p_value, cells = reference.chi_square(found, law)
    assert p_value > 1e-6 and cells >= 20
    wrong = reference.sequence_law(draft, prompt, length=3, temperature=1.0, top_k=0, top_p=1.0)
    assert reference.chi_square(found, wrong)[0] < 1e-9


@pytest.mark.parametrize(("name", "change", "message"), [
    ("phi3", dict(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "rotary scaling 'longrope' is not supported"),
    ("phi3", dict(rope_parameters=None, rope_scaling={"type": "su"}), "rotary scaling 'su' is not supported"),
    ("opt", dict(word_embed_proj_dim=12), "word_embed_proj_dim is 12; supported: 40"),
    ("opt", dict(do_layer_norm_before=False), "do_layer_norm_before is False; supported: True"),
    ("gemma2", dict(use_bidirectional_attention=True), "supported: attention to what came before"),
    ("gemma2", dict(sliding_window=0), "sliding_window is 0; allowed: a whole number from 1"),
    ("gemma3", dict(layer_types=["sliding_attention"]), "layer_types has 1 entries for 3 layers"),
    ("gemma3", dict(layer_types=["chunked_attention"] * 3), "layer_types has .*chunked.*supported: full and sliding"),
    ("gpt_neox", dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 2}), "2 of a head rotates; allowed"),
], ids=str)  # fmt: skip
def test_what_is_not_supported_is_refused(name, change, message):
    raw = json.loads((GOLDEN / name / "config.json").read_text())
    parse_config(raw, "config.json")
    with pytest.raises(decoding.CheckpointError, match=f"config.json: .*{message}"):
        parse_config(raw | change, "config.json")


def test_older_configs_mean_the_same():
    """Keys as published before transformers 5."""

    def parsed(name: str, dropped: tuple[str, ...], **keys):
        raw = json.loads((GOLDEN / name / "config.json").read_text())
        return parse_config({key: value for key, value in raw.items() if key not in dropped} | keys, "")

    for name, dropped, keys in (
        ("gemma", ("hidden_act", "rope_parameters"), dict(hidden_act="gelu", rope_theta=10000.0)),
        ("gemma2", ("layer_types", "rope_parameters"), dict(rope_theta=10000.0)),
        ("gpt_neox", ("rope_parameters",), dict(rotary_pct=0.5, rotary_emb_base=10000)),
        ("phi3", ("rope_parameters",), dict(partial_rotary_factor=0.75, rope_theta=10000.0)),
        (
            "gemma3", ("rope_parameters",),
            dict(rope_theta=1e5, rope_local_base_freq=1e3, rope_scaling={"rope_type": "linear", "factor": 4.0}),
        ),
    ):  # fmt: skip
        assert parsed(name, dropped, **keys) == parsed(name, ())
    six = parsed("gemma3", ("layer_types",), num_hidden_layers=7, sliding_window_pattern=3)
    assert six.windows == (7, 7, 0, 7, 7, 0, 7)


def test_a_head_that_rotates_in_part():
    """Partners are half a head apart, as where all of it rotates."""
    rotary = Rotary(rotated=4)
    assert rotary.order(10).tolist() == [0, 1, 4, 5, 6, 2, 3, 7, 8, 9]
    np.testing.assert_allclose(rotary.frequencies(10), [1, 0.01, 0, 0, 0], rtol=1e-6)
    assert Rotary().order(6).tolist() == [0, 1, 2, 3, 4, 5] and Rotary(rotated=3).order(6).tolist() == [0, 1, 4, 2, 3, 5]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", FAMILIES)
def test_other_shapes(name, seed, tmp_path):
    """Random shapes, written by transformers: where PyTorch is installed."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    layers, groups, shared = (int(number) for number in rng.integers(1, 4, 3))
    changes = dict(num_hidden_layers=layers, tie_word_embeddings=bool(rng.integers(2)))
    own = hf_models.DECODER_ONLY[name][2]
    changes["ffn_dim" if "ffn_dim" in own else "intermediate_size"] = int(rng.integers(5, 80))
    heads = groups * shared
    if "num_key_value_heads" in own:
        changes |= dict(num_attention_heads=heads, num_key_value_heads=groups)
    else:
        changes |= dict(num_attention_heads=heads)
    width = heads * int(rng.integers(2, 8)) * 2
    changes |= dict(hidden_size=width)
    if "head_dim" in own:
        changes |= dict(head_dim=int(rng.integers(2, 12)) * 2)
    if name in ("gemma2", "gemma3", "mistral", "phi3"):
        changes |= dict(sliding_window=int(rng.integers(2, 40)))  # of 1 transformers' cache keeps more than the window
    if name == "gemma2":
        changes |= dict(attn_logit_softcapping=[None, 2.0][seed % 2], layer_types=None)
    if name == "gemma3":
        changes |= dict(layer_types=rng.choice(["sliding_attention", "full_attention"], layers).tolist())
    if name in ("gpt_neox", "phi3"):
        share = float(rng.choice([0.25, 0.4, 0.75, 1.0]))
        changes |= dict(rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=share))
    if name == "gpt_neox":
        changes |= dict(use_parallel_residual=bool(rng.integers(2)), attention_bias=bool(rng.integers(2)))
    if name == "opt":
        changes |= dict(enable_bias=bool(rng.integers(2)))
    hf_models.write(tmp_path, name, seed, **changes)
    arrays = dict(np.load(tmp_path / "golden.npz"))
    for form in ("plain", *(["float32"] if kernels.available() else [])):
        model = decoding.load_model(str(tmp_path), weights=form)
        np.testing.assert_allclose(model.logits(arrays["inputs"]), arrays["logits"], atol=5e-4)
        assert greedy(model, model, inputs_of(arrays), 3, input_buckets=BUCKETS) == references(arrays)
