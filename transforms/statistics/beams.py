"""What beam searches add up to: how often a step was covered, the A.4 analogue of α, and calls per step.

A step is *covered* when all beams that run on after it were among the drafted ones. It is examined where something was drafted
for it: after an uncovered step a call ends, and its deepest step has nothing drafted.
"""

from collections.abc import Sequence

import numpy as np

from decoding.config import ACCEPTED, CORRECTED, Generation
from transforms.statistics.intervals import estimate, ratio
from transforms.statistics.sums import Columns, Sums

COVERED = "mean over the steps of all searches for which something was drafted: whether all beams that run on had been drafted"
POSITIONS = 8  # steps per bucket of positions
_MOST = 15  # the last bucket has all later steps


def sums(example_ids: Sequence[str], searches: Sequence[Generation]) -> Sums:
    """Of one generation per search: counts "searches", "calls" and "steps"; "covered" over examined steps, and by place in the
    block as "level" and by position as "position"."""
    if not searches:
        return Sums()
    lengths = np.array([len(one.steps) for one in searches], np.int64)
    columns = Columns(example_ids, lengths)
    columns.count("searches", np.ones(len(searches)))
    columns.count("calls", np.array([one.target_calls for one in searches]))
    columns.count("steps", lengths)
    steps = np.concatenate([one.steps for one in searches])
    levels, positions = (np.concatenate([make(one.steps) for one in searches]) for make in (_levels, _positions))
    covered, examined = (steps == ACCEPTED).astype(np.float64), np.isin(steps, (ACCEPTED, CORRECTED))
    columns.tokens("covered", covered, examined)
    columns.tokens("level", covered, examined, levels)
    columns.tokens("position", covered, examined, positions)
    return columns.sums()


def _levels(steps: np.ndarray) -> np.ndarray:
    """int64[S]: how many steps of its call came before each; a call goes on after covered steps."""
    begins = np.concatenate([[True], steps[:-1] != ACCEPTED])
    index = np.arange(len(steps))
    return index - np.maximum.accumulate(np.where(begins, index, 0))


def _positions(steps: np.ndarray) -> np.ndarray:
    return np.minimum(np.arange(len(steps)) // POSITIONS, _MOST)


def summary(searches: Sums) -> dict:
    """For summary.json; figures without a value are None."""
    number, examined = (float(searches.count(name)[0]) for name in ("searches", "covered@"))
    calls_per_step = ratio(searches.count("calls"), searches.count("steps"))

    def by(name: str) -> dict[str, dict | None]:
        examples = lambda k: float(searches.count(f"{name}@/{k}")[0])
        found = lambda k: estimate(searches.mean(name, f"/{k}"), examples(k), proportion=True)
        return {str(k): found(k) for k in searches.buckets(f"{name}#")}

    return {
        "searches": int(number),
        "steps": int(searches.count("steps")[0]),
        "target_calls": int(searches.count("calls")[0]),
        "calls_per_step": estimate(calls_per_step, number),
        "covered": searches.alpha("covered", COVERED, examples=examined),
        "covered_by_level": by("level"),
        "covered_by_position": {f"{int(k) * POSITIONS}": found for k, found in by("position").items()},
    }
