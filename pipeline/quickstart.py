"""A public language model corrects texts and a small pair translates, plainly and speculatively: `make quickstart`.

    python -m pipeline.quickstart [--output=DIR] [--config.path.to.setting=value]

For each of the two, the main job writes what the speculative decoder generates, and `pipeline.benchmark` measures it
against plain decoding, in turns. Overrides go to all runs; without `--output` the results go to a new temporary folder.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from decoding.config import ACCEPTED, BONUS, CORRECTED
from pipeline import benchmark, generate
from pipeline.benchmarking.verdict import of_benchmark
from pipeline.job.marked import STYLES, marked_text
from pipeline.job.terminal import add_row, make_console
from pipeline.settings import parse_command_line
from transforms import storage

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SHOWN = 2
_SHOWN_TOKENS = (10, 112)


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the two things that are run.

    Attributes:
      title: for people.
      settings: of all its runs.
      gamma: that is measured, beside "auto".
      texts: of the preset's, how many the job takes, the shortest first; 0 for all.
      examples: of those, how many are measured.
      repeats: of the measurement.
    """

    title: str
    settings: tuple[str, ...]
    gamma: int
    texts: int
    examples: int
    repeats: int


PARTS = {
    "correction": Part(
        "SmolLM2-135M-Instruct corrects texts, its draft copies from them",
        # All its texts are this short, and programs of other lengths take seconds to compile.
        (f"--config={_ROOT / 'configs' / 'smollm2.py'}:correct", "--config.decoding.input_buckets=(192,)"),
        gamma=3,
        texts=6,
        examples=2,
        repeats=10,
    ),
    "translation": Part(
        "a small T5 pair, which comes with SpecBeam, translates",
        (f"--config={_ROOT / 'configs' / 'quickstart.py'}",),
        gamma=2,
        texts=0,
        examples=16,
        repeats=10,
    ),
}


def main(args: Sequence[str]) -> int:
    """Runs the jobs and measurements and prints what came out. Returns the exit status."""
    console = make_console()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.quickstart",
        usage="%(prog)s [--output=DIR] [--config.path.to.setting=value]",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--output", help="folder of the runs (default: a new temporary one)")
    own, others = parser.parse_known_args(list(args))
    output = pathlib.Path(own.output or tempfile.mkdtemp(prefix="specbeam-quickstart-"))
    for name, part in PARTS.items():
        console.rule(part.title)
        settings = [*part.settings, *_shortest_texts(part, output / f"{name}.jsonl"), *others]
        measured = [f"--gammas={part.gamma},auto", "--num_slots=1", "--temperatures=0", "--verifications=token"]
        amount = [f"--examples={part.examples}", f"--repeats={part.repeats}"]
        status = generate.main([*settings, f"--output={output / name}"]) or benchmark.main(
            [*settings, *measured, *amount, f"--output={output / name / 'benchmark'}"]
        )
        if status:
            return status
    print_results(console, {part.title: output / name for name, part in PARTS.items()})
    return 0


def print_results(console: Console, folders: Mapping[str, pathlib.Path]) -> None:
    """Prints, for each finished part, texts with every token's source, what was measured, and the verdict.

    Args:
      console: where to.
      folders: outputs by title, each with its benchmark's in it.
    """
    from pipeline.benchmarking.results import RESULTS

    console.rule("what the draft contributed")
    for source in (ACCEPTED, CORRECTED, BONUS):
        name, colour, before, after = STYLES[source]
        console.print(Text(f"{before}text{after}", style=colour), Text(name), sep="  ")
    for folder in folders.values():
        print_texts(console, folder)
    for title, folder in folders.items():
        results = json.loads((folder / "benchmark" / RESULTS).read_text(encoding="utf-8"))
        console.rule(title)
        console.print(_speeds(results))
        console.print(of_benchmark(results), style="bold", highlight=False, markup=False)
    console.print(f"\nOutput: {', '.join(map(str, folders.values()))}", soft_wrap=True, highlight=False, markup=False)


def _shortest_texts(part: Part, path: pathlib.Path) -> list[str]:
    """The setting that has the job read the shortest of the preset's texts, JSON lines, which are written to `path`."""
    if not part.texts:
        return []
    texts = parse_command_line([*part.settings, f"--output={path.parent}"]).config.input
    lines = pathlib.Path(texts.pattern).read_text(encoding="utf-8").splitlines(keepends=True)
    lines.sort(key=lambda line: len(json.loads(line)[texts.input_field]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines[: part.texts]), encoding="utf-8")
    return [f"--config.input.pattern={path}"]


def _speeds(results: Mapping[str, Any]) -> Table:
    """What benchmark.json says of the settings."""
    from transforms.statistics.intervals import LEVEL

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("decoding", "tokens/s", f"speedup [{LEVEL:.0%} interval]", "α", "outputs equal to plain's"):
        table.add_column(name, justify="left" if name == "decoding" else "right", overflow="fold")
    for row in results["rows"]:
        plain, count = row["gamma"] == 0, row["generations"] * len(row["seconds"])
        speedup, alpha = row["speedup"], row["alpha"]
        add_row(
            table,
            "plain" if plain else f"γ = {row['gamma']}",
            f"{row['tokens_per_second']:,.0f}",
            "1" if plain else f"{speedup['mean']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]",
            f"{alpha['mean']:.2f}" if alpha else "",
            "" if plain else f"{count - sum(row['differing_generations'])} of {count}",
        )
    return table


def print_texts(console: Console, folder: pathlib.Path) -> None:
    """Prints the first texts in which the most kinds of tokens occur, of a finished folder."""
    from transforms.tokenize import load_tokenizer

    tokenizer = load_tokenizer(_tokenizer_path(folder))
    shortest, longest = _SHOWN_TOKENS
    shown = [row for row in _rows(folder) if shortest <= len(row["output_tokens"]) <= longest]
    for row in sorted(shown, key=lambda row: -len(set(row["source"])))[:_SHOWN]:
        console.print()
        console.print(Text(row["inputs"], style="dim"))
        console.print(marked_text(row["output_tokens"], row["source"], tokenizer))


def _rows(folder: pathlib.Path) -> list[dict]:
    import pyarrow as pa

    from transforms.parts import read_rows

    parts = sorted((folder / storage.GENERATIONS).glob("*.parquet"))
    columns = ["index", "inputs", "output_tokens", "source"]
    return pa.concat_tables([read_rows(str(part), columns) for part in parts]).sort_by("index").to_pylist()


def _tokenizer_path(folder: pathlib.Path) -> str:
    model = json.loads((folder / storage.MANIFEST).read_text(encoding="utf-8"))["config"]["model"]
    return model["tokenizer"] or model["target"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
