"""Flags that a job has besides its config: what is wrong with one is a ConfigError, as of a setting."""

import argparse

from pipeline.settings.typed import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would end the process."""

    def error(self, message: str):
        raise ConfigError(message)


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
