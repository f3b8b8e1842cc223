"""What a target call over several positions costs beside one over a single position.

    python -m benchmarks.calls [--models=pair,small,base,smollm2] [--weights=,int8] [--slots=1] [--positions=1,2,4,6,8]
        [--threads=2] [--repeats=9] [--profile]

A program runs many calls one after the other, each over the tokens that the last one found likeliest, at positions in the
middle of a cache. All cells of a model run interleaved, in random order; the first repeat, which compiles, is dropped. Ratios
are taken within a repeat. T5 small and base have random weights. `--profile` prints where the time of each cell goes instead,
by operation.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POSITION, INPUT_TOKENS, CALLS = 48, 32, 24


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="pair,small,base,smollm2")
    parser.add_argument("--weights", default="", help="forms, with commas between them; nothing for as in the file")
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--positions", default="1,2,4,6,8")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])  # before JAX counts the processors
    positions = list(map(int, arguments.positions.split(",")))
    for name in arguments.models.split(","):
        programs = {}
        for form in arguments.weights.split(","):
            model = load(name, form)
            programs |= {(form, size): program(model, arguments.slots, size) for size in positions}
        if arguments.profile:
            for (form, size), run in programs.items():
                print(
                    f"\n{name} {form or 'as in the file'}, {arguments.slots} slots, {size} positions",
                    profile(run),
                    sep="\n",
                )
        else:
            print(table(name, arguments.slots, measure(programs, arguments.repeats)), flush=True)


def load(name: str, weights: str):
    """The pair's target, SmolLM2's file, or a T5 of random weights."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import decoding
    from benchmarks.workloads import SHAPES
    from decoding.models.resident import pack_model
    from decoding.models.t5 import T5Config

    if name in SHAPES:
        width, inner, layers, heads = SHAPES[name]
        sizes = dict(vocab_size=32128, d_model=width, d_ff=inner, d_kv=64, num_heads=heads, num_layers=1)
        ends = dict(gated=True, activation="gelu_new", tied=False, scale_decoder_outputs=False)
        config = T5Config(num_decoder_layers=layers, **sizes, **ends)
        with jax.default_device(jax.devices("cpu")[0]):
            return pack_model(config.build(rngs=nnx.Rngs(0), dtype=jnp.float32), weights or "float32")
    if name == "pair":
        path = str(ROOT / "examples" / "models" / "ende_software" / "target")
    else:
        from configs import smollm2

        path = smollm2.model_file()
    return decoding.load_model(path, weights=weights)


def program(model, slots: int, size: int):
    """A function that runs CALLS calls and waits for them."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from decoding import compilation
    from decoding.kernels.logits import used_by
    from decoding.sampling import argmax

    graph, params = nnx.split(model)
    leaves, structure = jax.tree.flatten(params)

    def run(leaves, state, tokens):
        model = nnx.merge(graph, jax.tree.unflatten(structure, leaves))
        at = jnp.full((slots,), POSITION, jnp.int32)

        def call(_, carry):
            tokens, state = carry
            logits, state = model.step(tokens, at, state)
            return argmax(logits), state

        return jax.lax.fori_loop(0, CALLS, call, (tokens, state))

    state = model.init_state(slots, INPUT_TOKENS, 2 * POSITION)
    if model.encoder_decoder:
        lengths = jnp.full((slots,), INPUT_TOKENS, jnp.int32)
        state |= model.prefill(jnp.ones((slots, INPUT_TOKENS), jnp.int32), lengths)
    held = {"tokens": jnp.ones((slots, size), jnp.int32), "state": state}
    options = compilation.compiler_options("cpu")
    compiled = jax.jit(used_by(run), donate_argnums=1).lower(leaves, state, held["tokens"]).compile(options)

    def again():
        held["tokens"], held["state"] = jax.block_until_ready(compiled(leaves, held["state"], held["tokens"]))

    again.text = compiled.as_text()
    return again


def measure(programs: dict, repeats: int) -> dict[tuple[str, int], list[float]]:
    """Milliseconds of a call by form and positions, one number a repeat."""
    import numpy as np

    cells, order, times = list(programs), np.random.default_rng(0), {cell: [] for cell in programs}
    for repeat in range(repeats + 1):
        for cell in [cells[i] for i in order.permutation(len(cells))]:
            start = time.perf_counter()
            programs[cell]()
            if repeat:
                times[cell].append((time.perf_counter() - start) / CALLS * 1e3)
    return times


def table(name: str, slots: int, times: dict[tuple[str, int], list[float]]) -> str:
    """Medians with their extremes, and the ratio to one position, as Markdown."""
    import numpy as np

    lines = [f"{name}, {slots} slots", "", "| weights | positions | ms a call | times the first (least to most) |"]
    lines.append("|---|--:|--:|--:|")
    for (form, size), taken in times.items():
        first = times[min(cell for cell in times if cell[0] == form)]
        ratios = np.array(taken) / np.array(first)
        spread = f"{np.median(taken):.3f} ({min(taken):.3f} to {max(taken):.3f})"
        times_first = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
        lines.append(f"| {form or 'as in the file'} | {size} | {spread} | {times_first} |")
    return "\n".join(lines) + "\n"


def profile(run) -> str:
    """Microseconds and operations of a call by operation, those that take most first, of a program's second run."""
    import collections
    import re

    import jax
    import numpy as np

    calls = re.findall(r"%(\S+) = (.*?) custom-call\(.*custom_call_target=\"(\w+)_\w+\"", run.text)
    names = {op: f"{target} {re.sub(r'{.*?}', '', shape)}" for op, shape, target in calls}
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    taken = collections.defaultdict(list)
    for event in (event for plane in data.planes for line in plane.lines for event in line.events):
        if "hlo_op" in dict(event.stats) and event.name != "while":
            taken[names.get(event.name) or event.name.rstrip("0123456789").rstrip(".")].append(event.duration_ns / 1e3)
    # Medians: now and then another process has the core for milliseconds.
    rows = [(np.median(times) * len(times) / CALLS, len(times) / CALLS, kind) for kind, times in taken.items()]
    lines = [f"{time:9.1f} us {count:7.1f}  {kind}" for time, count, kind in sorted(rows, reverse=True)[:20]]
    return "\n".join([f"{sum(row[0] for row in rows):9.1f} us in all", *lines])


if __name__ == "__main__":
    sys.exit(main())
