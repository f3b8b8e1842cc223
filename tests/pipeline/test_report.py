"""The report: the same numbers in HTML, Markdown and CSV; nothing of others' text is markup; one page that needs nothing."""

import csv
import dataclasses
import html.parser
import io
import re
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.figure import Figure

from pipeline import analyze
from pipeline.report import acceptance, content, figures, headline, paper, speed
from pipeline.report.tables import Column, Table, escape_markdown
from pipeline.report.texts import direction, shown_text, tip, token_texts
from tests.pipeline import report_pages


class Page(html.parser.HTMLParser):
    """Tables by id, every tag with its attributes, and the text of tokens."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict]] = []
        self._table = self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "table":
            self._table = self.tables.setdefault(attrs["id"].removeprefix("table-"), [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._table[-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(data)


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """Tables by the heading before them, cells unescaped."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("### "):
            heading = line[4:]
        elif line.startswith("| "):
            cells = re.split(r"(?<!\\) \| ", line[2:-2])
            plain = [html.unescape(re.sub(r"\\([\\|`*_~(])", r"\1", cell)) for cell in cells]
            found.setdefault(heading, []).append(plain)
    return found


def test_numbers_agree_in_html_markdown_and_csv(report):
    folder, results = report
    page = Page((folder / "report.html").read_text())
    marked = markdown_tables((folder / "report.md").read_text())
    tables = [table for group in content.all_tables(results).values() for table in group]
    assert len(tables) >= 18
    for table in tables:
        shown = table.condensed()
        rows = page.tables[table.name]
        assert rows[0] == [column.title for column in shown.columns]
        assert [[" ".join(cell.split()) for cell in row] for row in rows[1:]] == marked[table.title][1:], table.name
        with open(folder / "tables" / f"{table.name}.csv", newline="") as stream:
            raw = list(csv.DictReader(stream))
        assert len(raw) == len(rows) - 1
        for line, cells in zip(raw, rows[1:]):
            for column, cell in zip(shown.columns, cells):
                assert cell == column.show(from_csv(column, line)), (table.name, column.title)


def from_csv(column: Column, line: dict[str, str]):
    """The value of a cell, read back from the columns that CSV has for it."""
    values = [line[title] for title in column.raw_titles()]
    if values[0] == "":
        return None
    if column.kind == "text":
        return values[0]
    if column.kind == "whole":
        return values[0] if values[0] == "auto" else int(values[0])
    if column.kind == "number":
        return float(values[0])
    return dict(zip(("mean", "low", "high"), (float(value) if value else None for value in values)))


def test_nothing_of_others_text_is_markup(report):
    folder, results = report
    text = (folder / "report.html").read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "&lt;script&gt;" in text and "<script" not in text
    tokens = [attrs for tag, attrs in page.tags if tag == "bdi" and "token" in attrs.get("class", "")]
    assert len(tokens) == sum(len(one["row"]["output_tokens"]) for one in results["texts"])
    assert all(attrs["data-tip"] for attrs in tokens)
    # Right-to-left text and overrides are isolated: each token has a bdi of its own, which closes what it opened.
    assert "\u202e" in text and re.search(r'<bdi class="token [a-z]+" tabindex="0" data-tip="[^"]*"> \u202eevil</bdi>', text)
    for svg in (folder / "figures").iterdir():
        root = ElementTree.fromstring(svg.read_text())
        assert not [node for node in root.iter() if node.tag.endswith(("script", "image", "foreignObject"))]


def test_markdown_is_not_broken_by_texts(report):
    text = (report[0] / "report.md").read_text()
    fences = [line for line in text.splitlines() if line.startswith("~~~")]
    assert len(fences) == 2 * len(report[1]["texts"])
    outside = re.sub(r"^~~~~\n.*?^~~~~\n", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside and "<b>" not in outside and "<img" not in outside


def test_the_page_asks_for_nothing(report):
    page = Page((report[0] / "report.html").read_text())
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value)
    css = re.search(r"<style>(.*?)</style>", (report[0] / "report.html").read_text(), re.DOTALL).group(1)
    assert "@import" not in css and "url(" not in css
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert rule in css


def test_ids_are_distinct_and_references_lead_somewhere(report):
    text = (report[0] / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)}
    assert used <= set(ids)


def test_figures(report):
    folder, _ = report
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names == {
        "tokens", "best_gamma", "speed", "operations", "trace", "autocorrelation", "lengths", "position", "place", "frequency",
        "widths",
    }  # fmt: skip
    for path in (folder / "figures").iterdir():
        text = path.read_text()
        assert "currentColor" in text and figures._INK not in text and figures._GRID not in text
        assert "prefers-color-scheme" in text
    assert (folder / "figures" / "tokens.svg").read_text().count("γ=") == 5


def widths_of_trace(results) -> list[list[float]]:
    """Widths of the trace's bars, speculative and plain."""
    axes = Figure().subplots()
    assert figures.trace(axes, results)
    bars = [patch for patch in axes.patches if patch.get_width()]
    return [[bar.get_width() for bar in bars if bar.get_y() == bottom] for bottom in (1.1, 0.1)]


def test_a_trace_is_to_scale_with_all_that_was_measured(report):
    """Passes as they were timed alone, and the rest of an iteration, whose whole time was measured, beside them."""
    _, results = report
    text = results["texts"][0]
    calls = text["row"]["gammas"][:12]
    tokens = sum(call < len(calls) for call in text["row"]["iteration"])
    speculative, plain = widths_of_trace(results)
    # A plain iteration takes 1.25 target passes (1 s / 100 over 8 ms), one with γ = 3 1.4 of those, of which drafts 0.1 each
    # and the target 1.3.
    assert speculative == pytest.approx([0.1, 0.1, 0.1, 1.3, 1.25 * 1.4 - 1.6] * len(calls))
    assert plain == pytest.approx([1, 0.25] * tokens)
    assert widths_of_trace({**results, "costs": []}) == [[1.0] * len(calls), [1.0] * tokens]
    # Where passes took longer alone than in the run, the run's time counts.
    (cost,) = results["costs"]
    faster = {**cost, "iterations": [{**one, "cost": one["cost"] / 2} for one in cost["iterations"]]}
    speculative, plain = widths_of_trace({**results, "costs": [faster]})
    assert sum(speculative) == pytest.approx(len(calls) * 1.25 * 1.4 / 2) and sum(plain) == pytest.approx(tokens * 0.625)


def test_a_trace_has_the_costs_of_the_slots_nearest_to_the_runs(report):
    _, results = report
    text, (cost,) = results["texts"][0], results["costs"]
    assert (text["num_slots"], cost["num_slots"]) == (8, 1)
    other = {**cost, "num_slots": 9, "c": {"mean": 0.2, "low": 0.2, "high": 0.2}}
    assert widths_of_trace({**results, "costs": [cost, other]}) == widths_of_trace({**results, "costs": [other]})
    axes = Figure().subplots()
    figures.trace(axes, {**results, "costs": [cost]})
    assert any("measured at 1 slot (run: 8)" in one.get_text() for one in axes.texts)


def test_the_verdict_comes_first_then_texts_figures_tables_and_the_papers_last(report):
    folder, results = report
    sentence = headline.verdict_of(results)
    assert sentence.startswith("Speculation pays here: at 1 slot, temperature 1, token, γ = 3 is 1.50 times (1.42 to 1.58)")
    html_order = [sentence, 'id="texts"', 'id="figures"', 'id="speed"', 'id="inputs"', 'id="paper"']
    headings = ("Texts", "Figures", "Predicted and measured", "Inputs", "The paper's own")
    markdown_order = [escape_markdown(sentence), *(f"## {heading}" for heading in headings)]
    for name, order in (("report.html", html_order), ("report.md", markdown_order)):
        text = html.unescape((folder / name).read_text())
        places = [text.index(one) for one in order]
        assert places == sorted(places), name


def test_without_a_benchmark_the_verdict_is_of_the_job_or_says_that_speed_was_not_measured(report):
    _, results = report
    (one,) = results["in_job"]
    within = headline.verdict_of({**results, "speedups": []})
    alpha = next(series["alpha"]["mean"] for series in results["series"] if series["run"] == one["run"])
    assert within.startswith("Speculation pays here: at 8 slots, T = 1, draft small, within the job, γ = 3 is ")
    assert f"{one['speedup']['mean']:.2f} times" in within
    assert f"{alpha:.0%} are accepted (α)" in within
    unknown = headline.verdict_of({**results, "speedups": [], "in_job": []})
    assert unknown.startswith("Whether speculation pays was not measured.")
    assert f"{alpha:.0%} were accepted (α)" in unknown and "γ = 3, T = 1" in unknown
    scored = [series for series in results["series"] if series["kind"] == "scores"]
    unknown = headline.verdict_of({**results, "speedups": [], "in_job": [], "series": scored})
    assert "of small's guesses 60% would be accepted (α), T = 1" in unknown


def test_at_temperature_0_alpha_by_what_became_of_the_guess_is_left_out(report):
    _, results = report
    assert acceptance.by_dimension(results, "source", "what became of the guess")
    greedy = {**results, "series": [{**one, "temperature": 0.0} for one in results["series"]]}
    assert acceptance.by_dimension(greedy, "source", "what became of the guess") is None


def test_points_of_the_best_gamma_tell_the_costs_that_it_is_best_for(report):
    _, results = report
    axes = Figure().subplots()
    (one,) = (row for row in results["best_gammas"] if row["kind"] == "generations")
    figures.gamma_over_alpha(axes, {**results, "best_gammas": [one, {**one, "sampling": "T = 0", "costs": [
        {**one["costs"][0], "gamma": {"mean": 1, "low": 0, "high": 2}}
    ]}]})  # fmt: skip
    assert axes.get_legend_handles_labels()[1][-2:] == ["small, T = 1: c = 0.10, 1 slot", "small, T = 0: c = 0.10, 1 slot"]


def test_theory_can_be_read_without_colour(report):
    """Every curve of a figure has a dash of its own, and a label."""
    _, results = report
    for draw, count in ((figures.tokens_over_alpha, 5), (figures.gamma_over_alpha, 5), (figures.operations_over_alpha, 5)):
        axes = Figure().subplots()
        draw(axes, results)
        curves = [line for line in axes.lines if line.get_color() == "#8a8f98"]
        assert len({str(line._unscaled_dash_pattern) for line in curves}) == len(curves) == count
        named = [one.get_text() for one in axes.texts] + [line.get_label() for line in curves]
        assert len([name for name in named if name.startswith(("γ=", "c ="))]) == count


def test_figures_are_the_same_bytes_each_time(report):
    _, results = report
    drawn = [figures.render("x", "title", figures.accepted_lengths, results) for _ in range(2)]
    assert drawn[0] == drawn[1]


# Parts of it.


def test_columns_and_cells():
    value = {"mean": 0.49731, "low": 0.4812, "high": 0.5131}
    assert Column("α", "estimate", 3).show(value) == "0.497 [0.481, 0.513]"
    assert Column("α", "estimate", 3).show({**value, "low": None}) == "0.497"
    assert Column("miss", "percent", 1).show({"mean": -0.1234, "low": -0.2, "high": 0.01}) == "-12.3% [-20.0%, +1.0%]"
    assert Column("n", "whole").show(1234567) == "1,234,567"
    assert Column("n", "whole").show(0) == "0"
    assert Column("x", "number", 2).show(None) == ""


def test_csv_cells_that_begin_like_formulas_are_text():
    columns = (Column("run"), Column("number", "number"), Column("α", "estimate"))
    estimate = {"mean": -0.5, "low": -1.0, "high": 0.25}
    names = ["=1+1", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", " =1", "\t=1", "＝1", "plain", "a=b", "-1.5", "+3"]
    table = Table("t", "T", columns, tuple((name, -1.5, estimate) for name in names))
    rows = list(csv.reader(io.StringIO(table.to_csv())))[1:]
    assert [row[0] for row in rows] == [*("'" + name for name in names[:7]), *names[7:]]
    assert {tuple(row[1:]) for row in rows} == {("-1.5", "-0.5", "-1.0", "0.25")}


def test_constant_columns_are_said_once():
    columns = (Column("run"), Column("draft"), Column("n", "whole"))
    table = Table("t", "T", columns, (("a", "x", 1), ("a", "y", 1)), "Note.")
    assert [column.title for column in table.condensed().columns] == ["draft", "n"]
    assert table.condensed().note == "In every row: run a. Note."
    one = dataclasses.replace(table, rows=table.rows[:1])
    assert one.condensed() is one


def test_columns_about_runs_are_said_once_though_they_do_not_apply_to_all():
    columns = (Column("seed", about=True), Column("slots", about=True), Column("γ", "whole"), Column("p-value"))
    table = Table("t", "T", columns, (("0", "8", 3, ""), ("1", "", "auto", "0.1")))
    assert [column.title for column in table.condensed().columns] == ["seed", "γ", "p-value"]
    assert table.condensed().note == "Where it applies: slots 8."
    one = dataclasses.replace(table, rows=table.rows[1:]).without_empty_columns()
    assert one.condensed().shown() == [["auto", "0.1"]] and one.condensed().note == "In every row: seed 1."


def test_markdown_cells_are_text():
    assert escape_markdown("a|b*c_d`e<f>&\n g\\") == "a\\|b\\*c\\_d\\`e&lt;f&gt;&amp; g\\\\"
    assert escape_markdown("[a](b) ~~c~~ 0.5 [0.4, 0.6]") == "[a]\\(b) \\~\\~c\\~\\~ 0.5 [0.4, 0.6]"


def test_texts_by_iteration():
    row = {
        "example_id": "e", "inputs": "in", "output_tokens": [9, 19, 29, 3], "source": [1, 0, 2, 3], "iteration": [0, 0, 1, 2],
        "target_logprob": [-0.5, -1.0, -0.1, -0.2], "draft_logprob": [-0.25, float("nan"), float("nan"), None],
        "beta": [0.9, 0.3, float("nan"), float("nan")],
    }  # fmt: skip
    text = shown_text({"called": "T = 1, γ = 3", "draft": "d", "row": row}, report_pages.Pieces().decode)
    assert text.title == "d, T = 1, γ = 3"
    assert [[token.kind for token in line] for line in text.lines] == [["accepted", "corrected"], ["bonus"], ["plain"]]
    assert text.lines[0][0].tip == "p 0.607, q 0.779, β 0.900: accepted"
    assert text.lines[0][1].tip == "p 0.368, β 0.300: corrected"
    assert text.to_plain() == "  1   word[ word]\n  2  { word}\n  3   שלום\n"
    assert tip(3, None, None, None) == "plain"
    assert text.direction == "ltr" and direction(" 1. שלום word") == "rtl" and direction("") == "ltr"


def test_tokens_whose_bytes_make_one_character():
    decode = lambda tokens: bytes(tokens).decode("utf-8", errors="replace")
    assert token_texts(list("aü€b".encode()), decode) == ["a", "·", "ü", "·", "·", "€", "b"]
    assert token_texts([5, 6], None) == [" ‹5›", " ‹6›"]


def test_the_papers_numbers_stand_only_beside_the_papers_settings(report):
    _, results = report
    for table in (acceptance.table_3(results), acceptance.table_5(results)):
        assert not [column.title for column in table.columns if "paper" in column.title]
    xxl = dict(d_model=4096, d_ff=10240, num_layers=24, num_decoder_layers=24, gated=True)
    small = dict(d_model=512, d_ff=1024, num_layers=8, num_decoder_layers=8, gated=True)
    assert paper.setting(xxl, small, "any name", "wmt14_translate/de-en") == ("T5-XXL", "EnDe", "T5-small")
    assert paper.setting(xxl, None, "bigram", "cnn_dailymail") == ("T5-XXL", "CNN/DM", "bigram")
    assert paper.setting(xxl, None, "lookup", "cnn_dailymail") is None
    assert paper.setting(xxl, small, "", "opus_books/de-en") is None
    assert paper.setting({**xxl, "num_layers": 12}, small, "", "wmt14_translate/de-en") is None
    one = next(series for series in results["series"] if series["kind"] == "scores" and series["draft"] == "small")
    shapes = {"x": {"name": one["target"], "shape": xxl}, "y": {"name": "small", "shape": small}}
    same = {**results, "models": shapes, "series": [{**one, "task": "wmt14_translate/de-en"}]}
    (row,) = acceptance.table_3(same).rows
    assert row[-2:] == (0.75, 0.62)
    other = {**one, "task": "wmt14_translate/de-en", "sampling": "T = 0.5"}  # another way of sampling stands first
    (row,) = acceptance.table_3({**same, "series": [other, *same["series"]]}).rows
    assert row[-2:] == (0.75, 0.62)
    assert [cell for cell in acceptance.table_5(same).rows[0] if isinstance(cell, float)] == [0.62, 0.71, 0.84]


def test_the_papers_tables_are_those_that_theory_is_tested_with():
    from tests.decoding import test_theory

    assert list(paper.TABLE_1) == test_theory.TABLE_1
    assert [(g, a, c, predicted) for _, _, _, g, a, c, predicted, _ in paper.TABLE_4] == test_theory.TABLE_4
    for row in speed.table_1().rows:
        assert f"{row[2]:.2f}" == f"{row[3]:.2f}" and f"{row[4]:.2f}" == f"{row[5]:.2f}"


def test_without_the_extra_the_message_names_it(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "pipeline.report.write", None)
    assert analyze.main(["--inputs=x", "--output=y"]) == 2
    assert "the extra `report`" in capsys.readouterr().err
