"""What is printed of others' text is that text: a folder's name in brackets, an interval of which nothing is known."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import score
from pipeline.job.terminal import add_row, facts, make_console, print_missing

NAMES = ["[unknown, unknown]", "[bold]out", "data/[/]", "[link=http://x]y", ":smile: a", r"\[a]"]


@pytest.mark.parametrize("markup", [False, True])
def test_cells_are_shown_as_they_are(markup):
    console = Console(file=io.StringIO(), width=80, markup=markup)
    console.print(facts([(name, name) for name in NAMES]))
    table = Table("name")
    for name in NAMES:
        add_row(table, name, Text("styled", style="red"))
    console.print(table)
    shown = console.file.getvalue()
    assert [shown.count(name) for name in NAMES] == [3] * len(NAMES) and shown.count("styled") == len(NAMES)


def test_an_unknown_interval_of_a_score():
    console = Console(file=io.StringIO(), width=80)
    cells = score._estimate({"mean": 0.003, "low": None, "high": None}, "+")
    score._print_table(console, ("draft", "difference", "95% interval"), [("[small]", *cells)])
    assert "[small]" in console.file.getvalue() and "+0.003   [unknown, unknown]" in console.file.getvalue()


def test_consoles_take_no_markup(capsys):
    console = make_console()
    for name in NAMES:
        console.print(f"Output: {name}")
    print_missing(console, [{"shard": 1, "attempts": 3, "error": {"stage": "read", "error_type": "E", "message": "[/x]"}}], 2)
    shown = capsys.readouterr().out
    assert all(f"Output: {name}\n" in shown for name in NAMES) and "read: E: [/x]" in shown
