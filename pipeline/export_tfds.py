"""Makes a TFDS data set of finished folders of `pipeline.score` or `pipeline.generate`: one split each.

    python -m pipeline.export_tfds --inputs=DIR[,DIR...] --output=DATA_DIR [--splits=NAME[,NAME...]] [--name=alpha]
        [--version=1.0.0] [Beam options]

The data set lies in DATA_DIR/NAME/VERSION; docs/alpha_datasets.md says how to read it. Needs TensorFlow and
tensorflow-datasets (extra `tasks`).

Exit status: 0 when the data set is there, 1 when the job failed, 2 when something is wrong with the command or a folder
and nothing was done.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
import typing
from collections.abc import Sequence
from typing import Any

from pipeline.job.command import command, run_pipeline
from pipeline.settings import ConfigError, absolute
from pipeline.settings.flags import Parser
from transforms import storage
from transforms.folder import GENERATE, SCORE, FolderError, OpenedFolder, open_finished

if typing.TYPE_CHECKING:
    import pyarrow as pa
    from apache_beam.options.pipeline_options import PipelineOptions

    from transforms.write_tfds import DataSet, Part

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_DESCRIPTIONS = {
    "score": "Acceptance of draft models' tokens by a target model in speculative decoding (Leviathan et al., 2211.17192), "
    "scored teacher forced for every token of every text. metadata.json says which models, and under what sampling.",
    "generate": "Texts decoded speculatively (Leviathan et al., 2211.17192), with what the speculation did for every token. "
    "metadata.json says by which models, and under what sampling.",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A parsed command line: what is written, from which parts, and Beam's options."""

    dataset: DataSet
    parts: tuple[Part, ...]
    options: PipelineOptions


def parse(args: Sequence[str]) -> Job:
    """Parses `args`, which exclude the program's name, and looks into the folders.

    Raises:
      ConfigError, FolderError: with the setting, its value and what is allowed.
    """
    parser = Parser(prog="python -m pipeline.export_tfds", description=__doc__.splitlines()[0], allow_abbrev=False)
    for name, default in (("inputs", ""), ("output", ""), ("splits", ""), ("name", "alpha"), ("version", "1.0.0")):
        parser.add_argument(f"--{name}", default=default)
    own, others = parser.parse_known_args(list(args))
    inputs = [absolute(folder.strip()) for folder in own.inputs.split(",") if folder.strip()]
    splits = own.splits.split(",") if own.splits else ["train"] if len(inputs) == 1 else []
    if not inputs or not own.output:
        raise ConfigError("--inputs and --output are needed: finished folders, and where prepared data sets lie")
    if not len(set(splits)) == len(splits) == len(inputs) or not all(map(_NAME.fullmatch, splits)):
        raise ConfigError(
            f"--splits is {own.splits!r}; allowed: as many distinct names as there are --inputs, {len(inputs)}, of lower-case "
            "letters, digits and underscores"
        )
    for flag, value, pattern, allowed in (
        ("name", own.name, _NAME, "lower-case letters, digits and underscores"),
        ("version", own.version, _VERSION, "three numbers with dots between them"),
    ):
        if not pattern.fullmatch(value):
            raise ConfigError(f"--{flag} is {value!r}; allowed: {allowed}")
    if importlib.util.find_spec("tensorflow_datasets") is None or importlib.util.find_spec("tensorflow") is None:
        raise ConfigError("a TFDS data set needs TensorFlow and tensorflow-datasets, which are in the extra 'tasks'")
    # Only now: what is wrong with the command itself is said without waiting for Beam.
    from pipeline.runners.options import beam_options, first_local
    from transforms.write_tfds import DataSet

    options = beam_options(others, {"--inputs": first_local(inputs), "--output": absolute(own.output)})
    folders = [open_finished(folder, SCORE, GENERATE, what="--inputs:") for folder in inputs]
    first = folders[0].manifest
    for opened in folders[1:]:
        for what in ("job", "drafts", "lenience"):
            was, now = (getattr(manifest, what) for manifest in (first, opened.manifest))
            if was != now:
                raise FolderError(
                    f"{opened.folder.root!r} has {what} {now} and {folders[0].folder.root!r} {was}; allowed: splits with the "
                    "same columns"
                )
    dataset = DataSet(
        folder=storage.join(absolute(own.output), own.name, own.version),
        name=own.name,
        version=own.version,
        description=_DESCRIPTIONS[first.job],
        schema=_schema(folders[0]),
        lenience=tuple(first.lenience),
        metadata={"job": first.job, "splits": {split: _provenance(opened) for split, opened in zip(splits, folders)}},
    )
    parts = tuple(part for split, opened in zip(splits, folders) for part in _parts(opened, split))
    return Job(dataset, parts, options)


def _parts(opened: OpenedFolder, split: str) -> list[Part]:
    from transforms.write_tfds import Part

    manifest, path = opened.manifest, opened.folder.path
    names = enumerate(manifest.part_names())
    return [Part(split, shard, manifest.num_shards, path(name), manifest.fingerprint) for shard, name in names]


def _schema(opened: OpenedFolder) -> pa.Schema:
    from transforms.parts import PartError, read_schema

    path = _parts(opened, "")[0].path
    try:
        return read_schema(path)
    except PartError as error:
        raise FolderError(f"--inputs: {error}") from error


def _provenance(opened: OpenedFolder) -> dict[str, Any]:
    """What the data set says of the run: models by digest, sampling, versions, and α."""
    run = ("fingerprint", "specbeam", "exact", "started", "config", "identity", "versions", "device")
    kept = (*run, "drafts", "lenience", "text")
    manifest, summary = opened.manifest.to_json(), opened.summary()
    alpha = {name: summary[name] for name in ("alpha", "drafts") if name in summary}
    return {name: manifest[name] for name in kept if name in manifest} | {"summary": alpha}


@command
def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name, in this process. Returns the exit status."""
    job = parse(args)
    import apache_beam as beam

    from transforms.write_tfds import WriteTfds, read_metadata

    there = read_metadata(job.dataset.folder)
    if there is not None and there != json.loads(json.dumps(job.dataset.metadata)):
        raise FolderError(f"{job.dataset.folder!r} holds another data set; allowed: another --name, --version or --output")
    if there is not None:
        print(f"Finished already, nothing to do: {job.dataset.folder}")
        return 0
    run_pipeline(job.options, lambda root: root | beam.Create(job.parts) | WriteTfds(job.dataset))
    print(f"{len(job.parts)} files of splits {', '.join(job.dataset.metadata['splits'])}: {job.dataset.folder}")
    print(f"tfds.builder_from_directory({job.dataset.folder!r}).as_dataset()")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
