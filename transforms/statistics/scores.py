"""What a shard's scores add up to: α by draft, exact and mergeable, with its bootstrap replicates."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from decoding.scoring import TextScores
from transforms.statistics.analysis import Columns, Sums, Texts
from transforms.statistics.intervals import INTERVAL, LEVEL, estimate, ratio

ALPHA_DEFINITION = "over the text: mean of sum_x min(p(x), q(x)) over the tokens at which the draft proposes something"


@dataclasses.dataclass(frozen=True)
class ScoreStatistics:
    """Sums over scored texts. `ScoreStatistics()` is the neutral element of `merge`.

    Attributes:
      parts: committed shards.
      examples, texts: inputs, and their texts; input_tokens, tokens: of both, EOS included.
      truncated_texts: references that were cut.
      errors: texts that could not be scored, by stage.
      counts, fractions: `analysis.Sums`, by draft, as tuples: "beta/<draft>", "agreement/<draft>",
        "lenient/<draft>/<lenience>" and, where the generations record it, "recorded/<draft>".
      differences: by draft, largest |β here - recorded β|.
      seconds: that the models were busy.
      compilations: backend compilations while scoring; 0 unless something is wrong.
    """

    parts: int = 0
    examples: int = 0
    texts: int = 0
    input_tokens: int = 0
    tokens: int = 0
    truncated_texts: int = 0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    fractions: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    differences: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    compilations: int = 0

    def merge(self, other: "ScoreStatistics") -> "ScoreStatistics":
        """The statistics of both sets of texts together."""
        merged = {name: value + getattr(other, name) for name, value in vars(self).items() if isinstance(value, int | float)}
        sums = self.sums.merge(other.sums)
        most = {n: max(d.get(n, 0.0) for d in (self.differences, other.differences))
                for n in self.differences | other.differences}  # fmt: skip
        errors = collections.Counter(self.errors) + collections.Counter(other.errors)
        return ScoreStatistics(**merged, **_plain(sums), errors=dict(sorted(errors.items())), differences=most)

    @classmethod
    def from_json(cls, values: dict) -> "ScoreStatistics":
        """Inverse of `dataclasses.asdict`, also after a round through JSON text."""
        sums = {kind: {name: tuple(one) for name, one in values[kind].items()} for kind in ("counts", "fractions")}
        return cls(**{**values, **sums})

    @property
    def sums(self) -> Sums:
        return Sums(*({n: np.array(v, np.int64) for n, v in named.items()} for named in (self.counts, self.fractions)))

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())

    def brief(self) -> str:
        """ "α 0.61 small, 0.13 bigram": for progress."""
        sums = self.sums
        drafts = [name.removeprefix("beta/") for name in self.fractions if name.startswith("beta/")]
        means = ((draft, _replicates(sums, f"beta/{draft}")[0]) for draft in drafts)
        return "α " + ", ".join(f"{mean:.3f} {draft}" for draft, mean in means) if self.tokens else ""

    def summary(self) -> dict:
        """Totals and α for summary.json."""
        sums = self.sums
        drafts = [name.removeprefix("beta/") for name in self.fractions if name.startswith("beta/")]
        return {
            "examples": self.examples,
            "texts": self.texts,
            "input_tokens": self.input_tokens,
            "tokens": self.tokens,
            "truncated_texts": self.truncated_texts,
            "errors": {"total": self.num_errors, **self.errors},
            "drafts": {draft: self._of_draft(sums, draft) for draft in sorted(drafts)},
            "compilations": self.compilations,
            "timings": {
                "score_seconds": self.seconds,
                "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            },
        }

    def _of_draft(self, sums: Sums, draft: str) -> dict:
        proposed = int(sums.count(f"beta/{draft}#")[0])
        start = f"lenient/{draft}/"
        lenient = sorted((name.removeprefix(start) for name in self.fractions if name.startswith(start)), key=float)
        return {
            "alpha": self._mean(sums, f"beta/{draft}", ALPHA_DEFINITION),
            "proposed": proposed / self.tokens if self.tokens else None,
            "agreement": self._mean(sums, f"agreement/{draft}", "share of these tokens whose argmaxes agree"),
            "lenient": {
                value: self._mean(sums, start + value, f"as alpha, under lenience {value} (section A.5)")
                for value in reversed(lenient)
            },
            "on_policy": self._on_policy(sums, draft),
        }

    def _mean(self, sums: Sums, name: str, definition: str) -> dict | None:
        positions = int(sums.count(name + "#")[0])
        if not positions:
            return None
        return {
            **self._interval(sums, name, _replicates(sums, name), proportion=True),
            "level": LEVEL,
            "positions": positions,
            "definition": definition,
            "interval": INTERVAL,
        }

    def _interval(self, sums: Sums, name: str, found: np.ndarray, *, proportion: bool = False) -> dict:
        """A replicated value that rests on the examples that `name` has; ends are None where nothing is known of them."""
        examples = min(int(sums.count(name + "@")[0]), self.examples)
        return estimate(found, examples, proportion=proportion)

    def _on_policy(self, sums: Sums, draft: str) -> dict | None:
        definition = "on policy: mean of the β that generation recorded over the positions that it examined"
        alpha = self._mean(sums, f"recorded/{draft}", definition)
        if alpha is None:
            return None
        difference = _replicates(sums, f"beta/{draft}") - _replicates(sums, f"recorded/{draft}")
        return {
            "alpha": alpha,
            "difference": {
                **self._interval(sums, f"recorded/{draft}", difference),
                "level": LEVEL,
                "definition": "alpha over the text less on policy",
            },
            "beta_max_difference": self.differences.get(draft),
        }


def _replicates(sums: Sums, name: str) -> np.ndarray:
    """float64[1 + NUM_REPLICATES], the mean and its replicates, NaN where one has no data."""
    return ratio(sums.fraction(name), sums.count(name + "#"))


def _plain(sums: Sums) -> dict:
    return {kind: {name: tuple(v.tolist()) for name, v in sorted(getattr(sums, kind).items())}
            for kind in ("counts", "fractions")}  # fmt: skip


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
) -> ScoreStatistics:
    """Statistics of one shard.

    Args:
      scored: its texts.
      errors: its failed texts by stage.
      drafts, lenience: what was scored.
      recorded: the draft that the recorded β is of, None where there is none that can be compared.
      seconds, compilations: of scoring it.
    """
    ids = [one.example_id for one in scored]
    joined = lambda arrays: np.concatenate([np.zeros(0), *arrays]).astype(np.float64)
    texts = Texts(ids, np.array([len(one.tokens) for one in scored], np.int64), joined(one.tokens for one in scored),
                  np.zeros(0))  # fmt: skip
    columns, differences = Columns(texts), {}
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
            found = joined(one.recorded_beta for one in scored)
            columns.tokens(f"recorded/{draft}", found, ~np.isnan(found))
            both = np.abs(beta - found)[proposed & ~np.isnan(found)]
            differences[draft] = float(both.max(initial=0.0))
    return ScoreStatistics(
        parts=1,
        examples=len(set(ids)),
        texts=len(scored),
        input_tokens=sum(one.input_tokens for one in scored),
        tokens=len(texts.tokens),
        truncated_texts=sum(one.truncated for one in scored),
        errors=dict(sorted(errors.items())),
        **_plain(columns.sums()),
        differences=differences,
        seconds=seconds,
        compilations=compilations,
    )
