"""Is the cost model of gamma = "auto" right: seconds per iteration that it measured at load against those of a job, by γ.

    python -m benchmarks.costs [--pair=examples/models/ende_software] [--batches=1,8] [--temperatures=0,1] [--repeats=5]
        [--examples=32]

One generator decodes real sentences, every γ of its set in turn, in random order; its chunks are timed from their call to
their results. The machine's speed changes between load and job, so that a ratio is taken to that of γ = 0 in the same repeat,
which is what a choice rests on: (seconds of γ / seconds of 0), measured over predicted. The first repeat is dropped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np

import decoding
from benchmarks.auto import always
from benchmarks.engine import INPUT_TOKENS, NEW_TOKENS, ROOT, repeated
from benchmarks.workloads import read_sentences


class TimedPrograms:
    """Programs whose chunks are timed: `seconds` and `iterations` so far."""

    def __init__(self, programs):
        self._programs, self.seconds, self.iterations = programs, 0.0, 0

    def __getattr__(self, name: str):
        """The other programs, waited for: what they take is no part of an iteration."""
        found = getattr(self._programs, name)
        return (lambda *args: jax.block_until_ready(found(*args))) if name in ("prefill", "insert", "follow") else found

    def chunk(self, *args):
        started = time.perf_counter()
        results = jax.block_until_ready(self._programs.chunk(*args))
        self.seconds += time.perf_counter() - started
        self.iterations += int(np.any(np.asarray(results[2].count), axis=1).sum())
        return results


def measure(generator, inputs: list, ids: list[str], repeats: int) -> tuple[dict, dict]:
    """Seconds per iteration by γ: those predicted, and one of each repeat."""
    gammas, order = generator.config.gammas, np.random.default_rng(0)
    measured, programs = {gamma: [] for gamma in gammas}, generator._programs
    for repeat in range(repeats + 1):
        for gamma in map(int, order.permutation(gammas)):
            timed = generator._programs = TimedPrograms(programs)
            with always(gamma):
                generator.generate(inputs, ids)
            if repeat:
                measured[gamma].append(timed.seconds / timed.iterations)
    generator._programs = programs
    return {gamma: generator.costs[gamma] for gamma in gammas}, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default=str(ROOT / "examples" / "models" / "ende_software"))
    parser.add_argument("--data", default=str(ROOT / "examples" / "data" / "ende_software.test.jsonl"))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--temperatures", default="0,1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--examples", type=int, default=32, help="sentences per run, at least two for each slot")
    args = parser.parse_args()
    decoding.keep_programs()
    target, draft = (decoding.load_model(f"{args.pair}/{name}") for name in ("target", "draft"))
    inputs = read_sentences(Path(args.data), Path(args.pair) / "target" / "spiece.model", INPUT_TOKENS)
    print("| batch | temperature | γ | predicted, ms | measured, ms | measured over predicted, to γ = 0 (least to most) |")
    print("|--:|--:|--:|--:|--:|--:|")
    for temperature in map(float, args.temperatures.split(",")):
        for batch in map(int, args.batches.split(",")):
            settings = dict(temperature=temperature, num_slots=batch, max_decode_tokens=NEW_TOKENS)
            config = decoding.DecodingConfig(gamma="auto", input_buckets=(INPUT_TOKENS,), **settings)
            generator = decoding.Generator(target, draft, config)
            predicted, measured = measure(generator, *repeated(inputs, max(args.examples, 2 * batch)), args.repeats)
            for gamma, seconds in measured.items():
                ratios = np.array(seconds) / measured[0] / (predicted[gamma] / predicted[0])
                print(
                    f"| {batch} | {temperature:g} | {gamma} | {predicted[gamma] * 1e3:.3f} | {np.median(seconds) * 1e3:.3f} "
                    f"| {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
