"""Parquet files, planned from their footers: records are counted there, and a shard reads the row groups it lies in.

Only the columns that are named are read. Text is taken as bytes, so that one record that is not UTF-8 is one broken
record.
"""

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
            count = pq.read_metadata(stream).num_rows
    except pa.ArrowInvalid as error:
        raise InputError(f"{file.path!r} is no Parquet file: {error}") from error
    return InputFile(
        file.path, name, file.size_bytes, file.modified, sampled_digest(file.path, file.size_bytes), count
    )


def read(work: WorkShard, spec: InputSpec) -> Iterator[Raw]:
    number = 0
    with storage.open_raw(work.path) as stream:
        file = pq.ParquetFile(stream)
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
            for row in _rows(wanted):
                place = f"{work.name}:{work.first_record + number + 1}"
                record = json.dumps(row, default=_as_text, ensure_ascii=False)
                yield Raw(place, work.first_index + number, row, record)
                number += 1
            if number == work.num_records:
                return
    raise changed(work.path, work.num_records, number)


def _rows(batch: pa.RecordBatch) -> list[dict]:
    columns = [column.cast(_bytes_of_text(column.type)) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()


def _bytes_of_text(kind: pa.DataType) -> pa.DataType:
    """`kind` with bytes for text, wherever in it."""
    if pa.types.is_dictionary(kind):
        return _bytes_of_text(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_bytes_of_text(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_bytes_of_text(kind.value_type))
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    return pa.binary() if pa.types.is_string(kind) else kind


def _as_text(value) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
