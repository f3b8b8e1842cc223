"""Logits of which no distribution can be made: weights that are NaN, or numbers that overflowed on their way.

They make an error of the input that met them, never a text. Where each decided is found on the device, beside the
log-probabilities (`rows.Emission.fault`), and raised when everything else is done.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# In `rows.Emission.fault`.
TARGET_FAULT, DRAFT_FAULT = 1, 2
MODELS = {TARGET_FAULT: "target model", DRAFT_FAULT: "draft model"}


class NonFiniteLogits(ValueError):
    """Logits were NaN, +inf or all -inf where they decided.

    Attributes:
      faults: whose they were, by the number of the input: "target model", "draft model", "draft 'small'".
      results: of the others, in the place of each; None for these inputs.
      report: of the call that raises, or None.
    """

    def __init__(self, faults: Mapping[int, str], results: list, names: Sequence[str], report: Any = None):
        first = min(faults)
        which = f"{len(faults)} of {len(names)} inputs, the first of them {names[first]!r}"
        super().__init__(f"{self.of(faults[first])}: {which}")
        self.faults, self.results, self.report = dict(faults), results, report

    @staticmethod
    def of(whose: str) -> str:
        """What is said of one input."""
        return f"logits of the {whose} are not finite"
