"""The host's loop of a beam search: the life of `decoding.engine`'s rows, but that a slot has a search in it."""

import collections
import time
from typing import NamedTuple

import jax
import numpy as np

from decoding.beams.programs import Found
from decoding.config import ACCEPTED, Generation
from decoding.faults import MODELS
from decoding.staging import EngineReport, Run


class _Occupant(NamedTuple):
    """An example in a slot, and when it came."""

    example: int
    since: float


class BeamRun(Run):
    """Decodes one call's examples, each into `num_return_sequences` texts."""

    def __init__(self, programs, inputs, example_ids, hints=None):
        results = programs.config.num_return_sequences
        super().__init__(programs, inputs, example_ids, hints, samples=1, results=results)
        self._gamma = programs.config.gammas[0]
        self._beams = programs.no_beams()
        self._fresh()

    def _fresh(self) -> None:
        """No search is about to begin."""
        slots = self._config.num_slots
        self._prompts = np.zeros((slots, self._programs.prompt_length), np.int32)
        self._lengths = np.zeros((slots,), np.int32)

    def to_the_end(self) -> tuple[list[Generation], EngineReport]:
        """Decodes everything."""
        config, programs = self._config, self._programs
        chunks, iterations, row_iterations = 0, 0, 0
        while True:
            self._refill(self._gamma)
            if not self._occupants:
                break
            limits = config.chunk_iterations, self._stop_done()
            self._states, self._beams, found, counts = programs.chunk(
                self._states, self._beams, self._prompts, self._lengths, *limits
            )
            self._fresh()
            self._stage(self._gamma)
            found, counts = jax.device_get((found, counts))
            chunks, iterations, row_iterations = chunks + 1, iterations + int(counts[0]), row_iterations + int(counts[1])
            self._harvest(found)
        return self._finished(row_iterations, chunks, collections.Counter({self._gamma: iterations}))

    def _enter(self, slot: int, example: int, sample: int, now: float) -> None:
        prompt = self._prompt(example)
        self._prompts[slot, : len(prompt)], self._lengths[slot] = prompt, len(prompt)
        self._occupants[slot] = _Occupant(example, now)

    def _harvest(self, found: Found) -> None:
        """Makes generations of the searches that are done, and frees their slots."""
        now = time.perf_counter()
        for slot in [slot for slot in self._occupants if found.done[slot]]:
            occupant = self._occupants.pop(slot)
            if fault := int(found.fault[slot]):
                self._faults[occupant.example] = MODELS[fault]
                self._spoilt.add(slot)
                continue
            row, first = Found(*(array[slot] for array in found)), occupant.example * self._per_example
            for rank in range(self._per_example):
                self._results[first + rank] = _generation(row, rank, self._gamma, self._programs.eos_ids, now - occupant.since)


def _generation(row: Found, rank: int, gamma: int, eos_ids: tuple[int, ...], seconds: float) -> Generation:
    """The rank-th text of a finished search."""
    own, steps = slice(row.start + 1, row.ends[rank] + 1), slice(row.start + 1, row.depth + 1)
    tokens, nothing = row.texts[rank, own], np.full(row.ends[rank] - row.start, np.nan, np.float32)
    kept = np.bincount(row.call[steps][row.kind[steps] == ACCEPTED], minlength=row.calls)
    return Generation(
        tokens=tokens,
        source=row.kind[own],
        iteration=row.call[own],
        beta=nothing,
        target_logprob=row.logprobs[rank, own],
        draft_logprob=nothing,
        gammas=np.full(row.calls, gamma, np.int16),
        accepted=kept.astype(np.int16),
        finish_reason="eos" if len(tokens) and tokens[-1] in eos_ids else "length",
        decode_seconds=seconds,
        score=float(row.scores[rank]),
        steps=row.kind[steps],
    )
