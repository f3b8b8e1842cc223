"""Plain against speculative decoding on one's own inputs and machine: how much faster, at which γ and batch size, and why.

    python -m pipeline.benchmark --config=configs/quickstart.py --output=DIR [--config.path.to.setting=value]
        [--gammas=0,1,2,4,7,auto] [--num_slots=1,8,32] [--verifications=token,block] [--temperatures=0,1]
        [--repeats=7] [--examples=64] [--seed=0]

Runs in this process, without Beam. Prints a table and writes DIR/benchmark.json, after every repeat, with every single
timing. docs/benchmarking.md says how to read both.

Every combination of --num_slots and --temperatures is a group: plain decoding, which is measured in any case, and all γ
with all verifications. (At temperature 0 the verifications are one and the same comparison, so that one is measured.)
Sampled tokens differ from repeat to repeat, so that intervals at temperatures above 0 cover the luck of the draw too.

Exit status: 0 when everything was measured, 2 when something is wrong with the command, its input or its folder and nothing
was done, 130 when interrupted.
"""

import argparse
import collections
import dataclasses
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import decoding
from decoding import DecodingConfig, theory
from decoding.adaptive import encode_costs
from decoding.models.base import LanguageModel
from decoding.version import __version__
from pipeline import measurement
from pipeline.config import ConfigError, JobConfig, parse_command_line
from pipeline.manifest import FolderError, code_digest
from pipeline.measurement import PassTimer, Ratio
from pipeline.preflight import CheckedModels, check_models
from transforms import storage
from transforms.aggregate import DecodedText, Statistics, shard_statistics
from transforms.plan import InputError, Plan, ShardTable, find_files, plan_input
from transforms.read import read_shard
from transforms.records import Example
from transforms.storage import OutputFolder
from transforms.tokenize import load_tokenizer

RESULTS = "benchmark.json"

# Settings of the config that the flags below vary.
_VARIED = {"gamma": "gammas", "num_slots": "num_slots", "verification": "verifications", "temperature": "temperatures"}
_VERSIONED = ("flax", "jax", "jaxlib", "numpy", "sentencepiece", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared; the flags of the same names."""

    gammas: tuple[int | str, ...]
    num_slots: tuple[int, ...]
    verifications: tuple[str, ...]
    temperatures: tuple[float, ...]
    repeats: int
    examples: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the results: how the same inputs are decoded."""

    num_slots: int
    temperature: float
    verification: str
    gamma: int | str

    @property
    def same_text(self) -> bool:
        """Whether the tokens are to be plain decoding's: at temperature 0, and with coupled noise."""
        return self.temperature == 0 or self.verification == "coupled"

    def config(self, base: DecodingConfig) -> DecodingConfig:
        return dataclasses.replace(base, **dataclasses.asdict(self))

    def __str__(self) -> str:
        how = "plain" if self.gamma == 0 else f"{self.verification}, γ {self.gamma}"
        return f"{self.num_slots} slots, temperature {self.temperature:g}, {how}"


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings with the plain one that their speedup is measured against."""

    plain: Setting
    speculative: tuple[Setting, ...]

    @property
    def settings(self) -> tuple[Setting, ...]:
        return (self.plain, *self.speculative)


@dataclasses.dataclass
class Measurements:
    """Of one setting, by counted repeat.

    Attributes:
      seconds: wall time of decoding all inputs.
      tokens: generated, each sequence's EOS included, whatever it was decoded with.
      iterations: of the whole batch, that is, target passes after prefill.
      row_iterations: of rows that were decoding, summed over rows.
      compilations: while decoding; 0 unless something is wrong.
      differing: generations whose tokens are not plain decoding's.
      gammas: iterations by γ, over all counted repeats.
      statistics: of the generations of all counted repeats; at temperature 0, where they are the same, of the first.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    iterations: list[int] = dataclasses.field(default_factory=list)
    row_iterations: list[int] = dataclasses.field(default_factory=list)
    compilations: list[int] = dataclasses.field(default_factory=list)
    differing: list[int] = dataclasses.field(default_factory=list)
    gammas: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    statistics: Statistics = dataclasses.field(default_factory=Statistics)

    @property
    def seconds_per_token(self) -> list[float]:
        return [seconds / tokens for seconds, tokens in zip(self.seconds, self.tokens)]


@dataclasses.dataclass
class PassSeconds:
    """Seconds of a single model pass at one batch size, by counted repeat.

    Attributes:
      target: by the number of positions per row that a pass feeds.
      draft: of one position; empty without a draft.
    """

    target: dict[int, list[float]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    draft: list[float] = dataclasses.field(default_factory=list)

    def c(self) -> Ratio | None:
        """The paper's c: time of a draft run over time of a target run, both over one position."""
        return Ratio.of(self.draft, self.target[1]) if self.draft else None

    def pass_cost(self, positions: int) -> Ratio:
        """Time of a target run over so many positions, over time of a run over one."""
        return Ratio.of(self.target[positions], self.target[1])


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is decoded, and how much else was read.

    Attributes:
      examples: the first that could be read and tokenised.
      failed: records among them that could not.
      plan: the whole input.
    """

    examples: tuple[Example, ...]
    failed: int
    plan: Plan

    def lengths(self) -> list[int]:
        return [len(example.tokens) for example in self.examples]


# The command line.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(message)


def parse(args: Sequence[str]) -> tuple[JobConfig, str, Settings]:
    """The job's config, the output folder and what to compare, from a command line without the program's name.

    Raises:
      ConfigError: with the setting, its value and what is allowed.
    """
    parser = _Parser(
        prog="python -m pipeline.benchmark",
        usage="%(prog)s --config=FILE --output=DIR [--config.path.to.setting=value] [options]",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--gammas", default="0,1,2,4,7,auto", help="tokens drafted per iteration, or auto (default: %(default)s)")
    add("--num_slots", default="1,8,32", help="batch sizes (default: %(default)s)")
    add("--verifications", default="token,block", help="of token, block, coupled (default: %(default)s)")
    add("--temperatures", default="0,1", help="0 is greedy (default: %(default)s)")
    add("--repeats", default="7", help="after a first one that is not counted, at least 2 (default: %(default)s)")
    add("--examples", default="64", help="inputs, from the beginning (default: %(default)s)")
    add("--seed", default="0", help="of the order of settings (default: %(default)s)")
    own, others = parser.parse_known_args(list(args))
    for name, flag in _VARIED.items():
        if stray := [arg for arg in others if arg.split("=", 1)[0] == f"--config.decoding.{name}"]:
            raise ConfigError(f"{stray[0]!r}: this job compares several; allowed: --{flag}=..., separated by commas")
    # The config's own γ plays no part, and must not be refused for want of a draft.
    command = parse_command_line([*others, "--config.decoding.gamma=0"])
    if command.beam_args:
        raise ConfigError(f"{command.beam_args[0]!r} is not an option of this job; --help lists them")
    settings = Settings(
        gammas=_several("gammas", own.gammas, _gamma, 'whole numbers from 0 to 64, or "auto"'),
        num_slots=_several("num_slots", own.num_slots, int, "whole numbers of at least 1"),
        verifications=_several("verifications", own.verifications, str, "token, block, coupled"),
        temperatures=_several("temperatures", own.temperatures, float, "numbers of at least 0"),
        repeats=_whole("repeats", own.repeats, 2),
        examples=_whole("examples", own.examples, 1),
        seed=_whole("seed", own.seed, 0),
    )
    if not command.config.model.draft and set(settings.gammas) != {0}:
        raise ConfigError(f"--gammas is {own.gammas!r} without a draft: model.draft is empty; allowed: 0")
    try:
        for group in groups(settings):
            for setting in group.settings:
                setting.config(command.config.decoding)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return command.config, command.output, settings


def _several(name: str, text: str, convert, allowed: str) -> tuple:
    """Comma-separated values, each once, in the order given."""
    try:
        values = tuple(dict.fromkeys(convert(one.strip()) for one in text.split(",") if one.strip()))
    except ValueError:
        values = ()
    if not values:
        raise ConfigError(f"--{name} is {text!r}; allowed: {allowed}, separated by commas")
    return values


def _whole(name: str, text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise ConfigError(f"--{name} is {text!r}; allowed: a whole number of at least {low}")
    return value


def _gamma(text: str) -> int | str:
    return text if text == "auto" else int(text)


def groups(settings: Settings) -> list[Group]:
    """All settings, grouped by what they are compared with.

    Coupled sampling draws in its own way, so its speedup is against plain decoding that draws in that way.
    """
    found = []
    for num_slots in settings.num_slots:
        for temperature in settings.temperatures:
            coupled = [name for name in settings.verifications if name == "coupled"]
            others = [name for name in settings.verifications if name != "coupled"]
            families = [others, coupled] if temperature > 0 else [settings.verifications[:1]]
            for family in filter(None, families):
                every = [Setting(num_slots, temperature, name, g) for g in settings.gammas if g != 0 for name in family]
                found.append(Group(Setting(num_slots, temperature, family[0], 0), tuple(every)))
    return found


# Before anything is loaded.


def read_inputs(config: JobConfig, models: CheckedModels, count: int) -> Inputs:
    """The first `count` examples, planned, read and tokenised as the main job does.

    Raises:
      ConfigError: the input cannot be planned, or holds no example.
    """
    settings = config.input
    try:
        plan = plan_input(find_files(settings.patterns), settings.fields, config.shards.examples_per_shard)
        table, tokenizer = ShardTable(plan), load_tokenizer(models.tokenizer)
        examples, failed = [], 0
        for shard in range(plan.num_shards):
            read = read_shard(
                table[shard],
                settings.fields,
                tokenizer,
                prefix=settings.prefix,
                eos_id=models.input_eos_id,
                max_input_tokens=config.decoding.max_input_tokens,
            )
            examples.extend(read.examples)
            failed += len(read.errors)
            if len(examples) >= count:
                break
    except (InputError, OSError) as error:
        raise ConfigError(f"input.pattern is {settings.pattern!r}: {error}") from error
    if not examples:
        raise ConfigError(f"input.pattern is {settings.pattern!r}: none of its {failed} records could be read")
    return Inputs(tuple(examples[:count]), failed, plan)


def used_buckets(buckets: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
    """Those of the increasing `buckets` that an input of `lengths` falls into: nothing else has to be compiled."""
    return tuple(sorted({next(bucket for bucket in buckets if length <= bucket) for length in lengths}))


def open_folder(output: str) -> OutputFolder:
    """The output folder.

    Raises:
      FolderError: it holds results already, or cannot be read.
    """
    folder = OutputFolder(output)
    try:
        if folder.exists(RESULTS):
            raise FolderError(f"the output folder {output!r} holds {RESULTS} already; give another folder")
    except OSError as error:
        raise FolderError(f"the output folder {output!r} cannot be read: {error}") from error
    return folder


# Measuring.


class Benchmark:
    """Loaded and compiled settings, and what was measured of them so far."""

    def __init__(
        self, target: LanguageModel, draft: LanguageModel | None, config: JobConfig, settings: Settings, inputs: Inputs,
        console: Console,
    ):  # fmt: skip
        self._settings, self._examples, self._console = settings, inputs.examples, console
        self.decoding = dataclasses.replace(
            config.decoding, input_buckets=used_buckets(config.decoding.input_buckets, inputs.lengths())
        )
        self.groups = groups(settings)
        self._every = [setting for group in self.groups for setting in group.settings]
        self._generators = {}
        for number, setting in enumerate(self._every, 1):
            self._say(f"compiling {number}/{len(self._every)}: {setting}")
            self._generators[setting] = decoding.Generator(target, draft, setting.config(self.decoding))
        fixed = [gamma for gamma in settings.gammas if gamma != "auto"]
        self.widths = tuple(sorted({1, *(gamma + 1 for gamma in fixed)}))
        self._timers = {}
        for num_slots in settings.num_slots:
            self._say(f"compiling single passes: {num_slots} slots")
            self._timers[num_slots] = [
                (model, PassTimer(model, num_slots=num_slots, input_bucket=self.input_bucket,
                                  max_positions=self.max_positions, positions=widths))
                for model, widths in ((target, self.widths), (draft, (1,))) if model is not None
            ]  # fmt: skip
        self.measured = {setting: Measurements() for setting in self._every}
        self.passes = {num_slots: PassSeconds() for num_slots in settings.num_slots}
        self._generated = (0, 0)  # tokens and sequences of plain decoding, for the mean length
        by_length = sorted(self._examples, key=lambda example: len(example.tokens))
        self._typical = by_length[len(by_length) // 2]

    @property
    def input_bucket(self) -> int:
        """Length of the resident inputs in tokens: the largest bucket in use."""
        return self.decoding.input_buckets[-1]

    @property
    def max_positions(self) -> int:
        """Decoder positions of the states in which single passes are measured."""
        return self.decoding.max_decode_tokens + self.widths[-1]

    @property
    def span(self) -> int:
        """Single passes start at positions 0 .. span - 1: the mean length of plain decoding's generations."""
        tokens, sequences = self._generated
        return max(round(tokens / sequences), 1) if sequences else self.decoding.max_decode_tokens

    def costs_of_auto(self) -> dict[int, dict[str, float]]:
        """What γ = "auto" measured at load and chose by, by num_slots and temperature."""
        return [
            {**dataclasses.asdict(setting), "costs": encode_costs(generator.costs)}
            for setting, generator in self._generators.items()
            if setting.gamma == "auto"
        ]

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def run(self) -> Iterator[int]:
        """Measures everything, yielding the number of every counted repeat when it is done."""
        tasks = [*self.groups, *self.passes]
        total = (self._settings.repeats + 1) * (len(self._every) + len(self.passes))
        per_repeat, done = len(tasks), 0
        bar = tqdm(total=total, unit=" runs", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        started = time.monotonic()
        with bar:
            order = measurement.interleaved([_Task(task).parts for task in tasks], self._settings.repeats, self._settings.seed)
            for repeat, parts in order:
                ...
                yield repeat
