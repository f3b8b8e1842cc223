"""What a shard's generations add up to, in a form that merges exactly: in any order, over any cutting into shards.

A resumed job reports exactly what an undisturbed one does (times aside, which are floats).
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from decoding.config import Generation
from transforms.records import ExampleError
from transforms.statistics import beams
from transforms.statistics.sums import FIXED_BITS, ZEROS, Columns, Sums, Totals, quotient

ALPHA_DEFINITION = "on policy: mean of sum_x min(p(x), q(x)) over the positions examined in this run"
SOURCES = ("resampled", "accepted", "bonus", "plain")

_OF_HINTS = ("hinted", "hints_cut")  # not there where there are none, as in parts of earlier versions
_FOOTER_BITS = 30  # of β in fixed point in a part's footer, which earlier versions of the code have written too
_BLEU_ORDERS = 4


@dataclasses.dataclass(frozen=True)
class Statistics(Totals):
    """Totals of generations.

    Attributes:
      examples: inputs decoded; generations: sequences decoded, num_samples per input.
      input_tokens, tokens: read and generated, EOS included in both.
      target_calls: iterations, summed over generations; of a beam search once, as all that is about its calls.
      draft_proposed, draft_accepted: drafted tokens.
      examined: inputs with a position at which a draft distribution was examined.
      sums: "beta", over the positions examined.
      searches: of beam search, as `transforms.statistics.beams` has them.
      sources: tokens by source, int[4], ordered as SOURCES.
      finish_reasons: generations by finish reason.
      truncated: inputs that were cut.
      hinted: inputs that had a hint; hints_cut: hints that were cut.
      references: generations that have one.
      bleu_matches, bleu_totals: int[4] n-gram counts; bleu_length, bleu_reference_length: in BLEU's tokens.
      slot_iterations, row_iterations: iterations times slots, and those of them that decoded a row.
      compiled: programs that were compiled, those found in JAX's cache aside, when models were loaded or later.
      compilations: backend compilations while decoding; 0 unless something is wrong.
      row_seconds: time in a slot, summed over generations; generate_seconds: time that the engine was busy.
    """

    examples: int = 0
    generations: int = 0
    input_tokens: int = 0
    tokens: int = 0
    target_calls: int = 0
    draft_proposed: int = 0
    draft_accepted: int = 0
    examined: int = 0
    sums: Sums = dataclasses.field(default_factory=Sums)
    searches: Sums = dataclasses.field(default_factory=Sums)
    sources: tuple[int, ...] = (0,) * len(SOURCES)
    finish_reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    truncated: int = 0
    hinted: int = 0
    hints_cut: int = 0
    references: int = 0
    bleu_matches: tuple[int, ...] = (0,) * _BLEU_ORDERS
    bleu_totals: tuple[int, ...] = (0,) * _BLEU_ORDERS
    bleu_length: int = 0
    bleu_reference_length: int = 0
    slot_iterations: int = 0
    row_iterations: int = 0
    compiled: int = 0
    compilations: int = 0
    row_seconds: float = 0.0
    generate_seconds: float = 0.0

    def to_json(self) -> dict:
        counts = self.sums.counts.get("beta#", ZEROS).tolist()
        betas = (self.sums.fractions.get("beta", ZEROS) << _FOOTER_BITS - FIXED_BITS).tolist()
        searches = {"searches": self.searches.to_json()} if self.searches.counts else {}
        nothing = _OF_HINTS if not self.hinted else ()
        return {
            **{name: value for name, value in vars(self).items() if name not in ("sums", "searches", *nothing)},
            **searches,
            "beta_sum": betas[0],
            "beta_count": counts[0],
            "beta_sums": betas[1:],
            "beta_counts": counts[1:],
        }

    @classmethod
    def from_json(cls, values: dict) -> "Statistics":
        """Inverse of `to_json`, also after a round through JSON text."""
        known = {"examined": values["examples"], **values}  # the most that it can be, of parts of earlier versions
        betas, counts = (
            np.array([known.pop(f"beta_{kind}"), *known.pop(f"beta_{kind}s")], np.int64) for kind in ("sum", "count")
        )
        searches = Sums.from_json(known.pop("searches", {"counts": {}, "fractions": {}}))
        finer = 1 << _FOOTER_BITS - FIXED_BITS  # than sums are: by earlier versions every digit was used
        sums = Sums({"beta#": counts}, {"beta": (betas + finer // 2) // finer})
        return cls(sums=sums, searches=searches, **{name: tuple(v) if isinstance(v, list) else v for name, v in known.items()})

    def brief(self) -> str:
        """ "α 0.61", "" where no draft distribution was examined: for progress."""
        mean = self.sums.mean("beta")[0]
        return "" if np.isnan(mean) else f"α {mean:.3f}"

    def alpha(self) -> dict | None:
        """α with its interval, None where no draft distribution was examined."""
        return self.sums.alpha("beta", ALPHA_DEFINITION, examples=self.examined)

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
            "target_calls_per_token": quotient(self.target_calls, self.tokens),
            "tokens_per_target_call": quotient(self.tokens, self.target_calls),
            "accepted_per_target_call": quotient(self.draft_accepted, self.target_calls),
            "draft_tokens": {"proposed": self.draft_proposed, "accepted": self.draft_accepted},
            "alpha": self.alpha(),
            "sources": dict(zip(SOURCES, self.sources)),
            "finish_reasons": dict(sorted(self.finish_reasons.items())),
            "truncated_inputs": self.truncated,
            **({"hints": {"inputs": self.hinted, "cut": self.hints_cut}} if self.hinted else {}),
            "errors": {"total": self.num_errors, **dict(sorted(self.errors.items()))},
            "bleu": self.bleu(),
            **({"beam_search": beams.summary(self.searches)} if self.searches.counts else {}),
            "slot_occupancy": quotient(self.row_iterations, self.slot_iterations),
            "compilations": self.compiled,
            "compilations_while_decoding": self.compilations,
            "timings": {
                "generate_seconds": self.generate_seconds,
                "row_seconds": self.row_seconds,
                "tokens_per_second": quotient(self.tokens, self.generate_seconds),
            },
        }


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
    hinted: int = 0,
    hints_cut: int = 0,
) -> Statistics:
    """Statistics of one shard, its engine's counters and times aside.

    Args:
      decoded: its generations.
      errors: its failed records.
      num_examples, input_tokens, truncated, hinted, hints_cut: of the inputs that were decoded.
    """
    generations = [one.generation for one in decoded]
    joined = lambda field, dtype: np.concatenate([np.zeros(0, dtype), *(getattr(one, field) for one in generations)])
    columns = Columns([one.example_id for one in decoded], np.array([len(one.tokens) for one in generations], np.int64))
    beta = joined("beta", np.float64)
    columns.tokens("beta", beta, ~np.isnan(beta))
    sums = columns.sums()
    first = [i for i, one in enumerate(decoded) if not i or decoded[i - 1].example_id != one.example_id]
    searches = [decoded[i] for i in first if decoded[i].generation.steps is not None]
    # Texts of one search share its calls, and the best of them is its prediction.
    of_calls = [one.generation for one in searches] or generations
    over_calls = lambda field: int(sum(np.sum(getattr(one, field), dtype=np.int64) for one in of_calls))
    examined = int(sums.counts.pop("beta@")[0])
    return Statistics(
        parts=1,
        examples=num_examples,
        generations=len(decoded),
        input_tokens=input_tokens,
        tokens=len(beta),
        target_calls=sum(one.target_calls for one in of_calls),
        draft_proposed=over_calls("gammas"),
        draft_accepted=over_calls("accepted"),
        examined=examined,
        sums=sums,
        searches=beams.sums([one.example_id for one in searches], [one.generation for one in searches]),
        sources=tuple(np.bincount(joined("source", np.int64), minlength=len(SOURCES)).tolist()),
        finish_reasons=dict(collections.Counter(one.finish_reason for one in generations)),
        truncated=truncated,
        hinted=hinted,
        hints_cut=hints_cut,
        errors=dict(collections.Counter(error.stage for error in errors)),
        row_seconds=float(sum(one.decode_seconds for one in generations)),
        **_bleu_counts([(one.prediction, one.targets) for one in searches or decoded if one.targets is not None]),
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
