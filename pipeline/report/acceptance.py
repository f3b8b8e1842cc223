"""Tables of acceptance: α, where in a text it is how large, whether β is i.i.d., how many tokens are enough."""

from collections.abc import Mapping
from typing import Any

from pipeline.report import paper
from pipeline.report.tables import PAIR, Table, about, estimated, number, pair, table, text, whole


def table_3(results: Mapping[str, Any]) -> Table | None:
    """α in the form of the paper's Table 3: a row per draft, a column per way of sampling."""
    chosen = [one for one in results["series"] if one["kind"] == "scores"] or list(results["series"])
    samplings = sorted({one["sampling"] for one in chosen})
    at = [column.title for column in PAIR].index("sampling")
    columns = [*PAIR[:at], *PAIR[at + 1 :]]
    rows: dict[tuple, dict[Any, Any]] = {}
    for one in chosen:
        cells = pair(one)
        row = rows.setdefault((*cells[:at], *cells[at + 1 :]), {})
        row["paper"] = row.get("paper") or _paper_alpha(results, one)
        row[one["sampling"]] = one.get("alpha_over_all") or one["alpha"]
        if one.get("proposed") and one["proposed"]["mean"] < 1:
            row["proposed", one["sampling"]] = one["proposed"]
    columns += [
        *(estimated(f"α, {s}") for s in samplings),
        *(estimated(f"proposed, {s}") for s in samplings),
        number("paper, T = 0"),
        number("paper, T = 1"),
    ]
    cells = [
        (
            *key,
            *map(row.get, samplings),
            *(row.get(("proposed", s)) for s in samplings),
            *(row["paper"] or (None, None)),
        )
        for key, row in rows.items()
    ]
    note = (
        "As the paper's Table 3: E[Σ min(p, q)] over texts of the target, a position at which the draft proposes nothing "
        "counting 0; the share at which it does stands beside it. "
        if any(one["kind"] == "scores" for one in chosen)
        else "For want of scores the mean of Σ min(p, q) over the positions that these runs examined. "
    ) + "The paper's numbers stand beside ours only where target, draft and task are the paper's."
    return table("table_3", "Acceptance rate α of each draft", columns, cells, note)


def _shapes(results: Mapping[str, Any], one: Mapping[str, Any]) -> tuple:
    """Shapes of a series' target and draft, None where there is none."""
    by_name = {model["name"]: model["shape"] for model in results["models"].values()}
    return by_name.get(one["target"]), by_name.get(one["draft"])


def _paper_setting(results: Mapping[str, Any], one: Mapping[str, Any]) -> tuple | None:
    return paper.setting(*_shapes(results, one), one["draft"], one["task"])


def _paper_alpha(results: Mapping[str, Any], one: Mapping[str, Any]) -> tuple | None:
    if one["sampling"] not in ("T = 0", "T = 1"):
        return None
    return paper.TABLE_3.get(_paper_setting(results, one))


def table_5(results: Mapping[str, Any]) -> Table | None:
    scored = [one for one in results["series"] if one.get("lenient")]
    values = sorted({float(name) for one in scored for name in one["lenient"]}, reverse=True)
    rows = []
    for one in scored:
        setting = _paper_setting(results, one)
        known = {}
        if setting and setting[:2] == ("T5-XXL", "EnDe") and one["sampling"] == "T = 1":
            known = dict(zip(paper.LENIENCES, paper.TABLE_5.get(setting[2], ())))
        lenient = {float(name): value for name, value in one["lenient"].items()}
        rows.append((*pair(one), one["alpha"], *map(lenient.get, values), *map(known.get, (1.0, *values))))
    columns = (
        *PAIR,
        estimated("α, l = 1"),
        *(estimated(f"α, l = {value:g}") for value in values),
        *(number(f"paper, l = {value:g}") for value in (1.0, *values)),
    )
    note = (
        "As the paper's Table 5: Σ min(p / l, q) where the draft proposes something. Below l = 1 decoding is not exact."
    )
    return table("table_5", "α with lenience l", columns, rows, note)


def best_drafts(results: Mapping[str, Any]) -> Table | None:
    columns = (*PAIR, estimated("α"), about("best draft"), estimated("the best's α"), estimated("ahead by"))
    rows = [(*pair(one), one["alpha"], one["best"], one["best_alpha"], one["ahead"]) for one in results["best_drafts"]]
    note = (
        "Of the drafts that one folder scores on the same texts. The last column is the difference, with the interval of a "
        "comparison example by example, which is not that of two independent numbers."
    )
    return table("best_drafts", "The best draft beside the others", columns, rows, note)


def two_definitions(results: Mapping[str, Any]) -> Table | None:
    columns = (
        *PAIR,
        estimated("α on policy"),
        estimated("α over target text"),
        estimated("difference"),
    )
    rows = [
        (*pair(one), one["on_policy"], one["over_target_text"], one["difference"])
        for one in results["two_definitions"]
    ]
    note = (
        "On policy: the mean over the positions that the run examined. A call examines positions up to its first rejection, "
        "and never its bonus position, which follows successes; over the whole text (Corollary 3.6) every position counts "
        "once. The two differ where acceptance goes together along a text."
    )
    return table("two_definitions", "The two definitions of α", columns, rows, note)


def by_dimension(results: Mapping[str, Any], dimension: str, title: str) -> Table | None:
    """α by a dimension; by what became of the guess only where it is drawn: at temperature 0 β says just that."""
    rows = [
        (*pair(one), bucket["label"], bucket["alpha"], bucket["positions"])
        for one in results["series"]
        if dimension != "source" or one["temperature"] != 0
        for bucket in one["by"].get(dimension, ())
    ]
    columns = (*PAIR, text(title), estimated("α"), whole("positions"))
    return table(f"alpha_by_{dimension}", f"α by {title}", columns, rows)


def by_copied(results: Mapping[str, Any], dimension: str, title: str) -> Table | None:
    """α and accepted length by a dimension of target calls, of drafts that copy."""
    rows = [
        (*pair(one), bucket["label"], bucket["alpha"], bucket["accepted"], bucket["calls"])
        for one in results["series"]
        for bucket in one["by"].get(dimension, ())
    ]
    columns = (*PAIR, text(title), estimated("α"), estimated("accepted per call"), whole("calls"))
    return table(f"alpha_by_{dimension}", f"α and accepted length by {title}", columns, rows)


# Is β i.i.d.?


def between_texts(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*pair(one), b["mean_square_ratio"], b["intraclass_correlation"], b["deviation_between_texts"])
        for one in results["series"]
        if (b := one.get("between_texts"))
    ]
    columns = (
        *PAIR,
        estimated("F, texts", 2),
        estimated("intraclass correlation"),
        estimated("deviation of a text's α"),
    )
    note = "F: mean square between texts over that within; 1 if all tokens were alike, whatever their text."
    return table("between_texts", "Dispersion of β between texts", columns, rows, note)


def autocorrelation(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*pair(one), lag["lag"], lag["correlation"], lag["pairs"])
        for one in results["series"]
        for lag in one.get("autocorrelation", ())
    ]
    columns = (*PAIR, whole("lag"), estimated("correlation"), whole("pairs"))
    return table(
        "autocorrelation",
        "Autocorrelation of β within a text",
        columns,
        rows,
        "0 at every lag if β were i.i.d.; what remains at long lags is the difference between texts.",
    )


def accepted_lengths(results: Mapping[str, Any]) -> Table | None:
    rows = []
    for one in results["series"]:
        for lengths in one.get("accepted_lengths", ()):
            law, test = lengths.get("geometric"), lengths.get("test")
            for k, observed in enumerate(lengths["observed"]):
                first = k == 0
                rows.append(
                    (
                        *pair({**one, "gamma": lengths["gamma"]}),
                        k,
                        observed,
                        law and law[k],
                        lengths.get("distance") if first else None,
                        _p_value(test) if first and law else None,
                    )
                )
    columns = (
        *PAIR,
        whole("accepted"),
        estimated("observed share"),
        estimated("capped geometric law"),
        estimated("total variation"),
        text("p-value"),
    )
    note = (
        "The law that Eq. 1 sums, with the run's own α. The p-value is of a Wald test whose covariance comes from bootstrap "
        "replicates over examples, so that it allows for clustering. Calls that begin within γ tokens of a text's end, which "
        "may cut them, are left out."
    )
    return table("accepted_lengths", "Accepted tokens per target call", columns, rows, note)


def _p_value(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return "too few texts"
    return "< 0.0001" if test["p_value"] < 1e-4 else f"{test['p_value']:.4f}"


def predicted_by_gamma(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*pair({**one, "gamma": int(gamma)}), methods["iid"], methods["windows"], methods["walk"])
        for one in results["series"]
        for gamma, methods in one.get("predicted", {}).items()
    ]
    columns = (
        *PAIR,
        estimated("Eq. 1", 2),
        estimated("runs of β, any start", 2),
        estimated("joint acceptance along the texts", 2),
    )
    note = "Expected tokens per target call, from scores alone. The last follows decoding along each text, its end included."
    return table("predicted_tokens", "Tokens per target call that scores predict", columns, rows, note)


# How many tokens are enough?


def sample_size(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (
            *pair(one),
            s["positions"],
            s["texts"],
            one["alpha"],
            s["half_width"],
            s["half_width_if_independent"],
            s["design_effect"],
            round(s["effective_tokens"]),
            s["half_width_at_10000_tokens"],
        )
        for one in results["series"]
        if (s := one.get("sample_size"))
    ]
    columns = (
        *PAIR,
        whole("positions"),
        whole("texts"),
        estimated("α"),
        number("half-width", 4),
        number("if independent", 4),
        number("design effect"),
        whole("worth as many independent tokens"),
        number("half-width at 10,000 tokens", 4),
    )
    note = (
        "Design effect: variance of α over what it would be if all tokens were independent. The last column answers the "
        "paper's 10K tokens, with texts as long as these."
    )
    return table("sample_size", "Design effect of texts, and the interval's width", columns, rows, note)


def needed(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*pair(one), n["half_width"], n["tokens"], n["texts"])
        for one in results["series"]
        if one.get("sample_size")
        for n in one["sample_size"]["needed"]
    ]
    columns = (*PAIR, number("wanted half-width", 3), whole("tokens needed"), whole("texts needed"))
    return table("tokens_needed", "Tokens and texts needed for a wanted interval", columns, rows)


def subsets(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*pair(one), n["texts"], n["positions"], n["alpha"], n["half_width"])
        for one in results["series"]
        if one.get("sample_size")
        for n in one["sample_size"]["measured"]
    ]
    columns = (*PAIR, whole("texts"), whole("positions"), estimated("α"), number("half-width", 4))
    return table("subsets", "The interval over random subsets of the texts", columns, rows)


def seeds(results: Mapping[str, Any]) -> Table | None:
    rows = []
    for one in results["seeds"]:
        for what, name in (("alpha", "α"), ("tokens_per_call", "tokens per call"), ("speedup", "speedup")):
            if not (spread := one.get(what)):
                continue
            rows.append(
                (
                    one["kind"],
                    one["draft"],
                    one["sampling"],
                    one["gamma"],
                    name,
                    ", ".join(map(str, one["seeds"])),
                    spread["mean"],
                    spread["deviation_between_seeds"],
                    spread["mean_standard_error"],
                    _p_value(spread) if "p_value" in spread else None,
                )
            )
    columns = (
        *map(about, ("from", "draft", "sampling")),
        whole("γ"),
        text("of"),
        about("seeds"),
        number("mean", 4),
        number("deviation between seeds", 4),
        number("standard error of one run", 4),
        text("p-value, all the same"),
    )
    note = (
        "Seeds that decode the same inputs lie closer together than the intervals say: an interval also covers the choice "
        "of inputs, which seeds share."
    )
    return table("seeds", "Spread between seeds against the intervals", columns, rows, note)
