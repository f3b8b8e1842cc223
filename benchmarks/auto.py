"""Is gamma = "auto" as good as the best fixed γ, which nobody knows beforehand?

    python -m benchmarks.auto [--pair=examples/models/ende_software] [--batches=1,2,4,8,16,32,64] [--temperatures=0,1]
        [--repeats=16] [--examples=128] [--output=FILE]

For every batch size and temperature, in one process on the same sentences, interleaved in random order: first plain
decoding and every fixed γ of auto's set, of which the fastest by its median is picked, then the picked one and auto with
costs that it measured itself; so the picked one has no luck to lose. The first repeat of either half is dropped. Fixed γ
run auto's own programs with a policy that does not choose; plain decoding is a Generator without a draft. A fixed γ that
needs more than twice the fastest's time in the dropped repeat, or more than 1.25 times in both of the next two, is not
run again; where one is left, it is the pick.

Prints a Markdown table with t intervals, and the geometric mean of all settings. Bound to one core (`taskset -c 0`) it
needs far fewer repeats for the same interval.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from pathlib import Path
from unittest import mock

import numpy as np

import decoding
import decoding.adaptive
from benchmarks.engine import INPUT_TOKENS, NEW_TOKENS, ROOT, repeated
from benchmarks.machine import describe
from benchmarks.measure import TimedRun, seconds_per_token, timed
from benchmarks.workloads import read_sentences
from pipeline.benchmarking.paired import Ratio

# How many times the fastest's time makes a fixed γ hopeless, by the repeat after which it is asked.
HOPELESS = {0: 2.0, 2: 1.25}


class Fixed:
    """In place of `GammaPolicy`: one γ."""

    def __init__(self, gamma: int):
        self._gamma = gamma

    def choose(self) -> tuple[int, bool]:
        return self._gamma, False

    def observe(self, *seen) -> None:
        pass


def always(gamma: int):
    """A context in which a generator with gamma="auto" always takes one γ."""
    return mock.patch.object(decoding.adaptive, "GammaPolicy", lambda costs: Fixed(gamma))


def measure_setting(target, draft, inputs, batch: int, temperature: float, repeats: int, examples: int) -> dict:
    """One row of the table."""
    settings = dict(
        temperature=temperature, num_slots=batch, max_decode_tokens=NEW_TOKENS, input_buckets=(INPUT_TOKENS,)
    )
    auto = decoding.Generator(target, draft, decoding.DecodingConfig(gamma="auto", **settings))
    plain = decoding.Generator(target, None, decoding.DecodingConfig(gamma=0, **settings))
    inputs, ids = repeated(inputs, max(examples, 2 * batch))
    used = {}

    def run(name: str):
        generator = plain if name == "0" else auto
        with contextlib.nullcontext() if name in ("0", "auto") else always(int(name)):
            results, report = generator.generate_with_report(inputs, ids)
        if name == "auto":
            used.update(report.gammas)
        return [result.tokens for result in results]

    order = np.random.default_rng(0)

    def repeat(names: list[str], number: int) -> list[TimedRun]:
        runs = []
        for name in order.permutation(names):
            seconds, cpu_seconds, outputs = timed(lambda name=name: run(name))
            runs.append(TimedRun(name, batch, number, seconds, cpu_seconds, sum(map(len, outputs))))
        return runs

    names, picking = [str(gamma) for gamma in auto.config.gammas], []
    for number in range(repeats + 1):
        picking += repeat(names, number)
        if number in HOPELESS:
            recent = [r for r in picking if r.repeat >= min(number, 1)]
            fastest = {name: min(r.seconds_per_token for r in recent if r.system == name) for name in names}
            limit = HOPELESS[number] * min(fastest.values())
            names = [name for name in names if fastest[name] <= limit]
            if len(names) == 1:
                break
    medians = {name: np.median(seconds_per_token(picking, name, batch) or [np.inf]) for name in names}
    best = min(names, key=medians.__getitem__)
    runs = [one for number in range(repeats + 1) for one in repeat([best, "auto"], number)]
    times = {name: seconds_per_token(runs, name, batch) for name in (best, "auto")}
    ratio = Ratio.of(times[best], times["auto"])
    return {
        "batch": batch,
        "temperature": temperature,
        "tokens_per_second": {name: 1 / float(np.median(of)) for name, of in times.items()},
        "best": best,
        "ratio": [ratio.mean, ratio.low, ratio.high],
        "gammas_of_auto": used,
        "costs": dict(auto.costs),
        "runs": [[r.system, r.repeat, r.seconds, r.cpu_seconds, r.tokens] for r in runs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default=str(ROOT / "examples" / "models" / "ende_software"))
    parser.add_argument("--data", default=str(ROOT / "examples" / "data" / "ende_software.test.jsonl"))
    parser.add_argument("--batches", default="1,2,4,8,16,32,64")
    parser.add_argument("--temperatures", default="0,1")
    parser.add_argument("--repeats", type=int, default=16, help="that count, in each half")
    parser.add_argument("--examples", type=int, default=128, help="sentences per run, at least two for each slot")
    parser.add_argument("--output", default="", help="JSON file")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error(f"--repeats={args.repeats}: at least 2, for an interval")
    decoding.keep_programs()
    target, draft = (decoding.load_model(f"{args.pair}/{name}") for name in ("target", "draft"))
    inputs = read_sentences(Path(args.data), Path(args.pair) / "target" / "spiece.model", INPUT_TOKENS)
    result = {"machine": describe(threads=len(os.sched_getaffinity(0))), "settings": []}
    print("| batch | temperature | best fixed γ | its tokens/s | auto's | auto over best (95%) | γ that auto used |")
    print("|--:|--:|--:|--:|--:|--:|---|")
    for temperature in map(float, args.temperatures.split(",")):
        for batch in map(int, args.batches.split(",")):
            row = measure_setting(target, draft, inputs, batch, temperature, args.repeats, args.examples)
            result["settings"].append(row)
            speeds, (ratio, low, high) = row["tokens_per_second"], row["ratio"]
            used = ", ".join(f"{gamma}: {n}" for gamma, n in sorted(row["gammas_of_auto"].items()))
            print(
                f"| {batch} | {temperature:g} | {row['best']} | {speeds[row['best']]:.0f} | {speeds['auto']:.0f} "
                f"| {ratio:.3f} ({low:.3f} to {high:.3f}) | {used} |",
                flush=True,
            )
            if args.output:
                Path(args.output).write_text(json.dumps(result, indent=1))
    ratios = [row["ratio"][0] for row in result["settings"]]
    print(f"\nGeometric mean over {len(ratios)} settings: {math.exp(np.mean(np.log(ratios))):.3f}")


if __name__ == "__main__":
    main()
