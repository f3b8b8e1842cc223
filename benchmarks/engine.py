"""What the engine's own devices are worth, on a pair of models and real sentences.

    python -m benchmarks.engine [--pair=examples/models/ende_software] [--slots=8,32] [--repeats=5] [--output=FILE]

- refill: all sentences at once, finished rows making room for waiting ones, against the same sentences in fixed batches
  of the same size, each waiting for its slowest row; and how full the slots were.
- block against token verification at temperature 1: target calls per token, paired by sentence.
- memory: the peak of a process that decodes 256 sentences, and of one that decodes 4,096.

Prints Markdown and, with --output, writes JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import decoding
from benchmarks.machine import describe
from benchmarks.measure import TimedRun, seconds_per_token, timed
from benchmarks.workloads import read_sentences
from pipeline.benchmarking.paired import Ratio, interleaved

ROOT = Path(__file__).resolve().parent.parent
INPUT_TOKENS, NEW_TOKENS = 64, 64
EXAMPLES_PER_SLOT = 16


def config_for(slots: int, **changes) -> decoding.DecodingConfig:
    settings = {"gamma": 0, "temperature": 0.0, "max_decode_tokens": NEW_TOKENS, "num_slots": slots}
    return decoding.DecodingConfig(**(settings | {"input_buckets": (INPUT_TOKENS,)} | changes))


def repeated(inputs: list[list[int]], count: int) -> tuple[list[list[int]], list[str]]:
    """`count` inputs, going round where there are fewer, in an order that mixes lengths; and ids for them."""
    order = np.random.default_rng(0).permutation(count) % len(inputs)
    return [inputs[i] for i in order], [f"{n}:{i}" for n, i in enumerate(order)]


def measure_refill(target, inputs: list[list[int]], slots: int, repeats: int) -> dict:
    """Refill against fixed batches, greedy and plain, interleaved; the first repeat is dropped."""
    generator = decoding.Generator(target, None, config_for(slots))
    inputs, ids = repeated(inputs, EXAMPLES_PER_SLOT * slots)
    occupancy = {}

    def refill():
        results, report = generator.generate_with_report(inputs, ids)
        occupancy["refill"] = report.occupancy
        return [result.tokens for result in results]

    def fixed():
        outputs, rows, iterations = [], 0, 0
        for start in range(0, len(inputs), slots):
            part = slice(start, start + slots)
            results, report = generator.generate_with_report(inputs[part], ids[part])
            outputs += [result.tokens for result in results]
            rows, iterations = rows + report.row_iterations, iterations + report.iterations
        occupancy["fixed"] = rows / (iterations * slots)
        return outputs

    systems = {"refill": refill, "fixed": fixed}
    runs, outputs = [], {}
    for repeat, order in interleaved([list(systems)], repeats, seed=0):
        for system in order:
            seconds, cpu_seconds, outputs[system] = timed(systems[system])
            runs.append(TimedRun(system, slots, repeat, seconds, cpu_seconds, sum(map(len, outputs[system]))))
    speeds = {name: seconds_per_token(runs, name, slots) for name in systems}
    ratio = Ratio.of(speeds["fixed"], speeds["refill"])
    return {
        "slots": slots,
        "examples": len(inputs),
        "tokens_per_second": {name: 1 / float(np.median(speeds[name])) for name in systems},
        "speedup": dataclasses.asdict(ratio),
        "occupancy": occupancy,
        "equal_outputs": sum(a.tolist() == b.tolist() for a, b in zip(outputs["refill"], outputs["fixed"])),
    }


def measure_block(target, draft, inputs: list[list[int]], gamma: int, slots: int = 8, samples: int = 4) -> dict:
    """Tokens per target call of both verifications, and their ratio with a bootstrap interval over sentences."""
    per_input = {}
    for verification in ("token", "block"):
        config = config_for(slots, gamma=gamma, temperature=1.0, verification=verification, num_samples=samples)
        generator = decoding.Generator(target, draft, config)
        results = generator.generate(inputs, [str(i) for i in range(len(inputs))])
        counts = np.array([[len(result.tokens), result.target_calls] for result in results])
        per_input[verification] = counts.reshape(len(inputs), samples, 2).sum(axis=1)
    chosen = np.random.default_rng(0).integers(len(inputs), size=(10_000, len(inputs)))
    rates = {name: counts.sum(axis=0) for name, counts in per_input.items()}
    draws = {name: counts[chosen].sum(axis=1) for name, counts in per_input.items()}
    rate = lambda counts: counts[..., 0] / counts[..., 1]
    low, high = np.quantile(rate(draws["block"]) / rate(draws["token"]), [0.025, 0.975])
    return {
        "gamma": gamma,
        "sentences": len(inputs),
        "samples": samples,
        "tokens_per_call": {name: float(rate(counts)) for name, counts in rates.items()},
        "ratio": [float(rate(rates["block"]) / rate(rates["token"])), float(low), float(high)],
    }


def peak_mib(pair: str, count: int) -> float:
    """Peak resident memory of a process that decodes `count` sentences in one call."""
    command = [sys.executable, "-m", "benchmarks.engine", f"--pair={pair}", f"--decode={count}"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return float(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default=str(ROOT / "examples" / "models" / "ende_software"))
    parser.add_argument("--data", default=str(ROOT / "examples" / "data" / "ende_software.test.jsonl"))
    parser.add_argument("--slots", default="8,32", help="numbers of slots, comma-separated")
    parser.add_argument("--repeats", type=int, default=5, help="repeats that count")
    parser.add_argument("--gamma", type=int, default=4, help="drafted tokens in the comparison of verifications")
    parser.add_argument("--decode", type=int, default=0, help="only decode so many sentences and print the peak in MiB")
    parser.add_argument("--output", default="", help="JSON file")
    args = parser.parse_args()
    target = decoding.load_model(f"{args.pair}/target")
    inputs = read_sentences(Path(args.data), Path(args.pair) / "target" / "spiece.model", INPUT_TOKENS)
    if args.decode:
        inputs, ids = repeated(inputs, args.decode)
        decoding.Generator(target, None, config_for(8)).generate(inputs, ids)
        # Not getrusage's maximum, which a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024)
        return
    result = {"machine": describe(threads=len(os.sched_getaffinity(0)))}
    result["refill"] = [measure_refill(target, inputs, int(slots), args.repeats) for slots in args.slots.split(",")]
    draft = decoding.load_model(f"{args.pair}/draft")
    result["block"] = measure_block(target, draft, inputs, args.gamma)
    result["peak_mib"] = {str(count): peak_mib(args.pair, count) for count in (256, 4096)}
    for row in result["refill"]:
        print(
            f"| {row['slots']} | {row['examples']} | {row['tokens_per_second']['fixed']:.0f} "
            f"| {row['tokens_per_second']['refill']:.0f} | {Ratio(**row['speedup']):.2f} "
            f"| {row['occupancy']['fixed']:.2f} | {row['occupancy']['refill']:.2f} | {row['equal_outputs']} |"
        )
    print(json.dumps({"block": result["block"], "peak_mib": result["peak_mib"], "machine": result["machine"]}, indent=1))
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
