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

from decoding.adaptive import PROBE_ITERATIONS, Costs, policy_of
from decoding.beams.programs import BeamPrograms
from decoding.beams.run import BeamRun
from decoding.config import DecodingConfig, Generation
from decoding.drafts.base import Draft
from decoding.faults import MODELS
from decoding.harvest import Occupant, generation, guesses, rests
from decoding.hints import Hints
from decoding.models.base import LanguageModel
from decoding.programs import DRAFT, TARGET, Programs, measure_costs
from decoding.rows import DONE, POSITION, idle_rows, new_row
from decoding.sampling import row_key
from decoding.speculative import Emission
from decoding.staging import EngineReport, Run


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
        self._programs = _programs_of(config)(target, draft, config, vocab_size)
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
        return _programs_of(config)(target, draft, config, vocab_size).compiler.lowered

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
        """Decodes every input `num_samples` times or, with beams, into its `num_return_sequences` best texts.

        Args:
          inputs: token ids, each from 1 to `config.max_input_tokens` long.
          example_ids: distinct; with the seed, they determine the random numbers.
          hints: per input texts that its output nearly is, as token ids, EOS included; any number, the likeliest first.
            They are cut to `config.hint_tokens`, one between two included, and tokens that are not in the vocabulary are
            left out.  They change the speed alone.  None for none.

        Returns:
          One Generation per input and sample, in the order of inputs, samples of one input adjacent; texts of one search the
          best first.

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
            if self.config.beam_search:
                return BeamRun(self._programs, inputs, example_ids, self.costs).to_the_end()
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


def _programs_of(config: DecodingConfig) -> type[Programs]:
    return BeamPrograms if config.beam_search else Programs


class _Run(Run):
    """The host's loop over one call's examples."""

    def __init__(self, programs: Programs, costs: Costs, inputs, example_ids, hints):
        config = programs.config
        super().__init__(programs, inputs, example_ids, hints, samples=config.num_samples, results=config.num_samples)
        self._packed = idle_rows(config.num_slots)
        self._policy = policy_of(config.gammas, costs)

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
                self._policy.observe(gamma, *guesses(log, gamma), *rests(log))
            chunks += 1
            gammas[gamma] += int(np.sum(np.any(log.count > 0, axis=1)))
            row_iterations += int(np.sum(log.count > 0))
            self._harvest(gamma, log)
        return self._finished(row_iterations, chunks, gammas)

    def _enter(self, slot: int, example: int, sample: int, now: float) -> None:
        config, prompt = self._config, self._prompt(example)
        key, position = row_key(config.seed, self._example_ids[example], sample), len(prompt) - 1
        self._packed[slot] = new_row(prompt[max(position - 1, 0)], prompt[-1], position, config.max_decode_tokens, key)
        item, drafted = example * config.num_samples + sample, position if len(self._staged.states) > 1 else None
        self._occupants[slot] = Occupant(item, now, chunks=[], prompt=prompt, drafted=drafted)

    # The draft, after chunks without it.

    def _example(self, occupant: Occupant) -> int:
        return occupant.item // self._config.num_samples

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
