"""Measuring settings against each other: in which order, with which interval, and what a single model pass takes.

*Order.* Settings that are compared with each other form a group. Every repeat runs every group once, in a random
order, and within the group every setting, in a random order: what disturbs the machine for longer than a group takes
falls on all of its settings alike, and no setting always follows the same other one. Repeat 0 warms everything up and
is not counted.

*Interval.* A speedup is the geometric mean over repeats of (plain seconds per token / seconds per token), both from
the same repeat. Its interval is Student's t interval of the mean log ratio. With the usual 5 to 10 repeats it keeps
its level for roughly normal log ratios, where a percentile bootstrap over so few repeats is too narrow (it divides by
n in place of n - 1 and has the normal's quantiles in place of t's: 0.74 of the t interval's width at 7 repeats).

*Passes.* `PassTimer` runs a model's `step` in a loop on the device, over states shaped as the engine's, each pass fed
with the argmax of the one before so that none can be skipped or overlapped. A run takes `MIN_SECONDS`, which makes its
one dispatch and one transfer negligible. Drawing at a temperature, verification and the host's share are not in it.
"""

import collections
import dataclasses
import functools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import stdtrit

import decoding
from decoding import DecodingConfig
from decoding.compilation import Compiler
from decoding.drafts import Draft
from decoding.models.base import LanguageModel, State
from decoding.sampling import argmax
from transforms.aggregate import DecodedText, Statistics, shard_statistics
from transforms.records import Example

LEVEL = 0.95
METHOD = "geometric mean over repeats of the ratio within a repeat; Student's t interval of the mean log ratio"
MIN_SECONDS = 0.05  # of one timed run of passes
_MAX_PASSES = 1 << 12

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio measured in several repeats.

    Attributes:
      mean: geometric mean over repeats.
      low, high: ends of the interval at LEVEL; None where fewer than two repeats leave it unknown.
      repeats: how many were counted.
    """

    mean: float
    low: float | None
    high: float | None
    repeats: int

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> "Ratio":
        """The ratio of two measurements, paired by repeat. See the module's docstring.

        Raises:
          ValueError: different numbers of repeats, none, or values that are not above 0.
        """
        if len(numerators) != len(denominators) or not numerators:
            raise ValueError(f"{len(numerators)} and {len(denominators)} repeats; as many of both, at least 1, are needed")
        if min(*numerators, *denominators) <= 0:
            raise ValueError("a measurement is 0 or negative; ratios need positive ones")
        logs = np.log(numerators) - np.log(denominators)  # float64[repeats]
        count, mean = len(logs), float(np.mean(logs))
        if count < 2:
            return cls(math.exp(mean), None, None, count)
        margin = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * float(np.std(logs, ddof=1)) / math.sqrt(count)
        return cls(math.exp(mean), math.exp(mean - margin), math.exp(mean + margin), count)


def interleaved(groups: Sequence[Sequence[T]], repeats: int, seed: int) -> Iterator[tuple[int, list[T]]]:
    """Yields (repeat, settings of one group in the order to run) for repeats 0, not to be counted, to `repeats`."""
    order = random.Random(seed)
    for repeat in range(repeats + 1):
        for group in order.sample(list(groups), len(groups)):
            yield repeat, order.sample(list(group), len(group))


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
        return _write(state, model.prefill(inputs, lengths))

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


def _write(state: Any, row: Any) -> Any:
    """`state` with the one prefilled `row` in every slot, at the origin of each leaf's other axes."""
    if isinstance(row, dict):
        return state | {name: _write(state[name], row[name]) for name in row}
    return jax.tree.map(
        lambda all_, one: all_.at[(slice(None), *(slice(0, size) for size in one.shape[1:]))].set(one), state, row
    )


# What is compared.


def slots(count: int) -> str:
    """ "8 slots"."""
    return f"{count} slot{'s' if count != 1 else ''}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to decode the inputs."""

    num_slots: int
    temperature: float
    verification: str
    gamma: int | str

    @property
    def same_tokens(self) -> bool:
        """Whether an exact decoder emits plain decoding's very tokens: at temperature 0, and with coupled noise."""
        return self.temperature == 0 or self.verification == "coupled"

    def config(self, base: DecodingConfig) -> DecodingConfig:
        """`base` with this setting's values. Raises ValueError where they do not go together."""
        return dataclasses.replace(base, **dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """Its way of decoding, for people, γ aside."""
        if self.gamma == 0:
            return "plain, coupled" if self.verification == "coupled" and self.temperature > 0 else "plain"
        return self.verification if self.temperature > 0 else "greedy"

    def __str__(self) -> str:
        gamma = f", γ {self.gamma}" if self.gamma != 0 else ""
        return f"{slots(self.num_slots)}, temperature {self.temperature:g}, {self.name}{gamma}"


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings of one batch size and temperature, with the plain one that their speedup is measured against."""

    plain: Setting
    speculative: tuple[Setting, ...]

    @property
    def settings(self) -> tuple[Setting, ...]:
        return (self.plain, *self.speculative)


@dataclasses.dataclass(frozen=True)
class Pass:
    """One run of a model ("target" or "draft") over `positions` positions of each of `num_slots` rows."""

    num_slots: int
    model: str
    positions: int


# What was measured.


@dataclasses.dataclass
class Measurements:
    """Of one setting. Lists have a value per counted repeat.

    Attributes:
      seconds: wall time of decoding all inputs.
      tokens: generated, each sequence's EOS included, however they were decoded.
      iterations: of the whole batch: target passes after prefill.
      row_iterations: of rows that were decoding, summed over rows.
      compilations: while decoding; 0 unless something is wrong.
      differing: generations whose tokens are not plain decoding's.
      generations: sequences per repeat.
      gammas: iterations by γ, over all counted repeats.
      statistics: of the generations of all counted repeats; where they are the same in each, of the first.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    iterations: list[int] = dataclasses.field(default_factory=list)
    row_iterations: list[int] = dataclasses.field(default_factory=list)
    compilations: list[int] = dataclasses.field(default_factory=list)
    differing: list[int] = dataclasses.field(default_factory=list)
    generations: int = 0
    gammas: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    statistics: Statistics = dataclasses.field(default_factory=Statistics)

    @property
    def seconds_per_token(self) -> list[float]:
        return [seconds / tokens for seconds, tokens in zip(self.seconds, self.tokens)]

    @property
    def seconds_per_iteration(self) -> list[float]:
        """Everything included: prefill, the host, and in speculative decoding the draft."""
        return [seconds / iterations for seconds, iterations in zip(self.seconds, self.iterations)]


PassSeconds = Mapping[Pass, Sequence[float]]
"""Seconds of each kind of pass, by counted repeat."""


def draft_cost(seconds: PassSeconds, num_slots: int) -> Ratio | None:
    """The paper's c: time of a draft run over time of a target run, both over one position. None without a draft."""
    draft = seconds.get(Pass(num_slots, "draft", 1))
    return Ratio.of(draft, seconds[Pass(num_slots, "target", 1)]) if draft else None


def pass_cost(seconds: PassSeconds, num_slots: int, positions: int) -> Ratio:
    """Time of a target run over so many positions, over time of a run over one."""
    return Ratio.of(seconds[Pass(num_slots, "target", positions)], seconds[Pass(num_slots, "target", 1)])


class Runner:
    """Runs the groups and the single passes, interleaved, and keeps what they took.

    Attributes:
      base: settings that all have in common.
      measured: by setting.
      passes: seconds of single passes.
      generators: by setting; everything is compiled at construction.
      span: single passes start at so many positions: the mean length of plain decoding's generations.
    """

    def __init__(
        self,
        target: LanguageModel,
        draft: Draft | LanguageModel | None,
        base: DecodingConfig,
        groups: Sequence[Group],
        examples: Sequence[Example],
        announce: Callable[[str], None] = lambda text: None,
        min_seconds: float = MIN_SECONDS,
        vocab_size: int | None = None,
    ):
        """
        Args:
          target, draft: the models. Of a draft that is no language model no single pass is measured.
          base: settings that all have in common; its input buckets are compiled.
          groups: what is compared.
          examples: what is decoded, at least one.
          announce: told what is being compiled.
          min_seconds: of one timed run of single passes, about.
          vocab_size: as of `decoding.Generator`.
        """
        self._groups, self._examples, self.base = groups, examples, base
        every = [setting for group in groups for setting in group.settings]
        widths = sorted({1, *(setting.gamma + 1 for setting in every if setting.gamma != "auto")})
        self.max_positions = base.max_decode_tokens + widths[-1]
        self.generators: dict[Setting, decoding.Generator] = {}
        for number, setting in enumerate(every, 1):
            announce(f"compiling {number}/{len(every)}: {setting}")
            self.generators[setting] = decoding.Generator(
                target, draft, setting.config(base), vocab_size=vocab_size
            )
        self._timers: dict[tuple[int, str], PassTimer] = {}
        self._pass_groups: list[list[Pass]] = []
        for num_slots in sorted({setting.num_slots for setting in every}):
            announce(f"compiling single passes, {slots(num_slots)}")
            group = []
            for name, model, positions in (("target", target, widths), ("draft", draft, [1])):
                if hasattr(model, "step"):
                    self._timers[num_slots, name] = PassTimer(
                        model,
                        num_slots=num_slots,
                        input_bucket=base.max_input_tokens,
                        max_positions=self.max_positions,
                        positions=positions,
                        min_seconds=min_seconds,
                    )
                    group.extend(Pass(num_slots, name, width) for width in positions)
            self._pass_groups.append(group)
        self.measured = {setting: Measurements() for setting in every}
        self.passes: dict[Pass, list[float]] = {one: [] for group in self._pass_groups for one in group}
        self.span = base.max_decode_tokens
        self._typical = sorted((example.tokens for example in examples), key=len)[len(examples) // 2]

    @property
    def num_runs(self) -> int:
        """Runs per repeat: of settings, and of batch sizes of single passes."""
        return len(self.measured) + len(self._pass_groups)

    def run(
        self, repeats: int, seed: int, on_run: Callable[[int, str], None] = lambda repeat, what: None
    ) -> Iterator[int]:
        """Measures `repeats` repeats after one that is not counted. Yields a repeat's number when it is complete.

        Args:
          repeats: how many are counted.
          seed: of the order.
          on_run: told the repeat and what is next, before every run.
        """
        groups = [*(group.settings for group in self._groups), *self._pass_groups]
        plain_lengths: list[int] = []
        for number, (repeat, order) in enumerate(interleaved(groups, repeats, seed), 1):
            if isinstance(order[0], Pass):
                on_run(repeat, f"single passes, {slots(order[0].num_slots)}")
                self._run_passes(repeat, order)
            else:
                plain_lengths += self._run_group(repeat, order, on_run)
            if number % len(groups) == 0:
                if repeat == 0:
                    self.span = max(round(float(np.mean(plain_lengths))), 1)
                yield repeat

    def _run_group(self, repeat: int, order: Sequence[Setting], on_run: Callable[[int, str], None]) -> list[int]:
        """Runs settings of one group. Returns the lengths of plain decoding's generations."""
        # In every repeat other random numbers, so that an interval covers the luck of the draw as well; and the same
        # ones for all settings.
        ids = [f"{example.example_id}/{repeat}" for example in self._examples]
        inputs = [example.tokens for example in self._examples]
        outputs: dict[Setting, list[decoding.Generation]] = {}
        for setting in order:
            on_run(repeat, str(setting))
            started = time.perf_counter()
            outputs[setting], report = self.generators[setting].generate_with_report(inputs, ids)
            seconds = time.perf_counter() - started
            if repeat == 0:
                continue
            measured = self.measured[setting]
            measured.seconds.append(seconds)
            measured.tokens.append(sum(len(generation.tokens) for generation in outputs[setting]))
            measured.iterations.append(report.iterations)
            measured.row_iterations.append(report.row_iterations)
            measured.compilations.append(report.compilations)
            measured.generations = len(outputs[setting])
            measured.gammas.update(report.gammas)
            if repeat == 1 or setting.temperature > 0:
                measured.statistics = measured.statistics.merge(self._statistics(outputs[setting]))
        plain = next(outputs[setting] for setting in order if setting.gamma == 0)
        if repeat > 0:
            for setting in order:
                differing = (not np.array_equal(a.tokens, b.tokens) for a, b in zip(plain, outputs[setting]))
                self.measured[setting].differing.append(sum(differing))
        return [len(generation.tokens) for generation in plain]

    def _statistics(self, generations: Sequence[decoding.Generation]) -> Statistics:
        samples = self.base.num_samples
        return shard_statistics(
            [DecodedText(self._examples[i // samples].example_id, one, "", None) for i, one in enumerate(generations)],
            [],
            num_examples=len(self._examples),
            input_tokens=sum(len(example.tokens) for example in self._examples),
            truncated=sum(example.truncated for example in self._examples),
        )

    def _run_passes(self, repeat: int, order: Sequence[Pass]) -> None:
        by_model = collections.defaultdict(list)  # keeps the order
        for one in order:
            by_model[one.model].append(one.positions)
        for name, positions in by_model.items():
            timer = self._timers[order[0].num_slots, name]
            for width, seconds in timer.seconds(self._typical, self.span, positions).items():
                if repeat > 0:
                    self.passes[Pass(order[0].num_slots, name, width)].append(seconds)
