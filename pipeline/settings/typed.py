"""Nested mappings become dataclasses, or one clear message of the setting, its value and what is allowed."""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


class ConfigError(ValueError):
    """A setting that stops the job before anything is loaded."""


def build(cls: type, values: Mapping[str, Any], path: str = "") -> Any:
    """Makes the dataclass `cls` of nested mappings, checking names and types.

    Args:
      cls: a dataclass; fields that are dataclasses themselves are built from mappings.
      values: settings by field name; fields with a default may be left out.
      path: of `cls` in the whole config, for messages.

    Raises:
      ConfigError: an unknown, missing or ill-typed setting, or one that `cls` itself refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'} is {values!r}; allowed: settings named {', '.join(fields)}")
    check_names(cls, values, path)
    types_ = typing.get_type_hints(cls)
    built = {}
    for name, field in fields.items():
        if name in values:
            built[name] = _convert(values[name], types_[name], dotted(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"the setting {dotted(path, name)!r} is missing; it has no default")
    try:
        return cls(**built)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def _convert(value: Any, expected: Any, path: str) -> Any:
    if value is None:  # as a preset has where only its user can know
        raise ConfigError(f"{path} has no value; allowed: {describe(expected)}, as --config.{path}=...")
    if dataclasses.is_dataclass(expected):
        return build(expected, value, path)
    for option in _options(expected):
        if typing.get_origin(option) is dict:
            item = typing.get_args(option)[1]
            if isinstance(value, Mapping) and all(isinstance(n, str) and _is_a(one, item) for n, one in value.items()):
                return dict(value)
        elif typing.get_origin(option) is tuple:
            item = typing.get_args(option)[0]
            if isinstance(value, list | tuple) and all(_is_a(one, item) for one in value):
                return tuple(float(one) if item is float else one for one in value)
        elif _is_a(value, option):
            return float(value) if option is float else value
    raise ConfigError(f"{path} is {value!r}; allowed: {describe(expected)}")


def check_names(cls: type, names: Iterable[str], path: str) -> None:
    """Raises ConfigError where one of `names` is no field of the dataclass `cls`, which stands at `path`."""
    known = [field.name for field in dataclasses.fields(cls)]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ";"
            raise ConfigError(
                f"unknown setting {dotted(path, name)!r}{hint} allowed in {path or 'the config'}: {', '.join(known)}"
            )


def documented(cls: type) -> dict[str, str]:
    """What a dataclass's docstring says of each of its fields, under "Attributes:"; a line may name several."""
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    for line in attributes.partition("\n\n")[0].splitlines():
        begun = re.fullmatch(r"  (\w+(?:, \w+)*): (.*)", line)
        if begun:
            names = begun[1].split(", ")
            found |= dict.fromkeys(names, begun[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def require(condition: bool, setting: str, value: Any, allowed: str) -> None:
    """Raises ConfigError with the setting, its value and what is allowed, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{setting} is {value!r}; allowed: {allowed}")


def dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else str(name)


def describe(expected: Any) -> str:
    """What a setting of this type may be, for people."""
    if dataclasses.is_dataclass(expected):
        return f"settings named {', '.join(field.name for field in dataclasses.fields(expected))}"
    return " or ".join(map(_type_name, _options(expected)))


def _options(expected: Any) -> tuple:
    return typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)


def _is_a(value: Any, expected: type) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def _type_name(expected: Any) -> str:
    if typing.get_origin(expected) is tuple:
        return f"a list, each {_type_name(typing.get_args(expected)[0])}"
    if typing.get_origin(expected) is dict:
        return f"named values, each {_type_name(typing.get_args(expected)[1])}"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(expected, str(expected))
