"""attempts/: which shards were begun and not committed, how often, and with what error they were set aside.

A note is written when a shard is begun and deleted when it is committed. What is left after a run, or after a crash
that left no other trace, are the shards that did not make it.
"""

import json
import logging

from transforms import storage
from transforms.records import ShardFailure, WorkShard
from transforms.storage import OutputFolder


def begin(folder: OutputFolder, work: WorkShard) -> int:
    """Notes that `work` is begun. Returns the number of this attempt, from 1."""
    attempt = read(folder, work.shard, work.num_shards).get("attempt", 0) + 1
    _write(folder, work, {"shard": work.shard, "attempt": attempt, "error": None})
    return attempt


def set_aside(folder: OutputFolder, work: WorkShard, failure: ShardFailure) -> None:
    """Notes what keeps `work` from being committed. Never raises."""
    error = {"stage": failure.stage, "error_type": failure.error_type, "message": failure.message}
    logging.getLogger(__name__).warning("shard %d is set aside: %s", work.shard, error)
    try:
        attempt = read(folder, work.shard, work.num_shards).get("attempt", 1)
        _write(folder, work, {"shard": work.shard, "attempt": attempt, "error": error})
    except OSError:  # a full disk, say: the shard stays uncommitted, which is what counts
        pass


def end(folder: OutputFolder, work: WorkShard) -> None:
    """Deletes the note of a committed shard."""
    folder.delete([storage.attempt_name(work.shard, work.num_shards)])


def read(folder: OutputFolder, shard: int, num_shards: int) -> dict:
    """The note of a shard, {} where there is none or a crash left it unreadable."""
    name = storage.attempt_name(shard, num_shards)
    try:
        return json.loads(folder.read(name)) if folder.exists(name) else {}
    except (OSError, ValueError):
        return {}


def _write(folder: OutputFolder, work: WorkShard, note: dict) -> None:
    folder.put(storage.attempt_name(work.shard, work.num_shards), json.dumps(note).encode())
