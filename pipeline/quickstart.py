"""The sample translated plainly, speculatively, and with γ chosen by measurement, side by side: `make quickstart`.

    python -m pipeline.quickstart [--output=DIR] [--config.path.to.setting=value]

Overrides go to all runs; without `--output` the results go to a new temporary folder.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import typing
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from decoding.config import ACCEPTED, BONUS, CORRECTED
from pipeline import generate
from pipeline.job.marked import STYLES, marked_text
from pipeline.job.terminal import add_row, make_console, summary_rows
from transforms import storage

if typing.TYPE_CHECKING:
    from transforms.tokenize import Tokenizer

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"

RUNS = {
    "plain": ["--config.model.draft=", "--config.decoding.gamma=0"],
    "speculative": [],
    "auto": ["--config.decoding.gamma=auto"],
}
_SHOWN = 3
_SHOWN_TOKENS = (10, 60)


def main(args: Sequence[str]) -> int:
    """Runs the jobs and prints the comparison. Returns the exit status."""
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
    shared = [f"--config={CONFIG}", *others]
    folders = {name: output / name for name in RUNS}
    for name, overrides in RUNS.items():
        console.rule(f"{name} decoding")
        status = generate.main([*shared, *overrides, f"--output={folders[name]}"])
        if status:
            return status
    print_comparison(console, folders)
    return 0


def print_comparison(console: Console, folders: dict[str, pathlib.Path]) -> None:
    """Prints finished runs over the same input side by side, and some of the second's translations.

    Args:
      console: where to.
      folders: of the runs, by name; the first is what the others are compared with.
    """
    from transforms.tokenize import load_tokenizer

    console.rule("side by side")
    summaries = {name: json.loads((folder / storage.SUMMARY).read_text()) for name, folder in folders.items()}
    cells = {name: dict(summary_rows(summary)) for name, summary in summaries.items()}
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("", *folders):
        table.add_column(title, style="bold" if not title else "", overflow="fold")
    base, shown, *_ = folders
    for what in cells[shown]:
        add_row(table, what, *(cells[name].get(what, "none") for name in folders))
    console.print(table)

    rows = {name: _rows(folder) for name, folder in folders.items()}
    sampled = json.loads((folders[shown] / storage.MANIFEST).read_text())["config"]["decoding"]["temperature"] != 0
    for name in list(folders)[1:]:
        speeds = [summaries[run]["timings"]["tokens_per_second"] for run in (base, name)]
        slowest, fastest = _speedup_range(folders[base], folders[name])
        same, both = count_equal(rows[base], rows[name])
        console.print(
            f"{name}: speedup {speeds[1] / speeds[0]:.2f}x in tokens per second "
            f"(single shards: {slowest:.2f}x to {fastest:.2f}x), equal outputs {same} of {both}",
            style="bold",
            highlight=False,
        )
    if sampled:
        console.print("(sampled at a temperature above 0, outputs differ and their distribution is the same)")
    console.print(
        "A target call over several positions costs about what one over a single position does where reading the weights "
        "is the limit: on accelerators, and on processors at few slots. A model this small, at eight slots, is bound by "
        "arithmetic. auto measures that, and drafts only where it pays."
    )
    print_examples(console, rows[shown], load_tokenizer(_tokenizer_path(folders[shown])))


def count_equal(plain: dict[str, dict], speculative: dict[str, dict]) -> tuple[int, int]:
    """How many examples have the same output tokens in both, and how many are in both."""
    both = plain.keys() & speculative.keys()
    return sum(plain[i]["output_tokens"] == speculative[i]["output_tokens"] for i in both), len(both)


def print_examples(console: Console, rows: dict[str, dict], tokenizer: Tokenizer) -> None:
    """Prints what the kinds of tokens look like, and the first translations in which the most kinds occur."""
    shortest, longest = _SHOWN_TOKENS
    shown = [row for row in rows.values() if shortest <= len(row["output_tokens"]) <= longest]
    shown = sorted(shown, key=lambda row: -len(set(row["source"])))
    console.rule("what the draft contributed")
    for source in (ACCEPTED, CORRECTED, BONUS):
        name, colour, before, after = STYLES[source]
        console.print(Text(f"{before}text{after}", style=colour), Text(name), sep="  ")
    for row in shown[:_SHOWN]:
        console.print()
        console.print(Text(row["inputs"], style="dim"))
        console.print(marked_text(row["output_tokens"], row["source"], tokenizer))


def _rows(folder: pathlib.Path) -> dict[str, dict]:
    import pyarrow as pa

    from transforms.parts import read_rows

    columns = ["example_id", "index", "inputs", "output_tokens", "source"]
    parts = sorted((folder / storage.GENERATIONS).glob("*.parquet"))
    table = pa.concat_tables([read_rows(str(part), columns) for part in parts]).sort_by("index")
    return {row["example_id"]: row for row in table.to_pylist()}


def _speedup_range(plain: pathlib.Path, speculative: pathlib.Path) -> tuple[float, float]:
    """Smallest and largest speedup of one shard."""

    from transforms.parts import read_footer

    def speeds(folder: pathlib.Path) -> list[float]:
        parts = sorted((folder / storage.GENERATIONS).glob("*.parquet"))
        statistics = [read_footer(str(part)).statistics for part in parts]
        return [one.tokens / one.generate_seconds for one in statistics]

    ratios = [fast / slow for fast, slow in zip(speeds(speculative), speeds(plain), strict=True)]
    return min(ratios), max(ratios)


def _tokenizer_path(folder: pathlib.Path) -> str:
    model = json.loads((folder / storage.MANIFEST).read_text())["config"]["model"]
    return model["tokenizer"] or model["target"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
