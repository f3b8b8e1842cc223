"""Plain against speculative decoding on one's own inputs and machine: how much faster, at which γ and batch size.

    python -m pipeline.benchmark --config=configs/quickstart.py --output=DIR [--config.path.to.setting=value]
        [--gammas=0,1,2,4,7,auto] [--num_slots=1,8,32] [--verifications=token,block] [--temperatures=0,1]
        [--repeats=7] [--examples=64] [--seed=0]

Runs in this process, one batch size after the other. Prints tables and writes DIR/benchmark.json, after every repeat,
with every single timing.
docs/benchmarking.md says how to read both, and pipeline/measurement.py how it is measured.

Exit status: 0 when everything was measured, 2 when something is wrong with the command, its input or its folder and
nothing was done, 130 when interrupted.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import decoding
from decoding import theory
from decoding.adaptive import encode_costs
from decoding.config import VERIFICATIONS
from decoding.models.base import LanguageModel
from decoding.version import __version__
from pipeline import measurement
from pipeline.config import ConfigError, JobConfig, parse_command_line
from pipeline.manifest import FolderError, code_digest, plan_of
from pipeline.measurement import Group, Measurements, Pass, PassSeconds, Ratio, Runner, Setting
from pipeline.preflight import CheckedModels, check_models
from transforms.plan import InputError, Plan, ShardTable
from transforms.read import read_shard
from transforms.records import Example
from transforms.storage import OutputFolder
from transforms.tokenize import load_tokenizer

RESULTS = "benchmark.json"

# Settings of the config that this job varies, and the flags that say over what.
_VARIED = {"gamma": "gammas", "num_slots": "num_slots", "verification": "verifications", "temperature": "temperatures"}
_VERSIONED = ("flax", "jax", "jaxlib", "numpy", "sentencepiece", "tokenizers")
_LINE_SECONDS = 30.0
_TIMING_VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared, and how often: the flags of the same names."""

    gammas: tuple[int | str, ...]
    num_slots: tuple[int, ...]
    verifications: tuple[str, ...]
    temperatures: tuple[float, ...]
    repeats: int
    examples: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is decoded.

    Attributes:
      examples: the first ones of the input that could be read and tokenised.
      failed: records that could not, among those read.
      plan: of the whole input.
    """

    examples: tuple[Example, ...]
    failed: int
    plan: Plan

    @property
    def lengths(self) -> list[int]:
        """In tokens, increasing."""
        return sorted(len(example.tokens) for example in self.examples)

    def to_json(self) -> dict:
        lengths = self.lengths
        return {
            "examples": len(self.examples),
            "first": self.examples[0].example_id,
            "last": self.examples[-1].example_id,
            "failed": self.failed,
            "truncated": sum(example.truncated for example in self.examples),
            "tokens": sum(lengths),
            "shortest": lengths[0],
            "median": lengths[len(lengths) // 2],
            "longest": lengths[-1],
            "files": [{"name": file.name, "digest": file.digest} for file in self.plan.files],
        }


# The command line.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(message)


def parse(args: Sequence[str]) -> tuple[JobConfig, str, Settings]:
    """Parses `args`, which exclude the program's name: the job's config, the output folder, and what to compare.

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
    add("--repeats", default="7", help="after a first one that is not counted; at least 2 (default: %(default)s)")
    add("--examples", default="64", help="inputs, from the beginning (default: %(default)s)")
    add("--seed", default="0", help="of the order of runs (default: %(default)s)")
    own, others = parser.parse_known_args(list(args))
    for name, flag in _VARIED.items():
        if stray := [arg for arg in others if arg.split("=", 1)[0] == f"--config.decoding.{name}"]:
            raise ConfigError(f"{stray[0]!r} is one value, and this job compares several; allowed: --{flag}=...")
    # The config's own γ plays no part, and must not be refused for want of a draft.
    command = parse_command_line([*others, "--config.decoding.gamma=0"])
    if command.beam_args:
        raise ConfigError(f"{command.beam_args[0]!r} is not an option of this job; --help lists them")
    settings = Settings(
        gammas=_several("gammas", own.gammas, _gamma, 'whole numbers from 0 to 64, or "auto"'),
        num_slots=_several("num_slots", own.num_slots, int, "whole numbers of at least 1"),
        verifications=_several("verifications", own.verifications, _verification, ", ".join(VERIFICATIONS)),
        temperatures=_several("temperatures", own.temperatures, float, "numbers of at least 0"),
        repeats=_whole("repeats", own.repeats, 2),
        examples=_whole("examples", own.examples, 1),
        seed=_whole("seed", own.seed, 0),
    )
    if not command.config.model.draft and settings.gammas != (0,):
        raise ConfigError(f"--gammas is {own.gammas!r} and model.draft is empty; allowed without a draft: 0")
    for group in group_settings(settings):
        for setting in group.settings:
            try:
                setting.config(command.config.decoding)
            except ValueError as error:
                raise ConfigError(str(error)) from error
    return command.config, command.output, settings


def _several(name: str, text: str, convert: Callable[[str], Any], allowed: str) -> tuple:
    """Comma-separated values, each once, in the order given."""
    try:
        values = tuple(dict.fromkeys(convert(one.strip()) for one in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"--{name} is {text!r}; allowed: {allowed}, separated by commas") from error
    return values


def _gamma(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _verification(text: str) -> str:
    if text not in VERIFICATIONS:
        raise ValueError(text)
    return text


def _whole(name: str, text: str, low: int) -> int:
    value = int(text) if text.isdecimal() else -1
    if value < low:
        raise ConfigError(f"--{name} is {text!r}; allowed: a whole number of at least {low}")
    return value


def group_settings(settings: Settings) -> list[Group]:
    """A group for every batch size and temperature: plain decoding, asked for or not, and every γ and verification.

    At temperature 0 all verifications are the same comparison of argmaxes, and the first stands for all. Coupled
    sampling draws in a way of its own, so above temperature 0 it has its own group, whose plain decoding draws in that
    way too.
    """
    found = []
    for num_slots in settings.num_slots:
        for temperature in settings.temperatures:
            if temperature == 0:
                families = [settings.verifications[:1]]
            else:
                coupled = tuple(name for name in settings.verifications if name == "coupled")
                families = [tuple(name for name in settings.verifications if name not in coupled), coupled]
            for names in filter(None, families):
                speculative = tuple(
                    Setting(num_slots, temperature, name, gamma)
                    for gamma in settings.gammas
                    if gamma != 0
                    for name in names
                )
                found.append(Group(Setting(num_slots, temperature, names[0], 0), speculative))
    return found


# Inputs and folder.


def read_inputs(config: JobConfig, models: CheckedModels, count: int) -> Inputs:
    """Reads the first `count` examples, planned, read and tokenised as the main job does.

    Raises:
      ConfigError: the input cannot be planned or read, or holds no example.
    """
    plan, examples, failed = plan_of(config, models), [], 0
    try:
        table, tokenizer = ShardTable(plan), load_tokenizer(models.tokenizer)
        for shard in range(plan.num_shards):
            read = read_shard(
                table[shard],
                config.input.spec(models.tokenizer),
                tokenizer,
                prefix=config.input.prefix,
                eos_id=models.input_eos_id,
                max_input_tokens=config.decoding.max_input_tokens,
                chat_template=models.chat_template,
                empty_id=models.empty_id,
            )
            examples.extend(read.examples)
            failed += len(read.errors)
            if len(examples) >= count:
                break
    except (InputError, OSError) as error:
        raise ConfigError(f"{config.input}: {error}") from error
    if not examples:
        raise ConfigError(f"{config.input}: none of its {failed} records could be read")
    return Inputs(tuple(examples[:count]), failed, plan)


def used_buckets(buckets: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
    """Those of the increasing `buckets` that an input of one of `lengths` falls into: all that has to be compiled."""
    return tuple(sorted({next(bucket for bucket in buckets if length <= bucket) for length in lengths}))


def open_folder(output: str) -> OutputFolder:
    """The output folder; benchmark.json is there from now on.

    Raises:
      FolderError: it holds measurements, or cannot be written.
    """
    folder = OutputFolder(output)
    try:
        if folder.create(RESULTS, encode({"complete": False, "rows": []})):
            return folder
        rows = len(json.loads(folder.read(RESULTS))["rows"])
    except OSError as error:
        raise FolderError(f"the output folder {output!r} cannot be written: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise FolderError(f"the output folder {output!r} holds a {RESULTS} that is none of this job's") from error
    if rows:
        raise FolderError(
            f"the output folder {output!r} holds a {RESULTS} of {rows} settings; give another folder, or remove it"
        )
    return folder


# Results.


def setting_row(
    setting: Setting, plain: Measurements, measured: Measurements, passes: PassSeconds, *, exact: bool = True
) -> dict:
    """What benchmark.json says of one setting.

    Args:
      setting: of the row.
      plain: measurements of plain decoding, of the same batch size and temperature.
      measured: of the setting.
      passes: seconds of single passes.
      exact: whether decoding is; under lenience it is not.
    """
    alpha, slots = measured.statistics.alpha(), setting.num_slots
    iterations, tokens = sum(measured.iterations), sum(measured.tokens)
    row = {
        **dataclasses.asdict(setting),
        "seconds": measured.seconds,
        "tokens": measured.tokens,
        "iterations": measured.iterations,
        "row_iterations": measured.row_iterations,
        "compilations": measured.compilations,
        "gammas": {str(gamma): count for gamma, count in sorted(measured.gammas.items())},
        "tokens_per_second": tokens / sum(measured.seconds),
        "tokens_per_target_call": tokens / sum(measured.row_iterations),
        "slot_occupancy": sum(measured.row_iterations) / (iterations * slots),
        "alpha": alpha,
        "generations": measured.generations,
        "same_tokens_expected": exact and setting.same_tokens,
        "differing_generations": measured.differing,
        "speedup": None,
        "iteration_cost": None,
        "predicted": None,
    }
    if setting.gamma != 0:
        row["speedup"] = dataclasses.asdict(Ratio.of(plain.seconds_per_token, measured.seconds_per_token))
        row["iteration_cost"] = dataclasses.asdict(
            Ratio.of(measured.seconds_per_iteration, plain.seconds_per_iteration)
        )
    if setting.gamma not in (0, "auto") and alpha:
        mean, gamma = alpha["mean"], setting.gamma
        draft = measurement.draft_cost(passes, slots)
        c = draft.mean if draft else 0.0  # a draft that is no model costs next to nothing
        cost = measurement.pass_cost(passes, slots, gamma + 1).mean
        row["predicted"] = {
            "theorem_3_8": theory.walltime_improvement(mean, gamma, c),
            "with_pass_cost": theory.walltime_improvement_measured(mean, gamma, c, cost),
        }
    return row


def cost_row(num_slots: int, passes: PassSeconds) -> dict:
    """What benchmark.json says of single passes at one batch size."""
    mine = {one: list(seconds) for one, seconds in passes.items() if one.num_slots == num_slots}
    target = {str(one.positions): seconds for one, seconds in mine.items() if one.model == "target"}
    c = measurement.draft_cost(passes, num_slots)
    return {
        "num_slots": num_slots,
        "target_seconds": target,
        "draft_seconds": mine.get(Pass(num_slots, "draft", 1)),
        "c": c and dataclasses.asdict(c),
        "pass_cost": {
            width: dataclasses.asdict(measurement.pass_cost(passes, num_slots, int(width))) for width in target
        },
    }


def results_of(runner: Runner, groups: Sequence[Group]) -> dict:
    """What was measured at one batch size."""
    (slots,) = {group.plain.num_slots for group in groups}
    return {
        "rows": [
            setting_row(
                setting,
                runner.measured[group.plain],
                runner.measured[setting],
                runner.passes,
                exact=runner.base.exact,
            )
            for group in groups
            for setting in group.settings
        ],
        "costs": [
            {
                **cost_row(slots, runner.passes),
                "first_positions": [0, runner.span - 1],
                "state_positions": runner.max_positions,
            }
        ],
        "costs_of_auto": [
            {**dataclasses.asdict(setting), "seconds_per_iteration": encode_costs(generator.costs)}
            for setting, generator in runner.generators.items()
            if setting.gamma == "auto"
        ],
    }


def encode(results: Mapping[str, Any]) -> bytes:
    return (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode()


def describe_machine() -> dict:
    """What timings depend on besides the code."""
    devices = jax.devices()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "usable_cores": usable,
        "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        "variables": {name: os.environ[name] for name in _TIMING_VARIABLES if name in os.environ},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _VERSIONED},
        },
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _load_average() -> float | None:
    """Of the last minute: how many processes compete for the cores. This one counts too."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe_model(model: LanguageModel) -> dict:
    """Size and, where the model states it, shape."""
    arrays = jax.tree.leaves(nnx.state(model))
    shape = getattr(model, "config", None)
    return {
        "parameters": sum(array.size for array in arrays),
        "bytes": sum(array.nbytes for array in arrays),
        "vocab_size": model.vocab_size,
        "shape": dataclasses.asdict(shape) if dataclasses.is_dataclass(shape) else None,
    }


# The terminal.


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Prints the content of benchmark.json as tables that fit 80 columns, and what in it is not as it should be."""
    for cost in results["costs"]:
        rows = [row for row in results["rows"] if row["num_slots"] == cost["num_slots"]]
        console.print(_settings_table(rows, measurement.slots(cost["num_slots"])), "")
    console.print(_costs_table(results["costs"]), "")
    for text in remarks(results):
        console.print(text, style="bold", highlight=False, markup=False)


def _table(title: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
    )


def _settings_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    table, speedup = _table(title), f"speedup [{measurement.LEVEL:.0%}]"
    for name in ("temp.", "how", "γ"):
        table.add_column(name)
    for name in ("tok/s", speedup, "α", "Thm 3.8", "with pass cost", "differ"):
        table.add_column(name, justify="right", no_wrap=name in (speedup, "α"))
    for row in rows:
        plain, predicted = row["gamma"] == 0, row["predicted"]
        if plain and table.row_count:
            table.add_section()
        comparable = row["same_tokens_expected"] and not plain
        table.add_row(
            f"{row['temperature']:g}",
            Setting(*(row[field.name] for field in dataclasses.fields(Setting))).name,
            "" if plain else str(row["gamma"]),
            f"{row['tokens_per_second']:,.0f}",
            "1" if plain else _shown(row["speedup"]),
            f"{row['alpha']['mean']:.3f}" if row["alpha"] else "",
            f"{predicted['theorem_3_8']:.2f}" if predicted else "",
            f"{predicted['with_pass_cost']:.2f}" if predicted else "",
            f"{max(row['differing_generations'])}/{row['generations']}" if comparable else "",
        )
    return table


def _costs_table(costs: Sequence[Mapping[str, Any]]) -> Table:
    table, level = _table("Single passes"), f"[{measurement.LEVEL:.0%}]"
    for name in ("slots", "target pass", f"c {level}", "positions", f"cost of a pass {level}"):
        table.add_column(name, justify="right")
    for cost in costs:
        one = cost["target_seconds"]["1"]
        first = [str(cost["num_slots"]), f"{1e3 * sum(one) / len(one):.3f} ms", _shown(cost["c"], 3)]
        wider = [(width, _shown(ratio)) for width, ratio in cost["pass_cost"].items() if width != "1"]
        for i, cells in enumerate(wider or [("", "")]):
            table.add_row(*(["", "", ""] if i else first), *cells)
        table.add_section()
    return table


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers has to know about this run."""
    found, rows = [], results["rows"]
    if differing := [row for row in rows if row["same_tokens_expected"] and max(row["differing_generations"])]:
        found.append(
            f"{len(differing)} settings differ from plain decoding in some texts where they should not: in float32 "
            "only ties closer than about 1e-4 may; in bfloat16 passes over one and several positions round differently."
        )
    if compiled := sum(sum(row["compilations"]) for row in rows):
        found.append(f"{compiled} programs were compiled while decoding: timings include it.")
    if drained := sorted({row["num_slots"] for row in rows if row["slot_occupancy"] < 0.8}):
        found.append(
            f"Slots were idle more than a fifth of the time at num_slots {', '.join(map(str, drained))}: "
            f"{results['inputs']['examples']} examples are few for it; see --examples."
        )
    if results["config"]["decoding"]["lenience"] < 1:
        found.append("Lenience is below 1: outputs are biased towards the draft, not plain decoding's.")
    return found


class _Progress:
    """Says which run of how many is next: a bar on a terminal, elsewhere a line every 30 seconds at most."""

    def __init__(self, total: int, repeats: int):
        self._bar = tqdm(total=total, unit=" runs", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._repeats, self._run, self._said = repeats, itertools.count(), -math.inf

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, error_type, *_) -> None:
        if error_type is None and not self._bar.disable:
            self._bar.n = self._bar.total
            self._bar.set_postfix_str("")
        self._bar.close()

    def show(self, repeat: int, what: str) -> None:
        """`what` begins, of `repeat`."""
        done = next(self._run)
        text = f"repeat {repeat} of {self._repeats}, {what}" if repeat else f"first repeat, not counted, {what}"
        if not self._bar.disable:
            self._bar.n = done
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            print(f"{done}/{self._bar.total} runs, {text}", file=sys.stderr, flush=True)


def _shown(ratio: Mapping[str, Any] | None, digits: int = 2) -> str:
    if ratio is None:
        return "none"
    return f"{ratio['mean']:.{digits}f} [{ratio['low']:.{digits}f}, {ratio['high']:.{digits}f}]"


# The job.


def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    console = Console()
    try:
        config, output, settings = parse(args)
        models = check_models(config)
        inputs = read_inputs(config, models, settings.examples)
        folder = open_folder(output)
    except (ConfigError, FolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        results = measure(config, settings, models, inputs, folder, console)
    except KeyboardInterrupt:
        print(f"\ninterrupted; complete repeats are in {folder.path(RESULTS)}", file=sys.stderr)
        return 130
    print_results(console, results)
    console.print(f"Output: {folder.path(RESULTS)}", soft_wrap=True, highlight=False, markup=False)
    return 0


def measure(
    config: JobConfig,
    settings: Settings,
    models: CheckedModels,
    inputs: Inputs,
    folder: OutputFolder,
    console: Console,
) -> dict:
    """Loads, compiles and measures. Returns the content of benchmark.json, which is written after every repeat."""
    began, started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), time.monotonic()
    if len(inputs.examples) < settings.examples:
        console.print(f"The input has {len(inputs.examples)} examples: fewer than --examples={settings.examples}.")
    target = decoding.load_model(config.model.target, dtype=config.model.dtype)
    draft = decoding.load_draft(
        config.model.draft,
        target,
        vocab_size=models.vocab_size,
        max_ngram=config.model.prompt_lookup_max_ngram,
        min_ngram=config.model.prompt_lookup_min_ngram,
        dtype=config.model.dtype,
    )
    base = dataclasses.replace(
        config.decoding, input_buckets=used_buckets(config.decoding.input_buckets, inputs.lengths)
    )
    about = {
        "specbeam": __version__,
        "complete": False,
        "started": began,
        "settings": dataclasses.asdict(settings),
        "config": config.to_json(),
        "identity": {**models.identity, "tokenizer": models.tokenizer_sha256, "code": code_digest()},
        "machine": {**describe_machine(), "load_average": [_load_average()]},
        "inputs": inputs.to_json(),
        "models": {name: describe_model(model) for name, model in (("target", target), ("draft", draft)) if model},
        "shapes": {
            "input_buckets": base.input_buckets,
            "resident_input_tokens": base.max_input_tokens,
        },
        "interval": {"level": measurement.LEVEL, "method": measurement.METHOD},
    }
    # The config's own values of what is varied played no part.
    for name in _VARIED:
        del about["config"]["decoding"][name]
    done: dict[str, list] = {"rows": [], "costs": [], "costs_of_auto": []}
    # One batch size after the other: compiled programs take tens of megabytes per setting.
    for slots in settings.num_slots:
        groups = [group for group in group_settings(settings) if group.plain.num_slots == slots]
        runner = Runner(
            target,
            draft,
            base,
            groups,
            inputs.examples,
            lambda text: console.print(text, highlight=False, markup=False),
            vocab_size=models.vocab_size,
        )
        with _Progress((settings.repeats + 1) * runner.num_runs, settings.repeats) as progress:
            for repeat in runner.run(settings.repeats, settings.seed, progress.show):
                if repeat > 0:
                    found = results_of(runner, groups)
                    about |= {name: done[name] + found[name] for name in done}
                    about["machine"]["load_average"].append(_load_average())
                    about["seconds"] = time.monotonic() - started
                    about["complete"] = repeat == settings.repeats and slots == settings.num_slots[-1]
                    folder.put(RESULTS, encode(about))
        done = {name: about[name] for name in done}
        del runner, found
    return about


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
