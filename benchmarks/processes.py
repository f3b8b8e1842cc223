"""One process with all cores, or one process per core? What --direct_num_workers=N with processes is worth on a processor.

    python -m benchmarks.processes [--pair=examples/models/ende_software] [--slots=1,8,32] [--examples=256] [--repeats=5]

The same sentences are decoded plainly and greedily by one process that has all cores, and by as many processes as there are
cores, each bound to one and with its share of the sentences, as `pipeline.runners.local` does. Both have loaded and
compiled before anything is timed; they take turns in random order, while the other sleeps; the first repeat is dropped.
Time is from the first sentence handed out to the last one back.

Prints a Markdown table with t intervals.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path

import numpy as np

from benchmarks.engine import INPUT_TOKENS, ROOT, config_for, repeated
from benchmarks.measure import TimedRun, seconds_per_token, timed
from benchmarks.workloads import read_sentences
from pipeline.benchmarking.paired import Ratio, interleaved


def serve(connection, cores: set[int], target: str, slots: int) -> None:
    """Decodes what comes in, on these cores, until nothing does."""
    os.sched_setaffinity(0, cores)  # before JAX counts them
    import decoding

    decoding.keep_programs()
    generator = decoding.Generator(decoding.load_model(target), None, config_for(slots))
    connection.send("ready")
    while (work := connection.recv()) is not None:
        connection.send([result.tokens.tolist() for result in generator.generate(*work)])


class Processes:
    """Processes that decode together."""

    def __init__(self, shares: list[set[int]], target: str, slots: int):
        context, self._ends, self._members = multiprocessing.get_context("spawn"), [], []
        for cores in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, cores, target, slots), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._members.append(process)
        for end in self._ends:
            end.recv()

    def decode(self, inputs: list[list[int]], ids: list[str]) -> list[list[int]]:
        """All outputs, in order; every process has each so-manieth sentence."""
        count = len(self._ends)
        for i, end in enumerate(self._ends):
            end.send((inputs[i::count], ids[i::count]))
        outputs: list[list[int]] = [[]] * len(inputs)
        for i, end in enumerate(self._ends):
            outputs[i::count] = end.recv()
        return outputs

    def close(self) -> None:
        for end, process in zip(self._ends, self._members):
            end.send(None)
            process.join()


def measure(target: str, inputs: list[list[int]], ids: list[str], slots: int, repeats: int) -> dict:
    """One row of the table."""
    cores = sorted(os.sched_getaffinity(0))
    systems = {"one": Processes([set(cores)], target, slots), "many": Processes([{core} for core in cores], target, slots)}
    runs, outputs = [], {}
    try:
        for repeat, order in interleaved([list(systems)], repeats, seed=0):
            for name in order:
                seconds, cpu_seconds, outputs[name] = timed(lambda name=name: systems[name].decode(inputs, ids))
                runs.append(TimedRun(name, slots, repeat, seconds, cpu_seconds, sum(map(len, outputs[name]))))
    finally:
        for system in systems.values():
            system.close()
    speeds = {name: seconds_per_token(runs, name, slots) for name in systems}
    return {
        "tokens_per_second": {name: 1 / float(np.median(of)) for name, of in speeds.items()},
        "ratio": Ratio.of(speeds["one"], speeds["many"]),
        "equal": sum(a == b for a, b in zip(outputs["one"], outputs["many"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default=str(ROOT / "examples" / "models" / "ende_software"))
    parser.add_argument("--data", default=str(ROOT / "examples" / "data" / "ende_software.test.jsonl"))
    parser.add_argument("--slots", default="1,8,32", help="numbers of slots of every process, comma-separated")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5, help="repeats that count")
    args = parser.parse_args()
    target = f"{args.pair}/target"
    inputs = read_sentences(Path(args.data), Path(target) / "spiece.model", INPUT_TOKENS)
    inputs, ids = repeated(inputs, args.examples)
    cores = len(os.sched_getaffinity(0))
    print(f"| slots | tokens/s of 1 process with {cores} cores | of {cores} with 1 | times as fast (95%) | equal outputs |")
    print("|--:|--:|--:|--:|--:|")
    for slots in map(int, args.slots.split(",")):
        row = measure(target, inputs, ids, slots, args.repeats)
        speeds, ratio = row["tokens_per_second"], row["ratio"]
        print(
            f"| {slots} | {speeds['one']:.0f} | {speeds['many']:.0f} | {ratio:.2f} | {row['equal']} of {len(inputs)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
