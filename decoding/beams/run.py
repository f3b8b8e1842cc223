"""The host's loop of a beam search: the life of `decoding.engine`'s rows, but that a slot has a search in it."""

import collections
import dataclasses
import time

import jax
import numpy as np

from decoding.adaptive import PROBE_ITERATIONS, Costs, policy_of
from decoding.beams.programs import BeamPrograms, Found
from decoding.config import ACCEPTED, CORRECTED, Generation
from decoding.faults import MODELS
from decoding.programs import DRAFT, TARGET
from decoding.staging import EngineReport, Run


@dataclasses.dataclass
class _Occupant:
    """An example in a slot.

    Attributes:
      example: index.
      since: when it came.
      depth: decoder position of its newest tokens.
      gammas: γ of every call so far.
      drafted: the draft was fed all depths before this one; None where it was not even prefilled.
    """

    example: int
    since: float
    depth: int
    gammas: list[int]
    drafted: int | None


class BeamRun(Run):
    """Decodes one call's examples, each into `num_return_sequences` texts."""

    def __init__(self, programs: BeamPrograms, inputs, example_ids, costs: Costs):
        results = programs.config.num_return_sequences
        super().__init__(programs, inputs, example_ids, None, samples=1, results=results)
        self._policy = policy_of(programs.config.gammas, costs)
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
        gammas: collections.Counter[int] = collections.Counter()
        chunks = row_iterations = 0
        while True:
            gamma, probe = self._policy.choose() if self._policy else (config.gammas[0], False)
            if self._policy and gamma > 0:
                self._catch_up()  # before others come, whose searches have not begun
            self._refill(gamma)
            if not self._occupants:
                break
            limits = PROBE_ITERATIONS if probe else config.chunk_iterations, self._stop_done()
            self._states, self._beams, found, counts = programs.chunk(
                gamma, self._states, self._beams, self._prompts, self._lengths, *limits
            )
            self._fresh()
            self._stage(0 if probe else gamma)
            found, counts = jax.device_get((found, counts))
            chunks, row_iterations = chunks + 1, row_iterations + int(counts[1])
            gammas[gamma] += int(counts[0])
            self._observe(gamma, found)
            self._harvest(found)
        return self._finished(row_iterations, chunks, gammas)

    def _enter(self, slot: int, example: int, sample: int, now: float) -> None:
        prompt = self._prompt(example)
        self._prompts[slot, : len(prompt)], self._lengths[slot] = prompt, len(prompt)
        drafted = len(prompt) - 1 if len(self._staged.states) > 1 else None
        self._occupants[slot] = _Occupant(example, now, len(prompt) - 1, [], drafted)

    def _example(self, occupant: _Occupant) -> int:
        return occupant.example

    def _catch_up(self) -> None:
        """Has the draft stand at most one step behind every search; the next forest begins with that one."""
        self._introduce()
        behind = {slot: one for slot, one in self._occupants.items() if one.drafted < one.depth - 1}
        if behind:
            since = np.full((self._config.num_slots,), np.iinfo(np.int32).max, np.int32)
            for slot, one in behind.items():
                since[slot], one.drafted = one.drafted, one.depth - 1
            self._states = (self._states[TARGET], self._programs.follow(self._states[DRAFT], self._beams, since))

    def _observe(self, gamma: int, found: Found) -> None:
        """What a chunk decided: steps by place in their block, covered and examined."""
        covered, examined = np.zeros(gamma), np.zeros(gamma)
        for slot, one in self._occupants.items():
            steps = slice(one.depth + 1, found.depth[slot] + 1)
            kind, call = found.kind[slot, steps], found.call[slot, steps]
            place = np.arange(len(call)) - np.searchsorted(call, call)
            for count, kinds in ((covered, (ACCEPTED,)), (examined, (ACCEPTED, CORRECTED))):
                np.add.at(count, place[np.isin(kind, kinds)], 1)
            one.gammas += [gamma] * (int(found.calls[slot]) - len(one.gammas))
            one.depth = int(found.depth[slot])
            if gamma > 0:
                one.drafted = max(one.depth - 1, 0)
        if self._policy:
            self._policy.observe(gamma, covered, examined)

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
                seconds = now - occupant.since
                self._results[first + rank] = _generation(row, rank, occupant.gammas, self._programs.eos_ids, seconds)


def _generation(row: Found, rank: int, gammas: list[int], eos_ids: tuple[int, ...], seconds: float) -> Generation:
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
        gammas=np.array(gammas, np.int16),
        accepted=kept.astype(np.int16),
        finish_reason="eos" if len(tokens) and tokens[-1] in eos_ids else "length",
        decode_seconds=seconds,
        score=float(row.scores[rank]),
        steps=row.kind[steps],
    )
