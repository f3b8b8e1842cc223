"""BART, mBART, Marian, M2M-100 and Pegasus against transformers' logits and greedy tokens."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import decoding
from decoding import kernels
from decoding.checkpoints.architecture import parse_config
from tests.support import hf_models, reference
from tests.support.golden import greedy, inputs_of

GOLDEN = hf_models.GOLDEN_DIRECTORY
FAMILIES = tuple(hf_models.ENCODER_DECODERS)
FORMS = ["plain", *(["float32"] if kernels.available() else [])]

DRAFTS = ["transformer", pytest.param("prompt_lookup", marks=pytest.mark.slow), pytest.param("bigram", marks=pytest.mark.soak)]

# Every family, and one that stands for the others where these differ in nothing that is tested.
ONE = [pytest.param(name, marks=[] if name == "m2m_100" else pytest.mark.slow) for name in FAMILIES]


def arrays_of(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / name / "golden.npz"))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, arrays_of(request.param)


@pytest.fixture(scope="module", params=FORMS)
def loaded(request, family):
    name, arrays = family
    return decoding.load_model(str(GOLDEN / name), weights=request.param), arrays


def test_logits_are_transformers(loaded):
    model, arrays = loaded
    logits = model.logits(arrays["decoder"], arrays["inputs"], arrays["lengths"])
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 8])
def test_steps_are_one_pass(loaded, steps):
    """Rows that stand at different positions, several of them fed again after they were rolled back."""
    model, arrays = loaded
    rows, length = arrays["decoder"].shape
    state = model.init_state(rows, arrays["inputs"].shape[1], length + steps)
    state |= model.prefill(arrays["inputs"], arrays["lengths"])
    fed, at = np.pad(arrays["decoder"], ((0, 0), (0, steps))), np.array([0, 0, 0], np.int32)
    for moved in ([1, steps, steps], [steps, steps, 1], [steps - 1, 1, steps], [steps, 1, 0], *[[steps] * 3] * 12):
        tokens = np.stack([row[start : start + steps] for row, start in zip(fed, at)])
        logits, state = model.step(jnp.asarray(tokens), jnp.asarray(at), state)
        for row, start in enumerate(at):
            valid = min(steps, length - start)
            np.testing.assert_allclose(logits[row, :valid], arrays["logits"][row, start : start + valid], atol=1e-4)
        at = np.minimum(at + np.array(moved, np.int32), length - 1).astype(np.int32)


@pytest.mark.parametrize("gamma", [pytest.param(0, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", ONE)
def test_greedy_tokens_are_transformers(name, gamma):
    """With the forced first and last tokens, and without those that must not occur: over two slots, ragged, with refills."""
    arrays = arrays_of(name)
    model = decoding.load_model(str(GOLDEN / name))
    texts = greedy(model, model if gamma else None, inputs_of(arrays), gamma)
    for text, expected in zip(texts, arrays["greedy"][:, 1:].tolist(), strict=True):
        assert text == expected[: len(text)]
        assert len(text) == 24 or text[-1] == model.eos_id


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("name", ONE)
def test_speculative_is_plain(name, kind, tmp_path):
    arrays = np.load(GOLDEN / name / "golden.npz")
    target = decoding.load_model(str(GOLDEN / name))
    expected = greedy(target, None, inputs_of(arrays), 0)
    if kind == "transformer":
        draft = small(tmp_path, name)
    elif kind == "bigram":
        special = dict(start_id=target.start_id, eos_id=target.eos_id)
        draft = decoding.NGramDraft.fit(expected, target.vocab_size, order=2, **special)
    else:
        draft = decoding.load_draft(kind)
    assert greedy(target, draft, inputs_of(arrays), 3) == expected


def small(folder: pathlib.Path, name: str):
    """A model with the first decoder layer of the family's alone."""
    shutil.copytree(GOLDEN / name, folder / name)
    config = json.loads((folder / name / "config.json").read_text()) | {"decoder_layers": 1}
    (folder / name / "config.json").write_text(json.dumps(config))
    file = folder / name / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if ".decoder.layers." not in key or ".layers.0." in key}
    save_file(kept, file)
    return decoding.load_model(str(folder / name))


@pytest.mark.slow
def test_samples_have_the_targets_law():
    """Of one kind: a BART of six tokens, by chi-square as in test_exactness.py."""
    from flax import nnx

    raw = {
        "model_type": "bart", "vocab_size": 6, "d_model": 8, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 8,
        "decoder_start_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": None,
    }  # fmt: skip
    target, draft = (parse_config(raw | {"decoder_layers": layers}, "").build(rngs=nnx.Rngs(seed), dtype=jnp.float32)
                     for layers, seed in ((2, 0), (1, 5)))  # fmt: skip
    config = decoding.DecodingConfig(
        gamma=3, temperature=1.0, num_samples=10_000, num_slots=256, max_decode_tokens=6, input_buckets=(4,), chunk_iterations=4
    )
    rows = decoding.Generator(target, draft, config).generate([[3, 4, 5]], ["example"])
    law = reference.sequence_law(target, [3, 4, 5], length=3, temperature=1.0, top_k=0, top_p=1.0)
    p_value, cells = reference.chi_square([tuple(row.tokens[:3].tolist()) for row in rows], law)
    assert p_value > 1e-6 and cells >= 20
    wrong = reference.sequence_law(draft, [3, 4, 5], length=3, temperature=1.0, top_k=0, top_p=1.0)
    assert reference.chi_square([tuple(row.tokens[:3].tolist()) for row in rows], wrong)[0] < 1e-9


@pytest.mark.slow
def test_inputs_say_what_texts_begin_with():
    """NLLB's target languages, from row to row, with a draft that is a model too."""
    name = "m2m_100"
    arrays = np.load(GOLDEN / name / "golden.npz")
    model, inputs = decoding.load_model(str(GOLDEN / name)), inputs_of(arrays)
    languages = [92, 91, 93]
    given = [[language, *tokens] for language, tokens in zip(languages, inputs)]
    found = greedy(model, None, given, 0, first_from_input=True, input_buckets=(9, 25))
    assert [text[0] for text in found] == languages
    assert found[1] == greedy(model, None, inputs, 0)[1]
    assert greedy(model, model, given, 3, first_from_input=True, input_buckets=(9, 25)) == found
    prompted = decoding.load_draft("prompt_lookup")
    config = decoding.DecodingConfig(
        gamma=3, temperature=0.0, max_decode_tokens=24, num_slots=2, input_buckets=(9, 25), first_from_input=True
    )
    generator = decoding.Generator(model, prompted, config)
    for one in (generator, generator.plain()):
        assert [result.tokens.tolist() for result in one.generate(given, "abc")] == found
    decoder_only = decoding.load_model(str(GOLDEN / "gpt2"))
    with pytest.raises(ValueError, match="first_from_input is True; allowed: False"):
        greedy(decoder_only, None, [[5, 6]], 0, first_from_input=True)


def test_what_a_checkpoint_suppresses_never_occurs():
    """Marian's padding, by which its texts begin; its bias makes it likely."""
    arrays = np.load(GOLDEN / "marian" / "golden.npz")
    model = decoding.load_model(str(GOLDEN / "marian"))
    pad = model.config.pad_id
    assert model.config.suppressed_ids == (pad,)
    config = decoding.DecodingConfig(
        gamma=2, temperature=3.0, max_decode_tokens=20, num_slots=8, num_samples=40, input_buckets=(24,)
    )
    rows = decoding.Generator(model, model, config).generate(inputs_of(arrays), "abc")
    assert pad not in np.concatenate([row.tokens for row in rows])
    share = np.exp(arrays["logits"] / 3)
    assert (share / share.sum(-1, keepdims=True))[..., pad].mean() * 3 * 40 * 20 > 10, "else nothing was suppressed"


@pytest.mark.parametrize("change", [
    dict(activation_function="mish"), dict(encoder_attention_heads=5), dict(bad_words_ids=[[1, 2]]), dict(decoder_layers=0),
    dict(num_experts=8, encoder_sparse_step=4),
], ids=str)  # fmt: skip
def test_what_is_not_supported_is_refused(change):
    raw = json.loads((GOLDEN / "m2m_100" / "config.json").read_text())
    parse_config(raw, "config.json")
    with pytest.raises(decoding.CheckpointError, match="config.json: .*(allowed|supported)"):
        parse_config(raw | change, "config.json")


def test_keys_that_a_config_lacks_are_transformers():
    for name in FAMILIES:
        config = parse_config({"model_type": name, "decoder_start_token_id": 3}, "config.json")
        assert (config.d_model, config.num_layers, config.encoder_d_ff, config.num_heads) == (1024, 12, 4096, 16)
        assert config.max_positions == 1024 and config.tied
        assert config.vocab_size == {"marian": 58101, "m2m_100": 128112}.get(name, 50265)
        assert config.scale_embedding == (name == "m2m_100")
        assert config.activation == ("relu" if name == "m2m_100" else "gelu")
        assert config.forced_eos_id == {"m2m_100": None, "marian": 0, "pegasus": 1}.get(name, 2)


def test_longer_texts_than_a_model_has_positions_are_refused():
    model = decoding.load_model(str(GOLDEN / "bart"))
    for settings in (dict(input_buckets=(65,)), dict(max_decode_tokens=65)):
        with pytest.raises(ValueError, match="need 65 positions; the model has 64"):
            greedy(model, None, [[3]], 0, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", FAMILIES)
def test_other_shapes(name, seed, tmp_path):
    """Random shapes, written by transformers: where PyTorch is installed."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    heads = rng.integers(1, 6, 2)
    width = int(np.lcm(*heads)) * int(rng.integers(2, 5)) * 2
    changes = dict(
        d_model=width, encoder_attention_heads=int(heads[0]), decoder_attention_heads=int(heads[1]),
        encoder_layers=int(rng.integers(1, 4)), decoder_layers=int(rng.integers(1, 4)),
        encoder_ffn_dim=int(rng.integers(3, 80)), decoder_ffn_dim=int(rng.integers(3, 80)),
        activation_function=str(rng.choice(["relu", "gelu", "swish", "gelu_new"])), scale_embedding=bool(rng.integers(2)),
        tie_word_embeddings=bool(rng.integers(2)),
    )  # fmt: skip
    if name == "marian" and seed % 3 == 0:
        changes |= dict(share_encoder_decoder_embeddings=False, decoder_vocab_size=97)
    hf_models.write(tmp_path, name, seed, **changes)
    arrays = dict(np.load(tmp_path / "golden.npz"))
    for form in FORMS:
        model = decoding.load_model(str(tmp_path), weights=form)
        logits = model.logits(arrays["decoder"], arrays["inputs"], arrays["lengths"])
        np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4)
        for text, expected in zip(greedy(model, model, inputs_of(arrays), 3), arrays["greedy"][:, 1:].tolist()):
            assert text == expected[: len(text)]
