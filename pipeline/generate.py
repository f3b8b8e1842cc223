"""The main job: reads text, decodes it speculatively, and leaves the documented output folder.

    python -m pipeline.generate --config=configs/quickstart.py --output=DIR [--config.decoding.gamma=4] [Beam options]

Without `--runner` it runs in this process. The same command on the same folder continues where an earlier one stopped.

Exit status: 0 when the folder is complete (or misses at most `--allow_failed_shards`), 1 when shards are missing or the job
broke off, 2 when something is wrong with the command, its input or its folder and nothing was done, 130 when interrupted.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from pipeline import dataflow, runners
from pipeline.dry_run import dry_run
from pipeline.manifest import FolderError, Run, prepare, ranges
from pipeline.preflight import check_models
from pipeline.progress import show_progress
from pipeline.settings import CommandLine, ConfigError, help_text, parse_command_line
from pipeline.supervise import Launch, supervise
from pipeline.terminal import print_summary
from transforms import storage
from transforms.decode import DecodeShards, GeneratorFactory, ShardModelHandler
from transforms.finish import CountSettled, FinishRun
from transforms.read import ReadSettings, ReadShards
from transforms.write import CommitShards


def build_pipeline(root: beam.Pipeline, *, run: Run, factory: GeneratorFactory | None = None) -> None:
    """Adds the job to `root`: the pending shards, if any, and then the end of the run.

    Args:
      root: an empty pipeline.
      run: what to do.
      factory: builds the generator on workers; None loads the config's models.
    """
    config, models, output = run.config, run.models, run.folder.root
    outcomes = ()
    if run.pending:
        hints = dataflow.resource_hints(root.options, [config.model.target, config.model.draft])
        handler = ShardModelHandler(
            output,
            config.model.target,
            config.model.draft,
            config.decoding,
            dtype=config.model.dtype,
            factory=factory,
            vocab_size=models.vocab_size,
            max_ngram=config.model.prompt_lookup_max_ngram,
            min_ngram=config.model.prompt_lookup_min_ngram,
            mesh=config.model.mesh,
            baseline_fraction=config.shards.baseline_fraction,
            resource_hints=hints,
            env_vars=runners.worker_environment(root.options),
        )
        read = ReadShards(output, read_settings(run)).with_resource_hints(**hints)
        decode = DecodeShards(handler).with_resource_hints(**hints)
        commit = CommitShards(output, tokenizer=models.tokenizer, eos_id=models.eos_id, fingerprint=run.fingerprint)
        read = root | "PendingRanges" >> beam.Create(ranges(run.pending)) | "Read" >> read
        decoded = read.shards | "Decode" >> decode | "Commit" >> commit.with_resource_hints(**hints)
        outcomes = (decoded.committed, read[ReadShards.FAILED], decoded[CommitShards.FAILED])
    finish(root, run, outcomes, exact=config.decoding.exact)


def finish(root: beam.Pipeline, run: Run, outcomes: tuple, *, exact: bool, facts: Mapping[str, Any] | None = None) -> None:
    """Adds the end of a run, which waits for all `outcomes`.

    Args:
      root: the pipeline.
      run: which run.
      outcomes: what `CountSettled` takes; () where no shard is pending.
      exact, facts: for the summary.
    """
    _ = root | "Finish" >> FinishRun(
        run.folder.root,
        num_shards=run.plan.num_shards,
        fingerprint=run.fingerprint,
        exact=exact,
        after=outcomes | "Settled" >> CountSettled() if outcomes else None,
        parts=run.parts,
        statistics=run.statistics,
        facts=facts,
    )


def read_settings(run: Run) -> ReadSettings:
    """How the run's input is read."""
    config, models = run.config, run.models
    return ReadSettings(
        spec=config.input.spec(models.tokenizer),
        tokenizer=models.tokenizer,
        prefix=config.input.prefix,
        eos_id=models.input_eos_id,
        max_input_tokens=config.decoding.max_input_tokens,
        chat_template=models.chat_template,
        empty_id=models.empty_id,
        launch=run.launch,
        parts=run.parts,
    )


def main(args: Sequence[str], factory: GeneratorFactory | None = None, launch: Launch | None = None) -> int:
    """Runs the command line `args`, which excludes the program's name, in this process. Returns the exit status."""
    build = functools.partial(build_pipeline, factory=factory)
    return run_job(args, about=__doc__, prepare=_prepare, build=build, show=print_summary, launch=launch)


def run_job(
    args: Sequence[str],
    *,
    about: str,
    prepare: Callable[[CommandLine, dict | None, Launch], Run],
    build: Callable[..., None],
    show: Callable[[Console, dict, str, float], None],
    launch: Launch | None = None,
) -> int:
    """Runs a job of work shards, in this process.

    Args:
      args: its command line without the program's name.
      about: what `--help` begins with.
      prepare: plans or continues a run; the second argument is for the manifest.
      build: adds the job to a pipeline, `build(pipeline, run=run)`.
      show: prints a summary, as `terminal.print_summary`.
      launch: which launch this is.

    Returns:
      The exit status.
    """
    if "--help" in args:
        print(help_text(about))
        return 0
    _configure_logging()
    console, launch = Console(), launch or Launch()
    try:
        command = parse_command_line(args)
        options = runners.beam_options(command.beam_args, runners.paths_of(command.config, command.output))
        dataflow.check_config(options, command.config)
        launch = dataclasses.replace(launch, dry_run=command.dry_run)
        device = _local_device() if runners.in_this_process(options) else None
        run = prepare(command, device, launch)
        if run.pending and not launch.dry_run:
            run.folder.delete([storage.SUCCESS])  # there only if somebody has removed parts of a finished run
    except (ConfigError, FolderError, OSError) as error:
        print("error:", _one_line(error), file=sys.stderr)
        return 2
    if run.finished:
        console.print(f"Finished already, nothing to do: {run.folder.root}", soft_wrap=True, highlight=False)
        return 0
    if run.committed or run.begun:
        shown = f"{run.committed} of {run.plan.num_shards} shards are committed, {run.begun} more were begun."
        console.print(f"Continuing: {shown}")
    runners.warn_of_few_shards(options, run.plan.num_shards)
    if launch.dry_run:
        return _dry_run(run, options, console, build)
    return _launch(run, command, options, console, build, show)


def _configure_logging() -> None:
    """Warnings only, less one of Beam's that means nothing here: it cannot import what measures a model's memory."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().addFilter(_is_meaningful)


def _is_meaningful(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Resource module is not available")


def _prepare(command: CommandLine, device: dict | None, launch: Launch) -> Run:
    models = check_models(command.config)
    return prepare(
        command.config,
        command.output,
        models,
        allow_code_change=command.allow_code_change,
        device=device,
        launch=launch,
    )


def _launch(run: Run, command: CommandLine, options: PipelineOptions, console: Console, build, show) -> int:
    started, on_dataflow = time.monotonic(), dataflow.is_dataflow(options)
    if on_dataflow:
        dataflow.show_job()
    # Parts in a remote folder are not looked into for a job of many machines: there may be 100,000.
    here = runners.in_this_process(options) or not storage.is_remote(run.folder.root)
    try:
        pipeline = beam.Pipeline(options=options)
        build(pipeline, run=run)
        workers = runners.workers_of(options, run.folder, run.plan.num_shards, run.launch)
        with workers, show_progress(run) if here else contextlib.nullcontext():
            pipeline.run().wait_until_finish()
    except KeyboardInterrupt:
        state = ": the job goes on where it is, gcloud dataflow jobs cancel ends it" if on_dataflow else ""
        print(f"\ninterrupted{state}; the same command continues", file=sys.stderr)
        return 130
    except Exception as error:  # what the runner reports, often with the worker's traceback in its message
        print("error: the job failed:", _one_line(error), file=sys.stderr)
        print("Committed shards are kept; the same command continues", file=sys.stderr)
        return 1
    try:
        summary = json.loads(run.folder.read(storage.SUMMARY))
    except OSError as error:
        where = f"the runner says that the job is done, but {run.folder.root!r} has no summary of it"
        print(f"error: {where}; do its workers write to the same folder? {_one_line(error)}", file=sys.stderr)
        return 1
    show(console, summary, run.folder.root, time.monotonic() - started)
    return 0 if len(summary["shards"]["missing"]) <= command.allow_failed_shards else 1


def _dry_run(run: Run, options: PipelineOptions, console: Console, build) -> int:
    try:
        pipeline = beam.Pipeline(options=options)
        build(pipeline, run=run)
        return dry_run(pipeline, run, console)
    except (OSError, ValueError) as error:
        print("error: the job cannot be built or staged:", _one_line(error), file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    return " ".join(storage.without_query(str(error)).split()) or type(error).__name__


def _local_device() -> dict:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # a TPU that another process has, a JAX_PLATFORMS that is not installed
        raise ConfigError(f"JAX finds no device to decode on: {error}") from error
    return {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)}


if __name__ == "__main__":
    sys.exit(supervise(lambda args, launch: main(args, launch=launch), sys.argv[1:]))
