"""Decoder-only families: GPT-2, Llama with its relatives Mistral, Qwen2 and Qwen3, and the shape of LaMDA.

LaMDA was never published: its config has keys of our own in Llama's style, and it has no Hugging Face weights.
"""

from collections.abc import Mapping

from decoding.checkpoints import t5x_names
from decoding.checkpoints.families import Family
from decoding.checkpoints.fill import Source, as_is, linear, vectors
from decoding.checkpoints.special_tokens import special_tokens
from decoding.checkpoints.storage import CheckpointError
from decoding.models.base import ACTIVATIONS
from decoding.models.decoder_only import DecoderConfig, Rotary

# Begin and end token of a config that names none, as transformers has them.
_SPECIAL_DEFAULTS = {"gpt2": (None, 50256), "llama": (1, 2), "mistral": (1, 2)}

_SAME_ACTIVATION = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}


def _activation(raw: Mapping, shown: str, key: str, default: str) -> str:
    name = raw.get(key, default)
    name = _SAME_ACTIVATION.get(name, name)
    if name not in ACTIVATIONS:
        allowed = ", ".join((*ACTIVATIONS, *_SAME_ACTIVATION))
        raise CheckpointError(f"{shown}: {key} is {name!r}; allowed: {allowed}")
    return name


def _tied(raw: Mapping, tied: bool | None, *, default: bool = False) -> bool:
    """What the weights say, or where they cannot be asked `tie_word_embeddings`; absent, it is Hugging Face's default."""
    return raw.get("tie_word_embeddings", default) if tied is None else tied


def _gpt2_config(raw: Mapping, shown: str, tied: bool | None) -> DecoderConfig:
    width, heads = raw["n_embd"], raw["n_head"]
    if raw.get("scale_attn_by_inverse_layer_idx") or not raw.get("scale_attn_weights", True):
        raise CheckpointError(f"{shown}: attention scores scaled other than by sqrt(head size) are not supported")
    return DecoderConfig(
        vocab_size=raw["vocab_size"],
        d_model=width,
        num_layers=raw["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        d_ff=raw.get("n_inner") or 4 * width,
        norm="layer",
        position="learned",
        activation=_activation(raw, shown, "activation_function", "gelu_new"),
        gated=False,
        tied=_tied(raw, tied, default=True),
        qkv_bias=True,
        out_bias=True,
        feed_forward_bias=True,
        norm_epsilon=raw.get("layer_norm_epsilon", 1e-5),
        max_positions=raw["n_positions"],
        **special_tokens(raw, shown, start="bos_token_id", defaults=_SPECIAL_DEFAULTS["gpt2"]),
    )


def _lamda_config(raw: Mapping, shown: str, tied: bool | None) -> DecoderConfig:
    """Section 3 and appendix D of Thoppilan et al., 2201.08239: T5's relative positions and gated GELU."""
    return DecoderConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw["num_attention_heads"],
        head_dim=raw["head_dim"],
        d_ff=raw["intermediate_size"],
        norm="rms",
        position="relative",
        activation=_activation(raw, shown, "hidden_act", "gelu_new"),
        gated=True,
        tied=_tied(raw, tied),
        scale_attention=False,
        norm_epsilon=raw.get("rms_norm_eps", 1e-6),
        relative_buckets=raw.get("relative_attention_num_buckets", 32),
        relative_max_distance=raw.get("relative_attention_max_distance", 128),
        **special_tokens(raw, shown, start="bos_token_id", defaults=(None, None)),
    )


def _llama_config(raw: Mapping, shown: str, tied: bool | None) -> DecoderConfig:
    heads, kind = raw["num_attention_heads"], raw["model_type"]
    rotary = _rotary(raw, shown)
    trained = raw.get("max_position_embeddings") or 0
    trained = int(trained * rotary.factor) if rotary.scaling == "linear" else trained
    limits = [limit for limit in (trained, _window(raw, shown)) if limit]
    return DecoderConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        d_ff=raw["intermediate_size"],
        norm="rms",
        position="rotary",
        activation=_activation(raw, shown, "hidden_act", "silu"),
        gated=True,
        tied=_tied(raw, tied),
        qkv_bias=kind == "qwen2" or raw.get("attention_bias", False),
        out_bias=kind != "qwen2" and raw.get("attention_bias", False),
        feed_forward_bias=raw.get("mlp_bias", False),
        qk_norm=kind == "qwen3",
        norm_epsilon=raw.get("rms_norm_eps", 1e-6),
        max_positions=min(limits, default=0),
        rotary=rotary,
        **special_tokens(raw, shown, start="bos_token_id", defaults=_SPECIAL_DEFAULTS.get(kind, (None, None))),
    )


def _window(raw: Mapping, shown: str) -> int | None:
    """How far back attention reaches, None for all the way. Texts that fit into a window never notice it."""
    kind, window = raw["model_type"], raw.get("sliding_window", 4096)
    if kind in ("qwen2", "qwen3"):
        window = window if raw.get("use_sliding_window") else None
        layers, first = raw["num_hidden_layers"], raw.get("max_window_layers", 28)
        types = raw.get("layer_types") or ["sliding_attention" if window and first < layers else "full_attention"]
    else:
        types = raw.get("layer_types") or ["sliding_attention" if kind == "mistral" and window else "full_attention"]
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise CheckpointError(f"{shown}: layer_types has {sorted(unknown)!r:.100}; supported: full and sliding attention")
    if "sliding_attention" not in types:
        return None
    if type(window) is not int or window < 1:
        raise CheckpointError(f"{shown}: layers slide, and sliding_window is {window!r:.100}; allowed: a whole number from 1")
    return window


def _rotary(raw: Mapping, shown: str) -> Rotary:
    """Both forms: `rope_parameters` of newer configs, `rope_theta` with `rope_scaling` of older ones."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = scaling.get("rope_theta", raw.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise CheckpointError(f"{shown}: partial_rotary_factor is not 1; supported: heads that rotate whole")
    if kind == "default":
        return Rotary(theta=theta)
    if kind == "linear":
        return Rotary(theta=theta, scaling="linear", factor=scaling["factor"])
    if kind == "llama3":
        return Rotary(
            theta=theta,
            scaling="llama3",
            factor=scaling["factor"],
            low_frequency_factor=scaling["low_freq_factor"],
            high_frequency_factor=scaling["high_freq_factor"],
            original_positions=scaling["original_max_position_embeddings"],
        )
    if kind == "factors":  # of GGUF files
        return Rotary(theta=theta, scaling="factors", factors=tuple(scaling["factors"]))
    raise CheckpointError(f"{shown}: rotary scaling {kind!r} is not supported; allowed: default, linear, llama3")


def _gpt2_sources(config: DecoderConfig) -> dict[str, Source]:
    """GPT-2 stores linear weights as [in, out], as we do."""
    d, d_ff = config.d_model, config.d_ff
    found = {
        "embedding": as_is("transformer.wte.weight", config.vocab_size, d),
        "positions": as_is("transformer.wpe.weight", config.max_positions, d),
        "norm.scale": as_is("transformer.ln_f.weight", d),
        "norm.bias": as_is("transformer.ln_f.bias", d),
    }
    if not config.tied:
        found["head"] = linear(["lm_head.weight"], [config.vocab_size], d)
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for norm, name in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            found[f"{ours}.{norm}.scale"] = as_is(f"{theirs}.{name}.weight", d)
            found[f"{ours}.{norm}.bias"] = as_is(f"{theirs}.{name}.bias", d)
        layers = (("qkv", "attn.c_attn", d, 3 * d), ("out", "attn.c_proj", d, d))
        layers += (("wi", "mlp.c_fc", d, d_ff), ("wo", "mlp.c_proj", d_ff, d))
        for layer, name, into, out in layers:
            found[f"{ours}.{layer}.kernel"] = as_is(f"{theirs}.{name}.weight", into, out)
            found[f"{ours}.{layer}.bias"] = as_is(f"{theirs}.{name}.bias", out)
    return found


def _llama_sources(config: DecoderConfig) -> dict[str, Source]:
    d, d_ff, dim = config.d_model, config.d_ff, config.head_dim
    inner, kv = config.num_heads * dim, config.num_kv_heads * dim
    found = {
        "embedding": as_is("model.embed_tokens.weight", config.vocab_size, d),
        "norm.scale": as_is("model.norm.weight", d),
    }
    if not config.tied:
        found["head"] = linear(["lm_head.weight"], [config.vocab_size], d)
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        found[f"{ours}.attention_norm.scale"] = as_is(f"{theirs}.input_layernorm.weight", d)
        found[f"{ours}.feed_forward_norm.scale"] = as_is(f"{theirs}.post_attention_layernorm.weight", d)
        layers = (
            ("qkv", [f"self_attn.{x}_proj" for x in "qkv"], d, [inner, kv, kv], config.qkv_bias),
            ("out", ["self_attn.o_proj"], inner, [d], config.out_bias),
            ("wi", ["mlp.gate_proj", "mlp.up_proj"], d, [d_ff, d_ff], config.feed_forward_bias),
            ("wo", ["mlp.down_proj"], d_ff, [d], config.feed_forward_bias),
        )
        for layer, names, into, outs, bias in layers:
            found[f"{ours}.{layer}.kernel"] = linear([f"{theirs}.{name}.weight" for name in names], outs, into)
            if bias:
                found[f"{ours}.{layer}.bias"] = vectors([f"{theirs}.{name}.bias" for name in names], outs)
        if config.qk_norm:
            found[f"{ours}.query_norm.scale"] = as_is(f"{theirs}.self_attn.q_norm.weight", dim)
            found[f"{ours}.key_norm.scale"] = as_is(f"{theirs}.self_attn.k_norm.weight", dim)
    return found


def _ignored(config: DecoderConfig) -> list[str]:
    """Buffers that old checkpoints carry and that hold no parameters."""
    names = []
    for i in range(config.num_layers):
        names += [f"transformer.h.{i}.attn.bias", f"transformer.h.{i}.attn.masked_bias"]
        names += [f"model.layers.{i}.self_attn.rotary_emb.inv_freq"]
    return names


GPT2 = Family(DecoderConfig, _gpt2_config, _gpt2_sources, _ignored, t5x_names.read_decoder_only)
LLAMA = Family(DecoderConfig, _llama_config, _llama_sources, _ignored, t5x_names.read_decoder_only)
LAMDA = Family(DecoderConfig, _lamda_config, t5x=t5x_names.read_decoder_only)
