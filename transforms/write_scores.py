"""Committing scores: a shard's errors first, then one Parquet object that is created once and carries its statistics."""

import collections
from collections.abc import Sequence

import apache_beam as beam
import pyarrow as pa

from transforms import storage
from transforms.parts import Footer, encode_table
from transforms.score import ScoredShard, ScoreSettings
from transforms.score_statistics import ScoredText, score_statistics
from transforms.storage import OutputFolder
from transforms.write import CommitShards, encode_errors, errors_digest, settle

PER_DRAFT = {
    "beta": pa.list_(pa.float32()),
    "draft_logprob": pa.list_(pa.float32()),
    "draft_entropy": pa.list_(pa.float32()),
    "argmax_agrees": pa.list_(pa.bool_()),
    "lenient_beta": pa.list_(pa.list_(pa.float32())),
}
"""What there is of every draft, in columns `<key>_<draft>`."""


def schema(drafts: Sequence[str], lenience: Sequence[float]) -> pa.Schema:
    """The columns of scores/part-*.parquet: see docs/alpha_datasets.md."""
    kinds = {name: kind for name, kind in PER_DRAFT.items() if lenience or name != "lenient_beta"}
    return pa.schema(
        [
            pa.field("example_id", pa.string(), nullable=False),
            pa.field("shard", pa.int32(), nullable=False),
            pa.field("index", pa.int64(), nullable=False),
            pa.field("sample", pa.int32(), nullable=False),
            pa.field("input_tokens", pa.list_(pa.int32()), nullable=False),
            pa.field("tokens", pa.list_(pa.int32()), nullable=False),
            pa.field("text_truncated", pa.bool_(), nullable=False),
            pa.field("target_logprob", pa.list_(pa.float32()), nullable=False),
            pa.field("target_entropy", pa.list_(pa.float32()), nullable=False),
            *(pa.field(f"{name}_{draft}", kind, nullable=False) for draft in drafts for name, kind in kinds.items()),
        ]
    )


def encode_scores(scored: ScoredShard, footer: Footer, drafts: Sequence[str], lenience: Sequence[float]) -> bytes:
    """A Parquet file of a shard's rows. Equal rows and footers give equal bytes."""
    texts, scores = scored.texts.texts, scored.scores
    columns = {
        "example_id": [text.example_id for text in texts],
        "shard": [scored.texts.shard] * len(texts),
        "index": [text.index for text in texts],
        "sample": [text.sample for text in texts],
        "input_tokens": [text.input_tokens for text in texts],
        "tokens": [text.tokens for text in texts],
        "text_truncated": [text.truncated for text in texts],
        "target_logprob": [one.target_logprob for one in scores],
        "target_entropy": [one.target_entropy for one in scores],
    }
    for draft in drafts:
        of_draft = [one.drafts[draft] for one in scores]
        columns |= {
            f"beta_{draft}": [one.beta for one in of_draft],
            f"draft_logprob_{draft}": [one.logprob for one in of_draft],
            f"draft_entropy_{draft}": [one.entropy for one in of_draft],
            f"argmax_agrees_{draft}": [one.argmax_agrees for one in of_draft],
            f"lenient_beta_{draft}": [list(one.lenient_beta) for one in of_draft],
        }
    fields = schema(drafts, lenience)
    table = pa.Table.from_arrays([pa.array(columns[field.name], field.type) for field in fields], schema=fields)
    return encode_table(table, footer)


class CommitScores(beam.PTransform):
    """`ScoredShard`s to the numbers of committed shards; failed ones go to the output `FAILED` as `ShardFailure`s."""

    FAILED = CommitShards.FAILED

    def __init__(self, output: str, settings: ScoreSettings, *, fingerprint: str, recorded: str | None):
        """
        Args:
          output, fingerprint: of the run.
          settings: what was scored.
          recorded: the draft whose β the generations record, None where there is none.
        """
        super().__init__()
        self._do = _CommitScores(output, settings, fingerprint, recorded)

    def expand(self, shards):
        return shards | beam.ParDo(self._do).with_outputs(self.FAILED, main="committed")


class _CommitScores(beam.DoFn):
    def __init__(self, output: str, settings: ScoreSettings, fingerprint: str, recorded: str | None):
        self._folder, self._settings = OutputFolder(output), settings
        self._fingerprint, self._recorded = fingerprint, recorded

    def process(self, scored: ScoredShard):
        commit = lambda: commit_scores(self._folder, scored, self._settings, self._fingerprint, self._recorded)
        yield settle(self._folder, scored.texts, scored.failure, commit)


def commit_scores(
    folder: OutputFolder, scored: ScoredShard, settings: ScoreSettings, fingerprint: str, recorded: str | None
) -> bool:
    """Writes a shard's errors and part. Returns False where the shard was committed already and nothing was written."""
    shard = scored.texts
    part = storage.part_name(shard.shard, shard.num_shards, storage.SCORES)
    if folder.exists(part):
        return False
    rows = [
        ScoredText(text.example_id, len(text.input_tokens), text.tokens, text.truncated, scores, text.recorded_beta)
        for text, scores in zip(shard.texts, scored.scores, strict=True)
    ]
    errors = collections.Counter(error.stage for error in shard.errors)
    statistics = score_statistics(
        rows, errors, settings.names, settings.lenience,
        recorded=recorded, seconds=scored.seconds, compilations=scored.compilations,
    )  # fmt: skip
    errors_name = storage.errors_name(shard.shard, shard.num_shards)
    if shard.errors:
        folder.put(errors_name, encode_errors(shard.errors))
    else:  # an earlier attempt may have had some
        folder.delete([errors_name])
    footer = Footer(
        shard.shard, fingerprint, shard.attempt, scored.device, statistics, errors_sha256=errors_digest(shard.errors)
    )
    return folder.create(part, encode_scores(scored, footer, settings.names, settings.lenience))
