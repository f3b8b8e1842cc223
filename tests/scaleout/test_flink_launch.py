"""What is said of a Flink cluster before a job is begun, and how workers find their job; no Java is needed."""

import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent import futures

import grpc
import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions, StandardOptions
from apache_beam.portability.api import (
    beam_job_api_pb2,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.runner import create_runner
from google.protobuf import struct_pb2

from pipeline.runners import supervise, worker, worker_pool
from pipeline.runners.flink import cluster as flink
from pipeline.runners.flink import options as flink_options
from pipeline.runners.flink import submit as flink_runner
from pipeline.runners.options import beam_options
from pipeline.settings import ConfigError
from tests.scaleout.processes import line_of, wait_for


class FakeCluster:
    """Answers as a cluster's REST interface does."""

    def __init__(self):
        self.answers = {
            "/config": {"flink-version": "1.19.0"},
            "/overview": {"taskmanagers": 2, "slots-total": 2, "slots-available": 2},
            "/jobmanager/config": [{"key": "specbeam.beam-version", "value": flink.BEAM_VERSION}],
        }
        self.patched = []
        answers, patched = self.answers, self.patched

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                found = answers.get(self.path)
                self.send_response(200 if found is not None else 404)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def do_PATCH(self):
                patched.append(self.path)
                self.send_response(202)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.master = f"localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def cluster():
    fake = FakeCluster()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def jars(tmp_path, monkeypatch) -> pathlib.Path:
    """A cache that has the jars already."""
    monkeypatch.setenv("SPECBEAM_FLINK_CACHE", str(tmp_path))
    lib = tmp_path / f"flink-{flink.FLINK_VERSION}-beam-{flink.BEAM_VERSION}"
    lib.mkdir()
    contents = {
        "beam-runners-flink-1.19-2.62.0.jar": ["org/F/FlinkPipelineRunner.class", "org/F/FlinkPipelineRunner$1.class",
                                               "org/F/FlinkPipelineOptions.class", "META-INF/services/x"],
        "beam-runners-java-job-service-2.62.0.jar": ["org/J/PortablePipelineJarUtils.class", "org/J/JobInvoker.class"],
    }  # fmt: skip
    for name, members in contents.items():
        with zipfile.ZipFile(lib / name, "w") as jar:
            for member in members:
                jar.writestr(member, member)
    flink_runner.write_job_jar(lib)
    return lib


def check(cluster, *args):
    return beam_options(["--runner=FlinkRunner", f"--flink_master={cluster.master}", *args])


def test_a_job_brings_only_what_looks_for_its_pipeline(jars):
    with zipfile.ZipFile(flink_runner.job_jar(jars)) as jar:
        assert jar.namelist() == [
            "META-INF/MANIFEST.MF",
            "org/F/FlinkPipelineRunner.class",
            "org/F/FlinkPipelineRunner$1.class",
            "org/J/PortablePipelineJarUtils.class",
        ]


def test_what_is_left_out_is_filled_in(cluster, jars, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("A_SECRET", "hunter2")
    options = check(cluster)
    asked, portable = options.view_as(FlinkRunnerOptions), options.view_as(PortableOptions)
    assert (asked.parallelism, asked.flink_version, asked.flink_submit_uber_jar) == (2, "1.19", True)
    assert asked.flink_job_server_jar == str(flink_runner.job_jar(jars))
    config = json.loads(portable.environment_config)
    assert (portable.environment_type, config["command"]) == ("PROCESS", worker.WORKER)
    assert config["env"]["SPECBEAM_PYTHON"] == sys.executable
    assert config["env"]["JAX_PLATFORMS"] == "cpu"
    assert "A_SECRET" not in config["env"]
    runner = create_runner(options.view_as(StandardOptions).runner)
    assert type(runner) is flink_runner.FlinkRunner


def test_what_is_given_stays(cluster, jars):
    given = ["--parallelism=1", "--environment_type=EXTERNAL", "--environment_config=localhost:50000"]
    given += ["--flink_version=1.19", "--flink_submit_uber_jar", "--flink_job_server_jar=/my/job-server.jar"]
    options = check(cluster, *given)
    found = options.get_all_options()
    assert all(found[flag.split("=")[0][2:]] in (flag.split("=")[-1], True, 1) for flag in given)


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--parallelism=3"], r"--parallelism is 3, and the cluster at localhost:\d+ has 2 slots, of 2 task managers"),
        (["--flink_version=2.0"], r"--flink_version is '2.0', and the cluster runs Flink 1.19.0"),
        (["--flink_version=2.2"], r"--flink_version is '2.2', and the cluster"),  # Beam's default, but given
        (["--flink_job_server_jar=/x/beam-runners-flink-2.0-job-server-2.77.0.jar"], r"server-2.77.0.jar', and the cluster"),
        (["--environment_type=EXTERNAL"], r"--environment_config is missing: localhost:PORT of the worker pool"),
    ],
)
def test_what_is_refused(cluster, jars, args, found):
    with pytest.raises(ConfigError, match=found):
        check(cluster, *args)


def test_no_task_managers(cluster, jars):
    cluster.answers["/overview"] = {"taskmanagers": 0, "slots-total": 0, "slots-available": 0}
    with pytest.raises(ConfigError, match="has 0 slots, of 0 task managers"):
        check(cluster)


def test_a_flink_that_beam_does_not_know(cluster, jars):
    cluster.answers["/config"] = {"flink-version": "1.17.2"}
    with pytest.raises(ConfigError, match="the cluster runs Flink 1.17.2; Beam's runner is made for 1.19, 1.20"):
        check(cluster)


def test_somebody_elses_cluster_needs_a_job_server(cluster, jars, monkeypatch):
    cluster.answers["/jobmanager/config"] = []
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="no Java is installed, which Beam's job server needs"):
        check(cluster)


def test_no_cluster_there(jars):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=f"no Flink cluster answers at --flink_master 'http://localhost:{port}'"):
        beam_options(["--runner=FlinkRunner", f"--flink_master=localhost:{port}"])


def test_not_a_cluster(cluster, jars):
    cluster.answers.clear()
    with pytest.raises(ConfigError, match="what answers at --flink_master .* is no Flink cluster: 404"):
        check(cluster)


def test_no_java(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert flink.main(["start", f"--folder={tmp_path}"]) == 2
    assert "error: no Java is installed, which Flink needs" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--flink_master is '\[auto\]', which needs Java; allowed: HOST:PORT"):
        beam_options(["--runner=FlinkRunner", "--environment_type=LOOPBACK"])


def executables(folder: pathlib.Path, **scripts: str) -> str:
    """A PATH of shell scripts."""
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_no_maven(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", executables(tmp_path, java="exit 1"))
    assert flink.main(["start", f"--folder={tmp_path / 'f'}", f"--cache={tmp_path / 'cache'}"]) == 2
    assert "error: mvn is not installed, which fetches Flink once" in capsys.readouterr().err


def test_maven_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", executables(tmp_path, mvn="echo '[ERROR] no such artifact'; exit 1"))
    assert flink.main(["fetch", f"--cache={tmp_path / 'cache'}"]) == 2
    assert "error: mvn cannot fetch Flink: [ERROR] no such artifact" in capsys.readouterr().err
    assert not list((tmp_path / "cache").iterdir())


def test_a_busy_port(tmp_path, jars, monkeypatch, capsys):
    monkeypatch.setenv("PATH", executables(tmp_path, java="exit 1"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert flink.main(["start", f"--folder={tmp_path / 'f'}", f"--port={port}"]) == 2
    assert f"error: --port is {port}, which is in use" in capsys.readouterr().err


def test_a_cluster_that_does_not_come_up(tmp_path, jars, monkeypatch, capsys):
    monkeypatch.setenv("PATH", executables(tmp_path, java="echo out of memory; exit 1"))
    assert flink.main(["start", f"--folder={tmp_path / 'f'}", "--port=0"]) == 2
    assert "the cluster did not come up: a process of it died; its logs are in" in capsys.readouterr().err
    assert "out of memory" in (tmp_path / "f" / "job_manager_0.log").read_text()
    assert flink.main(["status", f"--folder={tmp_path / 'f'}"]) == 2


@pytest.fixture
def asleep():
    """Starts a process in the place of one of a cluster's."""
    started = []

    def start() -> flink.Process:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return flink.Process(started[-1].pid, flink._start_tick(started[-1].pid))

    yield start
    for process in started:
        process.kill()
        process.wait()


GONE = flink.Process(os.getpid(), -1)  # another has its number


def test_what_is_left_of_a_cluster_without_its_job_manager_is_ended(tmp_path, jars, asleep, monkeypatch):
    left = asleep()
    flink._write(tmp_path, flink.Cluster(1, 2, 1, GONE, (left,)))
    monkeypatch.setenv("PATH", executables(tmp_path, java="exit 1"))
    assert flink.main(["start", f"--folder={tmp_path}", "--port=0"]) == 2
    assert not left.alive


def test_task_managers_that_cannot_be_started_again_leave_the_others_alone(tmp_path, jars, asleep, monkeypatch, capsys):
    cluster = flink.Cluster(1, 2, 1, asleep(), (GONE, asleep()))
    flink._write(tmp_path, cluster)
    monkeypatch.setenv("PATH", executables(tmp_path, java="exit 1"))
    assert flink.main(["start", f"--folder={tmp_path}"]) == 2
    assert "the cluster did not come up: a process of it died" in capsys.readouterr().err
    assert flink.read(tmp_path) == cluster
    assert cluster.job_manager.alive and cluster.task_managers[1].alive


def test_an_interrupted_start_leaves_nothing(tmp_path, jars, monkeypatch):
    folder, seen = tmp_path / "f", []
    monkeypatch.setenv("PATH", executables(tmp_path, java="exec /bin/sleep 60"))

    def interrupt(*_):
        seen.extend(flink.read(folder).processes)
        raise KeyboardInterrupt

    monkeypatch.setattr(flink, "ask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        flink.main(["start", f"--folder={folder}", "--port=0"])
    assert len(seen) == 3 and not any(process.alive for process in seen)
    assert flink.read(folder) is None


def test_commands_name_what_is_wrong(tmp_path, capsys):
    for arguments in (["stop"], ["stop", f"--folder={tmp_path}"], ["start", f"--folder={tmp_path}", "--slots=0"]):
        assert flink.main(arguments) == 2
    messages = capsys.readouterr().err.splitlines()
    assert messages[0] == "error: --folder is missing; stop needs the cluster's folder"
    assert messages[1].startswith("error: no cluster was started with --folder")
    assert messages[2] == "error: --slots is 0; allowed: 1 or more"


@pytest.fixture
def submitted(cluster):
    """A job that the fake cluster has."""
    job = flink_runner._Job(f"http://{cluster.master}", "job.jar", "1", "a job", None, None)
    job._flink_job_id = "7"
    return job


@pytest.mark.parametrize(
    ("state", "found", "said"),
    [
        ("FAILED", beam_job_api_pb2.JobState.FAILED, ["java.lang.OutOfMemoryError: no heap"]),
        ("FINISHED", beam_job_api_pb2.JobState.DONE, []),  # it has recovered from that
    ],
)
def test_a_failed_job_says_what_it_failed_of(cluster, submitted, state, found, said):
    trace = "Some wrapper\n\tat x.y(Z.java)\nCaused by: java.lang.OutOfMemoryError: no heap\n\tat a.b(C.java)\n\t... 3 more"
    cluster.answers["/v1/jobs/7/execution-result"] = {"status": {"id": "COMPLETED"}}
    cluster.answers["/v1/jobs/7"] = {"state": state}
    cluster.answers["/v1/jobs/7/exceptions"] = {"exceptionHistory": {"entries": [{"stacktrace": trace}]}}
    messages = list(submitted.get_message_stream())
    assert [m.message_text for m in messages if not isinstance(m, tuple)] == said
    assert messages[-1][0] == found


def test_an_interrupted_launcher_cancels_its_job(cluster, submitted, monkeypatch):
    cluster.answers["/v1/jobs/7/execution-result"] = {"status": {"id": "IN_PROGRESS"}}

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(flink_runner.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(submitted.get_state_stream())
    assert cluster.patched == ["/v1/jobs/7?mode=cancel"]


def test_an_interrupt_that_a_destructor_has_lost_is_noticed(cluster, submitted, monkeypatch, capsys):
    """Python raises it wherever the main thread is, and where that is a destructor it tells stderr and goes on."""
    cluster.answers["/v1/jobs/7/execution-result"] = {"status": {"id": "IN_PROGRESS"}}

    class Socket:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)  # where it is raised

    monkeypatch.setattr(flink_runner, "_POLL_SECS", 0.01)
    states = submitted.get_state_stream()
    with supervise.interrupts() as interrupted:
        next(states)
        Socket()
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            list(states)
    assert cluster.patched == ["/v1/jobs/7?mode=cancel"]
    assert capsys.readouterr().err == ""


def test_a_job_manager_that_lost_the_job(cluster, submitted):
    with pytest.raises(RuntimeError, match="lost the job: .*status 404"):
        list(submitted.get_state_stream())


def test_a_job_manager_that_is_back_in_a_moment(submitted, monkeypatch):
    """That its port has a 404 in it is not its answer."""
    answers = iter([RuntimeError("Request to http://localhost:40404/v1/jobs/7 failed with status 503: "), None])

    def get_state():
        if error := next(answers):
            raise error
        return beam_job_api_pb2.JobState.DONE, None

    monkeypatch.setattr(submitted, "get_state", get_state)
    monkeypatch.setattr(flink_runner.time, "sleep", lambda _: None)
    assert [state for state, _ in submitted.get_state_stream()][-1] == beam_job_api_pb2.JobState.DONE


def test_a_job_that_is_not_taken_leaves_no_files(cluster, jars, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    options = check(cluster)
    server = create_runner(options.view_as(StandardOptions).runner).default_job_server(options)
    job = server.create_beam_job("1", "a job", beam_runner_api_pb2.Pipeline(), struct_pb2.Struct())
    job.prepare()
    with pytest.raises((OSError, RuntimeError)):  # the fake cluster accepts nothing
        job.run()
    assert list((tmp_path / "temporary").iterdir()) == []


class Provision(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    def GetProvisionInfo(self, request, context):
        assert dict(context.invocation_metadata())["worker_id"] == "7-1"
        info = beam_provision_api_pb2.ProvisionInfo(
            control_endpoint=endpoints_pb2.ApiServiceDescriptor(url="localhost:1"), runner_capabilities=["a", "b"]
        )
        info.pipeline_options.update({"beam:option:job_name:v1": "a job"})
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=info)


def test_a_worker_finds_its_job():
    server = grpc.server(futures.ThreadPoolExecutor(1))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(Provision(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        info = worker.provision_info(f"localhost:{port}", "7-1")
    finally:
        server.stop(0)
    assert worker.worker_environment(info, "7-1", "localhost:9", "localhost:2") == {
        "WORKER_ID": "7-1",
        "PIPELINE_OPTIONS": '{"beam:option:job_name:v1": "a job"}',
        "RUNNER_CAPABILITIES": "a b",
        "CONTROL_API_SERVICE_DESCRIPTOR": 'url: "localhost:1"\n',
        "LOGGING_API_SERVICE_DESCRIPTOR": 'url: "localhost:2"\n',
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_a_worker_ends_with_who_started_it():
    start = (
        "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); time.sleep(600)"
    )
    arguments = [worker.WORKER, "--id=7-1", "--provision_endpoint=localhost:1"]
    environment = {**os.environ, **flink_options.worker_variables(os.environ)}
    parent = subprocess.Popen([sys.executable, "-c", start, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
    child = int(parent.stdout.readline())
    try:  # it is importing, and would then wait for an endpoint that never answers
        wait_for(lambda: b"pipeline.runners.worker\0--id=7-1" in line_of(child), 10)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not line_of(child), 20)


def test_a_worker_pool_on_a_busy_port(capsys):
    server, _, port = worker_pool.serve(0)
    try:
        assert worker_pool.main([f"--port={port}"]) == 2
    finally:
        server.stop(0)
    assert f"error: port {port} of localhost is in use" in capsys.readouterr().err
