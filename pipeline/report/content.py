"""Which tables a report has, made of analysis.json alone."""

from collections.abc import Mapping
from typing import Any

from decoding import theory
from pipeline.report import paper
from pipeline.report.tables import Table, estimated, number, percent, table, text, whole

_PAIR = (text("run"), text("target"), text("draft"), text("sampling"))
_METHODS = {
    "iid on policy": "Eq. 1, α of this run",
    "iid": "Eq. 1, α over target text",
    "windows": "runs of β, any start",
    "walk": "joint acceptance along the texts",
    "theorem_3_8": "Theorem 3.8",
    "with_pass_cost": "with the measured cost of γ + 1 positions",
    "joint_with_pass_cost": "and with the measured joint acceptance",
}
_KINDS = {"generations": "on policy", "scores": "over the text"}


def all_tables(results: Mapping[str, Any]) -> dict[str, list[Table]]:
    """The report's tables by section; sections without any are left out."""
    sections: dict[str, list[Table | None]] = {
        "inputs": [folders(results)],
        "acceptance": [table_3(results), two_definitions(results), table_5(results)],
        "where": [
            by_dimension(results, "position", "position in the text"),
            by_dimension(results, "place", "place in the block"),
            by_dimension(results, "frequency", "rank of the token by frequency"),
            by_dimension(results, "source", "what became of the guess"),
        ],
        "speed": [
            table_2(results),
            speedup_misses(results),
            in_job(results),
            tokens_per_call(results),
            best_gammas(results),
            operations(results),
        ],
        "iid": [between_texts(results), autocorrelation(results), accepted_lengths(results), predicted_by_gamma(results)],
        "enough": [sample_size(results), needed(results), subsets(results), seeds(results)],
        "paper": [table_1(), table_4()],
    }
    kept = {name: [one for one in tables if one] for name, tables in sections.items()}
    return {name: tables for name, tables in kept.items() if tables}


def _pair(one: Mapping[str, Any]) -> tuple:
    return one["run"], one["target"], one["draft"], one["sampling"]


def folders(results: Mapping[str, Any]) -> Table | None:
    totals: dict[str, Mapping[str, Any]] = {}
    for one in results["series"]:
        totals.setdefault(one["run"], one)
    rows = []
    for source in results["sources"]:
        total, decoding = totals.get(source["label"], {}), source["decoding"]
        drafts = ", ".join(draft["name"] for draft in source["drafts"].values()) or "none"
        rows.append(
            (
                source["label"], source["kind"], source["task"], source["target"]["name"], drafts,
                decoding.get("temperature"), decoding.get("gamma") if source["kind"] == "generations" else None,
                total.get("texts"), total.get("tokens"), source["fingerprint"][:12], source["missing"] or None,
            )
        )  # fmt: skip
    columns = (
        text("run"), text("kind"), text("task"), text("target"), text("drafts"), text("temperature"), text("γ"),
        whole("texts"), whole("tokens"), text("fingerprint"), whole("parts missing"),
    )  # fmt: skip
    return table("inputs", "What was analysed", columns, rows)


# α.


def table_3(results: Mapping[str, Any]) -> Table | None:
    """α in the form of the paper's Table 3: a row per draft, a column per way of sampling."""
    chosen = [one for one in results["series"] if one["kind"] == "scores"] or list(results["series"])
    samplings = sorted({one["sampling"] for one in chosen})
    rows: dict[tuple, dict[Any, Any]] = {}
    for one in chosen:
        key = (one["task"], one["target"], one["draft"], _KINDS[one["kind"]])
        row = rows.setdefault(key, {})
        row["paper"] = row.get("paper") or _paper_alpha(results, one)
        value = one.get("alpha_over_all") or one["alpha"]
        name = one["sampling"] if one["sampling"] not in row else f"{one['sampling']}, {one['run']}"
        row[name] = value
        if name not in samplings:
            samplings.append(name)
        if one.get("proposed") and one["proposed"]["mean"] < 1:
            row["proposed", name] = one["proposed"]
    columns = (
        text("task"), text("target"), text("draft"), text("α is"), *(estimated(f"α, {s}") for s in samplings),
        *(estimated(f"proposed, {s}") for s in samplings), number("paper, T = 0"), number("paper, T = 1"),
    )  # fmt: skip
    cells = [
        (*key, *map(row.get, samplings), *(row.get(("proposed", s)) for s in samplings), *(row["paper"] or (None, None)))
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
        rows.append((*_pair(one), one["alpha"], *map(lenient.get, values), *map(known.get, (1.0, *values))))
    columns = (
        *_PAIR, estimated("α, l = 1"), *(estimated(f"α, l = {value:g}") for value in values),
        *(number(f"paper, l = {value:g}") for value in (1.0, *values)),
    )  # fmt: skip
    note = "As the paper's Table 5: Σ min(p / l, q) where the draft proposes something. Below l = 1 decoding is not exact."
    return table("table_5", "α with lenience l", columns, rows, note)


def two_definitions(results: Mapping[str, Any]) -> Table | None:
    columns = (
        *_PAIR, text("γ"), estimated("α on policy"), estimated("α over target text"), estimated("difference"),
    )  # fmt: skip
    rows = [
        (*_pair(one), one["gamma"], one["on_policy"], one["over_target_text"], one["difference"])
        for one in results["two_definitions"]
    ]
    note = (
        "On policy: the mean over the positions that the run examined. A call examines positions up to its first rejection, "
        "and never its bonus position, which follows successes; over the whole text (Corollary 3.6) every position counts "
        "once. The two differ where acceptance goes together along a text."
    )
    return table("two_definitions", "The two definitions of α", columns, rows, note)


def by_dimension(results: Mapping[str, Any], dimension: str, title: str) -> Table | None:
    rows = [
        (*_pair(one), bucket["label"], bucket["alpha"], bucket["positions"])
        for one in results["series"]
        for bucket in one["by"].get(dimension, ())
    ]
    columns = (*_PAIR, text(title), estimated("α"), whole("positions"))
    return table(f"alpha_by_{dimension}", f"α by {title}", columns, rows)


# Speed.


def _bench(one: Mapping[str, Any]) -> tuple:
    return one["run"], one["draft"], one["sampling"], one["num_slots"], one["verification"], str(one["gamma"])


_BENCH = (text("run"), text("draft"), text("sampling"), whole("slots"), text("verification"), text("γ"))


def table_2(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*_bench(one), one["measured"],
         *(one["predicted"].get(name, {}).get("speedup") for name in ("theorem_3_8", "with_pass_cost", "joint_with_pass_cost")),
         one["alpha"], one["c"], one["pass_cost"])
        for one in results["speedups"]
    ]  # fmt: skip
    columns = (
        *_BENCH, estimated("measured speedup", 2), estimated("Theorem 3.8", 2), estimated("with measured costs", 2),
        estimated("with joint acceptance too", 2), estimated("α on policy"), estimated("c"),
        estimated("cost of γ + 1 positions", 2),
    )  # fmt: skip
    note = (
        "As the paper's Tables 2 and 4. Theorem 3.8 takes a target pass over γ + 1 positions to cost what one over one "
        "costs; the next column puts in what it costs here (last column), and the one after also replaces the i.i.d. formula "
        "by the acceptance measured along the texts. All are ratios to plain decoding with as many slots on the same machine. "
        "Predictions are for token verification: block accepts more of the same drafts, coupled fewer."
    )
    return table("table_2", "Speedup, predicted and measured", columns, rows, note)


def speedup_misses(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*_bench(one), _METHODS[name], value["speedup"], one["measured"], value["miss"])
        for one in results["speedups"]
        for name, value in one["predicted"].items()
    ]
    columns = (*_BENCH, text("prediction"), estimated("predicted", 2), estimated("measured", 2), percent("miss"))
    return table("speedup_misses", "How far each prediction of the speedup misses", columns, rows,
                 "Miss: predicted / measured - 1.")  # fmt: skip


def in_job(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (one["run"], one["draft"] or "none", one.get("sampling"), str(one["gamma"]), one["plain_shards"],
         one["speculative_shards"], one["speedup"])
        for one in results["in_job"]
    ]  # fmt: skip
    columns = (text("run"), text("draft"), text("sampling"), text("γ"), whole("plain shards"), whole("other shards"),
               estimated("speedup", 2))  # fmt: skip
    note = (
        "Seconds per token of the shards that shards.baseline_fraction had decoded plainly, over those of the others, on the "
        "same workers of the same job; the interval is over shards."
    )
    return table("in_job", "Speedup within the job", columns, rows, note)


def tokens_per_call(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*_pair(one), one["gamma"], one["verification"], _METHODS[name], value["tokens"], one["observed"], value["miss"])
        for one in results["tokens_per_call"]
        for name, value in one["predicted"].items()
    ]
    columns = (*_PAIR, whole("γ"), text("verification"), text("prediction"), estimated("predicted"), estimated("observed"),
               percent("miss"))  # fmt: skip
    note = (
        "Miss: predicted / observed - 1, with the interval of a paired comparison. Predictions are for token verification: "
        "block accepts more of the same drafts, coupled fewer."
    )
    return table("tokens_per_call", "Tokens per target call, predicted and observed", columns, rows, note)


def best_gammas(results: Mapping[str, Any]) -> Table | None:
    rows = []
    for one in results["best_gammas"]:
        for cost in one["costs"] or [{}]:
            rows.append(
                (*_pair(one), one["alpha"], one["oracle"], cost.get("benchmark"), cost.get("num_slots"), cost.get("c"),
                 cost.get("gamma"), cost.get("speedup"), cost.get("gamma_measured"), cost.get("speedup_measured"))
            )  # fmt: skip
    columns = (
        *_PAIR, estimated("α"), estimated("oracle, tokens per call", 2), text("costs of"), whole("slots"), estimated("c"),
        estimated("γ*, Theorem 3.8", 0), number("its speedup"), estimated("γ*, measured costs", 0),
        number("predicted speedup there"),
    )  # fmt: skip
    note = (
        "γ* maximises Theorem 3.8 for the measured α and c; with measured costs of γ + 1 positions, up to the most that the "
        "benchmark has measured, and between two numbers of positions on the line between their costs. Brackets: γ* over the "
        "intervals of α and c. Oracle: 1 / (1 - α), drafting exactly what will be accepted (§3.5)."
    )
    return table("best_gammas", "The best γ, and the oracle's bound", columns, rows, note)


def operations(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*_pair(one), one["gamma"], one["alpha"], one["c_hat"], one.get("predicted"), one.get("observed"))
        for one in results["operations"]
    ]
    columns = (*_PAIR, whole("γ"), estimated("α on policy"), number("ĉ", 4), estimated("Theorem 3.11"),
               estimated("from the calls made"))  # fmt: skip
    note = "ĉ: operations of the decoders' matrix products for a token, draft over target, counted from the architectures."
    return table("operations", "Factor of arithmetic operations per token", columns, rows, note)


# Is β i.i.d.?


def between_texts(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*_pair(one), b["mean_square_ratio"], b["intraclass_correlation"], b["deviation_between_texts"])
        for one in results["series"]
        if (b := one.get("between_texts"))
    ]
    columns = (*_PAIR, estimated("F, texts", 2), estimated("intraclass correlation"), estimated("deviation of a text's α"))
    note = "F: mean square between texts over that within; 1 if all tokens were alike, whatever their text."
    return table("between_texts", "Dispersion of β between texts", columns, rows, note)


def autocorrelation(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*_pair(one), lag["lag"], lag["correlation"], lag["pairs"])
        for one in results["series"]
        for lag in one.get("autocorrelation", ())
    ]
    columns = (*_PAIR, whole("lag"), estimated("correlation"), whole("pairs"))
    return table("autocorrelation", "Autocorrelation of β within a text", columns, rows,
                 "0 at every lag if β were i.i.d.; what remains at long lags is the difference between texts.")  # fmt: skip


def accepted_lengths(results: Mapping[str, Any]) -> Table | None:
    rows = []
    for one in results["series"]:
        for lengths in one.get("accepted_lengths", ()):
            law, test = lengths.get("geometric"), lengths.get("test")
            for k, observed in enumerate(lengths["observed"]):
                first = k == 0
                rows.append(
                    (*_pair(one), lengths["gamma"], k, observed, law and law[k], lengths.get("distance") if first else None,
                     _p_value(test) if first and law else None)
                )  # fmt: skip
    columns = (*_PAIR, whole("γ"), whole("accepted"), estimated("observed share"), estimated("capped geometric law"),
               estimated("total variation"), text("p-value"))  # fmt: skip
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
        (*_pair(one), int(gamma), methods["iid"], methods["windows"], methods["walk"])
        for one in results["series"]
        for gamma, methods in one.get("predicted", {}).items()
    ]
    columns = (*_PAIR, whole("γ"), estimated("Eq. 1", 2), estimated("runs of β, any start", 2),
               estimated("joint acceptance along the texts", 2))  # fmt: skip
    note = "Expected tokens per target call, from scores alone. The last follows decoding along each text, its end included."
    return table("predicted_tokens", "Tokens per target call that scores predict", columns, rows, note)


# How many tokens are enough?


def sample_size(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*_pair(one), s["positions"], s["texts"], one["alpha"], s["half_width"], s["half_width_if_independent"],
         s["design_effect"], round(s["effective_tokens"]), s["half_width_at_10000_tokens"])
        for one in results["series"]
        if (s := one.get("sample_size"))
    ]  # fmt: skip
    columns = (
        *_PAIR, whole("positions"), whole("texts"), estimated("α"), number("half-width", 4), number("if independent", 4),
        number("design effect"), whole("worth as many independent tokens"), number("half-width at 10,000 tokens", 4),
    )  # fmt: skip
    note = (
        "Design effect: variance of α over what it would be if all tokens were independent. The last column answers the "
        "paper's 10K tokens, with texts as long as these."
    )
    return table("sample_size", "Design effect of texts, and the interval's width", columns, rows, note)


def needed(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*_pair(one), n["half_width"], n["tokens"], n["texts"])
        for one in results["series"]
        if one.get("sample_size")
        for n in one["sample_size"]["needed"]
    ]
    columns = (*_PAIR, number("wanted half-width", 3), whole("tokens needed"), whole("texts needed"))
    return table("tokens_needed", "Tokens and texts needed for a wanted interval", columns, rows)


def subsets(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*_pair(one), n["texts"], n["positions"], n["alpha"], n["half_width"])
        for one in results["series"]
        if one.get("sample_size")
        for n in one["sample_size"]["measured"]
    ]
    columns = (*_PAIR, whole("texts"), whole("positions"), estimated("α"), number("half-width", 4))
    return table("subsets", "The interval over random subsets of the texts", columns, rows)


def seeds(results: Mapping[str, Any]) -> Table | None:
    rows = []
    for one in results["seeds"]:
        for what, name in (("alpha", "α"), ("tokens_per_call", "tokens per call"), ("speedup", "speedup")):
            if not (spread := one.get(what)):
                continue
            rows.append(
                (", ".join(one["runs"]), one["draft"], one["sampling"], name, len(spread["values"]), spread["mean"],
                 spread["deviation_between_seeds"], spread["mean_standard_error"],
                 _p_value(spread) if "p_value" in spread else None)
            )  # fmt: skip
    columns = (
        text("runs"), text("draft"), text("sampling"), text("of"), whole("seeds"), number("mean", 4),
        number("deviation between seeds", 4), number("standard error of one run", 4), text("p-value, all the same"),
    )  # fmt: skip
    note = (
        "Seeds that decode the same inputs lie closer together than the intervals say: an interval also covers the choice "
        "of inputs, which seeds share."
    )
    return table("seeds", "Spread between seeds against the intervals", columns, rows, note)


# The paper's own tables.


def table_1() -> Table:
    rows = [
        (a, g, theory.operations_factor(a, g, 0), o, theory.walltime_improvement(a, g, 0), s) for a, g, o, s in paper.TABLE_1
    ]
    columns = (number("α", 1), whole("γ"), number("operations"), number("paper"), number("speed"), number("paper's speed"))
    note = "Computed by decoding.theory, beside what is printed."
    return Table("table_1", "Table 1 of the paper, c = ĉ = 0", columns, tuple(rows), note)


def table_4() -> Table:
    rows = [
        (task, draft, f"{t:g}", g, a, c, theory.walltime_improvement(a, g, c), predicted, measured)
        for task, draft, t, g, a, c, predicted, measured in paper.TABLE_4
    ]
    columns = (
        text("task"), text("draft"), text("temperature"), whole("γ"), number("paper's α"), number("paper's c"),
        number("Theorem 3.8"), number("paper's prediction", 1), number("paper's measurement", 1),
    )  # fmt: skip
    note = (
        "T5 v1.1-XXL, batch 1, one TPU-v4: not our setting, so nothing measured by us stands here. Theorem 3.8 is computed "
        "from α and c as printed, rounded to two digits, and differs from the paper's predictions by that rounding."
    )
    return Table("table_4", "Tables 2 and 4 of the paper", columns, tuple(rows), note)
