"""Makes a TFDS data set of finished folders of `pipeline.score` or `pipeline.generate`: one split each.

    python -m pipeline.export_tfds --inputs=DIR[,DIR...] --output=DATA_DIR [--splits=NAME[,NAME...]] [--name=alpha]
        [--version=1.0.0] [Beam options]

The data set lies in DATA_DIR/NAME/VERSION; docs/alpha_datasets.md says how to read it. Needs TensorFlow and
tensorflow-datasets (extra `tasks`).

Exit status: 0 when the data set is there, 1 when the job failed, 2 when something is wrong with the command or a folder
and nothing was done.
"""

import dataclasses
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.manifest import FolderError
from pipeline.runners import beam_options, first_local
from pipeline.settings import ConfigError, absolute
from pipeline.settings.flags import Parser
from transforms import storage
from transforms.storage import OutputFolder
from transforms.write_tfds import DataSet, Part, WriteTfds, read_metadata

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
    options = beam_options(others, {"--inputs": first_local(inputs), "--output": absolute(own.output)})
    folders = [_Folder.open(folder) for folder in inputs]
    for folder in folders[1:]:
        for what in ("job", "drafts", "lenience"):
            if folder.manifest.get(what) != folders[0].manifest.get(what):
                raise FolderError(
                    f"{folder.root!r} has {what} {folder.manifest.get(what)} and {folders[0].root!r} "
                    f"{folders[0].manifest.get(what)}; allowed: splits with the same columns"
                )
    first = folders[0]
    dataset = DataSet(
        folder=storage.join(absolute(own.output), own.name, own.version),
        name=own.name,
        version=own.version,
        description=_DESCRIPTIONS[first.job],
        schema=first.schema(),
        lenience=tuple(first.manifest.get("lenience", ())),
        metadata={"job": first.job, "splits": {split: one.provenance() for split, one in zip(splits, folders)}},
    )
    parts = tuple(part for split, folder in zip(splits, folders) for part in folder.parts(split))
    return Job(dataset, parts, options)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A finished folder of a job."""

    root: str
    manifest: dict[str, Any]
    summary: dict[str, Any]

    @classmethod
    def open(cls, root: str) -> "_Folder":
        folder = OutputFolder(root)
        try:
            if not folder.exists(storage.SUCCESS):
                raise FolderError(
                    f"--inputs has {root!r}, which is no finished folder (it has no {storage.SUCCESS}); allowed: finished "
                    "folders of pipeline.score or pipeline.generate"
                )
            manifest, summary = (json.loads(folder.read(name)) for name in (storage.MANIFEST, storage.SUMMARY))
        except (OSError, ValueError) as error:
            if isinstance(error, FolderError):
                raise
            raise FolderError(f"--inputs has {root!r}, which cannot be read: {error}") from error
        if manifest.get("job", "generate") not in _DESCRIPTIONS:
            raise FolderError(f"--inputs has {root!r}, a folder of pipeline.{manifest['job']}; allowed: score and generate")
        return cls(root, manifest, summary)

    @property
    def job(self) -> str:
        return self.manifest.get("job", "generate")

    def parts(self, split: str) -> list[Part]:
        kind = storage.SCORES if self.job == "score" else storage.GENERATIONS
        count, folder = self.manifest["num_shards"], OutputFolder(self.root)
        return [Part(split, i, count, folder.path(storage.part_name(i, count, kind))) for i in range(count)]

    def schema(self):
        with storage.open_raw(self.parts("")[0].path) as stream:
            return pq.read_schema(stream).remove_metadata()

    def provenance(self) -> dict[str, Any]:
        """What the data set says of the run: models by digest, sampling, versions, and α."""
        run = ("fingerprint", "specbeam", "exact", "started", "config", "identity", "versions", "device")
        kept = (*run, "drafts", "lenience", "text")
        alpha = {name: self.summary[name] for name in ("alpha", "drafts") if name in self.summary}
        return {name: self.manifest[name] for name in kept if name in self.manifest} | {"summary": alpha}


def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name, in this process. Returns the exit status."""
    try:
        job = parse(args)
        there = read_metadata(job.dataset.folder)
        if there is not None and there != json.loads(json.dumps(job.dataset.metadata)):
            raise FolderError(
                f"{job.dataset.folder!r} holds another data set; allowed: another --name, --version or --output"
            )
    except (ConfigError, FolderError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    if there is not None:
        print(f"Finished already, nothing to do: {job.dataset.folder}")
        return 0
    try:
        with beam.Pipeline(options=job.options) as root:
            _ = root | beam.Create(job.parts) | WriteTfds(job.dataset)
    except Exception as error:  # what the runner reports
        print(f"error: the job failed: {error}", file=sys.stderr)
        return 1
    print(f"{len(job.parts)} files of splits {', '.join(job.dataset.metadata['splits'])}: {job.dataset.folder}")
    print(f"tfds.builder_from_directory({job.dataset.folder!r}).as_dataset()")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
