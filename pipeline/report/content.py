"""Which tables a report has, made of analysis.json alone."""

from collections.abc import Mapping
from typing import Any

from pipeline.report import acceptance, speed
from pipeline.report.tables import Table, table, text, whole


def all_tables(results: Mapping[str, Any]) -> dict[str, list[Table]]:
    """The report's tables by section; sections without any are left out."""
    sections: dict[str, list[Table | None]] = {
        "inputs": [folders(results)],
        "acceptance": [
            acceptance.table_3(results),
            acceptance.best_drafts(results),
            acceptance.two_definitions(results),
            acceptance.table_5(results),
        ],
        "where": [
            acceptance.by_dimension(results, "position", "position in the text"),
            acceptance.by_dimension(results, "place", "place in the block"),
            acceptance.by_dimension(results, "frequency", "rank of the token by frequency"),
            acceptance.by_dimension(results, "source", "what became of the guess"),
            acceptance.by_copied(results, "origin", "where guesses came from"),
            acceptance.by_copied(results, "match", "tokens that matched there"),
        ],
        "speed": [
            speed.table_2(results),
            speed.speedup_misses(results),
            speed.in_job(results),
            speed.tokens_per_call(results),
            speed.best_gammas(results),
            speed.operations(results),
        ],
        "iid": [
            acceptance.between_texts(results),
            acceptance.autocorrelation(results),
            acceptance.accepted_lengths(results),
            acceptance.predicted_by_gamma(results),
        ],
        "enough": [
            acceptance.sample_size(results),
            acceptance.needed(results),
            acceptance.subsets(results),
            acceptance.seeds(results),
        ],
        "paper": [speed.table_1(), speed.table_4()],
    }
    kept = {name: [one for one in tables if one] for name, tables in sections.items()}
    return {name: tables for name, tables in kept.items() if tables}


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
                source["called"],
                source["label"],
                source["kind"],
                source["task"],
                source["target"]["name"],
                drafts,
                decoding.get("temperature"),
                decoding.get("gamma") if source["kind"] == "generations" else None,
                decoding.get("num_slots") if source["kind"] == "generations" else None,
                total.get("texts"),
                total.get("tokens"),
                source["fingerprint"][:12],
                source["missing"] or None,
            )
        )
    columns = (
        text("run"),
        text("folder"),
        text("kind"),
        text("task"),
        text("target"),
        text("drafts"),
        text("temperature"),
        whole("γ"),
        whole("slots"),
        whole("texts"),
        whole("tokens"),
        text("fingerprint"),
        whole("parts missing"),
    )
    return table("inputs", "What was analysed", columns, rows)
