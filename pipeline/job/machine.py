"""The machine that a job runs on: what its manifest and a measurement say of it."""

import importlib.metadata
import platform
from collections.abc import Iterable


def processor() -> str:
    """The processor's name as the system tells it, or the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Python's version and those of `distributions`; None of one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in distributions}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
