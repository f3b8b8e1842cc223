"""A job on a slice: its models without weights, what it needs of each chip, and how many slots fit."""

import dataclasses
import functools
import math
import warnings

import jax
import jax.numpy as jnp
from flax import nnx

from decoding import DecodingConfig, sharding
from decoding.checkpoints import CheckpointError, architecture, find_checkpoint
from decoding.checkpoints.load import DTYPES
from decoding.compilation import Compiler
from decoding.drafts import fitted
from decoding.drafts.ngram import is_ngram
from decoding.drafts.suffixes import is_index
from decoding.engine import Generator
from decoding.models.linear import RoundedWeight
from decoding.models.resident import ROUNDED, round_abstract
from decoding.models.vocabulary import SomeTokens, with_head_of
from decoding.programs import max_positions, prefill_rows
from decoding.registry import DRAFTS, drafts_of
from pipeline.job.preflight import check_models, models_of
from pipeline.planning import chips, memory, roofline
from pipeline.planning.command import PlanOptions
from pipeline.settings import ConfigError, JobConfig

_TRIES = 5


def abstract_models(config: JobConfig, vocab_size: int | None = None):
    """Target and draft with shapes for weights; the draft None where there is none. N-grams are loaded.

    Args:
      vocab_size: of a draft that is no model; None for the target's.

    Raises:
      ConfigError: a model cannot be found.
    """

    dtype = DTYPES[config.model.dtype]

    def model(setting: str, path: str, guesses: int = 0):
        try:
            if name := path.rpartition("preset:")[2] if "preset:" in path else "":
                shape = architecture.parse_config(*architecture.resolve(name))
            else:
                shape = find_checkpoint(path).config
        except (CheckpointError, OSError) as error:
            raise ConfigError(f"{setting} is {path!r}: {error}") from error
        whole = sharding.abstract(with_head_of(shape, guesses) if guesses else shape, dtype)
        return nnx.eval_shape(lambda: SomeTokens(whole, range(guesses))) if guesses else whole

    target, name = model("model.target", config.model.target), config.model.draft
    if not name or config.decoding.gammas == (0,):
        return target, None
    if len(drafts_of(name)) == 1 and name not in DRAFTS and not is_ngram(name) and not is_index(name):
        return target, model("model.draft", name, config.model.draft_vocabulary_size)
    return target, fitted(target, models_of(config.model).load_draft(), vocab_size)[1]


def inner(model):
    """A model itself, where its logits are of some tokens alone."""
    return model.model if isinstance(model, SomeTokens) else model


def placed(target, mesh: jax.sharding.Mesh | None, weights: str):
    """An abstract target as a worker whose products are XLA's has it: on a mesh if there is one, its weights in their form."""
    target = target if mesh is None else sharding.shard(target, mesh)
    return round_abstract(target, weights) if weights in ROUNDED else target


def job_programs(target, draft, config: DecodingConfig, vocab_size: int | None, baseline: bool) -> dict:
    """Every program that a worker of the job compiles at load, by name, to be lowered.

    Args:
      target, draft: abstract or not.
      vocab_size: as of `Generator`.
      baseline: some shards are decoded plainly, by a generator of their own.
    """
    lowered = dict(Generator.lowered(target, draft, config, vocab_size))
    if baseline:
        plain = Generator.lowered(target, None, dataclasses.replace(config, gamma=0), vocab_size)
        lowered |= {("plain", *([name] if isinstance(name, str) else name)): lower for name, lower in plain.items()}
    return lowered


@dataclasses.dataclass(frozen=True)
class SliceJob:
    """A job on a slice: what is split how.

    Attributes:
      limit: bytes of each chip that programs may use.
      target, draft: abstract, on the mesh; a draft without one is copied to every chip.
      vocab_size, baseline: as of `job_programs`; matter to programs that are kept.
    """

    topology: chips.Topology
    limit: int
    mesh: jax.sharding.Mesh
    target: object
    draft: object
    config: DecodingConfig
    vocab_size: int | None = None
    baseline: bool = False

    def at(self, slots: int) -> "SliceJob":
        return dataclasses.replace(self, config=dataclasses.replace(self.config, num_slots=slots))

    @property
    def caches(self) -> list[tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every cache on one chip."""
        states = memory.state_shapes(self.target, self.draft, self.config, max_positions(self.config))
        short = {"bfloat16": "bf16", "float32": "f32"}
        leaves = [leaf for leaf in jax.tree.leaves(states) if len(leaf.shape) == 4]
        return sorted({(short[leaf.dtype.name], leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves})

    def guess(self) -> memory.Memory:
        """Needs from shapes alone."""
        rows = prefill_rows(self.config, self.config.max_input_tokens, self.mesh.shape["data"])
        return memory.from_shapes(self.target, self.draft, self.config, max_positions(self.config), rows)

    def compile(self, which: str) -> dict:
        """Compiled programs by name: "loop" for the chunks, "all" with prefill, "job" for whatever a worker has."""
        lowered = job_programs(self.target, self.draft, self.config, self.vocab_size, self.baseline and which == "job")
        names = [n for n in lowered if n[0] == "chunk" or which == "job" or (which == "all" and n != "empty")]
        compiler = Compiler()
        compiler.lowered = {name: lowered[name] for name in names}
        with warnings.catch_warnings():
            # A TPU's program that is kept already can be read by a TPU's process only, and is compiled again here.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            return compiler.compile("tpu")

    def work(self, model, positions: int) -> roofline.Work:
        mesh = self.mesh
        if sharding.mesh_of(model) is None:  # whole on every chip: as on one, for the slots of its group
            mesh = jax.sharding.AbstractMesh((mesh.shape["data"], 1), ("data", "model"))
        config = self.config
        return roofline.step_work(
            inner(model),
            mesh,
            slots=config.num_slots,
            positions=positions,
            input_length=config.max_input_tokens,
            max_decode_tokens=config.max_decode_tokens,
            max_positions=max_positions(config),
        )


def slice_job(config: JobConfig, options: PlanOptions) -> SliceJob:
    """Raises ConfigError where models or the slice cannot be used."""
    topology, (data, ways) = options.topology, options.mesh
    if chips.has_compiler():
        mesh = sharding.make_mesh(data, ways, chips.devices(topology)[: data * ways])
    else:
        mesh = jax.sharding.AbstractMesh((data, ways), ("data", "model"))
    vocab_size = job_vocabulary(config) if options.prepare else None
    target, draft = abstract_models(config, vocab_size)
    target = placed(target, mesh, config.model.weights)
    if draft is not None and options.split_draft and draft.config is not None:
        split = sharding.shard(inner(draft), mesh)
        if draft is inner(draft):
            draft = split
        else:
            draft.model = split
    return SliceJob(
        topology=topology,
        limit=memory.usable(topology),
        mesh=mesh,
        target=target,
        draft=draft,
        config=dataclasses.replace(config.decoding, num_slots=options.num_slots or data),
        vocab_size=vocab_size,
        baseline=config.shards.baseline_fraction > 0,
    )


def is_preset(config: JobConfig) -> bool:
    """Whether a model is a shape without weights."""
    return any("preset:" in name for name in (config.model.target, config.model.draft))


def job_vocabulary(config: JobConfig) -> int | None:
    """What the job will cut its models' vocabularies to, as `pipeline.generate` finds it; presets have no tokeniser."""
    if is_preset(config):
        return config.model.vocab_size or None
    return check_models(config).to_load.vocab_size


def needs(job: SliceJob, which: str) -> tuple[memory.Memory, dict]:
    """What a job needs of each chip's memory, and its compiled programs.

    Where the compiler itself runs out of the chip's memory, its figure is taken.
    """
    guess = job.guess()
    if which == "none" or not chips.has_compiler():
        return guess, {}
    try:
        programs = job.compile(which)
    except jax.errors.JaxRuntimeError as error:
        said = memory.exhausted(error)
        if said is None:
            raise
        needed = max(said[0], job.limit + 1) - (guess.parameters + guess.states + guess.staged)
        return dataclasses.replace(guess, temporary=needed, compiled=True), {}
    return memory.as_compiled(guess, programs), programs


def most_slots(job: SliceJob, which: str) -> tuple[SliceJob, memory.Memory, dict]:
    """The job with the most slots that fit.

    Bisected on exact shapes and a straight line of temporaries, whose slope comes from compiled programs: every answer is
    compiled in turn, and the line corrected, until one fits.
    """
    groups, limit = job.mesh.shape["data"], job.limit
    step = math.lcm(8, groups)
    first, slope = needs(job.at(step), which)[0].temporary, 0.0

    def fits(slots: int, slope: float) -> bool:
        temporary = first + slope * (slots - step)
        return dataclasses.replace(job.at(slots).guess(), temporary=int(temporary)).total <= limit

    for _ in range(_TRIES):
        slots = memory.largest(functools.partial(fits, slope=slope), step) or groups
        held, programs = needs(job.at(slots), which)
        if held.total <= limit or slots <= step:
            break
        slope = (held.temporary - first) / (slots - step)
    return job.at(slots), held, programs


def advice(job: SliceJob, short: int) -> str:
    """What would make a job fit."""
    limit, ways = job.limit, job.mesh.shape["model"]
    said = []
    fewer = memory.largest(lambda slots: job.at(slots).guess().total + short // 8 <= limit, job.mesh.shape["data"])
    if 0 < fewer < job.config.num_slots:
        said.append(f"--num_slots={fewer}")
    if job.target.dtype == jnp.float32:
        said.append("--config.model.dtype=bfloat16 (half the bytes)")
    if not isinstance(job.target.embedding.get_value(), RoundedWeight):
        said.append("--config.model.weights=int8 (a byte a weight)")
    held = sum(map(roofline.whole_bytes, roofline.parameters(job.target).values()))
    wider = ways * 2
    while wider < 4096 and held / wider + job.guess().states * ways / wider > 0.85 * limit:
        wider *= 2
    said.append(f"a slice of {max(wider * job.mesh.shape['data'], 4)} or more chips with model:{wider}")
    return "; ".join(said)
