"""The engine as a model of Beam's RunInference.

`SpeculativeModelHandler` serves anyone's pipeline: prompts in, generations out, one example each. `ShardModelHandler`
is the job's own: its example is a whole work shard, so that a shard stays together and its schedule depends on nothing
else. Both load the models once per process; `Generator` is thread-safe, calls take turns.

A batch that raises is halved until what raises is a single example, which then carries its error while the others
carry their generations.
"""

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

import decoding
from decoding.hints import Hints
from transforms import costs, records
from transforms.costs import Costs
from transforms.models import Models
from transforms.records import ShardFailure, TokenizedShard, WorkShard
from transforms.shards import DeviceHandler, ShardHandler
from transforms.storage import OutputFolder


@dataclasses.dataclass(frozen=True)
class Prompt:
    """An input of `SpeculativeModelHandler`: int32[n] token ids, and the id that its random numbers derive from.

    `hints` are as of `decoding.Generator.generate`, of use with `DecodingConfig.hint_tokens`.
    """

    example_id: str
    tokens: Sequence[int]
    hints: Sequence[Sequence[int]] = ()


@dataclasses.dataclass(frozen=True)
class DecodeFailure:
    """In the place of an example's generations: what decoding it raised."""

    error_type: str
    message: str


@dataclasses.dataclass(frozen=True)
class EngineCounters:
    """What the engine did for a batch; see `transforms.statistics.generations.Statistics`."""

    slot_iterations: int = 0
    row_iterations: int = 0
    compilations: int = 0
    generate_seconds: float = 0.0

    def __add__(self, other: "EngineCounters") -> "EngineCounters":
        return EngineCounters(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


@dataclasses.dataclass(frozen=True)
class DecodedShard:
    """A `TokenizedShard` with what its examples became.

    Attributes:
      tokenized: what was decoded.
      results: per example its generations, num_samples or num_return_sequences, or a `DecodeFailure`.
      counters: the engine's.
      device: as of `Models.device`.
      failure: set where the shard as a whole failed; `results` are then of no use.
      baseline: whether it was decoded plainly, to be compared with the others.
      compiled: as of `ShardResult`.
    """

    tokenized: TokenizedShard
    results: tuple[tuple[decoding.Generation, ...] | DecodeFailure, ...]
    counters: EngineCounters
    device: str
    failure: ShardFailure | None = None
    baseline: bool = False
    compiled: int = 0

    @property
    def place(self) -> WorkShard:
        return self.tokenized.work


def is_baseline(shard: int, fraction: float, seed: int) -> bool:
    """Whether a shard is among the `fraction` decoded plainly: a function of its number and the job's seed alone.

    Fibonacci hashing: multiples of the golden ratio spread evenly, so that among any n consecutive shards there are close
    to n * fraction, where independent draws would now and then leave a small job without any.
    """
    offset = int.from_bytes(hashlib.blake2b(f"baseline {seed}".encode(), digest_size=8).digest())
    return (offset + shard * 0x9E3779B97F4A7C15) % 2**64 < fraction * 2.0**64


_status = logging.getLogger("specbeam.status")  # what a launcher in this process shows

GeneratorFactory = Callable[[Models, decoding.DecodingConfig, Costs | None], decoding.Generator]


def load_generator(models: Models, config: decoding.DecodingConfig, costs: Costs | None = None) -> decoding.Generator:
    """Loads the models and compiles their programs, or finds them compiled by an earlier process on this machine.

    `costs` are those of γ = "auto", measured where None.
    """
    decoding.keep_programs()
    _status.info("loading the models")
    draft = "" if max(config.gammas) == 0 else None
    return decoding.Generator(
        models.load_target(), models.load_draft(draft), config, costs, vocab_size=models.vocab_size
    )


def decode_batch(
    generator: decoding.Generator,
    tokens: Sequence[Sequence[int]],
    example_ids: Sequence[str],
    hints: Hints | None = None,
) -> tuple[list[tuple[decoding.Generation, ...] | DecodeFailure], EngineCounters]:
    """Decodes all examples, those that raise aside.

    Returns:
      Per example its generations or a `DecodeFailure`, in order, and the engine's counters.
    """
    if not tokens:
        return [], EngineCounters()
    faults: Mapping[int, str] = {}
    try:
        flat, report = generator.generate_with_report(tokens, example_ids, *([] if hints is None else [hints]))
    except decoding.NonFiniteLogits as error:
        faults, flat, report = error.faults, error.results, error.report
    except Exception as error:
        if len(tokens) == 1:
            logging.getLogger(__name__).info("example %r failed: %s", example_ids[0], error)  # errors/ will have it
            message = str(error)[: records.MAX_MESSAGE_CHARS]
            return [DecodeFailure(type(error).__name__, message)], EngineCounters()
        half = len(tokens) // 2
        (first, counters_first), (second, counters_second) = (
            decode_batch(generator, tokens[side], example_ids[side], hints and hints[side])
            for side in (slice(half), slice(half, None))
        )
        return first + second, counters_first + counters_second
    counters = EngineCounters(
        report.iterations * generator.config.num_slots, report.row_iterations, report.compilations, report.seconds
    )
    samples = generator.config.generations_per_input
    return [
        DecodeFailure(decoding.NonFiniteLogits.__name__, decoding.NonFiniteLogits.of(faults[i]))
        if i in faults
        else tuple(flat[i * samples : (i + 1) * samples])
        for i in range(len(tokens))
    ], counters


class SpeculativeModelHandler(DeviceHandler, ModelHandler[Prompt, PredictionResult, decoding.Generator]):
    """Speculative decoding for `RunInference`.

    Takes `Prompt`s with distinct example ids. Yields one `PredictionResult` per prompt, whose `inference` is a tuple of
    `num_samples` `decoding.Generation`s, or a `DecodeFailure` where this prompt cannot be decoded.
    """

    def __init__(
        self,
        target: str,
        draft: str = "",
        config: decoding.DecodingConfig | None = None,
        *,
        dtype: str = "float32",
        batch_size: int = 256,
        factory: GeneratorFactory | None = None,
        vocab_size: int | None = None,
        max_ngram: int = 3,
        min_ngram: int = 1,
        mesh: str = "",
        weights: str = "",
        resource_hints: Mapping[str, str | int] | None = None,
        env_vars: Mapping[str, str] | None = None,
    ):
        """
        Args:
          target: directory of the target model, local or on gs://.
          draft: directory of the draft model or of an n-gram, "prompt_lookup", "uniform", or "" for plain decoding.
          config: how to decode.
          dtype: of the parameters.
          batch_size: prompts that are handed to the engine together; it decodes config.num_slots of them at a time.
          factory: builds the generator in the worker, in place of `load_generator`.
          vocab_size: what models with differently padded vocabularies are cut to.
          max_ngram, min_ngram: tokens that prompt lookup matches.
          mesh: of the worker's devices that the target is split over, "data:D,model:M"; "" for one device.
          weights: of products on processors, as of `decoding.load_model`.
          resource_hints: of Beam, for runners that choose machines by them: {"min_ram": bytes, "accelerator": "type:..."}.
          env_vars: environment variables that workers set before the models are loaded.
        """
        super().__init__(env_vars=env_vars, resource_hints=resource_hints, min_batch_size=1, max_batch_size=batch_size)
        self._models = Models(
            target, draft, dtype, vocab_size, max_ngram, min_ngram, mesh=mesh, weights=weights
        )
        self._config = config or decoding.DecodingConfig()
        self._factory = factory

    def load(self) -> decoding.Generator:
        return (self._factory or load_generator)(self._models, self._config, None)

    def run_inference(
        self,
        batch: Sequence[Prompt],
        model: decoding.Generator,
        inference_args: Mapping[str, Any] | None = None,
    ) -> list[PredictionResult]:
        hints = [p.hints for p in batch] if self._config.hint_tokens else None
        results, _ = decode_batch(model, [p.tokens for p in batch], [p.example_id for p in batch], hints)
        return [PredictionResult(prompt, result, self._models.target) for prompt, result in zip(batch, results)]

    def get_num_bytes(self, batch: Sequence[Prompt]) -> int:
        return sum(4 * len(prompt.tokens) for prompt in batch)


@dataclasses.dataclass(frozen=True, eq=False)
class ShardGenerators:
    """What decodes shards: the job's generator, and one that decodes plainly where the job has a baseline.

    Each is thread-safe; `turn` is for the two of them, which would share the device and so take each other's time.
    """

    speculative: decoding.Generator
    plain: decoding.Generator | None = None
    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class ShardModelHandler(ShardHandler):
    """`TokenizedShard`s in, `DecodedShard`s out.

    A shard of which every example fails, and that has more than one, is a `failure` as a whole: the cause is not in
    the examples. Logits that are not finite are told of each example, though, however many have them. With γ = "auto"
    all workers of the run use one set of measured costs.
    """

    def __init__(
        self,
        output: str,
        models: Models,
        config: decoding.DecodingConfig,
        *,
        factory: GeneratorFactory | None = None,
        baseline_fraction: float = 0.0,
        **options: Any,
    ):
        """
        Args:
          output: folder of the run, where costs are frozen.
          models, config: what decodes, and how.
          factory: builds the generator in the worker, in place of `load_generator`.
          baseline_fraction: share of the shards that are decoded plainly.
          **options: as of `DeviceHandler`.
        """
        super().__init__(**options)
        self._folder, self._models, self._config = OutputFolder(output), models, config
        self._factory, self._baseline_fraction = factory or load_generator, baseline_fraction

    def load(self) -> ShardGenerators:
        speculative = self._load_speculative()
        generators = ShardGenerators(speculative, speculative.plain() if self._baseline_fraction else None)
        _status.info("decoding")
        return generators

    def _load_speculative(self) -> decoding.Generator:
        if self._config.gamma != "auto":
            return self._factory(self._models, self._config, None)
        frozen = costs.read(self._folder)
        generator = self._factory(self._models, self._config, frozen)
        if frozen is None:
            generator.costs = costs.freeze(self._folder, dict(generator.costs))
        return generator

    def num_bytes(self, shard: TokenizedShard) -> int:
        return sum(example.tokens.nbytes for example in shard.examples)

    def run(self, shard: TokenizedShard, model: ShardGenerators) -> DecodedShard:
        examples, number = shard.examples, shard.work.shard
        baseline = is_baseline(number, self._baseline_fraction, self._config.seed)
        generator = model.plain if baseline else model.speculative
        hints = [e.hints for e in examples] if self._config.hint_tokens else None
        with model.turn:
            results, counters = decode_batch(
                generator, [e.tokens for e in examples], [e.example_id for e in examples], hints
            )
        failure = None
        unknown = [isinstance(one, DecodeFailure) and one.error_type != decoding.NonFiniteLogits.__name__ for one in results]
        if len(results) > 1 and all(unknown):
            message = f"all {len(results)} examples failed, the first with: {results[0].message}"
            failure = ShardFailure(number, records.DECODE, results[0].error_type, message)
        Metrics.counter("specbeam", "examples_decoded").inc(sum(isinstance(result, tuple) for result in results))
        Metrics.counter("specbeam", "tokens_generated").inc(
            sum(len(g.tokens) for result in results if isinstance(result, tuple) for g in result)
        )
        return DecodedShard(shard, tuple(results), counters, self._models.device(), failure, baseline)
