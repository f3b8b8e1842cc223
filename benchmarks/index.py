"""Drafts that copy, at size: seconds and memory to build an index, and what a step's search takes beside the target's step.

    python -m benchmarks.index --tokens=50_000_000 --workers=2 --slots=32 --gamma=7 --target=t5-v1.1-small

Texts are synthetic: tokens by Zipf's law, half of the texts earlier ones with a token changed, so that matches are long and
short. They are written and sorted by `transforms.index` on Beam's local runner, in threads of this process. Memory is what the
build takes beside mapped pages, which are the system's to drop. Searches, the index's and the lookup's with and without hints,
are timed as the engine runs them, many steps in one program, interleaved with steps of the target over γ + 1 positions; the
fastest of several.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apache_beam as beam
import jax
import jax.numpy as jnp
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from flax import nnx

import decoding
from decoding import kernels
from decoding.checkpoints.architecture import build as built
from decoding.checkpoints.architecture import parse_config, resolve
from decoding.checkpoints.presets import PRESETS
from decoding.drafts import suffixes
from decoding.kernels.logits import used_by
from decoding.models.resident import pack_model
from decoding.rows import Rows
from transforms.index import FitIndex, IndexSettings
from transforms.ngram import Texts

TARGET = "t5-v1.1-small"
TEXT_TOKENS, TEXTS_PER_ITEM = 50, 20_000
POSITIONS = 64  # of rows, at which steps are timed
HINT_TOKENS = 128


class Synthetic(beam.DoFn):
    """Numbers to `Texts` of so many tokens of a vocabulary, functions of the number alone."""

    def __init__(self, vocab_size: int):
        self._vocab_size = vocab_size

    def process(self, number: int):
        yield Texts(tuple((0, text) for text in texts_of(number, self._vocab_size)))


def texts_of(number: int, vocab_size: int) -> np.ndarray:
    """int32[TEXTS_PER_ITEM, TEXT_TOKENS]."""
    rng = np.random.default_rng(number)
    ranks = np.floor((vocab_size - 2) ** rng.random((TEXTS_PER_ITEM, TEXT_TOKENS))).astype(np.int32) + 1
    half = TEXTS_PER_ITEM // 2
    ranks[half:] = ranks[rng.integers(0, half, TEXTS_PER_ITEM - half)]
    ranks[np.arange(half, TEXTS_PER_ITEM), rng.integers(0, TEXT_TOKENS, TEXTS_PER_ITEM - half)] = 2
    ranks[:, -1] = 1
    return ranks


def build(folder: str, tokens: int, vocab_size: int, workers: int) -> dict[str, float]:
    """Builds an index of about so many tokens. Returns seconds, its bytes, and bytes of memory that it took at most."""
    items = max(1, tokens // (TEXT_TOKENS * TEXTS_PER_ITEM))
    options = PipelineOptions(
        [], direct_num_workers=workers, direct_running_mode="multi_threading" if workers > 1 else "in_memory"
    )
    started = time.perf_counter()
    with most_memory() as memory, beam.Pipeline(options=options) as root:
        numbered = root | beam.Create([(number, number) for number in range(items)]) | beam.Reshuffle()
        _ = numbered | FitIndex(Synthetic(vocab_size), IndexSettings(folder, vocab_size, 0, 1, {}))
    return {
        "tokens": items * TEXT_TOKENS * TEXTS_PER_ITEM,
        "seconds": time.perf_counter() - started,
        "bytes": os.path.getsize(os.path.join(folder, suffixes.FILE)),
        "memory": memory[-1] - memory[0],
    }


@contextmanager
def most_memory() -> Iterator[list[int]]:
    """Bytes of this process's memory that no file is mapped to, before and at most: a list that grows with the latter."""
    status, over = Path("/proc/self/status"), threading.Event()
    now = lambda: int(re.search(r"RssAnon:\s+(\d+) kB", status.read_text()).group(1)) * 1024
    seen = [now()]

    def watch():
        while not over.wait(0.02):
            if (taken := now()) > seen[-1]:
                seen.append(taken)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def load_target(name: str) -> decoding.LanguageModel:
    """A checkpoint's, or a preset's with random weights, as a job has it."""
    if name not in PRESETS:
        return decoding.load_model(name)
    model = built(parse_config(*resolve(name)), jnp.float32)
    return pack_model(model) if kernels.available() else model


def search_seconds(
    target: decoding.LanguageModel, folder: str, slots: int, gamma: int, temperature: float, repeats: int
) -> dict[str, float]:
    """Seconds of one step's search by draft, and of one step of the target, all slots together."""
    config = decoding.DecodingConfig(gamma=gamma, temperature=temperature)
    drafts = {
        "index": decoding.CorpusDraft.load(folder),
        "lookup": decoding.PromptLookupDraft(),
        "lookup with hints": decoding.PromptLookupDraft(hint_tokens=HINT_TOKENS),
    }
    drafts = {name: draft.for_target(target) for name, draft in drafts.items()}
    texts = np.concatenate([texts_of(0, target.vocab_size), texts_of(0, target.vocab_size)], axis=1)
    text = np.zeros((slots, POSITIONS + 1), np.int32)
    text[:, 1:] = texts[:slots, :POSITIONS]
    hints = jnp.asarray(np.pad(texts[:slots, : HINT_TOKENS // 2], ((0, 0), (0, HINT_TOKENS - HINT_TOKENS // 2))))
    inputs, lengths = jnp.full((slots, 32), 5, jnp.int32), jnp.full((slots,), 32, jnp.int32)

    def filled(model, *own):
        return model.init_state(slots, 32, 4 * POSITIONS) | model.prefill(inputs, lengths, *own)

    def rows(k) -> Rows:
        position = jnp.full((slots,), 1, jnp.int32) + (8 + k) % (POSITIONS - 8)
        at = lambda where: jnp.take_along_axis(jnp.asarray(text), where[:, None], axis=1)[:, 0]
        zeros = jnp.zeros((slots,), jnp.int32)
        return Rows(at(position - 1), at(position), position, zeros, zeros > 0, jnp.zeros((slots, 2), jnp.uint32))

    def program(one, model, state, steps):
        """Many steps as one program: what is timed, and how many steps there are."""
        graph, params = nnx.split(model)

        def run(params, steps, state):
            step = lambda k, carry: one(nnx.merge(graph, params), k, *carry)
            return jax.lax.fori_loop(0, steps, step, (jnp.int32(0), state))[0]

        return functools.partial(jax.jit(used_by(run)), params, jnp.int32(steps), state), steps

    def look_up(draft, k, total, state):
        proposal, state = draft.propose(state, rows(k), gamma, config)
        return total + jnp.sum(proposal.tokens * proposal.count[:, None]), state

    def decode(target, k, total, state):
        tokens = jnp.full((slots, gamma + 1), 5, jnp.int32) + total
        logits, state = target.step(tokens, rows(k).position, state)
        return (jnp.max(logits) > 1e9).astype(jnp.int32), state

    programs = {"target": program(decode, target, filled(target), 3)}
    for name, draft in drafts.items():
        state = filled(draft, *((hints,) if draft.hint_tokens else ()))
        state = draft.follow(state, jnp.asarray(text), jnp.zeros((slots,), jnp.int32))
        programs[name] = program(look_up, draft, state, 200)
    best = dict.fromkeys(programs, float("inf"))
    for repeat in range(repeats + 1):
        for name, (run, steps) in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
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
    add("--workers", type=int, default=2, help="threads that build")
    add(
        "--target",
        default=TARGET,
        help="model whose step the searches are compared with: a directory, or a preset's name",
    )
    add("--json", help="file for all numbers")
    arguments = parser.parse_args(argv)
    target = load_target(arguments.target)
    with tempfile.TemporaryDirectory() as folder:
        made = build(folder, arguments.tokens, target.vocab_size, arguments.workers)
        print(
            f"{made['tokens']:,} tokens in {made['seconds']:.0f} s by {arguments.workers} threads, "
            f"{made['bytes'] / made['tokens']:.1f} bytes each, {made['memory'] >> 20} MiB of memory at most",
            flush=True,
        )
        results = {"build": made}
        for temperature in (0.0, 1.0):
            found = search_seconds(target, folder, arguments.slots, arguments.gamma, temperature, arguments.repeats)
            results[f"temperature {temperature:g}"] = found
            step = found["target"]
            shares = [
                f"{name} {1e6 * one:.0f} µs ({one / step:.1%})" for name, one in found.items() if name != "target"
            ]
            slots = f"temperature {temperature:g}, {arguments.slots} slots"
            print(f"{slots}: target {1e6 * step:.0f} µs, {', '.join(shares)}", flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
