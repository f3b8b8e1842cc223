"""Typed settings of a job: a config file and its overrides become frozen dataclasses, or one clear message.

The file is a module with `get_config()` (see configs/). Overrides are `--config.path.to.setting=value`. Whatever the
job does not know itself is a Beam option and is passed on.
"""

import ast
import dataclasses
import os
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from decoding.registry import DRAFTS
from pipeline.settings.sections import JobConfig
from pipeline.settings.typed import ConfigError, build, check_names, describe, dotted
from transforms.storage import carries_credential, is_remote, placeholder_in, without_query


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """A parsed command line: the job's settings and output folder, its own flags, and the options left for Beam."""

    config: JobConfig
    output: str
    allow_failed_shards: int
    allow_code_change: bool
    dry_run: bool
    beam_args: tuple[str, ...]


def parse_command_line(args: Sequence[str]) -> CommandLine:
    """Parses `args`, which exclude the program's name.

    Raises:
      ConfigError: with the setting, its value and what is allowed.
    """
    args = sorted(args, key=lambda arg: not arg.startswith("--config="))  # the file comes before what overrides it
    allowed = _check_overrides(args)
    args, taken = _take_overrides(args)
    values = _flags(args)
    try:
        rest = values(["", *args], known_only=True)[1:]
        settings = values.config and values.config.to_dict()
        for path, value in taken.items() if settings else ():
            *sections, name = path.split(".")
            inner = settings
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[name] = value
    except Exception as error:  # absl, ml_collections and the config file itself raise whatever they like
        message = _one_line(error)
        hints = [f"; allowed: {types_}" for flag, types_ in allowed.items() if f"{flag}=" in message]
        raise ConfigError(message + "".join(hints)) from error
    if settings is None:
        raise ConfigError("--config is missing; give a config file, for example --config=configs/quickstart.py")
    if not values.output:
        raise ConfigError("--output is missing; give a folder for the results, local or gs://")
    for name in ("--config", "--output"):  # a misspelt override must not become a Beam option
        if stray := [arg for arg in rest if arg.startswith(name)]:
            raise ConfigError(f"{stray[0]!r} is not understood; overrides are written --config.path.to.setting=value")
    return CommandLine(
        config=resolve_paths(build(JobConfig, settings)),
        output=absolute(values.output),
        allow_failed_shards=values.allow_failed_shards,
        allow_code_change=values.allow_code_change,
        dry_run=values.dry_run,
        beam_args=(*rest, "--dry_run=True") if values.dry_run else tuple(rest),  # Beam has an option of that name
    )


def _flags(args: Sequence[str]) -> flags.FlagValues:
    """The flags of a job, with one for every setting that `args` override."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file with get_config().",
        lock_config=False,
        accept_new_attributes=True,
        flag_values=values,
        sys_argv=["", *args],
    )
    flags.DEFINE_string("output", "", "Output folder, local or on gs://.", flag_values=values)
    flags.DEFINE_integer("allow_failed_shards", 0, "Exit with 0 if at most so many shards fail.", flag_values=values)
    flags.DEFINE_boolean("allow_code_change", False, "Resume although the code has changed.", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "Prepare the job, and do not run it.", flag_values=values)
    return values


def help_text(about: str) -> str:
    """What `--help` of a job says: `about`, its own flags, and every setting with what it may be and its default."""
    values = _flags(())
    own = [f"  --{name}  {values[name].help}" for name in sorted(values)]
    head = "Settings, described in pipeline/settings/sections.py and decoding/config.py; all other flags are Beam's:"
    return "\n".join([about.rstrip(), "", "Flags:", *own, "", head, *_settings(JobConfig, "config")])


def _settings(cls: type, path: str) -> Iterator[str]:
    types_ = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, expected = f"{path}.{field.name}", types_[field.name]
        if dataclasses.is_dataclass(expected):
            yield from _settings(expected, name)
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = "required" if default is dataclasses.MISSING else f"default {default!r}"
        yield f"  --{name}  {describe(expected)}; {shown}"


def _check_overrides(args: Sequence[str]) -> dict[str, str]:
    """Refuses an override of a setting that does not exist. Returns what each overridden setting allows, by flag."""
    allowed = {}
    for arg in args:
        flag = arg.split("=", 1)[0]
        if not flag.startswith("--config."):
            continue
        names, cls = flag.removeprefix("--config.").split("."), JobConfig
        for depth, name in enumerate(names):
            path = ".".join(names[:depth])
            check_names(cls, [name], path)
            cls = typing.get_type_hints(cls)[name]
            if typing.get_origin(cls) is dict:
                break
            if not dataclasses.is_dataclass(cls) and depth + 1 < len(names):
                raise ConfigError(f"unknown setting {'.'.join(names)!r}: {dotted(path, name)} is one value")
        allowed[flag] = describe(cls)
    return allowed


def _take_overrides(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes out the overrides that config flags cannot parse, since they go by the file's own value alone: settings of
    several types, like decoding.gamma, a number or "auto", and those of `score`, which files need not have.

    Returns:
      The other arguments, and the values taken by path: Python literals, or text as it is.
    """
    others, taken = [], {}
    for arg in args:
        flag, _, text = arg.partition("=")
        path = flag.removeprefix("--config.").split(".")
        cls = JobConfig
        for name in path if flag != arg and flag.startswith("--config.") else ():
            cls = typing.get_type_hints(cls).get(name) if dataclasses.is_dataclass(cls) else cls
        if not isinstance(cls, types.UnionType) and (path[0] != "score" or flag == arg):
            others.append(arg)
            continue
        is_text = cls is str or typing.get_args(cls) == (str, str)
        try:
            taken[".".join(path)] = text if is_text else ast.literal_eval(text)
        except (SyntaxError, ValueError):
            taken[".".join(path)] = text
    return others, taken


def resolve_paths(config: JobConfig) -> JobConfig:
    """`config` with absolute paths, so that workers started elsewhere find the same files."""
    input_, model = config.input, config.model
    patterns = tuple(absolute(pattern) for pattern in input_.patterns)
    return dataclasses.replace(
        config,
        input=dataclasses.replace(
            input_,
            pattern=patterns[0] if isinstance(input_.pattern, str) else patterns,
            data_dir=absolute(input_.data_dir),
        ),
        model=dataclasses.replace(
            model, target=absolute(model.target), draft=draft_path(model.draft), tokenizer=absolute(model.tokenizer)
        ),
        score=dataclasses.replace(
            config.score,
            generations=absolute(config.score.generations),
            drafts={name: draft_path(path) for name, path in config.score.drafts.items()},
        ),
    )


def refuse_placeholders(command: CommandLine) -> None:
    """Refuses paths with something in them that was to be filled in, as presets have it, before anybody is asked about them.

    Raises:
      ConfigError: with the setting, its value and the placeholder.
    """
    config = command.config
    paths = [
        ("--output", command.output),
        *(("input.pattern", pattern) for pattern in config.input.patterns),
        ("input.data_dir", config.input.data_dir),
        *((f"model.{name}", getattr(config.model, name)) for name in ("target", "draft", "tokenizer")),
        ("score.generations", config.score.generations),
        *((f"score.drafts.{name}", path) for name, path in config.score.drafts.items()),
    ]
    for setting, path in paths:
        if found := placeholder_in(path):
            raise ConfigError(f"{setting} is {path!r}, with the placeholder {found!r} in it; allowed: a path of your own")


def draft_path(draft: str) -> str:
    """A directory made absolute; the name of a draft that has none as it is."""
    return draft if draft in DRAFTS else absolute(draft)


def absolute(path: str) -> str:
    """`path` made absolute where it is local; "" stays "".

    Raises:
      ConfigError: a URL that carries a credential, or a name that is not UTF-8. What is in the config is in the manifest.
    """
    if path != path.encode(errors="replace").decode():
        raise ConfigError(f"{path!r} is not UTF-8; allowed: a path that is, rename the file or link to it")
    if carries_credential(path):
        raise ConfigError(
            f"{without_query(path)!r} was given with a query or a password in it, which the manifest would keep; "
            "allowed: a plain path, local or gs://, and credentials from the environment"
        )
    return os.path.abspath(os.path.expanduser(path)) if path and not is_remote(path) else path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
