"""Workers of shared clusters: what keeps one from working is the job's error, and what stops one in order is no death."""

import os
import queue
import signal
import subprocess
import sys
from concurrent import futures

import grpc
import pytest
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)

from pipeline.runners import worker, worker_pool
from pipeline.runners.flink.options import worker_variables
from tests.pipeline.helpers import assert_same_rows, files, rows, run, summary
from transforms import attempts
from transforms.records import DECODE, WorkShard
from transforms.storage import OutputFolder

WORK = WorkShard(1, 3, "f", "f", 0, 4, 10, None)


class Runner(beam_fn_api_pb2_grpc.BeamFnControlServicer, beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    """A runner that asks a worker for one thing, and keeps the answer. Options that are none keep the worker from working."""

    def __init__(self):
        self.answers, self.server = queue.Queue(), grpc.server(futures.ThreadPoolExecutor(4))
        beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(self, self.server)
        beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(self, self.server)
        self.address = f"localhost:{self.server.add_insecure_port('localhost:0')}"
        self.server.start()

    def GetProvisionInfo(self, request, context):
        info = beam_provision_api_pb2.ProvisionInfo(control_endpoint=endpoints_pb2.ApiServiceDescriptor(url=self.address))
        info.pipeline_options.update({"beam:option:experiments:v1": ["state_cache_size=no number"]})
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=info)

    def Control(self, answers, context):
        yield beam_fn_api_pb2.InstructionRequest(instruction_id="7")
        self.answers.put((dict(context.invocation_metadata())["worker_id"], next(answers)))


@pytest.fixture
def runner():
    running = Runner()
    yield running
    running.server.stop(0).wait()


@pytest.fixture
def variables(monkeypatch):
    for name, value in worker_variables(dict(os.environ)).items():
        monkeypatch.setenv(name, value)


def test_what_keeps_a_worker_from_working_is_its_answer(runner, variables):
    started = subprocess.Popen([worker.WORKER, "--id=3-1", f"--provision_endpoint={runner.address}"], stderr=subprocess.PIPE)
    try:
        who, answer = runner.answers.get(timeout=60)
        assert (who, answer.instruction_id) == ("3-1", "7")
        assert "cannot work" in answer.error and "no number" in answer.error
        runner.server.stop(0)
        assert started.wait(30) == 1
        assert b"no number" in started.stderr.read()
    finally:
        started.kill()


def start(pool, runner):
    address = endpoints_pb2.ApiServiceDescriptor(url=runner.address)
    request = beam_fn_api_pb2.StartWorkerRequest(worker_id="5-1", provision_endpoint=address, control_endpoint=address)
    return pool.StartWorker(request, None).error


@pytest.mark.slow
def test_a_pool_says_what_keeps_a_worker_from_starting(runner, variables, monkeypatch):
    pool = worker_pool.WorkerPool()
    assert start(pool, runner) == ""
    who, answer = runner.answers.get(timeout=60)
    assert who == "5-1" and "no number" in answer.error
    pool.stop()
    monkeypatch.setenv("SPECBEAM_PYTHON", "/no/such/python")
    error = start(pool, runner)
    assert "cannot start a worker: exit status 127" in error and "/no/such/python" in error
    monkeypatch.setenv("SPECBEAM_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    monkeypatch.setattr(worker_pool, "WORKER", "/nowhere/worker.sh")
    assert "cannot start a worker" in start(pool, runner)


# Shards that kill every worker that has them.


@pytest.fixture
def folder(tmp_path):
    return OutputFolder(str(tmp_path))


def test_a_shard_whose_process_always_dies_is_not_begun_again(folder):
    for number in range(attempts.MAX_DEATHS):
        assert attempts.begin(folder, WORK, "launch") == number + 1
    for _ in range(2):  # the runner may read it again after it was set aside
        with pytest.raises(attempts.ProcessDied, match="died 3 times") as raised:
            attempts.begin(folder, WORK, "launch")
        assert raised.value.stage == DECODE
    assert attempts.begin(folder, WORK, "the next launch") == 4


def test_a_worker_that_is_stopped_in_order_is_no_death(folder):
    for _ in range(2 * attempts.MAX_DEATHS):
        attempts.begin(folder, WORK, "launch")
        attempts.forgive_own()
    attempts.begin(folder, WORK, "launch")
    attempts.end(folder, WORK)
    attempts.forgive_own()
    assert not folder.exists("attempts/part-00001-of-00003.json")


STOPPED = """
import sys, time
from pipeline.runners import worker
from transforms import attempts
from transforms.records import WorkShard
from transforms.storage import OutputFolder

def main(_):
    attempts.begin(OutputFolder(sys.argv[1]), WorkShard(1, 3, "f", "f", 0, 4, 10, None), "launch")
    print("begun", flush=True)
    while True:
        time.sleep(0.05)

from apache_beam.runners.worker import sdk_worker_main
sdk_worker_main.main = main
worker.main(["--id=1", "--provision_endpoint=" + sys.argv[2]])
"""


@pytest.mark.parametrize(("number", "counted"), [(signal.SIGTERM, 0), pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow)])
def test_who_stops_a_worker_takes_its_attempt_back(runner, folder, number, counted):
    stopped = subprocess.Popen([sys.executable, "-c", STOPPED, folder.root, runner.address], stdout=subprocess.PIPE)
    try:
        assert stopped.stdout.readline() == b"begun\n"
        stopped.send_signal(number)
        assert stopped.wait(30) != 0
    finally:
        stopped.kill()
    assert attempts.read(folder, 1, 3)["in_launch"] == counted


def test_a_repeated_deadly_shard_is_set_aside_and_the_others_finish(command, tmp_path, monkeypatch):
    """As on Flink, where the same launch's pipeline begins anew: the note says that every process died."""
    out, launches = tmp_path / "out", []
    from pipeline.job import launch as job_launch

    prepare = job_launch._prepare

    def prepare_after_deaths(*args):
        found = prepare(*args)
        launches.append(found.launch)
        for _ in range(attempts.MAX_DEATHS):
            attempts.begin(OutputFolder(str(out)), WorkShard(1, 4, "", "", 0, 1, 0, None), found.launch)
        return found

    monkeypatch.setattr(job_launch, "_prepare", prepare_after_deaths)
    run(command(), expect=1)
    (missing,) = summary(out)["shards"]["missing"]
    assert (missing["shard"], missing["error"]["stage"], missing["error"]["error_type"]) == (1, "decode", "ProcessDied")
    monkeypatch.setattr(job_launch, "_prepare", prepare)
    run(command())
    run(command(output=tmp_path / "alone"))
    assert files(out) == files(tmp_path / "alone")
    assert_same_rows(rows(out), rows(tmp_path / "alone"))


@pytest.mark.slow
def test_a_deadly_shard_on_flink(command, tmp_path):
    from tests.scaleout.processes import launch
    from tests.scaleout.test_flink import flink_cluster, options_for

    out = tmp_path / "out"
    with flink_cluster(tmp_path / "flink", 2) as cluster:
        launched = launch(command(*options_for(cluster, 2), output=out), "delay_secs=0.2, deadly=('input.jsonl:12',)")
        try:
            _, stderr = launched.communicate(timeout=400)
        finally:
            launched.kill()
    assert launched.returncode == 1, stderr
    (missing,) = summary(out)["shards"]["missing"]
    assert missing["shard"] == 1 and missing["error"]["error_type"] == "ProcessDied"
    run(command())
    assert summary(out)["examples"] == 30


def test_gs_has_one_client(monkeypatch):
    from transforms import storage

    made = []
    monkeypatch.setattr("apache_beam.io.gcp.gcsio.GcsIO", lambda: made.append(object()) or made[-1])
    storage._new_gcs.cache_clear()
    assert storage._gcs() is storage._gcs() and len(made) == 1
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")
    assert storage._gcs() is made[1]
    storage._new_gcs.cache_clear()
