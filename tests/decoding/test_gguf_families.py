"""GGUF files of Gemma, Phi-3, GPT-2 and T5: the same logits as the Hugging Face directory that they were made of."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

import decoding
from decoding.checkpoints.gguf_config import read_config
from tests.support import hf_models, tiny_gguf

_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# What such files cannot say otherwise: changes of the reference models' configs.
CHANGES = {
    "gemma": {},
    "gemma2": dict(query_pre_attn_scalar=12),
    "gemma3": dict(
        query_pre_attn_scalar=12, layer_types=["sliding_attention"] * 3,
        rope_parameters={
            kind: dict(rope_type="default", rope_theta=theta)
            for kind, theta in (("full_attention", 1e6), ("sliding_attention", 1e4))
        },
    ),
    "phi3": dict(rope_parameters=dict(rope_type="default", rope_theta=1e4)),
}  # fmt: skip


def write(folder, name: str) -> tuple[str, str]:
    """The reference model's directory with what is changed, and a GGUF file of it as llama.cpp's converter makes it."""
    shutil.copytree(hf_models.GOLDEN_DIRECTORY / name, folder / name)
    file = folder / name / "config.json"
    raw = json.loads(file.read_text()) | CHANGES[name]
    file.write_text(json.dumps(raw))
    tensors = {}
    for theirs, tensor in load_file(folder / name / "model.safetensors").items():
        stem, kind = theirs.rsplit(".", 1)
        after = "post_attention_norm" if name in ("gemma2", "gemma3") else "ffn_norm"
        if stem in _TOP:
            ours = _TOP[stem]
        else:
            _, _, layer, rest = stem.split(".", 3)
            ours = f"blk.{layer}.{(_LAYER | {'post_attention_layernorm': after})[rest]}"
        tensors[f"{ours}.{kind}"] = tensor + 1 if "gemma" in name and "norm" in stem else tensor
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    values = {
        f"{name}.block_count": raw["num_hidden_layers"],
        f"{name}.context_length": raw["max_position_embeddings"],
        f"{name}.embedding_length": raw["hidden_size"],
        f"{name}.feed_forward_length": raw["intermediate_size"],
        f"{name}.attention.head_count": raw["num_attention_heads"],
        f"{name}.attention.head_count_kv": raw["num_key_value_heads"],
        f"{name}.attention.key_length": head_dim,
        f"{name}.attention.layer_norm_rms_epsilon": raw["rms_norm_eps"],
        "tokenizer.ggml.bos_token_id": raw["bos_token_id"],
        "tokenizer.ggml.eos_token_id": raw["eos_token_id"],
    }
    if raw.get("sliding_window"):
        values[f"{name}.attention.sliding_window"] = raw["sliding_window"]
    if name == "gemma2":
        values |= {f"gemma2.{key}": raw[key] for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    return str(folder / name), tiny_gguf.write(folder / "model.gguf", values, tensors, architecture=name)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "gemma2" else pytest.mark.slow) for name in CHANGES])
def test_a_file_is_its_directory(name, tmp_path):
    directory, file = write(tmp_path, name)
    tokens = np.load(hf_models.GOLDEN_DIRECTORY / name / "golden.npz")["inputs"]
    expected, found = decoding.load_model(directory), decoding.load_model(file)
    unsaid = dict(pad_id=expected.config.pad_id, norm_epsilon=pytest.approx(expected.config.norm_epsilon))
    assert dataclasses.asdict(found.config) | unsaid == dataclasses.asdict(expected.config) | unsaid
    np.testing.assert_allclose(found.logits(tokens), expected.logits(tokens), atol=1e-4)


GPT2_AND_T5 = ("gpt2", "t5_v1_0", "t5_v1_1_target", "umt5")


@pytest.mark.parametrize("name", GPT2_AND_T5)
def test_gpt2_and_t5(name, tmp_path):
    expected = decoding.load_model(str(hf_models.GOLDEN_DIRECTORY / name))
    text, inputs = np.array([[0, 5, 9, 31, 77], [0, 8, 6, 200, 4]], np.int32), np.array([[7, 8, 9, 1], [50, 1, 0, 0]], np.int32)
    texts = (text, inputs, np.array([4, 2], np.int32)) if expected.encoder_decoder else (text,)
    found = decoding.load_model(tiny_gguf.of_directory(tmp_path / "x.gguf", hf_models.GOLDEN_DIRECTORY / name))
    epsilon = "layer_norm_epsilon" if expected.encoder_decoder else "norm_epsilon"
    unsaid = {"pad_id": expected.config.pad_id, epsilon: pytest.approx(getattr(expected.config, epsilon))}
    assert dataclasses.asdict(found.config) | unsaid == dataclasses.asdict(expected.config) | unsaid
    np.testing.assert_allclose(found.logits(*texts), expected.logits(*texts), atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "t5_v1_1_target"])
def test_blocks_of_gpt2_and_t5(name, tmp_path):
    """Products over a file's blocks, of the tensors whose rows are whole ones, are those of its dequantised tensors."""
    kind = gguf.GGMLQuantizationType.Q8_0
    path = tiny_gguf.of_directory(tmp_path / "x.gguf", hf_models.GOLDEN_DIRECTORY / name, kind=kind)
    blocks, plain = (decoding.load_model(path, weights=form) for form in ("", "plain"))
    text = np.array([[0, 5, 9, 31, 77]], np.int32)
    texts = (text, text, np.array([5], np.int32)) if blocks.encoder_decoder else (text,)
    logits = np.asarray(plain.logits(*texts))
    np.testing.assert_allclose(blocks.logits(*texts), logits, atol=0.02 * np.abs(logits).max())


def test_a_t5_without_what_older_files_lack():
    """The first files of T5 have as many layers on either side, and begin texts with 0."""
    values = {
        "general.architecture": "t5", "t5.block_count": 3, "t5.embedding_length": 8, "t5.feed_forward_length": 9,
        "t5.attention.head_count": 2, "t5.attention.key_length": 4, "t5.attention.layer_norm_rms_epsilon": 1e-6,
        "t5.attention.relative_buckets_count": 32, "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    file = SimpleNamespace(path="x.gguf", shapes={"token_embd.weight": (9, 8)}, get=values.get, require=values.__getitem__)
    found = read_config(file)
    assert (found["num_decoder_layers"], found["decoder_start_token_id"], found["feed_forward_proj"]) == (3, 0, "relu")


@pytest.mark.parametrize(("family", "layers", "divisor"), [("gemma2", 46, 144), ("gemma2", 42, 256), ("gemma3", 62, 168)])
def test_what_scores_are_divided_by_goes_by_the_layers(family, layers, divisor):
    """Gemma 2 27B and Gemma 3 27B say it in no key of their files."""
    width, heads = {"gemma2": (4608, 32), "gemma3": (5376, 32)}[family]
    head_dim = 256 if divisor == 256 else 128
    values = {
        "general.architecture": family, f"{family}.block_count": layers, f"{family}.embedding_length": width,
        f"{family}.attention.head_count": heads, f"{family}.attention.key_length": head_dim,
        f"{family}.feed_forward_length": 8, f"{family}.attention.layer_norm_rms_epsilon": 1e-6,
        "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    shapes = {"token_embd.weight": (9, width)}
    file = SimpleNamespace(path="x.gguf", shapes=shapes, get=values.get, require=values.__getitem__)
    assert read_config(file)["query_pre_attn_scalar"] == divisor


def test_a_model_that_is_split_over_files(tmp_path):
    """By the name of any part; what is missing is named."""
    directory, file = write(tmp_path, "gemma2")
    reader = gguf.GGUFReader(file)
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith(("GGUF.", "general."))}
    tensors = {tensor.name: np.array(tensor.data).reshape(tensor.shape[::-1]) for tensor in reader.tensors}
    names, paths = sorted(tensors), [tmp_path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for number, path in enumerate(paths):
        said = {"split.no": number, "split.count": 3, "split.tensors.count": len(names)}
        own = {name: tensors[name] for name in names[number::3]}
        tiny_gguf.write(path, said | (values if number == 0 else {}), own, architecture="gemma2")
    tokens = np.load(hf_models.GOLDEN_DIRECTORY / "gemma2" / "golden.npz")["inputs"]
    expected = decoding.load_model(directory).logits(tokens)
    for path in (paths[0], paths[2]):
        np.testing.assert_allclose(decoding.load_model(str(path)).logits(tokens), expected, atol=1e-4)
    assert decoding.inspect_checkpoint(str(paths[0])).weight_files == tuple(map(str, paths))
    paths[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(decoding.CheckpointError, match="alone.gguf is one of the 3 parts of a model; allowed: their own names"):
        decoding.load_model(str(tmp_path / "alone.gguf"))
    with pytest.raises(decoding.CheckpointError, match="00001-of-00003.gguf"):
        decoding.load_model(str(paths[1]))
