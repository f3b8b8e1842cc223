"""Products of `decoding.kernels` against XLA's, with weights from memory: microseconds by shape, form and number of rows.

    python -m benchmarks.kernels --threads=1

A program multiplies the same rows with many weights, one after the other and together far larger than a core's caches, so
that each comes from memory. All cells of a shape are run interleaved; the first repeat, which compiles, is dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

SHAPES = ((768, 3072), (2048, 5632), (576, 49152))
ROWS = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256)
FORMS = ("float32", "bfloat16", "int8", "Q4_K", "Q8_0")
WORKING_SET = 640 << 20  # bytes of float32 weights read in turn


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shapes", nargs="*", default=[f"{k}x{n}" for k, n in SHAPES])
    parser.add_argument("--rows", nargs="*", type=int, default=ROWS)
    parser.add_argument("--forms", nargs="*", default=["xla", *FORMS])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="file for all medians")
    arguments = parser.parse_args(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])  # before JAX counts the processors

    results = {}
    for shape in arguments.shapes:
        inputs, outputs = map(int, shape.split("x"))
        results[shape] = measure(inputs, outputs, arguments.rows, arguments.forms, arguments.repeats)
        print(table(results[shape], f"[{inputs}, {outputs}], {arguments.threads} thread(s), microseconds"), flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file)


def measure(inputs: int, outputs: int, rows: list[int], forms: list[str], repeats: int) -> dict[str, dict[int, list[float]]]:
    """Microseconds of a product by form and rows, one number a repeat."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from decoding import kernels

    rng = np.random.default_rng(0)
    count = max(2, min(24, WORKING_SET // (inputs * outputs * 4)))
    base = rng.standard_normal((inputs, outputs), np.float32)

    def weights(form):
        if form == "xla":
            return [jnp.asarray(base + i) for i in range(count)]
        if form in kernels.FLOATS:
            return [kernels.pack(base, form) for _ in range(count)]
        size, nbytes = kernels.BLOCKS[form]
        blocks = rng.integers(0, 256, (outputs, -(-inputs // size), nbytes), dtype=np.uint8)
        blocks[..., [1, 3, 209 % nbytes]] &= 0xBB  # no scale is NaN
        return [kernels.pack_blocks(blocks.reshape(outputs, -1), form) for _ in range(count)]

    ours = jax.jit(lambda x, weights: [kernels.product(x, weight) for weight in weights])
    programs = dict.fromkeys(forms, ours) | {"xla": jax.jit(lambda x, weights: [x @ weight for weight in weights])}
    held = {form: weights(form) for form in forms}
    times = {form: {m: [] for m in rows} for form in forms}
    cells = [(form, m) for form in forms for m in rows]
    for repeat in range(repeats + 1):
        for form, m in [cells[i] for i in rng.permutation(len(cells))]:
            # Many rows are bound by arithmetic: fewer weights do, and the whole takes a minute.
            some = held[form][: max(2, min(count, int(3e9 / (inputs * outputs * m))))]
            features = inputs if form == "xla" else some[0].inputs
            x = jnp.asarray(rng.standard_normal((m, features), np.float32))
            start = time.perf_counter()
            jax.block_until_ready(programs[form](x, some))
            if repeat:
                times[form][m].append((time.perf_counter() - start) / len(some) * 1e6)
    return times


def table(times: dict[str, dict[int, list[float]]], title: str) -> str:
    """Medians as Markdown: one column a form, with its ratios to one row and to XLA."""
    import numpy as np

    median = {form: {m: float(np.median(v)) for m, v in by_rows.items()} for form, by_rows in times.items()}
    lines = [title, "", "| rows | " + " | ".join(times) + " |", "|--:|" + "--:|" * len(times)]
    for m in next(iter(median.values())):
        cells = []
        for form, by_rows in median.items():
            cell = f"{by_rows[m]:.0f}"
            if 1 in by_rows:
                cell += f" ({by_rows[m] / by_rows[1]:.2f})"
            if form != "xla" and "xla" in median:
                cell += f" {median['xla'][m] / by_rows[m]:.2f}x"
            cells.append(cell)
        lines.append(f"| {m} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
