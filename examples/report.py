"""The whole chain on the demo pair, in one command: texts, drafts, scores, a benchmark, and the report over all of them.

    python examples/report.py --output=out/report [--quick]

Of the 300 sentences in examples/data a third is set apart: the unigram and the bigram are fitted to what the target makes
of it. The others are translated at temperature 0, and at temperature 1 with three seeds, a share of the shards plainly;
the draft, the bigram, the unigram and prompt lookup are scored over the texts of both temperatures; the draft is
benchmarked. Each step prints its command, is a process of its own, and is skipped where its result is there already.

--quick takes 45 sentences, one seed, and two repeats of one γ with one number of slots: for a look at what comes out.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data" / "ende_software.test.jsonl"
DRAFT = ROOT / "examples" / "models" / "ende_software" / "draft"
GAMMA = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for everything that is made")
    parser.add_argument("--quick", action="store_true", help="little data: for a look")
    args = parser.parse_args()
    out, seeds = args.output.resolve(), (0,) if args.quick else (0, 1, 2)
    out.mkdir(parents=True, exist_ok=True)
    texts, apart = split(out, limit=45 if args.quick else None)

    generate("fit", out, apart, "--config.decoding.temperature=1.0", "--config.decoding.num_samples=4",
             "--config.decoding.num_slots=8", "--config.decoding.seed=100")  # fmt: skip
    for order, name in ((1, "unigram"), (2, "bigram")):
        step(out / name / "ngram.safetensors", "pipeline.fit_ngram", config(texts), f"--generations={out / 'fit'}",
             f"--order={order}", f"--output={out / name}")  # fmt: skip
    shards = ("--config.shards.baseline_fraction=0.3", f"--config.shards.examples_per_shard={3 if args.quick else 8}")
    runs = {"greedy": ("--config.decoding.temperature=0.0",)} | {
        f"sampled-{seed}": ("--config.decoding.temperature=1.0", f"--config.decoding.seed={seed}") for seed in seeds
    }
    for name, settings in runs.items():
        generate(name, out, texts, f"--config.decoding.gamma={GAMMA}", *settings, *shards)
    drafts = {"small": DRAFT, "bigram": out / "bigram", "unigram": out / "unigram", "prompt_lookup": "prompt_lookup"}
    for name, over in (("greedy", "greedy"), ("sampled", "sampled-0")):
        folder = out / f"scores-{name}"
        step(folder / "_SUCCESS", "pipeline.score", config(texts), f"--config.score.generations={out / over}",
             *(f"--config.score.drafts.{draft}={path}" for draft, path in drafts.items()), runs[over][0],
             f"--output={folder}")  # fmt: skip
    step(out / "benchmark" / "benchmark.json", "pipeline.benchmark", config(texts),
         f"--gammas={GAMMA if args.quick else '1,3,5'}", f"--num_slots={'8' if args.quick else '1,8'}", "--temperatures=0,1",
         "--verifications=token", f"--repeats={2 if args.quick else 5}", f"--examples={8 if args.quick else 32}",
         f"--output={out / 'benchmark'}")  # fmt: skip
    inputs = [*runs, "scores-greedy", "scores-sampled", "benchmark"]
    step(None, "pipeline.analyze", f"--inputs={','.join(str(out / name) for name in inputs)}", f"--output={out / 'report'}")


def split(out: pathlib.Path, limit: int | None) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the sentences that are decoded and the third that n-grams are fitted on. Returns both paths."""
    lines = DATA.read_text(encoding="utf-8").splitlines(keepends=True)[:limit]
    texts, apart = out / "sentences.jsonl", out / "apart.jsonl"
    texts.write_text("".join(line for i, line in enumerate(lines) if i % 3), encoding="utf-8")
    apart.write_text("".join(lines[::3]), encoding="utf-8")
    return texts, apart


def config(data: pathlib.Path) -> list[str]:
    return [f"--config={ROOT / 'configs' / 'quickstart.py'}", f"--config.input.pattern={data}"]


def generate(name: str, out: pathlib.Path, data: pathlib.Path, *settings: str) -> None:
    step(out / name / "_SUCCESS", "pipeline.generate", config(data), *settings, f"--output={out / name}")


def step(result: pathlib.Path | None, module: str, *args: str | list[str]) -> None:
    """Runs a job unless its result is there, and stops where it fails."""
    if result is not None and result.exists() and (result.suffix != ".json" or json.loads(result.read_text())["complete"]):
        return
    flat = [one for arg in args for one in (arg if isinstance(arg, list) else [arg])]
    print(f"\n$ python -m {module} {shlex.join(flat)}", flush=True)
    status = subprocess.run([sys.executable, "-m", module, *flat], cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
