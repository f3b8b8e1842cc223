"""The engine: `num_slots` rows decode together, finished rows make room for waiting ones.

A compiled *chunk* runs iterations on device until enough rows are done; the host then harvests finished rows, writes
prefilled examples into the free slots, and goes on.  Waiting examples are encoded in full batches of their own
bucket and staged while the chunk before still runs, so prefill never waits for slots and slots rarely for prefill.

Nothing in a row's result depends on what shares the batch with it: its random key comes from its example id, its
position from itself, and everything at or beyond its position is masked.
"""

import collections
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding import autoregressive, speculative
from decoding.adaptive import PROBE_ITERATIONS, Costs, GammaPolicy
from decoding.compilation import Compiler
from decoding.config import DecodingConfig, Generation
from decoding.drafts import Draft, as_draft
from decoding.harvest import Occupant, generation, guesses
from decoding.models.base import LanguageModel
from decoding.models.vocabulary import of_one_vocabulary
from decoding.rows import WIDTH, Emission, idle_rows, new_row, pack, unpack
from decoding.sampling import row_key
from decoding.sharding import Placement, mesh_of

# Tokens per prefill batch, about: enough to keep an accelerator's matrix units busy, small enough for attention's
# [P, H, L, L] scores.
_PREFILL_TOKENS = 4096

# How often γ = "auto" measures: at least and at most so many rounds, and no new one after so many seconds.
_COST_ROUNDS, _COST_SECONDS = (3, 12), 4.0

# Names of the target's and the draft's programs. They are apart so that while γ = 0 is best, the draft costs nothing.
_PREFILL, _INSERT = ("prefill", "prefill draft"), ("insert", "insert draft")


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
class _Staged:
    """A batch of examples of one bucket: its tokens, its state rows on device as far as they are prefilled, the target's
    and then the draft's, and the (row, example, sample) triples still to be inserted.
    """

    bucket: int
    tokens: np.ndarray
    lengths: np.ndarray
    states: list
    waiting: collections.deque


def max_positions(config: DecodingConfig) -> int:
    """Decoder positions that resident states have room for.

    A row at its last position still has γ drafted tokens, or a block of catching up, written behind it.
    """
    return config.max_decode_tokens + max(config.gammas) + 1


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
          costs: for γ = "auto", seconds per iteration by (longest input, γ) as in `self.costs` of an earlier
            Generator, so that a job chooses the same γ on every worker; measured here where None.
          vocab_size: how many tokens may occur, where models are padded beyond their tokeniser's: the logits of later
            ones are cut off in both.  None for all, and then target and draft must have as many.

        Where the target lies on a mesh (`decoding.sharding`), so does everything: slots are shared out over its axis
        "data", and a draft that was loaded without the mesh is copied to all of its devices.

        Raises:
          ValueError: γ above 0 without a draft, vocabularies of different sizes, costs that lack an entry, or slots that
            the mesh does not divide.
        """
        self._prepare(target, draft, config, vocab_size)
        self._programs = self._compiler.compile()
        self.costs: Costs = self._measure_costs() if costs is None and len(config.gammas) > 1 else costs or {}
        missing = [key for key in self._choices() if key not in self.costs]
        if missing:
            raise ValueError(f"costs lack the (longest input, gamma) pairs {missing}; they have {sorted(self.costs)}")

    @classmethod
    def lowered(
        cls,
        target: LanguageModel,
        draft: Draft | LanguageModel | None,
        config: DecodingConfig,
        vocab_size: int | None = None,
    ) -> dict[Hashable, Callable[[], jax.stages.Lowered]]:
        """Every program of a Generator, to be lowered for the devices of the mesh that the target lies on.

        Arguments are those of a Generator, but models may be abstract: nothing is allocated, nor compiled.
        """
        self = cls.__new__(cls)
        self._prepare(target, draft, config, vocab_size)
        return self._compiler.lowered

    def _prepare(self, target, draft, config: DecodingConfig, vocab_size: int | None) -> None:
        """Everything up to compilation."""
        if draft is None and config.gammas != (0,):
            raise ValueError(f"decoding.gamma is {config.gamma!r} without a draft model; allowed: 0")
        target, draft = of_one_vocabulary(target, draft, vocab_size)
        if draft is not None and draft.encoder_decoder not in (None, target.encoder_decoder):
            raise ValueError("target and draft must both be encoder-decoder models or both be decoder-only")
        self.config = config
        self.eos_id, self.start_id, self._vocab_size = target.eos_id, target.start_id, target.vocab_size
        self._encoder_decoder = target.encoder_decoder
        # γ = 0 alone never calls the draft, so it is neither prefilled nor kept.
        models = (target,) if config.gammas == (0,) else (target, as_draft(draft))
        self._placement = Placement(mesh_of(models[0]))
        self._placement.check_slots(config.num_slots)
        self._graphs, params = zip(*(nnx.split(model) for model in models))
        # A flat list crosses into a program in C++; nnx's own tree would be flattened in Python at every call.
        self._params, self._structure = jax.tree.flatten(self._placement.settle(params))
        self._lock = threading.Lock()
        self._compiler = Compiler()
        self._add_programs()

    def plain(self) -> "Generator":
        """Plain decoding by the same target with the same settings; parameters are shared, programs compiled here."""
        target = self._models(self._params)[0]
        return Generator(target, None, dataclasses.replace(self.config, gamma=0))

    def _choices(self) -> list[tuple[int, int]]:
        """(input length, γ) pairs whose costs a choice of γ needs; none where there is no choice."""
        config = self.config
        return [(config.max_input_tokens, gamma) for gamma in config.gammas if len(config.gammas) > 1]

    def generate(self, inputs: Sequence[Sequence[int]], example_ids: Sequence[str]) -> list[Generation]:
        """Decodes every input `num_samples` times.

        Args:
          inputs: token ids, each from 1 to `config.max_input_tokens` long.
          example_ids: distinct; with the seed, they determine the random numbers.

        Returns:
          One Generation per input and sample, in the order of inputs, samples of one input adjacent.

        Raises:
          ValueError: an input's length is not allowed, ids repeat, or the two arguments differ in length.
        """
        return self.generate_with_report(inputs, example_ids)[0]

    def generate_with_report(
        self, inputs: Sequence[Sequence[int]], example_ids: Sequence[str]
    ) -> tuple[list[Generation], EngineReport]:
        """As `generate`, with a report of how the batch was used."""
        self._check(inputs, example_ids)
        with self._lock:
            return self._run(inputs, example_ids)

    def _check(self, inputs, example_ids) -> None:
        if len(inputs) != len(example_ids):
            raise ValueError(f"{len(inputs)} inputs and {len(example_ids)} example ids; they must be as many")
        repeated = [name for name, times in collections.Counter(example_ids).items() if times > 1]
        if repeated:
            raise ValueError(f"example ids must be distinct; repeated: {repeated[:5]}")
        for tokens, name in zip(inputs, example_ids):
            if not 1 <= len(tokens) <= self.config.max_input_tokens:
                raise ValueError(
                    f"input {name!r} has {len(tokens)} tokens; allowed: 1 to {self.config.max_input_tokens}"
                )
            # A gather would clamp such a token silently.
            for token in (min(tokens), max(tokens)):
                if not 0 <= token < self._vocab_size:
                    raise ValueError(
                        f"input {name!r} has the token {token}; allowed: 0 to {self._vocab_size - 1}, the vocabulary"
                    )

    # Compilation.

    def _prefill_rows(self, bucket: int) -> int:
        rows = max(1, min(self.config.num_slots, _PREFILL_TOKENS // bucket))
        return max(rows // self._placement.groups * self._placement.groups, 1)

    def _add_programs(self) -> None:
        config, place = self.config, self._placement
        integers = lambda shape: place.whole(jax.ShapeDtypeStruct(shape, jnp.int32))
        params = place.abstract(self._params)
        models = self._models(params)
        states = place.states(models, jax.eval_shape(self._empty))
        add, slots = self._compiler.add, integers((config.num_slots,))
        add("empty", place.jit(self._empty, states))
        for bucket in config.input_buckets:
            rows = self._prefill_rows(bucket)
            arguments = (params, integers((rows, bucket)), integers((rows,)))
            for which, (model, state) in enumerate(zip(models, states)):
                prefill = functools.partial(self._prefill, which)
                (staged,) = place.states([model], [jax.eval_shape(prefill, *arguments)])
                add((_PREFILL[which], bucket), place.jit(prefill, staged), *arguments)
                insert = place.jit(_insert, state, donate_argnums=0)
                add((_INSERT[which], bucket), insert, state, staged, slots, slots)
        for gamma in config.gammas:
            chunk, used = functools.partial(self._chunk, gamma), _used(states, gamma)
            arguments = (params, used, integers((config.num_slots, WIDTH)), integers(()), integers(()))
            outputs = (used, place.everywhere, place.everywhere)
            add(("chunk", gamma), place.jit(chunk, outputs, donate_argnums=1), *arguments)
        if len(config.gammas) > 1:
            block = integers((config.num_slots, max(config.gammas) + 1))
            add("follow", place.jit(self._follow, states[1], donate_argnums=1), params, states[1], block, slots)

    def _measure_costs(self) -> Costs:
        """Seconds per iteration of every γ, all rows decoding.

        Rounds over all γ, so that a machine that slows down for a while slows all of them; of each γ the fastest chunk,
        since whatever else runs can only add.
        """
        config, choices = self.config, self._choices()
        row = new_row(self.start_id, self.start_id, 0, config.max_decode_tokens, row_key(config.seed, "", 0))
        states = self._programs["empty"]()

        def seconds(gamma: int) -> float:
            nonlocal states
            # As many as a chunk has, if every token is accepted: what a call costs beside them is shared as in a job.
            iterations = max(1, min(config.chunk_iterations, config.max_decode_tokens // (gamma + 1)))
            packed, started = np.tile(row, (config.num_slots, 1)), time.perf_counter()
            # No number of done rows ends it, so it runs them all, also where a row draws EOS.
            states, _, log = self._advance(gamma, states, packed, iterations, config.num_slots + 1)
            jax.device_get(log)
            return (time.perf_counter() - started) / iterations

        costs, began = {}, time.perf_counter()
        for number in range(_COST_ROUNDS[1] + 1):
            measured = {choice: seconds(choice[1]) for choice in choices}
            if number:  # the first round touches memory for the first time
                costs = {choice: min(measured[choice], costs.get(choice, np.inf)) for choice in choices}
            if number >= _COST_ROUNDS[0] and time.perf_counter() - began > _COST_SECONDS:
                break
        return costs

    def _models(self, params) -> list[LanguageModel]:
        return [nnx.merge(*pair) for pair in zip(self._graphs, jax.tree.unflatten(self._structure, params))]

    def _empty(self):
        """Resident states.  They have one length whatever the shard holds, so that a row meets the same programs, and
        its floats round the same way, in whichever shard it is; `attend_existing` skips what is not there.
        """
        models = self._models(self._placement.abstract(self._params))
        slots, inputs, positions = self.config.num_slots, self.config.max_input_tokens, max_positions(self.config)
        return tuple(model.init_state(slots, inputs, positions) for model in models)

    def _prefill(self, which: int, params, inputs, lengths):
        inputs, lengths = self._placement.split_rows(inputs), self._placement.split_rows(lengths)
        return self._models(params)[which].prefill(inputs, lengths)

    def _follow(self, params, state, tokens, positions):
        """Feeds the draft what was emitted without it: int32[B, γ_max + 1] decoder inputs from `positions` on."""
        return self._models(params)[1].follow(state, tokens, positions)

    def _chunk(self, gamma: int, params, states, packed, max_iterations, stop_done):
        """Iterates until `stop_done` rows are done or `max_iterations` is reached.

        `states` are those that this γ uses.

        Returns:
          states, packed rows, and an Emission whose arrays have the iteration as first axis [K, B, ...], with
          count 0 beyond the last iteration run.
        """
        models = self._models(params)
        limit = self.config.chunk_iterations

        def iterate(states, rows):
            if gamma == 0:
                state, rows, emission = autoregressive.iterate(models[0], *states, rows, self.config)
                return (state,), rows, emission
            *states, rows, emission = speculative.iterate(*models, *states, rows, gamma, self.config)
            return tuple(states), rows, emission

        def proceed(carry):
            k, _, rows, _ = carry
            return (k < jnp.minimum(max_iterations, limit)) & (jnp.sum(rows.done) < stop_done)

        def body(carry):
            k, states, rows, log = carry
            states, rows, emission = iterate(states, rows)
            log = jax.tree.map(lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, k, 0), log, emission)
            return k + 1, states, rows, log

        rows = unpack(self._placement.split_rows(packed))
        shapes = jax.eval_shape(iterate, states, rows)[2]
        log = jax.tree.map(lambda one: jnp.zeros((limit, *one.shape), one.dtype), shapes)
        _, states, rows, log = jax.lax.while_loop(proceed, body, (jnp.int32(0), states, rows, log))
        return states, pack(rows), log

    # The host's loop.

    def _advance(self, gamma: int, states, packed: np.ndarray, max_iterations: int, stop_done: int):
        """Runs a chunk: all states, packed rows and the Emissions, on device and perhaps not there yet."""
        used, rows, log = self._programs["chunk", gamma](
            self._params, _used(states, gamma), packed, np.int32(max_iterations), np.int32(stop_done)
        )
        return (*used, *states[len(used) :]), rows, log

    def _run(self, inputs, example_ids):
        config, started = self.config, time.perf_counter()
        compiled_before = self._compiler.events()
        results: list[Generation | None] = [None] * (len(inputs) * config.num_samples)
        # By content alone, so that the schedule does not depend on the order of arrival; longest first keeps
        # prefill batches of one bucket together and the drain short.
        order = collections.deque(sorted(range(len(inputs)), key=lambda i: (-len(inputs[i]), example_ids[i])))
        states = self._programs["empty"]()
        packed = idle_rows(config.num_slots)
        occupants: dict[int, Occupant] = {}
        staged: _Staged | None = None
        adaptive = len(config.gammas) > 1
        costs = {gamma: self.costs[config.max_input_tokens, gamma] for gamma in config.gammas} if adaptive else {0: 1.0}
        policy = GammaPolicy(costs)
        iterations_by_gamma = collections.Counter()
        row_iterations = chunks = 0

        while True:
            gamma, probe = policy.choose() if adaptive else (config.gammas[0], False)
            free = [slot for slot in range(config.num_slots) if slot not in occupants]
            while free and (order or staged):
                if staged is None:
                    staged = self._stage(inputs, order)
                self._prefill_staged(staged, gamma)
                states = self._fill(states, staged, free, packed, occupants, inputs, example_ids)
                if not staged.waiting:
                    staged = None
            if not occupants:
                break
            waiting = bool(order or staged)
            idle = config.num_slots - len(occupants)
            stop_done = idle + max(1, config.num_slots // 8) if waiting else config.num_slots
            if adaptive and gamma > 0:
                state = self._introduce(states[1], inputs, occupants)
                states = (states[0], self._catch_up(state, packed, occupants))
            limit = PROBE_ITERATIONS if probe else config.chunk_iterations
            states, rows, log = self._advance(gamma, states, packed, limit, stop_done)
            # Queued behind the chunk, so that the device has it ready, or begun, when the first slot is free.
            if staged is None and order:
                staged = self._stage(inputs, order)
                self._prefill_staged(staged, 0 if probe else gamma)
            packed, log = jax.device_get((rows, log))
            packed = packed.copy()
            if adaptive:
                policy.observe(gamma, *guesses(log, gamma))
            chunks += 1
            ran = int(np.sum(np.any(log.count > 0, axis=1)))
            iterations_by_gamma[gamma] += ran
            row_iterations += int(np.sum(log.count > 0))
            now = time.perf_counter()
            for slot in list(occupants):
                occupant = occupants[slot]
                occupant.chunks.append(Emission(*(array[:, slot] for array in log)))
                if gamma > 0:
                    # One less than the position: after full acceptance the draft never saw its own last token.
                    occupant.drafted = max(int(packed[slot, 2]) - 1, 0)
                if packed[slot, 4]:
                    results[occupant.item] = generation(occupant, self.eos_id, now)
                    del occupants[slot]
        seconds = time.perf_counter() - started
        iterations = sum(iterations_by_gamma.values())
        report = EngineReport(
            iterations=iterations,
            row_iterations=row_iterations,
            occupancy=row_iterations / (iterations * config.num_slots) if iterations else 1.0,
            chunks=chunks,
            seconds=seconds,
            compilations=self._compiler.events() - compiled_before,
            gammas=dict(iterations_by_gamma),
        )
        return results, report

    def _introduce(self, state, inputs, occupants: dict[int, Occupant]):
        """Prefills the draft for rows that came while γ was 0."""
        config, strangers = self.config, collections.defaultdict(list)
        for slot, occupant in occupants.items():
            if occupant.drafted is None:
                example = inputs[occupant.item // config.num_samples]
                strangers[self._bucket(len(example))].append((slot, example))
                occupant.drafted = len(occupant.prompt) - 1
        for bucket, pairs in strangers.items():
            rows = self._prefill_rows(bucket)
            for some in (pairs[i : i + rows] for i in range(0, len(pairs), rows)):
                tokens, lengths = self._batch(bucket, [example for _, example in some])
                prefilled = self._programs[_PREFILL[1], bucket](self._params, tokens, lengths)
                source, slots = self._moves([(row, slot) for row, (slot, _) in enumerate(some)])
                state = self._programs[_INSERT[1], bucket](state, prefilled, source, slots)
        return state

    def _catch_up(self, state, packed: np.ndarray, occupants: dict[int, Occupant]):
        """Feeds the draft the tokens emitted without it, so that it stands at most one behind every row.

        The first step of a proposal feeds the last two tokens itself.  Rows that lack nothing are fed padding at
        their own position, where the cache holds nothing yet.
        """
        block = max(self.config.gammas) + 1
        while True:
            tokens = np.zeros((len(packed), block), np.int32)
            positions = packed[:, 2].copy()
            behind = False
            for slot, occupant in occupants.items():
                position = int(packed[slot, 2])
                missing = position - 1 - occupant.drafted
                if missing > 0:
                    behind = True
                    inputs = occupant.decoder_inputs()[occupant.drafted : position - 1][:block]
                    tokens[slot, : len(inputs)], positions[slot] = inputs, occupant.drafted
                    occupant.drafted += len(inputs)
            if not behind:
                return state
            state = self._programs["follow"](self._params, state, tokens, positions)

    def _bucket(self, length: int) -> int:
        return next(bucket for bucket in self.config.input_buckets if length <= bucket)

    def _batch(self, bucket: int, examples: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """int32[P, bucket] tokens and int32[P] lengths of a prefill batch."""
        rows = self._prefill_rows(bucket)
        tokens, lengths = np.zeros((rows, bucket), np.int32), np.ones((rows,), np.int32)
        for row, example in enumerate(examples):
            lengths[row] = len(example)
            tokens[row, : lengths[row]] = example
        return tokens, lengths

    def _stage(self, inputs, order: collections.deque) -> _Staged:
        """Takes the next examples of one bucket."""
        bucket, examples = self._bucket(len(inputs[order[0]])), []
        while order and len(examples) < self._prefill_rows(bucket) and self._bucket(len(inputs[order[0]])) == bucket:
            examples.append(order.popleft())
        samples = range(self.config.num_samples)
        waiting = collections.deque((row, example, i) for row, example in enumerate(examples) for i in samples)
        return _Staged(bucket, *self._batch(bucket, [inputs[example] for example in examples]), [], waiting)

    def _prefill_staged(self, staged: _Staged, gamma: int) -> None:
        """Has prefilled what a chunk of this γ needs."""
        for which in range(len(staged.states), 2 if gamma else 1):
            prefill = self._programs[_PREFILL[which], staged.bucket]
            staged.states.append(prefill(self._params, staged.tokens, staged.lengths))

    def _moves(self, pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """(row, slot) pairs as `_insert` takes them."""
        source = np.zeros((self.config.num_slots,), np.int32)
        slots = np.full((self.config.num_slots,), self.config.num_slots, np.int32)  # out of range: dropped
        for i, pair in enumerate(pairs):
            source[i], slots[i] = pair
        return source, slots

    def _fill(self, states, staged: _Staged, free: list[int], packed, occupants, inputs, example_ids):
        """Moves staged rows into free slots; `free`, `packed` and `occupants` are updated in place."""
        config, now, moved = self.config, time.perf_counter(), []
        for _ in range(min(len(free), len(staged.waiting))):
            row, example, sample = staged.waiting.popleft()
            slot = free.pop(0)
            moved.append((row, slot))
            key = row_key(config.seed, example_ids[example], sample)
            prompt = [self.start_id] if self._encoder_decoder else inputs[example]
            position = len(prompt) - 1
            packed[slot] = new_row(prompt[max(position - 1, 0)], prompt[-1], position, config.max_decode_tokens, key)
            item = example * config.num_samples + sample
            drafted = position if len(staged.states) > 1 else None
            occupants[slot] = Occupant(item, now, chunks=[], prompt=prompt, drafted=drafted)
        moves = self._moves(moved)
        inserted = [
            self._programs[name, staged.bucket](state, new, *moves)
            for name, state, new in zip(_INSERT, states, staged.states)
        ]
        return (*inserted, *states[len(inserted) :])


def _used(states, gamma: int):
    """The states that a chunk of this γ works on; one that only passes through a loop is copied on its way, by XLA on CPU."""
    return states if gamma else states[:1]


def _insert(state, staged, source: jax.Array, slots: jax.Array):
    """Writes staged rows `source[i]` into slots `slots[i]`; out-of-range slots are dropped.

    Staged leaves may be shorter than the resident ones along any axis but the first, and are written at the origin.
    """

    def write(resident, new):
        window = (slots, *(slice(0, size) for size in new.shape[1:]))
        return resident.at[window].set(new[source], mode="drop")

    def merge(resident, new):
        if isinstance(new, dict):
            return resident | {name: merge(resident[name], new[name]) for name in new}
        return jax.tree.map(write, resident, new)

    return merge(state, staged)
