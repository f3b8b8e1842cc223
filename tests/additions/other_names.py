"""A family of models: T5 under another `model_type`, its weights under other names and one of its keys too."""

from collections.abc import Mapping

import decoding
from decoding.checkpoints import hf_t5
from decoding.checkpoints.families import Family
from decoding.checkpoints.fill import Source
from decoding.models.t5 import T5Config


def parse_config(raw: Mapping, shown: str, tied: bool | None) -> T5Config:
    return hf_t5.parse_config({**raw, "model_type": "t5", "d_model": raw["width"]}, shown, tied)


def sources(config: T5Config) -> dict[str, Source]:
    return {
        path: source._replace(names=tuple(f"network.{name}" for name in source.names))
        for path, source in hf_t5.sources(config).items()
    }


decoding.register_family("other_names", Family(T5Config, parse_config, sources))
