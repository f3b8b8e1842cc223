"""What a format makes of a path before any weight is read."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from decoding.models.base import Shape


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and whose shape is known.

    Attributes:
      raw: its config in Hugging Face's keys, from which `config` was parsed.
      config: shape of the model.
      weight_files: paths of the files with weights.
      parameters: reads the weights: NumPy dtype -> path and value of each parameter, one at a time. Given None, in the
        file's own form: arrays of its dtype, or `gguf.Blocks`.
    """

    raw: dict
    config: Shape
    weight_files: tuple[str, ...]
    parameters: Callable[[np.dtype], Iterator[tuple[str, np.ndarray]]]
