"""Committing a work shard: its errors first, then one Parquet object that is created once and carries its statistics.

A shard is finished when its Parquet object exists. The object is made by one atomic `create`, so whatever happens
before leaves nothing behind that counts, and a second worker with the same shard changes nothing.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from decoding import Generation
from transforms import attempts, records, storage
from transforms.aggregate import DecodedText, Statistics, shard_statistics
from transforms.decode import DecodedShard, DecodeFailure
from transforms.parts import Footer, encode_table, read_footer  # noqa: F401  (whoever commits parts reads their footers)
from transforms.records import Example, ExampleError, ShardFailure, WorkShard
from transforms.storage import OutputFolder
from transforms.tokenize import Tokenizer, load_tokenizer

SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("inputs", pa.string(), nullable=False),
        pa.field("targets", pa.string()),
        pa.field("prediction", pa.string(), nullable=False),
        pa.field("input_tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("output_tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("input_truncated", pa.bool_(), nullable=False),
        pa.field("source", pa.list_(pa.int8()), nullable=False),
        pa.field("iteration", pa.list_(pa.int32()), nullable=False),
        pa.field("beta", pa.list_(pa.float32()), nullable=False),
        pa.field("target_logprob", pa.list_(pa.float32()), nullable=False),
        pa.field("draft_logprob", pa.list_(pa.float32()), nullable=False),
        pa.field("gammas", pa.list_(pa.int16()), nullable=False),
        pa.field("accepted", pa.list_(pa.int16()), nullable=False),
        pa.field("num_iterations", pa.int32(), nullable=False),
        pa.field("decode_seconds", pa.float32(), nullable=False),
    ]
)
"""The columns of generations/part-*.parquet: `index` is the record's number in the whole input, and the rows of one
example's samples are adjacent, in sample order. Per token: output_tokens to draft_logprob. Per iteration: gammas,
accepted."""

@dataclasses.dataclass(frozen=True)
class Row:
    """One generation with the example it is of, which of the example's samples it is, and its text."""

    example: Example
    sample: int
    generation: Generation
    prediction: str


def rows_and_errors(shard: DecodedShard, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> tuple[list[Row], list[ExampleError]]:
    """All of a shard's rows, and its failed records of every stage, both in input order."""
    rows, errors = [], list(shard.tokenized.errors)
    for example, result in zip(shard.tokenized.examples, shard.results, strict=True):
        if not isinstance(result, DecodeFailure):
            try:
                rows += [
                    Row(example, sample, generation, _text(generation, tokenizer, eos_ids))
                    for sample, generation in enumerate(result)
                ]
                continue
            except Exception as error:  # whatever a tokeniser's library raises concerns this example only
                result = DecodeFailure(type(error).__name__, str(error))
        errors.append(
            records.example_error(
                example.example_id, example.index, records.DECODE, result.error_type, result.message,
                example.place, example.record,
            )
        )  # fmt: skip
    return rows, sorted(errors, key=lambda error: error.index)


def _text(generation: Generation, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> str:
    tokens = generation.tokens
    if len(tokens) and tokens[-1] in eos_ids:
        tokens = tokens[:-1]
    return tokenizer.decode(tokens.tolist())


def encode_part(rows: Sequence[Row], footer: Footer) -> bytes:
    """A Parquet file of `rows`. Equal rows and footers give equal bytes."""

    def column(field: pa.Field) -> pa.Array:
        return pa.array([_value(row, field.name, footer.shard) for row in rows], field.type)

    return encode_table(pa.Table.from_arrays([column(field) for field in SCHEMA], schema=SCHEMA), footer)


def _value(row: Row, column: str, shard: int):
    example, generation = row.example, row.generation
    match column:
        case "example_id" | "index" | "inputs" | "targets":
            return getattr(example, column)
        case "shard":
            return shard
        case "sample" | "prediction":
            return getattr(row, column)
        case "input_tokens":
            return example.tokens
        case "output_tokens":
            return generation.tokens
        case "input_truncated":
            return example.truncated
        case _:
            return getattr(generation, column)


def encode_errors(errors: Sequence[ExampleError]) -> bytes:
    """JSON lines, one per failed record."""
    lines = "".join(json.dumps(dataclasses.asdict(error), ensure_ascii=False) + "\n" for error in errors)
    return lines.encode(errors="backslashreplace")  # half a surrogate pair, of which this is JSON's form


def errors_digest(errors: Sequence[ExampleError]) -> str:
    """SHA-256 of a shard's file in errors/, "" where there are none and so no file."""
    return hashlib.sha256(encode_errors(errors)).hexdigest() if errors else ""


def commit_shard(
    folder: OutputFolder, shard: DecodedShard, tokenizer: Tokenizer, *, eos_ids: Sequence[int], fingerprint: str
) -> bool:
    """Writes a shard's errors and part. Returns False where the shard was committed already and nothing was written."""
    work = shard.tokenized.work
    part = storage.part_name(work.shard, work.num_shards)
    if folder.exists(part):
        return False
    rows, errors = rows_and_errors(shard, tokenizer, eos_ids)
    decoded = list({row.example.example_id: row.example for row in rows}.values())
    statistics = shard_statistics(
        [DecodedText(row.example.example_id, row.generation, row.prediction, row.example.targets) for row in rows],
        errors,
        num_examples=len(decoded),
        input_tokens=sum(len(example.tokens) for example in decoded),
        truncated=sum(example.truncated for example in decoded),
    ).merge(Statistics(**dataclasses.asdict(shard.counters)))
    errors_name = storage.errors_name(work.shard, work.num_shards)
    if errors:
        folder.put(errors_name, encode_errors(errors))
    else:  # an earlier attempt may have had some
        folder.delete([errors_name])
    footer = Footer(
        work.shard, fingerprint, shard.tokenized.attempt, shard.device, statistics, shard.baseline, errors_digest(errors)
    )
    won = folder.create(part, encode_part(rows, footer))
    if won:  # with tokens_generated: α so far on the runner's own page
        Metrics.counter("specbeam", "positions_examined").inc(statistics.beta_count)
        Metrics.counter("specbeam", "beta_sum_millionths").inc(statistics.beta_sum * 10**6 >> 30)
        Metrics.counter("specbeam", "errors_decode").inc(statistics.errors.get(records.DECODE, 0))
    return won


class CommitShards(beam.PTransform):
    """`DecodedShard`s to the numbers of committed shards; failed ones go to the output `FAILED` as `ShardFailure`s."""

    FAILED = "failed"

    def __init__(self, output: str, *, tokenizer: str, eos_ids: Sequence[int], fingerprint: str):
        super().__init__()
        self._do = _CommitShard(output, tokenizer, eos_ids, fingerprint)

    def expand(self, shards):
        return shards | beam.ParDo(self._do).with_outputs(self.FAILED, main="committed")


class _CommitShard(beam.DoFn):
    def __init__(self, output: str, tokenizer: str, eos_ids: Sequence[int], fingerprint: str):
        self._output, self._tokenizer_path, self._eos_ids, self._fingerprint = output, tokenizer, eos_ids, fingerprint

    def setup(self):
        self._folder = OutputFolder(self._output)
        self._tokenizer = load_tokenizer(self._tokenizer_path)

    def process(self, shard: DecodedShard):
        commit = lambda: commit_shard(
            self._folder, shard, self._tokenizer, eos_ids=self._eos_ids, fingerprint=self._fingerprint
        )
        yield settle(self._folder, shard.tokenized.work, shard.failure, commit)


def settle(
    folder: OutputFolder, work: WorkShard, failure: ShardFailure | None, commit: Callable[[], bool]
) -> int | beam.pvalue.TaggedOutput:
    """Commits a shard that has not failed. Returns its number or, for `CommitShards.FAILED`, its `ShardFailure`.

    Args:
      folder: of the run.
      work: the shard.
      failure: why it failed before, if it did; it is set aside then.
      commit: writes it, and returns whether it was not committed already.
    """
    won = False
    if failure is None:
        try:
            won = commit()
            attempts.end(folder, work)
        except Exception as error:  # the shard is set aside, the others go on
            failure = records.shard_failure(work.shard, records.COMMIT, error)
    if failure is not None:
        attempts.set_aside(folder, work.shard, work.num_shards, failure)
        return beam.pvalue.TaggedOutput(CommitShards.FAILED, failure)
    Metrics.counter("specbeam", "shards_committed" if won else "shards_committed_twice").inc()
    return work.shard
