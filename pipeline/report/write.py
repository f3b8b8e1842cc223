"""report.html, report.md, tables/*.csv and figures/*.svg from analysis.json: the same numbers in each."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.report import figures
from pipeline.report.content import all_tables
from pipeline.report.headline import caveats, headlines, verdict_of
from pipeline.report.tables import Table, escape_markdown
from pipeline.report.texts import KINDS, ShownText, shown_text
from transforms.storage import OutputFolder
from transforms.tokenize import TokenizerError, load_tokenizer

TITLE = "What the speculation did"
_LONG = 20  # rows above which a table is folded in HTML
_WIDE = 110  # characters of a row above which intervals stand below their estimates
_TEXTS = 4  # texts that are shown unfolded

FIGURES = (
    "tokens", "speed", "best_gamma", "operations", "position", "place", "frequency", "lengths", "autocorrelation", "widths",
)  # fmt: skip
"""In the order of the page. The trace stands with the texts."""

# Tables by section: heading, introduction.
SECTIONS: dict[str, tuple[str, str]] = {
    "speed": (
        "Predicted and measured speed",
        "What the paper's formulas make of α and the costs of single passes, beside what was measured, and how far they miss.",
    ),
    "acceptance": (
        "Acceptance",
        "α is the probability that a drafted token is accepted. Every bracket is a 95% interval by bootstrap over examples.",
    ),
    "where": ("Where acceptance is high and low", ""),
    "iid": (
        "Is β i.i.d.?",
        "The formulas take the acceptances of a call's guesses as independent and alike. Whether they are, and what a "
        "prediction from their joint behaviour gains.",
    ),
    "enough": (
        "How many tokens are enough?",
        "Tokens of one text are accepted or rejected together, so that ten thousand of them say less than ten thousand "
        "independent ones.",
    ),
    "inputs": ("Inputs", ""),
    "paper": ("The paper's own tables", ""),
}


def write(results: Mapping[str, Any], folder: OutputFolder) -> None:
    """Writes the report of analysis.json's content into a folder."""
    drawn, tables = figures.all_figures(results), all_tables(results)
    texts = shown_texts(results)
    for table in (table for group in tables.values() for table in group):
        folder.put(f"tables/{table.name}.csv", table.to_csv().encode())
    tables = {section: [table.condensed() for table in group] for section, group in tables.items()}
    for name, (svg, _) in drawn.items():
        folder.put(f"figures/{name}.svg", figures.standalone(svg).encode())
    folder.put("report.md", to_markdown(results, tables, drawn, texts).encode())
    folder.put("report.html", to_html(results, tables, drawn, texts).encode())


def shown_texts(results: Mapping[str, Any]) -> list[ShownText]:
    """The chosen texts; token ids stand for letters where a tokeniser is not there any more."""
    decoders: dict[str, Callable[[list[int]], str] | None] = {}
    for text in results["texts"]:
        if text["tokenizer"] not in decoders:
            try:
                decoders[text["tokenizer"]] = load_tokenizer(text["tokenizer"]).decode
            except (TokenizerError, OSError):
                decoders[text["tokenizer"]] = None
    return [shown_text(text, decoders[text["tokenizer"]]) for text in results["texts"]]


# Markdown.


def to_markdown(
    results: Mapping[str, Any],
    tables: Mapping[str, Sequence[Table]],
    drawn: Mapping[str, tuple[str, str]],
    texts: Sequence[ShownText],
) -> str:
    lines = [f"# {TITLE}\n"]
    if sentence := verdict_of(results):
        lines.append(f"**{escape_markdown(sentence)}**\n")
    lines.append(f"Written {results['written']} by SpecBeam {results['specbeam']}.\n")
    lines += [f"- **{value}** {escape_markdown(caption)}" for value, caption in headlines(results)]
    lines += ["", *(f"- {escape_markdown(note)}" for note in caveats(results)), ""]
    figure = lambda name: f"![{drawn[name][1]}](figures/{name}.svg)\n"
    if texts:
        marks = ", ".join(f"{before}{name}{after}: {what}" for name, what, before, after in KINDS.values())
        lines += ["## Texts\n", f"Each line is a target call. {escape_markdown(marks)}.\n"]
        for text in texts:
            lines += [
                f"{escape_markdown(text.title)}: {escape_markdown(text.inputs)}\n",
                f"~~~~\n{text.to_plain()}~~~~\n",
            ]
        lines += [figure("trace")] if "trace" in drawn else []
    if shown := [name for name in FIGURES if name in drawn]:
        lines += ["## Figures\n", *map(figure, shown)]
    for section, (heading, introduction) in SECTIONS.items():
        if section not in tables:
            continue
        lines += [f"## {heading}\n", *([f"{introduction}\n"] if introduction else [])]
        for table in tables[section]:
            lines += [f"### {table.title}\n", table.to_markdown()]
            lines += [f"{escape_markdown(table.note)}\n"] if table.note else []
    return "\n".join(lines)


# HTML.


def to_html(
    results: Mapping[str, Any],
    tables: Mapping[str, Sequence[Table]],
    drawn: Mapping[str, tuple[str, str]],
    texts: Sequence[ShownText],
) -> str:
    """One page that needs nothing else: no scripts, no requests. All text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Markup: figures are escaped by matplotlib and `figures`.
    figure = lambda name: (Markup(drawn[name][0]), drawn[name][1])
    sections = [
        {"name": name, "heading": heading, "introduction": introduction, "tables": tables[name]}
        for name, (heading, introduction) in SECTIONS.items()
        if name in tables
    ]
    targets = sorted({source["target"]["name"] for source in results["sources"]})
    tasks = sorted({source["task"] for source in results["sources"] if source["task"]})
    return environment.get_template("page.html").render(
        title=TITLE,
        subtitle=f"{', '.join(targets)} on {', '.join(tasks)}" if tasks else ", ".join(targets),
        results=results,
        verdict=verdict_of(results),
        headlines=headlines(results),
        notes=caveats(results),
        sections=sections,
        texts=texts,
        kinds=list(KINDS.values()),
        trace=figure("trace") if "trace" in drawn else None,
        figures=[figure(name) for name in FIGURES if name in drawn],
        long=_LONG,
        wide=_is_wide,
        unfolded=_TEXTS,
    )


def _is_wide(table: Table) -> bool:
    rows = [[column.title[:12] for column in table.columns], *table.shown()]
    return sum(max(map(len, column)) for column in zip(*rows)) > _WIDE
