"""SeqIO tasks and mixtures by name: the task's own source and preprocessors, one work shard at a time.

A task over TFDS is planned from the data set's metadata, and a shard is a slice of its split; any other source is
counted in one pass and read from its beginning. Of a mixture every task's examples are taken once: its rates are for
training.

Preprocessors are applied to every record by itself, so that each result is known by the record it comes from, a record
that they drop is reported, and one that raises costs itself only. Preprocessors that join records (packing) therefore do
not fit.
"""

import functools
import hashlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

from transforms.inputs import tfds
from transforms.inputs.base import InputError, InputFile, InputSpec, Raw, changed, needs_tensorflow
from transforms.records import WorkShard

_LOCK = threading.Lock()  # SeqIO's registry, and the seeds of its preprocessors, are one for all threads


def plan(spec: InputSpec) -> list[InputFile]:
    files = []
    for task in tasks(spec.name, spec.module, spec.data_dir, spec.tokenizer):
        dataset = getattr(task.source, "tfds_dataset", None)
        if dataset is not None and not dataset.tfds_splits:
            tfds.builder(*(part or "" for part in dataset.get_split_params()))  # raises where it is not prepared
        if spec.split.partition("[")[0] not in task.splits:
            raise InputError(f"the task {task.name!r} has no split {spec.split!r}; allowed: {', '.join(task.splits)}")
        files += _plan_task(task, spec.split)
    return files


def tasks(name: str, module: str, data_dir: str, tokenizer: str) -> tuple[Any, ...]:
    """The tasks that `name` stands for: itself, or those of a mixture, after `module` has registered it.

    Raises:
      InputError: there is none.
    """
    with _LOCK:
        return _find_tasks(name, module, data_dir, tokenizer)


@functools.cache
def _find_tasks(name: str, module: str, data_dir: str, tokenizer: str) -> tuple[Any, ...]:
    with needs_tensorflow("a SeqIO task"):
        import seqio

        from transforms.inputs import tasks as ours
    ours.register(tokenizer)
    try:
        if module:
            importlib.import_module(module)
        found = seqio.get_mixture_or_task(name)
    except Exception as error:  # whatever the user's module raises
        hint = "" if module else "; give input.module, the module whose import registers it"
        raise InputError(f"no SeqIO task {name!r}: {error}{hint}. Known here: {', '.join(ours.NAMES)}") from error
    found = tuple(found.tasks) if isinstance(found, seqio.Mixture) else (found,)
    for task in found:
        if data_dir and isinstance(task.source, seqio.TfdsDataSource):
            task.source.tfds_dataset.override_data_dir(data_dir)
    return found


def _tfds_split(task, split: str):
    """(builder, TFDS's name of the split) of a task over TFDS, else None."""
    import seqio

    if not isinstance(task.source, seqio.TfdsDataSource):
        return None
    base, bracket, rest = split.partition("[")
    dataset = task.source.tfds_dataset
    name, data_dir = dataset.get_split_params(base)
    return tfds.builder(name or "", data_dir or ""), dataset._map_split(base) + bracket + rest


def _plan_task(task, split: str) -> list[InputFile]:
    if found := _tfds_split(task, split):
        return tfds.plan_split(*found, prefix=f"{task.name}/")
    if split not in task.splits:
        raise InputError(f"the task {task.name!r} has no split {split!r}: only those of TFDS's data sets can be sliced")
    source = task.source
    count = source.num_input_examples(split)
    if count is None:
        count = sum(1 for _ in source.get_dataset(split=split, shuffle=False))
    paths = [path for path in map(str, source.list_shards(split)) if "/" in path]
    digest = hashlib.sha256("".join(map(tfds.file_digest, paths)).encode()).hexdigest()
    return [InputFile(type(source).__name__, f"{task.name}/{split}", 0, 0.0, "sampled-" + digest, count)]


def read(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    name, split = work.name.rsplit("/", 1)
    task = next(task for task in tasks(spec.name, spec.module, spec.data_dir, spec.tokenizer) if task.name == name)
    if found := _tfds_split(task, spec.split):
        dataset = tfds.load(found[0], tfds.split_name(work.name), work)
    else:
        dataset = task.source.get_dataset(split=split, shuffle=False).skip(work.first_record).take(work.num_records)
    records = [dict(row) if isinstance(row, dict) else {"text": row} for row in dataset.as_numpy_iterator()]
    if len(records) != work.num_records:
        raise changed(work.path, work.num_records, len(records))
    results = _preprocess(task, dataset, len(records))
    for number, record in enumerate(records):
        place, index = f"{work.name}:{work.first_record + number + 1}", work.first_index + number
        if tfds.ID_FEATURE in record:
            place = f"{name}/{record.pop(tfds.ID_FEATURE).decode()}"
        rows, raw = results[number], tfds.as_record(record)
        if isinstance(rows, Exception):
            yield Raw(place, index, None, raw, (type(rows).__name__, str(rows)))
        elif not rows:
            yield Raw(place, index, None, raw, ("Dropped", "the task's preprocessors yield nothing for this record"))
        for i, row in enumerate(rows if isinstance(rows, list) else ()):
            yield Raw(place if len(rows) == 1 else f"{place}#{i}", index, row, raw)


def _preprocess(task, dataset, count: int) -> list[list[dict[str, Any]] | Exception]:
    """What the task makes of each of `count` records: its rows, or what was raised for this one.

    Raises:
      InputError: the preprocessors fit no record at all.
    """
    results: list = [[] for _ in range(count)]
    start = 0
    while start < count:
        rows, reached = _numbered(task, dataset, start, count), start
        try:
            for number, row in rows.as_numpy_iterator():
                reached = int(number)
                results[reached].append(row)
            return results
        except Exception:  # whatever a preprocessor raises, for one of the records from `reached` on
            start = reached
        failed = False
        while start < count and not failed:
            one = _numbered(task, dataset, start, start + 1)
            try:
                results[start] = [row for _, row in one.as_numpy_iterator()]
            except Exception as error:
                results[start], failed = error, True
            start += 1
    return results


def _numbered(task, dataset, start: int, end: int):
    """tf.data.Dataset of (number of the record, row): every row that the task makes of records start to end."""
    import tensorflow as tf

    def rows_of(number, record):
        if isinstance(record, dict):
            record = {name: value for name, value in record.items() if name != tfds.ID_FEATURE}
        one = tf.data.Dataset.from_tensors(record)
        rows = task.preprocess_postcache(task.preprocess_precache(one, seed=0), sequence_length=None, seed=0)
        return rows.map(lambda row: (number, row))

    try:
        with _LOCK:
            return dataset.enumerate().skip(start).take(end - start).flat_map(rows_of)
    except Exception as error:  # whatever is raised while a preprocessor is traced
        raise InputError(f"the preprocessors of the task {task.name!r} cannot be applied: {error}") from error
