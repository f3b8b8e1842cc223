"""Says what an output folder holds, complete or not: shards, counts, errors, timings, config.

    python -m pipeline.inspect OUTPUT [--json] [--quick]

OUTPUT is local or on gs://. Nothing is written. Totals are computed from the parts that are there, so they are right
while a job runs and after it died. `--quick` opens no part: one listing, the manifest, and the summary where there is one.

Exit status: 0 when the folder is complete, 1 when it is not, 2 when it is not the folder of a run or cannot be read.
"""

import collections
import contextlib
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.job.command import command
from pipeline.job.terminal import facts, make_console, print_missing, summary_rows
from pipeline.settings.flags import Parser
from transforms import attempts, storage
from transforms.folder import open_run
from transforms.parts import Footer, PartError, check_part
from transforms.statistics.generations import Statistics
from transforms.statistics.scores import ScoreStatistics
from transforms.storage import OutputFolder

_READERS = 16
_SHOWN = 10
_OURS = (f"{storage.ATTEMPTS}/", f"{storage.DAMAGED}/")
_STATISTICS = {storage.GENERATIONS: Statistics, storage.SCORES: ScoreStatistics}
_BUSY_SECONDS = {storage.GENERATIONS: "generate_seconds", storage.SCORES: "seconds"}
_SHOWN_SETTINGS = ("input", "model", "decoding", "shards", "score")


def inspect_folder(output: str, *, quick: bool = False) -> dict[str, Any]:
    """What a folder holds, as JSON values; docs/operations.md describes them.

    Args:
      output: the folder.
      quick: open no part and no errors file.

    Raises:
      FolderError: it is not the folder of a run, or cannot be read.
    """
    opened = open_run(output, "the folder")
    folder, listing, manifest = opened.folder, opened.listing, opened.manifest
    num_shards, kind, committed = manifest.num_shards, manifest.parts, opened.committed
    summary, unfinished = {}, opened.unfinished
    if storage.SUMMARY in listing:
        with contextlib.suppress(OSError, ValueError):  # then `unfinished` says so
            summary = opened.summary()
    missing = attempts.missing_shards(folder, num_shards, kind, listing)
    part_names = [storage.part_name(shard, num_shards, kind) for shard in committed]
    errors_names = [name for shard in committed if (name := storage.errors_name(shard, num_shards)) in listing]
    parts, errors, problems = None, None, []
    marked = [f"the folder {unfinished}"] if storage.SUCCESS in listing and unfinished else []
    if quick:
        totals = summary if summary.get("shards", {}).get("committed") == len(committed) else None
    else:
        parts = _read_parts(folder, part_names, kind, manifest.fingerprint)
        errors, unreadable = _count_errors(folder, errors_names)
        totals, problems = parts.totals, [*parts.problems, *unreadable]
        if not problems and errors["total"] != totals["errors"]["total"]:
            problems.append(f"errors/ holds {errors['total']} records, the parts count {totals['errors']['total']}")
    known = {storage.MANIFEST, storage.SUMMARY, storage.SUCCESS}
    for shard in range(num_shards):
        known |= {storage.part_name(shard, num_shards, kind), storage.errors_name(shard, num_shards)}
    return {
        "output": folder.root,
        "complete": not unfinished and not problems,
        "fingerprint": manifest.fingerprint,
        "exact": manifest.exact,
        "started": manifest.started,
        "finished": summary.get("finished"),
        "shards": {
            "total": num_shards,
            "committed": len(committed),
            "missing": missing,
            "failed": sum(shard["error"] is not None for shard in missing),
            "begun": sum(shard["error"] is None and shard["attempts"] > 0 for shard in missing),
            "retried": parts.retried if parts else None,
        },
        "records": manifest.num_records,
        "totals": {name: value for name, value in totals.items() if name not in _STATE} if totals else None,
        "errors": errors,
        "shard_seconds": parts.seconds if parts else None,
        "devices": parts.devices if parts else None,
        "problems": [*marked, *problems],
        "other_files": sorted(name for name in listing if name not in known and not name.startswith(_OURS)),
        "bytes": sum(listing.values()),
        "config": manifest.config,
        "versions": {"specbeam": manifest.specbeam, **manifest.versions},
        "code_changes": list(manifest.code_changes),
    }


_STATE = ("complete", "fingerprint", "exact", "finished", "shards")  # of summary.json; the description has its own


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What the footers of the committed parts say together; `seconds` are those that a shard kept the models busy."""

    totals: dict
    retried: int
    seconds: dict | None
    devices: dict[str, int]
    problems: tuple[str, ...]


def _read_parts(folder: OutputFolder, names: Sequence[str], kind: str, fingerprint: str) -> _Parts:
    kept = _STATISTICS[kind]

    def read(name: str) -> Footer | str:
        try:
            return check_part(folder.path(name), fingerprint, kept)
        except PartError as error:
            return f"{error}; without it, the command that began the folder does its shard again"
        except OSError as error:
            return f"{name} cannot be read: {error}"

    merged, retried, times, devices, problems = kept(), 0, [], collections.Counter(), []
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(read, names):  # one by one: a big run's footers together would fill gigabytes
            if isinstance(found, str):
                problems.append(found)
                continue
            merged = merged.merge(found.statistics)
            retried += found.attempt > 1
            times.append(getattr(found.statistics, _BUSY_SECONDS[kind]))
            devices[found.device] += 1
    return _Parts(
        totals=merged.summary(),
        retried=retried,
        seconds=dict(min=min(times), median=statistics.median(times), max=max(times), sum=sum(times)) if times else None,
        devices=dict(devices),
        problems=tuple(problems),
    )


def _count_errors(folder: OutputFolder, names: Sequence[str]) -> tuple[dict, list[str]]:
    """Records in errors/ by stage and type, {"total": 3, "read": {"MalformedJson": 2, "EmptyLine": 1}}, and problems."""

    def count(name: str) -> collections.Counter | str:
        try:
            records = [json.loads(line) for line in folder.read(name).splitlines()]
            return collections.Counter((record["stage"], record["error_type"]) for record in records)
        except (OSError, ValueError, LookupError, TypeError) as error:
            return f"{name} cannot be read: {type(error).__name__}: {error}"

    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(count, names))
    counts = sum((one for one in found if isinstance(one, collections.Counter)), collections.Counter())
    by_stage: dict[str, dict[str, int]] = {}
    for (stage, error_type), number in sorted(counts.items()):
        by_stage.setdefault(stage, {})[error_type] = number
    return {"total": sum(counts.values()), **by_stage}, [problem for problem in found if isinstance(problem, str)]


def print_description(console: Console, found: Mapping[str, Any]) -> None:
    """Prints what `inspect_folder` found, for people."""
    shards, totals = found["shards"], found["totals"]
    state = Text("complete", style="green") if found["complete"] else Text("not complete", style="bold red")
    rows = [("state", state), ("shards", _shards_text(shards))]
    if totals and "tokens_per_target_call" in totals:
        rows += summary_rows({**totals, "exact": found["exact"]})
    elif totals:
        rows += [(name, json.dumps(value)) for name, value in totals.items() if not isinstance(value, dict)]
        for draft, values in totals.get("drafts", {}).items():
            if alpha := values["alpha"]:
                rows.append((f"α {draft}", f"{alpha['mean']:.3f}  [{alpha['low']:.3f}, {alpha['high']:.3f}]"))
    for stage, types in (found["errors"] or {}).items():
        if stage != "total":
            rows.append((f"errors: {stage}", ", ".join(f"{kind} {n:,}" for kind, n in types.items())))
    if seconds := found["shard_seconds"]:
        text = f"{seconds['median']:.1f} in the middle, {seconds['min']:.1f} to {seconds['max']:.1f}"
        rows.append(("seconds per shard", f"{text}, {seconds['sum']:,.0f} in all"))
    if devices := found["devices"]:
        rows.append(("decoded on", ", ".join(f"{kind} ({n:,} shards)" for kind, n in devices.items())))
    rows.append(("started, finished", f"{found['started']}, {found['finished'] or 'not finished'}"))
    for section in _SHOWN_SETTINGS:
        if settings := (found["config"] or {}).get(section):
            shown = ", ".join(f"{name}={value}" for name, value in settings.items() if value not in ("", None, []))
            rows.append((section, shown))
    rows.append(("fingerprint", found["fingerprint"]))
    rows.append(("versions", ", ".join(f"{name} {v}" for name, v in found["versions"].items() if v)))
    console.print(facts(rows))
    for problem in found["problems"][:_SHOWN]:
        console.print(f"problem: {problem}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if other := found["other_files"]:
        console.print(f"{len(other)} files that no job writes, for example {other[0]!r}", markup=False, highlight=False)
    print_missing(console, shards["missing"], shards["total"])
    if not found["complete"] and not shards["missing"] and not found["problems"]:
        console.print("No shard is missing, only the end: the same command writes the summary.")


def _shards_text(shards: Mapping[str, Any]) -> str:
    text = f"{shards['committed']:,} of {shards['total']:,} are done"
    if missing := len(shards["missing"]):
        untouched = missing - shards["failed"] - shards["begun"]
        text += f"; missing: {shards['failed']:,} failed, {shards['begun']:,} begun, {untouched:,} not begun"
    return text + (f"; {shards['retried']:,} took more than one attempt" if shards["retried"] else "")


@command
def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    parser = Parser(prog="python -m pipeline.inspect", description="What an output folder holds.", allow_abbrev=False)
    parser.add_argument("output", help="the folder, local or on gs://")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="open no part, only manifest and summary")
    options, console = parser.parse_args(args), make_console()
    found = inspect_folder(options.output, quick=options.quick)
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print_description(console, found)
    return 0 if found["complete"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
