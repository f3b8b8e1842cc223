"""What a run says on the terminal at its end."""

import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from transforms import storage

_SHOWN_MISSING = 10
_TRACEBACK = "Traceback (most recent call last):\n"


def make_console() -> Console:
    """A console on stdout, to which brackets and colons are text. What UTF-8 cannot say, a file's name perhaps, is escaped."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(markup=False, emoji=False)


def one_line(error: BaseException) -> str:
    """What an error says, without credentials; of a worker's traceback, which runners put into theirs, what was raised."""
    text = storage.without_query(str(error))
    if _TRACEBACK in text:
        text = text.rpartition(_TRACEBACK)[2]
        lines = [line for line in text.splitlines() if line.strip() and not line[0].isspace()]
        text = " ".join(lines) or text
    return " ".join(text.split()) or type(error).__name__


def warn(message: str) -> None:
    """Says in one line what a user may want to change."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def add_row(table: Table, *cells: str | Text) -> None:
    """Adds a row whose cells are shown as they are, "[unknown, unknown]" too, whichever console prints it."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """A table of (what, how much), without a heading."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        add_row(table, *row)
    return table


def print_summary(console: Console, summary: dict, output: str, seconds: float | None = None) -> None:
    """Prints the totals of summary.json, and where the results are.

    Args:
      console: where to.
      summary: content of summary.json.
      output: the folder.
      seconds: wall time of this launch, None where nothing ran.
    """
    console.print(facts(summary_rows(summary, seconds)))
    console.print(f"Output: {output}", soft_wrap=True, highlight=False, markup=False)
    print_missing(console, summary["shards"]["missing"], summary["shards"]["total"])


def print_missing(console: Console, missing: list[dict], total: int) -> None:
    """Prints which of `total` shards are missing and why, where any is."""
    if not missing:
        return
    console.print(f"{len(missing)} of {total} shards are missing:", style="bold red")
    for shard in sorted(missing, key=lambda shard: shard["error"] is None)[:_SHOWN_MISSING]:
        error = shard["error"]
        reason = f"{error['stage']}: {error['error_type']}: {error['message']}" if error else "no error is known"
        console.print(f"  shard {shard['shard']}, attempt {shard['attempts']}: {reason}", highlight=False, markup=False)
    if len(missing) > _SHOWN_MISSING:
        console.print(f"  and {len(missing) - _SHOWN_MISSING} more, see summary.json")
    console.print("The same command does the missing ones; committed shards are kept.")


def summary_rows(summary: dict, seconds: float | None = None) -> list[tuple[str, str]]:
    """The table's rows, (what, how much)."""
    errors, timings, alpha = summary["errors"], summary["timings"], summary["alpha"]
    by_stage = ", ".join(f"{stage} {count:,}" for stage, count in errors.items() if stage != "total")
    rows = [
        ("examples", f"{summary['examples']:,}" + _truncated(summary)),
        *([("generations", f"{summary['generations']:,}")] if summary["generations"] != summary["examples"] else []),
        ("tokens", f"{summary['tokens']:,}"),
        ("tokens per second", _number(timings["tokens_per_second"], ",.0f") + "  while decoding"),
        ("target calls per token", _number(summary["target_calls_per_token"], ".3f")),
        ("accepted tokens per call", _number(summary["accepted_per_target_call"], ".2f")),
    ]
    if alpha:
        interval = f"{alpha['mean']:.3f}  [{alpha['low']:.3f}, {alpha['high']:.3f}]"
        rows.append(("α", f"{interval}  {alpha['level']:.0%} interval over examples, {alpha['positions']:,} positions"))
    if beams := summary.get("beam_search"):
        rows.append(("calls per step", f"{beams['calls_per_step']['mean']:.3f}  of {beams['searches']:,} beam searches"))
        if covered := beams["covered"]:
            text = f"{covered['mean']:.3f}  [{covered['low']:.3f}, {covered['high']:.3f}]  of {covered['positions']:,}"
            rows.append(("steps covered", text + " for which something was drafted"))
    if bleu := summary["bleu"]:
        rows.append(("BLEU", f"{bleu['score']:.1f}  over {bleu['references']:,} references"))
    rows.append(("errors", f"{errors['total']:,}" + (f"  ({by_stage}), see errors/" if errors["total"] else "")))
    if seconds is not None:
        rows.append(("this launch", f"{seconds:.1f} s, loading and compiling included"))
    if not summary["exact"]:
        rows.append(("exact", "no: lenience is below 1"))
    return rows


def _truncated(summary: dict) -> str:
    return f"  ({summary['truncated_inputs']:,} with a truncated input)" if summary["truncated_inputs"] else ""


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)
