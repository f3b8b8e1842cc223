"""The end of a run: statistics of all committed parts, then summary.json, then, where nothing is missing, `_SUCCESS`.

The summary is computed from the parts' footers rather than from what this launch decoded, so a resumed run reports the
whole.
"""

import datetime
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam

from transforms import attempts, costs, storage
from transforms.attempts import missing_shards
from transforms.parts import PartError, check_part
from transforms.records import COMMIT, ShardFailure
from transforms.statistics.combine import CombineStatistics
from transforms.statistics.generations import Statistics
from transforms.storage import OutputFolder

ERRORS_REPLACED, DAMAGED_PART = "ErrorsReplaced", "DamagedPart"


def to_do_again(summary: Mapping[str, Any]) -> list[int]:
    """Numbers of the shards that a summary misses for what only the end has found; doing them again at once mends it."""
    return [
        shard["shard"]
        for shard in summary["shards"]["missing"]
        if shard["error"] and shard["error"]["error_type"] in (ERRORS_REPLACED, DAMAGED_PART)
    ]


class CountSettled(beam.PTransform):
    """Numbers of committed shards, and any more collections of `ShardFailure`s, to one element, which is there when no
    shard is on its way any more: how many there were."""

    def expand(self, inputs):
        committed, *failures = inputs
        failed = failures | "Failed" >> beam.Flatten() | "FailedShards" >> beam.Map(lambda failure: failure.shard)
        return (committed, failed) | "Together" >> beam.Flatten() | "Count" >> beam.combiners.Count.Globally()


class FinishRun(beam.PTransform):
    """From the pipeline's root: reads all footers, writes the summary, and marks a complete run.

    Attributes:
      output, num_shards, fingerprint, exact: of the run.
      after: a PCollection of one element; the footers are read when it is there. None starts at once.
      parts, statistics: folder of the parts, and the class of their statistics.
      facts: more entries of the summary, by name.
    """

    def __init__(
        self,
        output: str,
        *,
        num_shards: int,
        fingerprint: str,
        exact: bool,
        after=None,
        parts: str = storage.GENERATIONS,
        statistics: type = Statistics,
        facts: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self._output, self._num_shards, self._after = output, num_shards, after
        self._fingerprint, self._exact = fingerprint, exact
        self._parts, self._statistics, self._facts = parts, statistics, facts

    def expand(self, root):
        waits = [beam.pvalue.AsSingleton(self._after)] if self._after is not None else []
        return (
            root
            | "Start" >> beam.Create([self._output])
            | "ListParts" >> beam.FlatMap(_committed_parts, self._num_shards, self._parts, *waits)
            | "SpreadParts" >> beam.Reshuffle()
            | "ReadFooters"
            >> beam.FlatMap(
                _part_statistics,
                output=self._output,
                num_shards=self._num_shards,
                parts=self._parts,
                fingerprint=self._fingerprint,
                statistics=self._statistics,
            )
            | "Combine" >> beam.CombineGlobally(CombineStatistics(self._statistics))
            | "WriteSummary"
            >> beam.Map(
                write_summary,
                output=self._output,
                num_shards=self._num_shards,
                fingerprint=self._fingerprint,
                exact=self._exact,
                parts=self._parts,
                facts=self._facts,
            )
        )


def _committed_parts(output: str, num_shards: int, parts: str, *_) -> list[tuple[int, bool]]:
    """Numbers of the committed shards, each with whether errors/ has a file of it."""
    listing = OutputFolder(output).list()
    return [
        (shard, storage.errors_name(shard, num_shards) in listing)
        for shard in range(num_shards)
        if storage.part_name(shard, num_shards, parts) in listing
    ]


def _part_statistics(
    part: tuple[int, bool], output: str, num_shards: int, parts: str, fingerprint: str, statistics: type
) -> Iterator[Statistics]:
    (shard, has_errors), folder = part, OutputFolder(output)
    name = storage.part_name(shard, num_shards, parts)
    try:
        footer = check_part(folder.path(name), fingerprint, statistics)
        if _errors_agree(folder, storage.errors_name(shard, num_shards), has_errors, footer.errors_sha256):
            yield footer.statistics
            return
        folder.delete([name])
        message = "a second attempt replaced the shard's file in errors/ after it was committed; the next launch does it again"
        failure = ShardFailure(shard, COMMIT, ERRORS_REPLACED, message)
    except PartError as error:
        kept = f"{storage.DAMAGED}/{storage.part_stem(shard, num_shards)}.{uuid.uuid4().hex[:8]}.parquet"
        folder.move(name, kept)
        failure = ShardFailure(shard, COMMIT, DAMAGED_PART, f"{error}. It is {kept} now; the next launch does the shard again")
    except FileNotFoundError:  # another launch that is ending has seen the same
        return
    attempts.set_aside(folder, shard, num_shards, failure)


def _errors_agree(folder: OutputFolder, name: str, is_there: bool, expected: str | None) -> bool:
    """Whether errors/ holds what the part was committed with.

    Two attempts at one shard (a runner's speculative copy, a worker that was taken for dead) both write the shard's
    errors and one of them wins the part. Both find the same errors, unless one of them failed in passing.
    """
    if expected is None:
        return True
    if not expected:
        if is_there:
            folder.delete([name])
        return True
    return is_there and hashlib.sha256(folder.read(name)).hexdigest() == expected


def write_summary(
    statistics: Statistics,
    *,
    output: str,
    num_shards: int,
    fingerprint: str,
    exact: bool,
    parts: str = storage.GENERATIONS,
    facts: Mapping[str, Any] | None = None,
) -> dict:
    """Writes summary.json and, where all shards are committed, empties attempts/ and writes `_SUCCESS`.

    Returns:
      The summary.
    """
    folder = OutputFolder(output)
    missing = [] if statistics.parts == num_shards else missing_shards(folder, num_shards, parts)
    summary = {
        "complete": not missing,
        "fingerprint": fingerprint,
        "exact": exact,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "shards": {"total": num_shards, "committed": statistics.parts, "missing": missing},
        **(facts or {}),
        **statistics.summary(),
    }
    folder.put(storage.SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    if not missing:
        costs.move_to_manifest(folder)
        folder.delete(name for name in folder.list() if name.startswith(storage.ATTEMPTS + "/"))
        folder.put(storage.SUCCESS, b"")
    return summary
