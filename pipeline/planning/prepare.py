"""Compiled programs kept for a job's workers, in the directory where JAX looks for them.

JAX's persistent cache finds a program by what it computes, the versions of jaxlib and of the platform, options, and the
topology: models' weights are no part of it, so that shapes are enough to compile what a worker will ask for.
"""

from decoding import sharding
from decoding.checkpoints.load import form_of
from decoding.compilation import Compiler
from pipeline.job.preflight import models_of
from pipeline.planning.jobs import abstract_models, is_preset, job_programs, job_vocabulary, placed
from pipeline.settings import JobConfig


def prepare_here(config: JobConfig) -> int:
    """Compiles the job's programs for this machine's devices: how many there are.

    Weights are loaded only where their own form decides how they lie, as products of `decoding.kernels` have them.

    Raises:
      ConfigError: the models cannot be used.
      ValueError: `model.mesh` does not match the devices.
    """
    vocab_size = job_vocabulary(config)
    model = config.model
    if not is_preset(config) and form_of(model.weights, model.dtype, model.mesh or None):
        models = models_of(model)
        target, draft = models.load_target(), models.load_draft("" if config.decoding.gammas == (0,) else None)
    else:
        target, draft = abstract_models(config, vocab_size)
        mesh = sharding.make_mesh(*sharding.parse_mesh(model.mesh)) if model.mesh else None
        target = placed(target, mesh, model.weights)
    compiler = Compiler()
    compiler.lowered = job_programs(target, draft, config.decoding, vocab_size, config.shards.baseline_fraction > 0)
    return len(compiler.compile())
