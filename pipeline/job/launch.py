"""One launch of a job of work shards: settings, then the folder, then everything heavy, and the exit status.

What can be answered without JAX or Beam is, before either is imported: `--help`, a typo, a finished folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import threading
import time
import typing
from collections.abc import Callable, Sequence

from rich.console import Console

from pipeline.job.pinning import pin_models
from pipeline.job.seen import is_finished, seen
from pipeline.job.status import PLANNING, READING, STARTING, Status
from pipeline.job.terminal import make_console, one_line, warn
from pipeline.runners.supervise import Launch, interrupts, say_interrupted
from pipeline.settings import CommandLine, ConfigError, help_text, parse_command_line, refuse_placeholders, version_text
from transforms import storage
from transforms.folder import FolderError
from transforms.storage import OutputFolder

if typing.TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline.job.run import Run


@dataclasses.dataclass(frozen=True)
class Job:
    """What tells one job of work shards from another.

    Attributes:
      name: GENERATE or SCORE of `transforms.folder`.
      about: what `--help` begins with.
      prepare: plans or continues a run; the second argument is for the manifest.
      build: adds the job to a pipeline, `build(pipeline, run=run)`.
      show: prints a summary, as `terminal.print_summary`.
    """

    name: str
    about: str
    prepare: Callable[[CommandLine, dict | None, Launch], Run]
    build: Callable[..., None]
    show: Callable[[Console, dict, str, float], None]


def run_job(job: Job, args: Sequence[str], launch: Launch | None = None) -> int:
    """Runs the command line `args`, which excludes the program's name, in this process. Returns the exit status."""
    if "--help" in args:
        print(help_text(job.about))
        return 0
    if "--version" in args:
        print(version_text())
        return 0
    _configure_logging()
    with interrupts() as interrupted, contextlib.closing(Status()) as status:
        try:
            return _run(job, args, launch or Launch(), status, interrupted)
        except KeyboardInterrupt:
            status.clear()
            return say_interrupted()


def _run(job: Job, args: Sequence[str], launch: Launch, status: Status, interrupted: threading.Event) -> int:
    status.say(READING)
    try:
        command = parse_command_line(args)
        refuse_placeholders(command)
    except (ConfigError, OSError) as error:
        return _refuse(error)
    console = make_console()
    if not command.dry_run and is_finished(job.name, command.config, command.output):
        return _end_of_finished(console, command.output)
    status.say(PLANNING)
    from pipeline.runners import options as runners
    from pipeline.runners.dataflow import options as dataflow

    try:
        options = runners.beam_options(command.beam_args, runners.paths_of(command.config, command.output))
        dataflow.check_config(options, command.config)
        runners.check_mesh(options, command.config.model.mesh)
        launch = dataclasses.replace(launch, dry_run=command.dry_run, seen=seen(job.name, command.config))
        command = dataclasses.replace(command, config=pin_models(command.config, command.output))
        device = _local_device(command.config.model.mesh) if runners.in_this_process(options) else None
        run = _prepare(job, command, device, launch)
    except (ConfigError, FolderError, OSError) as error:
        status.clear()
        return _refuse(error)
    status.clear()
    if run.finished:
        return _end_of_finished(console, run.folder.root)
    if run.committed or run.begun:
        shown = f"{run.committed} of {run.plan.num_shards} shards are committed, {run.begun} more were begun."
        console.print(f"Continuing: {shown}")
    runners.warn_of_few_shards(options, run.plan.num_shards)
    if launch.dry_run:
        return _dry_run(job, run, options, console)
    status.say(STARTING)
    from transforms.finish import to_do_again

    try:
        summary = _launch(job, run, options, status)
        if again := to_do_again(summary):
            warn(f"{len(again)} committed shards were found damaged and are done again, for example shard {again[0]}")
            summary = _launch(job, _prepare(job, command, device, launch), options, status)
    except KeyboardInterrupt:
        status.clear()
        going_on = ": the job goes on where it is, gcloud dataflow jobs cancel ends it"
        return say_interrupted(going_on if dataflow.is_dataflow(options) else "")
    except Exception as error:  # what the runner reports, often with the worker's traceback in its message
        status.clear()
        if interrupted.is_set():
            return say_interrupted()
        print("error: the job failed:", one_line(error), file=sys.stderr)
        print("Committed shards are kept; the same command continues", file=sys.stderr)
        return 1
    job.show(console, summary, run.folder.root, time.monotonic() - launch.began)
    if failed := every_record_failed(summary):
        print(f"error: {failed}", file=sys.stderr)
        return 1
    return 0 if len(summary["shards"]["missing"]) <= command.allow_failed_shards else 1


def _prepare(job: Job, command: CommandLine, device: dict | None, launch: Launch) -> Run:
    run = job.prepare(command, device, launch)
    if not run.finished and not launch.dry_run:
        run.folder.delete([storage.SUCCESS])  # there only if somebody has removed something of a finished run
    return run


def _end_of_finished(console: Console, output: str) -> int:
    """Says that there is nothing to do. Returns the exit status that the run had."""
    console.print(f"Finished already, nothing to do: {output}", soft_wrap=True, highlight=False, markup=False)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # there are ways to look into the folder
        if failed := every_record_failed(json.loads(OutputFolder(output).read(storage.SUMMARY))):
            print(f"error: {failed}", file=sys.stderr)
            return 1
    return 0


def _refuse(error: Exception) -> int:
    print("error:", one_line(error), file=sys.stderr)
    return 2


def _configure_logging() -> None:
    """Warnings only, less one of Beam's that means nothing here: it cannot import what measures a model's memory."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().addFilter(_is_meaningful)


def _is_meaningful(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Resource module is not available")


def _launch(job: Job, run: Run, options: PipelineOptions, status: Status) -> dict:
    """Runs the pipeline to its end. Returns the summary that it has left.

    Raises:
      OSError: there is none.
      Exception: what the runner reports.
    """
    import apache_beam as beam

    from pipeline.job.progress import show_progress
    from pipeline.runners import options as runners
    from pipeline.runners.dataflow import options as dataflow

    if dataflow.is_dataflow(options):
        dataflow.show_job()
    # Parts in a remote folder are not looked into for a job of many machines: there may be 100,000.
    here = runners.in_this_process(options) or not storage.is_remote(run.folder.root)
    pipeline = beam.Pipeline(options=options)
    job.build(pipeline, run=run)
    workers = runners.workers_of(options, run.folder, run.plan.num_shards, run.launch)
    with workers, show_progress(run, status) if here else contextlib.nullcontext():
        pipeline.run().wait_until_finish()
    status.clear()
    try:
        return json.loads(run.folder.read(storage.SUMMARY))
    except OSError as error:
        where = f"the runner says that the job is done, but {run.folder.root!r} has no summary of it"
        raise OSError(f"{where}; do its workers write to the same folder? {error}") from error


def every_record_failed(summary: dict) -> str:
    """What to say of a run that has yielded nothing but errors, whether or not it is complete; else ""."""
    errors = summary["errors"]["total"]
    if not errors or summary.get("examples", summary.get("texts")):
        return ""
    return f"all of the {errors} records that were read failed, see errors/"


def _dry_run(job: Job, run: Run, options: PipelineOptions, console: Console) -> int:
    import apache_beam as beam

    from pipeline.job.dry_run import dry_run

    try:
        pipeline = beam.Pipeline(options=options)
        job.build(pipeline, run=run)
        return dry_run(pipeline, run, console)
    except (OSError, ValueError) as error:
        print("error: the job cannot be built or staged:", one_line(error), file=sys.stderr)
        return 1


def _local_device(mesh: str) -> dict:
    """The device that this process decodes on.

    Raises:
      ConfigError: there is none, or `model.mesh` asks for other devices than there are.
    """
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # a TPU that another process has, a JAX_PLATFORMS that is not installed
        raise ConfigError(f"JAX finds no device to decode on: {error}") from error
    if mesh:
        from decoding import sharding

        try:
            sharding.make_mesh(*sharding.parse_mesh(mesh))
        except ValueError as error:
            raise ConfigError(f"model.mesh is {mesh!r}: {error}") from error
    return {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)}
