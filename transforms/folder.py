"""What an output folder is: its manifest, which parts are there, and whether it is finished. One answer for every job.

A folder is *finished* when every shard has its part, summary.json is that of its run, and `_SUCCESS` is there. Whoever
reads finished folders takes them from `open_finished`; whoever continues or describes one, from `open_folder`.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transforms import storage
from transforms.storage import OutputFolder

GENERATE, SCORE = "generate", "score"
PARTS = {GENERATE: storage.GENERATIONS, SCORE: storage.SCORES}
"""Where jobs of work shards keep their parts."""

_DIGEST = "sha256"


class FolderError(ValueError):
    """A folder that is not what a job needs; the message says which, what it is, and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """manifest.json: what a run is. Written by its first launch, before anything is decoded.

    Attributes:
      fingerprint: SHA-256 of `identity`, by `fingerprint_of`.
      identity: everything that determines the result.
      config: all settings, by section.
      num_shards: of the plan.
      plan: the work shards, as `to_json` of the class that the job plans with writes them.
      num_records: of the input, None where nobody has counted.
      exact: whether the output has the target's distribution.
      job: GENERATE or SCORE.
      specbeam, versions: of the software; started: when.
      device: the accelerator of the first launch, None where workers elsewhere decode.
      costs: measured costs of γ, frozen at the end of the run; see `transforms.costs`.
      code_changes: when the code changed and `--allow_code_change` said that this changes nothing, and the new code.
      seen: digest of what the latest launch saw of settings and files before it read any, "" for none.
      drafts, lenience, text: of scores alone: what was scored, and whose texts.
    """

    specbeam: str
    fingerprint: str
    exact: bool
    started: str
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    num_shards: int
    num_records: int | None = None
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    costs: dict | list | None = None
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    device: Mapping[str, Any] | None = None
    code_changes: list = dataclasses.field(default_factory=list)
    seen: str = ""
    job: str = GENERATE
    drafts: list = dataclasses.field(default_factory=list)
    lenience: list = dataclasses.field(default_factory=list)
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> str:
        """The folder of the run's parts."""
        return PARTS[self.job]

    @property
    def code(self) -> str:
        """Of the latest launch."""
        return self.code_changes[-1]["code"] if self.code_changes else self.identity["code"]

    def part_names(self) -> list[str]:
        return [storage.part_name(shard, self.num_shards, self.parts) for shard in range(self.num_shards)]

    def to_json(self) -> dict[str, Any]:
        """Its entries, as JSON values; those of scores only where it is theirs."""
        of_scores = ("job", "drafts", "lenience", "text")
        return {name: value for name, value in vars(self).items() if self.job == SCORE or name not in of_scores}

    def encode(self) -> bytes:
        """JSON to be read by people, but for the plan, whose lists have a number per shard and take one line.

        The last entry is a digest of the others, by which an edited manifest is known.
        """
        entries = self.to_json()
        lines = (
            f"{json.dumps(name)}: {json.dumps(value, indent=None if name == 'plan' else 1, ensure_ascii=False)}"
            for name, value in (entries | {_DIGEST: _digest(entries)}).items()
        )
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode(errors="backslashreplace")

    @classmethod
    def decode(cls, data: bytes) -> "Manifest":
        """The inverse of `encode`.

        Raises:
          ValueError: what is wrong: no JSON, entries missing or of another type, or edited since it was written.
        """
        entries = json.loads(data)
        if not isinstance(entries, dict):
            raise ValueError(f"it holds {_kind(entries)}, not an object")
        digest = entries.pop(_DIGEST, None)  # of a manifest of an earlier version there is none
        if lacking := [name for name in _REQUIRED if name not in entries]:
            raise ValueError(f"it lacks {', '.join(lacking)}, which every job writes")
        for name, kinds in _KINDS.items():
            value = entries.get(name)
            if name in entries and (not isinstance(value, kinds) or (bool not in kinds and isinstance(value, bool))):
                raise ValueError(f"its {name} is {_kind(value)}; allowed: {' or '.join(_NAMES[kind] for kind in kinds)}")
        for section in _SECTIONS:
            if not isinstance(entries["config"].get(section), dict):
                raise ValueError(f"its config has no section {section!r}")
        if entries.get("job", GENERATE) not in PARTS:
            raise ValueError(f"its job is {entries['job']!r}; allowed: {', '.join(PARTS)}")
        changed = digest is not None and digest != _digest(entries)
        if changed or entries["fingerprint"] != fingerprint_of(entries["identity"]):
            raise ValueError("it has been edited since it was written: its digest is not that of its content")
        shards = (entries["identity"].get("text", entries["identity"]).get("shards") or {}).get("num_shards")
        if entries["num_shards"] < 1 or shards not in (None, entries["num_shards"]):
            raise ValueError(f"its num_shards is {entries['num_shards']}, and that of its identity {shards}")
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{"specbeam": "", "exact": True, "started": ""}
                   | {name: value for name, value in entries.items() if name in known})  # fmt: skip


_REQUIRED = ("fingerprint", "identity", "num_shards", "config")
_SECTIONS = ("input", "model", "decoding")
_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("specbeam", "fingerprint", "started", "seen", "job"), (str,)),
    **dict.fromkeys(("config", "identity", "plan", "versions", "text"), (dict,)),
    **dict.fromkeys(("code_changes", "drafts", "lenience"), (list,)),
    "exact": (bool,),
    "num_shards": (int,),
    "num_records": (int, _NONE),
    "device": (dict, _NONE),
    "costs": (dict, list, _NONE),
}


_NAMES = {dict: "an object", list: "an array", str: "a string", int: "a whole number", bool: "true or false", _NONE: "null"}


def _kind(value: Any) -> str:
    return _NAMES[type(value)] if isinstance(value, dict | list | None) else repr(value)


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """SHA-256 of what determines a run's result."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _digest(entries: Mapping[str, Any]) -> str:
    return fingerprint_of(json.loads(json.dumps(entries)))  # of what a reader will see


@dataclasses.dataclass(frozen=True)
class OpenedFolder:
    """An output folder as one listing found it, and its manifest, None where nothing has been written yet."""

    folder: OutputFolder
    listing: Mapping[str, int]
    manifest: Manifest | None

    @functools.cached_property
    def committed(self) -> tuple[int, ...]:
        """Numbers of the shards whose part is there; one of no bytes is none."""
        names = enumerate(self.manifest.part_names())
        return tuple(shard for shard, name in names if self.listing.get(name, 0) > 0)

    @functools.cached_property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the other shards."""
        return tuple(sorted({*range(self.manifest.num_shards)} - {*self.committed}))

    @functools.cached_property
    def unfinished(self) -> str:
        """What keeps the folder from being finished, for people; "" where it is finished."""
        total, marked = self.manifest.num_shards, storage.SUCCESS in self.listing
        if self.missing:
            example = storage.part_name(self.missing[0], total, self.manifest.parts)
            if marked:
                return f"is marked as finished, but {len(self.missing)} of its {total} parts are gone, for example {example!r}"
            return f"is unfinished: {len(self.committed)} of {total} shards are committed"
        if not marked:
            return f"is unfinished: all {total} shards are committed, and its end, {storage.SUCCESS}, is missing"
        if problem := self._problem_of_summary():
            return f"is marked as finished, but {problem}"
        return ""

    def _problem_of_summary(self) -> str:
        if storage.SUMMARY not in self.listing:
            return f"has no {storage.SUMMARY}"
        try:
            found = self.summary()
        except (OSError, ValueError) as error:
            return f"its {storage.SUMMARY} cannot be read: {error}"
        if found.get("fingerprint") != self.manifest.fingerprint:
            return f"its {storage.SUMMARY} is of another run, with fingerprint {found.get('fingerprint')}"
        return ""

    def summary(self) -> dict[str, Any]:
        """summary.json.

        Raises:
          OSError, ValueError: it is not there, or no JSON object.
        """
        found = json.loads(self.folder.read(storage.SUMMARY))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {_kind(found)}, not an object")
        if not isinstance(found.get("shards"), dict):
            raise ValueError("it says nothing of shards")
        return found


def read_manifest(folder: OutputFolder) -> Manifest:
    """The manifest of a run's folder.

    Raises:
      FolderError: it is not there, cannot be read, or is not what a launch has written.
    """
    try:
        return Manifest.decode(folder.read(storage.MANIFEST))
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"{storage.MANIFEST} of {folder.root!r} cannot be used: {error}") from error


def open_folder(root: str, what: str = "the output folder") -> OpenedFolder:
    """Looks into a folder that a job continues or begins, by one listing. An empty or absent one has no manifest.

    Args:
      root: the folder.
      what: how messages call it.

    Raises:
      FolderError: it cannot be listed, or holds something that is no run of `pipeline.generate` or `pipeline.score`.
    """
    opened = _look(root, what)
    foreign = sorted(name for name in opened.listing if not name.startswith(storage.ATTEMPTS + "/"))
    if opened.manifest is None and foreign:
        raise FolderError(
            f"{what} {root!r} holds {len(foreign)} files and no {storage.MANIFEST}, for example {foreign[0]!r}; give an "
            "empty folder, or one of an earlier run of the same job"
        )
    return opened


def open_run(root: str, what: str) -> OpenedFolder:
    """Opens the folder of a run, finished or not, to read it.

    Raises:
      FolderError: it is no folder of `pipeline.generate` or `pipeline.score`.
    """
    opened = _look(root, what)
    if opened.manifest is None:
        number = len(opened.listing)
        held = f"holds {number} files and no {storage.MANIFEST}" if number else "is empty or does not exist"
        raise FolderError(f"{what} {root!r} {held}; allowed: an output folder of pipeline.generate or pipeline.score")
    return opened


def open_finished(root: str, *jobs: str, what: str) -> OpenedFolder:
    """Opens a finished folder of one of `jobs`.

    Args:
      root: the folder.
      *jobs: GENERATE, SCORE.
      what: the setting that names it, for messages.

    Raises:
      FolderError: it is no such folder, or is not finished.
    """
    opened = open_run(root, what)
    allowed = f"allowed: a finished folder of {' or '.join(f'pipeline.{job}' for job in jobs)}"
    if opened.manifest.job not in jobs:
        raise FolderError(f"{what} {root!r} is a folder of pipeline.{opened.manifest.job}; {allowed}")
    if opened.unfinished:
        raise FolderError(f"{what} {root!r} {opened.unfinished}; {allowed}: the command that began it completes it")
    return opened


def _look(root: str, what: str) -> OpenedFolder:
    folder = OutputFolder(root)
    try:
        listing = folder.list()
    except OSError as error:
        raise FolderError(f"{what} {root!r} cannot be read: {error}") from error
    return OpenedFolder(folder, listing, read_manifest(folder) if storage.MANIFEST in listing else None)
