"""Decoder-only families with layer norms and biases throughout: GPT-NeoX, of which Pythia is one, and OPT."""

from collections.abc import Mapping

import numpy as np

from decoding.checkpoints.families import Family
from decoding.checkpoints.fill import Source, as_is, linear, reordered, vectors
from decoding.checkpoints.hf_decoder_only import activation, in_our_order, rotary, sizes, tied_by
from decoding.checkpoints.special_tokens import special_tokens
from decoding.checkpoints.storage import CheckpointError
from decoding.models.decoder_only import DecoderConfig

_OPT_OFFSET = 2  # rows of its table of positions that no text meets


def _gpt_neox_config(raw: Mapping, shown: str, tied: bool | None) -> DecoderConfig:
    names = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
    renamed = {"partial_rotary_factor": 0.25} | {names[key]: raw[key] for key in names if raw.get(key) is not None} | dict(raw)
    return DecoderConfig(
        **sizes(raw),
        d_ff=raw["intermediate_size"],
        norm="layer",
        position="rotary",
        activation=activation(raw, shown, "hidden_act", "gelu"),
        gated=False,
        tied=tied_by(raw, tied),
        qkv_bias=raw.get("attention_bias", True),
        out_bias=raw.get("attention_bias", True),
        feed_forward_bias=True,
        parallel=raw.get("use_parallel_residual", True),
        norm_epsilon=raw.get("layer_norm_eps", 1e-5),
        max_positions=raw.get("max_position_embeddings") or 0,
        rotary=rotary(renamed, shown, sizes(raw)["head_dim"], partly=True),
        **special_tokens(raw, shown, start="bos_token_id", defaults=(0, 2)),
    )


def _gpt_neox_sources(config: DecoderConfig) -> dict[str, Source]:
    """Queries, keys and values of a head lie beside each other."""
    d, d_ff, heads, dim = config.d_model, config.d_ff, config.num_heads, config.head_dim
    by_kind = np.arange(3 * d).reshape(heads, 3, dim).swapaxes(0, 1).reshape(-1)
    found = _normed("norm", "gpt_neox.final_layer_norm", d)
    found["embedding"] = as_is("gpt_neox.embed_in.weight", config.vocab_size, d)
    if not config.tied:
        found["head"] = linear(["embed_out.weight"], [config.vocab_size], d)
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"gpt_neox.layers.{i}"
        found |= _normed(f"{ours}.attention_norm", f"{theirs}.input_layernorm", d)
        found |= _normed(f"{ours}.feed_forward_norm", f"{theirs}.post_attention_layernorm", d)
        found |= _linear(f"{ours}.qkv", [f"{theirs}.attention.query_key_value"], [3 * d], d, bias=config.qkv_bias)
        for name in ("kernel", "bias") if config.qkv_bias else ("kernel",):
            found[f"{ours}.qkv.{name}"] = in_our_order(reordered(found[f"{ours}.qkv.{name}"], by_kind), config)
        found |= _linear(f"{ours}.out", [f"{theirs}.attention.dense"], [d], d, bias=config.out_bias)
        found |= _linear(f"{ours}.wi", [f"{theirs}.mlp.dense_h_to_4h"], [d_ff], d)
        found |= _linear(f"{ours}.wo", [f"{theirs}.mlp.dense_4h_to_h"], [d], d_ff)
    return found


def _gpt_neox_ignored(config: DecoderConfig) -> list[str]:
    """Buffers of old checkpoints."""
    buffers = ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq")
    return [f"gpt_neox.layers.{i}.{name}" for i in range(config.num_layers) for name in buffers]


def _opt_config(raw: Mapping, shown: str, tied: bool | None) -> DecoderConfig:
    only = {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}
    for key, wanted in {**only, "word_embed_proj_dim": raw["hidden_size"]}.items():
        if (value := raw.get(key, wanted)) not in (wanted, None):
            raise CheckpointError(f"{shown}: {key} is {value!r:.100}; supported: {wanted!r} (OPT 350M is the exception)")
    bias = raw.get("enable_bias", True)
    return DecoderConfig(
        **sizes(raw),
        d_ff=raw["ffn_dim"],
        norm="layer",
        position="learned",
        activation=activation(raw, shown, "activation_function", "relu"),
        gated=False,
        tied=tied_by(raw, tied, default=True),
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=bias,
        norm_epsilon=1e-5,
        max_positions=raw["max_position_embeddings"],
        **special_tokens(raw, shown, start="bos_token_id", defaults=(2, 2)),
    )


def _opt_sources(config: DecoderConfig) -> dict[str, Source]:
    d, d_ff, bias = config.d_model, config.d_ff, config.qkv_bias
    table = as_is("model.decoder.embed_positions.weight", config.max_positions + _OPT_OFFSET, d)
    found = _normed("norm", "model.decoder.final_layer_norm", d)
    found["embedding"] = as_is("model.decoder.embed_tokens.weight", config.vocab_size, d)
    found["positions"] = table._replace(combine=lambda rows: rows[_OPT_OFFSET:])
    if not config.tied:
        found["head"] = linear(["lm_head.weight"], [config.vocab_size], d)
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"model.decoder.layers.{i}"
        found |= _normed(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm", d)
        found |= _normed(f"{ours}.feed_forward_norm", f"{theirs}.final_layer_norm", d)
        found |= _linear(f"{ours}.qkv", [f"{theirs}.self_attn.{x}_proj" for x in "qkv"], [d, d, d], d, bias=bias)
        found |= _linear(f"{ours}.out", [f"{theirs}.self_attn.out_proj"], [d], d, bias=bias)
        found |= _linear(f"{ours}.wi", [f"{theirs}.fc1"], [d_ff], d, bias=bias)
        found |= _linear(f"{ours}.wo", [f"{theirs}.fc2"], [d], d_ff, bias=bias)
    return found


def _normed(ours: str, theirs: str, width: int) -> dict[str, Source]:
    return {f"{ours}.scale": as_is(f"{theirs}.weight", width), f"{ours}.bias": as_is(f"{theirs}.bias", width)}


def _linear(ours: str, theirs: list[str], outs: list[int], into: int, *, bias: bool = True) -> dict[str, Source]:
    found = {f"{ours}.kernel": linear([f"{name}.weight" for name in theirs], outs, into)}
    return found | ({f"{ours}.bias": vectors([f"{name}.bias" for name in theirs], outs)} if bias else {})


GPT_NEOX = Family(DecoderConfig, _gpt_neox_config, _gpt_neox_sources, _gpt_neox_ignored)
OPT = Family(DecoderConfig, _opt_config, _opt_sources)
