"""The main job: reads text, decodes it speculatively, and leaves the documented output folder.

    python -m pipeline.generate --config=configs/quickstart.py --output=DIR [--config.decoding.gamma=4] [Beam options]

Without `--runner` it runs in this process. The same command on the same folder continues where an earlier one stopped.

Exit status: 0 when the folder is complete (or misses at most `--allow_failed_shards`), 1 when shards are missing, every
record failed or the job broke off, 2 when something is wrong with the command, its input or its folder and nothing was
done, 130 when interrupted.
"""

from __future__ import annotations

import functools
import sys
import typing
from collections.abc import Sequence

from pipeline.job.launch import Job, run_job
from pipeline.job.terminal import print_summary
from pipeline.runners.supervise import Launch, supervise
from pipeline.settings import CommandLine
from transforms.folder import GENERATE

if typing.TYPE_CHECKING:
    import apache_beam as beam

    from pipeline.job.run import Run
    from transforms.decode import GeneratorFactory


def prepare(command: CommandLine, device: dict | None, launch: Launch) -> Run:
    """Checks the models and the input, and plans or continues the run.

    Raises:
      ConfigError: a setting is wrong.
      FolderError: the output folder holds something else.
    """
    from pipeline.job import run as manifest
    from pipeline.job.preflight import check_models

    models = check_models(command.config)
    return manifest.prepare(
        command.config,
        command.output,
        models,
        allow_code_change=command.allow_code_change,
        device=device,
        launch=launch,
    )


def build_pipeline(root: beam.Pipeline, *, run: Run, factory: GeneratorFactory | None = None) -> None:
    """Adds the job to `root`: the pending shards, if any, and then the end of the run.

    Args:
      root: an empty pipeline.
      run: what to do.
      factory: builds the generator on workers; None loads the config's models.
    """
    import apache_beam as beam

    from decoding.registry import drafts_of
    from pipeline.job.run import ranges
    from pipeline.job.steps import finish, input_reader
    from pipeline.runners import options as runners
    from pipeline.runners.dataflow import options as dataflow
    from transforms import columns
    from transforms.decode import ShardModelHandler
    from transforms.shards import FAILED, CommitShards, ReadShards, RunShards
    from transforms.write import WriteGenerations

    config, models, output = run.config, run.models, run.folder.root
    outcomes = ()
    if run.pending:
        hints = dataflow.resource_hints(root.options, [config.model.target, *drafts_of(config.model.draft)])
        handler = ShardModelHandler(
            output,
            models.to_load,
            config.decoding,
            factory=factory,
            baseline_fraction=config.shards.baseline_fraction,
            resource_hints=hints,
            env_vars=runners.worker_environment(root.options),
        )
        more = columns.BEAMS if config.decoding.beam_search else columns.ORIGINS if models.copies else ()
        writer = WriteGenerations(
            tokenizer=models.tokenizer, eos_ids=models.eos_ids, fingerprint=run.fingerprint, more=more
        )
        read = ReadShards(output, input_reader(run), launch=run.launch, parts=run.parts).with_resource_hints(**hints)
        decode = RunShards(handler).with_resource_hints(**hints)
        commit = CommitShards(output, writer, parts=run.parts).with_resource_hints(**hints)
        read = root | "PendingRanges" >> beam.Create(ranges(run.pending)) | "Read" >> read
        decoded = read.shards | "Decode" >> decode | "Commit" >> commit
        outcomes = (decoded.committed, read[FAILED], decoded[FAILED])
    finish(root, run, outcomes, exact=config.decoding.exact)


def main(args: Sequence[str], factory: GeneratorFactory | None = None, launch: Launch | None = None) -> int:
    """Runs the command line `args`, which excludes the program's name, in this process. Returns the exit status."""
    build = functools.partial(build_pipeline, factory=factory)
    return run_job(Job(GENERATE, __doc__, prepare, build, print_summary), args, launch)


if __name__ == "__main__":
    sys.exit(supervise(lambda args, launch: main(args, launch=launch), sys.argv[1:]))
