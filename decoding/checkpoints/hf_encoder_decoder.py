"""Hugging Face's encoder-decoders beside T5: Marian (OPUS-MT), BART, mBART, M2M-100 with NLLB, Pegasus."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from decoding.checkpoints.families import Family
from decoding.checkpoints.fill import Source, as_is, linear, made, vectors
from decoding.checkpoints.special_tokens import special_tokens
from decoding.checkpoints.storage import CheckpointError
from decoding.models.base import ACTIVATIONS
from decoding.models.encoder_decoder import EncoderDecoderConfig

_LEARNED_OFFSET = 2  # rows that come before the first position's, since fairseq counted from its padding token
_ACTIVATIONS = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new"} | {name: name for name in ACTIVATIONS}

# What transformers takes for keys that a config lacks.
_DEFAULTS = {
    "vocab_size": 50265, "d_model": 1024, "max_position_embeddings": 1024, "encoder_layers": 12, "decoder_layers": 12,
    "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096,
    "activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What tells one family from another.

    Attributes:
      defaults: keys whose default differs from `_DEFAULTS`.
      norm_first, embedding_norm, logits_bias, pad_without_position: as of `EncoderDecoderConfig`.
      sinusoids: makes tables of positions, of a shape and a padding token; None where they are learned.
    """

    defaults: Mapping
    norm_first: bool
    embedding_norm: bool
    logits_bias: bool
    sinusoids: Callable[[EncoderDecoderConfig], np.ndarray] | None = None
    pad_without_position: bool = False


def parse_config(raw: Mapping, shown: str, tied: bool | None) -> EncoderDecoderConfig:
    """The shape of a Hugging Face config, whose word goes for the head: transformers ties it whatever a file has."""
    family = raw["model_type"]
    kind = _KINDS[family]
    raw = _DEFAULTS | kind.defaults | raw
    shared = raw.get("share_encoder_decoder_embeddings", True)
    activation = _ACTIVATIONS.get(raw["activation_function"])
    if activation is None:
        allowed = ", ".join(_ACTIVATIONS)
        raise CheckpointError(f"{shown}: activation_function is {raw['activation_function']!r}; allowed: {allowed}")
    if (experts := raw.get("num_experts")) and raw.get("encoder_sparse_step", raw.get("decoder_sparse_step")):
        raise CheckpointError(f"{shown}: the model has {experts!r} experts; supported: dense ones")
    source = 0 if shared and raw["tie_word_embeddings"] else raw["vocab_size"]
    if not shared:
        raw = raw | {"vocab_size": raw.get("decoder_vocab_size") or raw["vocab_size"]}
    return EncoderDecoderConfig(
        vocab_size=raw["vocab_size"],
        source_vocab_size=source,
        d_model=raw["d_model"],
        num_layers=raw["encoder_layers"],
        num_decoder_layers=raw["decoder_layers"],
        num_heads=raw["decoder_attention_heads"],
        encoder_heads=raw["encoder_attention_heads"],
        d_ff=raw["decoder_ffn_dim"],
        encoder_d_ff=raw["encoder_ffn_dim"],
        max_positions=raw["max_position_embeddings"],
        norm_first=kind.norm_first,
        embedding_norm=kind.embedding_norm,
        scale_embedding=raw["scale_embedding"],
        activation=activation,
        logits_bias=kind.logits_bias,
        tied=raw["tie_word_embeddings"],
        pad_without_position=kind.pad_without_position,
        **special_tokens(raw, shown, start="decoder_start_token_id", defaults=(None, None)),
    )


def halves(config: EncoderDecoderConfig) -> np.ndarray:
    """Sinusoids of Vaswani et al., sines first: float32[positions, d]."""
    angles = np.arange(config.max_positions)[:, None] / 10000.0 ** (np.arange(0, config.d_model, 2) / config.d_model)
    return np.concatenate([np.sin(angles), np.cos(angles[:, : config.d_model // 2])], axis=1).astype(np.float32)


def fairseq(config: EncoderDecoderConfig) -> np.ndarray:
    """Sinusoids of tensor2tensor and fairseq, whose positions begin behind the padding token's: float32[positions, d]."""
    half = config.d_model // 2
    # float32 throughout, as in transformers: at a thousand positions it shows.
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000) / (half - 1)))
    places = np.arange(config.max_positions, dtype=np.float32) + np.float32(config.pad_id + 1)
    angles = places[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.pad(table, ((0, 0), (0, config.d_model % 2)))


def sources(kind: _Kind, config: EncoderDecoderConfig) -> dict[str, Source]:
    """Our parameter path -> its source."""
    d = config.d_model
    shared = as_is("model.shared.weight", config.vocab_size, d)
    found = {"embedding": shared}
    if config.source_vocab_size:  # PyTorch's files have the tables apart, or, as transformers 4 wrote them, one for both
        found["embedding"] = as_is("model.decoder.embed_tokens.weight", *shared.shapes[0])._replace(otherwise=shared)
        shared = as_is("model.shared.weight", config.source_vocab_size, d)
        found["encoder_embedding"] = as_is("model.encoder.embed_tokens.weight", *shared.shapes[0])._replace(otherwise=shared)
    if not config.tied:
        found["head"] = linear(["lm_head.weight"], [config.vocab_size], d)
    if config.logits_bias:
        zeros = made(lambda: np.zeros(config.vocab_size, np.float32))
        bias = Source(("final_logits_bias",), ((1, config.vocab_size),), lambda tensor: tensor[0])
        found["logits_bias"] = bias._replace(otherwise=zeros)

    def add_norm(ours: str, theirs: str) -> None:
        for part, name in (("scale", "weight"), ("bias", "bias")):
            found[f"{ours}.{part}"] = as_is(f"{theirs}.{name}", d)

    def add_linear(ours: str, theirs: list[str], outs: list[int], into: int) -> None:
        found[f"{ours}.kernel"] = linear([f"{name}.weight" for name in theirs], outs, into)
        found[f"{ours}.bias"] = vectors([f"{name}.bias" for name in theirs], outs)

    for side, layers, d_ff in (
        ("encoder", config.num_layers, config.encoder_d_ff),
        ("decoder", config.num_decoder_layers, config.d_ff),
    ):
        if kind.sinusoids is None:
            rows = config.max_positions + _LEARNED_OFFSET
            table = Source((f"model.{side}.embed_positions.weight",), ((rows, d),), lambda tensor: tensor[_LEARNED_OFFSET:])
        else:
            table = made(lambda: kind.sinusoids(config))
        found[f"{side}.positions"] = table
        if config.embedding_norm:
            add_norm(f"{side}.first_norm", f"model.{side}.layernorm_embedding")
        if config.norm_first:
            add_norm(f"{side}.last_norm", f"model.{side}.layer_norm")
        for i in range(layers):
            ours, theirs = f"{side}.layers.{i}", f"model.{side}.layers.{i}"
            add_norm(f"{ours}.attention.norm", f"{theirs}.self_attn_layer_norm")
            add_linear(f"{ours}.attention.qkv", [f"{theirs}.self_attn.{x}_proj" for x in "qkv"], [d] * 3, d)
            add_linear(f"{ours}.attention.out", [f"{theirs}.self_attn.out_proj"], [d], d)
            if side == "decoder":
                add_norm(f"{ours}.cross.norm", f"{theirs}.encoder_attn_layer_norm")
                add_linear(f"{ours}.cross.query", [f"{theirs}.encoder_attn.q_proj"], [d], d)
                add_linear(f"{ours}.cross.kv", [f"{theirs}.encoder_attn.{x}_proj" for x in "kv"], [d] * 2, d)
                add_linear(f"{ours}.cross.out", [f"{theirs}.encoder_attn.out_proj"], [d], d)
            add_norm(f"{ours}.feed_forward.norm", f"{theirs}.final_layer_norm")
            add_linear(f"{ours}.feed_forward.wi", [f"{theirs}.fc1"], [d_ff], d)
            add_linear(f"{ours}.feed_forward.wo", [f"{theirs}.fc2"], [d], d_ff)
    return found


def _embedding_names(config: EncoderDecoderConfig) -> tuple[str, ...]:
    names = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    return () if config.source_vocab_size else names


def _ignored(kind: _Kind, config: EncoderDecoderConfig) -> list[str]:
    """Tables that are made, and the one that nothing reads where each side has its own."""
    names = ["model.shared.weight"] if config.source_vocab_size else []
    if not kind.logits_bias:
        names.append("final_logits_bias")
    if kind.sinusoids:
        for side in ("encoder", "decoder"):
            names += [f"model.{side}.embed_positions.{name}" for name in ("weight", "weights", "_float_tensor")]
    return names


_BART = {"decoder_start_token_id": 2, "forced_eos_token_id": 2}
_MARIAN = {
    "vocab_size": 58101, "decoder_start_token_id": 58100, "pad_token_id": 58100, "eos_token_id": 0, "bos_token_id": None,
    "forced_eos_token_id": 0,
}  # fmt: skip
_M2M = {"vocab_size": 128112, "activation_function": "relu", "scale_embedding": True, "decoder_start_token_id": 2}
_PEGASUS = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": 1, "bos_token_id": None}

_KINDS = {
    "bart": _Kind(_BART, norm_first=False, embedding_norm=True, logits_bias=True),
    "mbart": _Kind({"forced_eos_token_id": 2}, norm_first=True, embedding_norm=True, logits_bias=True),
    "marian": _Kind(_MARIAN, norm_first=False, embedding_norm=False, logits_bias=True, sinusoids=halves),
    "m2m_100": _Kind(
        _M2M, norm_first=True, embedding_norm=False, logits_bias=False, sinusoids=fairseq, pad_without_position=True
    ),
    "pegasus": _Kind(_PEGASUS, norm_first=True, embedding_norm=False, logits_bias=True, sinusoids=halves),
}


def _family(name: str) -> Family:
    kind = _KINDS[name]
    return Family(
        EncoderDecoderConfig,
        parse_config,
        lambda config: sources(kind, config),
        lambda config: _ignored(kind, config),
        embedding=_embedding_names,
    )


BART, MBART, MARIAN, M2M_100, PEGASUS = map(_family, _KINDS)
