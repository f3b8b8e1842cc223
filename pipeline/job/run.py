"""What a run is, and what of it is finished: its plan, its fingerprint, and the state of its output folder.

The *fingerprint* is the SHA-256 of everything that determines the result: content and planning of the input, weights,
tokeniser, decoding settings, code. Where it runs and where files lie is not in it. The code counts as the hash of the
sources of `decoding/` and `transforms/`, not as the package's version, because between two versions nobody bumps a
number for a change that alters tokens. That also refuses to resume after a change that alters none, for example a fix
for what made a shard fail; `--allow_code_change` resumes all the same, and the manifest records both codes.

The first launch freezes plan and fingerprint in manifest.json. Later ones continue that plan, or are refused with what
differs.
"""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from decoding.version import __version__
from pipeline.job import machine
from pipeline.job.preflight import CheckedModels
from pipeline.job.seen import code_digest
from pipeline.job.terminal import warn
from pipeline.runners.supervise import Launch
from pipeline.settings import ConfigError, JobConfig
from transforms import attempts, costs, storage
from transforms.folder import FolderError, Manifest, OpenedFolder, fingerprint_of, open_folder, read_manifest
from transforms.plan import InputError, Plan, plan_input
from transforms.statistics.generations import Statistics
from transforms.storage import OutputFolder

_VERSIONED = ("apache-beam", "flax", "jax", "jaxlib", "numpy", "pyarrow", "sacrebleu", "sentencepiece", "tokenizers")
_SHOWN_DIFFERENCES = 12
_MOST_RANGES = 4096  # 20 KB in a graph


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, ready to be launched.

    Attributes:
      config: its settings.
      folder: its output.
      plan: its work shards.
      models: what preflight found out.
      fingerprint: as frozen in the manifest.
      pending: numbers of the shards to do, increasing: those not committed, less those that this launch has given up.
      committed: how many shards were, at launch.
      begun: how many more had been begun.
      finished: whether `_SUCCESS` is there.
      launch: which launch this is, for attempts/.
      parts, statistics: folder of its parts, and the class of their statistics.
    """

    config: JobConfig
    folder: OutputFolder
    plan: Plan
    models: CheckedModels
    fingerprint: str
    pending: tuple[int, ...]
    committed: int
    begun: int
    finished: bool
    launch: str
    parts: str = storage.GENERATIONS
    statistics: type = Statistics


def prepare(
    config: JobConfig,
    output: str,
    models: CheckedModels,
    *,
    allow_code_change: bool = False,
    device: Mapping[str, Any] | None = None,
    launch: Launch | None = None,
) -> Run:
    """Plans a run or finds the one that `output` holds, and freezes it in the manifest.

    The folder is listed once. Nothing else is read of finished shards.

    Args:
      config: the run's settings.
      output: its folder.
      models: what preflight found out.
      allow_code_change: whether a run begun with other code may be continued.
      device: what the manifest says about the accelerator, None where workers elsewhere decode; parts name theirs.
      launch: which launch this is; a shard that it has given up before is left out.

    Raises:
      ConfigError: the input cannot be planned.
      FolderError: the folder holds something else.
    """
    opened = open_folder(output)
    plan = plan_of(config, models, known_plan(opened), output)
    identity = run_identity(config, plan, models)
    fresh = new_manifest(config, plan, identity, device)
    launch = launch or Launch()
    return continue_run(opened, fresh, config, plan, models, allow_code_change=allow_code_change, launch=launch)


def continue_run(
    opened: OpenedFolder,
    fresh: Manifest,
    config: JobConfig,
    plan: Plan,
    models: CheckedModels,
    *,
    allow_code_change: bool,
    launch: Launch,
    parts: str = storage.GENERATIONS,
    statistics: type = Statistics,
) -> Run:
    """Freezes a run's manifest, or finds it frozen, and what of the run is left to do. A dry run freezes nothing.

    Args:
      opened: the folder.
      fresh: the manifest that the run has where it begins now, by `new_manifest`.
      config, plan, models, parts, statistics: of the run.
      allow_code_change, launch: as in `prepare`.

    Raises:
      FolderError: the folder holds another run, or cannot be written.
    """
    folder, output, fresh = opened.folder, opened.folder.root, dataclasses.replace(fresh, seen=launch.seen)
    if opened.manifest is None:
        try:
            # Where it is there already, another launch was faster.
            created = launch.dry_run or folder.create(storage.MANIFEST, fresh.encode())
        except OSError as error:
            raise FolderError(f"the output folder {output!r} cannot be written: {error}") from error
        opened = dataclasses.replace(opened, manifest=fresh if created else read_manifest(folder))
    manifest, listing = opened.manifest, opened.listing
    _refuse_other_run(folder, manifest, fresh.identity, allow_code_change)
    pending = opened.missing
    try:
        if costs.NAME in listing:
            costs.read(folder)  # what workers would stumble over
        if not launch.dry_run:
            _update_manifest(folder, manifest, fresh.identity, plan, launch.seen)
            empty = (storage.part_name(shard, plan.num_shards, parts) for shard in pending)
            folder.delete(name for name in empty if name in listing)
        if pending:
            folder.check_writable()
    except OSError as error:
        raise FolderError(f"the output folder {output!r} cannot be written: {error}") from error
    if storage.SUCCESS in listing and opened.unfinished:
        warn(f"the output folder {output!r} {opened.unfinished}; this launch completes it")
    begun = {shard for shard in pending if storage.attempt_name(shard, plan.num_shards) in listing}
    if launch.deaths:
        given_up = {shard for shard in begun if attempts.given_up(folder, shard, plan.num_shards, launch.id)}
        pending = tuple(shard for shard in pending if shard not in given_up)
    return Run(
        config=config,
        folder=folder,
        plan=plan,
        models=models,
        fingerprint=manifest.fingerprint,
        pending=pending,
        committed=len(opened.committed),
        begun=len(begun),
        finished=not opened.unfinished,
        launch=launch.id,
        parts=parts,
        statistics=statistics,
    )


def known_plan(opened: OpenedFolder) -> Plan | None:
    """The plan of an input that a folder's manifest holds, None where it holds none.

    Raises:
      FolderError: what it holds is no plan.
    """
    if opened.manifest is None or "files" not in opened.manifest.plan:
        return None
    try:
        plan = Plan.from_json(opened.manifest.plan)
        if plan.num_shards != opened.manifest.num_shards:
            raise ValueError(f"it has {plan.num_shards} shards, not {opened.manifest.num_shards}")
        return plan
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise FolderError(f"the plan in {storage.MANIFEST} of {opened.folder.root!r} cannot be used: {error}") from error


def plan_of(config: JobConfig, models: CheckedModels, known: Plan | None = None, output: str = "") -> Plan:
    """The plan of a job's input. Files that `known` holds unchanged are not read again, those below `output` never.

    Raises:
      ConfigError: the input cannot be planned.
    """
    try:
        return plan_input(config.input.spec(models.tokenizer), config.shards.cut, known, output)
    except InputError as error:
        raise ConfigError(f"{config.input}: {error}") from error


def run_identity(config: JobConfig, plan: Plan, models: CheckedModels) -> dict:
    """What the fingerprint is a digest of, as JSON values. Paths are not in it, contents are."""
    identity = {
        "input": {
            "files": [{"name": f.name, "digest": f.digest, "num_records": f.num_records} for f in plan.files],
            "input_field": config.input.fields.inputs,
            "target_field": config.input.target_field,
            "id_field": config.input.id_field,
            "prefix": config.input.prefix,
            "chat_template": dataclasses.asdict(models.chat_template) if models.chat_template else "",
            "empty": config.input.empty,
            "format": config.input.resolved_format,
            "delimiter": config.input.resolved_delimiter,
            # Not there where it is what it always was, so that folders begun before it was a setting can be continued.
            **({"quoting": "none"} if config.input.resolved_quoting == "none" else {}),
            **({"hint_fields": config.input.hint_fields} if config.input.hint_fields else {}),
            **({"hint_folder": models.hints.fingerprint} if config.input.hint_folder else {}),
        },
        "shards": {
            "examples_per_shard": plan.examples_per_shard,
            "bytes_per_shard": plan.bytes_per_shard,
            "num_shards": plan.num_shards,
            "baseline_fraction": config.shards.baseline_fraction,
        },
        "model": {**models.identity, "tokenizer": models.tokenizer_sha256, **models.to_load.identity},
        "decoding": {
            name: value for name, value in vars(config.decoding).items() if name != "hint_tokens" or config.input.num_hints
        },
        "code": code_digest(),
    }
    return json.loads(json.dumps(identity))


def new_manifest(
    config: JobConfig, plan: Plan, identity: Mapping[str, Any], device: Mapping[str, Any] | None, **of_scores: Any
) -> Manifest:
    """The manifest of a run that begins now; `of_scores` are the entries of `pipeline.score`."""
    return Manifest(
        specbeam=__version__,
        fingerprint=fingerprint_of(identity),
        started=_now(),
        config=config.to_json(),
        identity=identity,
        num_shards=plan.num_shards,
        num_records=plan.num_records,
        plan=plan.to_json(),
        versions=machine.versions(_VERSIONED),
        device=device,
        **{"exact": config.decoding.exact} | of_scores,
    )


def _refuse_other_run(folder: OutputFolder, manifest: Manifest, identity: Mapping, allow_code_change: bool) -> None:
    differences = _differences({**manifest.identity, "code": manifest.code}, identity)
    if not differences or (differences.keys() == {"code"} and allow_code_change):
        return
    shown = "; ".join(
        f"{name}: {was!r} there, {now!r} now" for name, (was, now) in list(differences.items())[:_SHOWN_DIFFERENCES]
    )
    more = f"; and {len(differences) - _SHOWN_DIFFERENCES} more" if len(differences) > _SHOWN_DIFFERENCES else ""
    advice = "Give another output folder, or the settings that the folder was begun with"
    if differences.keys() == {"code"}:
        advice += "; where you know that the new code yields the same results, add --allow_code_change"
    raise FolderError(
        f"the output folder {folder.root!r} belongs to another run: its fingerprint is {manifest.fingerprint}, this "
        f"run's is {fingerprint_of(identity)}. What differs: {shown}{more}. {advice}"
    )


def _update_manifest(folder: OutputFolder, manifest: Manifest, identity: Mapping, plan: Plan, seen: str) -> None:
    """Writes down an allowed change of code, and where input files of the same content lie now."""
    updated = dataclasses.replace(manifest, seen=seen, plan=json.loads(json.dumps(plan.to_json())))
    if identity["code"] != manifest.code:
        change = {"at": _now(), "code": identity["code"]}
        updated = dataclasses.replace(updated, code_changes=[*manifest.code_changes, change])
    if updated.encode() != manifest.encode():
        folder.put(storage.MANIFEST, updated.encode())


def _differences(was: Any, now: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Leaves that differ, by dotted path."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = {}
        for name in sorted(was.keys() | now.keys()):
            inner = f"{path}.{name}" if path else name
            found |= _differences(was.get(name), now.get(name), inner)
        return found
    if _is_records(was) and _is_records(now):
        by_name = [{record["name"]: record for record in records} for records in (was, now)]
        return _differences(*by_name, path)
    return {} if was == now else {path: (was, now)}


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def ranges(shards: Sequence[int], most: int = _MOST_RANGES) -> list[tuple[int, int]]:
    """Increasing numbers as at most so many (first, end) ranges, so that a job's graph does not grow with its shards.

    Where more of them would be needed, the smallest gaps are left in: readers find that those shards are committed.
    """
    if not shards:
        return []
    numbers = np.asarray(shards)
    gaps = np.diff(numbers)
    ends = np.flatnonzero(gaps > 1)
    if len(ends) >= most:
        ends = np.sort(ends[np.argsort(-gaps[ends], kind="stable")[: most - 1]])
    firsts = numbers[[0, *(ends + 1)]]
    return [(int(first), int(last) + 1) for first, last in zip(firsts, numbers[[*ends, -1]])]
