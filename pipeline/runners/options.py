"""Where a job runs: Beam's options, the runner that they name, and what it cannot do, said before anything is begun.

Options are Beam's own and reach the runner as they were given. Without `--runner` a job runs in this process. What only
one runner needs is checked by a function `check(options)` of its module in `_CHECKED_BY`, which may also fill options in
that were left out.
"""

import contextlib
import importlib
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlparse

from apache_beam.options.pipeline_options import (
    DirectOptions,
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.runner import create_runner

from decoding.config import parse_mesh
from decoding.registry import drafts_of
from pipeline.job.terminal import warn
from pipeline.runners import beam_internals, prism
from pipeline.runners import local as local_processes
from pipeline.runners.dataflow import options as dataflow
from pipeline.settings import ConfigError, JobConfig
from transforms.storage import OutputFolder, is_remote, placeholder_in

# Named in full because Beam's own default, DirectRunner, first tries to download another runner.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
SHARDS_PER_WORKER = 4
"""With fewer, workers wait for each other at the end."""

_LOCAL_NAMES = ("FnApiRunner", "DirectRunner", "SwitchingDirectRunner")
_CHECKED_BY = {
    "FlinkRunner": "pipeline.runners.flink.options",
    "PrismRunner": "pipeline.runners.prism",
    "DataflowRunner": "pipeline.runners.dataflow.options",
}
# Their job servers have options that Beam's Python side has not heard of.
_WITH_JOB_SERVER = ("FlinkRunner", "SparkRunner", "PortableRunner", "KafkaStreamsRunner")


def beam_options(args: Sequence[str], paths: Mapping[str, str] | None = None) -> PipelineOptions:
    """Beam's options, with the local runner where none is named, checked against what the runner can do.

    Args:
      args: what a job's command line leaves for Beam.
      paths: files and folders that workers read or write, by the setting that names them.

    Raises:
      ConfigError: no such runner or option, one that is missing, or a path that the runner's workers cannot reach.
    """
    _refuse_placeholders(args)
    runner = find_runner(_parse(args)[0].runner)
    name = short_name(runner)
    module = _import(_CHECKED_BY[name]) if name in _CHECKED_BY else None  # it may have options of its own
    _, unknown = _parse(args)
    if unknown and name not in _WITH_JOB_SERVER:
        raise ConfigError(f"{_flag(unknown[0])!r} is neither an option of this job nor of Beam")
    for flag in (_flag(arg) for arg in unknown if arg.startswith("-")):
        warn(f"{flag!r} is no option of this job, nor of Beam in Python; {name}'s job server gets it if it knows it")
    options = PipelineOptions(list(args))
    options.view_as(StandardOptions).runner = runner
    if runner == LOCAL_RUNNER:
        _check_direct(options.view_as(DirectOptions))
    if module:
        module.check(options)
    _check_by_beam(options, runner)
    _check_reach(options, paths or {})
    return options


def _refuse_placeholders(args: Sequence[str]) -> None:
    for flag, value in (arg.split("=", 1) for arg in args if "=" in arg):
        if flag.startswith("--") and (found := placeholder_in(value)):
            raise ConfigError(f"{flag} has the placeholder {found!r} in it; allowed: a value of your own")


def find_runner(name: str | None) -> str:
    """The full name of a runner's class, from what `--runner` says; LOCAL_RUNNER for None, and for Beam's DirectRunner.

    Raises:
      ConfigError: Beam has no such runner.
    """
    if name is None:
        return LOCAL_RUNNER
    known = {path.rsplit(".", 1)[-1].lower(): path for path in StandardOptions.ALL_KNOWN_RUNNERS}
    found = known.get(name.lower()) or known.get(f"{name.lower()}runner")
    if found is None and "." not in name:
        allowed = ", ".join(sorted(StandardOptions.KNOWN_RUNNER_NAMES))
        raise ConfigError(f"--runner is {name!r}; allowed: {allowed}, or the full name of a class")
    found = found or name
    return LOCAL_RUNNER if short_name(found) in _LOCAL_NAMES else found


def short_name(runner: str) -> str:
    """The class's name alone."""
    return runner.rsplit(".", 1)[-1]


def runner_of(options: PipelineOptions) -> str:
    """The short name of the runner of checked options."""
    return short_name(options.view_as(StandardOptions).runner or LOCAL_RUNNER)


def is_local(options: PipelineOptions) -> bool:
    """Whether Beam's own local runner has the job, with whatever workers."""
    return (options.view_as(StandardOptions).runner or LOCAL_RUNNER) == LOCAL_RUNNER


def uses_processes(options: PipelineOptions) -> bool:
    """Whether the local runner's workers are processes of their own."""
    return is_local(options) and options.view_as(DirectOptions).direct_running_mode == "multi_processing"


def workers_of(
    options: PipelineOptions, folder: OutputFolder, num_shards: int, launch: str
) -> contextlib.AbstractContextManager[None]:
    """What has to surround a pipeline that decodes: the processes that Beam starts for it here are looked after."""
    if uses_processes(options):
        return local_processes.worker_processes(num_workers(options), folder, num_shards, launch)
    return prism.stopped_after() if runner_of(options) == "PrismRunner" else contextlib.nullcontext()


def worker_environment(options: PipelineOptions) -> dict[str, str]:
    """Environment variables that workers set before they load models: where compiled programs are kept, among others.

    The launch's JAX_COMPILATION_CACHE_DIR is the workers' too, wherever they are: one on gs://, or in a folder that they
    share, lets each program be compiled once.
    """
    if runner_of(options) == "DataflowRunner":
        return dataflow.worker_environment(options)
    programs = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return {"JAX_COMPILATION_CACHE_DIR": programs} if programs and not in_this_process(options) else {}


def check_mesh(options: PipelineOptions, mesh: str) -> None:
    """Refuses a mesh of more devices than each of several worker processes has: one.

    Raises:
      ConfigError: with what is allowed.
    """
    devices = math.prod(parse_mesh(mesh or "model:1"))
    if uses_processes(options) and num_workers(options) > 1 and devices > 1:
        raise ConfigError(
            f"model.mesh is {mesh!r}, and each of {num_workers(options)} worker processes has one device; allowed: a mesh of "
            "one, or --direct_num_workers=1"
        )


def in_this_process(options: PipelineOptions) -> bool:
    """Whether models are loaded, and accelerators owned, by this very process."""
    if is_local(options):
        return not uses_processes(options)
    loopback = options.view_as(PortableOptions).environment_type in (None, "LOOPBACK")
    return runner_of(options) == "PrismRunner" and loopback


def paths_of(config: JobConfig, output: str) -> dict[str, str]:
    """The files and folders of a job, by setting."""
    model = config.model
    paths = {
        "--output": output,
        "input.pattern": first_local(config.input.patterns),
        "input.data_dir": config.input.data_dir,
        "input.hint_folder": config.input.hint_folder,
        "model.target": model.target,
        "model.draft": max(drafts_of(model.draft), key=os.path.isabs),
        "model.tokenizer": model.tokenizer,
        "model.draft_vocabulary": model.draft_vocabulary,
        "score.generations": config.score.generations,
        **{f"score.drafts.{name}": path for name, path in config.score.drafts.items()},
    }
    return {setting: path for setting, path in paths.items() if os.path.isabs(path) or is_remote(path)}


def first_local(paths: Sequence[str]) -> str:
    """The first of `paths` that is on this machine's disk, "" where none is."""
    return next((path for path in paths if not is_remote(path)), "")


def num_workers(options: PipelineOptions) -> int:
    """How many workers the options ask for, 1 where they leave it to the runner."""
    direct, cloud = options.view_as(DirectOptions), options.view_as(WorkerOptions)
    if is_local(options):
        return direct.direct_num_workers or os.cpu_count() or 1
    parallelism = options.view_as(FlinkRunnerOptions).parallelism
    return max(1, parallelism, cloud.num_workers or 0, cloud.max_num_workers or 0)


def warn_of_few_shards(options: PipelineOptions, num_shards: int) -> None:
    """Warns where the frozen plan keeps workers waiting."""
    workers = num_workers(options)
    if workers > 1 and num_shards < SHARDS_PER_WORKER * workers:
        warn(
            f"{num_shards} shards for {workers} workers: with fewer than {SHARDS_PER_WORKER} for each, some wait while others "
            "finish; a smaller shards.examples_per_shard, in a new folder, keeps them busy"
        )


def _parse(args: Sequence[str]):
    """All of Beam's options, and what is none of them.

    Raises:
      ConfigError: an option's value is of another type than Beam's.
    """

    def refuse(message: str) -> None:
        raise ConfigError(message)

    return beam_internals.parse_options(args, refuse)


def _flag(arg: str) -> str:
    return arg.split("=", 1)[0]  # its value may be a secret


def _import(module: str):
    return importlib.import_module(module) if importlib.util.find_spec(module) else None


def _check_direct(direct: DirectOptions) -> None:
    if direct.direct_num_workers < 0:
        raise ConfigError(f"--direct_num_workers is {direct.direct_num_workers}; allowed: 0 for one per processor, or more")
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        direct.direct_running_mode = "multi_threading"
    if direct.direct_running_mode == "multi_processing":
        local_processes.check(direct.direct_num_workers or os.cpu_count() or 1)


def _check_by_beam(options: PipelineOptions, runner: str) -> None:
    """What Beam itself would complain about once the pipeline is built, as far as it asks nobody else."""
    try:
        created = create_runner(runner)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--runner is {runner!r}: {error}") from error
    # Of Dataflow's options Beam validates buckets by looking for them, and by making some.
    errors = [] if short_name(runner) == "DataflowRunner" else PipelineOptionsValidator(options, created).validate()
    if errors:
        raise ConfigError(f"{short_name(runner)}: {' '.join(errors)}")
    portable = options.view_as(PortableOptions)
    if short_name(runner) == "PortableRunner" and not portable.job_endpoint:
        raise ConfigError("--job_endpoint is missing; PortableRunner needs the host:port of a job server")


def _check_reach(options: PipelineOptions, paths: Mapping[str, str]) -> None:
    """Refuses, or warns of, paths that only this machine has where workers are on others.

    Raises:
      ConfigError: one for Dataflow, whose workers share no disk with anybody; models may be part of its image.
    """
    local = {setting: path for setting, path in paths.items() if path and not is_remote(path)}
    where = _elsewhere(options)
    if not where or not local:
        return
    if runner_of(options) == "DataflowRunner":
        in_image = options.view_as(WorkerOptions).sdk_container_image is not None
        refused = [setting for setting in local if not (in_image and setting.startswith(("model.", "score.drafts")))]
        if refused:
            setting = refused[0]
            raise ConfigError(
                f"{setting} is {local[setting]!r}, on this machine's disk, and DataflowRunner's workers run {where}; "
                "allowed: a path on gs://" + ("" if in_image else ", or models inside the --sdk_container_image")
            )
        return
    shown = ", ".join(f"{setting} ({path})" for setting, path in list(local.items())[:3])
    warn(f"workers run {where}: they have to find the same files at {shown}; give gs://, or folders that they share")


def _elsewhere(options: PipelineOptions) -> str:
    """Where workers are, if not on this machine; "" where they are here or nobody knows."""
    runner = runner_of(options)
    if runner == "DataflowRunner":
        return "in Google's cloud"
    portable = options.view_as(PortableOptions)
    if runner not in _WITH_JOB_SERVER or portable.environment_type == "LOOPBACK":
        return ""
    master = options.view_as(FlinkRunnerOptions).flink_master if runner == "FlinkRunner" else portable.job_endpoint
    if not master or master.startswith("["):
        return ""
    host = urlparse(master if re.match(r"\w+://", master) else f"//{master}").hostname or ""
    return "" if host in ("localhost", "127.0.0.1", "::1", "embed") else f"at {host}"
