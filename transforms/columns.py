"""The columns of parts, described once: schema, meaning in data sets, and, compared by tests, the tables of the docs."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a part: its name, its type, what it means in one line, and whether a value may be missing."""

    name: str
    type: pa.DataType
    meaning: str
    nullable: bool = False


_TOKENS, _FLOATS, _COUNTS = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.int16())
_ROW = (
    Column("example_id", pa.string(), "id of the input, from the data"),
    Column("shard", pa.int32(), "work shard of the run"),
    Column("index", pa.int64(), "number of the record in the whole input"),
)
_SAMPLE = Column("sample", pa.int32(), "number of the text among those of the example, from 0")
_INPUT_TOKENS = Column("input_tokens", _TOKENS, "tokens of the input, EOS included")
_TARGET_LOGPROB = Column("target_logprob", _FLOATS, "per token: log-probability under the raw target at temperature 1")

GENERATIONS = (
    *_ROW,
    _SAMPLE,
    Column("inputs", pa.string(), "text that was read"),
    Column("targets", pa.string(), "reference, empty where there is none", nullable=True),
    Column("prediction", pa.string(), "generated text"),
    _INPUT_TOKENS,
    Column("output_tokens", _TOKENS, "generated tokens, EOS included where reached"),
    Column("finish_reason", pa.string(), "eos or length"),
    Column("input_truncated", pa.bool_(), "the input was longer than the last of decoding.input_buckets and cut"),
    Column("source", pa.list_(pa.int8()),
           "per token: 0 the target's choice after a rejection, 1 accepted draft, 2 bonus, 3 plain step"),
    Column("iteration", _TOKENS, "per token: the target call, from 0, that emitted it"),
    Column("beta", _FLOATS, "per token: sum of min(p, q) where a draft distribution was examined, else NaN"),
    _TARGET_LOGPROB,
    Column("draft_logprob", _FLOATS,
           "per token: log-probability under the raw draft at temperature 1, NaN where nothing was drafted"),
    Column("gammas", _COUNTS, "per target call: tokens drafted"),
    Column("accepted", _COUNTS, "per target call: drafted tokens that were accepted and emitted"),
    Column("num_iterations", pa.int32(), "target calls"),
    Column("decode_seconds", pa.float32(), "seconds from entering a slot to leaving it, shared with the other slots"),
)  # fmt: skip
"""Of generations/part-*.parquet: the rows of one example's samples are adjacent, in sample order."""

ORIGINS = (
    Column("origin", pa.list_(pa.int8()),
           "per target call: where guesses came from, -1 nowhere, 0 a model, 1 the output, 2 the input, 3 a hint, 4 an index",
           nullable=True),
    Column("match", _COUNTS, "per target call: how many of the tokens before its guesses stood where these came from",
           nullable=True),
)  # fmt: skip
"""Those that come behind where the draft copies."""

BEAMS = (
    Column("score", pa.float32(), "of the text: its log-probability with the length penalty of the search"),
    Column("steps", pa.list_(pa.int8()),
           "per step of the search, also beyond the text's end: 1 all beams that run on had been drafted, else as in source"),
)  # fmt: skip
"""Those that come behind with decoding.num_beams above 1; samples are then the texts of one search, the best first."""

_SCORES = (
    *_ROW,
    _SAMPLE,
    _INPUT_TOKENS,
    Column("tokens", _TOKENS, "tokens of the scored text, EOS included where reached"),
    Column("text_truncated", pa.bool_(), "the text was longer than decoding.max_decode_tokens and cut"),
    _TARGET_LOGPROB,
    Column("target_entropy", _FLOATS, "per token: entropy of the target's standardised distribution p in nats"),
)
_SCORES_OF_DRAFT = (
    Column("beta_{}", _FLOATS, "per token: sum of min(p, q), NaN where the draft {} proposes nothing"),
    Column("draft_logprob_{}", _FLOATS,
           "per token: log-probability under the raw draft {} at temperature 1, NaN where it proposes nothing"),
    Column("draft_entropy_{}", _FLOATS, "per token: entropy of the standardised distribution q of the draft {} in nats"),
    Column("argmax_agrees_{}", pa.list_(pa.bool_()), "per token: target and draft {} have the same most likely token"),
    Column("lenient_beta_{}", pa.list_(_FLOATS), "per token and lenience l: sum of min(p / l, q), for the draft {}"),
)  # fmt: skip


def score_columns(drafts: Sequence[str], lenient: bool) -> tuple[Column, ...]:
    """Of scores/part-*.parquet, with those of every draft; `lenient` where there are values of lenience."""
    of_draft = _SCORES_OF_DRAFT if lenient else _SCORES_OF_DRAFT[:-1]
    return _SCORES + tuple(
        dataclasses.replace(column, name=column.name.format(draft), meaning=column.meaning.format(draft))
        for draft in drafts
        for column in of_draft
    )


def schema(columns: Iterable[Column]) -> pa.Schema:
    return pa.schema([pa.field(column.name, column.type, nullable=column.nullable) for column in columns])


def meaning(name: str) -> str:
    """What a column of a generations or score part means, in one line."""
    for column in (*GENERATIONS, *ORIGINS, *BEAMS, *_SCORES):
        if column.name == name:
            return column.meaning
    prefixes = {column.name.removesuffix("{}"): column for column in _SCORES_OF_DRAFT}
    prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len)
    return prefixes[prefix].meaning.format(name.removeprefix(prefix))


def table(columns: Iterable[Column], values: Mapping[str, Sequence]) -> pa.Table:
    """Rows, given by column."""
    fields = schema(columns)
    return pa.Table.from_arrays([pa.array(values[field.name], field.type) for field in fields], schema=fields)
