"""What a job needs of the Flink cluster that its options name, said before anything is begun."""

import json
import os
import pathlib
import shutil
import sys

import requests
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, PortableOptions, StandardOptions

from pipeline.runners.beam_internals import given_flags
from pipeline.runners.flink import submit as flink_runner
from pipeline.runners.flink.jars import default_cache, fetch
from pipeline.runners.worker import WORKER
from pipeline.settings import ConfigError

HAS_BEAM = "specbeam.beam-version"
"""A setting of a cluster whose lib folder has Beam's runner, of that version."""

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_TIMEOUT_SECS = 10


def check(options: PipelineOptions) -> None:
    """Checks that a job can run on the cluster that its options name, and fills in what they leave out.

    Workers are processes that task managers start from this very installation, unless options say otherwise; without
    --parallelism all slots are used.

    Raises:
      ConfigError: no cluster there, one of another version, too few slots, or a missing tool.
    """
    flink, portable = options.view_as(FlinkRunnerOptions), options.view_as(PortableOptions)
    if portable.job_endpoint:  # whoever started that job server has chosen
        return
    if flink.flink_master in ("[auto]", "[local]"):
        if shutil.which("java") is None:
            raise ConfigError(f"--flink_master is {flink.flink_master!r}, which needs Java; allowed: HOST:PORT of a cluster")
        return
    master = flink.flink_master if "://" in flink.flink_master else f"http://{flink.flink_master}"
    master = master.rstrip("/")
    config, overview = ask(master, "config"), ask(master, "overview")
    has_beam = any(entry["key"] == HAS_BEAM for entry in ask(master, "jobmanager/config"))
    _check_version(flink, config["flink-version"], given="--flink_version" in given_flags(options))
    slots = overview["slots-total"]
    if flink.parallelism == -1:
        flink.parallelism = max(1, slots)
    if slots < flink.parallelism:
        raise ConfigError(
            f"--parallelism is {flink.parallelism}, and the cluster at {flink.flink_master} has {slots} slots, of "
            f"{overview['taskmanagers']} task managers; allowed: at most {slots}, or start more of them"
        )
    if has_beam and not flink.flink_job_server_jar:
        flink.flink_submit_uber_jar = True
        flink.flink_job_server_jar = str(flink_runner.job_jar(fetch(default_cache())))
    elif not flink.flink_submit_uber_jar and shutil.which("java") is None:
        raise ConfigError("no Java is installed, which Beam's job server needs; allowed too: --flink_submit_uber_jar")
    _check_workers(portable)
    if flink.flink_submit_uber_jar:
        options.view_as(StandardOptions).runner = f"{flink_runner.__name__}.FlinkRunner"


def _check_version(flink: FlinkRunnerOptions, version: str, given: bool) -> None:
    """Refuses a job server of another version than the cluster's; takes the cluster's where none is given."""
    short = ".".join(version.split(".")[:2])
    allowed = FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    if given and flink.flink_version != short:
        raise ConfigError(f"--flink_version is {flink.flink_version!r}, and the cluster runs Flink {version}")
    jar = os.path.basename(flink.flink_job_server_jar or "")
    if jar.startswith("beam-runners-flink-") and not jar.startswith(f"beam-runners-flink-{short}-"):
        raise ConfigError(f"--flink_job_server_jar is {jar!r}, and the cluster runs Flink {version}")
    if short not in allowed:
        raise ConfigError(f"the cluster runs Flink {version}; Beam's runner is made for {', '.join(allowed)}")
    flink.flink_version = short


def _check_workers(portable: PortableOptions) -> None:
    """Fills in how Python workers are started, and looks for what starts them."""
    if portable.environment_type is None and not portable.environment_config:
        portable.environment_type = "PROCESS"
    if portable.environment_type == "PROCESS" and not portable.environment_config and not portable.environment_options:
        portable.environment_config = json.dumps({"command": WORKER, "env": worker_variables(os.environ)})
        if not os.access(WORKER, os.X_OK):
            raise ConfigError(f"{WORKER!r}, which starts workers, may not be executed: chmod +x")
    if portable.environment_type == "EXTERNAL" and not portable.environment_config and not portable.environment_options:
        raise ConfigError("--environment_config is missing: localhost:PORT of the worker pool that every machine has")


def worker_variables(environment: dict[str, str]) -> dict[str, str]:
    """The variables that workers get from the launcher: which Python, where SpecBeam is, and what concerns JAX."""
    path = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
    jax = {name: value for name, value in environment.items() if name.startswith(("JAX_", "XLA_"))}
    return {**jax, "PYTHONPATH": path, "SPECBEAM_PYTHON": sys.executable}


def ask(master: str, path: str):
    """What the cluster answers.

    Raises:
      ConfigError: it does not, or is no Flink.
    """
    try:
        response = requests.get(f"{master}/{path}", timeout=_TIMEOUT_SECS)
        response.raise_for_status()
        return response.json()
    except requests.exceptions.ConnectionError as error:
        hint = "`python -m pipeline.runners.flink.cluster start --folder=DIR` starts one here"
        raise ConfigError(f"no Flink cluster answers at --flink_master {master!r}; {hint}") from error
    except (requests.exceptions.RequestException, ValueError) as error:
        raise ConfigError(f"what answers at --flink_master {master!r} is no Flink cluster: {error}") from error
