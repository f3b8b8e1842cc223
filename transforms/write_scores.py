"""Scores as parts: a scored shard's rows, its errors, and its statistics."""

import collections
from collections.abc import Sequence

import pyarrow as pa

from transforms import columns
from transforms.parts import Footer
from transforms.score import ScoredShard, ScoreSettings
from transforms.shards import FinishedShard
from transforms.statistics.scores import ScoredText, score_statistics


def scores_table(scored: ScoredShard, drafts: Sequence[str], lenience: Sequence[float]) -> pa.Table:
    """The rows as they are in the part of a shard."""
    texts, scores = scored.texts.texts, scored.scores
    values = {
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
        values |= {
            f"beta_{draft}": [one.beta for one in of_draft],
            f"draft_logprob_{draft}": [one.logprob for one in of_draft],
            f"draft_entropy_{draft}": [one.entropy for one in of_draft],
            f"argmax_agrees_{draft}": [one.argmax_agrees for one in of_draft],
            f"lenient_beta_{draft}": [list(one.lenient_beta) for one in of_draft],
        }
    return columns.table(columns.score_columns(drafts, lenient=bool(lenience)), values)


class WriteScores:
    """A `ShardWriter` of `ScoredShard`s."""

    def __init__(self, settings: ScoreSettings, *, fingerprint: str, recorded: str | None):
        """
        Args:
          settings: what was scored.
          fingerprint: of the run.
          recorded: the draft whose β the generations record, None where there is none.
        """
        self._settings, self._fingerprint, self._recorded = settings, fingerprint, recorded

    def setup(self) -> None:
        pass

    def finish(self, result: ScoredShard) -> FinishedShard:
        shard, names, lenience = result.texts, self._settings.names, self._settings.lenience
        rows = [
            ScoredText(text.example_id, len(text.input_tokens), text.tokens, text.truncated, scores, text.recorded_beta)
            for text, scores in zip(shard.texts, result.scores, strict=True)
        ]
        statistics = score_statistics(
            rows,
            collections.Counter(error.stage for error in shard.errors),
            names,
            lenience,
            recorded=self._recorded,
            seconds=result.seconds,
            compilations=result.compilations,
            compiled=result.compiled,
        )
        footer = Footer(
            shard=shard.shard,
            fingerprint=self._fingerprint,
            attempt=shard.attempt,
            device=result.device,
            statistics=statistics,
        )
        return FinishedShard(scores_table(result, names, lenience), footer, shard.errors)

    def count(self, footer: Footer) -> None:
        pass
