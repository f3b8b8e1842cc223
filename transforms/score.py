"""Scoring as Beam transforms: texts of one shard in, one Parquet object of their scores out.

The texts are a part of a generations folder, or the references of a work shard. A shard stays together, as in
generation; the models are loaded once per process.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

import decoding
from decoding.scoring import Scorer, TextScores
from transforms import records, storage
from transforms.models import Models
from transforms.parts import read_rows
from transforms.records import ExampleError, ShardFailure, TokenizedShard
from transforms.shards import ShardHandler
from transforms.storage import OutputFolder
from transforms.tokenize import encode_start, load_tokenizer

SCORE = "score"  # a stage, beside those of transforms.records


@dataclasses.dataclass(frozen=True)
class Text:
    """What is scored.

    Attributes:
      example_id, index: of the input that it belongs to.
      sample: its number among the texts of that input, from 0.
      input_tokens: int32[n].
      tokens: int32[T], EOS included where reached.
      truncated: whether it was cut.
      recorded_beta: float32[T] as generation recorded it, None for references.
      place, record: for errors/.
    """

    example_id: str
    index: int
    sample: int
    input_tokens: np.ndarray
    tokens: np.ndarray
    truncated: bool = False
    recorded_beta: np.ndarray | None = None
    place: str = ""
    record: str = ""


@dataclasses.dataclass(frozen=True)
class TextShard:
    """The texts of a shard, and those of its records that yielded none."""

    shard: int
    num_shards: int
    attempt: int
    texts: tuple[Text, ...]
    errors: tuple[ExampleError, ...] = ()


@dataclasses.dataclass(frozen=True)
class ScoredShard:
    """A `TextShard` with the scores of its texts; texts that cannot be scored have become errors.

    Attributes:
      texts: what was scored.
      scores: one per text.
      seconds, compilations, device: of scoring.
      failure: set where the shard as a whole failed; `scores` are then of no use.
      compiled: as of `ShardResult`.
    """

    texts: TextShard
    scores: tuple[TextScores, ...]
    seconds: float
    compilations: int
    device: str
    failure: ShardFailure | None = None
    compiled: int = 0

    @property
    def place(self) -> TextShard:
        return self.texts


# Reading.


class ReadGenerations:
    """A `ShardReader` of the parts of a generations folder: `TextShard`s of the same numbers."""

    def __init__(self, generations: str, *, fingerprint: str, num_shards: int):
        """The folder, and of what run it is."""
        self._generations, self._fingerprint, self.num_shards = OutputFolder(generations), fingerprint, num_shards

    def setup(self, folder: OutputFolder) -> None:
        pass

    def read(self, shard: int, attempt: int) -> TextShard:
        path = self._generations.path(storage.part_name(shard, self.num_shards))
        return TextShard(shard, self.num_shards, attempt, tuple(read_part(path, self._fingerprint)))


def read_part(path: str, fingerprint: str) -> list[Text]:
    """The texts of a committed part of a generations folder, in its order.

    Raises:
      PartError: the part is damaged, or of another run than the one with this fingerprint.
    """
    columns = ["example_id", "index", "input_tokens", "output_tokens", "beta"]
    table = read_rows(path, columns, fingerprint)
    seen, texts = collections.Counter(), []
    ids, indices = table["example_id"].to_pylist(), table["index"].to_pylist()
    arrays = (_arrays(table[name]) for name in columns[2:])
    for example_id, index, given, tokens, beta in zip(ids, indices, *arrays):
        texts.append(Text(example_id, index, seen[example_id], given, tokens, recorded_beta=beta))
        seen[example_id] += 1
    return texts


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Rows of a list column, in NumPy."""
    return [row.values.to_numpy(zero_copy_only=False) for row in column]


class NoReference(ValueError):
    """A record that has no text to score; its name is in errors/."""


class References(beam.DoFn):
    """`TokenizedShard`s to `TextShard`s of their references; records without one become errors."""

    def __init__(self, tokenizer: str, *, eos_id: int, max_tokens: int):
        """
        Args:
          tokenizer: path of the target's.
          eos_id: ends every text that is not cut.
          max_tokens: longest text; longer ones are cut and flagged.
        """
        self._tokenizer_path, self._eos_id, self._max_tokens = tokenizer, eos_id, max_tokens

    def setup(self):
        self._tokenizer = load_tokenizer(self._tokenizer_path)

    def process(self, tokenized: TokenizedShard):
        texts, errors = [], list(tokenized.errors)
        for example in tokenized.examples:
            try:
                if not (example.targets or "").strip():
                    raise NoReference("the record has no reference, or an empty one")
                tokens, whole = encode_start(self._tokenizer, example.targets, self._max_tokens)
                tokens = [*tokens, *([self._eos_id] if whole else [])]
            except Exception as error:  # whatever a tokeniser's library raises concerns this record only
                errors.append(records.failure_of(example, records.TOKENIZE, type(error).__name__, str(error)))
                continue
            cut = np.asarray(tokens[: self._max_tokens], np.int32)
            truncated = not whole or len(cut) < len(tokens)
            texts.append(
                Text(
                    example_id=example.example_id,
                    index=example.index,
                    sample=0,
                    input_tokens=example.tokens,
                    tokens=cut,
                    truncated=truncated,
                    place=example.place,
                    record=example.record,
                )
            )
        work = tokenized.work
        yield TextShard(work.shard, work.num_shards, tokenized.attempt, tuple(texts), tuple(errors))


# Scoring.


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """Everything that determines scores.

    Attributes:
      models: the target; its own draft plays no part.
      drafts: (name, what `decoding.load_draft` takes) in the order of the output.
      config: its sampling method, input_buckets and max_decode_tokens.
      lenience, batch_tokens: as of `Scorer`.
    """

    models: Models
    drafts: tuple[tuple[str, str], ...]
    config: decoding.DecodingConfig
    lenience: tuple[float, ...] = ()
    batch_tokens: int = 512

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.drafts)


ScorerFactory = Callable[[ScoreSettings], Scorer]


_status = logging.getLogger("specbeam.status")  # what a launcher in this process shows


def load_scorer(settings: ScoreSettings) -> Scorer:
    """Loads the models and compiles their programs, or finds them compiled by an earlier process on this machine."""
    decoding.keep_programs()
    _status.info("loading the models")
    models = settings.models
    target = models.load_target()
    drafts = {name: models.load_draft(draft) for name, draft in settings.drafts}
    return Scorer(
        target,
        drafts,
        settings.config,
        lenience=settings.lenience,
        batch_tokens=settings.batch_tokens,
        vocab_size=models.vocab_size,
    )


class ScoreModelHandler(ShardHandler):
    """`TextShard`s in, `ScoredShard`s out."""

    def __init__(self, settings: ScoreSettings, factory: ScorerFactory | None = None, **options: Any):
        """`factory` builds the scorer in the worker, in place of `load_scorer`; options are those of `DeviceHandler`."""
        super().__init__(**options)
        self._settings, self._factory = settings, factory or load_scorer

    def load(self) -> Scorer:
        scorer = self._factory(self._settings)
        _status.info("scoring")
        return scorer

    def run(self, shard: TextShard, model: Scorer) -> ScoredShard:
        return score_shard(model, shard, self._settings.models.device())

    def num_bytes(self, shard: TextShard) -> int:
        return sum(text.tokens.nbytes + text.input_tokens.nbytes for text in shard.texts)


def score_shard(scorer: Scorer, shard: TextShard, device: str) -> ScoredShard:
    """Scores a shard. Texts that cannot be scored become errors; what fails all the same fails the shard."""
    texts, errors = [], list(shard.errors)

    def set_aside(text: Text, error_type: str, message: str) -> None:
        errors.append(records.failure_of(text, SCORE, error_type, message))

    for text in shard.texts:
        if problem := scorer.problem(text.input_tokens, text.tokens):
            set_aside(text, "NotScorable", problem)
        else:
            texts.append(text)
    started, compiled = time.perf_counter(), scorer.compilations()
    scores, failure = [], None
    try:
        scores = scorer.score([text.input_tokens for text in texts], [text.tokens for text in texts])
    except decoding.NonFiniteLogits as error:
        for i, whose in error.faults.items():
            set_aside(texts[i], type(error).__name__, error.of(whose))
        texts = [text for i, text in enumerate(texts) if i not in error.faults]
        scores = [one for one in error.results if one is not None]
    except Exception as error:
        logging.getLogger(__name__).warning("shard %d failed: %s", shard.shard, error)
        failure = records.shard_failure(shard.shard, SCORE, error)
    Metrics.counter("specbeam", "texts_scored").inc(len(scores))
    Metrics.counter("specbeam", "tokens_scored").inc(sum(len(text.tokens) for text in texts) if scores else 0)
    shard = dataclasses.replace(shard, texts=tuple(texts), errors=tuple(sorted(errors, key=lambda e: e.index)))
    seconds, compilations = time.perf_counter() - started, scorer.compilations() - compiled
    return ScoredShard(shard, tuple(scores), seconds, compilations, device, failure)
