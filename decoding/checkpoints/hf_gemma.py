"""Gemma 1, 2 and 3, of the last what deals in text alone."""

import dataclasses
from collections.abc import Mapping

from decoding.checkpoints.families import Family
from decoding.checkpoints.fill import Source, as_is
from decoding.checkpoints.hf_decoder_only import activation, layers_of, rms_sources, rotary, sizes, tied_by, windows
from decoding.checkpoints.special_tokens import special_tokens
from decoding.checkpoints.storage import CheckpointError
from decoding.models.decoder_only import DecoderConfig

_EVERY = {"gemma2": 2, "gemma3_text": 6}  # by default, which layers see everything


def _gemma_config(raw: Mapping, shown: str, tied: bool | None) -> DecoderConfig:
    kind, head_dim = raw["model_type"], raw.get("head_dim", 256)
    if raw.get("use_bidirectional_attention"):
        raise CheckpointError(f"{shown}: use_bidirectional_attention is set; supported: attention to what came before")
    first, found = kind == "gemma", sizes(raw)
    act = activation(raw, shown, "hidden_act" if first else "hidden_activation", "gelu_pytorch_tanh")
    config = DecoderConfig(
        **found | {"head_dim": head_dim, "num_kv_heads": raw.get("num_key_value_heads") or found["num_kv_heads"]},
        d_ff=raw["intermediate_size"],
        norm="rms",
        position="rotary",
        activation="gelu_new" if first and act == "gelu" else act,  # what the first releases say and do not mean
        gated=True,
        tied=tied_by(raw, tied, default=True),
        qkv_bias=raw.get("attention_bias", False),
        out_bias=raw.get("attention_bias", False),
        unit_offset=True,
        norm_epsilon=raw.get("rms_norm_eps", 1e-6),
        max_positions=raw.get("max_position_embeddings", 8192) or 0,
        **special_tokens(raw, shown, start="bos_token_id", defaults=(2, 1)),
    )
    if first:
        return dataclasses.replace(config, rotary=rotary(raw, shown, head_dim))
    every = raw.get("sliding_window_pattern", _EVERY[kind]) if kind == "gemma3_text" else _EVERY[kind]
    kinds = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers_of(raw))]
    types = raw.get("layer_types") or kinds
    both = dict(post_norms=True, scale_width=raw.get("query_pre_attn_scalar", 256), windows=windows(raw, shown, types))
    caps = (30.0, 50.0) if kind == "gemma2" else (None, None)
    both["logits_cap"] = raw.get("final_logit_softcapping", caps[0]) or 0.0
    if kind == "gemma2":
        cap = raw.get("attn_logit_softcapping", caps[1]) or 0.0
        return dataclasses.replace(config, rotary=rotary(raw, shown, head_dim), attention_cap=cap, **both)
    wide, local = _gemma3_rotary(raw)
    return dataclasses.replace(
        config,
        qk_norm=True,
        rotary=rotary(wide, shown, head_dim),
        local_rotary=rotary(local, shown, head_dim),
        **both,
    )


def _gemma3_rotary(raw: Mapping) -> tuple[dict, dict]:
    """Of layers that see everything, and of the others, in the keys of newer configs."""
    scaling = raw.get("rope_scaling") or {}
    given = scaling if "full_attention" in scaling else raw.get("rope_parameters") or {}
    if given:
        both = (dict(given.get(f"{kind}_attention") or {}) for kind in ("full", "sliding"))
        return tuple({"rope_parameters": {"rope_theta": theta} | one} for theta, one in zip((1e6, 1e4), both))
    wide = {"rope_theta": raw.get("rope_theta", 1e6), **scaling}
    return {"rope_parameters": wide}, {"rope_parameters": {"rope_theta": raw.get("rope_local_base_freq", 1e4)}}


def _gemma_sources(config: DecoderConfig) -> dict[str, Source]:
    found = rms_sources(config)
    for i in range(config.num_layers) if config.post_norms else ():
        names = {
            "after_attention": "post_attention_layernorm",
            "feed_forward_norm": "pre_feedforward_layernorm",
            "after_feed_forward": "post_feedforward_layernorm",
        }
        for ours, theirs in names.items():
            found[f"blocks.{i}.{ours}.scale"] = as_is(f"model.layers.{i}.{theirs}.weight", config.d_model)
    return found


GEMMA = Family(DecoderConfig, _gemma_config, _gemma_sources)
