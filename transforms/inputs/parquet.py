"""Parquet files, planned from their footers: records are counted there, and a shard reads the row groups it lies in.

Only the columns that are named are read. Text is taken as bytes, so that one record that is not UTF-8 is one broken
record.
"""

import io
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
            count = _metadata(stream).num_rows
    except pa.ArrowInvalid as error:
        raise InputError(f"{file.path!r} is no Parquet file: {error}") from error
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
    number = 0
    with storage.open_raw(work.path) as stream:
        file = pq.ParquetFile(stream, metadata=_metadata(stream))
        groups, first = [], 0
        skipped = work.first_record
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows <= work.first_record:
                skipped -= rows
            elif first < work.first_record + work.num_records:
                groups.append(group)
            first += rows
        if first < work.first_record + work.num_records:
            raise changed(work.path, work.first_record + work.num_records, first)
        columns, paths = spec.fields.names(), [file.schema.column(i).path for i in range(len(file.schema))]
        if not all(any(f"{path}.".startswith(f"{name}.") for path in paths) for name in columns):
            columns = None  # all: what is missing is told beside what is there
        for batch in file.iter_batches(_BATCH_RECORDS, row_groups=groups, columns=columns):
            wanted = batch.slice(skipped, work.num_records - number)
            skipped = max(skipped - len(batch), 0)
            for row, error in _rows(wanted):
                place = f"{work.name}:{work.first_record + number + 1}"
                record = json.dumps(row, default=_as_text, ensure_ascii=False)
                problem = ("InvalidText", f"a value cannot be read: {error}") if error else None
                yield Raw(place, work.first_index + number, None if error else row, record, problem)
                number += 1
            if number == work.num_records:
                return
    raise changed(work.path, work.num_records, number)


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
