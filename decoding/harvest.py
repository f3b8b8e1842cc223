"""What the host makes of the logs of chunks: generations, and counts of guesses."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from decoding.config import ACCEPTED, MODEL_GUESS, Generation
from decoding.speculative import Emission


@dataclasses.dataclass
class Occupant:
    """A row in a slot.

    Attributes:
      item: which (input, sample) it is.
      since: when it came.
      chunks: what it emitted, chunk by chunk.
      prompt: the decoder's inputs that it came with.
      drafted: decoder positions that the draft's cache holds for certain; behind the row's after chunks with γ = 0, None
        where the draft was not prefilled.
    """

    item: int
    since: float
    chunks: list[Emission]
    prompt: Sequence[int]
    drafted: int | None

    def decoder_inputs(self) -> np.ndarray:
        """int32[position + 1]: the decoder's inputs so far, the newest included."""
        emitted = [log.tokens[np.arange(log.tokens.shape[1]) < log.count[:, None]] for log in self.chunks]
        return np.concatenate([np.asarray(self.prompt, np.int32), *emitted])


def guesses(log: Emission, gamma: int) -> tuple[np.ndarray, np.ndarray]:
    """What became of the places of guesses: int[γ] accepted and int[γ] reached, cut-off tails not counted.

    A place is reached where all before it were accepted.  That a draft had no guess for it costs what a wrong guess does.
    """
    valid = np.arange(log.tokens.shape[2]) < log.count[..., None]
    accepted = np.sum(valid & (log.source == ACCEPTED), axis=(0, 1))[:gamma]
    return accepted, np.sum(valid, axis=(0, 1))[:gamma]


def rests(log: Emission) -> tuple[int, int]:
    """Iterations of a chunk, and those in which no row took a model's guesses."""
    ran = log.count > 0
    needed = np.any(ran & (log.origin == MODEL_GUESS), axis=1)
    return int(np.sum(np.any(ran, axis=1))), int(np.sum(np.any(ran, axis=1) & ~needed))


def generation(occupant: Occupant, eos_ids: tuple[int, ...], now: float) -> Generation:
    """Joins what a row emitted chunk by chunk; chunks may differ in γ."""
    places = max(log.tokens.shape[1] for log in occupant.chunks)

    def joined(name: str) -> np.ndarray:
        arrays = [getattr(log, name) for log in occupant.chunks]
        if arrays[0].ndim == 2:
            arrays = [_widened(array, places) for array in arrays]
        return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]

    count = joined("count")
    ran = count > 0
    valid = np.arange(places) < count[:, None]
    source, tokens = joined("source"), joined("tokens")[valid]
    return Generation(
        tokens=tokens,
        source=source[valid],
        iteration=np.repeat(np.arange(np.count_nonzero(ran), dtype=np.int32), count[ran]),
        beta=joined("beta")[valid],
        target_logprob=joined("target_logprob")[valid],
        draft_logprob=joined("draft_logprob")[valid],
        gammas=joined("proposed")[ran].astype(np.int16),
        accepted=np.count_nonzero((source == ACCEPTED) & valid, axis=1)[ran].astype(np.int16),
        finish_reason="eos" if tokens[-1] in eos_ids else "length",
        decode_seconds=now - occupant.since,
        origin=joined("origin")[ran],
        match=joined("match")[ran].astype(np.int16),
    )


def _widened(array: np.ndarray, places: int) -> np.ndarray:
    """[K, places] of an array [K, G]; np.pad takes ten times as long, and this is done for every row."""
    if array.shape[1] == places:
        return array
    wide = np.zeros((len(array), places), array.dtype)
    wide[:, : array.shape[1]] = array
    return wide
