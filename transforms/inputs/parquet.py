"""Parquet files, planned from their footers: records are counted there, and a shard reads the row groups it lies in.

Only the columns that are named are read. Text is taken as bytes, so that one record that is not UTF-8 is one broken
record.
"""

import io
import itertools
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.inputs.base import Cut, FoundFile, InputError, InputFile, InputSpec, Raw, changed, sampled_digest
from transforms.records import WorkShard

_BATCH_RECORDS = 256


def plan_file(file: FoundFile, name: str, spec: InputSpec, cut: Cut) -> InputFile:
    del spec, cut
    try:
        with storage.open_raw(file.path) as stream:
            metadata = _metadata(stream)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file.path!r} is no Parquet file: {error}") from error
    count, groups = metadata.num_rows, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0 or sum(groups) != count:
        raise InputError(f"{file.path!r} is damaged: its footer says {count} records, and {sum(groups)} of its row groups")
    return InputFile(
        file.path, name, file.size_bytes, file.modified, sampled_digest(file.path, file.size_bytes), count
    )


def _metadata(stream) -> pq.FileMetaData:
    """The footer without what Arrow may have noted there of types of its own.

    Its text then comes as plain text, not as views or coded by dictionaries, some of which Arrow refuses to read where
    one of the texts is not UTF-8.
    """
    end = stream.seek(0, 2)
    end = stream.tell() if end is None else end
    stream.seek(max(0, end - 8))
    tail = stream.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > end - 8:
        raise pa.ArrowInvalid("it does not end with a footer")
    stream.seek(end - 8 - length)
    footer = stream.read(length).replace(b"ARROW:schema", b"ARROW:unused")
    return pq.read_metadata(io.BytesIO(b"PAR1" + footer + tail))


def read(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    number, first = 0, 0
    with storage.open_raw(work.path) as stream:
        store = _Store(stream)
        file = pq.ParquetFile(store, metadata=_metadata(stream), page_checksum_verification=True)
        columns, paths = spec.fields.names(), [file.schema.column(i).path for i in range(len(file.schema))]
        if not all(any(f"{path}.".startswith(f"{name}.") for path in paths) for name in columns):
            columns = None  # all: what is missing is told beside what is there
        for group in range(file.num_row_groups):
            rows, skipped = file.metadata.row_group(group).num_rows, work.first_record + number - first
            first += rows
            count = min(work.num_records - number, rows - skipped)
            if count <= 0:
                continue
            for row, problem in _rows_of_group(file, store, group, columns, skipped, count):
                place = f"{work.name}:{work.first_record + number + 1}"
                record = "" if row is None else json.dumps(row, default=_as_text, ensure_ascii=False)
                yield Raw(place, work.first_index + number, None if problem else row, record, problem)
                number += 1
    if number < work.num_records:
        raise changed(work.path, work.first_record + work.num_records, first)


class _Store:
    """A stream that knows whether it was the store that failed, or what it gave is damaged."""

    def __init__(self, stream):
        self._stream, self.failed = stream, False

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except Exception:
            self.failed = True
            raise


def _rows_of_group(
    file: pq.ParquetFile, store: _Store, group: int, columns: list[str] | None, skipped: int, count: int
) -> Iterator[tuple[dict | None, tuple[str, str] | None]]:
    """So many rows of a row group, each with what is wrong with it; where its pages are damaged there are no rows any more."""
    try:
        for batch in file.iter_batches(_BATCH_RECORDS, row_groups=[group], columns=columns, use_threads=False):
            wanted = batch.slice(skipped, count)
            skipped = max(skipped - len(batch), 0)
            for row, error in _rows(wanted):
                yield row, ("InvalidText", f"a value cannot be read: {error}") if error else None
                count -= 1
            if not count:
                return
        damage = "it has fewer records than the footer says"
    except (pa.ArrowException, OSError) as error:
        if store.failed or isinstance(error, MemoryError):
            raise
        damage = str(error)
    yield from itertools.repeat((None, ("CorruptRecord", f"row group {group + 1} cannot be read: {damage}")), count)


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[dict, Exception | None]]:
    """Every row, and what is wrong with it: a value that cannot be had is None."""
    columns = [_values(column) for column in batch.columns]
    for values in zip(*columns):
        problem = next((value for value in values if isinstance(value, Exception)), None)
        row = {name: None if isinstance(value, Exception) else value for name, value in zip(batch.schema.names, values)}
        yield row, problem


def _values(column: pa.Array) -> list:
    """Its values with bytes for text. What Arrow cannot cast is taken value by value: one may be an exception."""
    try:
        return column.cast(_bytes_of_text(column.type)).to_pylist()
    except Exception:  # Arrow's, or Python's of a date beyond the year 9999
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar):
    try:
        return scalar.as_py()
    except Exception as error:
        return error


def _bytes_of_text(kind: pa.DataType) -> pa.DataType:
    """`kind` with bytes for text, wherever in it."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_bytes_of_text(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_bytes_of_text(kind.key_type), _bytes_of_text(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(_bytes_of_text(kind.value_type))
    return pa.binary() if pa.types.is_string(kind) else kind


def _as_text(value) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
