"""Hints: texts that an output nearly is, given with its input, from which a draft copies."""

from collections.abc import Sequence

import numpy as np

Hints = Sequence[Sequence[Sequence[int]]]
"""Per input, its hints' token ids."""


def joined_hints(hints: Sequence[Sequence[int]], vocab_size: int, room: int) -> np.ndarray:
    """One row's hints as a draft takes them (`Draft.prefill`): int32[at most room], -1 between two.

    Tokens beyond the vocabulary are left out, and so are hints without any; what there is no room for is cut off.
    """
    joined: list[np.ndarray] = []
    for hint in hints:
        tokens = np.asarray(hint[: 2 * room], np.int64)  # however long it is
        tokens = tokens[(tokens >= 0) & (tokens < vocab_size)]
        if len(tokens):
            joined += [np.array([-1]), tokens]
    return np.concatenate(joined[1:] or [np.zeros(0)])[:room].astype(np.int32)
