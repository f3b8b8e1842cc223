"""What the analysis reads: finished folders of other jobs, recognised, described alike, and refused where they do not fit."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.names import names_of
from pipeline.report.source import BENCHMARK, GENERATIONS, SCORES, Model, Source
from transforms import storage
from transforms.folder import FolderError, Manifest, open_run
from transforms.storage import OutputFolder

_RESULTS = "benchmark.json"


class SourceError(FolderError):
    """Inputs that cannot be analysed, or not together."""


def open_sources(folders: Sequence[str], *, allow_unfinished: bool = False) -> tuple[list[Source], list[str]]:
    """Opens and checks all inputs.

    Args:
      folders: of finished runs of `pipeline.generate`, `pipeline.score` and `pipeline.benchmark`, in any mix.
      allow_unfinished: whether to take what there is of an unfinished one, and label it.

    Returns:
      The sources, and notes on what about them a reader has to know.

    Raises:
      FolderError: a folder is none of these, is unfinished, or is there twice, or none of them has a draft.
    """
    sources = [_open(folder, allow_unfinished) for folder in folders]
    sources = _with_distinct_labels(_with_shared_names(sources))
    _refuse_doubles(sources)
    sources = [
        dataclasses.replace(source, called=called, apart=apart)
        for source, called, apart in zip(sources, *names_of(sources), strict=True)
    ]
    if not any(source.drafts for source in sources):
        shown = ", ".join(repr(source.folder) for source in sources)
        raise SourceError(
            f"none of the inputs has a draft: {shown} hold plain decoding alone. There is no acceptance to analyse; give "
            "a folder that was generated with model.draft, or scores"
        )
    return sources, _notes(sources)


def _open(folder: str, allow_unfinished: bool) -> Source:
    output = OutputFolder(folder)
    if _is_benchmark(output):
        return _open_benchmark(output, allow_unfinished)
    opened = open_run(folder, "the input")
    if opened.unfinished and not (allow_unfinished and opened.committed):
        raise SourceError(
            f"the input {folder!r} {opened.unfinished}; run its command again, or add --allow_unfinished to analyse what "
            "there is"
        )
    manifest, names = opened.manifest, opened.manifest.part_names()
    config, identity, kind = manifest.config, manifest.identity, manifest.parts
    return Source(
        folder=folder,
        label=_base(folder),
        kind=kind,
        fingerprint=manifest.fingerprint,
        target=_model(config["model"]["target"], identity["model"]["target"]),
        drafts=_drafts_of_scores(manifest) if kind == SCORES else _draft_of(config["model"], identity["model"]),
        # Scores are without lenience, whatever the config that they were made with says.
        decoding={**config["decoding"], "lenience": 1.0} if kind == SCORES else config["decoding"],
        task=_task(config["input"]),
        tokenizer=config["model"].get("tokenizer") or config["model"]["target"],
        identity=identity,
        parts=tuple(output.path(names[shard]) for shard in opened.committed),
        missing=len(opened.missing),
        text=manifest.text,
    )


def _is_benchmark(output: OutputFolder) -> bool:
    try:
        return not output.exists(storage.MANIFEST) and output.exists(_RESULTS)
    except OSError as error:
        raise SourceError(f"the input {output.root!r} cannot be read: {error}") from error


def _open_benchmark(output: OutputFolder, allow_unfinished: bool) -> Source:
    results = _json(output, _RESULTS, "config", "identity")
    if not results.get("complete") and not (allow_unfinished and results.get("rows")):
        raise SourceError(
            f"the input {output.root!r} is unfinished: its {_RESULTS} is not complete. Measure again, or add "
            "--allow_unfinished to analyse what there is"
        )
    config, identity = results["config"], results["identity"]
    return Source(
        folder=output.root,
        label=_base(output.root),
        kind=BENCHMARK,
        fingerprint=hashlib.sha256(output.read(_RESULTS)).hexdigest(),
        target=_model(config["model"]["target"], identity["target"]),
        drafts=_draft_of(config["model"], identity),
        decoding=config["decoding"],
        task=_task(config["input"]),
        tokenizer=config["model"].get("tokenizer") or config["model"]["target"],
        identity=identity,
        missing=0 if results.get("complete") else 1,
        results=results,
    )


def _json(output: OutputFolder, name: str, *keys: str) -> dict:
    """A file that is ours, and so has these keys."""
    try:
        found = json.loads(output.read(name))
    except (OSError, ValueError) as error:
        raise SourceError(f"the input {output.root!r}: {name} cannot be read: {error}") from error
    lacking = [key for key in keys if not isinstance(found, dict) or key not in found]
    if lacking:
        raise SourceError(f"the input {output.root!r}: {name} lacks {', '.join(lacking)}; it is not of SpecBeam")
    return found


def _model(path: str, identity: Any) -> Model:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Model(_base(path).replace("_", " ") if "/" not in path else _base(path), path, digest)


def _draft_of(model: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Model]:
    return {"": _model(model["draft"], identity["draft"])} if model.get("draft") else {}


def _drafts_of_scores(manifest: Manifest) -> dict[str, Model]:
    paths = manifest.config["score"]["drafts"] or {"draft": manifest.config["model"]["draft"]}
    known = manifest.identity["drafts"]
    found = {}
    for name in manifest.drafts:
        found[name] = dataclasses.replace(_model(paths[name], known[name]), name=name.replace("_", " "))
    return found


def _task(config: Mapping[str, Any]) -> str:
    """What is decoded, for people: file names, or the name of a data set."""
    if config.get("name"):
        return config["name"]
    named = config.get("pattern") or config.get("data_dir") or ""
    return ", ".join(_base(name) for name in ([named] if isinstance(named, str) else named))


def _base(path: str) -> str:
    return os.path.basename(path.rstrip("/")) or path


def _with_shared_names(sources: Sequence[Source]) -> list[Source]:
    """One draft has one name: the one that scores give it."""
    names = {draft.digest: draft.name for source in sources if source.kind == SCORES for draft in source.drafts.values()}
    renamed = lambda draft: dataclasses.replace(draft, name=names.get(draft.digest, draft.name))
    sources = [
        dataclasses.replace(source, drafts={name: renamed(draft) for name, draft in source.drafts.items()})
        for source in sources
    ]
    # Models of one name and different content are told apart by their digests.
    digests: dict[tuple[str, str], set[str]] = {}
    for source in sources:
        for role, model in (("target", source.target), *(("draft", draft) for draft in source.drafts.values())):
            digests.setdefault((role, model.name), set()).add(model.digest)
    told = lambda role, model: (
        dataclasses.replace(model, name=f"{model.name} ({model.digest[:6]})")
        if len(digests[role, model.name]) > 1
        else model
    )
    return [
        dataclasses.replace(
            source,
            target=told("target", source.target),
            drafts={name: told("draft", draft) for name, draft in source.drafts.items()},
        )
        for source in sources
    ]


def _with_distinct_labels(sources: Sequence[Source]) -> list[Source]:
    labels = [source.label for source in sources]
    parent = lambda source: os.path.join(_base(os.path.dirname(source.folder.rstrip("/"))), source.label)
    labels = [parent(source) if labels.count(source.label) > 1 else source.label for source in sources]
    return [
        dataclasses.replace(source, label=label if labels.count(label) == 1 else f"{label} ({number})")
        for number, (source, label) in enumerate(zip(sources, labels), 1)
    ]


def _refuse_doubles(sources: Sequence[Source]) -> None:
    seen: dict[str, Source] = {}
    for source in sources:
        if other := seen.get(source.fingerprint):
            raise SourceError(
                f"the inputs {other.folder!r} and {source.folder!r} are the same run, with fingerprint "
                f"{source.fingerprint}: its texts would count twice. Give one of them"
            )
        seen[source.fingerprint] = source


def _notes(sources: Sequence[Source]) -> list[str]:
    notes = []
    for source in sources:
        if source.missing:
            notes.append(f"{source.told} is unfinished: {source.missing} parts are missing, and its figures are of the rest.")
        if source.kind == GENERATIONS and not source.drafts:
            notes.append(f"{source.told} is plain decoding: it has no draft, and nothing of it enters α.")
        if source.decoding.get("lenience", 1.0) < 1:
            notes.append(f"{source.told} is not exact: lenience is {source.decoding['lenience']:g}.")
        if source.kind == SCORES and not source.text.get("of_target", True):
            notes.append(f"{source.told} scores references, not the target's texts: its α is not that of Corollary 3.6.")
        elif source.kind == SCORES and not source.text.get("same_sampling", True):
            notes.append(f"{source.told} scores texts that were drawn with other sampling settings than it scores with.")
        elif source.kind == SCORES and not source.text.get("exact", True):
            notes.append(f"{source.told} scores texts that were decoded with lenience: its α is not that of Corollary 3.6.")
    targets = {source.target.digest: source.target.name for source in sources}
    if len(targets) > 1:
        notes.append(
            f"The inputs are of {len(targets)} targets ({', '.join(sorted(targets.values()))}): figures of different "
            "targets stand side by side, and are never combined."
        )
    for first, second in _same_settings(sources):
        differing = [name for name in first.identity if first.identity[name] != second.identity.get(name)]
        notes.append(
            f"{first.told} and {second.told} have the same settings and different fingerprints "
            f"({first.fingerprint[:8]}, {second.fingerprint[:8]}; what differs: {', '.join(differing) or 'nothing known'}): "
            "they are shown apart."
        )
    return notes


def _same_settings(sources: Sequence[Source]) -> list[tuple[Source, Source]]:
    """Pairs that are, by their settings, the same thing."""

    def settings(source: Source) -> str:
        drafts = sorted((name, draft.digest) for name, draft in source.drafts.items())
        told = [source.kind, source.target.digest, drafts, dict(source.decoding), source.task, source.text.get("fingerprint")]
        return json.dumps(told, sort_keys=True)

    found: dict[str, Source] = {}
    pairs = []
    for source in sources:
        if source.kind != BENCHMARK and (other := found.setdefault(settings(source), source)) is not source:
            pairs.append((other, source))
    return pairs
