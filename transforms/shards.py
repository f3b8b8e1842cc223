"""A work shard's life, once for every job that has them.

1. Its number comes out of a range, on a worker (`ReadShards`).
2. It is left out where its part is there: an earlier launch has committed it, or a worker that has died since.
3. That it is begun is noted in attempts/, with the number of this attempt.
4. A `ShardReader` reads it; what it makes travels to the model (`RunShards`, through a `ShardHandler`) as one element, so
   that a shard stays together and its schedule depends on nothing else.
5. A `ShardWriter` turns the result into rows, errors and a footer, and they are committed (`commit`): the errors first, then
   the part by one atomic `create`. Whatever happens before leaves nothing behind that counts, and a second worker with the
   same shard changes nothing.
6. The note in attempts/ is deleted.

Whatever raises on the way sets the shard aside, with its error in that note, and the others go on: it is a `ShardFailure` in
the output `FAILED`, and a later launch does it again.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, RunInference

import decoding
from decoding.compilation import newly_compiled
from transforms import attempts, records, storage
from transforms.parts import Footer, encode_errors, encode_table, errors_digest
from transforms.records import ExampleError, ShardFailure
from transforms.storage import OutputFolder

FAILED = "failed"


class Place(Protocol):
    """Which shard, of how many; work shards have it, and what is read of them."""

    shard: int
    num_shards: int


@dataclasses.dataclass(frozen=True)
class ShardPlace:
    """A `Place` and nothing else."""

    shard: int
    num_shards: int


# Reading.


class ShardReader(Protocol):
    """Reads shards. It is pickled, and set up where it reads.

    Attributes:
      num_shards: of the run, known once it is set up.
    """

    num_shards: int

    def setup(self, folder: OutputFolder) -> None:
        """Loads what is needed. `folder` is the run's."""

    def read(self, shard: int, attempt: int) -> Any:
        """What the model's step is given, with the number of the attempt. May raise whatever it likes."""


class ReadShards(beam.PTransform):
    """Ranges of shard numbers, (first, end), to what a reader makes of each; shards that cannot be read go to `FAILED`.

    Ranges are expanded on workers. Where a worker was lost, a runner repeats its whole bundle, of which only the shard in
    progress has to be done again.
    """

    def __init__(self, output: str, reader: ShardReader, *, launch: str, parts: str):
        """
        Args:
          output: folder of the run.
          reader: reads.
          launch: names the launch in attempts/.
          parts: folder of the run's parts.
        """
        super().__init__()
        self._do = _ReadShard(output, reader, launch, parts)

    def expand(self, shard_ranges):
        return (
            shard_ranges
            | "Expand" >> beam.FlatMapTuple(_shard_numbers)
            | "Spread" >> beam.Reshuffle()
            | "ReadAndTokenize" >> beam.ParDo(self._do).with_outputs(FAILED, main="shards")
        )


def _shard_numbers(first: int, end: int) -> Iterator[int]:
    yield from range(first, end)


class _ReadShard(beam.DoFn):
    def __init__(self, output: str, reader: ShardReader, launch: str, parts: str):
        self._folder, self._reader, self._launch, self._parts = OutputFolder(output), reader, launch, parts

    def setup(self):
        self._reader.setup(self._folder)

    def process(self, shard: int):
        place = ShardPlace(shard, self._reader.num_shards)
        try:
            if self._folder.exists(storage.part_name(place.shard, place.num_shards, self._parts)):
                attempts.end(self._folder, place)  # that worker may have died just before it
                Metrics.counter("specbeam", "shards_committed_before").inc()
                return
            attempt = attempts.begin(self._folder, place, self._launch)
            read = self._reader.read(shard, attempt)
        except Exception as error:  # the shard is set aside, the others go on
            yield beam.pvalue.TaggedOutput(FAILED, _set_aside(self._folder, place, records.READ, error))
            return
        yield read


def _set_aside(folder: OutputFolder, place: Place, stage: str, error: Exception) -> ShardFailure:
    failure = records.shard_failure(place.shard, stage, error)
    attempts.set_aside(folder, place.shard, place.num_shards, failure)
    return failure


# The model.


class DeviceHandler(ModelHandler, abc.ABC):
    """A model handler of ours: the model is loaded once per process, which the accelerator belongs to.

    Args:
      env_vars: environment variables that workers set before the model is loaded.
      resource_hints: of Beam, for runners that choose machines by them: {"min_ram": bytes, "accelerator": "type:..."}.
      batching: as of Beam's `ModelHandler`.
    """

    def __init__(
        self,
        *,
        env_vars: Mapping[str, str] | None = None,
        resource_hints: Mapping[str, str | int] | None = None,
        **batching: Any,
    ):
        super().__init__(env_vars=dict(env_vars or {}), **batching)
        self._resource_hints = dict(resource_hints or {})

    def load_model(self):
        if programs := self._env_vars.get("JAX_COMPILATION_CACHE_DIR"):  # which JAX looks at when it is imported only
            decoding.keep_programs(programs)
        newly_compiled()  # whatever else this process has compiled before
        return self.load()

    @abc.abstractmethod
    def load(self):
        """The model, once the environment is set."""

    def get_metrics_namespace(self) -> str:
        return "specbeam"

    def get_resource_hints(self) -> dict[str, str | int]:
        return self._resource_hints

    def validate_inference_args(self, inference_args: Mapping[str, Any] | None) -> None:
        if inference_args:
            raise ValueError(f"inference_args are not used here: {sorted(inference_args)}; settings go into the config")

    def share_model_across_processes(self) -> bool:
        return False  # an accelerator belongs to one process, and a proxy would copy every result


class ShardHandler(DeviceHandler):
    """A `DeviceHandler` whose example is a whole shard; used through `RunShards`."""

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> list["ShardResult"]:
        # What was compiled when the model was loaded is told by the first shard of the process.
        return [dataclasses.replace(self.run(shard, model), compiled=newly_compiled()) for shard in batch]

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return sum(map(self.num_bytes, batch))

    @abc.abstractmethod
    def run(self, shard: Any, model: Any) -> "ShardResult":
        """The result for one shard; where it fails as a whole, that is in the result."""

    @abc.abstractmethod
    def num_bytes(self, shard: Any) -> int:
        """Size of the shard's arrays."""


class RunShards(beam.PTransform):
    """What a `ShardReader` has read to the handler's results, through RunInference."""

    def __init__(self, handler: ShardHandler):
        super().__init__()
        self._handler = handler

    def expand(self, shards):
        return (
            shards
            | "OneShardBatches" >> beam.Map(lambda shard: [shard])
            | "RunInference" >> RunInference(self._handler.with_no_batching())
        )


# Committing.


class ShardResult(Protocol):
    """What a `ShardHandler` makes of a shard.

    Attributes:
      place: which shard.
      failure: set where the shard as a whole failed; everything else is then of no use.
      compiled: programs that its process compiled before and for it, since the shard before.
    """

    @property
    def place(self) -> Place: ...

    failure: ShardFailure | None
    compiled: int


@dataclasses.dataclass(frozen=True)
class FinishedShard:
    """What is committed of a shard: its rows, its part's footer, and the records that yielded no row."""

    table: pa.Table
    footer: Footer
    errors: Sequence[ExampleError]


class ShardWriter(Protocol):
    """Makes of results what is committed. It is pickled, and set up where it works."""

    def setup(self) -> None:
        """Loads what is needed."""

    def finish(self, result: Any) -> FinishedShard:
        """What there is to be committed. May raise whatever it likes."""

    def count(self, footer: Footer) -> None:
        """Counts for the runner's own page what this shard, which is committed now, has added."""


class CommitShards(beam.PTransform):
    """Results to the numbers of committed shards; failed ones go to the output `FAILED` as `ShardFailure`s."""

    def __init__(self, output: str, writer: ShardWriter, *, parts: str):
        super().__init__()
        self._do = _CommitShard(output, writer, parts)

    def expand(self, results):
        return results | beam.ParDo(self._do).with_outputs(FAILED, main="committed")


class _CommitShard(beam.DoFn):
    def __init__(self, output: str, writer: ShardWriter, parts: str):
        self._folder, self._writer, self._parts = OutputFolder(output), writer, parts

    def setup(self):
        self._writer.setup()

    def process(self, result: ShardResult):
        place, failure = result.place, result.failure
        if failure is not None:
            attempts.set_aside(self._folder, place.shard, place.num_shards, failure)
            yield beam.pvalue.TaggedOutput(FAILED, failure)
            return
        try:
            footer = commit(self._folder, place, self._parts, lambda: self._writer.finish(result))
            attempts.end(self._folder, place)
        except Exception as error:  # the shard is set aside, the others go on
            yield beam.pvalue.TaggedOutput(FAILED, _set_aside(self._folder, place, records.COMMIT, error))
            return
        Metrics.counter("specbeam", "shards_committed" if footer else "shards_committed_twice").inc()
        if footer:
            self._writer.count(footer)
        yield place.shard


def commit(folder: OutputFolder, place: Place, parts: str, finish: Callable[[], FinishedShard]) -> Footer | None:
    """Writes a shard's errors and part.

    Args:
      folder: of the run.
      place: which shard.
      parts: folder of the run's parts.
      finish: makes what is written; not called where the shard is committed already.

    Returns:
      The part's footer, or None where somebody else has committed the shard.
    """
    part = storage.part_name(place.shard, place.num_shards, parts)
    if folder.exists(part):
        return None
    finished = finish()
    errors = storage.errors_name(place.shard, place.num_shards)
    if finished.errors:
        folder.put(errors, encode_errors(finished.errors))
    else:  # an earlier attempt may have had some
        folder.delete([errors])
    footer = dataclasses.replace(finished.footer, errors_sha256=errors_digest(finished.errors))
    return footer if folder.create(part, encode_table(finished.table, footer)) else None
