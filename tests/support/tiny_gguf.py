"""GGUF files written with the `gguf` package from a Hugging Face directory, as llama.cpp's converter does."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file
from sentencepiece import sentencepiece_model_pb2 as protos

_LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def _name(theirs: str) -> str:
    stem, kind = theirs.rsplit(".", 1)
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{_LAYER[rest]}.{kind}"


def permute(tensor: np.ndarray, heads: int) -> np.ndarray:
    """The converter's reordering of a query or key weight."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def weights(directory: pathlib.Path, architecture: str = "llama") -> dict[str, np.ndarray]:
    """The directory's tensors under GGUF's names; "llama" has its query and key heads interleaved."""
    config = json.loads((directory / "config.json").read_text())
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for theirs, tensor in load_file(directory / "model.safetensors").items():
        name = _name(theirs)
        part = name.split(".")[-2]
        found[name] = permute(tensor, heads[part]) if part in heads and architecture == "llama" else tensor
    return found


def metadata(directory: pathlib.Path, architecture: str = "llama") -> dict[str, Any]:
    """What the converter writes about a Llama-like model, the tokeniser aside."""
    config = json.loads((directory / "config.json").read_text())
    return {
        f"{architecture}.block_count": config["num_hidden_layers"],
        f"{architecture}.embedding_length": config["hidden_size"],
        f"{architecture}.feed_forward_length": config["intermediate_size"],
        f"{architecture}.attention.head_count": config["num_attention_heads"],
        f"{architecture}.attention.head_count_kv": config["num_key_value_heads"],
        f"{architecture}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{architecture}.rope.freq_base": config["rope_parameters"]["rope_theta"],
        f"{architecture}.rope.dimension_count": config["head_dim"],
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }


def write(
    path: pathlib.Path,
    values: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> str:
    """Writes a file; returns its path as a string.

    Matrices are stored as `kind`, or as `kinds` says by part ("attn_q"), where their rows are whole blocks of it, everything
    else as float32.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        own = (kinds or {}).get(name.split(".")[-2], kind)
        if tensor.ndim == 2 and tensor.shape[1] % gguf.GGML_QUANT_SIZES[own][0] == 0:
            writer.add_tensor(name, gguf.quantize(tensor.astype(np.float32), own), raw_dtype=own)
        else:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def of_directory(
    path: pathlib.Path,
    directory: pathlib.Path,
    *,
    values: Mapping[str, Any] = {},
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> str:
    """The file of a GPT-2's or T5's directory, with tensors named by the package's table as the converter does.

    Args:
      values: metadata of the tokeniser.
    """
    raw = json.loads((directory / "config.json").read_text())
    gpt2, tensors = raw["model_type"] == "gpt2", {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2 if gpt2 else gguf.MODEL_ARCH.T5, 9)
    for theirs, tensor in load_file(directory / "model.safetensors").items():
        turned = gpt2 and theirs.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        tensors[names.get_name(theirs, try_suffixes=(".weight", ".bias"))] = tensor.T.copy() if turned else tensor
    said = {"tokenizer.ggml.eos_token_id": raw["eos_token_id"], **values}
    if gpt2:
        said |= {
            "gpt2.block_count": raw["n_layer"], "gpt2.context_length": raw["n_positions"],
            "gpt2.embedding_length": raw["n_embd"], "gpt2.feed_forward_length": 4 * raw["n_embd"],
            "gpt2.attention.head_count": raw["n_head"], "gpt2.attention.layer_norm_epsilon": raw["layer_norm_epsilon"],
            "tokenizer.ggml.bos_token_id": raw["bos_token_id"],
        }  # fmt: skip
    else:
        said |= {
            "t5.block_count": raw["num_layers"], "t5.decoder_block_count": raw["num_decoder_layers"],
            "t5.context_length": 512, "t5.embedding_length": raw["d_model"], "t5.feed_forward_length": raw["d_ff"],
            "t5.attention.head_count": raw["num_heads"], "t5.attention.key_length": raw["d_kv"],
            "t5.attention.layer_norm_epsilon": raw["layer_norm_epsilon"],
            "t5.attention.layer_norm_rms_epsilon": raw["layer_norm_epsilon"],
            "t5.attention.relative_buckets_count": raw["relative_attention_num_buckets"],
            "t5.decoder_start_token_id": raw["decoder_start_token_id"], "tokenizer.ggml.padding_token_id": 0,
        }  # fmt: skip
    return write(path, said, tensors, architecture="gpt2" if gpt2 else "t5", kind=kind)


def t5_vocabulary(model: bytes, added: Sequence[str] = (), padding: int = 0) -> dict[str, Any]:
    """What the converter writes of T5's tokeniser, with tokens of added_tokens.json and of the model's padding behind it."""
    proto = protos.ModelProto.FromString(model)
    pieces, normalizer = proto.pieces, proto.normalizer_spec
    return {
        "tokenizer.ggml.model": "t5", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.piece for piece in pieces] + [*added, *(f"[PAD{i}]" for i in range(padding))],
        "tokenizer.ggml.scores": [piece.score for piece in pieces] + [-1000.0] * len(added) + [-10000.0] * padding,
        "tokenizer.ggml.token_type": [piece.type for piece in pieces] + [4] * len(added) + [5] * padding,
        "tokenizer.ggml.add_space_prefix": normalizer.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "tokenizer.ggml.precompiled_charsmap": list(normalizer.precompiled_charsmap),
    }  # fmt: skip


def write_blocks(path: pathlib.Path) -> str:
    """A random two-layer Llama of 320 tokens, whose weights are stored in blocks of every kind that the package can write."""
    width, feed_forward, heads, groups, rng = 96, 160, 6, 2, np.random.default_rng(0)
    shapes = {
        "attn_q": (width, width),
        "attn_k": (width // heads * groups, width),
        "attn_v": (width // heads * groups, width),
        "attn_output": (width, width),
        "ffn_gate": (feed_forward, width),
        "ffn_up": (feed_forward, width),
        "ffn_down": (width, feed_forward),
    }
    tensors = {"token_embd.weight": rng.standard_normal((320, width)) / 8, "output_norm.weight": np.ones(width)}
    for layer in range(2):
        for name, shape in shapes.items():
            tensors[f"blk.{layer}.{name}.weight"] = rng.standard_normal(shape) / 8
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(width)
    values = {
        "llama.block_count": 2,
        "llama.embedding_length": width,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": groups,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": width // heads,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    types = gguf.GGMLQuantizationType
    kinds = {"token_embd": types.Q8_0, "attn_v": types.Q5_1, "attn_output": types.Q5_0, "ffn_down": types.Q8_0}
    kinds |= {"attn_q": types.Q4_0, "attn_k": types.Q4_0, "ffn_gate": types.Q4_1, "ffn_up": types.Q4_1}
    return write(path, values, tensors, kinds=kinds)
