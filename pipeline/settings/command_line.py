"""Typed settings of a job: a config file and its overrides become frozen dataclasses, or one clear message.

The file is a module with `get_config()` (see configs/). Overrides are `--config.path.to.setting=value`. Whatever the
job does not know itself is a Beam option and is passed on.
"""

import ast
import dataclasses
import difflib
import os
import pathlib
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

import configs
from decoding import hub
from decoding.registry import DRAFTS, drafts_of
from pipeline.settings.flags import JOB_FLAGS, refuse_near
from pipeline.settings.sections import JobConfig
from pipeline.settings.typed import ConfigError, build, check_names, describe, documented, dotted
from transforms.inputs import format_of
from transforms.storage import carries_credential, is_remote, placeholder_in, without_query

_PRESETS = pathlib.Path(configs.__file__).resolve().parent
_EXAMPLES = _PRESETS.parent / "examples"  # of a checkout; an installed package has none


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
    args = [_find_preset(arg) for arg in _joined(args)]
    args = sorted(args, key=lambda arg: not arg.startswith("--config="))  # the file comes before what overrides it
    allowed = _check_overrides(args)
    overridden = {*allowed}
    file = next((arg.partition("=")[2] for arg in args if arg.startswith("--config=")), "")
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
    except (Exception, SystemExit) as error:  # absl, ml_collections and the config file itself raise whatever they like
        message = _told(error, file)
        hints = [f"; allowed: {types_}" for flag, types_ in allowed.items() if f"{flag}=" in message]
        raise ConfigError(message + "".join(hints)) from error
    _refuse_strays(rest)
    if settings is None:
        raise ConfigError("--config is missing; give a config file, for example --config=configs/quickstart.py")
    if not values.output:
        raise ConfigError("--output is missing; give a folder for the results, local or gs://")
    for name in ("--config", "--output"):  # a misspelt override must not become a Beam option
        if stray := [arg for arg in rest if arg.partition("=")[0] == name or arg.startswith(f"{name}.")]:
            raise ConfigError(f"{stray[0]!r} is not understood; overrides are written --config.path.to.setting=value")
    config = resolve_paths(build(JobConfig, _adapted(settings, overridden)))
    _refuse_absent_examples(config)
    return CommandLine(
        config=config,
        output=absolute(values.output),
        allow_failed_shards=values.allow_failed_shards,
        allow_code_change=values.allow_code_change,
        dry_run=values.dry_run,
        beam_args=(*rest, "--dry_run=True") if values.dry_run else tuple(rest),  # Beam has an option of that name
    )


def _joined(args: Sequence[str]) -> list[str]:
    """`args` with `--config FILE` and `--output DIR` as one argument each."""
    joined: list[str] = []
    for arg in args:
        if joined and joined[-1] in ("--config", "--output") and not arg.startswith("-"):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def _find_preset(arg: str) -> str:
    """`--config=FILE`, checked; a preset's name as in a checkout, configs/NAME.py, means the installed one elsewhere.

    Raises:
      ConfigError: there is no such file.
    """
    flag, _, value = arg.partition("=")
    path, colon, argument = value.partition(":")
    if flag == "--config" and not path:
        raise ConfigError("--config has no value; give a config file, for example --config=configs/quickstart.py")
    if flag != "--config" or os.path.isfile(path):
        return arg
    preset = _PRESETS / path.removeprefix("configs/")
    if path.startswith("configs/") and preset.is_file():
        return f"{flag}={preset}{colon}{argument}"
    names = sorted(f"configs/{found.name}" for found in _PRESETS.glob("[a-z]*.py"))
    close = difflib.get_close_matches(path, names, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    what = "is a directory" if os.path.isdir(path) else "does not exist"
    raise ConfigError(f"--config is {path!r}, which {what}; {hint}allowed: a Python file with get_config(), or of the presets "
                      f"{', '.join(names)}")  # fmt: skip


def _told(error: BaseException, file: str) -> str:
    """What is wrong, of which ml_collections tells with a traceback where the config file raises."""
    message = str(error).strip()
    if "Traceback (most recent call last)" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    elif "failure to load: " in message or not isinstance(error, flags.Error):
        message = message.rpartition("failure to load: ")[2].replace("module 'config_config'", "it")
    else:
        return _one_line(message) or type(error).__name__
    return f"--config is {file!r}, which cannot be read: {_one_line(message)}"


def _refuse_strays(rest: Sequence[str]) -> None:
    """Refuses flags that are none of the job's but look like one, or like a setting without its path.

    Args:
      rest: what would be Beam's.

    Raises:
      ConfigError: with what was meant.
    """
    settings = {path.rpartition(".")[2]: f"config.{path}" for path in _paths(JobConfig)}
    refuse_near(rest, {name: name for name in JOB_FLAGS} | settings)


def _paths(cls: type, path: str = "") -> Iterator[str]:
    """Of every setting, dotted."""
    types_ = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = dotted(path, field.name)
        yield from _paths(types_[field.name], inner) if dataclasses.is_dataclass(types_[field.name]) else [inner]


def _adapted(settings: Mapping[str, Any], overridden: set[str]) -> Mapping[str, Any]:
    """`settings` without what a config file says of another input, target or draft than the command line names.

    A text file has no fields, so that those of the file's own input do not apply to it; nor does its draft vocabulary, which
    is one of its target's pieces, to another target; nor its γ where the draft is set to nothing: that is plain decoding.
    """
    input_, model, decoding = ({**section} if isinstance(section := settings.get(name, {}), Mapping) else None
                               for name in ("input", "model", "decoding"))  # fmt: skip
    if None in (input_, model, decoding):
        return settings
    if overridden & {"--config.input.pattern", "--config.input.format"} and _is_text(input_):
        for name in ("input_field", "target_field", "id_field"):
            if f"--config.input.{name}" not in overridden:
                input_.pop(name, None)
    if "--config.model.target" in overridden and "--config.model.draft_vocabulary" not in overridden:
        model.pop("draft_vocabulary", None)
    if not model.get("draft_vocabulary", "") and "--config.model.draft_vocabulary_size" not in overridden:
        model.pop("draft_vocabulary_size", None)
    given = "--config.decoding.gamma" in overridden or ("gamma" in decoding and "--config.model.draft" not in overridden)
    hinted = input_.get("hint_field") or input_.get("hint_folder")  # then a draft copies from them
    if not model.get("draft", "") and not given and not hinted:
        decoding["gamma"] = 0
    return {**settings, "input": input_, "model": model, "decoding": decoding} if settings else settings


def _is_text(input_: Mapping[str, Any]) -> bool:
    pattern = input_.get("pattern") or ""
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    return (input_.get("format") or {format_of(str(one)) for one in patterns}) in ("text", {"text"})


def _refuse_absent_examples(config: JobConfig) -> None:
    """Presets name samples that lie beside them in the repository; an installed package comes without."""
    model = config.model
    for setting, path in [*(("input.pattern", path) for path in config.input.patterns),
                          ("model.target", model.target), ("model.draft", model.draft),
                          ("model.draft_vocabulary", model.draft_vocabulary)]:  # fmt: skip
        if path.startswith(f"{_EXAMPLES}{os.sep}") and not _EXAMPLES.is_dir():
            name = os.path.relpath(path, _EXAMPLES.parent)
            raise ConfigError(
                f"{setting} is {name!r}, which comes with SpecBeam's repository and not with the installed package; allowed: "
                f"a path of your own, as --config.{setting}=..., or the command in a checkout"
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
    own += ["  --help  This text.", "  --version  The version."]
    head = "Settings; all other flags are Beam's:"
    return "\n".join([about.rstrip(), "", "Flags:", *own, "", head, *_settings(JobConfig, "config")])


def _settings(cls: type, path: str) -> Iterator[str]:
    types_, meanings = typing.get_type_hints(cls), documented(cls)
    for field in dataclasses.fields(cls):
        name, expected = f"{path}.{field.name}", types_[field.name]
        if dataclasses.is_dataclass(expected):
            yield from _settings(expected, name)
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = "required" if default is dataclasses.MISSING else f"default {default!r}"
        yield f"  --{name}  {describe(expected)}; {shown}"
        yield from textwrap.wrap(meanings[field.name], 110, initial_indent="      ", subsequent_indent="      ")


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
    several types, like decoding.gamma, a number or "auto", and those of `score` and `distill`, which files need not have.

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
        if not isinstance(cls, types.UnionType) and (path[0] not in ("score", "distill") or flag == arg):
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
            hint_folder=absolute(input_.hint_folder),
        ),
        model=dataclasses.replace(
            model, target=model_path(model.target), draft=draft_path(model.draft), tokenizer=model_path(model.tokenizer),
            draft_vocabulary=absolute(model.draft_vocabulary),
        ),
        score=dataclasses.replace(
            config.score,
            generations=absolute(config.score.generations),
            drafts={name: draft_path(path) for name, path in config.score.drafts.items()},
        ),
        distill=dataclasses.replace(
            config.distill,
            generations=tuple(map(absolute, config.distill.folders)),
            start=config.distill.start if config.distill.start in ("layers", "new") else model_path(config.distill.start),
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
        ("input.hint_folder", config.input.hint_folder),
        *((f"model.{name}", getattr(config.model, name)) for name in ("target", "draft", "tokenizer", "draft_vocabulary")),
        ("score.generations", config.score.generations),
        *((f"score.drafts.{name}", path) for name, path in config.score.drafts.items()),
        *(("distill.generations", path) for path in config.distill.folders),
        ("distill.start", config.distill.start),
    ]
    for setting, path in paths:
        if found := placeholder_in(path):
            raise ConfigError(f"{setting} is {path!r}, with the placeholder {found!r} in it; allowed: a path of your own")


def draft_path(draft: str) -> str:
    """A directory made absolute; the name of a draft that has none as it is."""
    return ",".join(one if one in DRAFTS else model_path(one) for one in drafts_of(draft))


def model_path(path: str) -> str:
    """A directory or file made absolute; an id of the hub as it is."""
    return path if hub.is_id(path) else absolute(path)


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


def _one_line(message: str) -> str:
    return " ".join(message.split())
