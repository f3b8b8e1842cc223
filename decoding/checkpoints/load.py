"""One entry for every checkpoint: finds its format, builds the model, fills it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from decoding import hub, kernels, sharding
from decoding.checkpoints import architecture as architectures
from decoding.checkpoints import gguf, hf, orbax, storage, t5x
from decoding.checkpoints.checkpoint import Checkpoint
from decoding.checkpoints.fill import fill
from decoding.checkpoints.storage import CheckpointError
from decoding.models import resident
from decoding.models.base import LanguageModel
from decoding.models.vocabulary import SomeTokens, with_head_of

PLAIN = "plain"  # weights as arrays, which XLA multiplies
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What can be said of a checkpoint without reading its weights.

    Attributes:
      family: the config's `model_type`, a name in `decoding.registry.FAMILIES`.
      vocab_size: V.
      start_id, eos_id, pad_id: special token ids.
      encoder_decoder: inputs go to an encoder.
      weight_files: paths of the files with weights.
      max_positions: as of `LanguageModel`.
      eos_ids: all tokens that end a text, `eos_id` first.
      forced_bos_id: the token that every text begins with, None for none.
    """

    family: str
    vocab_size: int
    start_id: int
    eos_id: int
    pad_id: int
    encoder_decoder: bool
    weight_files: tuple[str, ...]
    max_positions: int = 0
    eos_ids: tuple[int, ...] = ()
    forced_bos_id: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "eos_ids", self.eos_ids or (self.eos_id,))


def find_checkpoint(path: str, architecture: str | Mapping | None = None) -> Checkpoint:
    """What lies at a path, read as far as names and shapes.

    Args:
      path: a directory of Hugging Face (config.json and safetensors, possibly split with an index), of T5X
        (`checkpoint_<step>` or its parent, whose newest step is taken) or of `pipeline.convert` (Orbax), or a .gguf
        file; local or gs://, or the id of a model on the Hugging Face hub, see `decoding.hub`.
      architecture: where the checkpoint has no config, as T5X's have none: the name of a preset (`decoding.checkpoints.
        presets`) or a dict of Hugging Face's config keys. Where it has one, both must agree.

    Raises:
      CheckpointError: nothing usable is there; the message names the file, what was found and what is needed.
    """
    try:
        path = hub.pin(path)
        hub.fetch_weights(path)
    except hub.HubError as error:
        raise CheckpointError(str(error)) from error
    if gguf.is_gguf(path):
        return gguf.find(path, architecture)
    names = storage.list_names(path)
    if not names:
        what = "is a file" if storage.exists(path) else "does not exist or is empty"
        raise CheckpointError(f"{path} {what}; a directory with config.json and weights, or a .gguf file, is needed")
    for layout, matches in ((hf, hf.is_hf), (orbax, orbax.is_orbax), (t5x, t5x.is_t5x)):
        if matches(names):
            return layout.find(path, names, architecture)
    return hf.find(path, names, architecture)


def inspect_checkpoint(path: str, architecture: str | Mapping | None = None) -> CheckpointInfo:
    """Describes a checkpoint; arguments and errors as of `load_model`."""
    checkpoint = find_checkpoint(path, architecture)
    config = checkpoint.config
    return CheckpointInfo(
        family=checkpoint.raw["model_type"],
        vocab_size=config.vocab_size,
        start_id=config.start_id,
        eos_id=config.eos_ids[0],
        pad_id=config.pad_id,
        encoder_decoder=config.encoder_decoder,
        weight_files=checkpoint.weight_files,
        max_positions=getattr(config, "max_positions", 0),
        eos_ids=config.eos_ids,
        forced_bos_id=config.forced_bos_id,
    )


def load_model(
    path: str,
    dtype: str = "float32",
    *,
    weights: str = "",
    architecture: str | Mapping | None = None,
    mesh: jax.sharding.Mesh | None = None,
    tokens: Sequence[int] | None = None,
) -> LanguageModel:
    """Loads a model; its parameters are read one at a time.

    Args:
      path: a checkpoint, see `find_checkpoint`.
      dtype: "float32" or "bfloat16", the dtype of the parameters; norms, softmax and logits are float32 in both.
      weights: of products: "float32", "bfloat16" or "int8" (one scale per output column), to which they are rounded, or
        "file", as they are stored: a GGUF file's blocks, bfloat16, else float32. Where `decoding.kernels` is available,
        dtype is float32 and there is no mesh, they are its products; elsewhere they are XLA's, "bfloat16" is for dtype
        float32, and "file" cannot be. "plain" for arrays of `dtype` and XLA's products. "" for "file" where that can be,
        and else for "plain".
      architecture: where the checkpoint has no config, see `find_checkpoint`.
      mesh: devices that the model is split over, see `decoding.sharding.make_mesh`; each is sent its own part only. None
        for JAX's default device.
      tokens: the only ones that the model gives any probability, of a draft: its head is made for these alone. None for all.

    Raises:
      CheckpointError: the checkpoint is unusable; missing or misshaped weights are named with both shapes.
      ValueError: an unknown dtype, weights that this platform or dtype does not allow, or a mesh without the axis "model".
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(sorted(DTYPES))}")
    checkpoint = find_checkpoint(path, architecture)
    if tokens is not None:
        model = _load(_with_head_of(checkpoint, np.asarray(tokens)), dtype, weights, mesh)
        return SomeTokens(model, tokens)
    return _load(checkpoint, dtype, weights, mesh)


def _load(checkpoint: Checkpoint, dtype: str, weights: str, mesh: jax.sharding.Mesh | None) -> LanguageModel:
    config = checkpoint.config
    if form := form_of(weights, dtype, mesh):
        packing = resident.Packing(config, form)
        parameters = checkpoint.parameters(None if form == "file" else DTYPES[dtype])
        return fill(lambda: architectures.build(config, DTYPES[dtype]), parameters, packing.place)
    parameters, place = checkpoint.parameters(DTYPES[dtype]), lambda path, value: jax.device_put(value, may_alias=False)
    if mesh is not None:
        division = sharding.Division(config, mesh)
        config, parameters, place = division.config, division.arranged(parameters), division.place
    if weights in resident.ROUNDED:
        put, rounding = place, resident.Rounding(config, weights, dtype)
        place = lambda path, value: put(path, rounding.round(path, value))
    return fill(lambda: architectures.build(config, DTYPES[dtype]), parameters, place)


def _with_head_of(checkpoint: Checkpoint, tokens: np.ndarray) -> Checkpoint:
    """A checkpoint with a head of its own, of those tokens alone."""
    config = checkpoint.config

    def columns(value, of_table: bool):
        if isinstance(value, gguf.Blocks):
            ((blocks, kind),) = value.columns
            blocks = blocks[:, tokens] if kind == "float32" else blocks[tokens]
            return gguf.Blocks(((blocks, kind),), (config.d_model, len(tokens)))
        return value[tokens].T if of_table else value[..., tokens]

    def parameters(dtype) -> Iterator[tuple[str, np.ndarray]]:
        for path, value in checkpoint.parameters(dtype):
            yield path, columns(value, of_table=False) if path in ("head", "logits_bias") else value
            if path == "embedding" and config.tied:
                yield "head", columns(value, of_table=True)

    return dataclasses.replace(checkpoint, config=with_head_of(config, len(tokens)), parameters=parameters)


def form_of(weights: str, dtype: str, mesh) -> str:
    """The form that `load_model` packs weights in, "" for plain arrays; arguments and errors are its own."""
    if weights not in ("", PLAIN, *resident.FORMS):
        raise ValueError(f'weights is {weights!r}; allowed: {", ".join((PLAIN, *resident.FORMS))}, or "" to choose')
    able = mesh is None and dtype == "float32" and jax.default_backend() == "cpu" and kernels.available() is not None
    if weights == "file" and not able:
        raise ValueError(
            f"weights is {weights!r}, which needs a processor with the products of decoding.kernels, dtype float32 and no "
            f"mesh; here are {jax.default_backend()}, {dtype} and {'no' if mesh is None else 'a'} mesh"
        )
    if weights in ("float32", "bfloat16") and dtype != "float32":
        raise ValueError(f'weights is {weights!r} with dtype {dtype}; allowed: int8, plain, or "" to choose')
    return (weights or "file") if able and weights != PLAIN else ""
