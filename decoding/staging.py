"""How examples come into slots: what every run of the host's loop does, whatever is decoded in them."""

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np

from decoding.config import Generation
from decoding.faults import NonFiniteLogits
from decoding.hints import Hints, joined_hints
from decoding.programs import DRAFT, Programs


@dataclasses.dataclass(frozen=True)
class EngineReport:
    """What one call of `Generator.generate_with_report` did.

    Attributes:
      iterations: iterations of the whole batch.
      row_iterations: iterations of rows that were decoding; at most iterations * num_slots.
      occupancy: row_iterations / (iterations * num_slots), the drain at the end included.
      chunks: calls of a chunk program, that is, transfers to the host.
      seconds: wall time.
      compilations: backend compilations during the call; 0 unless something is wrong.
      gammas: iterations of the whole batch by γ.
    """

    iterations: int
    row_iterations: int
    occupancy: float
    chunks: int
    seconds: float
    compilations: int
    gammas: dict[int, int]


@dataclasses.dataclass
class Staged:
    """A batch of examples of one bucket.

    Attributes:
      tokens, lengths: int32[P, bucket] and int32[P].
      hints: int32[P, hint_tokens], None where there is no room for any.
      states: their rows on device as far as they are prefilled, the target's and then the draft's.
      waiting: (row, example, sample) triples still to be moved into slots.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    hints: np.ndarray | None
    states: list
    waiting: collections.deque


class Run:
    """What one call's examples wait for, and what is in the slots; steps 1 to 3 of `decoding.engine`.

    A subclass says what a row begins with (`_enter`) and whose it is (`_example`), has chunks run, and harvests.
    """

    def __init__(self, programs: Programs, inputs, example_ids, hints: Hints | None, samples: int, results: int):
        """
        Args:
          inputs, example_ids, hints: as of `Generator.generate`.
          samples: rows per example, one after the other.
          results: generations per example.
        """
        config = programs.config
        self._started, self._compiled_before = time.perf_counter(), programs.compiler.events()
        self._programs, self._config, self._inputs = programs, config, inputs
        self._example_ids, self._hints = example_ids, hints
        self._samples, self._per_example = samples, results
        # By content alone, so that the schedule does not depend on the order of arrival; longest first keeps
        # prefill batches of one bucket together and the drain short.
        self._order = collections.deque(sorted(range(len(inputs)), key=lambda i: (-len(inputs[i]), example_ids[i])))
        self._staged: Staged | None = None
        self._states = programs.empty()
        self._occupants: dict = {}  # by slot
        self._results: list[Generation | None] = [None] * (len(inputs) * results)
        self._faults: dict[int, str] = {}  # whose logits were not finite, by example
        self._spoilt: set[int] = set()  # slots whose caches may hold what is not finite

    def _enter(self, slot: int, example: int, sample: int, now: float) -> None:
        """A row comes into a slot, which its prefilled state is copied into next."""
        raise NotImplementedError

    def _prompt(self, example: int) -> Sequence[int]:
        """The decoder's inputs that an example's rows come with."""
        return [self._programs.start_id] if self._programs.encoder_decoder else self._inputs[example]

    def _stop_done(self) -> int:
        """How many rows may be done before a chunk stops, those without an occupant included."""
        slots = self._config.num_slots
        if not (self._order or self._staged):
            return slots
        return slots - len(self._occupants) + max(1, slots // 8)

    # Into slots.

    def _stage(self, gamma: int) -> None:
        """Takes the next examples of one bucket, unless some are staged, and has prefilled what this γ needs."""
        if self._staged is None:
            if not self._order:
                return
            bucket, examples = self._bucket(self._order[0]), []
            rows = self._programs.prefill_rows(bucket)
            while self._order and len(examples) < rows and self._bucket(self._order[0]) == bucket:
                examples.append(self._order.popleft())
            samples = range(self._samples)
            waiting = collections.deque((row, example, i) for row, example in enumerate(examples) for i in samples)
            self._staged = Staged(*self._batch(bucket, examples), [], waiting)
        staged = self._staged
        for which in range(len(staged.states), 2 if gamma else 1):
            staged.states.append(self._programs.prefill(which, staged.tokens, staged.lengths, staged.hints))

    def _refill(self, gamma: int) -> None:
        """Moves waiting examples into free slots as long as there are both."""
        if self._spoilt and not self._occupants:
            self._states, self._spoilt = self._programs.empty(), set()
        free = [slot for slot in range(self._config.num_slots) if slot not in self._occupants and slot not in self._spoilt]
        while free and (self._order or self._staged):
            self._stage(gamma)
            self._fill(free)
            if not self._staged.waiting:
                self._staged = None

    def _fill(self, free: list[int]) -> None:
        """Moves staged rows into free slots, which are taken off the list."""
        staged, now, moved = self._staged, time.perf_counter(), []
        for _ in range(min(len(free), len(staged.waiting))):
            row, example, sample = staged.waiting.popleft()
            slot = free.pop(0)
            moved.append((row, slot))
            self._enter(slot, example, sample, now)
        for which, state in enumerate(staged.states):
            self._insert(which, staged.tokens.shape[1], state, moved)

    def _example(self, occupant) -> int:
        """Which example an occupant's row belongs to."""
        raise NotImplementedError

    def _introduce(self) -> None:
        """Prefills the draft for rows that came while γ was 0."""
        strangers = {slot: one for slot, one in self._occupants.items() if one.drafted is None}
        by_bucket = collections.defaultdict(list)
        for slot, one in strangers.items():
            example = self._example(one)
            one.drafted = len(self._prompt(example)) - 1
            by_bucket[self._bucket(example)].append((slot, example))
        for bucket, pairs in by_bucket.items():
            rows = self._programs.prefill_rows(bucket)
            for some in (pairs[i : i + rows] for i in range(0, len(pairs), rows)):
                prefilled = self._programs.prefill(DRAFT, *self._batch(bucket, [example for _, example in some]))
                self._insert(DRAFT, bucket, prefilled, [(row, slot) for row, (slot, _) in enumerate(some)])

    def _insert(self, which: int, bucket: int, prefilled, moved: Sequence[tuple[int, int]]) -> None:
        """Copies rows of a prefilled state into slots: (row, slot) pairs."""
        source = np.zeros((self._config.num_slots,), np.int32)
        slots = np.full((self._config.num_slots,), self._config.num_slots, np.int32)  # out of range: dropped
        source[: len(moved)], slots[: len(moved)] = zip(*moved)
        state = self._programs.insert(which, bucket, self._states[which], prefilled, source, slots)
        self._states = (*self._states[:which], state, *self._states[which + 1 :])

    def _bucket(self, example: int) -> int:
        return next(bucket for bucket in self._config.input_buckets if len(self._inputs[example]) <= bucket)

    def _batch(self, bucket: int, examples: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """int32[P, bucket] tokens, int32[P] lengths and, with room for them, int32[P, hint_tokens] hints of a batch."""
        rows = self._programs.prefill_rows(bucket)
        tokens, lengths = np.zeros((rows, bucket), np.int32), np.ones((rows,), np.int32)
        for row, example in enumerate(examples):
            lengths[row] = len(self._inputs[example])
            tokens[row, : lengths[row]] = self._inputs[example]
        if not self._config.hint_tokens:
            return tokens, lengths, None
        hints = np.full((rows, self._config.hint_tokens), -1, np.int32)
        for row, example in enumerate(examples if self._hints else ()):
            joined = joined_hints(self._hints[example], self._programs.vocab_size, self._config.hint_tokens)
            hints[row, : len(joined)] = joined
        return tokens, lengths, hints

    # Out of slots.

    def _finished(self, row_iterations: int, chunks: int, gammas: Mapping[int, int]) -> tuple[list[Generation], EngineReport]:
        """All results with the report of the call.

        Raises:
          NonFiniteLogits: some inputs have none.
        """
        iterations = sum(gammas.values())
        report = EngineReport(
            iterations=iterations,
            row_iterations=row_iterations,
            occupancy=row_iterations / (iterations * self._config.num_slots) if iterations else 1.0,
            chunks=chunks,
            seconds=time.perf_counter() - self._started,
            compilations=self._programs.compiler.events() - self._compiled_before,
            gammas=dict(gammas),
        )
        if self._faults:
            each = self._per_example
            for example in self._faults:
                self._results[example * each : (example + 1) * each] = [None] * each
            raise NonFiniteLogits(self._faults, self._results, self._example_ids, report)
        return self._results, report
