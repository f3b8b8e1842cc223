"""Where the time of a real job goes: decoding, reading, tokenising, committing, notes, and Beam's rest.

    python -m benchmarks.stages [--slots=1,32] [--examples=1024] [--per-shard=256] [--repeats=3] [--output=FILE]
        [--config=FILE] [--config.decoding.gamma=3 ...]

`pipeline.generate` on the English-German pair, or with a config of one's own and then on all of its input, in this process
with one worker, with a clock around what it calls. The
*decode stage* lasts from the beginning of the first shard to the end of the last one's commit; models are loaded before
it, the summary is made after it. What no clock covers is Beam's: moving shards between steps, metrics, coders.

Prints Markdown and, with --output, writes JSON with the costs that `benchmarks.simulation --costs` takes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.overhead import ROOT, shown, write_input
from pipeline import generate
from pipeline.job.machine import processor
from transforms import attempts, read, shards
from transforms.decode import ShardModelHandler
from transforms.parts import read_footer

STEPS = {
    "notes": [(attempts, "begin"), (attempts, "end")],
    "read": [(read, "read_shard")],
    "tokenise": [(read, "_tokenize")],
    "decode": [(ShardModelHandler, "run_inference")],
    "commit": [(shards, "commit")],
    "load": [(ShardModelHandler, "load_model")],
}
"""By step, the functions that make it up. `read` calls `tokenise`, which is taken out of it."""


class Clock:
    """Seconds spent in functions of one thread, by step, and when the first began and the last ended."""

    def __init__(self):
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self.calls = dict.fromkeys(STEPS, 0)
        self.first = self.last = None

    def around(self, step: str, function: Callable) -> Callable:
        """`function`, timed."""

        def timed(*args, **kwargs):
            began = time.perf_counter()
            if self.first is None and step != "load":
                self.first = began
            try:
                return function(*args, **kwargs)
            finally:
                self.last = time.perf_counter()
                self.seconds[step] += self.last - began
                self.calls[step] += 1

        return timed

    @contextlib.contextmanager
    def running(self):
        """While the body runs, times every step."""
        kept = [(owner, name, getattr(owner, name)) for functions in STEPS.values() for owner, name in functions]
        try:
            for step, functions in STEPS.items():
                for owner, name in functions:
                    setattr(owner, name, self.around(step, getattr(owner, name)))
            yield self
        finally:
            for owner, name, function in kept:
                setattr(owner, name, function)


@dataclasses.dataclass(frozen=True)
class Stages:
    """One job.

    Attributes:
      slots, repeat: which one.
      examples, shards, tokens: what it decoded.
      load: seconds of loading and compiling.
      wall: seconds of the decode stage; read, tokenise, decode, commit, notes: of it.
      finish: seconds after it, for footers and summary.
    """

    slots: int
    repeat: int
    examples: int
    shards: int
    tokens: int
    load: float
    wall: float
    read: float
    tokenise: float
    decode: float
    commit: float
    notes: float
    finish: float

    @property
    def beam(self) -> float:
        """Seconds of the decode stage that no clock covers."""
        return self.wall - self.read - self.tokenise - self.decode - self.commit - self.notes


def run_job(slots: int, repeat: int, args: argparse.Namespace, folder: Path) -> Stages:
    """Runs one job in this process."""
    settings = list(args.job)
    if not any(arg.split("=")[0] == "--config" for arg in settings):
        write_input(folder / "input.jsonl", args.examples)
        demo = [f"--config={ROOT / 'configs' / 'quickstart.py'}", f"--config.input.pattern={folder / 'input.jsonl'}"]
        settings = demo + settings
    settings += [f"--config.shards.examples_per_shard={args.per_shard}", f"--config.decoding.num_slots={slots}"]
    with Clock().running() as clock:
        status = generate.main([*settings, f"--output={folder / 'out'}"])
        ended = time.perf_counter()
    if status:
        raise RuntimeError(f"the job ended with status {status}")
    summary = json.loads((folder / "out" / "summary.json").read_text())
    return account(clock, slots, repeat, summary, ended)


def account(clock: Clock, slots: int, repeat: int, summary: dict, ended: float) -> Stages:
    """What the clock and the job's summary say."""
    seconds = clock.seconds
    return Stages(
        slots,
        repeat,
        examples=summary["examples"],
        shards=summary["shards"]["committed"],
        tokens=summary["tokens"],
        load=seconds["load"],
        wall=clock.last - clock.first,
        read=seconds["read"] - seconds["tokenise"],
        tokenise=seconds["tokenise"],
        decode=seconds["decode"],
        commit=seconds["commit"],
        notes=seconds["notes"],
        finish=ended - clock.last,
    )


def table(jobs: Sequence[Stages]) -> str:
    """Markdown: a row per number of slots; shares of the decode stage's wall time."""
    lines = [
        "| slots | examples | wall, s | decode, % | read, % | tokenise, % | commit, % | notes, % | Beam, % | not decode, % |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for slots in dict.fromkeys(job.slots for job in jobs):
        cell = [job for job in jobs if job.slots == slots]
        share = lambda name, cell=cell: shown([100 * getattr(job, name) / job.wall for job in cell], 2)
        rest = shown([100 * (1 - job.decode / job.wall) for job in cell], 2)
        names = ("decode", "read", "tokenise", "commit", "notes", "beam")
        wall = shown([job.wall for job in cell], 1)
        lines.append(f"| {slots} | {cell[0].examples} | {wall} | " + " | ".join([*map(share, names), rest]) + " |")
    return "\n".join(lines)


def lengths(output: Path) -> list[list[int]]:
    """[input tokens, target calls] of every text of a finished job, for the simulation of the slots' drain."""
    import pyarrow.parquet as pq

    found = []
    for part in sorted((output / "generations").iterdir()):
        columns = pq.read_table(part, columns=["input_tokens", "num_iterations"]).to_pydict()
        found += [[len(tokens), calls] for tokens, calls in zip(columns["input_tokens"], columns["num_iterations"])]
    return found


def costs(jobs: Sequence[Stages], texts: Sequence[Sequence[int]], occupancy: float) -> dict:
    """What `benchmarks.simulation` needs of the jobs of one number of slots: medians, in seconds."""
    median = lambda value: float(np.median([value(job) for job in jobs]))
    return {
        "slots": jobs[0].slots,
        "load": median(lambda job: job.load),
        "read_per_example": median(lambda job: (job.read + job.tokenise) / job.examples),
        "decode_per_example": median(lambda job: job.decode / job.examples) * occupancy,
        "commit_per_example": median(lambda job: job.commit / job.examples),
        "per_shard": median(lambda job: (job.notes + job.beam) / job.shards),
        "occupancy": occupancy,
        "texts": texts,
    }


def occupancy_of(output: Path) -> float:
    """Share of slots in use over a finished job, its shards' drains included."""
    rows = slots = 0
    for part in (output / "generations").iterdir():
        statistics = read_footer(str(part)).statistics
        rows, slots = rows + statistics.row_iterations, slots + statistics.slot_iterations
    return rows / slots


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Other options are those of pipeline.generate.", allow_abbrev=False
    )
    parser.add_argument("--slots", default="1,32", help="numbers of slots, comma-separated")
    parser.add_argument("--examples", type=int, default=1024, help="of the pair")
    parser.add_argument("--per-shard", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="after one that does not count")
    parser.add_argument("--output", default="", help="JSON file")
    args, args.job = parser.parse_known_args(argv)
    load, jobs, measured = os.getloadavg()[0], [], []
    for slots in map(int, args.slots.split(",")):
        cell, texts, occupancy = [], [], 1.0
        for repeat in range(args.repeats + 1):
            folder = Path(tempfile.mkdtemp(prefix="stages-"))
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    cell.append(run_job(slots, repeat, args, folder))
                texts, occupancy = lengths(folder / "out"), occupancy_of(folder / "out")
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            print(cell[-1], file=sys.stderr, flush=True)
        jobs += cell[1:] or cell  # the first fills caches
        measured.append(costs(cell[1:] or cell, texts, occupancy))
    cores = len(os.sched_getaffinity(0))
    what = " ".join(args.job) or "configs/quickstart.py"
    where = f"{processor()}, {cores} cores, load at start {load:.1f}"
    print(f"{what}, {args.per_shard} examples per shard, {args.repeats} repeats; {where}\n")
    print(table(jobs))
    if args.output:
        machine = {"cpu": processor(), "cores": cores, "load_at_start": load}
        result = {"machine": machine, "jobs": [dataclasses.asdict(job) for job in jobs], "costs": measured}
        Path(args.output).write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
