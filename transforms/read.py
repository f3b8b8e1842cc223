"""Reading one work shard: every one of its records becomes an example or an error, never an exception."""

import dataclasses
import io
import json
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics

from transforms import attempts, records, storage
from transforms.plan import InputError, Plan, RecordFields, ShardTable, iterate_lines, open_lines, read_id
from transforms.records import Example, ExampleError, TokenizedShard, WorkShard
from transforms.tokenize import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class _Record:
    example_id: str
    index: int
    place: str
    raw: str
    inputs: str
    targets: str | None


def read_lines(work: WorkShard) -> list[bytes]:
    """The shard's lines, without "\\n".

    Raises:
      InputError: the file has changed since it was planned.
    """
    with open_lines(work.path) as (stream, _):
        if work.byte_range is None:
            lines = iterate_lines(stream)
            wanted = range(work.first_record + work.num_records)
            lines = [line for i, line in zip(wanted, lines) if i >= work.first_record]
        else:
            start, end = work.byte_range
            stream.seek(start)
            lines = list(iterate_lines(io.BytesIO(stream.read(end - start))))
    if len(lines) != work.num_records:
        raise InputError(
            f"{work.path!r} has changed since the job was planned: {len(lines)} lines where {work.num_records} were"
        )
    return lines


def read_shard(
    work: WorkShard,
    fields: RecordFields,
    tokenizer: Tokenizer,
    *,
    prefix: str,
    eos_id: int | None,
    max_input_tokens: int,
    attempt: int = 1,
) -> TokenizedShard:
    """Reads and tokenises one shard.

    Args:
      work: what to read.
      fields: where a record's text, reference and id are.
      tokenizer: of the target model.
      prefix: put before every text, as the task asks.
      eos_id: appended to every input and kept when it is cut; None appends nothing (decoder-only models).
      max_input_tokens: longest input; longer ones are cut and flagged.
      attempt: passed on.
    """
    examples, errors = [], []
    for number, line in enumerate(read_lines(work)):
        record = _read_record(work, number, line, fields)
        if isinstance(record, _Record):
            record = _tokenize(record, tokenizer, prefix, eos_id, max_input_tokens)
        (errors if isinstance(record, ExampleError) else examples).append(record)
    return TokenizedShard(work, attempt, tuple(examples), tuple(errors))


def _read_record(work: WorkShard, number: int, line: bytes, fields: RecordFields) -> _Record | ExampleError:
    position = work.first_record + number
    place = f"{work.name}:{position + 1}"
    index, example_id = work.first_index + number, place
    raw = line.decode("utf-8", "backslashreplace")

    def failed(error_type: str, message: str) -> ExampleError:
        return records.example_error(example_id, index, records.READ, error_type, message, place, raw)

    try:
        text = line.decode("utf-8-sig" if position == 0 else "utf-8")
    except UnicodeDecodeError as error:
        return failed("InvalidUtf8", f"byte {error.start} of the line is not UTF-8: {error.reason}")
    if not text.strip():
        return failed("EmptyLine", "the line is blank")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return failed("MalformedJson", str(error))
    if not isinstance(row, dict):
        return failed("NotAnObject", f"the line holds {type(row).__name__}, not an object with named fields")
    if fields.example_id:
        try:
            example_id = read_id(row, fields.example_id)
            example_id.encode()
        except KeyError:
            return failed("MissingField", f"no field {fields.example_id!r}, which gives the example's id")
        except (TypeError, UnicodeEncodeError) as error:
            example_id = place
            return failed("WrongType", str(error))
    if fields.inputs not in row:
        return failed("MissingField", f"no field {fields.inputs!r}; the record has: {', '.join(map(str, row))}")
    inputs, targets = row[fields.inputs], row.get(fields.targets) if fields.targets else None
    for name, value in ((fields.inputs, inputs), (fields.targets, targets)):
        if value is None and name == fields.targets and name != fields.inputs:
            continue
        if not isinstance(value, str):
            return failed("WrongType", f"field {name!r} holds {type(value).__name__}, not text")
        try:
            value.encode()
        except UnicodeEncodeError:
            return failed("InvalidText", f"field {name!r} holds half of a surrogate pair, which no UTF-8 text can")
    if not inputs.strip():
        return failed("EmptyInput", f"field {fields.inputs!r} is empty")
    return _Record(example_id, index, place, raw, inputs, targets)


def _tokenize(
    record: _Record, tokenizer: Tokenizer, prefix: str, eos_id: int | None, max_input_tokens: int
) -> Example | ExampleError:
    def failed(error_type: str, message: str) -> ExampleError:
        return records.example_error(
            record.example_id, record.index, records.TOKENIZE, error_type, message, record.place, record.raw
        )

    try:
        tokens = tokenizer.encode(prefix + record.inputs)
    except Exception as error:  # whatever a tokeniser's library raises concerns this record only
        return failed(type(error).__name__, str(error))
    if not tokens:
        return failed("NoTokens", "the tokeniser yields no token for this text")
    ending = [] if eos_id is None else [eos_id]
    truncated = len(tokens) + len(ending) > max_input_tokens
    tokens = np.asarray(tokens[: max_input_tokens - len(ending)] + ending, np.int32)
    return Example(
        record.example_id, record.index, record.inputs, record.targets, tokens, truncated,
        record.place, record.raw[: records.MAX_RECORD_CHARS + 1],
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ReadSettings:
    """What `ReadShards` needs besides the plan; see `read_shard`. `launch` names the launch in attempts/."""

    fields: RecordFields
    tokenizer: str
    prefix: str
    eos_id: int | None
    max_input_tokens: int
    launch: str = ""


class ReadShards(beam.PTransform):
    """Ranges of shard numbers, (first, end), to `TokenizedShard`s; shards that cannot be read go to `FAILED`.

    Ranges are expanded, and shards looked up in the run's manifest, on workers. `FAILED` holds `ShardFailure`s. Each
    shard's start is noted in attempts/.
    """

    FAILED = "failed"

    def __init__(self, output: str, settings: ReadSettings):
        super().__init__()
        self._output, self._settings = output, settings

    def expand(self, shard_ranges):
        do = beam.ParDo(_ReadShard(self._output, self._settings))
        return (
            shard_ranges
            | "Expand" >> beam.FlatMapTuple(_shard_numbers)
            | "Spread" >> beam.Reshuffle()
            | "ReadAndTokenize" >> do.with_outputs(self.FAILED, main="shards")
        )


def _shard_numbers(first: int, end: int) -> Iterator[int]:
    yield from range(first, end)


class _ReadShard(beam.DoFn):
    def __init__(self, output: str, settings: ReadSettings):
        self._output, self._settings = output, settings

    def setup(self):
        self._folder = storage.OutputFolder(self._output)
        self._table = ShardTable(Plan.from_json(json.loads(self._folder.read(storage.MANIFEST))["plan"]))
        self._tokenizer = load_tokenizer(self._settings.tokenizer)

    def process(self, shard: int):
        work, settings = self._table[shard], self._settings
        try:
            attempt = attempts.begin(self._folder, work, settings.launch)
            tokenized = read_shard(
                work,
                settings.fields,
                self._tokenizer,
                prefix=settings.prefix,
                eos_id=settings.eos_id,
                max_input_tokens=settings.max_input_tokens,
                attempt=attempt,
            )
        except Exception as error:  # the shard is set aside, the others go on
            failure = records.shard_failure(shard, records.READ, error)
            attempts.set_aside(self._folder, work.shard, work.num_shards, failure)
            yield beam.pvalue.TaggedOutput(ReadShards.FAILED, failure)
            return
        Metrics.counter("specbeam", "examples_read").inc(len(tokenized.examples))
        Metrics.counter("specbeam", "examples_truncated").inc(sum(e.truncated for e in tokenized.examples))
        for error in tokenized.errors:
            Metrics.counter("specbeam", f"errors_{error.stage}").inc()
        yield tokenized
