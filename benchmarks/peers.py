"""SpecBeam against Hugging Face `generate` and CTranslate2: same weights, same inputs, one interleaved run.

    python -m benchmarks.peers                                   # everything: about half an hour on two cores
    python -m benchmarks.peers --workloads=demo --batches=1,32 --systems=ct2,plain,gamma-auto --repeats=3
    python -m benchmarks.peers --workloads=smollm2 --gammas=3,auto --new-tokens=128      # OpenVINO's and llama.cpp's ground
    python -m benchmarks.peers --workloads=beams --batches=1,8 --gammas=2,4                # beam search with 4 beams

Needs the extra `bench` (`make benchmark` installs it); llama.cpp joins where `bench-llama` is too. Prints a Markdown table and
writes it, with every single timing, to --output as peers.md and peers.json. How it measures is told in
pipeline/benchmarking/paired.py and benchmarks/systems.py.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, measure, systems, workloads
from pipeline.benchmarking.paired import Ratio, interleaved
from pipeline.job.machine import versions as installed

REPOSITORY = Path(__file__).resolve().parent.parent
REFERENCES = ("hf", "plain")     # outputs are compared with the first of these that runs: plain greedy
SMOLLM2, BEAMS = "smollm2", "beams"
OF_WORKLOAD = {SMOLLM2: systems.of_gguf, BEAMS: systems.of_beams}  # of others: `systems.available`


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", type=_names, default=["small", "demo"], help="of: small, base (T5 v1.1 shapes with "
                        "random weights), demo, beams (demo's, 4 beams), smollm2 (a GGUF file at batch 1) "
                        "(default: small,demo)")
    parser.add_argument("--batches", type=_integers, default=[1, 8, 32, 64])
    parser.add_argument("--systems", type=_names, default=None, help="of: ct2, ct2-int8, hf, hf-assisted, plain, plain-int8, "
                        "gamma-N for every N in --gammas; of smollm2: openvino, openvino-lookup, llama, llama-lookup, "
                        "plain, gamma-N; of beams: ct2, hf, plain, gamma-N (default: all)")
    parser.add_argument("--gammas", type=_gammas, default=["auto", 5], help="speculative settings (default: auto,5)")
    parser.add_argument("--repeats", type=int, default=7, help="after a first one that is dropped (default: 7)")
    parser.add_argument("--new-tokens", type=int, default=64, help="limit per sequence; random weights always reach it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pair", type=Path, default=REPOSITORY / "examples" / "models" / "ende_software",
                        help="directory with target/ and draft/")
    parser.add_argument("--sentences", type=Path, default=REPOSITORY / "examples" / "data" / "ende_software.test.jsonl")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / ".cache" / "peers",
                        help="random models and conversions are kept here")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "out" / "peers")
    parser.add_argument("--seed", type=int, default=0, help="of the order of runs")
    arguments = parser.parse_args(argv)
    known = {"small", "base", "demo", *OF_WORKLOAD}
    if not set(arguments.workloads) <= known:
        parser.error(f"--workloads={','.join(arguments.workloads)}: allowed are {', '.join(sorted(known))}")
    if arguments.repeats < 1:
        parser.error(f"--repeats={arguments.repeats}: at least 1")
    return arguments


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _integers(text: str) -> list[int]:
    return [int(name) for name in _names(text)]


def _gammas(text: str) -> list[int | str]:
    return [name if name == "auto" else int(name) for name in _names(text)]


def set_environment(threads: int, cache: Path) -> None:
    """Binds this process and the systems it starts to `threads` cores, tells every library so, and keeps JAX's programs."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CT2_INTRA_THREADS"):
        os.environ[name] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "jax"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def prepare(name: str, arguments: argparse.Namespace) -> workloads.Workload:
    """The workload called `name`; makes and converts models in the process that calls it."""
    arguments.cache.mkdir(parents=True, exist_ok=True)
    if name in ("demo", BEAMS):
        found = workloads.demo_workload(
            arguments.pair, arguments.sentences, arguments.cache, arguments.batches, arguments.new_tokens)
        return dataclasses.replace(found, name=f"{found.name}, {systems.BEAMS} beams") if name == BEAMS else found
    if name == SMOLLM2:
        return workloads.smollm2_workload(6, arguments.new_tokens)
    return workloads.random_workload(name, arguments.cache, arguments.batches, arguments.new_tokens)


def choose(available: dict[str, systems.System], names: Sequence[str] | None) -> dict[str, systems.System]:
    """The systems called `names` (None: all) that are installed; a line on stderr tells which of them are not."""
    chosen = {name: system for name, system in available.items() if name in (names or available)}
    if missing := [name for name, system in chosen.items() if not system.installed()]:
        modules = ", ".join(sorted({chosen[name].module for name in missing}))
        print(f"Left out: {', '.join(missing)}; {modules} is not installed (benchmarks/README.md says how)", file=sys.stderr)
    return {name: system for name, system in chosen.items() if name not in missing}


def compare(workload: workloads.Workload, chosen: dict[str, systems.System], arguments: argparse.Namespace) -> dict:
    """Runs every system at every batch size, interleaved, and returns all timings, their summary and the agreement."""
    remotes = {name: systems.Remote(system, workload, arguments.threads) for name, system in chosen.items()}
    batches = [batch for batch in arguments.batches if batch in workload.examples]
    cells = [(name, batch) for name, system in chosen.items() for batch in batches if system.runs(batch)]
    base, reference = next(iter(chosen)), next((name for name in REFERENCES if name in chosen), None)
    runs: list[measure.TimedRun] = []
    outputs: dict[tuple[str, int], systems.Tokens] = {}
    changed: set[tuple[str, int]] = set()
    schedule = interleaved([cells], arguments.repeats, arguments.seed)
    for repeat, name, batch in ((repeat, *cell) for repeat, order in schedule for cell in order):
        seconds, cpu_seconds, rows = remotes[name].run(batch)
        runs.append(measure.TimedRun(name, batch, repeat, seconds, cpu_seconds, sum(map(len, rows))))
        if outputs.setdefault((name, batch), rows) != rows:
            changed.add((name, batch))
        print(f"{workload.name}: run {len(runs)} of {len(cells) * (arguments.repeats + 1)}: {chosen[name].title}, "
              f"batch {batch}, {seconds:.2f} s", file=sys.stderr, flush=True)
    for remote in remotes.values():
        remote.close()

    summary = []
    for name, batch in sorted(cells, key=lambda cell: (cell[1], list(chosen).index(cell[0]))):
        times = measure.seconds_per_token(runs, name, batch)
        row = {
            "batch": batch,
            "system": name,
            "title": chosen[name].title,
            "sequences": len(outputs[name, batch]),
            "tokens": sum(map(len, outputs[name, batch])),
            "seconds_per_token": dataclasses.asdict(measure.Spread.of(times)),
            "outputs_differ_between_repeats": (name, batch) in changed,
        }
        if (base, batch) in cells:
            row["times_base"] = dataclasses.asdict(Ratio.of(measure.seconds_per_token(runs, base, batch), times))
        if reference:
            row["agreement"] = dataclasses.asdict(measure.agreement(outputs[reference, batch], outputs[name, batch]))
        summary.append(row)
    titles = {"base": chosen[base].title, "reference": chosen[reference].title if reference else None}
    return {"workload": workload.name, **titles, "summary": summary, "runs": [dataclasses.asdict(run) for run in runs]}


def table(result: dict) -> str:
    """The summary of one workload in Markdown."""
    lines = [
        f"### {result['workload']}",
        "",
        f"| batch | system | ms per token, median (min to max) | tokens/s | times {result['base']} (95%) | "
        f"outputs equal to those of {result['reference']} |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for row in result["summary"]:
        spread = row["seconds_per_token"]
        ratio = row.get("times_base")
        equal = row.get("agreement")
        lines.append(
            f"| {row['batch']} | {row['title']} "
            f"| {1e3 * spread['median']:.3f} ({1e3 * spread['low']:.3f} to {1e3 * spread['high']:.3f}) "
            f"| {1 / spread['median']:.0f} "
            f"| {format(Ratio(**ratio), '.2f') if ratio else ''} "
            f"| {'{equal_sequences} of {sequences}'.format(**equal) if equal else ''} |")
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Python's version and those of the packages compared, where installed."""
    found = installed(("specbeam", "jax", "jaxlib", "flax", "torch", "transformers", "ctranslate2", "openvino-genai",
                       "llama-cpp-python"))
    return {name: version for name, version in found.items() if version}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    of_workload = {name: OF_WORKLOAD.get(name, systems.available)(arguments.gammas) for name in arguments.workloads}
    known = {system for available in of_workload.values() for system in available}
    if unknown := set(arguments.systems or ()) - known:
        sys.exit(f"--systems={','.join(sorted(unknown))}: allowed are {', '.join(sorted(known))}")
    chosen = {name: choose(available, arguments.systems) for name, available in of_workload.items()}
    if empty := [name for name, some in chosen.items() if not some]:
        sys.exit(f"--workloads={','.join(empty)}: no system is left to run")
    set_environment(arguments.threads, arguments.cache)
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine.describe(arguments.threads), "versions": versions(), "results": []}
    spawn = multiprocessing.get_context("spawn")
    tables = []
    for name in arguments.workloads:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:   # imports PyTorch, then is gone
            workload = pool.submit(prepare, name, arguments).result()
        report["results"].append(compare(workload, chosen[name], arguments))
        tables.append(table(report["results"][-1]))
        print(tables[-1], flush=True)
    (arguments.output / "peers.json").write_text(json.dumps(report, indent=1))
    facts = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                      for k, v in {**report["machine"], **report["versions"]}.items())
    (arguments.output / "peers.md").write_text("\n".join([*tables, facts, ""]))
    print(f"{facts}\nWritten to {arguments.output}/peers.md and peers.json")


if __name__ == "__main__":
    main()
