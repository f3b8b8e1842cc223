"""attempts/: which shards were begun and not committed, how often, and with what error they were set aside.

A note is written when a shard is begun and deleted when it is committed. What is left after a run, or after a crash
that left no other trace, are the shards that did not make it.
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

from transforms import storage
from transforms.records import DECODE, ShardFailure, WorkShard
from transforms.storage import OutputFolder

MAX_DEATHS = 3


@dataclasses.dataclass(frozen=True)
class _Note:
    """What attempts/part-*.json holds.

    Attributes:
      shard: its number.
      attempt: how often it was begun, by all launches.
      launch: the last launch that began it; in_launch: how often this one did.
      process: id of the process that began it last.
      error: stage, error_type and message if it was set aside.
    """

    shard: int
    attempt: int
    launch: str
    in_launch: int
    process: int = 0
    error: dict | None = None


class ProcessDied(RuntimeError):
    """Why a shard is not begun again in this launch: every process that had it died."""

    stage = DECODE


_begun: dict[tuple[str, int], tuple[OutputFolder, int, str]] = {}
"""(folder, num_shards, launch) of the shards that this process has begun and not ended, by folder's name and shard."""


def begin(folder: OutputFolder, work: WorkShard, launch: str = "") -> int:
    """Notes that `work` is begun by `launch`. Returns the number of this attempt, from 1.

    Raises:
      ProcessDied: the launch has begun it MAX_DEATHS times, and its process died each time.
    """
    note = read(folder, work.shard, work.num_shards)
    before = note.get("in_launch", 0) if note.get("launch") == launch else 0
    error_type = (note.get("error") or {}).get("error_type")
    if launch and before >= MAX_DEATHS and error_type in (None, ProcessDied.__name__):
        raise ProcessDied(_died(before))
    attempt = note.get("attempt", 0) + 1
    _write(folder, work.shard, work.num_shards, _Note(work.shard, attempt, launch, before + 1, os.getpid()))
    _begun[folder.root, work.shard] = (folder, work.num_shards, launch)
    return attempt


def forgive_own() -> None:
    """Takes back what would count against the shards of this process, which is being stopped, and not their doing."""
    for (_, shard), (folder, num_shards, launch) in list(_begun.items()):
        with contextlib.suppress(OSError):
            _forgive(folder, shard, num_shards, launch, {os.getpid()})
    _begun.clear()


def forgive(folder: OutputFolder, num_shards: int, launch: str, stopped: Collection[int]) -> None:
    """Takes back what would count against the shards of processes of `launch` that are stopped because another one died."""
    names = {storage.attempt_name(shard, num_shards): shard for shard in range(num_shards)}
    for shard in (names[name] for name in folder.list() if name in names):
        _forgive(folder, shard, num_shards, launch, stopped)


def _forgive(folder: OutputFolder, shard: int, num_shards: int, launch: str, stopped: Collection[int]) -> None:
    note = read(folder, shard, num_shards)
    if note.get("launch") == launch and note.get("process") in stopped and note.get("error") is None:
        _write(folder, shard, num_shards, _Note(**{**note, "in_launch": note["in_launch"] - 1}))


def given_up(folder: OutputFolder, shard: int, num_shards: int, launch: str) -> bool:
    """Whether `launch` has done with a shard that it has begun and that is not committed.

    That is so when the shard was set aside, or when it was begun MAX_DEATHS times and its process died each time; then
    it is set aside with that as its error.
    """
    note = read(folder, shard, num_shards)
    if note.get("launch") != launch:
        return False
    if note.get("error") is None and note.get("in_launch", 0) >= MAX_DEATHS:
        set_aside(folder, shard, num_shards, ShardFailure(shard, DECODE, ProcessDied.__name__, _died(note["in_launch"])))
        return True
    return note.get("error") is not None


def _died(times: int) -> str:
    return f"its process died {times} times while it was being decoded"


def set_aside(folder: OutputFolder, shard: int, num_shards: int, failure: ShardFailure) -> None:
    """Notes what keeps a shard from being committed. Never raises."""
    message = storage.without_query(failure.message)
    error = {"stage": failure.stage, "error_type": failure.error_type, "message": message}
    logging.getLogger(__name__).warning("shard is set aside: %s", json.dumps({"shard": shard, **error}, ensure_ascii=False))
    _begun.pop((folder.root, shard), None)
    try:
        note = read(folder, shard, num_shards)
        note = _Note(
            shard, note.get("attempt", 1), note.get("launch", ""), note.get("in_launch", 1), note.get("process", 0), error
        )
        _write(folder, shard, num_shards, note)
    except OSError:  # a full disk, say: the shard stays uncommitted, which is what counts
        pass


def end(folder: OutputFolder, work: WorkShard) -> None:
    """Deletes the note of a committed shard."""
    _begun.pop((folder.root, work.shard), None)
    folder.delete([storage.attempt_name(work.shard, work.num_shards)])


def read(folder: OutputFolder, shard: int, num_shards: int) -> dict:
    """The note of a shard, {} where there is none, or where a crash or somebody else has left what is none."""
    name = storage.attempt_name(shard, num_shards)
    try:
        note = json.loads(folder.read(name)) if folder.exists(name) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return note if _is_note(note) else {}


def _is_note(value: Any) -> bool:
    known = {field.name for field in dataclasses.fields(_Note)}
    if not isinstance(value, dict) or not {"shard", "attempt"} <= value.keys() <= known:
        return False
    numbers = (value.get(name, 0) for name in ("shard", "attempt", "in_launch", "process"))
    error = value.get("error")
    is_error = error is None or (
        isinstance(error, dict) and all(isinstance(error.get(key), str) for key in ("stage", "error_type", "message"))
    )
    return all(type(number) is int for number in numbers) and isinstance(value.get("launch", ""), str) and is_error


def _write(folder: OutputFolder, shard: int, num_shards: int, note: _Note) -> None:
    data = json.dumps(dataclasses.asdict(note)).encode()
    folder.put(storage.attempt_name(shard, num_shards), data, durable=False)  # `read` takes a torn one for none


def missing_shards(
    folder: OutputFolder,
    num_shards: int,
    parts: str = storage.GENERATIONS,
    listing: Mapping[str, int] | None = None,
) -> list[dict]:
    """The shards without a part: number, attempts so far, and the error that set them aside, None where none is known.

    `listing` is the folder's, made where None. A part of no bytes is none.
    """
    listing = folder.list() if listing is None else listing
    found = []
    for shard in range(num_shards):
        if listing.get(storage.part_name(shard, num_shards, parts), 0) > 0:
            continue
        begun = storage.attempt_name(shard, num_shards) in listing
        note = read(folder, shard, num_shards) if begun else {}
        found.append({"shard": shard, "attempts": note.get("attempt", 0), "error": note.get("error")})
    return found
