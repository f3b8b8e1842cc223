"""What can be read: one module per format family, all of one shape; see `transforms.inputs.base`."""

import types
from collections.abc import Iterator

from transforms.inputs.base import InputSpec, Raw, refuse_changed
from transforms.records import WorkShard

FILE_FORMATS = ("jsonl", "text", "csv", "parquet", "tfrecord")
FORMATS = (*FILE_FORMATS, "tfds", "seqio")

_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_SUFFIXES = {
    "jsonl": ("jsonl", "json", "ndjson"),
    "text": ("txt", "text"),
    "csv": ("csv", "tsv"),
    "parquet": ("parquet",),
    "tfrecord": ("tfrecord", "tfrecords"),
}


def format_module(name: str) -> types.ModuleType:
    """The module of a format. None of them imports TensorFlow before it is used."""
    from transforms.inputs import delimited, lines, parquet, seqio, tfds, tfrecord

    return {
        "jsonl": lines, "text": lines, "csv": delimited, "parquet": parquet, "tfrecord": tfrecord,
        "tfds": tfds, "seqio": seqio,
    }[name]  # fmt: skip


def read_records(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    """The records of a work shard, in order, as they were when the job was planned.

    Where the checksum of the shard's bytes is known the format compares it with that of what was read; else the file
    must be the same before and after.

    Raises:
      InputError: they are not what was planned; or the shard as a whole cannot be read.
    """
    if work.checksum is None:
        refuse_changed(work)
    yield from format_module(spec.format).read(work, spec)
    if work.checksum is None:
        refuse_changed(work)


def format_of(pattern: str) -> str | None:
    """The format that a path's or a glob's ending tells, with or without that of a compression; None for none."""
    ending = ending_of(pattern)
    return next((name for name, suffixes in _SUFFIXES.items() if ending in suffixes), None)


def ending_of(pattern: str) -> str:
    """The ending of a path or glob, less that of a compression: "tsv" of "a/*.tsv.gz"."""
    name = pattern.rsplit("/", 1)[-1].lower()
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    return name.rsplit(".", 1)[-1]
