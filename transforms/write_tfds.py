"""Committed parts as a TFDS data set: every Parquet part becomes one TFRecord file of the same rows, in parallel.

The files appear whole or not at all, and dataset_info.json, without which TFDS sees nothing, comes last. TensorFlow is
needed here and imported nowhere else on the way (extra `tasks`).
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from transforms import storage
from transforms.columns import meaning
from transforms.parts import read_rows
from transforms.storage import OutputFolder

INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class Part:
    """A committed part that becomes a file: of which split, its number, how many the split has, its path and its run."""

    split: str
    shard: int
    num_shards: int
    path: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class WrittenFile:
    """A file of a split: its number, and how many rows and bytes of them it has."""

    split: str
    shard: int
    num_examples: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A TFDS data set that is being written.

    Attributes:
      folder: where its files lie: <data_dir>/<name>/<version>.
      name, version, description: of it.
      schema: of the parts: Parquet columns become features of the same names.
      lenience: what the inner lists of `lenient_beta_*` are of.
      metadata: JSON values, for metadata.json: where the data set comes from.
    """

    folder: str
    name: str
    version: str
    description: str
    schema: pa.Schema
    lenience: tuple[float, ...]
    metadata: Mapping[str, Any]

    def features(self):
        """The data set's `tfds.features.FeaturesDict`, every feature documented."""
        import numpy as np
        import tensorflow_datasets as tfds

        def feature(field: pa.Field):
            doc, kind = meaning(field.name), field.type
            if pa.types.is_string(kind):
                return tfds.features.Text(doc=doc)
            if not pa.types.is_list(kind):
                return tfds.features.Scalar(dtype=np.dtype(kind.to_pandas_dtype()), doc=doc)
            nested = pa.types.is_list(kind.value_type)
            inner = kind.value_type.value_type if nested else kind.value_type
            shape = (None, len(self.lenience)) if nested else (None,)
            return tfds.features.Tensor(shape=shape, dtype=np.dtype(inner.to_pandas_dtype()), doc=doc)

        return tfds.features.FeaturesDict({field.name: feature(field) for field in self.schema})


class WriteTfds(beam.PTransform):
    """`Part`s to a `DataSet`; yields the data set's folder once, when it is complete."""

    def __init__(self, dataset: DataSet):
        super().__init__()
        self._dataset = dataset

    def expand(self, parts):
        return (
            parts
            | "Spread" >> beam.Reshuffle()
            | "WriteFile" >> beam.ParDo(_WriteFile(self._dataset))
            | "Gather" >> beam.combiners.ToList()
            | "WriteInfo" >> beam.Map(write_info, self._dataset)
        )


class _WriteFile(beam.DoFn):
    def __init__(self, dataset: DataSet):
        self._dataset = dataset

    def setup(self):
        import tensorflow_datasets as tfds

        self._features = self._dataset.features()
        self._serializer = tfds.core.ExampleSerializer(self._features.get_serialized_info())

    def process(self, part: Part):
        table = read_rows(part.path, fingerprint=part.fingerprint)
        if not table.schema.equals(self._dataset.schema):
            raise ValueError(f"{part.path!r} has other columns than the first part: {table.schema.names}")
        rows = [
            self._serializer.serialize_example(self._features.encode_example(_without_null(row)))
            for row in table.to_pylist()
        ]
        folder = OutputFolder(self._dataset.folder)
        folder.put(_file_name(self._dataset.name, part), _tfrecord(rows))
        yield WrittenFile(part.split, part.shard, len(rows), sum(map(len, rows)))


def _without_null(row: dict) -> dict:
    return {name: "" if value is None else value for name, value in row.items()}


def _file_name(name: str, part: Part) -> str:
    """TFDS's own naming."""
    return f"{name}-{part.split}.tfrecord-{part.shard:05d}-of-{part.num_shards:05d}"


def _tfrecord(rows: Sequence[bytes]) -> bytes:
    """A TFRecord file of these rows, by TensorFlow's writer."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "rows")
        with tf.io.TFRecordWriter(path) as writer:
            for row in rows:
                writer.write(row)
        with open(path, "rb") as stream:
            return stream.read()


def write_info(written: Iterable[WrittenFile], dataset: DataSet) -> str:
    """Writes features.json, metadata.json and at last dataset_info.json. Returns the data set's folder."""
    import tensorflow_datasets as tfds

    written = sorted(written, key=lambda file: (file.split, file.shard))
    splits: dict[str, list[WrittenFile]] = {}
    for file in written:
        splits.setdefault(file.split, []).append(file)
    folder = OutputFolder(dataset.folder)
    with tempfile.TemporaryDirectory() as scratch:
        identity = tfds.core.DatasetIdentity(
            name=dataset.name, version=tfds.core.Version(dataset.version), data_dir=scratch, module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            description=dataset.description,
            features=dataset.features(),
            disable_shuffling=True,  # rows are in the order of the input
            metadata=tfds.core.MetadataDict(dataset.metadata),
        )
        info.set_file_format(tfds.core.FileFormat.TFRECORD)
        info.set_splits(
            tfds.core.SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=name,
                        shard_lengths=[file.num_examples for file in files],
                        num_bytes=sum(file.num_bytes for file in files),
                    )
                    for name, files in splits.items()
                ]
            )
        )
        info.write_to_directory(scratch)
        for name in sorted(os.listdir(scratch), key=lambda name: name == INFO):
            with open(os.path.join(scratch, name), "rb") as stream:
                folder.put(name, stream.read())
    folder.delete(name for name in folder.list() if name.startswith(storage.ATTEMPTS + "/"))
    return dataset.folder


def read_metadata(folder: str) -> dict | None:
    """metadata.json of a complete data set in `folder`, None where there is none."""
    there = OutputFolder(folder)
    return json.loads(there.read("metadata.json")) if there.exists(INFO) else None
