"""Flags that a job has besides its config: what is wrong with one is a ConfigError, as of a setting."""

import argparse
import difflib
from collections.abc import Mapping, Sequence

from decoding.version import __version__
from pipeline.settings.typed import ConfigError

JOB_FLAGS = ("config", "output", "allow_failed_shards", "allow_code_change", "dry_run", "help", "version")
"""Of every job that has a config."""

_CLOSE = 0.8  # likeness of a flag to one that was meant; no option of Beam's comes so near to one of ours


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would end the process, and for a flag that looks like one of its own."""

    def __init__(self, **kwargs):
        super().__init__(conflict_handler="resolve", **kwargs)  # a job may have a --version of its own
        self.add_argument("--version", action="version", version=version_text())

    def error(self, message: str):
        raise ConfigError(message)

    def parse_known_args(self, args=None, namespace=None):
        own, others = super().parse_known_args(args, namespace)
        names = [flag.removeprefix("--") for flag in self._option_string_actions]
        refuse_near(others, {name: name for name in (*names, *JOB_FLAGS)})
        return own, others


def version_text() -> str:
    """What `--version` says."""
    return f"specbeam {__version__}"


def refuse_near(args: Sequence[str], meant: Mapping[str, str]) -> None:
    """Refuses flags that are none of `meant` but look like one.

    Args:
      args: what is left of a command line.
      meant: by a flag's name, without dashes, what it should be written as.

    Raises:
      ConfigError: with what was meant.
    """
    for flag in (arg.partition("=")[0].removeprefix("--") for arg in args if arg.startswith("--")):
        if meant.get(flag) != flag and (close := difflib.get_close_matches(flag, meant, 1, _CLOSE)):
            raise ConfigError(f"'--{flag}' is not an option of this job; did you mean --{meant[close[0]]}?")


def number(name: str, text: str, convert: type, low: float, high: float = float("inf")):
    """The number that `--name` is, `convert`ed from its text: int or float. Raises ConfigError."""
    what = "a whole number" if convert is int else "a number"
    allowed = f"{what} of at least {low}" if high == float("inf") else f"{what} from {low} to {high}"
    try:
        value = convert(text)
    except ValueError as error:
        raise ConfigError(f"--{name} is {text!r}; allowed: {allowed}") from error
    if not low <= value <= high:
        raise ConfigError(f"--{name} is {text!r}; allowed: {allowed}")
    return value
