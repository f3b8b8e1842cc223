"""The compiled programs of a beam search: those of `decoding.programs`, whose chunks are of other rows."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoding.beams import drafting, search, speculative
from decoding.beams.search import Beams, Rules
from decoding.config import DecodingConfig
from decoding.drafts.base import Draft, ModelDraft
from decoding.models.base import LanguageModel
from decoding.programs import DRAFT, TARGET, Programs, used


class Found(NamedTuple):
    """What the host reads of searches; see `Beams`."""

    texts: jax.Array
    logprobs: jax.Array
    scores: jax.Array
    ends: jax.Array
    start: jax.Array
    depth: jax.Array
    calls: jax.Array
    call: jax.Array
    kind: jax.Array
    done: jax.Array
    fault: jax.Array


class BeamPrograms(Programs):
    """Programs of a target and a draft under a configuration with beams."""

    def __init__(
        self, target: LanguageModel, draft: Draft | LanguageModel | None, config: DecodingConfig, vocab_size: int | None
    ):
        self._rules = Rules.of(target, config)
        super().__init__(target, draft, config, vocab_size)
        self.draft_may_rest = False  # a cascade guesses for every beam

    def no_beams(self) -> Beams:
        """Searches of which none is going on."""
        return self._compiled["empty beams"]()

    def chunk(
        self, gamma: int, states, beams: Beams, prompts: np.ndarray, lengths: np.ndarray, max_iterations: int, stop_done: int
    ):
        """Begins searches where int32[B] lengths of prompts int32[B, L] are above 0, and iterates as other chunks do.

        Returns:
          States and beams, the given ones taken over; `Found`; and int32[2], iterations of the batch and of all rows.
        """
        limits = (np.int32(max_iterations), np.int32(stop_done))
        run, mine = self._compiled["chunk", gamma], used(states, gamma)
        mine, *found = run(self._params, mine, beams, prompts, lengths, *limits)
        return (*mine, *states[len(mine) :]), *found

    def follow(self, state, beams: Beams, since: np.ndarray):
        """The draft's state as `drafting.caught_up` has it."""
        return self._compiled["follow"](self._params, state, beams, since)

    def trial(self, gamma: int, states, iterations: int, rests: bool):
        prompts = np.full((self.config.num_slots, self.prompt_length), self.start_id, np.int32)
        lengths = np.ones((self.config.num_slots,), np.int32)
        states, _, _, counts = self.chunk(
            gamma, states, self.no_beams(), prompts, lengths, iterations, self.config.num_slots + 1
        )
        jax.device_get(counts)
        return states

    def _room(self) -> int:
        return search.positions(self.config)

    @property
    def prompt_length(self) -> int:
        """Decoder inputs that a search may begin with, at most."""
        return 1 if self.encoder_decoder else self.config.max_input_tokens

    def _empty_beams(self) -> Beams:
        length = self._room() + (0 if self.encoder_decoder else self.config.max_input_tokens)
        return search.empty(self._rules, self.config.num_slots, length)

    def _add_chunks(self, params, states) -> None:
        place, add, slots = self._placement, self.compiler.add, self.config.num_slots
        beams = place.whole(jax.eval_shape(self._empty_beams))
        add("empty beams", place.jit(self._empty_beams, place.everywhere))
        rows = self._integers(slots, self.prompt_length), self._integers(slots)
        for gamma in self.config.gammas:
            mine = used(states, gamma)
            chunk, outputs = functools.partial(self._chunk_of_beams, gamma), (mine, *(place.everywhere,) * 3)
            chunk = place.jit(chunk, outputs, donate_argnums=(1, 2))
            add(("chunk", gamma), chunk, params, mine, beams, *rows, self._integers(), self._integers())
        if len(self.config.gammas) > 1:
            follow = place.jit(self._follow, states[DRAFT], donate_argnums=1)
            add("follow", follow, params, states[DRAFT], beams, self._integers(slots))

    def _follow(self, params, state, beams, since):
        draft = self._models(params)[DRAFT]
        return drafting.caught_up(draft.model, state, beams, since) if isinstance(draft, ModelDraft) else state

    def _chunk_of_beams(self, gamma, params, states, beams, prompts, lengths, max_iterations, stop_done):
        models = self._models(params)
        if gamma:
            iterate = functools.partial(speculative.iterate, *models, gamma=gamma, rules=self._rules)
        else:
            iterate = self._iterate_plain(models[TARGET])

        def proceed(carry):
            k, _, _, beams = carry
            return (k < jnp.minimum(max_iterations, self.config.chunk_iterations)) & (jnp.sum(beams.done) < stop_done)

        def body(carry):
            k, rows, states, beams = carry
            rows = rows + jnp.sum(~beams.done)
            states, beams = iterate(states, beams)
            return k + 1, rows, states, beams

        beams = search.renewed(jax.tree.map(self._placement.split_rows, beams), self._rules, prompts, lengths)
        start = (jnp.int32(0), jnp.int32(0), states, beams)
        k, rows, states, beams = jax.lax.while_loop(proceed, body, start)
        found = Found(
            texts=beams.finished_texts,
            logprobs=beams.finished_logprobs,
            scores=beams.finished_scores,
            ends=beams.finished_depth,
            **{name: getattr(beams, name) for name in ("start", "depth", "calls", "call", "kind", "done", "fault")},
        )
        return states, beams, found, jnp.stack([k, rows])

    def _iterate_plain(self, target: LanguageModel):
        def iterate(states, beams):
            state, beams = search.step(target, *states, beams, self._rules)
            return (state,), beams

        return iterate
