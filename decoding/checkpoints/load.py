"""One entry for every checkpoint format: finds the format and the family, builds the model, fills it."""

import dataclasses

import jax.numpy as jnp

from decoding.checkpoints import hf
from decoding.checkpoints.storage import CheckpointError
from decoding.models.t5 import T5

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What can be said of a checkpoint from its config alone.

    Attributes:
      family: "t5".
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
    """Describes a Hugging Face directory without reading weights.

    Raises:
      CheckpointError: no such directory, no config, an unknown architecture, or no weights in a safe format.
    """
    config = hf.read_config(path)
    return CheckpointInfo(
        family="t5",
        vocab_size=config.vocab_size,
        start_id=config.start_id,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
        encoder_decoder=True,
        weight_files=tuple(hf.weight_files(path)),
    )


def load_model(path: str, dtype: str = "float32") -> T5:
    """Loads a model.

    Args:
      path: a Hugging Face T5 directory (config.json and safetensors, possibly split with an index), local or gs://.
      dtype: "float32" or "bfloat16", the dtype of the parameters; norms, softmax and logits are float32 in both.

    Raises:
      CheckpointError: the checkpoint is unusable; a missing or misshaped weight is named with both shapes.
      ValueError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(sorted(DTYPES))}")
    return hf.load_t5(path, DTYPES[dtype])
