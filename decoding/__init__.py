"""Exact speculative decoding in JAX, on its own: no Beam, no TensorFlow, no tokenisers."""

from decoding import theory
from decoding.checkpoints import CheckpointError, CheckpointInfo, inspect_checkpoint, load_model
from decoding.compilation import keep_programs
from decoding.config import DecodingConfig, Generation
from decoding.drafts import PromptLookupDraft, UniformDraft, load_draft
from decoding.engine import EngineReport, Generator
from decoding.models.ngram import NGramDraft

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "DecodingConfig",
    "EngineReport",
    "Generation",
    "Generator",
    "NGramDraft",
    "PromptLookupDraft",
    "UniformDraft",
    "inspect_checkpoint",
    "keep_programs",
    "load_draft",
    "load_model",
    "theory",
]
