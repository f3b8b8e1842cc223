"""Prints the rows of an output folder: inputs and predictions, or JSON lines.

    specbeam show OUTPUT [--colour] [--limit=N] [--unfinished]
    specbeam show OUTPUT --jsonl [--limit=N] [--unfinished]

OUTPUT is a folder of `specbeam generate`, local or on gs://. With --colour every token of a prediction is coloured and
marked by where it came from; that needs the run's tokeniser where it was. --jsonl prints every column, one row a line.

Exit status: 0, or 2 when it is not such a folder or is unfinished and --unfinished is not given.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.job.command import command
from pipeline.job.marked import STYLES, marked_text
from pipeline.settings.flags import Parser
from pipeline.settings.typed import ConfigError
from transforms.folder import GENERATE, FolderError, OpenedFolder


@command
def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    parser = Parser(
        prog="specbeam show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("output", help="the folder, local or on gs://")
    parser.add_argument("--jsonl", action="store_true", help="print JSON lines")
    parser.add_argument("--colour", "--color", action="store_true", help="colour and mark tokens by their source")
    parser.add_argument("--limit", type=int, help="print so many rows at most")
    parser.add_argument("--unfinished", action="store_true", help="print what there is of an unfinished run")
    own = parser.parse_args(list(args))
    from specbeam.folders import open_rows
    from transforms.text.vocabularies import TokenizerError

    try:
        opened = open_rows(own.output, unfinished=own.unfinished)
        if own.jsonl:
            print_lines(rows(opened, own.limit))
        else:
            print_texts(Console(), opened, own.limit, colour=own.colour)
    except TokenizerError as error:
        raise ConfigError(str(error)) from error
    except BrokenPipeError:  # `| head` has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def rows(opened: OpenedFolder, limit: int | None) -> Iterator[dict[str, Any]]:
    """Rows as plain values, at most so many."""
    from specbeam.folders import tables

    left = math.inf if limit is None else limit
    for table in tables(opened):
        if left <= 0:
            return
        table = table.slice(0, int(min(left, table.num_rows)))
        left -= table.num_rows
        yield from table.to_pylist()


def print_lines(found: Iterator[dict[str, Any]]) -> None:
    """JSON lines; a number that is none is null, as JSON has no NaN."""
    for row in found:
        print(json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False, allow_nan=False))
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_texts(console: Console, opened: OpenedFolder, limit: int | None, *, colour: bool) -> None:
    """For people: every input, dim, and what it became.

    Raises:
      FolderError: the folder is one of scores, which have no predictions.
      TokenizerError: with `colour`, the run's tokeniser is not there.
    """
    manifest = opened.manifest
    if manifest.job != GENERATE:
        what = f"a folder of pipeline.{manifest.job}, without predictions"
        raise FolderError(f"{opened.folder.root!r} is {what}; allowed: --jsonl")
    tokenizer = None
    if colour:
        from transforms.tokenize import load_tokenizer

        model = manifest.config["model"]
        tokenizer = load_tokenizer(model.get("tokenizer") or model["target"])
        for name, style, before, after in STYLES.values():
            console.print(Text(f"{before}text{after}", style=style), Text(name), sep="  ")
        console.print()
    for row in rows(opened, limit):
        console.print(Text(row["inputs"], style="dim"), soft_wrap=True)
        shown = marked_text(row["output_tokens"], row["source"], tokenizer) if tokenizer else Text(row["prediction"])
        console.print(shown, soft_wrap=True)
        console.print()
