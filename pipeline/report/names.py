"""What runs are called: by what differs between them, not by the folders they happen to lie in."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.source import BENCHMARK, GENERATIONS, SCORES, Source

_COLUMNS = ("temperature", "top_k", "top_p", "lenience", "gamma", "num_slots", "verification", "seed")
"""Settings of decoding that tables have columns for, or that `sampling_label` tells."""
_SHOWN = {
    "kind": "{}",
    "task": "{}",
    "target": "target {}",
    "sampling": "{}",
    "gamma": "γ = {}",
    "num_slots": "slots {}",
    "verification": "{}",
    "seed": "seed {}",
    "apart": "{}",
}
"""How a label tells what differs, by field of an entry of analysis.json."""


def sampling_label(decoding: Mapping[str, Any]) -> str:
    """ "T = 1, top-k 40"."""
    parts = [f"T = {decoding['temperature']:g}"] if "temperature" in decoding else []
    if decoding.get("top_k"):
        parts.append(f"top-k {decoding['top_k']}")
    if decoding.get("top_p", 1.0) < 1:
        parts.append(f"top-p {decoding['top_p']:g}")
    if decoding.get("lenience", 1.0) < 1:
        parts.append(f"lenience {decoding['lenience']:g}")
    return ", ".join(parts)


def slots_label(slots: int) -> str:
    """ "1 slot", "8 slots"."""
    return f"{slots} slot{'s' if slots != 1 else ''}"


def identify(source: Source, draft: str) -> dict:
    """What tells a series from others, for people."""
    decoded = source.decoding if source.kind == GENERATIONS else {}
    return {
        "run": source.label,
        "called": source.called,
        "apart": source.apart,
        "kind": source.kind,
        "task": source.task,
        "target": source.target.name,
        "draft": source.drafts[draft].name,
        "temperature": source.decoding.get("temperature"),
        "sampling": sampling_label(source.decoding),
        "gamma": decoded.get("gamma"),
        "num_slots": decoded.get("num_slots"),
        "verification": decoded.get("verification"),
        "seed": source.seed,
    }


def names_of(sources: Sequence[Source]) -> tuple[list[str], list[str]]:
    """Names of all sources, which are distinct; and of each what alone tells it from another, "" where nothing has to.

    A name has how texts were drawn and γ, and what else differs between runs of its kind: "T = 1, γ = 3, seed 2",
    "scores, T = 0", "benchmark". The second is what no column of a table has: other settings of decoding, or, where all
    settings are equal, the fingerprint.
    """
    rest = _told_by_the_rest(sources)
    names = []
    for source, alone in zip(sources, rest):
        differing = {name for other in sources if other.kind == source.kind for name in _differing(source, other)}
        parts = [] if source.kind == GENERATIONS else [source.kind]
        if source.kind != BENCHMARK:
            parts.append(sampling_label(source.decoding))
        told = _facts(source)
        parts += [told[name] for name in told if (name in differing or name == "gamma") and told[name]]
        names.append(", ".join([*(part for part in parts if part), *([alone] if alone else [])]))
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name}, run {source.fingerprint[:8]}" for name, source in zip(names, sources)
    ], rest


def _facts(source: Source) -> dict[str, str]:
    """What a name may tell of a source besides sampling, by setting."""
    decoding, drafts = source.decoding, ", ".join(sorted(draft.name for draft in source.drafts.values()))
    facts = {
        "task": source.task,
        "target": f"target {source.target.name}",
        "drafts": drafts if source.kind != SCORES or len(source.drafts) == 1 else "",
    }
    if source.kind == GENERATIONS:
        facts |= {
            "gamma": f"γ = {decoding['gamma']}" if source.drafts else "plain",
            "verification": str(decoding.get("verification", "")),
            "num_slots": slots_label(decoding["num_slots"]) if decoding.get("num_slots") else "",
        }
    if source.kind != BENCHMARK and source.seed is not None:
        facts["seed"] = f"seed {source.seed}"
    return facts


def _differing(one: Source, other: Source) -> set[str]:
    mine, others = _facts(one), _facts(other)
    return {name for name in mine if mine[name] != others.get(name)}


def _told_by_the_rest(sources: Sequence[Source]) -> list[str]:
    """What tells sources apart that are equal in everything that tables have columns for."""
    groups: dict[tuple, list[Source]] = {}
    key = lambda source: (source.kind, sampling_label(source.decoding), *sorted(_facts(source).items()))
    for source in sources:
        groups.setdefault(key(source), []).append(source)
    found = []
    for source in sources:
        members = groups[key(source)]
        others = [name for name in source.decoding if name not in _COLUMNS]
        differing = [name for name in others if len({str(one.decoding.get(name)) for one in members}) > 1]
        told = lambda one, names=differing: ", ".join(f"{name.replace('_', ' ')} {one.decoding.get(name)}" for name in names)
        if len(members) == 1:
            found.append("")
        elif len({told(one) for one in members}) == len(members):
            found.append(told(source))
        else:
            found.append(", ".join(filter(None, [told(source), f"run {source.fingerprint[:8]}"])))
    return found


def labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels of entries of analysis.json in a figure: the draft, and what differs between them."""
    differing = [name for name in _SHOWN if len({str(row.get(name)) for row in rows}) > 1]
    told = [[_SHOWN[name].format(row[name]) for name in differing if row.get(name) not in (None, "")] for row in rows]
    found = [", ".join([row["draft"], *parts]) for row, parts in zip(rows, told)]
    return [f"{label}, {row['called']}" if found.count(label) > 1 else label for label, row in zip(found, rows)]
