"""Counting which token follows which, for n-gram drafts: sparse, exact, in any order and over any cutting of the text.

Counts are whole numbers by pair, merged by key, so the fitted model is the same bits on any runner. A text is held out
by the hash of its tokens, so equal texts are never on both sides.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from decoding.drafts.ngram import NGramDraft, pair_codes
from transforms.inputs.base import InputSpec
from transforms.parts import read_rows
from transforms.plan import Plan, ShardTable
from transforms.read import read_shard
from transforms.tokenize import load_tokenizer

# Pairs are dealt into so many keys by their first token.
_GROUPS = 64
# Counts that an accumulator collects before it merges them.
_PENDING = 1 << 20
_NO_LIMIT = 1 << 30

FIT, HELD_OUT = "fit", "held_out"

SparseCounts = tuple[np.ndarray, np.ndarray]
"""(codes, counts), int64[N] each: distinct pairs as in `decoding.drafts.ngram.pair_codes`, increasing."""


def merge_counts(parts: Sequence[SparseCounts]) -> SparseCounts:
    """Adds counts up."""
    codes, counts = (np.concatenate([np.zeros(0, np.int64), *arrays]) for arrays in zip(*parts or [((), ())]))
    order = np.argsort(codes, kind="stable")
    codes, counts = codes[order].astype(np.int64), counts[order].astype(np.int64)
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    return codes[first], np.add.reduceat(counts, first) if len(first) else counts


class MergeCounts(beam.CombineFn):
    """`SparseCounts` to their sum. The accumulator is a list of them, merged when it has grown."""

    def create_accumulator(self) -> list[SparseCounts]:
        return []

    def add_input(self, accumulator, element):
        return self._compact([*accumulator, element])

    def merge_accumulators(self, accumulators):
        return self._compact([part for accumulator in accumulators for part in accumulator])

    def compact(self, accumulator):
        return [merge_counts(accumulator)]

    def extract_output(self, accumulator) -> SparseCounts:
        return merge_counts(accumulator)

    def _compact(self, parts):
        small = len(parts) < 2 or sum(len(codes) for codes, _ in parts[1:]) < max(_PENDING, len(parts[0][0]))
        return parts if small else [merge_counts(parts)]


@dataclasses.dataclass(frozen=True)
class Totals:
    """What was read: texts and tokens that were fitted to and held out, and records that could not be read."""

    texts: int = 0
    tokens: int = 0
    held_out_texts: int = 0
    held_out_tokens: int = 0
    failed: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


def _add_up(totals: Iterable[Totals]) -> Totals:
    return sum(totals, Totals())


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of a shard: (the decoder's input before it, its tokens int32[n]) each, and how many records failed."""

    texts: tuple[tuple[int, np.ndarray], ...]
    failed: int = 0


class ReadTexts(beam.DoFn):
    """Numbers of a plan's shards to `Texts`, each ended by EOS as a generation is."""

    def __init__(self, plan: Plan, spec: InputSpec, tokenizer: str, *, start_id: int, eos_id: int):
        self._plan, self._spec, self._tokenizer_path = plan, spec, tokenizer
        self._start_id, self._eos_id = start_id, eos_id

    def setup(self):
        self._table, self._tokenizer = ShardTable(self._plan), load_tokenizer(self._tokenizer_path)

    def process(self, shard: int):
        read = read_shard(
            self._table[shard], self._spec, self._tokenizer, prefix="", eos_id=self._eos_id, max_input_tokens=_NO_LIMIT
        )
        yield Texts(tuple((self._start_id, example.tokens) for example in read.examples), len(read.errors))


class ReadGenerations(beam.DoFn):
    """Paths of parts of a generations folder to `Texts`.

    Args:
      start_id: what an encoder-decoder model's texts follow; None for decoder-only ones, which follow their prompts.
      fingerprint: of the run whose parts they are.
    """

    def __init__(self, start_id: int | None, fingerprint: str):
        self._start_id, self._fingerprint = start_id, fingerprint

    def process(self, path: str):
        columns = ["output_tokens"] if self._start_id is not None else ["output_tokens", "input_tokens"]
        rows = read_rows(path, columns, self._fingerprint).to_pylist()
        yield Texts(
            tuple(
                (row["input_tokens"][-1] if self._start_id is None else self._start_id, np.asarray(row["output_tokens"]))
                for row in rows
            )
        )


def is_held_out(tokens: np.ndarray, fraction: float) -> bool:
    """Whether a text is among the `fraction` held out: a function of its tokens alone."""
    digest = hashlib.blake2b(np.asarray(tokens, "<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2.0**64


class CountTexts(beam.DoFn):
    """`Texts` to ((FIT or HELD_OUT, group), SparseCounts); `Totals` go to the output TOTALS."""

    TOTALS = "totals"

    def __init__(self, vocab_size: int, held_out: float):
        self._vocab_size, self._held_out = vocab_size, held_out

    def process(self, element: Texts):
        codes: dict[str, list[np.ndarray]] = {FIT: [], HELD_OUT: []}
        for previous, tokens in element.texts:
            side = HELD_OUT if is_held_out(tokens, self._held_out) else FIT
            codes[side].append(pair_codes(previous, tokens, self._vocab_size))
        for side, parts in codes.items():
            distinct, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *parts]), return_counts=True)
            groups = distinct // self._vocab_size % _GROUPS
            for group in np.unique(groups).tolist():
                yield (side, group), (distinct[groups == group], counts[groups == group])
        sizes = [number for side in (FIT, HELD_OUT) for number in (len(codes[side]), sum(map(len, codes[side])))]
        yield beam.pvalue.TaggedOutput(self.TOTALS, Totals(*sizes, element.failed))


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """What is fitted, and where to.

    Attributes:
      output: a directory.
      vocab_size, start_id, eos_id: of the target.
      order, min_count: as of `NGramDraft.from_counts`.
      held_out: share of the texts that is held out.
      about: kept with the model: where its texts come from.
    """

    output: str
    vocab_size: int
    start_id: int
    eos_id: int
    order: int
    min_count: int
    held_out: float
    about: dict[str, Any]


class FitNGram(beam.PTransform):
    """`Texts` to the path of the n-gram fitted to them, written as one file."""

    def __init__(self, settings: FitSettings):
        super().__init__()
        self._settings = settings

    def expand(self, texts):
        count = beam.ParDo(CountTexts(self._settings.vocab_size, self._settings.held_out))
        counted = texts | "Count" >> count.with_outputs(CountTexts.TOTALS, main="pairs")
        pairs = counted.pairs | "Merge" >> beam.CombinePerKey(MergeCounts())
        totals = counted[CountTexts.TOTALS] | "Total" >> beam.CombineGlobally(_add_up)
        return (
            texts.pipeline
            | "Once" >> beam.Create([self._settings])
            | "Fit" >> beam.Map(fit, beam.pvalue.AsList(pairs), beam.pvalue.AsSingleton(totals))
        )


def fit(settings: FitSettings, groups: Sequence[tuple[tuple[str, int], SparseCounts]], totals: Totals) -> str:
    """Fits to merged counts and writes the model.

    Raises:
      ValueError: there is no token to fit to.
    """
    if totals.tokens == 0:
        raise ValueError(f"there is no token to fit to: {totals}")
    sides = {side: merge_counts([counts for (of, _), counts in groups if of == side]) for side in (FIT, HELD_OUT)}
    draft = NGramDraft.from_counts(
        *sides[FIT],
        settings.vocab_size,
        start_id=settings.start_id,
        eos_id=settings.eos_id,
        order=settings.order,
        min_count=settings.min_count,
    )
    codes, counts = sides[HELD_OUT]
    perplexity = float(np.exp(-np.sum(counts * draft.pair_log_probs(codes)) / counts.sum())) if len(codes) else None
    about = {
        **settings.about,
        "order": settings.order,
        "min_count": settings.min_count,
        "held_out": settings.held_out,
        **dataclasses.asdict(totals),
        "distinct_pairs": len(sides[FIT][0]),
        "stored_pairs": len(draft.followers[...]),
        "held_out_perplexity": perplexity,
    }
    draft.save(settings.output, about)
    return settings.output
