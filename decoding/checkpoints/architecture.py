"""From the keys of a Hugging Face config to the shape of a model, and from there to the model."""

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from decoding import sharding
from decoding.checkpoints.presets import PRESETS
from decoding.checkpoints.storage import CheckpointError
from decoding.models.base import LanguageModel, Shape
from decoding.registry import FAMILIES


def parse_config(raw: Mapping, shown: str, tied: bool | None = None) -> Shape:
    """A model's shape.

    Args:
      raw: Hugging Face's keys, `model_type` among them.
      shown: where they come from, for messages.
      tied: whether logits come from the input embedding, as the weights say; None where only the config can.

    Raises:
      CheckpointError: an unknown family, a missing key, a special token that is not one, or something not supported.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(f"{shown}: model_type is {family!r:.100}; supported: {', '.join(FAMILIES.names())}")
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise CheckpointError(
            f"{shown}: quantization_config names weights quantised with {method!r:.100}, which are not supported; float32, "
            "float16 and bfloat16 ones are, and quantised GGUF files"
        )
    if tied and raw.get("tie_word_embeddings") is False:
        tied = False  # so that the head is missed: without it this is not a whole model
    try:
        config = FAMILIES.get(family).parse_config(raw, shown, tied)
    except KeyError as error:
        raise CheckpointError(f"{shown}: the config lacks {error}") from error
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{shown}: the config cannot be used: {error}") from error
    _check_values(config, shown)
    return config


_MOST_LAYERS, _MOST = 1000, 2**24  # beyond any model there is; what a slip of the pen may cost stays small
_MAY_BE_ZERO = ("start_id", "pad_id", "forced_bos_id", "forced_eos_id", "max_positions", "source_vocab_size", "head_tokens")


def _check_values(config: Shape, shown: str) -> None:
    """Raises CheckpointError where a value is of another type than its field's, or of a size that no model has."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type is bool and type(value) is not bool:
            allowed = "true or false"
        elif field.type is int or (field.type == int | None and value is not None):
            least, most = int(field.name not in _MAY_BE_ZERO), _MOST_LAYERS if field.name.endswith("layers") else _MOST
            if type(value) is int and least <= value <= most:
                continue
            allowed = f"whole numbers from {least} to {most}"
        elif field.type is float and not (type(value) in (int, float) and 0 <= value < math.inf):
            allowed = "finite numbers from 0"
        else:
            continue
        raise CheckpointError(f"{shown}: {field.name} is {value!r:.100}; allowed: {allowed}")
    try:
        config.check()
    except ValueError as error:
        raise CheckpointError(f"{shown}: {error}") from error


def resolve(architecture: str | Mapping) -> tuple[dict, str]:
    """A preset's or a user's config, and how messages call it.

    Raises:
      CheckpointError: an unknown preset.
    """
    if isinstance(architecture, Mapping):
        return dict(architecture), "architecture"
    if architecture not in PRESETS:
        raise CheckpointError(
            f"architecture is {architecture!r}; allowed: a dict of Hugging Face's config keys, or one of "
            f"{', '.join(PRESETS)}"
        )
    return dict(PRESETS[architecture]), f"architecture {architecture!r}"


def settle(
    own: Mapping | None, shown: str, architecture: str | Mapping | None, tied: bool | None = None
) -> tuple[dict, Shape]:
    """The config to use: the checkpoint's own where it has one, else the given architecture.

    Args:
      own: the checkpoint's config, None where it has none.
      shown: its path.
      architecture: what the user says, or None.
      tied: as in `parse_config`.

    Raises:
      CheckpointError: neither is there, or the two say different things; the differences are named.
    """
    if architecture is None:
        if own is None:
            raise CheckpointError(
                f"{shown} is not there, so the model's shape is unknown: put a config.json of Hugging Face's keys there, "
                f"or name the architecture, for example one of {', '.join(PRESETS)}"
            )
        return dict(own), parse_config(own, shown, tied)
    given, name = resolve(architecture)
    wanted = parse_config(given, name, tied)
    if own is None:
        return given, wanted
    config = parse_config(own, shown, tied)
    if config != wanted:
        mine, other = (dataclasses.asdict(shape) for shape in (config, wanted))
        differing = [
            f"{key} is {mine.get(key)!r} there and {other.get(key)!r} in the {name}"
            for key in {**mine, **other}
            if mine.get(key) != other.get(key)
        ]
        raise CheckpointError(f"{shown} contradicts the given architecture: {'; '.join(differing)}")
    return dict(own), config


def build(config: Shape, dtype) -> LanguageModel:
    """A randomly initialised model."""
    return config.build(rngs=nnx.Rngs(0), dtype=dtype)


def abstract_model(architecture: str | Mapping, dtype=jnp.bfloat16) -> LanguageModel:
    """A model whose parameters have shapes and dtypes only; nothing is allocated."""
    return sharding.abstract(parse_config(*resolve(architecture)), dtype)


def shape_of(values: Mapping) -> Shape:
    """The shape whose `dataclasses.asdict` a mapping is, as benchmark.json has it.

    Raises:
      CheckpointError: it is that of no family.
    """
    for config in dict.fromkeys(FAMILIES.get(name).config for name in FAMILIES.names()):
        if values.keys() <= {field.name for field in dataclasses.fields(config)}:
            try:
                return config(**values)
            except TypeError as error:
                raise CheckpointError(f"a shape is not whole: {error}") from error
    raise CheckpointError(f"a shape has the fields {', '.join(values)}: those of no family")
