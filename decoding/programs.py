"""The compiled programs of a `Generator`: everything that runs on device.

For every bucket a prefill of target and draft and their insertion into slots, for every γ a chunk of iterations, and for
γ = "auto" what lets the draft catch up.  Resident states have one length whatever a shard holds, so that a row meets the
same programs, and its floats round the same way, in whichever shard it is; `attend_existing` skips what is not there.
"""

import functools
import logging
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding import speculative
from decoding.adaptive import Costs
from decoding.beams.search import positions
from decoding.compilation import Compiler
from decoding.config import DecodingConfig
from decoding.drafts.base import Draft, as_draft, fitted
from decoding.models.base import LanguageModel, eos_ids, install
from decoding.models.forced import with_forced_tokens, without_first_tokens
from decoding.models.positions import check_positions
from decoding.rows import DONE, POSITION, WIDTH, new_row, pack, unpack
from decoding.sampling import row_key
from decoding.sharding import Placement, mesh_of

# Which model a program is of.  Those of the two are apart so that while γ = 0 is best, the draft costs nothing.
TARGET, DRAFT = 0, 1
_PREFILL, _INSERT = ("prefill", "prefill draft"), ("insert", "insert draft")

# Tokens per prefill batch, about: enough to keep matrix units busy, small enough for attention's [P, H, L, L] scores. A
# processor is busy with fewer, and pays for the rows that a bucket's last batch does not fill.
_PREFILL_TOKENS, _PREFILL_TOKENS_CPU = 4096, 512
# Within these tokens a processor prefills so many examples even for fewer slots: weights are read once for all of them.
_PREFILL_ROWS_CPU = 8

# How often γ = "auto" measures: at least and at most so many rounds, no new one after so many seconds, and in a round as many
# iterations of each γ as take so many seconds together, by the round before.
_COST_ROUNDS, _COST_SECONDS, _TRIAL_SECONDS = (3, 12), 2.0, 0.06


def max_positions(config: DecodingConfig) -> int:
    """Decoder positions that resident states have room for.

    A row at its last position still has γ drafted tokens, or a block of catching up, written behind it. Of beams they are
    entries of one tree, see `decoding.beams.search`.
    """
    if config.beam_search:
        return positions(config)
    return config.max_decode_tokens + max(config.gammas) + 1


def prefill_rows(config: DecodingConfig, bucket: int, groups: int = 1, platform: str = "tpu") -> int:
    """Examples per prefill batch, where rows are shared out over so many groups of devices."""
    tokens, ahead = (_PREFILL_TOKENS_CPU, _PREFILL_ROWS_CPU) if platform == "cpu" else (_PREFILL_TOKENS, 1)
    rows = max(1, min(max(config.num_slots, ahead), tokens // bucket))
    return max(rows // groups * groups, 1)


class Programs:
    """Programs of a target and a draft under a configuration.

    Attributes:
      config: settings.
      eos_ids, start_id, vocab_size, encoder_decoder: the models', as in `LanguageModel`.
      draft_may_rest: the draft's, as in `Draft.may_rest`.
      compiler: has the programs to be lowered, until they are compiled.
    """

    def __init__(
        self, target: LanguageModel, draft: Draft | LanguageModel | None, config: DecodingConfig, vocab_size: int | None
    ):
        """Arguments and errors are those of a `Generator`; models may be abstract, and then `compile` is not to be called."""
        if draft is None and config.gammas != (0,):
            raise ValueError(f"decoding.gamma is {config.gamma!r} without a draft model; allowed: 0")
        target, draft = fitted(target, draft, vocab_size)
        if config.hint_tokens and config.gammas != (0,):
            draft = as_draft(draft).with_hints(config.hint_tokens)
        for name, model in (("the model", target), ("the draft", draft)):
            check_positions(name, model, config)
        target, draft = with_forced_tokens(target, config), without_first_tokens(draft, config)
        self.config = config
        self.eos_ids, self.start_id, self.vocab_size = eos_ids(target), target.start_id, target.vocab_size
        self.encoder_decoder = target.encoder_decoder
        self.draft_may_rest = getattr(draft, "may_rest", False)
        # γ = 0 alone never calls the draft, so it is neither prefilled nor kept.
        models = (target,) if config.gammas == (0,) else (target, as_draft(draft))
        self._placement = Placement(mesh_of(target))
        self._placement.check_slots(config.num_slots)
        self._graphs, params = zip(*(nnx.split(model) for model in models))
        # A flat list crosses into a program in C++; nnx's own tree would be flattened in Python at every call.
        self._params, self._structure = jax.tree.flatten(self._placement.replicate(params))
        self.compiler = Compiler()
        self._add()

    def compile(self) -> None:
        """Makes the programs callable."""
        self._compiled = self.compiler.compile()

    def target(self) -> LanguageModel:
        """The target, with the vocabulary it is decoded with; parameters are shared."""
        return self._models(self._params)[TARGET]

    def prefill_rows(self, bucket: int) -> int:
        """Examples per prefill batch."""
        return prefill_rows(self.config, bucket, self._placement.groups, self._placement.platform)

    # What the host's loop calls.  Results are on device and perhaps not there yet.

    def empty(self) -> tuple:
        """Resident states of target and, unless γ is always 0, draft."""
        return self._compiled["empty"]()

    def prefill(self, which: int, tokens: np.ndarray, lengths: np.ndarray, hints: np.ndarray | None = None):
        """The state of int32[P, bucket] tokens and their int32[P] lengths, P being `prefill_rows(bucket)`.

        Args:
          hints: int32[P, hint_tokens] as in `Draft.prefill`, None where the config has no room for any.
        """
        own = () if which == TARGET or hints is None else (hints,)
        return self._compiled[_PREFILL[which], tokens.shape[1]](self._params, tokens, lengths, *own)

    def insert(self, which: int, bucket: int, state, staged, source: np.ndarray, slots: np.ndarray):
        """`state`, whose memory is taken over, with rows int32[B] `source` of a prefilled one in int32[B] `slots`."""
        return self._compiled[_INSERT[which], bucket](state, staged, source, slots)

    def follow(self, state, tokens: np.ndarray, positions: np.ndarray):
        """The draft's state, fed what was emitted without it: int32[B, γ_max + 1] decoder inputs from int32[B] positions."""
        return self._compiled["follow"](self._params, state, tokens, positions)

    def chunk(self, gamma: int, states, packed: np.ndarray, max_iterations: int, stop_done: int):
        """Iterates until `stop_done` rows are done or `max_iterations` is reached.

        Returns:
          All states, of which those that this γ uses are taken over; packed rows; and an Emission whose arrays have the
          iteration as first axis [K, B, ...], with count 0 beyond the last iteration run.
        """
        mine, rows, log = self._compiled["chunk", gamma](
            self._params, used(states, gamma), packed, np.int32(max_iterations), np.int32(stop_done)
        )
        return (*mine, *states[len(mine) :]), rows, log

    def trial(self, gamma: int, states, iterations: int, rests: bool):
        """A chunk of so many iterations in which all rows decode, from a blank start; states as of `chunk`, when it is done.

        Args:
          rests: all rows are done, so that a cascade's model rests.
        """
        config = self.config
        row = new_row(self.start_id, self.start_id, 0, config.max_decode_tokens, row_key(config.seed, "", 0))
        # No number of done rows ends it, so it runs them all, also where a row draws EOS.
        packed, never = np.tile(row, (config.num_slots, 1)), config.num_slots + 1
        if rests:  # rows that are done stay where they are: in the middle of where the others come
            packed[:, DONE], packed[:, POSITION] = 1, iterations * (gamma + 1) // 2
        states, _, log = self.chunk(gamma, states, packed, iterations, never)
        jax.device_get(log)
        return states

    # The programs themselves.

    def _add(self) -> None:
        config, place, add, integers = self.config, self._placement, self.compiler.add, self._integers
        params = place.abstract(self._params)
        models = self._models(params)
        states = place.states(models, jax.eval_shape(self._empty))
        slots = integers(config.num_slots)
        add("empty", place.jit(self._empty, states))
        for bucket in config.input_buckets:
            rows = self.prefill_rows(bucket)
            arguments = (params, integers(rows, bucket), integers(rows))
            hints = (integers(rows, config.hint_tokens),) if config.hint_tokens else ()
            for which, (model, state) in enumerate(zip(models, states)):
                prefill, given = functools.partial(self._prefill, which), arguments + (hints if which == DRAFT else ())
                (staged,) = place.states([model], [jax.eval_shape(prefill, *given)])
                add((_PREFILL[which], bucket), place.jit(prefill, staged), *given)
                insert = place.jit(install, state, donate_argnums=0)
                add((_INSERT[which], bucket), insert, state, staged, slots, slots)
        self._add_chunks(params, states)

    def _integers(self, *shape: int):
        return self._placement.whole(jax.ShapeDtypeStruct(shape, jnp.int32))

    def _add_chunks(self, params, states) -> None:
        config, place, add, integers = self.config, self._placement, self.compiler.add, self._integers
        for gamma in config.gammas:
            chunk, mine = functools.partial(self._chunk, gamma), used(states, gamma)
            arguments = (params, mine, integers(config.num_slots, WIDTH), integers(), integers())
            outputs = (mine, place.everywhere, place.everywhere)
            add(("chunk", gamma), place.jit(chunk, outputs, donate_argnums=1), *arguments)
        if len(config.gammas) > 1:
            slots, block, draft = config.num_slots, max(config.gammas) + 1, states[DRAFT]
            follow = place.jit(self._follow, draft, donate_argnums=1)
            add("follow", follow, params, draft, integers(slots, block), integers(slots))

    def _models(self, params) -> list[LanguageModel]:
        return [nnx.merge(*pair) for pair in zip(self._graphs, jax.tree.unflatten(self._structure, params))]

    def _empty(self):
        models = self._models(self._placement.abstract(self._params))
        return tuple(model.init_state(self.config.num_slots, self.config.max_input_tokens, self._room()) for model in models)

    def _room(self) -> int:
        return max_positions(self.config)

    def _prefill(self, which: int, params, *rows):
        return self._models(params)[which].prefill(*map(self._placement.split_rows, rows))

    def _follow(self, params, state, tokens, positions):
        return self._models(params)[DRAFT].follow(state, tokens, positions)

    def _chunk(self, gamma: int, params, states, packed, max_iterations, stop_done):
        models = self._models(params)
        limit = self.config.chunk_iterations

        def iterate(states, rows):
            if gamma == 0:
                state, rows, emission = speculative.iterate_plain(models[TARGET], *states, rows, self.config)
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


def used(states, gamma: int):
    """The states that a chunk of this γ works on; one that only passes through a loop is copied on its way, by XLA on CPU."""
    return states if gamma else states[:1]


def measure_costs(programs: Programs) -> Costs:
    """Seconds per iteration of every γ, all rows decoding; and by -γ of one in which the draft's model rests, if it ever does.

    Rounds over all γ, so that a machine that slows down for a while slows all of them; of each γ the fastest chunk,
    since whatever else runs can only add.
    """
    logging.getLogger("specbeam.status").info("measuring what each γ costs")
    config, states = programs.config, programs.empty()
    choices = [*config.gammas, *(-gamma for gamma in config.gammas if gamma and programs.draft_may_rest)]

    def seconds(choice: int, expected: float) -> float:
        nonlocal states
        gamma = abs(choice)
        # As many as a chunk has, if every token is accepted: what a call costs beside them is shared as in a job.
        chunk = max(1, min(config.chunk_iterations, config.max_decode_tokens // (gamma + 1)))
        iterations = min(chunk, math.ceil(_TRIAL_SECONDS / expected))
        started = time.perf_counter()
        states = programs.trial(gamma, states, iterations, rests=choice < 0)
        return (time.perf_counter() - started) / iterations

    costs, began, measured = {}, time.perf_counter(), dict.fromkeys(choices, _TRIAL_SECONDS)  # one iteration first
    for number in range(_COST_ROUNDS[1] + 1):
        measured = {choice: seconds(choice, measured[choice]) for choice in choices}
        if number:  # the first round touches memory for the first time
            costs = {choice: min(measured[choice], costs.get(choice, math.inf)) for choice in choices}
        if number >= _COST_ROUNDS[0] and time.perf_counter() - began > _COST_SECONDS:
            break
    return costs
