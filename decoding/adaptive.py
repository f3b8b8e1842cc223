"""γ = "auto": which of the compiled γ to run next, from measured costs and the acceptance seen so far.

Theorem 3.8 assumes that γ + 1 parallel positions cost what one costs and that acceptances are independent.  At large
batches, or on a CPU, the first is far off, and a fixed γ loses.  So the rate is predicted from what was measured:

    tokens per second of γ  =  (1 + a_1 + a_1 a_2 + ... + a_1 ... a_γ) / seconds per iteration of γ,

a_j being the share accepted of the j-th guesses that were reached, that is, whose forerunners all were; where a draft had no
j-th guess, as one that copies often has none, none was accepted.  In beam search steps take the place of tokens, and a_j is the
share of examined steps at a block's j-th place that were covered.  Of a cascade an iteration has two costs, as its model may
rest where every row copies, and their share so far says what one costs on average.  A choice is made between chunks, before
any token of the next one is drafted, from what was emitted before, so it cannot bias the samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Seconds per iteration of the whole batch, by γ; and by -γ, of a draft whose model may rest, of one in which it does.
Costs = Mapping[int, float]

# The acceptance believed in before anything was seen, and how many guesses that belief weighs.
_PRIOR_ALPHA, _PRIOR_WEIGHT = 0.7, 16.0
# How many reached guesses back the estimate remembers: acceptance drifts along a shard sorted by length.
_MEMORY = 4096.0
# While γ = 0 is best nothing is learnt of the draft, so after so many chunks a few iterations are spent on looking, and
# after every look that changes nothing, twice as many chunks later: a drift is noticed within the time that went before.
_PROBE_AFTER, PROBE_ITERATIONS = 48, 4
# A draft is given up only where it would not pay with an acceptance so many standard errors above the estimate: the first
# guesses of a shard are few, and to go without it for chunks costs more than to look at some more of them.
_DOUBT = 1.0


class GammaPolicy:
    """Chooses γ for one run of the engine; starts afresh with each."""

    def __init__(self, costs: Costs):
        self._costs = {gamma: seconds for gamma, seconds in costs.items() if gamma >= 0}
        self._resting = {-gamma: seconds for gamma, seconds in costs.items() if gamma < 0}
        self._rested = self._iterations = 0.0
        places = max(self._costs)
        self._accepted = np.zeros(places)
        self._reached = np.zeros(places)
        self._idle_chunks, self._patience = 0, _PROBE_AFTER

    @property
    def _overall(self) -> float:
        """The acceptance of all guesses, with what is believed beforehand."""
        return (self._accepted.sum() + _PRIOR_ALPHA * _PRIOR_WEIGHT) / (self._reached.sum() + _PRIOR_WEIGHT)

    @property
    def acceptance(self) -> np.ndarray:
        """float64[γ_max], estimate of a_j: the j-th guess's own record, weighed against that of all guesses."""
        return (self._accepted + self._overall * _PRIOR_WEIGHT) / (self._reached + _PRIOR_WEIGHT)

    def seconds(self, gamma: int) -> float:
        """Of an iteration, on average; as if none rested while nothing was seen."""
        share = self._rested / max(self._iterations, 1.0)
        return (1 - share) * self._costs[gamma] + share * self._resting.get(gamma, self._costs[gamma])

    def choose(self) -> tuple[int, bool]:
        """The next chunk's γ, and whether it is a probe that should be kept to PROBE_ITERATIONS.

        While less was seen than is believed beforehand, every chunk with a draft is one; and one that a draft gets for the
        benefit of the doubt.
        """
        ranked = self._ranked(self.acceptance)
        if ranked[0] or len(ranked) == 1:
            return ranked[0], bool(ranked[0]) and self._reached.sum() < _PRIOR_WEIGHT
        if self._idle_chunks >= self._patience:
            return ranked[1], True
        error = (self._overall * (1 - self._overall) / (self._reached.sum() + _PRIOR_WEIGHT)) ** 0.5
        hopeful = self._ranked(self.acceptance + _DOUBT * error)[0]
        return hopeful, bool(hopeful)

    def _ranked(self, acceptance: np.ndarray) -> list[int]:
        """All γ, that of most tokens per second first."""
        tokens = np.concatenate([[1.0], 1.0 + np.cumsum(np.cumprod(np.minimum(acceptance, 1.0)))])
        return sorted(self._costs, key=lambda gamma: (-tokens[gamma] / self.seconds(gamma), gamma))

    def observe(self, gamma: int, accepted: np.ndarray, reached: np.ndarray, iterations: int = 0, rested: int = 0) -> None:
        """Takes in a finished chunk.

        Args:
          gamma: its γ.
          accepted, reached: int[γ], guesses at each place that were.
          iterations, rested: how many it had, and in how many of these no row needed the draft's model.
        """
        if gamma:
            self._patience = 2 * self._patience if self._idle_chunks >= self._patience else _PROBE_AFTER
        self._idle_chunks = 0 if gamma else self._idle_chunks + 1
        self._accepted[:gamma] += accepted
        self._reached[:gamma] += reached
        if gamma:
            self._iterations, self._rested = self._iterations + iterations, self._rested + rested
        keep = min(1.0, _MEMORY / max(self._reached.sum(), 1.0))
        self._accepted, self._reached = self._accepted * keep, self._reached * keep
        self._iterations, self._rested = self._iterations * keep, self._rested * keep


def policy_of(gammas: Sequence[int], costs: Costs) -> GammaPolicy | None:
    """What chooses among several γ; None of one."""
    mine = {gamma: seconds for gamma, seconds in costs.items() if abs(gamma) in gammas}
    return GammaPolicy(mine) if len(gammas) > 1 else None


def encode_costs(costs: Costs) -> dict[str, float]:
    """Costs as a JSON object, by γ."""
    return {str(gamma): seconds for gamma, seconds in sorted(costs.items())}


def decode_costs(encoded: Any) -> dict[int, float]:
    """Inverse of `encode_costs`; reads what older versions wrote as well, [longest input, γ, seconds] each.

    Raises:
      ValueError: it is neither.
    """
    try:
        pairs = encoded.items() if isinstance(encoded, Mapping) else ((gamma, seconds) for _, gamma, seconds in encoded)
        return {int(gamma): float(seconds) for gamma, seconds in pairs}
    except (TypeError, ValueError) as error:
        raise ValueError(f"costs are no numbers by γ: {error}") from error
