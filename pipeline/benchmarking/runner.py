"""Running settings and single passes, interleaved, and what they took."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

import decoding
from decoding import DecodingConfig
from decoding.drafts.base import Draft
from decoding.models.base import LanguageModel
from pipeline.benchmarking.paired import interleaved
from pipeline.benchmarking.passes import MIN_SECONDS, Pass, PassTimer
from pipeline.benchmarking.settings import Group, Setting, slots
from transforms.records import Example
from transforms.statistics.generations import DecodedText, Statistics, shard_statistics


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
        plain = base.call_positions(0)
        widths = sorted({plain, *filter(None, map(self.positions, every))})
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
            for name, model, positions in (("target", target, widths), ("draft", draft, [plain])):
                if model is not None and not isinstance(model, Draft):
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

    def positions(self, setting: Setting) -> int | None:
        """Of a row that a target call of a setting is fed; None where γ varies."""
        return None if setting.gamma == "auto" else setting.config(self.base).call_positions(setting.gamma)

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
        hints = [example.hints for example in self._examples] if self.base.hint_tokens else None
        outputs: dict[Setting, list[decoding.Generation]] = {}
        for setting in order:
            on_run(repeat, str(setting))
            started = time.perf_counter()
            outputs[setting], report = self.generators[setting].generate_with_report(inputs, ids, hints)
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
                before, now = measured.statistics, self._statistics(outputs[setting])
                # The examples are the same in every repeat.
                examined = max(before.examined, now.examined)
                measured.statistics = dataclasses.replace(before.merge(now), examples=now.examples, examined=examined)
        plain = next(outputs[setting] for setting in order if setting.gamma == 0)
        if repeat > 0:
            for setting in order:
                differing = (not np.array_equal(a.tokens, b.tokens) for a, b in zip(plain, outputs[setting]))
                self.measured[setting].differing.append(sum(differing))
        return [len(generation.tokens) for generation in plain]

    def _statistics(self, generations: Sequence[decoding.Generation]) -> Statistics:
        samples = self.base.generations_per_input
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
