"""Tables that say the same in HTML, Markdown and CSV: one value per cell, formatted once.

CSV has the values in full; an estimate takes three columns there. HTML and Markdown show them rounded, an estimate as
"0.497 [0.481, 0.513]", and `condensed`.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any


def _no_formula(value: Any) -> Any:
    """What a spreadsheet takes for text, too: text that begins like a formula, a folder's name perhaps, after an apostrophe."""
    if not isinstance(value, str) or not value.lstrip().startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return "'" + value
    return value


_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


@dataclasses.dataclass(frozen=True)
class Column:
    """How a column shows its values.

    Attributes:
      title: its heading.
      kind: "text", "whole", "number", "estimate" or "percent" (an estimate of a fraction, shown with its sign).
      digits: after the point.
      about: whether it says of which run and models a row is; a row to which it does not apply has nothing there.
    """

    title: str
    kind: str = "text"
    digits: int = 3
    about: bool = False

    @property
    def numeric(self) -> bool:
        return self.kind != "text"

    def show(self, value: Any) -> str:
        """What a reader sees of a value."""
        if value is None or value == "":
            return ""
        if self.kind == "text":
            return str(value)
        if self.kind == "whole":
            return f"{value:,}" if isinstance(value, int) else str(value)  # γ is "auto", too
        if self.kind == "number":
            return f"{value:.{self.digits}f}"
        sign, factor, unit = ("+", 100, "%") if self.kind == "percent" else ("", 1, "")
        one = lambda x: f"{factor * x:{sign}.{self.digits}f}{unit}"
        ends = [value["low"], value["high"]]
        return one(value["mean"]) if None in ends else f"{one(value['mean'])} [{one(ends[0])}, {one(ends[1])}]"

    def raw_titles(self) -> list[str]:
        if self.kind in ("estimate", "percent"):
            return [self.title, f"{self.title} low", f"{self.title} high"]
        return [self.title]

    def raw(self, value: Any) -> list[Any]:
        """What CSV says of a value."""
        if self.kind in ("estimate", "percent"):
            return [None, None, None] if value is None else [value["mean"], value["low"], value["high"]]
        return [_no_formula(value)]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      name: of its file.
      title: what it is, in a line.
      note: how to read it; "" where that is plain.
      columns, rows: its cells, as `Column.show` takes them.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple, ...]
    note: str = ""

    def shown(self) -> list[list[str]]:
        """The cells as a reader sees them."""
        return [[column.show(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def without_empty_columns(self) -> "Table":
        """Without the columns that say nothing in any row."""
        kept = [i for i in range(len(self.columns)) if any(row[i] not in (None, "") for row in self.rows)]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return dataclasses.replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    def condensed(self) -> "Table":
        """For readers: what is the same in every row of a column of text is said once, in the note.

        Of a single row that is what its columns about runs say, the draft aside.
        """
        cells, said, applying = self.shown(), [], []
        kept = list(range(len(self.columns)))
        for i, column in enumerate(self.columns):
            values = {row[i] for row in cells}
            if column.numeric or (len(cells) < 2 and (not column.about or column.title == "draft")):
                continue
            if len(values) == 1:
                said.append(f"{column.title} {cells[0][i]}")
                kept.remove(i)
            elif column.about and len(values - {""}) == 1:
                applying.append(f"{column.title} {max(values)}")
                kept.remove(i)
        if not said and not applying:
            return self
        parts = [f"In every row: {', '.join(said)}."] if said else []
        parts += [f"Where it applies: {', '.join(applying)}."] if applying else []
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        note = " ".join([*parts, self.note]).strip()
        return Table(self.name, self.title, tuple(self.columns[i] for i in kept), rows, note)

    def to_csv(self) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([title for column in self.columns for title in column.raw_titles()])
        for row in self.rows:
            writer.writerow([cell for column, value in zip(self.columns, row) for cell in column.raw(value)])
        return stream.getvalue()

    def to_markdown(self) -> str:
        lines = ["| " + " | ".join(escape_markdown(column.title) for column in self.columns) + " |"]
        lines.append("|" + "|".join("---:" if column.numeric else "---" for column in self.columns) + "|")
        lines += ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in self.shown()]
        return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Text for a cell: nothing in it is markup."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in ("\\", "|", "`", "*", "_", "~"):
        text = text.replace(character, "\\" + character)
    return text.replace("](", "]\\(")  # a link


def text(title: str) -> Column:
    return Column(title)


def whole(title: str) -> Column:
    return Column(title, "whole")


def number(title: str, digits: int = 2) -> Column:
    return Column(title, "number", digits)


def estimated(title: str, digits: int = 3) -> Column:
    return Column(title, "estimate", digits)


def percent(title: str, digits: int = 1) -> Column:
    return Column(title, "percent", digits)


def table(name: str, title: str, columns: Sequence[Column], rows: Sequence[Sequence[Any]], note: str = "") -> Table | None:
    """A table without empty columns, None where it has no rows."""
    if not rows:
        return None
    return Table(name, title, tuple(columns), tuple(map(tuple, rows)), note).without_empty_columns()


def about(title: str) -> Column:
    return Column(title, about=True)


PAIR = (
    *map(about, ("from", "task", "target", "draft", "sampling")),
    whole("γ"),
    *map(about, ("slots", "verification", "seed", "run")),
)
"""Columns that say of which models and which run a row is."""


def pair(series: Mapping[str, Any]) -> tuple:
    """The cells of `PAIR`, of an entry of analysis.json that is about one draft."""
    slots, seed = series["num_slots"], series["seed"]
    return (
        *(series[name] for name in ("kind", "task", "target", "draft", "sampling", "gamma")),
        slots and str(slots),
        series["verification"],
        None if seed is None else str(seed),
        series["apart"],
    )
