"""Arithmetic operations per decoded token, counted from a model's architecture: what ĉ of Theorem 3.11 is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from decoding.checkpoints.load import CheckpointError, find_checkpoint
from decoding.models.decoder_only import DecoderConfig
from decoding.models.ngram import is_ngram
from decoding.models.t5 import T5Config
from pipeline.report.sources import Source
from pipeline.settings import NAMED_DRAFTS


def operations_per_token(config: T5Config | DecoderConfig | Mapping[str, Any]) -> float:
    """Operations of a decoder's matrix products for one token, a multiplication and an addition counting two.

    The encoder and the keys and values of cross-attention are computed once per input and not per token, so they are not
    in it; attention over the cache, norms, the softmax and the lookup of embeddings are small beside the products and
    left out, as in the paper's ratio.

    Args:
      config: the architecture, or `dataclasses.asdict` of it as benchmark.json has it.
    """
    values = dict(config) if isinstance(config, Mapping) else dataclasses.asdict(config)
    if "num_decoder_layers" in values:
        model, inner = values["d_model"], values["num_heads"] * values["d_kv"]
        attention = 4 * model * inner + 2 * model * inner  # own: q, k, v, o; cross: q, o
        feed_forward = (3 if values["gated"] else 2) * model * values["d_ff"]
        products = values["num_decoder_layers"] * (attention + feed_forward) + model * values["vocab_size"]
    else:
        model, inner = values["d_model"], values["num_heads"] * values["head_dim"]
        shared = values["num_kv_heads"] * values["head_dim"]
        attention = 2 * model * inner + 2 * model * shared
        feed_forward = (3 if values["gated"] else 2) * model * values["d_ff"]
        products = values["num_layers"] * (attention + feed_forward) + model * values["vocab_size"]
    return 2.0 * products


def describe_models(sources: Sequence[Source]) -> tuple[dict[str, dict], list[str]]:
    """Shape and operations per token of every model of the sources, and notes on those that are not known.

    Architectures come from benchmarks, which have them, else from the models where they still lie at their paths. Tables
    and copying have none and take no operations.

    Returns:
      By digest "name", "shape" (None without one) and "operations" (None where unknown); and the notes.
    """
    shapes: dict[str, Any] = {}
    for source in sources:
        for role, model in (("target", source.target), ("draft", source.drafts.get(""))):
            shape = source.results.get("models", {}).get(role, {}).get("shape")
            if model and shape:
                shapes[model.digest] = shape
    found: dict[str, dict] = {}
    notes = []
    for source in sources:
        for model in (source.target, *source.drafts.values()):
            if model.digest in found:
                continue
            shape, operations = shapes.get(model.digest), None
            try:
                shape = shape or _shape_at(model.path)
                operations = operations_per_token(shape) if shape else 0.0
            except (CheckpointError, OSError, KeyError) as error:
                notes.append(f"ĉ is not known for {model.name}: its architecture cannot be read ({error}).")
            found[model.digest] = {"name": model.name, "shape": shape, "operations": operations}
    return found, notes


def _shape_at(path: str) -> dict | None:
    """The architecture of the checkpoint at a path; None for a table or a way of copying."""
    if path in NAMED_DRAFTS or is_ngram(path):
        return None
    return dataclasses.asdict(find_checkpoint(path).config)
