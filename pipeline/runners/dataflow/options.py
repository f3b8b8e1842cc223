"""Dataflow: what its jobs need beyond Beam's options, and what is refused before anything is begun.

`--accelerator` says which accelerator a worker has; everything else are Beam's own options, which win where they are
given and do not contradict it. docs/dataflow.md is the launch guide.
"""

import importlib.util
import logging
import math
import os
from collections.abc import Iterable

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.runner import create_runner

import decoding
from decoding.drafts import ngram, suffixes
from decoding.sharding import parse_mesh
from pipeline.runners.dataflow.accelerators import Accelerator, by_name, by_request
from pipeline.settings import ConfigError, JobConfig
from transforms import storage

_ACCELERATOR = "worker_accelerator="
_ONE_PROCESS, _MANY_PROCESSES = "no_use_multiple_sdk_containers", "use_multiple_sdk_containers"
_THREADS = 2
"""Of a worker's process: while one holds the accelerator, the other reads the next shard and commits the last."""
_DISK_GB = 100
"""Batch workers get 25 GB by default; an image with CUDA's libraries alone takes 10."""
_HINT_RAM_BYTES = 8 << 30


class DataflowOptions(PipelineOptions):
    """This project's own option for Dataflow."""

    @classmethod
    def _add_argparse_args(cls, parser):
        parser.add_argument(
            "--accelerator",
            default=None,
            help="Accelerator of a Dataflow worker: a TPU and its topology (v5e:2x2), or a GPU and how many (l4:1).",
        )


def is_dataflow(options: PipelineOptions) -> bool:
    """Whether the options name Dataflow's runner."""
    runner = options.view_as(StandardOptions).runner or ""
    return runner.rsplit(".", 1)[-1] == "DataflowRunner"


def check(options: PipelineOptions) -> None:
    """Expands `--accelerator`, fills in what a job of this project needs, and refuses what cannot work.

    Raises:
      ConfigError: with all that is missing or wrong.
    """
    if not is_dry_run(options) and not _installed("google_auth_httplib2", "google.cloud.dataflow"):
        raise ConfigError("--runner is 'DataflowRunner', which needs the packages of the extra 'gcp'")
    if not _installed("google.cloud.dataflow"):
        raise ConfigError("--dry_run of Dataflow needs one more package: pip install google-cloud-dataflow-client")
    accelerator = accelerator_of(options)
    _fill_in(options, accelerator)
    if problems := [*_missing(options, accelerator), *_contradictions(options, accelerator)]:
        raise ConfigError("DataflowRunner: " + "; ".join(problems))


def is_dry_run(options: PipelineOptions) -> bool:
    """Whether the job is prepared and not submitted."""
    return bool(options.view_as(TestOptions).dry_run)


def accelerator_of(options: PipelineOptions) -> Accelerator | None:
    """What each worker has, by `--accelerator` or written out; None for none, or for one that is not known here.

    Raises:
      ConfigError: no such accelerator, or both ways at once.
    """
    name, requests = options.view_as(DataflowOptions).accelerator, _requests(options)
    if name is None:
        return by_request(requests[0]) if requests else None
    accelerator = by_name(name)
    if any(request != accelerator.request for request in requests):
        raise ConfigError(
            f"--accelerator is {name!r} and --dataflow_service_options has worker_accelerator={requests[0]}; allowed: one "
            "of the two"
        )
    return accelerator


def check_config(options: PipelineOptions, config: JobConfig) -> None:
    """Refuses a mesh that leaves chips of a worker idle or asks for more than there are, and `--accelerator` elsewhere.

    Raises:
      ConfigError: with what is allowed.
    """
    if not is_dataflow(options):
        if name := options.view_as(DataflowOptions).accelerator:
            raise ConfigError(f"--accelerator is {name!r}; allowed: with --runner=DataflowRunner alone")
        return
    accelerator = accelerator_of(options)
    if accelerator is None:
        return
    used = math.prod(parse_mesh(config.model.mesh)) if config.model.mesh else 1
    if used != accelerator.devices:
        fitting = [f"data:{d},model:{accelerator.devices // d}" for d in _divisors(accelerator.devices)]
        allowed = '"", for one device' if accelerator.devices == 1 else " or ".join(fitting)
        raise ConfigError(
            f"model.mesh is {config.model.mesh!r}, which uses {used} of {accelerator.devices} devices of {accelerator.name}; "
            f"allowed: {allowed}"
        )


def worker_environment(options: PipelineOptions) -> dict[str, str]:
    """Environment variables that Dataflow's workers need before their models are loaded, {} for other runners.

    Compiled programs are shared in JAX_COMPILATION_CACHE_DIR of the launch where that is remote, and else in a folder of
    the job's bucket.
    """
    if not is_dataflow(options):
        return {}
    accelerator = accelerator_of(options)
    programs = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not storage.is_remote(programs):
        bucket = options.view_as(GoogleCloudOptions).temp_location.removeprefix("gs://").split("/", 1)[0]
        programs = f"gs://{bucket}/specbeam/programs"
    return {"JAX_COMPILATION_CACHE_DIR": programs, **(accelerator.environment if accelerator else {})}


def resource_hints(options: PipelineOptions, models: Iterable[str]) -> dict[str, str | int]:
    """Hints for the steps from reading to committing where Dataflow Prime chooses machines, and else none.

    Memory is for twice the weights of `models`, directories or names of drafts, that are remote.

    Any hint makes Dataflow fit machines to steps, which excludes `worker_accelerator` and TPUs. All of those steps get the
    same hints: steps with different ones are not fused, and what is between them is written out.
    """
    if not is_dataflow(options) or not uses_prime(options):
        return {}
    weights = sum(_size_bytes(file) for path in models if storage.is_remote(path) for file in _weight_files(path))
    hints: dict[str, str | int] = {"min_ram": _HINT_RAM_BYTES + 2 * weights}
    accelerator = accelerator_of(options)
    return hints if accelerator is None else {**hints, "accelerator": accelerator.request}


def show_job() -> None:
    """Lets Beam's runner say where the job's page is, and what Dataflow reports of it; the rest of its log stays quiet."""
    logging.getLogger("apache_beam.runners.dataflow.dataflow_runner").setLevel(logging.INFO)
    client = logging.getLogger("apache_beam.runners.dataflow.internal.apiclient")
    client.setLevel(logging.INFO)
    client.addFilter(_is_of_the_job)


def _is_of_the_job(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.getMessage().startswith(("To access the Dataflow", "Submitted job"))


def uses_prime(options: PipelineOptions) -> bool:
    """Whether Dataflow Prime was asked for, which chooses machines by resource hints."""
    services = options.view_as(GoogleCloudOptions).dataflow_service_options or []
    return "enable_prime" in services or bool(options.view_as(DebugOptions).lookup_experiment("enable_prime"))


def _fill_in(options: PipelineOptions, accelerator: Accelerator | None) -> None:
    cloud, debug, workers = (options.view_as(cls) for cls in (GoogleCloudOptions, DebugOptions, WorkerOptions))
    cloud.temp_location = cloud.temp_location or cloud.staging_location
    if _MANY_PROCESSES not in (debug.experiments or []):
        debug.add_experiment(_ONE_PROCESS)
    if debug.number_of_worker_harness_threads is None:
        debug.number_of_worker_harness_threads = _THREADS
    if workers.num_workers and workers.max_num_workers is None and workers.autoscaling_algorithm is None:
        workers.autoscaling_algorithm = "NONE"
    if accelerator is None:
        return
    if workers.disk_size_gb is None:
        workers.disk_size_gb = _DISK_GB
    if uses_prime(options):
        return  # machines come from hints
    if workers.machine_type is None:
        workers.machine_type = accelerator.machine_type
    if not _requests(options):
        cloud.dataflow_service_options = [*(cloud.dataflow_service_options or []), _ACCELERATOR + accelerator.request]


def _missing(options: PipelineOptions, accelerator: Accelerator | None) -> list[str]:
    cloud, workers, setup = (options.view_as(cls) for cls in (GoogleCloudOptions, WorkerOptions, SetupOptions))
    validator = PipelineOptionsValidator(options, create_runner("DataflowRunner"))
    found = [*validator.validate_cloud_options(cloud), *validator.validate_num_workers(workers)]
    if not cloud.temp_location:  # Beam would make a bucket of its own
        found.append("--temp_location is missing; allowed: a folder on gs://, for staged files")
    for name in ("temp_location", "staging_location"):
        if getattr(cloud, name):
            found += validator.validate_gcs_path(cloud, name)
    found = [problem.rstrip(".") for problem in found]
    if workers.sdk_container_image is None:
        if accelerator is not None or _requests(options):
            found.append("--sdk_container_image is missing; Beam's own image has no JAX for an accelerator: see Dockerfile")
        elif not (setup.setup_file or setup.extra_packages or setup.requirements_file):
            found.append("--sdk_container_image is missing; allowed: an image of the Dockerfile, or --setup_file=./setup.py")
    if accelerator is not None:
        if not workers.num_workers and not workers.max_num_workers:
            found.append("--max_num_workers is missing; without it Dataflow takes as many accelerators as it sees fit")
        if accelerator.is_tpu and not workers.worker_zone:
            found.append(f"--worker_zone is missing; {accelerator.name} is in some zones of a region only")
    return found


def _contradictions(options: PipelineOptions, accelerator: Accelerator | None) -> list[str]:
    cloud, workers, debug = (options.view_as(cls) for cls in (GoogleCloudOptions, WorkerOptions, DebugOptions))
    found = []
    if workers.worker_zone and cloud.region and not workers.worker_zone.startswith(cloud.region + "-"):
        found.append(f"--worker_zone is {workers.worker_zone!r}; allowed: a zone of --region, {cloud.region}")
    if accelerator is None:
        return found
    if _MANY_PROCESSES in (debug.experiments or []):
        found.append(f"--experiments has {_MANY_PROCESSES}; allowed: {_ONE_PROCESS}, since one process owns an accelerator")
    if uses_prime(options):
        if accelerator.is_tpu:
            found.append(f"enable_prime excludes TPUs; {accelerator.name} needs Dataflow without it")
        if _requests(options):
            found.append(f"enable_prime excludes worker_accelerator; allowed: --accelerator={accelerator.name}")
        if workers.machine_type:
            found.append(f"--machine_type is {workers.machine_type!r}; enable_prime chooses machines itself")
    elif not workers.machine_type.startswith(accelerator.machine_family):
        kind = accelerator.machine_type if accelerator.machine_family == accelerator.machine_type else (
            f"{accelerator.machine_family}..., for example {accelerator.machine_type}"
        )
        found.append(f"--machine_type is {workers.machine_type!r}; allowed with {accelerator.name}: {kind}")
    if accelerator.is_tpu and cloud.flexrs_goal:
        found.append(f"--flexrs_goal is {cloud.flexrs_goal!r}, which has no TPUs; leave it out")
    return found


def _requests(options: PipelineOptions) -> list[str]:
    services = options.view_as(GoogleCloudOptions).dataflow_service_options or []
    return [option.removeprefix(_ACCELERATOR) for option in services if option.startswith(_ACCELERATOR)]


def _weight_files(path: str) -> list[str]:
    if suffixes.is_index(path):
        return [storage.join(path, suffixes.FILE)]
    return [storage.join(path, ngram.FILE)] if ngram.is_ngram(path) else list(decoding.inspect_checkpoint(path).weight_files)


def _size_bytes(path: str) -> int:
    with storage.open_raw(path) as stream:
        end = stream.seek(0, 2)
        return stream.tell() if end is None else end


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _installed(*modules: str) -> bool:
    try:
        return all(importlib.util.find_spec(module) for module in modules)
    except ModuleNotFoundError:
        return False
