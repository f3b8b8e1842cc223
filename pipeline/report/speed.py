"""Tables of speed, predicted and measured, and the paper's own."""

from collections.abc import Mapping
from typing import Any

from decoding import theory
from pipeline.report import paper
from pipeline.report.tables import PAIR, Table, about, estimated, number, pair, percent, table, text, whole

_METHODS = {
    "iid on policy": "Eq. 1, α of this run",
    "iid": "Eq. 1, α over target text",
    "windows": "runs of β, any start",
    "walk": "joint acceptance along the texts",
    "theorem_3_8": "Theorem 3.8",
    "with_pass_cost": "with the measured cost of γ + 1 positions",
    "joint_with_pass_cost": "and with the measured joint acceptance",
}


_BENCH = (*map(about, ("target", "draft", "sampling")), whole("slots"), about("verification"), whole("γ"), about("run"))


def _bench(one: Mapping[str, Any]) -> tuple:
    return tuple(one[name] for name in ("target", "draft", "sampling", "num_slots", "verification", "gamma", "apart"))


def table_2(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (
            *_bench(one),
            one["measured"],
            *(
                one["predicted"].get(name, {}).get("speedup")
                for name in ("theorem_3_8", "with_pass_cost", "joint_with_pass_cost")
            ),
            one["alpha"],
            one["c"],
            one["pass_cost"],
        )
        for one in results["speedups"]
    ]
    columns = (
        *_BENCH,
        estimated("measured speedup", 2),
        estimated("Theorem 3.8", 2),
        estimated("with measured costs", 2),
        estimated("with joint acceptance too", 2),
        estimated("α on policy"),
        estimated("c"),
        estimated("cost of γ + 1 positions", 2),
    )
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
    return table(
        "speedup_misses",
        "How far each prediction of the speedup misses",
        columns,
        rows,
        "Miss: predicted / measured - 1.",
    )


def in_job(results: Mapping[str, Any]) -> Table | None:
    rows = [(*pair(one), one["plain_shards"], one["speculative_shards"], one["speedup"]) for one in results["in_job"]]
    columns = (*PAIR, whole("plain shards"), whole("other shards"), estimated("speedup", 2))
    note = (
        "Seconds per token of the shards that shards.baseline_fraction had decoded plainly, over those of the others, on the "
        "same workers of the same job; the interval is over shards."
    )
    return table("in_job", "Speedup within the job", columns, rows, note)


def tokens_per_call(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*pair(one), _METHODS[name], value["tokens"], one["observed"], value["miss"])
        for one in results["tokens_per_call"]
        for name, value in one["predicted"].items()
    ]
    columns = (
        *PAIR,
        text("prediction"),
        estimated("predicted"),
        estimated("observed"),
        percent("miss"),
    )
    note = (
        "Miss: predicted / observed - 1, with the interval of a paired comparison. At temperature 0, over the very texts of a "
        "run, joint acceptance replays its calls: a check rather than a prediction. Predictions are for token verification: "
        "block accepts more of the same drafts, coupled fewer."
    )
    return table("tokens_per_call", "Tokens per target call, predicted and observed", columns, rows, note)


def best_gammas(results: Mapping[str, Any]) -> Table | None:
    rows = []
    for one in results["best_gammas"]:
        for cost in one["costs"] or [{}]:
            rows.append(
                (
                    *pair(one),
                    one["alpha"],
                    one["oracle"],
                    cost.get("benchmark"),
                    cost.get("num_slots"),
                    cost.get("c"),
                    cost.get("gamma"),
                    cost.get("speedup"),
                    cost.get("gamma_measured"),
                    cost.get("speedup_measured"),
                    cost.get("otherwise"),
                )
            )
    columns = (
        *PAIR,
        estimated("α"),
        estimated("oracle, tokens per call", 2),
        about("costs of"),
        whole("slots of the costs"),
        estimated("c"),
        estimated("γ*, Theorem 3.8", 0),
        number("its speedup"),
        estimated("γ*, measured costs", 0),
        number("predicted speedup there"),
        text("costs measured otherwise"),
    )
    note = (
        "γ* maximises Theorem 3.8 for the measured α and c; with measured costs of γ + 1 positions, up to the most that the "
        "benchmark has measured, and between two numbers of positions on the line between their costs. Brackets: γ* over the "
        "intervals of α and c. The last column says where costs were measured at other slots or γ than the run's. "
        "Oracle: 1 / (1 - α), drafting exactly what will be accepted (§3.5)."
    )
    return table("best_gammas", "The best γ, and the oracle's bound", columns, rows, note)


def operations(results: Mapping[str, Any]) -> Table | None:
    rows = [
        (*pair(one), one["alpha"], one["c_hat"], one.get("predicted"), one.get("observed"))
        for one in results["operations"]
    ]
    columns = (
        *PAIR,
        estimated("α on policy"),
        number("ĉ", 4),
        estimated("Theorem 3.11"),
        estimated("from the calls made"),
    )
    note = (
        "ĉ: operations of the decoders' matrix products for a token, draft over target, counted from the architectures."
    )
    return table("operations", "Factor of arithmetic operations per token", columns, rows, note)


# The paper's own tables.


def table_1() -> Table:
    rows = [
        (a, g, theory.operations_factor(a, g, 0), o, theory.walltime_improvement(a, g, 0), s)
        for a, g, o, s in paper.TABLE_1
    ]
    columns = (
        number("α", 1),
        whole("γ"),
        number("operations"),
        number("paper"),
        number("speed"),
        number("paper's speed"),
    )
    note = "Computed by decoding.theory, beside what is printed."
    return Table("table_1", "Table 1 of the paper, c = ĉ = 0", columns, tuple(rows), note)


def table_4() -> Table:
    rows = [
        (task, draft, f"{t:g}", g, a, c, theory.walltime_improvement(a, g, c), predicted, measured)
        for task, draft, t, g, a, c, predicted, measured in paper.TABLE_4
    ]
    columns = (
        text("task"),
        text("draft"),
        text("temperature"),
        whole("γ"),
        number("paper's α"),
        number("paper's c"),
        number("Theorem 3.8"),
        number("paper's prediction", 1),
        number("paper's measurement", 1),
    )
    note = (
        "T5 v1.1-XXL, batch 1, one TPU-v4: not our setting, so nothing measured by us stands here. Theorem 3.8 is computed "
        "from α and c as printed, rounded to two digits, and differs from the paper's predictions by that rounding."
    )
    return Table("table_4", "Tables 2 and 4 of the paper", columns, tuple(rows), note)
