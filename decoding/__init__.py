"""Exact speculative decoding in JAX, on its own: no Beam, no TensorFlow, no tokenisers.

Names are imported when they are first asked for, so that settings are read without waiting for JAX.
"""

import importlib
import typing

from decoding import xla_flags

if typing.TYPE_CHECKING:
    from decoding import theory
    from decoding.checkpoints import CheckpointError, CheckpointInfo, inspect_checkpoint, load_model
    from decoding.compilation import keep_programs
    from decoding.config import DecodingConfig, Generation
    from decoding.drafts import CascadeDraft, CorpusDraft, NGramDraft, PromptLookupDraft, UniformDraft, load_draft
    from decoding.engine import EngineReport, Generator
    from decoding.faults import NonFiniteLogits
    from decoding.registry import register_draft, register_family, register_rule

_HOMES = {
    "CascadeDraft": "decoding.drafts",
    "CheckpointError": "decoding.checkpoints",
    "CheckpointInfo": "decoding.checkpoints",
    "CorpusDraft": "decoding.drafts",
    "DecodingConfig": "decoding.config",
    "EngineReport": "decoding.engine",
    "Generation": "decoding.config",
    "Generator": "decoding.engine",
    "NGramDraft": "decoding.drafts",
    "NonFiniteLogits": "decoding.faults",
    "PromptLookupDraft": "decoding.drafts",
    "UniformDraft": "decoding.drafts",
    "inspect_checkpoint": "decoding.checkpoints",
    "keep_programs": "decoding.compilation",
    "load_draft": "decoding.drafts",
    "load_model": "decoding.checkpoints",
    "register_draft": "decoding.registry",
    "register_family": "decoding.registry",
    "register_rule": "decoding.registry",
}

__all__ = [
    "CascadeDraft",
    "CheckpointError",
    "CheckpointInfo",
    "CorpusDraft",
    "DecodingConfig",
    "EngineReport",
    "Generation",
    "Generator",
    "NGramDraft",
    "NonFiniteLogits",
    "PromptLookupDraft",
    "UniformDraft",
    "inspect_checkpoint",
    "keep_programs",
    "load_draft",
    "load_model",
    "register_draft",
    "register_family",
    "register_rule",
    "theory",
]

xla_flags.set_flags()  # before anything makes a backend


def __getattr__(name: str) -> typing.Any:
    if name in _HOMES:
        globals()[name] = value = getattr(importlib.import_module(_HOMES[name]), name)
        return value
    if name == "theory":
        return importlib.import_module("decoding.theory")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
