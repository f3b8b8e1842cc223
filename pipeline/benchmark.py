"""Plain against speculative decoding on one's own inputs and machine: how much faster, at which γ and batch size.

    python -m pipeline.benchmark --config=configs/quickstart.py --output=DIR [--config.path.to.setting=value]
        [--gammas=0,1,2,4,7,auto] [--num_slots=1,8,32] [--verifications=token,block] [--temperatures=0,1]
        [--repeats=7] [--examples=64] [--seed=0]

Runs in this process, one batch size after the other. Prints tables and writes DIR/benchmark.json, after every repeat,
with every single timing.
docs/benchmarking.md says how to read both, and pipeline/benchmarking/paired.py and passes.py how it is measured.

Exit status: 0 when everything was measured, 2 when something is wrong with the command, its input or its folder and
nothing was done, 130 when interrupted.
"""

import dataclasses
import datetime
import itertools
import math
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from tqdm import tqdm

from decoding.faults import NonFiniteLogits
from decoding.version import __version__
from pipeline.benchmarking.inputs import Inputs, read_inputs, used_buckets
from pipeline.benchmarking.paired import METHOD
from pipeline.benchmarking.results import (
    RESULTS,
    describe_machine,
    describe_model,
    encode,
    load_average,
    open_folder,
    results_of,
)
from pipeline.benchmarking.runner import Runner
from pipeline.benchmarking.settings import VARIED, BenchmarkOptions, group_settings, parse
from pipeline.benchmarking.tables import print_results
from pipeline.job.command import command
from pipeline.job.preflight import CheckedModels, check_models
from pipeline.job.run import code_digest
from pipeline.job.terminal import make_console
from pipeline.settings import ConfigError, JobConfig
from transforms.statistics.intervals import LEVEL
from transforms.storage import OutputFolder

_LINE_SECONDS = 30.0


@command
def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    console = make_console()
    config, output, settings = parse(args)
    if config.model.mesh:
        raise ConfigError(f'model.mesh is {config.model.mesh!r}; allowed: "", since one device is measured')
    models = check_models(config)
    inputs = read_inputs(config, models, settings.examples, output)
    folder = open_folder(output)
    try:
        results = measure(config, settings, models, inputs, folder, console)
    except KeyboardInterrupt:
        print(f"\ninterrupted; complete repeats are in {folder.path(RESULTS)}", file=sys.stderr)
        return 130
    except NonFiniteLogits as error:  # what such a model takes per token is of no use to anyone
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_results(console, results)
    console.print(f"Output: {folder.path(RESULTS)}", soft_wrap=True, highlight=False, markup=False)
    return 0


def measure(
    config: JobConfig,
    settings: BenchmarkOptions,
    models: CheckedModels,
    inputs: Inputs,
    folder: OutputFolder,
    console: Console,
) -> dict:
    """Loads, compiles and measures. Returns the content of benchmark.json, which is written after every repeat."""
    began, started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), time.monotonic()
    if len(inputs.examples) < settings.examples:
        console.print(f"The input has {len(inputs.examples)} examples: fewer than --examples={settings.examples}.")
    target, draft = models.to_load.load_target(), models.to_load.load_draft()
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
        "machine": {**describe_machine(), "load_average": [load_average()]},
        "inputs": inputs.to_json(),
        "models": {name: describe_model(model) for name, model in (("target", target), ("draft", draft)) if model},
        "shapes": {
            "input_buckets": base.input_buckets,
            "resident_input_tokens": base.max_input_tokens,
        },
        "interval": {"level": LEVEL, "method": METHOD},
    }
    # The config's own values of what is varied played no part.
    for name in VARIED:
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
            vocab_size=models.to_load.vocab_size,
        )
        with _Progress((settings.repeats + 1) * runner.num_runs, settings.repeats) as progress:
            for repeat in runner.run(settings.repeats, settings.seed, progress.show):
                if repeat > 0:
                    found = results_of(runner, groups)
                    about |= {name: done[name] + found[name] for name in done}
                    about["machine"]["load_average"].append(load_average())
                    about["seconds"] = time.monotonic() - started
                    about["complete"] = repeat == settings.repeats and slots == settings.num_slots[-1]
                    folder.put(RESULTS, encode(about))
        done = {name: about[name] for name in done}
        del runner, found
    return about


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
