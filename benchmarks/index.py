"""The corpus draft at size: seconds and memory to build its index, and what a step's lookup takes beside the target's step.

    python -m benchmarks.index --tokens=50_000_000 --slots=32 --gamma=7 --target=DIR

Texts are synthetic: tokens by Zipf's law, half of the texts earlier ones with a token changed, so that matches are long and
short. They are written and sorted by `transforms.index` on Beam's local runner, in this process. The search is timed as the
engine runs it, many steps in one program, interleaved with steps of the target over γ + 1 positions; the fastest of several.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import apache_beam as beam
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import decoding
from decoding.drafts import suffixes
from decoding.rows import Rows
from pipeline.runners.options import LOCAL_RUNNER
from transforms.index import FitIndex, IndexSettings
from transforms.ngram import Texts

TARGET = Path(__file__).resolve().parent.parent / "examples" / "models" / "ende_software" / "target"
TEXT_TOKENS, TEXTS_PER_ITEM = 50, 20_000
POSITIONS = 64  # of rows, at which steps are timed


class Synthetic(beam.DoFn):
    """Numbers to `Texts` of so many tokens of a vocabulary, functions of the number alone."""

    def __init__(self, vocab_size: int):
        self._vocab_size = vocab_size

    def process(self, number: int):
        yield Texts(tuple((0, text) for text in texts_of(number, self._vocab_size)))


def texts_of(number: int, vocab_size: int) -> np.ndarray:
    """int32[TEXTS_PER_ITEM, TEXT_TOKENS]."""
    rng = np.random.default_rng(number)
    ranks = rng.zipf(1.2, (TEXTS_PER_ITEM, TEXT_TOKENS)) % (vocab_size - 2) + 2
    half = TEXTS_PER_ITEM // 2
    ranks[half:] = ranks[rng.integers(0, half, TEXTS_PER_ITEM - half)]
    ranks[np.arange(half, TEXTS_PER_ITEM), rng.integers(0, TEXT_TOKENS, TEXTS_PER_ITEM - half)] = 2
    ranks[:, -1] = 1
    return ranks.astype(np.int32)


def build(folder: str, tokens: int, vocab_size: int) -> dict[str, float]:
    """Builds an index of about so many tokens. Returns seconds, its bytes, and the process's memory before and at most."""
    items = max(1, tokens // (TEXT_TOKENS * TEXTS_PER_ITEM))
    before, started = _peak_bytes(), time.perf_counter()
    with beam.Pipeline(runner=LOCAL_RUNNER) as root:
        numbered = root | beam.Create([(number, number) for number in range(items)]) | beam.Reshuffle()
        _ = numbered | FitIndex(Synthetic(vocab_size), IndexSettings(folder, vocab_size, 0, 1, {}))
    return {
        "tokens": items * TEXT_TOKENS * TEXTS_PER_ITEM,
        "seconds": time.perf_counter() - started,
        "bytes": os.path.getsize(os.path.join(folder, suffixes.FILE)),
        "memory_before": before,
        "memory_at_most": _peak_bytes(),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def search_seconds(folder: str, target_path: str, slots: int, gamma: int, temperature: float, repeats: int) -> dict[str, float]:
    """Seconds of one step's lookup, and of one step of the target, all slots together."""
    target = decoding.load_model(target_path)
    draft = decoding.CorpusDraft.load(folder).for_target(target)
    config = decoding.DecodingConfig(gamma=gamma, temperature=temperature)
    text = np.zeros((slots, POSITIONS + 1), np.int32)
    text[:, 1:] = np.concatenate([texts_of(0, draft.vocab_size), texts_of(0, draft.vocab_size)], 1)[:slots, :POSITIONS]
    state = draft.follow(draft.init_state(slots, 8, 4 * POSITIONS), jnp.asarray(text), jnp.zeros((slots,), jnp.int32))
    inputs = jnp.full((slots, 32), 5, jnp.int32)
    resident = target.init_state(slots, 32, 4 * POSITIONS)
    resident |= target.prefill(inputs, jnp.full((slots,), 32, jnp.int32))

    def rows(k) -> Rows:
        position = jnp.full((slots,), 1, jnp.int32) + (8 + k) % (POSITIONS - 8)
        at = lambda where: jnp.take_along_axis(state["text"], where[:, None], axis=1)[:, 0]
        zeros = jnp.zeros((slots,), jnp.int32)
        return Rows(at(position - 1), at(position), position, zeros, zeros > 0, jnp.zeros((slots, 2), jnp.uint32))

    @functools.partial(jax.jit, static_argnums=(0,))
    def look_up(graph, params, steps, state):
        def one(k, carry):
            total, state = carry
            proposal, state = nnx.merge(graph, params).propose(state, rows(k), gamma, config)
            return total + jnp.sum(proposal.tokens * proposal.count[:, None]), state

        return jax.lax.fori_loop(0, steps, one, (jnp.int32(0), state))[0]

    @functools.partial(jax.jit, static_argnums=(0,))
    def decode(graph, params, steps, resident):
        def one(k, carry):
            tokens, resident = carry
            logits, resident = nnx.merge(graph, params).step(tokens, rows(k).position, resident)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), resident

        return jax.lax.fori_loop(0, steps, one, (jnp.zeros((slots, gamma + 1), jnp.int32), resident))[0]

    of_draft, of_target = nnx.split(draft), nnx.split(target)
    programs = {
        "lookup": (lambda steps: look_up(*of_draft, steps, state), 200),
        "target": (lambda steps: decode(*of_target, steps, resident), 10),
    }
    best = dict.fromkeys(programs, float("inf"))
    for repeat in range(repeats + 1):
        for name, (program, steps) in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(program(jnp.int32(steps)))
            if repeat:  # the first compiles
                best[name] = min(best[name], (time.perf_counter() - started) / steps)
    return best


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tokens", type=int, default=50_000_000)
    add("--slots", type=int, default=32)
    add("--gamma", type=int, default=7)
    add("--repeats", type=int, default=5)
    add("--target", default=str(TARGET), help="directory of the model whose step the lookup is compared with")
    add("--json", help="file for all numbers")
    arguments = parser.parse_args(argv)
    vocab_size = decoding.inspect_checkpoint(arguments.target).vocab_size
    with tempfile.TemporaryDirectory() as folder:
        results = {"build": build(folder, arguments.tokens, vocab_size)}
        made = results["build"]
        per_token, most, before = made["bytes"] / made["tokens"], made["memory_at_most"] >> 20, made["memory_before"] >> 20
        print(f"{made['tokens']:,} tokens in {made['seconds']:.0f} s, {per_token:.1f} bytes each", flush=True)
        print(f"memory: {most} MiB at most, {before} MiB before", flush=True)
        for temperature in (0.0, 1.0):
            found = search_seconds(
                folder, arguments.target, arguments.slots, arguments.gamma, temperature, arguments.repeats
            )
            results[f"temperature {temperature:g}"] = found
            share = found["lookup"] / found["target"]
            print(f"temperature {temperature:g}, {arguments.slots} slots: lookup {1e6 * found['lookup']:.0f} µs, target "
                  f"{1e6 * found['target']:.0f} µs: {share:.1%}", flush=True)  # fmt: skip
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
