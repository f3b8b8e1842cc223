"""The engine: `num_slots` rows decode together, finished rows make room for waiting ones.

The life of a row, one generation of one example; words are those of `decoding.config`'s glossary:

1. It waits: examples are ordered by their content alone, longest first (`_Run._order`).
2. It is staged with others of its length bucket, and a program prefills them together, encoder or prompt, while the
   chunk before still runs (`_stage`).  So prefill never waits for slots, and slots rarely for prefill.
3. It gets a slot: its prefilled state is copied into the slot's, and its position, budget and key are written into the
   slot's packed row (`_fill`).  From here on it is an `Occupant`.
4. A chunk is run, up to `chunk_iterations` iterations on device: drafting, one target call, verification, emission
   (`programs.Programs._chunk`, which loops over `speculative`).  With γ = "auto" the policy chose γ before anything was
   drafted, and a draft that γ = 0 left behind is fed first what it missed (`_introduce`, `_catch_up`).
5. The chunk stops when enough rows are done, and the host gets all it emitted in one transfer.
6. The row is harvested: its part of the log is put to what it emitted before (`_harvest`).  If it is done, `harvest`
   makes a `Generation` of that, and the slot is free; else it is in the next chunk.  A row whose logits were not finite
   is an error at the end of the call, and its slot is not used again before all are empty.

Nothing in a row's result depends on what shares the batch with it: its random key comes from its example id, its
position from itself, and everything at or beyond its position is masked.
"""

import collections
import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np

from decoding.adaptive import PROBE_ITERATIONS, Costs, GammaPolicy
from decoding.config import DecodingConfig, Generation
from decoding.drafts.base import Draft
from decoding.faults import MODELS, NonFiniteLogits
from decoding.harvest import Occupant, generation, guesses
from decoding.hints import Hints, joined_hints
from decoding.models.base import LanguageModel
from decoding.programs import DRAFT, TARGET, Programs, measure_costs
from decoding.rows import DONE, POSITION, idle_rows, new_row
from decoding.sampling import row_key
from decoding.speculative import Emission


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


class Generator:
    """Decodes token sequences with a target and, unless γ is 0, a draft.

    All programs are compiled at construction; `generate` compiles nothing.  Thread-safe: calls take turns.
    """

    def __init__(
        self,
        target: LanguageModel,
        draft: Draft | LanguageModel | None,
        config: DecodingConfig,
        costs: Costs | None = None,
        vocab_size: int | None = None,
    ):
        """Compiles, and with γ = "auto" measures.

        Args:
          target: the model whose distribution the output has.
          draft: proposes tokens; may be None where γ is 0.
          config: settings.
          costs: for γ = "auto", seconds per iteration by γ as in `self.costs` of an earlier
            Generator, so that a job chooses the same γ on every worker; measured here where None.
          vocab_size: how many tokens may occur, where models are padded beyond their tokeniser's: the logits of later
            ones are cut off in both.  None for all, and then target and draft must have as many.

        Where the target lies on a mesh (`decoding.sharding`), so does everything: slots are shared out over its axis
        "data", and a draft that was loaded without the mesh is copied to all of its devices.

        Raises:
          ValueError: γ above 0 without a draft, vocabularies of different sizes, costs that lack an entry, or slots that
            the mesh does not divide.
        """
        self.config = config
        self._programs = Programs(target, draft, config, vocab_size)
        self._programs.compile()
        self._lock = threading.Lock()
        self.costs: Costs = {}
        if len(config.gammas) > 1:
            self.costs = measure_costs(self._programs) if costs is None else costs
            if missing := [gamma for gamma in config.gammas if gamma not in self.costs]:
                raise ValueError(f"costs lack the gammas {missing}; they have {sorted(self.costs)}")

    @staticmethod
    def lowered(
        target: LanguageModel,
        draft: Draft | LanguageModel | None,
        config: DecodingConfig,
        vocab_size: int | None = None,
    ) -> dict[Hashable, Callable[[], jax.stages.Lowered]]:
        """Every program of a Generator, to be lowered for the devices of the mesh that the target lies on.

        Arguments are those of a Generator, but models may be abstract: nothing is allocated, nor compiled.
        """
        return Programs(target, draft, config, vocab_size).compiler.lowered

    def plain(self) -> "Generator":
        """Plain decoding by the same target with the same settings; parameters are shared, programs compiled here."""
        return Generator(self._programs.target(), None, dataclasses.replace(self.config, gamma=0))

    def with_draws(self, seed: int, num_samples: int) -> "Generator":
        """This generator under another seed and number of samples, on which no program depends: everything is shared."""
        other, programs = copy.copy(self), copy.copy(self._programs)
        other.config = programs.config = dataclasses.replace(self.config, seed=seed, num_samples=num_samples)
        other._programs = programs
        return other

    def generate(
        self, inputs: Sequence[Sequence[int]], example_ids: Sequence[str], hints: Hints | None = None
    ) -> list[Generation]:
        """Decodes every input `num_samples` times.

        Args:
          inputs: token ids, each from 1 to `config.max_input_tokens` long.
          example_ids: distinct; with the seed, they determine the random numbers.
          hints: per input texts that its output nearly is, as token ids, EOS included; any number, the likeliest first.
            They are cut to `config.hint_tokens`, one between two included, and tokens that are not in the vocabulary are
            left out.  They change the speed alone.  None for none.

        Returns:
          One Generation per input and sample, in the order of inputs, samples of one input adjacent.

        Raises:
          ValueError: an input's length is not allowed, ids repeat, or the arguments differ in length.
          NonFiniteLogits: a model gave no distribution for some inputs; it has the generations of the others.
        """
        return self.generate_with_report(inputs, example_ids, hints)[0]

    def generate_with_report(
        self, inputs: Sequence[Sequence[int]], example_ids: Sequence[str], hints: Hints | None = None
    ) -> tuple[list[Generation], EngineReport]:
        """As `generate`, with a report of how the batch was used."""
        self._check(inputs, example_ids, hints)
        with self._lock:
            return _Run(self._programs, self.costs, inputs, example_ids, hints).to_the_end()

    def _check(self, inputs, example_ids, hints) -> None:
        longest, vocab_size = self.config.max_input_tokens, self._programs.vocab_size
        for what, others in (("example ids", example_ids), ("rows of hints", inputs if hints is None else hints)):
            if len(inputs) != len(others):
                raise ValueError(f"{len(inputs)} inputs and {len(others)} {what}; they must be as many")
        repeated = [name for name, times in collections.Counter(example_ids).items() if times > 1]
        if repeated:
            raise ValueError(f"example ids must be distinct; repeated: {repeated[:5]}")
        for tokens, name in zip(inputs, example_ids):
            if not 1 <= len(tokens) <= longest:
                raise ValueError(f"input {name!r} has {len(tokens)} tokens; allowed: 1 to {longest}")
            # A gather would clamp such a token silently.
            for token in (min(tokens), max(tokens)):
                if not 0 <= token < vocab_size:
                    raise ValueError(
                        f"input {name!r} has the token {token}; allowed: 0 to {vocab_size - 1}, the vocabulary"
                    )


@dataclasses.dataclass
class _Staged:
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


class _Run:
    """The host's loop over one call's examples: what is in the slots, and what waits for one."""

    def __init__(self, programs: Programs, costs: Costs, inputs, example_ids, hints):
        config = programs.config
        self._started, self._compiled_before = time.perf_counter(), programs.compiler.events()
        self._programs, self._config, self._inputs = programs, config, inputs
        self._example_ids, self._hints = example_ids, hints
        # By content alone, so that the schedule does not depend on the order of arrival; longest first keeps
        # prefill batches of one bucket together and the drain short.
        self._order = collections.deque(sorted(range(len(inputs)), key=lambda i: (-len(inputs[i]), example_ids[i])))
        self._staged: _Staged | None = None
        self._states = programs.empty()
        self._packed = idle_rows(config.num_slots)
        self._occupants: dict[int, Occupant] = {}
        self._results: list[Generation | None] = [None] * (len(inputs) * config.num_samples)
        self._faults: dict[int, str] = {}  # whose logits were not finite, by example
        self._spoilt: set[int] = set()  # slots whose caches may hold what is not finite
        self._policy: GammaPolicy | None = None
        if len(config.gammas) > 1:
            self._policy = GammaPolicy({gamma: costs[gamma] for gamma in config.gammas})

    def to_the_end(self) -> tuple[list[Generation], EngineReport]:
        """Decodes everything."""
        config, programs = self._config, self._programs
        gammas: collections.Counter[int] = collections.Counter()
        row_iterations = chunks = 0
        while True:
            gamma, probe = self._policy.choose() if self._policy else (config.gammas[0], False)
            self._refill(gamma)
            if not self._occupants:
                break
            if self._policy and gamma > 0:
                self._introduce()
                self._catch_up()
            limit = PROBE_ITERATIONS if probe else config.chunk_iterations
            self._states, rows, log = programs.chunk(gamma, self._states, self._packed, limit, self._stop_done())
            # Queued behind the chunk, so that the device has it ready, or begun, when the first slot is free.
            self._stage(0 if probe else gamma)
            packed, log = jax.device_get((rows, log))
            self._packed = packed.copy()
            if self._policy:
                self._policy.observe(gamma, *guesses(log, gamma))
            chunks += 1
            gammas[gamma] += int(np.sum(np.any(log.count > 0, axis=1)))
            row_iterations += int(np.sum(log.count > 0))
            self._harvest(gamma, log)
        iterations = sum(gammas.values())
        report = EngineReport(
            iterations=iterations,
            row_iterations=row_iterations,
            occupancy=row_iterations / (iterations * config.num_slots) if iterations else 1.0,
            chunks=chunks,
            seconds=time.perf_counter() - self._started,
            compilations=programs.compiler.events() - self._compiled_before,
            gammas=dict(gammas),
        )
        if self._faults:
            samples = config.num_samples
            for example in self._faults:
                self._results[example * samples : (example + 1) * samples] = [None] * samples
            raise NonFiniteLogits(self._faults, self._results, self._example_ids, report)
        return self._results, report

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
            samples = range(self._config.num_samples)
            waiting = collections.deque((row, example, i) for row, example in enumerate(examples) for i in samples)
            self._staged = _Staged(*self._batch(bucket, examples), [], waiting)
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
        config, staged, now, moved = self._config, self._staged, time.perf_counter(), []
        for _ in range(min(len(free), len(staged.waiting))):
            row, example, sample = staged.waiting.popleft()
            slot = free.pop(0)
            moved.append((row, slot))
            key = row_key(config.seed, self._example_ids[example], sample)
            prompt = [self._programs.start_id] if self._programs.encoder_decoder else self._inputs[example]
            position = len(prompt) - 1
            self._packed[slot] = new_row(prompt[max(position - 1, 0)], prompt[-1], position, config.max_decode_tokens, key)
            item = example * config.num_samples + sample
            drafted = position if len(staged.states) > 1 else None
            self._occupants[slot] = Occupant(item, now, chunks=[], prompt=prompt, drafted=drafted)
        for which, state in enumerate(staged.states):
            self._insert(which, staged.tokens.shape[1], state, moved)

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

    # The draft, after chunks without it.

    def _introduce(self) -> None:
        """Prefills the draft for rows that came while γ was 0."""
        strangers = collections.defaultdict(list)
        for slot, occupant in self._occupants.items():
            if occupant.drafted is None:
                example = occupant.item // self._config.num_samples
                strangers[self._bucket(example)].append((slot, example))
                occupant.drafted = len(occupant.prompt) - 1
        for bucket, pairs in strangers.items():
            rows = self._programs.prefill_rows(bucket)
            for some in (pairs[i : i + rows] for i in range(0, len(pairs), rows)):
                prefilled = self._programs.prefill(DRAFT, *self._batch(bucket, [example for _, example in some]))
                self._insert(DRAFT, bucket, prefilled, [(row, slot) for row, (slot, _) in enumerate(some)])

    def _catch_up(self) -> None:
        """Feeds the draft the tokens emitted without it, so that it stands at most one behind every row.

        The first step of a proposal feeds the last two tokens itself.  Rows that lack nothing are fed padding at
        their own position, where the cache holds nothing yet.
        """
        block = max(self._config.gammas) + 1
        while True:
            tokens = np.zeros((len(self._packed), block), np.int32)
            positions = self._packed[:, POSITION].copy()
            behind = False
            for slot, occupant in self._occupants.items():
                position = int(self._packed[slot, POSITION])
                missing = position - 1 - occupant.drafted
                if missing > 0:
                    behind = True
                    inputs = occupant.decoder_inputs()[occupant.drafted : position - 1][:block]
                    tokens[slot, : len(inputs)], positions[slot] = inputs, occupant.drafted
                    occupant.drafted += len(inputs)
            if not behind:
                return
            self._states = (self._states[TARGET], self._programs.follow(self._states[DRAFT], tokens, positions))

    # Out of slots.

    def _harvest(self, gamma: int, log: Emission) -> None:
        """Hands a chunk's tokens to their rows, and frees the slots of those that are done."""
        now = time.perf_counter()
        for slot in list(self._occupants):
            occupant = self._occupants[slot]
            occupant.chunks.append(Emission(*(array[:, slot] for array in log)))
            if gamma > 0:
                # One less than the position: after full acceptance the draft never saw its own last token.
                occupant.drafted = max(int(self._packed[slot, POSITION]) - 1, 0)
            if self._packed[slot, DONE]:
                if fault := int(log.fault[:, slot].max()):
                    self._faults[occupant.item // self._config.num_samples] = MODELS[fault]
                    # Attention gives keys beyond a row's position weight 0, and 0 times NaN is NaN: nobody may come after.
                    self._spoilt.add(slot)
                else:
                    self._results[occupant.item] = generation(occupant, self._programs.eos_ids, now)
                del self._occupants[slot]
