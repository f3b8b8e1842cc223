"""A job's models of the hub by commit: what a launch resolves once, and all of its workers then read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from decoding import hub
from decoding.registry import DRAFTS, drafts_of
from pipeline.settings import ConfigError, JobConfig
from transforms.folder import read_manifest
from transforms.storage import MANIFEST, OutputFolder


def pin_models(config: JobConfig, output: str = "") -> JobConfig:
    """`config` with every id of the hub at its commit.

    A folder that was begun keeps an id without a revision at the commit that it was begun with, whatever has been published
    since: the same command finishes it.

    Raises:
      ConfigError: a model that cannot be had, with its setting.
    """
    begun = {}
    if output and any(_is_open(path) for _, path in _models(config)):
        folder = OutputFolder(output)
        manifest = read_manifest(folder) if folder.exists(MANIFEST) else None
        begun = manifest.config if manifest else {}

    def pinned(setting: str, path: str) -> str:
        if path in DRAFTS:
            return path
        if setting != "distill.start" and len(names := drafts_of(path)) > 1:
            return ",".join(pinned(setting, one) for one in names)
        frozen = _at(begun, setting)
        if _is_open(path) and isinstance(frozen, str) and frozen.startswith(f"{path}@"):
            path = frozen
        try:
            return hub.pin(path)
        except hub.HubError as error:
            raise ConfigError(f"{setting}: {error}") from error

    found = {setting: pinned(setting, path) for setting, path in _models(config)}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **{name: found[f"model.{name}"] for name in _NAMES}),
        score=dataclasses.replace(
            config.score, drafts={name: found[f"score.drafts.{name}"] for name in config.score.drafts}
        ),
        distill=dataclasses.replace(config.distill, start=found["distill.start"]),
    )


_NAMES = ("target", "draft", "tokenizer")


def _models(config: JobConfig) -> list[tuple[str, str]]:
    return [
        *((f"model.{name}", getattr(config.model, name)) for name in _NAMES),
        *((f"score.drafts.{name}", path) for name, path in config.score.drafts.items()),
        ("distill.start", config.distill.start),
    ]


def _is_open(path: str) -> bool:
    """Whether it is an id that leaves the revision open."""
    return hub.is_id(path) and "@" not in path


def _at(config: Mapping[str, Any], setting: str) -> Any:
    value: Any = config
    for name in setting.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
