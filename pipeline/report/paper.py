"""The paper's own numbers, and which of them are of a setting of ours.

Leviathan, Kalman, Matias, *Fast Inference from Transformers via Speculative Decoding*, ICML 2023, arXiv 2211.17192.
"""

import re
from collections.abc import Mapping
from typing import Any

# α, γ, operations, speed; c = ĉ = 0.
TABLE_1 = (
    (0.6, 2, 1.53, 1.96),
    (0.7, 3, 1.58, 2.53),
    (0.8, 2, 1.23, 2.44),
    (0.8, 5, 1.63, 3.69),
    (0.9, 2, 1.11, 2.71),
    (0.9, 10, 1.60, 6.86),
)

# Task, draft, temperature, γ, α, c, predicted (Table 4), measured (Table 2). Target: T5 v1.1-XXL, batch 1, one TPU-v4.
TABLE_4 = (
    ("EnDe", "T5-small", 0, 7, 0.75, 0.02, 3.2, 3.4),
    ("EnDe", "T5-base", 0, 7, 0.80, 0.04, 3.3, 2.8),
    ("EnDe", "T5-large", 0, 7, 0.82, 0.11, 2.5, 1.7),
    ("EnDe", "T5-small", 1, 7, 0.62, 0.02, 2.3, 2.6),
    ("EnDe", "T5-base", 1, 5, 0.68, 0.04, 2.4, 2.4),
    ("EnDe", "T5-large", 1, 3, 0.71, 0.11, 2.0, 1.4),
    ("CNN/DM", "T5-small", 0, 5, 0.65, 0.02, 2.4, 3.1),
    ("CNN/DM", "T5-base", 0, 5, 0.73, 0.04, 2.6, 3.0),
    ("CNN/DM", "T5-large", 0, 3, 0.74, 0.11, 2.0, 2.2),
    ("CNN/DM", "T5-small", 1, 5, 0.53, 0.02, 1.9, 2.3),
    ("CNN/DM", "T5-base", 1, 3, 0.55, 0.04, 1.8, 2.2),
    ("CNN/DM", "T5-large", 1, 3, 0.56, 0.11, 1.6, 1.7),
)

# α by (target, task, draft): at temperature 0, at temperature 1.
TABLE_3 = {
    ("GPT-like 97M", "lm1b", "unigram"): (0.03, 0.03),
    ("GPT-like 97M", "lm1b", "bigram"): (0.05, 0.05),
    ("GPT-like 97M", "lm1b", "GPT-like 6M"): (0.88, 0.89),
    ("T5-XXL", "EnDe", "unigram"): (0.08, 0.07),
    ("T5-XXL", "EnDe", "bigram"): (0.20, 0.19),
    ("T5-XXL", "EnDe", "T5-small"): (0.75, 0.62),
    ("T5-XXL", "EnDe", "T5-base"): (0.80, 0.68),
    ("T5-XXL", "EnDe", "T5-large"): (0.82, 0.71),
    ("T5-XXL", "CNN/DM", "unigram"): (0.13, 0.08),
    ("T5-XXL", "CNN/DM", "bigram"): (0.23, 0.16),
    ("T5-XXL", "CNN/DM", "T5-small"): (0.65, 0.53),
    ("T5-XXL", "CNN/DM", "T5-base"): (0.73, 0.55),
    ("T5-XXL", "CNN/DM", "T5-large"): (0.74, 0.56),
}

# α with lenience, T5-XXL, EnDe, temperature 1, by draft and l.
LENIENCES = (1.0, 0.5, 0.3, 0.1)
TABLE_5 = {
    "unigram": (0.07, 0.10, 0.11, 0.16),
    "bigram": (0.19, 0.23, 0.25, 0.32),
    "T5-small": (0.62, 0.71, 0.76, 0.84),
    "T5-base": (0.68, 0.80, 0.83, 0.90),
}

# Shapes by which the paper's models are recognised, whatever their directories are called.
_SHAPES = {
    "T5-XXL": {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_decoder_layers": 24, "gated": True},
    "T5-small": {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "gated": True},
    "T5-base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12, "gated": True},
    "T5-large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_decoder_layers": 24, "gated": True},
    "GPT-like 97M": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "gated": False, "head_dim": 64},
    "GPT-like 6M": {"d_model": 256, "d_ff": 1024, "num_layers": 2, "num_heads": 4, "gated": False, "head_dim": 64},
}
_TASKS = {"EnDe": r"wmt.*(de[-_/]?en|en[-_/]?de)", "CNN/DM": r"cnn.?(dm|dailymail)", "lm1b": r"lm1b"}


def setting(target: Mapping[str, Any] | None, draft: Mapping[str, Any] | None, name: str, task: str) -> tuple | None:
    """The paper's (target, task, draft) that ours is, None where it is none.

    Args:
      target, draft: shapes, None where a model has none.
      name: of the draft, by which tables without a shape are told.
      task: what was decoded.
    """
    targets, drafts = _recognised(target), _recognised(draft)
    if draft is None:
        drafts = {name} & {"unigram", "bigram"}
    tasks = {paper for paper, pattern in _TASKS.items() if re.search(pattern, task, re.IGNORECASE)}
    found = [key for key in TABLE_3 if key[0] in targets and key[1] in tasks and key[2] in drafts]
    return found[0] if len(found) == 1 else None


def _recognised(shape: Mapping[str, Any] | None) -> set[str]:
    return {name for name, known in _SHAPES.items() if shape and all(shape.get(key) == known[key] for key in known)}
