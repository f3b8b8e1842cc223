"""What a single pass of a model takes.

`PassTimer` runs a model's `step` in a loop on the device, over states shaped as the engine's, each pass fed with the
argmax of the one before so that none can be skipped or overlapped. A run takes `MIN_SECONDS`, which makes its one
dispatch and one transfer negligible. Drawing at a temperature, verification and the host's share are not in it.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decoding.compilation import Compiler
from decoding.models.base import LanguageModel, State, install
from decoding.sampling import argmax
from pipeline.benchmarking.paired import Ratio

MIN_SECONDS = 0.05  # of one timed run of passes
_MAX_PASSES = 1 << 12


class PassTimer:
    """Times passes of one model over chosen numbers of positions, at one batch size.

    Every row of the batch holds the same example. All programs are compiled at construction.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        num_slots: int,
        input_bucket: int,
        max_positions: int,
        positions: Sequence[int],
        min_seconds: float = MIN_SECONDS,
    ):
        """
        Args:
          model: what is timed.
          num_slots: rows per pass.
          input_bucket: length in tokens of the resident inputs.
          max_positions: decoder positions that the state has room for.
          positions: how many positions per row a pass feeds; one program for each.
          min_seconds: of one timed run, about.
        """
        self._graph, params = nnx.split(model)
        # As in the engine: a flat list crosses into a program in C++.
        self._params, self._structure = jax.tree.flatten(params)
        self._encoder_decoder = model.encoder_decoder
        self._num_slots, self._input_bucket, self._max_positions = num_slots, input_bucket, max_positions
        self._min_seconds = min_seconds
        integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
        params = jax.eval_shape(lambda: self._params)
        arguments = (params, integers((1, input_bucket)), integers((1,)))
        compiler = Compiler()
        compiler.add("fill", jax.jit(self._filled_state), *arguments)
        state = jax.eval_shape(self._filled_state, *arguments)
        run = jax.jit(self._run, donate_argnums=1)
        for width in positions:
            compiler.add(width, run, params, state, integers((num_slots, width)), *[integers(())] * 3)
        self._programs = compiler.compile()
        self._passes: dict[int, int] = {}

    def _model(self, params) -> LanguageModel:
        return nnx.merge(self._graph, jax.tree.unflatten(self._structure, params))

    def _filled_state(self, params, inputs: jax.Array, lengths: jax.Array) -> State:
        model = self._model(params)
        state = model.init_state(self._num_slots, self._input_bucket, self._max_positions)
        return install(state, model.prefill(inputs, lengths))

    def _run(self, params, state: State, tokens: jax.Array, passes: jax.Array, first: jax.Array, span: jax.Array):
        """`passes` passes that start at positions spread evenly over first .. first + span - 1."""
        model = self._model(params)

        def one(k, carry):
            tokens, state = carry
            start = jnp.full((self._num_slots,), first + k * span // passes, jnp.int32)
            logits, state = model.step(tokens, start, state)
            return argmax(logits), state

        return jax.lax.fori_loop(0, passes, one, (tokens, state))

    def seconds(self, example: Sequence[int], span: int, order: Sequence[int]) -> dict[int, float]:
        """Seconds per pass, by number of positions.

        Args:
          example: token ids of the input that every row holds, at most `input_bucket` long.
          span: passes start at `span` positions, spread evenly from where decoding starts: 0, or of a decoder-only model
            the example's last token; span - 1 + the most positions of a pass fit into `max_positions`.
          order: the numbers of positions in the order to measure them.
        """
        inputs = np.zeros((1, self._input_bucket), np.int32)
        inputs[0, : len(example)] = example
        state = self._programs["fill"](self._params, inputs, np.array([len(example)], np.int32))
        jax.block_until_ready(state)  # or the first run would be timed with the prefill, which may take as long as ten
        first, found = 0 if self._encoder_decoder else len(example) - 1, {}
        for width in order:
            if width not in self._passes:
                state = self._choose_passes(state, width, first, span)
            state, seconds = self._timed(state, width, self._passes[width], first, span)
            found[width] = seconds / self._passes[width]
        return found

    def _choose_passes(self, state: State, width: int, first: int, span: int) -> State:
        """Finds the number of passes that takes about `min_seconds`, from runs that are not counted."""
        state, _ = self._timed(state, width, 1, first, span)  # a program's first run is slower
        passes = 1
        while passes < _MAX_PASSES:
            state, seconds = self._timed(state, width, passes, first, span)
            if seconds >= self._min_seconds:
                break
            # A short run is mostly dispatch, so that the estimate errs to too few and is made again.
            passes = min(max(2 * passes, math.ceil(passes * self._min_seconds / seconds)), _MAX_PASSES)
        self._passes[width] = passes
        return state

    def _timed(self, state: State, width: int, passes: int, first: int, span: int) -> tuple[State, float]:
        tokens = np.zeros((self._num_slots, width), np.int32)
        started = time.perf_counter()
        counts = (np.int32(count) for count in (passes, first, span))
        tokens, state = self._programs[width](self._params, state, tokens, *counts)
        jax.block_until_ready((tokens, state))
        return state, time.perf_counter() - started


@dataclasses.dataclass(frozen=True)
class Pass:
    """One run of a model ("target" or "draft") over `positions` positions of each of `num_slots` rows."""

    num_slots: int
    model: str
    positions: int


PassSeconds = Mapping[Pass, Sequence[float]]
"""Seconds of each kind of pass, by counted repeat."""


def draft_cost(seconds: PassSeconds, num_slots: int, plain: int = 1) -> Ratio | None:
    """The paper's c: time of a draft run over time of a target run, both over `plain` positions, those of a call of plain
    decoding. None without a draft."""
    draft = seconds.get(Pass(num_slots, "draft", plain))
    return Ratio.of(draft, seconds[Pass(num_slots, "target", plain)]) if draft else None


def pass_cost(seconds: PassSeconds, num_slots: int, positions: int, plain: int = 1) -> Ratio:
    """Time of a target run over so many positions, over time of a run over as many as plain decoding's."""
    return Ratio.of(seconds[Pass(num_slots, "target", positions)], seconds[Pass(num_slots, "target", plain)])
