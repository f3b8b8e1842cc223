"""Arithmetic operations per decoded token, counted from a model's architecture: what ĉ of Theorem 3.11 is made of."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from decoding.checkpoints.architecture import shape_of
from decoding.checkpoints.load import CheckpointError, find_checkpoint
from decoding.drafts.ngram import is_ngram
from decoding.drafts.suffixes import is_index
from decoding.registry import DRAFTS, drafts_of
from pipeline.report.source import Source


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
                operations = shape_of(shape).operations_per_token if shape else 0.0
            except (CheckpointError, OSError, KeyError) as error:
                notes.append(f"ĉ is not known for {model.name}: its architecture cannot be read ({error}).")
            found[model.digest] = {"name": model.name, "shape": shape, "operations": operations}
    return found, notes


def _shape_at(path: str) -> dict | None:
    """The architecture of the checkpoint at a path, of a cascade that of its last; None for a table or a way of copying."""
    path = drafts_of(path)[-1]
    if path in DRAFTS or is_ngram(path) or is_index(path):
        return None
    return dataclasses.asdict(find_checkpoint(path).config)
