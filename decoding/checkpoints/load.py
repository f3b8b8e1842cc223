"""One entry for every checkpoint: finds the family, builds the model, fills it."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from decoding.checkpoints import gguf, hf, hf_decoder_only, hf_t5
from decoding.checkpoints.fill import fill
from decoding.checkpoints.storage import CheckpointError
from decoding.models.base import LanguageModel
from decoding.models.decoder_only import DecoderConfig, DecoderOnly
from decoding.models.t5 import T5, T5Config

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What can be said of a checkpoint without reading its weights.

    Attributes:
      family: "t5", "mt5", "gpt2", "llama", "mistral", "qwen2" or "qwen3".
      vocab_size: V.
      start_id, eos_id, pad_id: special token ids.
      encoder_decoder: inputs go to an encoder.
      weight_files: paths of the files with weights.
    """

    family: str
    vocab_size: int
    start_id: int
    eos_id: int
    pad_id: int
    encoder_decoder: bool
    weight_files: tuple[str, ...]


def inspect_checkpoint(path: str) -> CheckpointInfo:
    """Describes a Hugging Face directory or a GGUF file.

    Raises:
      CheckpointError: no such directory, no config, an unknown architecture, or no weights in a safe format.
    """
    if gguf.is_gguf(path):
        with gguf.open_file(path, weights=False) as file:
            family, config = gguf.parse_config(file)
    else:
        family, config = _read_config(path)
    return CheckpointInfo(
        family=family,
        vocab_size=config.vocab_size,
        start_id=config.start_id,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
        encoder_decoder=isinstance(config, T5Config),
        weight_files=(path,) if gguf.is_gguf(path) else tuple(hf.weight_files(path)),
    )


def _read_config(path: str) -> tuple[str, T5Config | DecoderConfig]:
    raw = hf.read_config(path)
    family, shown = raw.get("model_type"), f"{path}/config.json"
    if family in ("t5", "mt5"):
        return family, hf_t5.parse_config(raw, shown, hf.tensor_names(path))
    if family == "gpt2" or family in hf_decoder_only.LLAMA_LIKE:
        return family, hf_decoder_only.parse_config(raw, shown, hf.tensor_names(path))
    allowed = ", ".join(("t5", "mt5", "gpt2", *hf_decoder_only.LLAMA_LIKE))
    raise CheckpointError(f"{shown}: model_type is {family!r}; supported: {allowed}")


def load_model(path: str, dtype: str = "float32") -> LanguageModel:
    """Loads a model.

    Args:
      path: a Hugging Face directory (config.json and safetensors, possibly split with an index) or a .gguf file,
        local or gs://.
      dtype: "float32" or "bfloat16", the dtype of the parameters; norms, softmax and logits are float32 in both.

    Raises:
      CheckpointError: the checkpoint is unusable; missing or misshaped weights are named with both shapes.
      ValueError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(sorted(DTYPES))}")
    if gguf.is_gguf(path):
        with gguf.open_file(path) as file:
            family, config = gguf.parse_config(file)
            build = lambda: DecoderOnly(config, rngs=nnx.Rngs(0), dtype=DTYPES[dtype])
            return fill(path, build, gguf.sources(config, family), file, DTYPES[dtype], gguf.IGNORED)
    _, config = _read_config(path)
    if isinstance(config, T5Config):
        cls, sources, ignored = T5, hf_t5.sources(config), hf_t5.IGNORED
    else:
        cls, sources, ignored = DecoderOnly, hf_decoder_only.sources(config), hf_decoder_only.ignored(config)
    build = lambda: cls(config, rngs=nnx.Rngs(0), dtype=DTYPES[dtype])
    with hf.open_tensors(path) as tensors:
        return fill(path, build, sources, tensors, DTYPES[dtype], ignored)
