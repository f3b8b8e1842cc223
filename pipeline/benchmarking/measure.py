"""The measurement as a whole: loads, compiles, measures, and writes benchmark.json after every repeat."""

import dataclasses
import datetime
import itertools
import math
import sys
import time

from rich.console import Console
from tqdm import tqdm

from decoding.version import __version__
from pipeline.benchmarking.inputs import Inputs, used_buckets
from pipeline.benchmarking.paired import METHOD
from pipeline.benchmarking.results import RESULTS, describe_machine, describe_model, encode, load_average, results_of
from pipeline.benchmarking.runner import Runner
from pipeline.benchmarking.settings import VARIED, BenchmarkOptions, group_settings
from pipeline.job.preflight import CheckedModels
from pipeline.job.seen import code_digest
from pipeline.settings import JobConfig
from transforms.statistics.intervals import LEVEL
from transforms.storage import OutputFolder

_LINE_SECONDS = 30.0


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
