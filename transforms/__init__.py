"""Beam transforms of a decoding job: read and tokenise work shards, decode them, commit them, add up what they did.

The public names are imported when they are first asked for, so that settings are read without waiting for Beam.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from transforms.decode import DecodeFailure, Prompt, SpeculativeModelHandler

__all__ = ["DecodeFailure", "Prompt", "SpeculativeModelHandler"]


def __getattr__(name: str) -> typing.Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module("transforms.decode"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
