"""Rows over the vocabulary by `decoding.kernels` against XLA's: milliseconds by what is computed, rows and vocabulary.

    python -m benchmarks.logits --threads=2

Both programs of every cell run interleaved; the first repeat, which compiles, is dropped.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

VOCABULARIES = (49_152, 256_000)
ROWS = (1, 8, 32)
STANDARD = {
    "softmax": dict(),
    "softmax, top-k 50": dict(top_k=50),
    "softmax, top-p 0.9": dict(top_p=0.9),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--vocabularies", nargs="*", type=int, default=VOCABULARIES)
    parser.add_argument("--rows", nargs="*", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])  # before JAX counts the processors
    print("| vocabulary | rows | | XLA, ms | ours, ms | times as fast |\n|--:|--:|---|--:|--:|--:|")
    for size in arguments.vocabularies:
        for rows in arguments.rows:
            for name, (theirs, mine) in measure(rows, size, arguments.repeats).items():
                print(f"| {size} | {rows} | {name} | {theirs:.3f} | {mine:.3f} | {theirs / mine:.1f} |", flush=True)


def measure(rows: int, size: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of XLA's program and of ours, by what it computes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from decoding import DecodingConfig, sampling
    from decoding.kernels.logits import used_by

    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, size), np.float32) * 4)
    probs, keys = jax.nn.softmax(x), np.stack([sampling.row_key(0, str(row), 0) for row in range(rows)])
    places, times = np.zeros(rows, np.int32), sampling.draw_times(size)
    functions = {
        name: (lambda x, law=law: sampling.standardize(x, DecodingConfig(**law)), x) for name, law in STANDARD.items()
    } | {
        "log-sum-exp": (sampling.log_normalizer, x),
        "overlap": (lambda p: sampling.overlap(p[None], p[None]), probs),
        "argmax": (sampling.argmax, x),
        "draw": (lambda p: sampling.draw(p, sampling.exponentials(keys, places, sampling.NEXT_STREAM, times)), probs),
        "coupled draw": (lambda p: sampling.draw_coupled(p, keys, places), probs),
    }
    found = {}
    for name, (function, given) in functions.items():
        programs = [jax.jit(function), jax.jit(used_by(function))]
        taken = []
        for _ in range(repeats + 1):
            for program in programs:
                start = time.perf_counter()
                jax.block_until_ready(program(given))
                taken.append((time.perf_counter() - start) * 1e3)
        found[name] = float(np.median(taken[2::2])), float(np.median(taken[3::2]))
    return found


if __name__ == "__main__":
    sys.exit(main())
