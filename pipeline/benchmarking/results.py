"""benchmark.json: a row for every setting, what single passes cost, and what it was measured on."""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from decoding import theory
from decoding.adaptive import encode_costs
from decoding.models.base import LanguageModel
from pipeline.benchmarking.paired import Ratio
from pipeline.benchmarking.passes import Pass, PassSeconds, draft_cost, pass_cost
from pipeline.benchmarking.runner import Measurements, Runner
from pipeline.benchmarking.settings import Group, Setting
from pipeline.job import machine
from transforms.folder import FolderError
from transforms.statistics import beams
from transforms.storage import OutputFolder

RESULTS = "benchmark.json"
_VERSIONED = ("flax", "jax", "jaxlib", "numpy", "sentencepiece", "tokenizers")
_TIMING_VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


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


def setting_row(
    setting: Setting,
    plain: Measurements,
    measured: Measurements,
    passes: PassSeconds,
    *,
    exact: bool = True,
    positions: int | None = None,
) -> dict:
    """What benchmark.json says of one setting.

    Args:
      setting: of the row.
      plain: measurements of plain decoding, of the same batch size and temperature.
      measured: of the setting.
      passes: seconds of single passes.
      exact: whether decoding is; under lenience it is not.
      positions: of a target call; None for γ + 1, or of "auto".
    """
    alpha, slots = measured.statistics.alpha(), setting.num_slots
    searches = measured.statistics.searches if measured.statistics.searches.counts else None
    found = searches and beams.summary(searches)
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
        "positions": positions,
        "tokens_per_target_call": found["steps"] / found["target_calls"] if found else tokens / sum(measured.row_iterations),
        "slot_occupancy": sum(measured.row_iterations) / (iterations * slots),
        "alpha": found["covered"] if found else alpha,
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
    if setting.gamma not in (0, "auto") and alpha and not found:
        mean, gamma = alpha["mean"], setting.gamma
        draft = draft_cost(passes, slots)
        c = draft.mean if draft else 0.0  # a draft that is no model costs next to nothing
        cost = pass_cost(passes, slots, gamma + 1).mean
        row["predicted"] = {
            "theorem_3_8": theory.walltime_improvement(mean, gamma, c),
            "with_pass_cost": theory.walltime_improvement_measured(mean, gamma, c, cost),
        }
    return row


def cost_row(num_slots: int, passes: PassSeconds, plain: int = 1) -> dict:
    """What benchmark.json says of single passes at one batch size; `plain` positions are those of plain decoding's calls."""
    mine = {one: list(seconds) for one, seconds in passes.items() if one.num_slots == num_slots}
    target = {str(one.positions): seconds for one, seconds in mine.items() if one.model == "target"}
    c = draft_cost(passes, num_slots, plain)
    return {
        "num_slots": num_slots,
        "plain_positions": plain,
        "target_seconds": target,
        "draft_seconds": mine.get(Pass(num_slots, "draft", plain)),
        "c": c and dataclasses.asdict(c),
        "pass_cost": {
            width: dataclasses.asdict(pass_cost(passes, num_slots, int(width), plain)) for width in target
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
                positions=runner.positions(setting),
            )
            for group in groups
            for setting in group.settings
        ],
        "costs": [
            {
                **cost_row(slots, runner.passes, runner.base.call_positions(0)),
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
        "processor": machine.processor(),
        "usable_cores": usable,
        "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        "variables": {name: os.environ[name] for name in _TIMING_VARIABLES if name in os.environ},
        "versions": machine.versions(_VERSIONED),
    }


def load_average() -> float | None:
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
