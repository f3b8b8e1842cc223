"""Prepared TFDS data sets, planned from their metadata: a shard is a slice of a split, read by TFDS's instructions.

Nothing is ever downloaded or prepared here. Ids are TFDS's own: the data set's file and the record's number in it.
"""

import concurrent.futures
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from transforms import storage
from transforms.inputs.base import InputError, InputFile, InputSpec, Raw, changed, needs_tensorflow, sampled_digest
from transforms.records import WorkShard

ID_FEATURE = "tfds_id"
_THREADS = 16


def plan(spec: InputSpec) -> list[InputFile]:
    return plan_split(builder(spec.name, spec.data_dir), spec.split)


def read(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    dataset = load(builder(spec.name, spec.data_dir), split_name(work.name), work)
    number = 0
    for number, row in enumerate(dataset.as_numpy_iterator(), start=1):
        row = dict(row)
        place = row.pop(ID_FEATURE).decode()
        yield Raw(place, work.first_index + number - 1, row, as_record(row))
    if number != work.num_records:
        raise changed(work.path, work.num_records, number)


@functools.cache
def builder(name: str, data_dir: str):
    """The builder of a prepared data set: by name, or, without one, whatever `data_dir` itself holds.

    Raises:
      InputError: it is not there.
    """
    with needs_tensorflow("a TFDS data set"):
        import tensorflow_datasets as tfds
    try:
        found = tfds.builder(name, data_dir=data_dir or None) if name else tfds.builder_from_directory(data_dir)
        prepared = bool(found.info.splits)
    except Exception as error:  # TFDS raises whatever it likes
        where, why = data_dir or "TFDS's default folder", " ".join(str(error).split())[:500]
        raise InputError(f"no data set {name!r} in {where!r}: {why}") from error
    if not prepared:
        raise InputError(
            f"{found.info.full_name!r} is not prepared in {str(found.data_path)!r}; give input.data_dir, the folder that "
            "holds prepared data sets, or prepare it there with `tfds build`: nothing is downloaded during a job"
        )
    return found


def plan_split(builder, split: str, prefix: str = "") -> list[InputFile]:
    """An `InputFile` for every slice that `split` ("test", "test[:10%]", "validation+test") consists of."""
    import tensorflow_datasets as tfds

    info = builder.info
    try:
        slices = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
    except Exception as error:
        raise InputError(
            f"{info.full_name!r} has no split {split!r}; allowed: {', '.join(info.splits)}, and slices of them: {error}"
        ) from error
    files = []
    for one in slices:
        whole = (one.from_ or 0) == 0 and one.to in (None, info.splits[one.splitname].num_examples)
        end = info.splits[one.splitname].num_examples if one.to is None else one.to
        first = one.from_ or 0
        name = prefix + (one.splitname if whole else f"{one.splitname}[{first}:{end}]")
        digest = _split_digest(builder, one.splitname)
        size = info.splits[one.splitname].num_bytes
        files.append(InputFile(str(builder.data_path), name, size, 0.0, digest, end - first, first_record=first))
    spans = sorted((split_name(f.name), f.first_record, f.first_record + f.num_records) for f in files if f.num_records)
    for (one, _, end), (other, first, _) in itertools.pairwise(spans):
        if one == other and first < end:
            raise InputError(f"the split {split!r} has records of {one!r} twice; allowed: slices that share none")
    return files


def split_name(name: str) -> str:
    """The split of which `name`, made by `plan_split`, is a slice."""
    return name.rsplit("/", 1)[-1].split("[")[0]


def _split_digest(builder, split: str) -> str:
    info = builder.info.splits[split]
    identity = {
        "name": builder.info.full_name,
        "split": split,
        "shard_lengths": list(info.shard_lengths),
        "features": builder.info.features.to_json(),
    }
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(file_digest, map(str, info.filepaths)))
    digest = hashlib.sha256(json.dumps([identity, files], sort_keys=True).encode()).hexdigest()
    return "sampled-" + digest


def file_digest(path: str) -> str:
    """`sampled_digest` of a file whose size nobody has listed."""
    with storage.open_raw(path) as stream:
        size = stream.seek(0, 2)
        size = stream.tell() if size is None else size
    return sampled_digest(path, size)


def load(builder, split: str, work: WorkShard):
    """tf.data.Dataset of a shard's raw records, in order, each with its `ID_FEATURE`."""
    import tensorflow_datasets as tfds

    return builder.as_dataset(
        split=tfds.core.ReadInstruction(
            split, from_=work.first_record, to=work.first_record + work.num_records, unit="abs"
        ),
        shuffle_files=False,
        read_config=tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1, try_autocache=False),
    )


def as_record(row: Mapping[str, Any]) -> str:
    """A record as JSON, for errors/."""
    return json.dumps(row, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
