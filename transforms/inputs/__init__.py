"""What can be read: one module per format family, all of one shape; see `transforms.inputs.base`."""

import types

FILE_FORMATS = ("jsonl", "text", "csv", "parquet", "tfrecord")
FORMATS = (*FILE_FORMATS, "tfds", "seqio")

_SUFFIXES = {
    "jsonl": ("jsonl", "json", "ndjson"),
    "text": ("txt", "text"),
    "csv": ("csv",),
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


def format_of(pattern: str) -> str | None:
    """The format that a path's or a glob's ending tells, with or without ".gz"; None where it tells none."""
    ending = pattern.removesuffix(".gz").rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    return next((name for name, suffixes in _SUFFIXES.items() if ending in suffixes), None)
