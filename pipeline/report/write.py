"""report.html, report.md, tables/*.csv and figures/*.svg from analysis.json: the same numbers in each."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.report import figures
from pipeline.report.content import all_tables
from pipeline.report.tables import Column, Table, escape_markdown
from pipeline.report.texts import KINDS, ShownText, shown_text
from transforms.storage import OutputFolder
from transforms.tokenize import TokenizerError, load_tokenizer

TITLE = "What the speculation did"
_LONG = 20  # rows above which a table is folded in HTML

# By section: heading, introduction, figures.
SECTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "acceptance": (
        "Acceptance",
        "α is the probability that a drafted token is accepted. Every bracket is a 95% interval by bootstrap over examples.",
        (),
    ),
    "speed": (
        "Predicted and measured speed",
        "What the paper's formulas make of α and the costs of single passes, beside what was measured, and how far they miss.",
        ("tokens", "speed", "best_gamma", "operations"),
    ),
    "iid": (
        "Is β i.i.d.?",
        "The formulas take the acceptances of a call's guesses as independent and alike. Whether they are, and what a "
        "prediction from their joint behaviour gains.",
        ("autocorrelation", "lengths"),
    ),
    "where": ("Where acceptance is high and low", "", ("position", "place", "frequency")),
    "enough": (
        "How many tokens are enough?",
        "Tokens of one text are accepted or rejected together, so that ten thousand of them say less than ten thousand "
        "independent ones.",
        ("widths",),
    ),
    "paper": ("The paper's own tables", "", ()),
    "inputs": ("Inputs", "", ()),
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


def headlines(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few numbers to see first, each once: (value, what it is)."""
    found, alpha, ratio = [], Column("", "estimate", 3), Column("", "estimate", 2)
    for one in [one for one in results["two_definitions"] if one["over_target_text"]][:2]:
        found.append(
            (alpha.show(one["over_target_text"]), f"α of {one['draft']} over the target's text, {one['sampling']}")
        )
    if not found:
        found = [
            (alpha.show(o["alpha"]), f"α of {o['draft']}, {o['sampling']}") for o in results["series"][:2] if o["alpha"]
        ]
    for one in results["tokens_per_call"][:2]:
        caption = f"tokens per target call of {one['run']}: {one['draft']}, γ = {one['gamma']}, {one['sampling']}"
        found.append((ratio.show(one["observed"]), caption))
    if measured := [one for one in results["speedups"] if one["measured"]]:
        best = max(measured, key=lambda one: one["measured"]["mean"])
        slots = f"{best['num_slots']} slot{'s' if best['num_slots'] > 1 else ''}"
        caption = (
            f"largest measured speedup of {len(measured)} settings: γ = {best['gamma']}, {best['sampling']}, {slots}"
        )
        found.append((ratio.show(best["measured"]).replace(" ", "× ", 1), caption))
    return list(dict.fromkeys(found))


def caveats(results: Mapping[str, Any]) -> list[str]:
    """Notes for the reader, and what was measured on which machine."""
    found = list(results["notes"])
    for one in results["machines"]:
        machine, inputs = one["machine"], one["inputs"]
        cores = f"{machine['usable_cores']} core{'s' if machine['usable_cores'] != 1 else ''}"
        found.append(
            f"{one['run']} was measured on {cores} of {machine['processor']} "
            f"({machine['device']['kind']}), over {inputs['examples']} inputs of {inputs['shortest']} to "
            f"{inputs['longest']} tokens, with jax {machine['versions']['jax']}."
        )
    return found


# Markdown.


def to_markdown(
    results: Mapping[str, Any],
    tables: Mapping[str, Sequence[Table]],
    drawn: Mapping[str, tuple[str, str]],
    texts: Sequence[ShownText],
) -> str:
    lines = [f"# {TITLE}\n", f"Written {results['written']} by SpecBeam {results['specbeam']}.\n"]
    lines += [f"- **{value}** {escape_markdown(caption)}" for value, caption in headlines(results)]
    lines += ["", *(f"- {escape_markdown(note)}" for note in caveats(results)), ""]
    for section, (heading, introduction, names) in SECTIONS.items():
        present = [name for name in names if name in drawn]
        if section not in tables and not present:
            continue
        lines += [f"## {heading}\n", *([f"{introduction}\n"] if introduction else [])]
        lines += [f"![{drawn[name][1]}](figures/{name}.svg)\n" for name in present]
        for table in tables.get(section, ()):
            lines += [f"### {table.title}\n", table.to_markdown()]
            lines += [f"{escape_markdown(table.note)}\n"] if table.note else []
    if texts:
        trace = [f"![{drawn['trace'][1]}](figures/trace.svg)\n"] if "trace" in drawn else []
        marks = ", ".join(f"{before}{name}{after}: {what}" for name, what, before, after in KINDS.values())
        lines += ["## Texts\n", f"Each line is a target call. {escape_markdown(marks)}.\n", *trace]
        for text in texts:
            lines += [
                f"{escape_markdown(text.title)}: {escape_markdown(text.inputs)}\n",
                f"~~~~\n{text.to_plain()}~~~~\n",
            ]
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
    sections = []
    for name, (heading, introduction, figure_names) in SECTIONS.items():
        # Markup: figures are escaped by matplotlib and `figures`.
        shown = [(Markup(drawn[one][0]), drawn[one][1]) for one in figure_names if one in drawn]
        if name in tables or shown:
            sections.append(
                {
                    "name": name,
                    "heading": heading,
                    "introduction": introduction,
                    "figures": shown,
                    "tables": tables.get(name, ()),
                }
            )
    targets = sorted({source["target"]["name"] for source in results["sources"]})
    tasks = sorted({source["task"] for source in results["sources"] if source["task"]})
    return environment.get_template("page.html").render(
        title=TITLE,
        subtitle=f"{', '.join(targets)} on {', '.join(tasks)}" if tasks else ", ".join(targets),
        results=results,
        headlines=headlines(results),
        notes=caveats(results),
        sections=sections,
        texts=texts,
        kinds=list(KINDS.values()),
        trace=(Markup(drawn["trace"][0]), drawn["trace"][1]) if "trace" in drawn else None,
        long=_LONG,
    )
