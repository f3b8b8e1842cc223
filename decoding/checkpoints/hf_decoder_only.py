"""Decoder-only families: GPT-2, Llama with its relatives Mistral, Qwen2, Qwen3 and Phi-3, and the shape of LaMDA.

What they share with families of their own modules is here too: activations, tying, rotary positions and windows.

LaMDA was never published: its config has keys of our own in Llama's style, and it has no Hugging Face weights.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from decoding.checkpoints import t5x_names
from decoding.checkpoints.families import Family
from decoding.checkpoints.fill import Source, as_is, linear, reordered, vectors
from decoding.checkpoints.special_tokens import special_tokens
from decoding.checkpoints.storage import CheckpointError
from decoding.models.base import ACTIVATIONS
from decoding.models.decoder_only import DecoderConfig, Rotary

# Begin and end token of a config that names none, as transformers has them.
_SPECIAL_DEFAULTS = {"gpt2": (None, 50256), "llama": (1, 2), "mistral": (1, 2), "phi3": (1, 32000)}

_SAME_ACTIVATION = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}


def activation(raw: Mapping, shown: str, key: str, default: str) -> str:
    name = raw.get(key, default)
    name = _SAME_ACTIVATION.get(name, name)
    if name not in ACTIVATIONS:
        allowed = ", ".join((*ACTIVATIONS, *_SAME_ACTIVATION))
        raise CheckpointError(f"{shown}: {key} is {name!r}; allowed: {allowed}")
    return name


def tied_by(raw: Mapping, tied: bool | None, *, default: bool = False) -> bool:
    """What the weights say, or where they cannot be asked `tie_word_embeddings`; absent, it is Hugging Face's default."""
    return raw.get("tie_word_embeddings", default) if tied is None else tied


def sizes(raw: Mapping) -> dict[str, int]:
    """The fields of `DecoderConfig` that the configs of most families name alike, each head with a key and value of its own."""
    width, heads = raw["hidden_size"], raw["num_attention_heads"]
    return {
        "vocab_size": raw["vocab_size"],
        "d_model": width,
        "num_layers": raw["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
    }


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
        activation=activation(raw, shown, "activation_function", "gelu_new"),
        gated=False,
        tied=tied_by(raw, tied, default=True),
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
        **sizes(raw) | {"head_dim": raw["head_dim"]},
        d_ff=raw["intermediate_size"],
        norm="rms",
        position="relative",
        activation=activation(raw, shown, "hidden_act", "gelu_new"),
        gated=True,
        tied=tied_by(raw, tied),
        scale_attention=False,
        norm_epsilon=raw.get("rms_norm_eps", 1e-6),
        relative_buckets=raw.get("relative_attention_num_buckets", 32),
        relative_max_distance=raw.get("relative_attention_max_distance", 128),
        **special_tokens(raw, shown, start="bos_token_id", defaults=(None, None)),
    )


def _llama_config(raw: Mapping, shown: str, tied: bool | None) -> DecoderConfig:
    kind, found = raw["model_type"], sizes(raw)
    for name, key in (("head_dim", "head_dim"), ("num_kv_heads", "num_key_value_heads")):
        found[name] = raw.get(key) or found[name]
    turning = rotary(raw, shown, found["head_dim"], partly=kind == "phi3")
    trained = raw.get("max_position_embeddings") or 0
    return DecoderConfig(
        **found,
        d_ff=raw["intermediate_size"],
        norm="rms",
        position="rotary",
        activation=activation(raw, shown, "hidden_act", "silu"),
        gated=True,
        tied=tied_by(raw, tied),
        qkv_bias=kind == "qwen2" or raw.get("attention_bias", False),
        out_bias=kind != "qwen2" and raw.get("attention_bias", False),
        feed_forward_bias=raw.get("mlp_bias", False),
        qk_norm=kind == "qwen3",
        norm_epsilon=raw.get("rms_norm_eps", 1e-5 if kind == "phi3" else 1e-6),
        max_positions=int(trained * turning.factor) if turning.scaling == "linear" else trained,
        rotary=turning,
        windows=windows(raw, shown, _layer_types(raw)),
        **special_tokens(raw, shown, start="bos_token_id", defaults=_SPECIAL_DEFAULTS.get(kind, (None, None))),
    )


def _layer_types(raw: Mapping) -> list[str]:
    """Of every layer, as transformers takes it where a config does not say."""
    kind, layers = raw["model_type"], layers_of(raw)
    if kind in ("mistral", "phi3"):  # which slide everywhere or nowhere
        slides = raw.get("sliding_window", 4096 if kind == "mistral" else None)
        return ["sliding_attention" if slides else "full_attention"] * layers
    if types := raw.get("layer_types"):
        return types
    first = raw.get("max_window_layers", 28) if raw.get("use_sliding_window") and raw.get("sliding_window", 4096) else layers
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]


def layers_of(raw: Mapping) -> int:
    """How many layers there are to list; 0 of a number that is none, which is refused with the rest of the shape."""
    layers = raw["num_hidden_layers"]
    return layers if type(layers) is int and 0 < layers <= 1000 else 0


def windows(raw: Mapping, shown: str, types: Sequence[str]) -> tuple[int, ...]:
    """How far back the attention of each layer reaches, from the layers' types; empty where all reach back all the way."""
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise CheckpointError(f"{shown}: layer_types has {sorted(unknown)!r:.100}; supported: full and sliding attention")
    layers = layers_of(raw)
    if len(types) < layers:
        raise CheckpointError(f"{shown}: layer_types has {len(types)} entries for {layers} layers")
    if "sliding_attention" not in types:
        return ()
    window = raw.get("sliding_window", 4096)
    if raw["model_type"] in ("qwen2", "qwen3") and not raw.get("use_sliding_window"):
        window = None
    if type(window) is not int or window < 1:
        raise CheckpointError(f"{shown}: layers slide, and sliding_window is {window!r:.100}; allowed: a whole number from 1")
    return tuple(window if kind == "sliding_attention" else 0 for kind in types[:layers])


def rotary(raw: Mapping, shown: str, head_dim: int, *, partly: bool = False) -> Rotary:
    """Both forms: `rope_parameters` of newer configs, `rope_theta` with `rope_scaling` of older ones.

    Args:
      partly: whether a head of this family may rotate in part.
    """
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = scaling.get("rope_theta", raw.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    share = scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if share != 1.0 and not partly:
        raise CheckpointError(f"{shown}: partial_rotary_factor is not 1; supported: heads that rotate whole")
    if not 0 < share <= 1 or (share != 1.0 and not int(head_dim * share)):
        raise CheckpointError(f"{shown}: {share!r:.100} of a head rotates; allowed: more than 0, at most 1")
    some = dict(theta=theta, rotated=int(head_dim * share) if share != 1.0 else 0)
    if kind == "default":
        return Rotary(**some)
    if kind == "linear":
        return Rotary(**some, scaling="linear", factor=scaling["factor"])
    if kind == "llama3":
        return Rotary(
            **some,
            scaling="llama3",
            factor=scaling["factor"],
            low_frequency_factor=scaling["low_freq_factor"],
            high_frequency_factor=scaling["high_freq_factor"],
            original_positions=scaling["original_max_position_embeddings"],
        )
    if kind == "factors":  # of GGUF files
        return Rotary(**some, scaling="factors", factors=tuple(scaling["factors"]))
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


def _phi3_sources(config: DecoderConfig) -> dict[str, Source]:
    """Llama's, with queries, keys and values in one tensor, and gate and rest in another."""
    found, d, dim = rms_sources(config), config.d_model, config.head_dim
    wide = (config.num_heads + 2 * config.num_kv_heads) * dim
    for i in range(config.num_layers):
        theirs = f"model.layers.{i}"
        qkv = linear([f"{theirs}.self_attn.qkv_proj.weight"], [wide], d)
        found[f"blocks.{i}.qkv.kernel"] = in_our_order(qkv, config)
        found[f"blocks.{i}.wi.kernel"] = linear([f"{theirs}.mlp.gate_up_proj.weight"], [2 * config.d_ff], d)
    return found


def in_our_order(qkv: Source, config: DecoderConfig) -> Source:
    """A source of [q k v], or of its bias, whose queries' and keys' dimensions lie as `Rotary.order` has them."""
    if not config.rotary.rotated:
        return qkv
    heads = np.arange(config.num_heads + config.num_kv_heads)[:, None] * config.head_dim
    turned = (heads + config.rotary.order(config.head_dim)).reshape(-1)
    values = len(turned) + np.arange(config.num_kv_heads * config.head_dim)
    return reordered(qkv, np.concatenate([turned, values]))


def rms_sources(config: DecoderConfig) -> dict[str, Source]:
    """Of the Llama family, and of those that have more to each of its layers."""
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
LLAMA = Family(DecoderConfig, _llama_config, rms_sources, _ignored, t5x_names.read_decoder_only)
PHI3 = Family(DecoderConfig, _llama_config, _phi3_sources, _ignored)
LAMDA = Family(DecoderConfig, _lamda_config, t5x=t5x_names.read_decoder_only)
