"""Speculative beam search over u and γ, on a pair of models and real sentences.

    python -m benchmarks.beams [--pair=examples/models/ende_software] [--sentences=100] [--beams=4]
        [--widths=4,8,16] [--gammas=2,4,6] [--slots=8] [--repeats=0] [--output=FILE]

For every u and γ: target calls per step of the search, the share of steps covered (of those for which something was drafted),
and how many texts differ from plain beam search's, ties of scores closer than 1e-4 aside. With --repeats also the speedup over
plain beams, interleaved, with its interval; the first repeat is dropped. Without, nothing is timed and the machine may be busy.

Prints Markdown and, with --output, writes JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import decoding
from benchmarks.workloads import read_sentences
from pipeline.benchmarking.paired import Ratio, interleaved
from transforms.statistics import beams

ROOT = Path(__file__).resolve().parent.parent
INPUT_TOKENS, NEW_TOKENS = 64, 64
CLOSE = 1e-4
PLAIN = (0, 0)


def differing(ours: list[decoding.Generation], plain: list[decoding.Generation], each: int) -> tuple[int, int]:
    """Inputs whose n-best lists differ, and those of them in which no two scores that decide are close."""
    differ = clear = 0
    for i in range(0, len(plain), each):
        pairs = list(zip(ours[i : i + each], plain[i : i + each]))
        if all(one.tokens.tolist() == other.tokens.tolist() for one, other in pairs):
            continue
        differ += 1
        clear += any(abs(one.score - other.score) > CLOSE for one, other in pairs)
    return differ, clear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", type=Path, default=ROOT / "examples" / "models" / "ende_software")
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "data" / "ende_software.test.jsonl")
    numbers = lambda text: tuple(map(int, text.split(",")))
    for name, default in (("sentences", 100), ("beams", 4), ("slots", 8), ("repeats", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--widths", type=numbers, default=(4, 8, 16), help="u, beams of the draft")
    parser.add_argument("--gammas", type=numbers, default=(2, 4, 6))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    decoding.keep_programs()
    target, draft = (decoding.load_model(str(options.pair / name)) for name in ("target", "draft"))
    pieces = options.pair / "target" / "spiece.model"
    inputs = read_sentences(options.data, pieces, INPUT_TOKENS)[: options.sentences]
    ids = list(map(str, range(len(inputs))))
    base = decoding.DecodingConfig(
        gamma=0, temperature=0.0, max_decode_tokens=NEW_TOKENS, num_slots=options.slots, input_buckets=(INPUT_TOKENS,),
        num_beams=options.beams, num_return_sequences=options.beams, length_penalty=0.6,
    )  # fmt: skip
    settings = [PLAIN, *((width, gamma) for width in options.widths for gamma in options.gammas)]
    make = lambda width, gamma: decoding.Generator(
        target, draft if gamma else None, dataclasses.replace(base, gamma=gamma, draft_beams=width)
    )
    found, plain, rows = {}, None, []
    for width, gamma in settings:
        results = make(width, gamma).generate(inputs, ids)
        plain = plain or results
        summary = beams.summary(beams.sums(ids, results[:: options.beams]))
        differ, clear = differing(results, plain, options.beams)
        found[width, gamma] = {"u": width, "gamma": gamma, **summary, "differing": differ, "differing_clearly": clear}
        if gamma:
            covered, calls = summary["covered"], summary["calls_per_step"]
            interval = lambda one: f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
            rows.append(f"| {width} | {gamma} | {interval(calls)} | {interval(covered)} | {differ} | {clear} |")
            print(rows[-1], flush=True)
    if options.repeats:
        generators, seconds = {one: make(*one) for one in settings}, {one: [] for one in settings}
        for repeat, order in interleaved([settings], options.repeats, seed=0):
            for one in order:
                start = time.perf_counter()
                generators[one].generate(inputs, ids)
                if repeat:
                    seconds[one].append(time.perf_counter() - start)
        for one in settings[1:]:
            found[one]["speedup"] = dataclasses.asdict(Ratio.of(seconds[PLAIN], seconds[one]))
    print(f"\n{len(inputs)} sentences, w = {options.beams}\n")
    print("| u | γ | calls per step | steps covered | lists that differ | by more than 1e-4 |\n|--:|--:|--:|--:|--:|--:|")
    print("\n".join(rows))
    for (width, gamma), one in found.items():
        if ratio := one.get("speedup"):
            print(f"u = {width}, γ = {gamma}: {ratio['mean']:.2f}x [{ratio['low']}, {ratio['high']}] over plain beams")
    if options.output:
        options.output.write_text(json.dumps(list(found.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
