"""What a family of models is to those who read checkpoints; `decoding.registry` has them by name."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from decoding.checkpoints.fill import Source
from decoding.models.base import Shape

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Family:
    """What a `model_type` stands for.

    Attributes:
      config: class of its shapes; `config.build` makes a model.
      parse_config: (a config in Hugging Face's keys, where it comes from, whether the weights say that the head is tied or
        None) -> shape.  Raises CheckpointError for what is not supported and KeyError for a key that is missing.
      sources: shape -> the source of each of our parameters, by its path, under Hugging Face's names; None where the
        family has no such weights.
      ignored: shape -> names in such a checkpoint that need no place in the model.
      t5x: (config, shape, shapes of the arrays by name, where they are) -> config, shape and sources under T5X's names,
        the first two as the arrays show them; None where T5X has no such network.
      embedding: shape -> names that the one embedding may have in Hugging Face's files; empty where it has one name, or is
        not one.
    """

    config: type[Shape]
    parse_config: Callable[[Mapping, str, bool | None], Shape]
    sources: Callable[[Shape], dict[str, Source]] | None = None
    ignored: Callable[[Shape], Iterable[str]] = lambda config: ()
    t5x: Callable[[Mapping, Shape, Shapes, str], tuple[Mapping, Shape, dict[str, Source]]] | None = None
    embedding: Callable[[Shape], tuple[str, ...]] = lambda config: ()
