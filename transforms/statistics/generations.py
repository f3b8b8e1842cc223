"""What a shard's generations add up to, in a form that merges exactly: in any order, over any cutting into shards.

All sums are whole numbers, β in fixed point, so that merging is associative to the last bit and a resumed job reports
exactly what an undisturbed one does (times aside, which are floats).

The interval of α is a Poisson bootstrap over examples: `transforms.statistics.intervals`.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from decoding import Generation
from transforms.records import ExampleError
from transforms.statistics.intervals import INTERVAL, LEVEL, NUM_REPLICATES, estimate, poisson_weights, ratio

ALPHA_DEFINITION = "on policy: mean of sum_x min(p(x), q(x)) over the positions examined in this run"
SOURCES = ("resampled", "accepted", "bonus", "plain")

_FIXED_POINT = 1 << 30
_BLEU_ORDERS = 4


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Sums over generations. `Statistics()` is the neutral element of `merge`.

    Attributes:
      parts: committed shards.
      examples: inputs decoded; generations: sequences decoded, num_samples per input.
      input_tokens, tokens: read and generated, EOS included in both.
      target_calls: iterations, summed over generations.
      draft_proposed, draft_accepted: drafted tokens.
      examined: inputs with a position at which a draft distribution was examined.
      beta_sum: sum of β in units of 2^-30; beta_count: positions examined.
      beta_sums, beta_counts: int[NUM_REPLICATES] each, the same under bootstrap weights.
      sources: tokens by source, int[4], ordered as SOURCES.
      finish_reasons: generations by finish reason.
      truncated: inputs that were cut.
      errors: failed records by stage.
      references: generations that have one.
      bleu_matches, bleu_totals: int[4] n-gram counts; bleu_length, bleu_reference_length: in BLEU's tokens.
      slot_iterations, row_iterations: iterations times slots, and those of them that decoded a row.
      compilations: backend compilations while decoding; 0 unless something is wrong.
      row_seconds: time in a slot, summed over generations; generate_seconds: time that the engine was busy.
    """

    parts: int = 0
    examples: int = 0
    generations: int = 0
    input_tokens: int = 0
    tokens: int = 0
    target_calls: int = 0
    draft_proposed: int = 0
    draft_accepted: int = 0
    examined: int = 0
    beta_sum: int = 0
    beta_count: int = 0
    beta_sums: tuple[int, ...] = (0,) * NUM_REPLICATES
    beta_counts: tuple[int, ...] = (0,) * NUM_REPLICATES
    sources: tuple[int, ...] = (0,) * len(SOURCES)
    finish_reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    truncated: int = 0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    references: int = 0
    bleu_matches: tuple[int, ...] = (0,) * _BLEU_ORDERS
    bleu_totals: tuple[int, ...] = (0,) * _BLEU_ORDERS
    bleu_length: int = 0
    bleu_reference_length: int = 0
    slot_iterations: int = 0
    row_iterations: int = 0
    compilations: int = 0
    row_seconds: float = 0.0
    generate_seconds: float = 0.0

    def merge(self, other: "Statistics") -> "Statistics":
        """The statistics of both sets of generations together."""
        return Statistics(**{name: _add(value, getattr(other, name)) for name, value in vars(self).items()})

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Statistics":
        """Inverse of `to_json`, also after a round through JSON text."""
        known = {"examined": values["examples"], **values}  # the most that it can be, of parts of earlier versions
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())

    def brief(self) -> str:
        """ "α 0.61", "" where no draft distribution was examined: for progress."""
        return f"α {self.beta_sum / self.beta_count / _FIXED_POINT:.3f}" if self.beta_count else ""

    def alpha(self) -> dict | None:
        """α with its interval, None where no draft distribution was examined."""
        sums, counts = (self.beta_sum, *self.beta_sums), (self.beta_count, *self.beta_counts)
        mean = ratio(np.array(sums, np.float64) / _FIXED_POINT, np.array(counts, np.float64))
        if (found := estimate(mean, self.examined, proportion=True)) is None:
            return None
        return {
            **found,
            "level": LEVEL,
            "positions": self.beta_count,
            "definition": ALPHA_DEFINITION,
            "interval": INTERVAL,
        }

    def bleu(self) -> dict | None:
        """Corpus BLEU as sacrebleu computes it, None where there are no references."""
        if not self.references:
            return None
        from sacrebleu.metrics import BLEU

        scorer = BLEU()
        score = scorer.compute_bleu(
            list(self.bleu_matches),
            list(self.bleu_totals),
            self.bleu_length,
            self.bleu_reference_length,
            smooth_method=scorer.smooth_method,
        )
        scorer.corpus_score([""], [[""]])  # the signature states the number of references, known after one score
        return {
            "score": score.score,
            "references": self.references,
            "brevity_penalty": score.bp,
            "signature": str(scorer.get_signature()),
        }

    def summary(self) -> dict:
        """Totals and ratios for summary.json. Ratios whose denominator is 0 are None."""
        return {
            "examples": self.examples,
            "generations": self.generations,
            "input_tokens": self.input_tokens,
            "tokens": self.tokens,
            "target_calls": self.target_calls,
            "target_calls_per_token": _ratio(self.target_calls, self.tokens),
            "tokens_per_target_call": _ratio(self.tokens, self.target_calls),
            "accepted_per_target_call": _ratio(self.draft_accepted, self.target_calls),
            "draft_tokens": {"proposed": self.draft_proposed, "accepted": self.draft_accepted},
            "alpha": self.alpha(),
            "sources": dict(zip(SOURCES, self.sources)),
            "finish_reasons": dict(sorted(self.finish_reasons.items())),
            "truncated_inputs": self.truncated,
            "errors": {"total": self.num_errors, **dict(sorted(self.errors.items()))},
            "bleu": self.bleu(),
            "slot_occupancy": _ratio(self.row_iterations, self.slot_iterations),
            "compilations": self.compilations,
            "timings": {
                "generate_seconds": self.generate_seconds,
                "row_seconds": self.row_seconds,
                "tokens_per_second": _ratio(self.tokens, self.generate_seconds),
            },
        }


def _add(a, b):
    if isinstance(a, dict):
        return dict(sorted((collections.Counter(a) + collections.Counter(b)).items()))
    if isinstance(a, tuple):
        return tuple(x + y for x, y in zip(a, b))
    return a + b


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


@dataclasses.dataclass(frozen=True)
class DecodedText:
    """One generation as statistics need it: of which example, its text, and the example's reference, if any."""

    example_id: str
    generation: Generation
    prediction: str
    targets: str | None


def shard_statistics(
    decoded: Sequence[DecodedText],
    errors: Iterable[ExampleError],
    *,
    num_examples: int,
    input_tokens: int,
    truncated: int,
) -> Statistics:
    """Statistics of one shard, its engine's counters and times aside.

    Args:
      decoded: its generations.
      errors: its failed records.
      num_examples, input_tokens, truncated: of the inputs that were decoded.
    """
    beta_sums, beta_counts = np.zeros((2, NUM_REPLICATES), np.int64)
    sources = np.zeros(len(SOURCES), np.int64)
    ids: set[str] = set()  # with positions that were examined
    beta_sum = beta_count = proposed = accepted = tokens = calls = 0
    for one in decoded:
        generation = one.generation
        examined = generation.beta[~np.isnan(generation.beta)].astype(np.float64)
        row_sum = int(np.rint(examined * _FIXED_POINT).astype(np.int64).sum())
        weights = poisson_weights(one.example_id)
        beta_sums += weights * row_sum
        beta_counts += weights * len(examined)
        if len(examined):
            ids.add(one.example_id)
        beta_sum, beta_count = beta_sum + row_sum, beta_count + len(examined)
        sources += np.bincount(generation.source, minlength=len(SOURCES))
        proposed += int(generation.gammas.sum())
        accepted += int(generation.accepted.sum())
        tokens += len(generation.tokens)
        calls += generation.target_calls
    return Statistics(
        parts=1,
        examples=num_examples,
        generations=len(decoded),
        input_tokens=input_tokens,
        tokens=tokens,
        target_calls=calls,
        draft_proposed=proposed,
        draft_accepted=accepted,
        examined=len(ids),
        beta_sum=beta_sum,
        beta_count=beta_count,
        beta_sums=tuple(beta_sums.tolist()),
        beta_counts=tuple(beta_counts.tolist()),
        sources=tuple(sources.tolist()),
        finish_reasons=dict(collections.Counter(one.generation.finish_reason for one in decoded)),
        truncated=truncated,
        errors=dict(collections.Counter(error.stage for error in errors)),
        row_seconds=float(sum(one.generation.decode_seconds for one in decoded)),
        **_bleu_counts([(one.prediction, one.targets) for one in decoded if one.targets is not None]),
    )


def _bleu_counts(pairs: Sequence[tuple[str, str]]) -> dict:
    """BLEU's sufficient statistics of (prediction, reference) pairs: they add up over shards to the corpus's."""
    if not pairs:
        return {}
    from sacrebleu.metrics import BLEU

    predictions, references = map(list, zip(*pairs))
    scorer = BLEU()
    score = scorer.corpus_score(predictions, [references])
    for tokenizer in (scorer.tokenizer, getattr(scorer.tokenizer, "_post_tokenizer", None)):
        # Each remembers 65,536 sentences, for as long as the process lives.
        getattr(type(tokenizer).__call__, "cache_clear", lambda: None)()
    return {
        "references": len(pairs),
        "bleu_matches": tuple(int(n) for n in score.counts),
        "bleu_totals": tuple(int(n) for n in score.totals),
        "bleu_length": int(score.sys_len),
        "bleu_reference_length": int(score.ref_len),
    }
