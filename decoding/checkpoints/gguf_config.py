"""A GGUF file's metadata, as llama.cpp's converter writes it, in the keys of Hugging Face's configs."""

from typing import Any, Protocol

import numpy as np

from decoding.checkpoints.storage import CheckpointError

# The files' name of an architecture by transformers' of a family. Mistral's files say "llama".
ARCHITECTURES = {name: name for name in ("llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gpt2", "t5")}
ARCHITECTURES |= {"gemma3_text": "gemma3", "umt5": "t5"}
ROPE_FACTORS = "rope_freqs.weight"

# What Gemma's files leave out: how many layers have the models whose scores are divided by the root of d_model / heads.
_GEMMA_WIDE_LAYERS = {"gemma2": 46, "gemma3": 62}


class File(Protocol):
    """What is asked of `gguf.GgufFile`."""

    path: str
    parts: int
    shapes: dict[str, tuple[int, ...]]

    def get(self, key: str, default: Any = None) -> Any: ...

    def require(self, key: str) -> Any: ...

    def read(self, name: str) -> np.ndarray: ...


def read_config(file: File) -> dict:
    """The file's metadata in Hugging Face's keys.

    Raises:
      CheckpointError: an architecture or a variant of it that is not supported, or metadata that is missing.
    """
    kind = file.require("general.architecture")
    if kind not in ARCHITECTURES.values():
        allowed = ", ".join(dict.fromkeys(ARCHITECTURES.values()))
        raise CheckpointError(f"{file.path}: general.architecture is {kind!r}; supported: {allowed}")
    parts = file.get("split.count")
    if parts and parts != file.parts:
        raise CheckpointError(
            f"{file.path} is one of the {parts} parts of a model; allowed: their own names, NAME-00001-of-{parts:05d}.gguf"
        )
    if value := file.get(f"{kind}.expert_count"):
        raise CheckpointError(f"{file.path}: {kind}.expert_count is {value!r}, which is not supported")
    if "token_embd.weight" not in file.shapes:
        raise CheckpointError(f"{file.path}: the weight token_embd.weight is missing")
    ends = [file.require("tokenizer.ggml.eos_token_id"), *filter(None, [file.get("tokenizer.ggml.eot_token_id")])]
    return {
        "vocab_size": file.shapes["token_embd.weight"][0],
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends,
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": "output.weight" not in file.shapes,
        **{"gpt2": _gpt2, "t5": _t5}.get(kind, _llama)(file, kind),
    }


def _number(file: File, key: str, default: int | None = None) -> int:
    value = file.require(key) if default is None else file.get(key, default)
    if not isinstance(value, int):
        raise CheckpointError(f"{file.path}: {key} is {value!r:.100}; supported: one whole number")
    return value


def _gpt2(file: File, kind: str) -> dict:
    return {
        "model_type": "gpt2",
        "n_embd": _number(file, "gpt2.embedding_length"),
        "n_inner": _number(file, "gpt2.feed_forward_length"),
        "n_layer": _number(file, "gpt2.block_count"),
        "n_head": _number(file, "gpt2.attention.head_count"),
        "n_positions": file.shapes.get("position_embd.weight", (file.get("gpt2.context_length", 1024),))[0],
        "layer_norm_epsilon": file.require("gpt2.attention.layer_norm_epsilon"),
    }


def _t5(file: File, kind: str) -> dict:
    """T5, both kinds, and UMT5, whose layers have a bias of positions each; what is gated has T5 v1.1's activation."""
    layers = _number(file, "t5.block_count")
    return {
        "model_type": "umt5" if "enc.blk.1.attn_rel_b.weight" in file.shapes else "t5",
        "d_model": _number(file, "t5.embedding_length"),
        "d_kv": _number(file, "t5.attention.key_length"),
        "d_ff": _number(file, "t5.feed_forward_length"),
        "num_layers": layers,
        "num_decoder_layers": _number(file, "t5.decoder_block_count", layers),
        "num_heads": _number(file, "t5.attention.head_count"),
        "feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in file.shapes else "relu",
        "relative_attention_num_buckets": _number(file, "t5.attention.relative_buckets_count"),
        "layer_norm_epsilon": file.require("t5.attention.layer_norm_rms_epsilon"),
        "decoder_start_token_id": _number(file, "t5.decoder_start_token_id", 0),
    }


def _llama(file: File, kind: str) -> dict:
    """Llama and its relatives, Gemma among them."""
    if "rope_factors_long.weight" in file.shapes:
        raise CheckpointError(f"{file.path}: rotary scaling 'longrope' is not supported; allowed: default, linear, llama3")
    width, heads = _number(file, f"{kind}.embedding_length"), _number(file, f"{kind}.attention.head_count")
    head_dim, layers = file.get(f"{kind}.attention.key_length") or width // heads, _number(file, f"{kind}.block_count")
    rotated = file.get(f"{kind}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise CheckpointError(f"{file.path}: {rotated} of a head's {head_dim} dimensions rotate; supported: all of them")
    window, of_family = file.get(f"{kind}.attention.sliding_window") or None, {}
    if kind in _GEMMA_WIDE_LAYERS:
        of_family = {
            "query_pre_attn_scalar": width / heads if layers == _GEMMA_WIDE_LAYERS[kind] else head_dim,
            "attn_logit_softcapping": file.get(f"{kind}.attn_logit_softcapping"),
            "final_logit_softcapping": file.get(f"{kind}.final_logit_softcapping"),
        }
    return {
        "model_type": next(family for family, name in ARCHITECTURES.items() if name == kind),
        **of_family,
        "hidden_size": width,
        "intermediate_size": _number(file, f"{kind}.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, f"{kind}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "attention_bias": "blk.0.attn_output.bias" in file.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in file.shapes,
        "rms_norm_eps": file.require(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_theta": file.get(f"{kind}.rope.freq_base", 1e6 if kind == "gemma3" else 10000.0),
        "rope_scaling": _scaling(file, kind),
        "max_position_embeddings": file.get(f"{kind}.context_length"),
        "sliding_window": window,
        "layer_types": ["sliding_attention"] * layers if window and kind not in _GEMMA_WIDE_LAYERS else None,
    }


def _scaling(file: File, kind: str) -> dict:
    """Llama 3's converter writes its scaling as one factor per frequency, in a tensor.

    A factor alone, under its old name too, is linear.
    """
    if ROPE_FACTORS in file.shapes:
        factors = tuple(map(float, file.read(ROPE_FACTORS)))
        if 0.0 in factors:
            raise CheckpointError(f"{file.path}: {ROPE_FACTORS} holds zeros; a remote file must have it early")
        return {"rope_type": "factors", "factors": factors}
    factor = file.get(f"{kind}.rope.scaling.factor", file.get(f"{kind}.rope.scale_linear"))
    scaling = file.get(f"{kind}.rope.scaling.type", "linear" if factor else "none")
    return {"rope_type": "default" if scaling == "none" else scaling, "factor": factor}
