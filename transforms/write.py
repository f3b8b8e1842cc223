"""Generations as parts: a decoded shard's rows with their texts, its errors, and its statistics."""

import dataclasses
from collections.abc import Sequence

import pyarrow as pa
from apache_beam.metrics import Metrics

from decoding import Generation
from transforms import columns, records
from transforms.decode import DecodedShard, DecodeFailure
from transforms.parts import Footer, read_footer  # noqa: F401  scripts know it by this module
from transforms.records import Example, ExampleError
from transforms.shards import FinishedShard
from transforms.statistics.generations import DecodedText, Statistics, shard_statistics
from transforms.tokenize import Tokenizer, load_tokenizer


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
        errors.append(records.failure_of(example, records.DECODE, result.error_type, result.message))
    return rows, sorted(errors, key=lambda error: error.index)


def _text(generation: Generation, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> str:
    tokens = generation.tokens
    if len(tokens) and tokens[-1] in eos_ids:
        tokens = tokens[:-1]
    return tokenizer.decode(tokens.tolist())


def rows_table(rows: Sequence[Row], shard: int, more: Sequence[columns.Column] = ()) -> pa.Table:
    """The rows as they are in the part of a shard; `more` as of `WriteGenerations`."""
    kinds = (*columns.GENERATIONS, *more)
    values = {
        "shard": [shard] * len(rows),
        "sample": [row.sample for row in rows],
        "prediction": [row.prediction for row in rows],
        "input_tokens": [row.example.tokens for row in rows],
        "output_tokens": [row.generation.tokens for row in rows],
        "input_truncated": [row.example.truncated for row in rows],
        **{name: [getattr(row.example, name) for row in rows] for name in ("example_id", "index", "inputs", "targets")},
    }
    others = [column.name for column in kinds if column.name not in values]
    return columns.table(kinds, values | {name: [getattr(row.generation, name) for row in rows] for name in others})


def finish_shard(
    shard: DecodedShard,
    tokenizer: Tokenizer,
    *,
    eos_ids: Sequence[int],
    fingerprint: str,
    more: Sequence[columns.Column] = (),
) -> FinishedShard:
    """What is committed of a shard that was decoded; `more` as of `WriteGenerations`."""
    rows, errors = rows_and_errors(shard, tokenizer, eos_ids)
    decoded = list({row.example.example_id: row.example for row in rows}.values())
    statistics = shard_statistics(
        [DecodedText(row.example.example_id, row.generation, row.prediction, row.example.targets) for row in rows],
        errors,
        num_examples=len(decoded),
        input_tokens=sum(len(example.tokens) for example in decoded),
        truncated=sum(example.truncated for example in decoded),
        hinted=sum(bool(example.hints) for example in decoded),
        hints_cut=sum(example.hints_cut for example in decoded),
    ).merge(Statistics(compiled=shard.compiled, **dataclasses.asdict(shard.counters)))
    number = shard.place.shard
    footer = Footer(
        shard=number,
        fingerprint=fingerprint,
        attempt=shard.tokenized.attempt,
        device=shard.device,
        statistics=statistics,
        baseline=shard.baseline,
    )
    return FinishedShard(rows_table(rows, number, more), footer, errors)


class WriteGenerations:
    """A `ShardWriter` of `DecodedShard`s.

    Args:
      tokenizer: file of the target's.
      eos_ids: each ends a generation.
      fingerprint: of the run.
      more: columns that parts have beside `columns.GENERATIONS`, fields of `Generation`.
    """

    def __init__(self, *, tokenizer: str, eos_ids: Sequence[int], fingerprint: str, more: Sequence[columns.Column] = ()):
        self._path, self._eos_ids, self._fingerprint, self._more = tokenizer, eos_ids, fingerprint, more

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(self._path)

    def finish(self, result: DecodedShard) -> FinishedShard:
        return finish_shard(
            result, self._tokenizer, eos_ids=self._eos_ids, fingerprint=self._fingerprint, more=self._more
        )

    def count(self, footer: Footer) -> None:
        """With tokens_generated: α so far on the runner's own page."""
        statistics = footer.statistics
        Metrics.counter("specbeam", "positions_examined").inc(int(statistics.sums.count("beta#")[0]))
        Metrics.counter("specbeam", "beta_sum_millionths").inc(int(statistics.sums.fraction("beta")[0] * 1e6))
        Metrics.counter("specbeam", "errors_decode").inc(statistics.errors.get(records.DECODE, 0))
