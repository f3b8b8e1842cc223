"""What the pipeline costs around the decoder: jobs whose decoder sleeps for a known time, on every runner.

    python -m benchmarks.overhead [--runners=threads,processes,prism,flink] [--workers=1,2,4] [--repeats=2] [--output=FILE]

A job is 1,000 work shards of four sentences, for each of which the decoder (`benchmarks.known_cost`) sleeps 50 ms: at
best it takes shards x cost / workers. Everything else is real: planning, reading, tokenising, notes, statistics, Parquet,
commits, the summary. Sleeping workers leave the processor to each other, so that more workers than cores can be told.

- start: from the process's start to the first shard's sleep. A cluster that is there before the job is not part of it.
- per shard: what of a worker's time between the first and the last sleep was no sleep, divided by its shards.
- end: from the last shard's sleep to the process's end: footers, summary, shutting down.

Jobs run one at a time, in a fresh random order in every repeat. Prism needs its binary (`python -m pipeline.runners.prism
build`), Flink Java and Maven; how many workers Prism has cannot be said, see ONE_BUNDLE. Prints Markdown and, with
--output, writes JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.known_cost import Shard, read_log
from benchmarks.measure import Spread
from pipeline.job.machine import processor
from pipeline.runners.flink import cluster as flink_cluster
from pipeline.settings import ConfigError

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = ROOT / "examples" / "data" / "ende_software.test.jsonl"
LIMIT_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Size:
    """A job: so many shards, of so many examples, each of which is decoded in so many seconds."""

    shards: int = 1000
    examples_per_shard: int = 4
    seconds_per_example: float = 0.0125

    def ideal(self, workers: int) -> float:
        """Seconds of a job that consists of decoding alone."""
        return -(-self.shards // workers) * self.examples_per_shard * self.seconds_per_example


@dataclasses.dataclass(frozen=True)
class TimedJob:
    """One timed job.

    Attributes:
      runner, workers, repeat: which one.
      wall: seconds of its process.
      start: of these, before the first shard was decoded; end: after the last one was.
      per_shard: seconds of a worker per shard, between the first and the last, that were not spent decoding.
      at_once: the most shards that were decoded at the same time.
      processes: how many processes decoded.
    """

    runner: str
    workers: int
    repeat: int
    wall: float
    start: float
    end: float
    per_shard: float
    at_once: int
    processes: int


@contextlib.contextmanager
def threads(workers: int) -> Iterator[list[str]]:
    yield [f"--direct_num_workers={workers}"]


@contextlib.contextmanager
def processes(workers: int) -> Iterator[list[str]]:
    yield [f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"]


@contextlib.contextmanager
def prism(workers: int) -> Iterator[list[str]]:
    del workers  # Prism has no such setting; see ONE_BUNDLE
    yield ["--runner=PrismRunner"]


@contextlib.contextmanager
def flink(workers: int) -> Iterator[list[str]]:
    """A cluster of so many task managers with one slot each, each of which starts a Python worker of its own."""
    with tempfile.TemporaryDirectory(prefix="flink-") as folder:
        cache = flink_cluster.default_cache()
        cluster = flink_cluster.start(Path(folder), task_managers=workers, slots=1, port=0, cache=cache)
        try:
            yield ["--runner=FlinkRunner", f"--flink_master={cluster.master}", f"--parallelism={workers}"]
        finally:
            flink_cluster.stop(Path(folder))


RUNNERS: dict[str, Callable[[int], contextlib.AbstractContextManager[list[str]]]] = {
    "threads": threads,
    "processes": processes,
    "prism": prism,
    "flink": flink,
}
"""By name, what gives Beam's options for so many workers, with a cluster that lives while they are used."""

ONE_BUNDLE = ("prism",)
"""These have no number of workers. Prism makes one bundle of all shards, and splits a bundle in two when between two
looks at it, 0.1 s apart or more, no shard was finished; up to eight are processed at once, in one process."""

TITLES = {"threads": "in this process, threads", "processes": "local processes", "prism": "Prism", "flink": "Flink"}


def write_input(path: Path, examples: int) -> None:
    """So many of the demo's sentences, going round."""
    lines = SENTENCES.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[i % len(lines)] for i in range(examples)), encoding="utf-8")


def run_job(runner: str, workers: int, repeat: int, size: Size, folder: Path) -> TimedJob:
    """Runs one job in a process of its own.

    Raises:
      RuntimeError: it failed, or did not decode every shard; with the end of what it said.
    """
    folder.mkdir()
    log, said = folder / "log", folder / "said"
    write_input(folder / "input.jsonl", size.shards * size.examples_per_shard)
    command = [
        *(sys.executable, "-m", "benchmarks.known_cost"),
        f"--seconds={size.seconds_per_example}",
        f"--log={log}",
        f"--config={ROOT / 'configs' / 'quickstart.py'}",
        f"--config.input.pattern={folder / 'input.jsonl'}",
        f"--config.shards.examples_per_shard={size.examples_per_shard}",
        f"--output={folder / 'out'}",
    ]
    # Workers that are processes of their own import the decoder from here.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    with RUNNERS[runner](workers) as options, said.open("w") as stream:
        began = time.time()
        status = _run([*command, *options], environment, stream)
        ended = time.time()
    shards = read_log(log) if log.exists() else []
    if status or len(shards) < size.shards:
        tail = "\n".join(said.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(
            f"{runner} with {workers} workers ended with status {status} after {len(shards)} of {size.shards} shards:\n{tail}"
        )
    return account(runner, workers, repeat, size, shards, began, ended)


def _run(command: Sequence[str], environment: Mapping[str, str], stream: IO[str]) -> int:
    """Exit status. Nothing of what it has started outlives it, also where it does not end in time."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(LIMIT_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def account(
    runner: str, workers: int, repeat: int, size: Size, shards: Sequence[Shard], began: float, ended: float
) -> TimedJob:
    """Where a job's time went, from when each shard was decoded and from when its process began and ended."""
    first, last = min(shard.began for shard in shards), max(shard.ended for shard in shards)
    cost = size.examples_per_shard * size.seconds_per_example
    events = sorted([(shard.began, 1) for shard in shards] + [(shard.ended, -1) for shard in shards])
    running = most = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return TimedJob(
        runner,
        workers,
        repeat,
        wall=ended - began,
        start=first - began,
        end=ended - last,
        per_shard=(last - first) * workers / len(shards) - cost,
        at_once=most,
        processes=len({shard.process for shard in shards}),
    )


def table(jobs: Sequence[TimedJob], size: Size) -> str:
    """Markdown: a row per runner and number of workers, medians with extremes over repeats."""
    lines = [
        "| runner | workers | ideal, s | wall, s | wall over ideal | start, s | per shard, ms | end, s | at once | processes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for runner, workers in dict.fromkeys((job.runner, job.workers) for job in jobs):
        cell = [job for job in jobs if (job.runner, job.workers) == (runner, workers)]
        ideal = size.ideal(workers)
        numbers = [
            shown([job.wall for job in cell], 1),
            shown([job.wall / ideal for job in cell], 2),
            shown([job.start for job in cell], 1),
            "–" if runner in ONE_BUNDLE else shown([1000 * job.per_shard for job in cell], 1),
            shown([job.end for job in cell], 1),
        ]
        counts = ["/".join(sorted({str(getattr(job, name)) for job in cell})) for name in ("at_once", "processes")]
        lines.append("| " + " | ".join([TITLES[runner], str(workers), f"{ideal:.1f}", *numbers, *counts]) + " |")
    return "\n".join(lines)


def shown(values: Sequence[float], digits: int) -> str:
    """"1.5 (1.4 to 1.7)": the median, and the extremes where there are several."""
    spread = Spread.of(values)
    median = f"{spread.median:.{digits}f}"
    return median if len(values) == 1 else f"{median} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runners", default=",".join(RUNNERS), help=f"of {', '.join(RUNNERS)}")
    parser.add_argument("--workers", default="1,2,4", help="numbers of workers, comma-separated")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--shards", type=int, default=Size.shards)
    parser.add_argument("--examples", type=int, default=Size.examples_per_shard, help="per shard")
    parser.add_argument("--seconds", type=float, default=Size.seconds_per_example, help="that decoding an example takes")
    parser.add_argument("--output", default="", help="JSON file")
    args = parser.parse_args(argv)
    names = args.runners.split(",")
    if unknown := [name for name in names if name not in RUNNERS]:
        parser.error(f"--runners has {', '.join(unknown)}; allowed: {', '.join(RUNNERS)}")
    size = Size(args.shards, args.examples, args.seconds)
    numbers = [int(workers) for workers in args.workers.split(",")]
    cells = [(runner, workers) for runner in names for workers in (numbers[:1] if runner in ONE_BUNDLE else numbers)]
    machine = {"cpu": processor(), "cores": len(os.sched_getaffinity(0)), "load_at_start": os.getloadavg()[0]}
    jobs, failures, order = [], [], random.Random(0)
    for repeat in range(args.repeats):
        for runner, workers in order.sample(cells, len(cells)):
            folder = Path(tempfile.mkdtemp(prefix="overhead-"))
            try:
                job = run_job(runner, workers, repeat, size, folder / "job")
                jobs.append(job)
                print(f"{job}", file=sys.stderr, flush=True)
            except (RuntimeError, OSError, ConfigError, subprocess.TimeoutExpired) as error:
                failures.append(f"{runner} with {workers} workers, repeat {repeat}: {error}")
                print("error:", failures[-1], file=sys.stderr, flush=True)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            if args.output:
                result = {"machine": machine, "size": dataclasses.asdict(size), "failures": failures}
                Path(args.output).write_text(json.dumps(result | {"jobs": [dataclasses.asdict(job) for job in jobs]}, indent=1))
    jobs.sort(key=lambda job: cells.index((job.runner, job.workers)))
    print(
        f"{size.shards:,} shards of {size.examples_per_shard} examples, {size.seconds_per_example * 1000:g} ms each; "
        f"{args.repeats} repeats; {machine['cpu']}, {machine['cores']} cores, load at start {machine['load_at_start']:.1f}\n"
    )
    print(table(jobs, size))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
