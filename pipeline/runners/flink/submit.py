"""Beam's FlinkRunner for a job that is submitted over the cluster's REST interface, with what Beam 2.77 leaves to wish.

Beam looks at a job's state at intervals that grow to a minute, and cancels through an address that Flink does not have.
Nothing else differs: no Java runs beside the launcher, the pipeline travels in a jar, and the cluster's own copy of Beam
translates it.
"""

import os
import pathlib
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence

import requests
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability import flink_runner, flink_uber_jar_job_server

from pipeline.runners.beam_internals import UberJarJob, UberJarJobServer
from pipeline.runners.supervise import was_interrupted

_POLL_SECS = 1.0
_LOST_SECS = 60.0
_TIMEOUT_SECS = 60


class FlinkRunner(flink_runner.FlinkRunner):
    """Named as Beam's, which it is in all but the job's state and its cancelling."""

    def default_job_server(self, options):
        server = super().default_job_server(options)
        return _JobServer(server) if isinstance(server, flink_uber_jar_job_server.FlinkUberJarJobServer) else server


class _JobServer(UberJarJobServer):
    def __init__(self, server: flink_uber_jar_job_server.FlinkUberJarJobServer):
        super().__init__(server)
        os.rmdir(self.temp_dir)  # which Beam makes for every job, and uses for nothing

    def create_beam_job(self, job_id, job_name, pipeline, options):
        jar, port = self.executable_jar(), self.artifact_port
        return _Job(self.master_url, jar, job_id, job_name, pipeline, options, artifact_port=port)


class _Job(UberJarJob):
    def run(self):
        try:
            super().run()
        finally:  # Beam keeps its copy of the jar where the cluster does not take it
            pathlib.Path(self.jar).unlink(missing_ok=True)

    def cancel(self):
        try:
            requests.patch(f"{self.url}?mode=cancel", timeout=_TIMEOUT_SECS)
        finally:
            self.delete_jar()

    def get_state_stream(self) -> Iterator[tuple]:
        try:
            yield from self._states()
        except KeyboardInterrupt:  # while the launcher waits here; the next launch shall not find this one at work
            self.cancel()
            raise

    def _states(self) -> Iterator[tuple]:
        yield from self.with_state_history([])
        answered = time.monotonic()
        while True:
            try:
                state, timestamp = self.get_state()
                answered = time.monotonic()
            except (OSError, RuntimeError) as error:  # the job manager may be back in a moment, and knows its jobs or not
                if time.monotonic() - answered > _LOST_SECS or "status 404" in str(error):
                    raise RuntimeError(f"the job manager at {self.master_url} lost the job: {error}") from error
            else:
                yield state, timestamp
                if self.is_terminal_state(state):
                    return
            time.sleep(_POLL_SECS)
            if was_interrupted() and threading.current_thread() is threading.main_thread():  # Beam reads in another one too
                raise KeyboardInterrupt

    def get_message_stream(self) -> Iterator[beam_job_api_pb2.JobMessage | tuple]:
        for state, timestamp in self.get_state_stream():
            # A job that has recovered from a failure remembers it as well.
            if state == beam_job_api_pb2.JobState.FAILED and (cause := self._root_cause()):
                importance = beam_job_api_pb2.JobMessage.JOB_MESSAGE_ERROR
                yield beam_job_api_pb2.JobMessage(importance=importance, message_text=cause)
            yield state, timestamp

    def _root_cause(self) -> str:
        """What the job failed of: the last "Caused by" of Flink's latest trace, "" for nothing."""
        history = self.get(f"{self.path}/exceptions").get("exceptionHistory", {}).get("entries", [])
        trace = history[0]["stacktrace"] if history else ""
        return trace.split("Caused by: ")[-1].split("\n\tat ")[0].strip()


_SUBMITTED = {
    "beam-runners-flink-": ("FlinkPipelineRunner", "FlinkPortableRunnerResult", "FlinkRunnerResult"),
    "beam-runners-java-job-service-": ("PortablePipelineJarUtils",),
}


def write_job_jar(lib: pathlib.Path) -> None:
    """Makes `job_jar(lib)`: what a job brings to a cluster that has Beam in its own lib folder.

    The pipeline is added to it, and these classes look for it where they themselves come from. The rest of Beam is the
    cluster's: loaded once, not sent with every job.
    """
    job_jar(lib).parent.mkdir()
    with zipfile.ZipFile(job_jar(lib), "w") as written:
        written.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\r\n\r\n")
        for prefix, classes in _SUBMITTED.items():
            (path,) = lib.glob(f"{prefix}*.jar")
            with zipfile.ZipFile(path) as jar:
                for name in jar.namelist():
                    if _is_of(name, classes):
                        written.writestr(name, jar.read(name))


def job_jar(lib: pathlib.Path) -> pathlib.Path:
    """Below `lib`, where its `*.jar` does not reach."""
    return lib / "job" / "job.jar"


def _is_of(name: str, classes: Sequence[str]) -> bool:
    """Whether a file of a jar is one of `classes`, or of those inside them."""
    return name.rsplit("/", 1)[-1].removesuffix(".class").split("$")[0] in classes
