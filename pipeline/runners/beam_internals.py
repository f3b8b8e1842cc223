"""What jobs use of Beam that Beam does not promise to keep: each private name here, once, and nowhere else.

All were read and tried with Beam CHECKED_WITH. tests/scaleout/test_beam_internals.py fails where another version is
installed: then each function's test says whether it still holds, and this number follows.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability import flink_uber_jar_job_server, prism_runner
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.runners.portability.fn_api_runner.worker_handlers import SubprocessSdkWorkerHandler, WorkerHandler
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer, kill_process_gracefully

CHECKED_WITH = "2.77.0"


def parse_options(args: Sequence[str], refuse: Callable[[str], None]):
    """All of Beam's options in `args`, with their defaults, and the arguments that are none of them.

    Args:
      args: a command line.
      refuse: is called with what argparse says of a value of the wrong type, and raises.
    """
    parser = _BeamArgumentParser(allow_abbrev=False, add_help=False)
    parser.error = refuse
    for cls in {cls.__name__: cls for cls in PipelineOptions.__subclasses__()}.values():
        cls._add_argparse_args(parser)
    return parser.parse_known_args(list(args))


def given_flags(options: PipelineOptions) -> set[str]:
    """Names of the options that were given, "--runner", rather than left at their defaults."""
    return {flag.split("=", 1)[0] for flag in options._flags if isinstance(flag, str)}


@contextlib.contextmanager
def worker_processes_by(handler: type[SubprocessSdkWorkerHandler]) -> Iterator[None]:
    """While the body runs, the local runner starts its worker processes by `handler`."""
    registered, urn = WorkerHandler._registered_environments, python_urns.SUBPROCESS_SDK
    before = registered[urn]
    WorkerHandler.register_environment(urn, bytes)(handler)
    try:
        yield
    finally:
        registered[urn] = before


def stop_prism() -> None:
    """Ends the Prism that Beam has started in this process, if it has."""
    server = prism_runner.PrismRunner.shared_handle.acquire(lambda: None)
    if server is not None:
        server.stop()


class ProcessPool(BeamFnExternalWorkerPoolServicer):
    """Beam's pool of worker processes, by the ids of the workers."""

    def __init__(self):
        super().__init__(use_process=True)

    @property
    def processes(self) -> dict:
        return self._worker_processes

    def stop(self) -> None:
        """Ends all processes."""
        for process in self.processes.values():
            kill_process_gracefully(process)


class UberJarJobServer(flink_uber_jar_job_server.FlinkUberJarJobServer):
    """Beam's submission of jobs over Flink's REST interface, taken over from the one that its runner has made.

    Attributes:
      master_url: of the cluster.
      artifact_port: that files are staged at.
      temp_dir: a folder that Beam makes for every job.
    """

    def __init__(self, server: flink_uber_jar_job_server.FlinkUberJarJobServer):
        self.__dict__ = server.__dict__
        self.master_url, self.artifact_port, self.temp_dir = server._master_url, server._artifact_port, server._temp_dir


class UberJarJob(flink_uber_jar_job_server.FlinkBeamJob):
    """A job of `UberJarJobServer`: the path of its jar, its cluster's address, and its own."""

    @property
    def jar(self) -> str:
        return self._jar

    @property
    def master_url(self) -> str:
        return self._master_url

    @property
    def url(self) -> str:
        return f"{self._master_url}/{self.path}"

    @property
    def path(self) -> str:
        return f"v1/jobs/{self._flink_job_id}"


def fused_stages(proto: beam_runner_api_pb2.Pipeline, runner_urns: frozenset[str]) -> list:
    """The stages that the local runner fuses a pipeline's steps to, with the transforms of each.

    Args:
      proto: the pipeline.
      runner_urns: of primitive transforms that the runner has itself.
    """
    phases = [
        translations.annotate_downstream_side_inputs,
        translations.fix_side_input_pcoll_coders,
        translations.lift_combiners,
        translations.greedily_fuse,
        translations.sort_stages,
    ]
    return translations.create_and_optimize_stages(copy.deepcopy(proto), phases=phases, known_runner_urns=runner_urns)[1]
