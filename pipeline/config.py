"""Typed settings of a job: a config file and its overrides become frozen dataclasses, or one clear message.

The file is a module with `get_config()` (see configs/). Overrides are `--config.path.to.setting=value`. Whatever the
job does not know itself is a Beam option and is passed on.
"""

import ast
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from decoding import DecodingConfig
from decoding.drafts import PROMPT_LOOKUP, UNIFORM
from decoding.sharding import parse_mesh
from transforms.inputs import FILE_FORMATS, FORMATS, format_of
from transforms.inputs.base import Cut, InputSpec, RecordFields
from transforms.storage import carries_credential, is_remote, without_query

NAMED_DRAFTS = (PROMPT_LOOKUP, UNIFORM)
"""Drafts that are a way of proposing rather than a directory."""


class ConfigError(ValueError):
    """A setting that stops the job before anything is loaded."""


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """What is read; docs/inputs.md has the formats.

    Attributes:
      pattern: of formats of files: a path or glob, or several; local or on gs://. Plain or gzip, told by content.
      input_field: the field that holds the text; a dotted path where it lies deeper. "" where the format has one field
        ("text") and for SeqIO ("inputs_pretokenized").
      target_field: the field that holds the reference, "" for none. Records without it have no reference.
      id_field: the field that holds a unique id (text or whole number), "" to name examples by file and record number.
      prefix: put before every text, as the task asks ("translate English to German: "). A SeqIO task has its own.
      chat_template: makes prompts for an instruct model: "model" for the template that comes with it, or Jinja source;
        "" for none. A text may then also be a list of turns; see transforms/chat.py.
      empty: of a text that is empty: "error", or "start" to decode from the start token alone (decoder-only models).
      format: "jsonl", "text", "csv", "parquet" or "tfrecord"; "tfds" for a prepared data set; "seqio" for a task or a
        mixture; "" to tell by the pattern's ending.
      delimiter: between the fields of a CSV file.
      name: of the TFDS data set ("wmt14_translate/de-en:1.0.0"; "" where data_dir is one), or of the SeqIO task.
      split: of the data set or task; TFDS's may be slices ("test[:1000]").
      data_dir: where TFDS finds prepared data sets, local or on gs://; "" for its default.
      module: Python module whose import registers the SeqIO task, where SpecBeam does not.
    """

    pattern: str | tuple[str, ...] = ""
    input_field: str = ""
    target_field: str = ""
    id_field: str = ""
    prefix: str = ""
    chat_template: str = ""
    empty: str = "error"
    format: str = ""
    delimiter: str = ","
    name: str = ""
    split: str = ""
    data_dir: str = ""
    module: str = ""

    def __post_init__(self):
        allowed = ", ".join(f'"{name}"' for name in FORMATS)
        _require(self.format in ("", *FORMATS), "input.format", self.format, f'{allowed}, or "" to tell by the file name')
        of_files = self.format in ("", *FILE_FORMATS)
        if of_files:
            ok = bool(self.pattern) and all(self.patterns)
            _require(ok, "input.pattern", self.pattern, "a path or glob, or several")
            formats = {format_of(pattern) for pattern in self.patterns}
            told = bool(self.format) or (len(formats) == 1 and None not in formats)
            _require(told, "input.format", self.format, f"{allowed}: input.pattern {self.pattern!r} does not tell it")
        else:
            _require(not self.pattern, "input.pattern", self.pattern, f'"" with input.format {self.format!r}')
            _require(bool(self.split), "input.split", self.split, "the name of a split, for example test")
            ok = bool(self.name) or (self.format == "tfds" and bool(self.data_dir))
            _require(ok, "input.name", self.name, "the name of a data set, task or mixture")
            ok = not self.prefix or self.format == "tfds"
            _require(ok, "input.prefix", self.prefix, '"" for SeqIO: a task puts its own')
        _require(self.empty in ("error", "start"), "input.empty", self.empty, '"error" or "start"')
        ok = not self.chat_template or self.format != "seqio"
        _require(ok, "input.chat_template", self.chat_template, '"" for SeqIO: a task makes its own prompts')
        for setting, formats in (("name", ("tfds", "seqio")), ("split", ("tfds", "seqio")), ("module", ("seqio",)),
                                 ("data_dir", ("tfds", "seqio"))):  # fmt: skip
            ok = not getattr(self, setting) or self.resolved_format in formats
            _require(ok, f"input.{setting}", getattr(self, setting), f'"" with input.format {self.resolved_format!r}')
        _require(bool(self.fields.inputs), "input.input_field", self.input_field, "the name of a field")
        ok = self.resolved_format != "text" or self.fields.names() == ["text"]
        _require(ok, "input.format", self.format, 'one that has fields: of text, each line is an input, its field "text"')
        _require(len(self.delimiter) == 1, "input.delimiter", self.delimiter, "one character")

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.pattern,) if isinstance(self.pattern, str) else self.pattern

    @property
    def resolved_format(self) -> str:
        """`format`, or the one that the pattern's ending tells."""
        return self.format or format_of(self.patterns[0])

    @property
    def fields(self) -> RecordFields:
        default = {"text": "text", "seqio": "inputs_pretokenized"}.get(self.resolved_format, "")
        return RecordFields(self.input_field or default, self.target_field, self.id_field)

    def spec(self, tokenizer: str) -> InputSpec:
        """What planning and workers need. `tokenizer` is the file of the target's tokeniser."""
        return InputSpec(
            self.resolved_format, self.fields, self.patterns if self.pattern else (), self.name, self.split, self.data_dir,
            self.module, tokenizer if self.resolved_format == "seqio" else "", self.delimiter,
        )  # fmt: skip

    def __str__(self) -> str:
        if self.pattern:
            return f"input.pattern is {self.pattern!r}"
        return f"input.name is {self.name!r}, input.split {self.split!r}, input.data_dir {self.data_dir!r}"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which models.

    Attributes:
      target: directory of the target model, local or on gs://.
      draft: directory of the draft model or of an n-gram, "prompt_lookup", "uniform", or "" for plain decoding; see
        docs/drafts.md.
      tokenizer: directory or file of the tokeniser, "" for the target's directory.
      dtype: of the parameters: "float32" or "bfloat16".
      vocab_size: how many tokens may occur, where models are padded beyond their tokeniser's; 0 for all, or where target
        and draft are padded differently for those that are not padding.
      prompt_lookup_max_ngram, prompt_lookup_min_ngram: how many of the last tokens prompt lookup matches.
      mesh: how a worker's devices share the work: "data:2,model:4" for two groups of slots, each with the target split over
        four devices; the draft is on all of them. "" for one device. See docs/tpu.md.
    """

    target: str
    draft: str = ""
    tokenizer: str = ""
    dtype: str = "float32"
    vocab_size: int = 0
    prompt_lookup_max_ngram: int = 3
    prompt_lookup_min_ngram: int = 1
    mesh: str = ""

    def __post_init__(self):
        try:
            parse_mesh(self.mesh or "model:1")
        except ValueError:
            _require(False, "model.mesh", self.mesh, '"", or numbers of at least 1, as in "data:2,model:4"')
        _require(bool(self.target), "model.target", self.target, "the directory of a model")
        _require(self.dtype in ("float32", "bfloat16"), "model.dtype", self.dtype, '"float32" or "bfloat16"')
        _require(self.vocab_size >= 0, "model.vocab_size", self.vocab_size, "at least 0; 0 for all")
        least, most = self.prompt_lookup_min_ngram, self.prompt_lookup_max_ngram
        _require(least >= 1, "model.prompt_lookup_min_ngram", least, "at least 1")
        allowed = f"at least model.prompt_lookup_min_ngram, {least}"
        _require(most >= least, "model.prompt_lookup_max_ngram", most, allowed)


@dataclasses.dataclass(frozen=True)
class ShardsConfig:
    """How the input is cut.

    Attributes:
      examples_per_shard: records in a work shard, the unit of committing and resuming.
      bytes_per_shard: 0, or bytes in a work shard of an uncompressed JSON lines or text file, which then is not read at
        launch: for inputs of terabytes. Examples are named by the byte at which they begin.
      baseline_fraction: share of the shards that are decoded plainly, chosen by hash of their number, so that
        `pipeline.analyze` can tell the speedup within this very job. Greedy outputs are the same, sampled ones have the
        same law.
    """

    examples_per_shard: int = 256
    bytes_per_shard: int = 0
    baseline_fraction: float = 0.0

    @property
    def cut(self) -> Cut:
        return Cut(self.examples_per_shard, self.bytes_per_shard)

    def __post_init__(self):
        _require(self.examples_per_shard >= 1, "shards.examples_per_shard", self.examples_per_shard, "at least 1")
        size = self.bytes_per_shard
        _require(size == 0 or size >= 1024, "shards.bytes_per_shard", size, "0, or at least 1024")
        fraction = self.baseline_fraction
        _require(0 <= fraction <= 1, "shards.baseline_fraction", fraction, "a number from 0 to 1; 0 is none")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """What `pipeline.score` scores; other jobs do not look at it.

    Attributes:
      generations: folder of a finished `pipeline.generate` run whose texts are scored, "" for the input's references.
      drafts: what is scored, by the name that it has in the output: a directory of a model or of an n-gram, or what
        else `model.draft` may be. Empty for `model.draft` alone, named "draft".
      lenience: values l of section A.5 of the paper that β is reported under as well.
      batch_tokens: tokens that are scored in one pass, about. A pass holds two arrays of so many rows of the vocabulary.
    """

    generations: str = ""
    drafts: dict[str, str] = dataclasses.field(default_factory=dict)
    lenience: tuple[float, ...] = (0.5, 0.3, 0.1)
    batch_tokens: int = 512

    def __post_init__(self):
        for name, path in self.drafts.items():
            allowed = "names of letters, digits and underscores, not beginning with a digit"
            _require(name.isascii() and name.isidentifier(), "score.drafts", name, allowed)
            _require(bool(path), f"score.drafts.{name}", path, "what model.draft may be")
        distinct = len(set(self.lenience)) == len(self.lenience)
        ok = distinct and all(0 < value < 1 for value in self.lenience)
        _require(ok, "score.lenience", self.lenience, "distinct numbers between 0 and 1")
        _require(self.batch_tokens >= 1, "score.batch_tokens", self.batch_tokens, "at least 1")


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """Everything that `pipeline.generate` is told, the output folder and Beam's options aside."""

    input: InputConfig
    model: ModelConfig
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    shards: ShardsConfig = dataclasses.field(default_factory=ShardsConfig)
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)

    def __post_init__(self):
        size = self.shards.bytes_per_shard
        allowed = "0 where input.format is none of jsonl and text, or input.id_field is set: ids are checked at launch"
        ok = self.input.resolved_format in ("jsonl", "text") and not self.input.id_field
        _require(not size or ok, "shards.bytes_per_shard", size, allowed)
        gamma = self.decoding.gamma
        _require(
            bool(self.model.draft) or gamma == 0, "decoding.gamma", gamma, "0 where model.draft is empty (plain decoding)"
        )

    def to_json(self) -> dict:
        return dataclasses.asdict(self)


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
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Config file with get_config().", lock_config=False, accept_new_attributes=True,
        flag_values=values, sys_argv=["", *args],
    )  # fmt: skip
    flags.DEFINE_string("output", "", "Output folder, local or on gs://.", flag_values=values)
    flags.DEFINE_integer("allow_failed_shards", 0, "Exit with 0 if at most so many shards fail.", flag_values=values)
    flags.DEFINE_boolean("allow_code_change", False, "Resume although the code has changed.", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "Prepare the job, and do not run it.", flag_values=values)
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
            _check_names(cls, [name], path)
            cls = typing.get_type_hints(cls)[name]
            if typing.get_origin(cls) is dict:
                break
            if not dataclasses.is_dataclass(cls) and depth + 1 < len(names):
                raise ConfigError(f"unknown setting {'.'.join(names)!r}: {_dotted(path, name)} is one value")
        allowed[flag] = _allowed(cls)
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


def _check_names(cls: type, names: Iterable[str], path: str) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ";"
            raise ConfigError(
                f"unknown setting {_dotted(path, name)!r}{hint} allowed in {path or 'the config'}: {', '.join(known)}"
            )


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
    _check_names(cls, values, path)
    types_ = typing.get_type_hints(cls)
    built = {}
    for name, field in fields.items():
        if name in values:
            built[name] = _convert(values[name], types_[name], _dotted(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"the setting {_dotted(path, name)!r} is missing; it has no default")
    try:
        return cls(**built)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def _convert(value: Any, expected: Any, path: str) -> Any:
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
    raise ConfigError(f"{path} is {value!r}; allowed: {_allowed(expected)}")


def _options(expected: Any) -> tuple:
    return typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)


def _allowed(expected: Any) -> str:
    if dataclasses.is_dataclass(expected):
        return f"settings named {', '.join(field.name for field in dataclasses.fields(expected))}"
    return " or ".join(map(_type_name, _options(expected)))


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


def draft_path(draft: str) -> str:
    """A directory made absolute; the name of a draft that has none as it is."""
    return draft if draft in NAMED_DRAFTS else absolute(draft)


def absolute(path: str) -> str:
    """`path` made absolute where it is local; "" stays "".

    Raises:
      ConfigError: a URL that carries a credential. What is in the config is in the manifest.
    """
    if carries_credential(path):
        raise ConfigError(
            f"{without_query(path)!r} was given with a query or a password in it, which the manifest would keep; "
            "allowed: a plain path, local or gs://, and credentials from the environment"
        )
    return os.path.abspath(os.path.expanduser(path)) if path and not is_remote(path) else path


def _require(condition: bool, setting: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{setting} is {value!r}; allowed: {allowed}")


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else str(name)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
