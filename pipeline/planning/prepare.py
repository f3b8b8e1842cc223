"""Compiled programs kept for a job's workers, in the directory where JAX looks for them.

JAX's persistent cache finds a program by what it computes, the versions of jaxlib and of the platform, options, and the
topology: models' weights are no part of it, so that shapes are enough to compile what a worker will ask for.
"""

from decoding import sharding
from decoding.compilation import Compiler
from pipeline.planning.jobs import abstract_models, job_programs, job_vocabulary
from pipeline.settings import JobConfig


def prepare_here(config: JobConfig) -> int:
    """Compiles the job's programs for this machine's devices, without weights: how many there are.

    Raises:
      ConfigError: the models cannot be used.
      ValueError: `model.mesh` does not match the devices.
    """
    vocab_size = job_vocabulary(config)
    target, draft = abstract_models(config, vocab_size)
    if config.model.mesh:
        target = sharding.shard(target, sharding.make_mesh(*sharding.parse_mesh(config.model.mesh)))
    compiler = Compiler()
    compiler.lowered = job_programs(target, draft, config.decoding, vocab_size, config.shards.baseline_fraction > 0)
    return len(compiler.compile())
