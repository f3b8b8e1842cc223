"""Random T5 checkpoints of a few kilobytes, written in Hugging Face's layout."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file


def config(vocab_size: int = 6, *, d_model: int = 8, layers: int = 1, tied: bool = False, **changes) -> dict:
    """A config.json for `write`: two heads, one encoder layer, `layers` decoder layers."""
    return {
        "model_type": "t5",
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": 4,
        "d_ff": 2 * d_model,
        "num_layers": 1,
        "num_decoder_layers": layers,
        "num_heads": 2,
        "feed_forward_proj": "relu" if tied else "gated-gelu",
        "tie_word_embeddings": tied,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    } | changes


def weights(shape: dict, seed: int, *, head: float = 0.7) -> dict[str, np.ndarray]:
    """Tensor name -> float32 array.  `head` scales the logits; their spread is about head * sqrt(d_model)."""
    rng = np.random.default_rng(seed)
    d, inner, d_ff = shape["d_model"], shape["num_heads"] * shape["d_kv"], shape["d_ff"]
    tensors = {}

    def add(name: str, *size: int, spread: float) -> None:
        tensors[f"{name}.weight"] = (rng.normal(size=size) * spread).astype(np.float32)

    def attention(name: str) -> None:
        for part in "qkv":
            add(f"{name}.{part}", inner, d, spread=d**-0.5)
        add(f"{name}.o", d, inner, spread=inner**-0.5)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = rng.uniform(0.7, 1.3, size=d).astype(np.float32)

    add("shared", shape["vocab_size"], d, spread=1.0)
    if not shape["tie_word_embeddings"]:
        add("lm_head", shape["vocab_size"], d, spread=head)
    first = ["wi_0", "wi_1"] if shape["feed_forward_proj"].startswith("gated") else ["wi"]
    for side, depth in (("encoder", shape["num_layers"]), ("decoder", shape["num_decoder_layers"])):
        for i in range(depth):
            names = ["SelfAttention", "EncDecAttention"] if side == "decoder" else ["SelfAttention"]
            for j, name in enumerate(names):
                attention(f"{side}.block.{i}.layer.{j}.{name}")
                norm(f"{side}.block.{i}.layer.{j}.layer_norm")
            feed_forward = f"{side}.block.{i}.layer.{len(names)}"
            for name in first:
                add(f"{feed_forward}.DenseReluDense.{name}", d_ff, d, spread=d**-0.5)
            add(f"{feed_forward}.DenseReluDense.wo", d, d_ff, spread=d_ff**-0.5)
            norm(f"{feed_forward}.layer_norm")
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
        add(bias, shape["relative_attention_num_buckets"], shape["num_heads"], spread=1.0)
        norm(f"{side}.final_layer_norm")
    return tensors


def write(directory, shape: dict, tensors: dict[str, np.ndarray]) -> str:
    """Writes config.json and model.safetensors; returns the directory as a string."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape))
    save_file(tensors, str(directory / "model.safetensors"))
    return str(directory)
