"""What a shard's scores add up to: α by draft, exact and mergeable, with its bootstrap replicates."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence

import numpy as np

from transforms.statistics.intervals import LEVEL, estimate
from transforms.statistics.sums import Columns, Sums, Totals, quotient

if typing.TYPE_CHECKING:
    from decoding.scoring import TextScores

ALPHA_DEFINITION = "over the text: mean of sum_x min(p(x), q(x)) over the tokens at which the draft proposes something"


@dataclasses.dataclass(frozen=True)
class ScoreStatistics(Totals):
    """Totals of scored texts.

    Attributes:
      examples, texts: inputs, and their texts; input_tokens, tokens: of both, EOS included.
      truncated_texts: references that were cut.
      sums: by draft, "beta/<draft>", "agreement/<draft>", "lenient/<draft>/<lenience>" and, where the generations record
        it, "recorded/<draft>".
      differences: by draft, largest |β here - recorded β|.
      seconds: that the models were busy.
      compiled: programs that were compiled, those found in JAX's cache aside, when models were loaded or later.
      compilations: backend compilations while scoring; 0 unless something is wrong.
    """

    examples: int = 0
    texts: int = 0
    input_tokens: int = 0
    tokens: int = 0
    truncated_texts: int = 0
    sums: Sums = dataclasses.field(default_factory=Sums)
    differences: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    compiled: int = 0
    compilations: int = 0

    def merge(self, other: ScoreStatistics) -> ScoreStatistics:
        """The totals of both."""
        most = {name: max(one.differences.get(name, 0.0) for one in (self, other))
                for name in self.differences | other.differences}  # fmt: skip
        return dataclasses.replace(super().merge(other), differences=most)

    def to_json(self) -> dict:
        return {**{name: value for name, value in vars(self).items() if name != "sums"}, **self.sums.to_json()}

    @classmethod
    def from_json(cls, values: dict) -> ScoreStatistics:
        """Inverse of `to_json`, also after a round through JSON text."""
        others = {name: value for name, value in values.items() if name not in ("counts", "fractions")}
        return cls(sums=Sums.from_json(values), **others)

    @property
    def drafts(self) -> list[str]:
        return sorted(name.removeprefix("beta/") for name in self.sums.fractions if name.startswith("beta/"))

    def brief(self) -> str:
        """ "α 0.61 small, 0.13 bigram": for progress."""
        means = (f"{self.sums.mean(f'beta/{draft}')[0]:.3f} {draft}" for draft in self.drafts)
        return "α " + ", ".join(means) if self.tokens else ""

    def summary(self) -> dict:
        """Totals and α for summary.json."""
        return {
            "examples": self.examples,
            "texts": self.texts,
            "input_tokens": self.input_tokens,
            "tokens": self.tokens,
            "truncated_texts": self.truncated_texts,
            "errors": {"total": self.num_errors, **self.errors},
            "drafts": {draft: self._of_draft(draft) for draft in self.drafts},
            "compilations": self.compiled,
            "compilations_while_scoring": self.compilations,
            "timings": {"score_seconds": self.seconds, "tokens_per_second": quotient(self.tokens, self.seconds)},
        }

    def _of_draft(self, draft: str) -> dict:
        start = f"lenient/{draft}/"
        lenient = sorted((name.removeprefix(start) for name in self.sums.fractions if name.startswith(start)), key=float)
        return {
            "alpha": self._alpha(f"beta/{draft}", ALPHA_DEFINITION),
            "proposed": quotient(int(self.sums.count(f"beta/{draft}#")[0]), self.tokens),
            "agreement": self._alpha(f"agreement/{draft}", "share of these tokens whose argmaxes agree"),
            "lenient": {
                value: self._alpha(start + value, f"as alpha, under lenience {value} (section A.5)")
                for value in reversed(lenient)
            },
            "on_policy": self._on_policy(draft),
        }

    def _alpha(self, name: str, definition: str) -> dict | None:
        return self.sums.alpha(name, definition, examples=self._having(name))

    def _having(self, name: str) -> int:
        """How many examples have values of that name."""
        return min(int(self.sums.count(name + "@")[0]), self.examples)

    def _on_policy(self, draft: str) -> dict | None:
        recorded = f"recorded/{draft}"
        definition = "on policy: mean of the β that generation recorded over the positions that it examined"
        alpha = self._alpha(recorded, definition)
        if alpha is None:
            return None
        difference = self.sums.mean(f"beta/{draft}") - self.sums.mean(recorded)
        return {
            "alpha": alpha,
            "difference": {
                **estimate(difference, self._having(recorded)),
                "level": LEVEL,
                "definition": "alpha over the text less on policy",
            },
            "beta_max_difference": self.differences.get(draft),
        }


@dataclasses.dataclass(frozen=True)
class ScoredText:
    """A text with its scores, as statistics need it.

    Attributes:
      example_id: texts of one example are adjacent, and drawn together by the bootstrap.
      input_tokens: how many.
      tokens: the text.
      truncated: whether it was cut.
      scores: of the text.
      recorded_beta: float32[T] as generation recorded it, or None.
    """

    example_id: str
    input_tokens: int
    tokens: np.ndarray
    truncated: bool
    scores: TextScores
    recorded_beta: np.ndarray | None = None


def score_statistics(
    scored: Sequence[ScoredText],
    errors: Mapping[str, int],
    drafts: Sequence[str],
    lenience: Sequence[float],
    *,
    recorded: str | None = None,
    seconds: float = 0.0,
    compilations: int = 0,
    compiled: int = 0,
) -> ScoreStatistics:
    """Statistics of one shard.

    Args:
      scored: its texts.
      errors: its failed texts by stage.
      drafts, lenience: what was scored.
      recorded: the draft that the recorded β is of, None where there is none that can be compared.
      seconds, compilations, compiled: of scoring it, as of `ScoreStatistics`.
    """
    ids = [one.example_id for one in scored]
    joined = lambda arrays: np.concatenate([np.zeros(0), *arrays]).astype(np.float64)
    lengths = np.array([len(one.tokens) for one in scored], np.int64)
    columns, differences = Columns(ids, lengths), {}
    for draft in drafts if scored else ():
        of_draft = [one.scores.drafts[draft] for one in scored]
        beta = joined(one.beta for one in of_draft)
        proposed = ~np.isnan(beta)
        columns.tokens(f"beta/{draft}", beta, proposed)
        columns.tokens(f"agreement/{draft}", joined(one.argmax_agrees for one in of_draft), proposed)
        for i, value in enumerate(lenience):
            lenient = joined(one.lenient_beta[:, i] for one in of_draft)
            columns.tokens(f"lenient/{draft}/{value:g}", lenient, proposed)
        if draft == recorded:
            before = joined(one.recorded_beta for one in scored)
            columns.tokens(f"recorded/{draft}", before, ~np.isnan(before))
            both = np.abs(beta - before)[proposed & ~np.isnan(before)]
            differences[draft] = float(both.max(initial=0.0))
    return ScoreStatistics(
        parts=1,
        examples=len(set(ids)),
        texts=len(scored),
        input_tokens=sum(one.input_tokens for one in scored),
        tokens=int(lengths.sum()),
        truncated_texts=sum(one.truncated for one in scored),
        errors=dict(sorted(errors.items())),
        sums=columns.sums(),
        differences=differences,
        seconds=seconds,
        compilations=compilations,
        compiled=compiled,
    )
