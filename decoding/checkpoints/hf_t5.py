"""Hugging Face's T5: its config and the names of its weights."""

from collections.abc import Mapping

from decoding.checkpoints import t5x_names
from decoding.checkpoints.families import Family
from decoding.checkpoints.fill import Source, as_is, linear, stacked
from decoding.checkpoints.special_tokens import special_tokens
from decoding.checkpoints.storage import CheckpointError
from decoding.models.base import ACTIVATIONS
from decoding.models.t5 import T5Config

# A bias table of early checkpoints that the model never reads.
IGNORED = frozenset(["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"])

# Names of the one embedding: a file may have any of them, or several.
EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def parse_config(raw: Mapping, shown: str, tied: bool | None) -> T5Config:
    """T5Config from the keys of a Hugging Face config.

    Both forms of published configs load: the weights say whether the head is tied (`tied`; None where they are not
    there to be asked); the decoder's output is scaled when `scale_decoder_outputs` is true or, where absent, when
    `tie_word_embeddings` is not false. mT5's never is: Transformers 5 writes `tie_word_embeddings: true` into its
    configs, too, and no second key.

    Raises:
      CheckpointError: a required key is missing or an activation is unknown.
    """
    missing = [key for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads") if key not in raw]
    if missing:
        raise CheckpointError(f"{shown}: the config lacks {', '.join(missing)}")
    projection = raw.get("feed_forward_proj", "relu")
    gated = projection.startswith("gated-")
    activation = projection.removeprefix("gated-")
    if gated and activation == "gelu":
        activation = "gelu_new"  # Hugging Face's rule: "gated-gelu" means the tanh approximation.
    if activation not in ACTIVATIONS:
        allowed = ", ".join(ACTIVATIONS)
        raise CheckpointError(
            f"{shown}: feed_forward_proj is {projection!r}; allowed: {allowed}, each also as gated-..."
        )
    return T5Config(
        vocab_size=raw["vocab_size"],
        d_model=raw["d_model"],
        d_kv=raw["d_kv"],
        d_ff=raw["d_ff"],
        num_layers=raw["num_layers"],
        num_decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
        num_heads=raw["num_heads"],
        gated=gated,
        activation=activation,
        tied=raw.get("tie_word_embeddings", True) if tied is None else tied,
        scale_decoder_outputs=raw.get(
            "scale_decoder_outputs", raw["model_type"] != "mt5" and raw.get("tie_word_embeddings", True)
        ),
        bias_per_layer=raw["model_type"] == "umt5",
        relative_attention_num_buckets=raw.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance=raw.get("relative_attention_max_distance", 128),
        layer_norm_epsilon=raw.get("layer_norm_epsilon", 1e-6),
        **special_tokens(raw, shown, start="decoder_start_token_id", defaults=(0, 1)),
    )


def sources(config: T5Config) -> dict[str, Source]:
    """Our parameter path -> its source."""
    d, inner, d_ff = config.d_model, config.num_heads * config.d_kv, config.d_ff
    bias = (config.relative_attention_num_buckets, config.num_heads)

    def bias_of(side: str, layers: int) -> Source:
        name = f"{side}.block.%d.layer.0.SelfAttention.relative_attention_bias.weight"
        return stacked([name % i for i in range(layers)], *bias) if config.bias_per_layer else as_is(name % 0, *bias)

    found = {
        "embedding": as_is(EMBEDDING[0], config.vocab_size, d),
        "encoder_bias": bias_of("encoder", config.num_layers),
        "decoder_bias": bias_of("decoder", config.num_decoder_layers),
        "encoder_norm": as_is("encoder.final_layer_norm.weight", d),
        "decoder_norm": as_is("decoder.final_layer_norm.weight", d),
    }
    if not config.tied:
        found["head"] = linear(["lm_head.weight"], [config.vocab_size], d)

    def add_attention(ours: str, theirs: str) -> None:
        found[f"{ours}.attention.norm"] = as_is(f"{theirs}.layer_norm.weight", d)
        found[f"{ours}.attention.qkv"] = linear([f"{theirs}.SelfAttention.{x}.weight" for x in "qkv"], [inner] * 3, d)
        found[f"{ours}.attention.out"] = linear([f"{theirs}.SelfAttention.o.weight"], [d], inner)

    def add_feed_forward(ours: str, theirs: str) -> None:
        first = ["wi_0", "wi_1"] if config.gated else ["wi"]
        names = [f"{theirs}.DenseReluDense.{x}.weight" for x in first]
        found[f"{ours}.feed_forward.norm"] = as_is(f"{theirs}.layer_norm.weight", d)
        found[f"{ours}.feed_forward.wi"] = linear(names, [d_ff] * len(names), d)
        found[f"{ours}.feed_forward.wo"] = linear([f"{theirs}.DenseReluDense.wo.weight"], [d], d_ff)

    for i in range(config.num_layers):
        add_attention(f"encoder.{i}", f"encoder.block.{i}.layer.0")
        add_feed_forward(f"encoder.{i}", f"encoder.block.{i}.layer.1")
    for i in range(config.num_decoder_layers):
        add_attention(f"decoder.{i}", f"decoder.block.{i}.layer.0")
        theirs = f"decoder.block.{i}.layer.1"
        found[f"decoder.{i}.cross.norm"] = as_is(f"{theirs}.layer_norm.weight", d)
        found[f"decoder.{i}.cross.query"] = linear([f"{theirs}.EncDecAttention.q.weight"], [inner], d)
        found[f"decoder.{i}.cross.kv"] = linear([f"{theirs}.EncDecAttention.{x}.weight" for x in "kv"], [inner] * 2, d)
        found[f"decoder.{i}.cross.out"] = linear([f"{theirs}.EncDecAttention.o.weight"], [d], inner)
        add_feed_forward(f"decoder.{i}", f"decoder.block.{i}.layer.2")
    return found


FAMILY = Family(T5Config, parse_config, sources, lambda config: IGNORED, t5x_names.read_t5, lambda config: EMBEDDING)
