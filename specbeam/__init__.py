"""Text in, text out: exact speculative decoding from Python, and the rows that jobs leave.

    import specbeam

    model = specbeam.load("models/flan-t5-xl", draft="models/flan-t5-small")
    for row in model.generate(["translate English to German: A small house."], gamma="auto", temperature=0.0):
        print(row.text, row.finish_reason)
    table = specbeam.read("out/quickstart")

Jobs over whole data sets are the command's: `specbeam generate --config=...`; see `specbeam --help`. Importing this imports
neither JAX nor Beam: names are imported when they are asked for.
"""

import importlib
import typing

from decoding.version import __version__

if typing.TYPE_CHECKING:
    from specbeam.folders import read
    from specbeam.model import Model, Row, load

_HOMES = {"Model": "specbeam.model", "Row": "specbeam.model", "load": "specbeam.model", "read": "specbeam.folders"}

__all__ = ["Model", "Row", "__version__", "load", "read"]


def __getattr__(name: str) -> typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
