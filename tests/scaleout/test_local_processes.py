"""The local runner with worker processes: the same rows, and a process that dies takes neither the job nor others along."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from apache_beam.portability.api import endpoints_pb2

from pipeline import generate
from pipeline.runners import local as local_processes
from pipeline.runners import local_worker
from pipeline.runners.options import beam_options
from pipeline.settings import ConfigError
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, run, summary
from tests.scaleout.processes import children, launch, line_of, wait_for
from transforms import attempts
from transforms.records import WorkShard
from transforms.storage import OutputFolder

PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def workers_of(launcher: int) -> list[int]:
    """Worker processes of the job that `launcher` supervises."""
    return [worker for job in children(launcher) for worker in children(job) if b"pipeline.runners.local" in line_of(worker)]


@pytest.mark.soak
def test_the_demo_translation_is_the_same(demo, tmp_path):
    assert generate.main(demo.arguments(tmp_path / "out", *PROCESSES)) == 0
    demo.check(tmp_path / "out")


@linux
@pytest.mark.slow
def test_a_killed_worker_process(command, tmp_path):
    """Rows are those of one process; the job goes on with as many, and no shard is set aside."""
    alone, out = tmp_path / "alone", tmp_path / "out"
    run(command("--config.shards.examples_per_shard=2", output=alone))
    args = command("--config.shards.examples_per_shard=2", *PROCESSES, output=out)
    launched = launch(args, "delay_secs=0.5")
    try:
        generations = out / "generations"
        wait_for(lambda: generations.exists() and len(list(generations.iterdir())) >= 2)
        first = workers_of(launched.pid)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        second = wait_for(lambda: {*workers_of(launched.pid)} - {*first})
        _, stderr = launched.communicate(timeout=200)
    finally:
        launched.kill()
    assert launched.returncode == 0, stderr
    assert stderr.count("died of SIGKILL") == 1
    assert f"worker process {first[0]} died of SIGKILL" in stderr
    assert second
    assert not any(line_of(worker) for worker in (*first, *second))  # none is left
    assert files(out) == files(alone)
    assert_same_rows(rows(alone), rows(out))


@linux
@pytest.mark.soak
def test_a_deadly_shard_is_blamed_and_its_neighbours_are_not(command, tmp_path):
    out = tmp_path / "out"
    launched = launch(
        command("--config.shards.examples_per_shard=2", *PROCESSES, output=out),
        "delay_secs=0.3, deadly=('input.jsonl:4',)",
    )
    try:
        _, stderr = launched.communicate(timeout=250)
    finally:
        launched.kill()
    assert launched.returncode == 1, stderr
    assert stderr.count("died of SIGKILL") == 3
    total = summary(out)
    assert [missing["shard"] for missing in total["shards"]["missing"]] == [1]
    assert total["shards"]["missing"][0]["error"]["error_type"] == "ProcessDied"
    assert total["shards"]["committed"] == 14
    assert generate.main(command("--config.shards.examples_per_shard=2", output=out), fakes.factory()) == 0
    assert summary(out)["examples"] == 30


@linux
@pytest.mark.slow
def test_an_interrupt_ends_the_job(command, tmp_path):
    """Ctrl-C reaches all processes; a worker that it ends is not one that died."""
    launched = launch(command("--config.shards.examples_per_shard=2", *PROCESSES), "delay_secs=0.5")
    try:
        generations = tmp_path / "out" / "generations"
        wait_for(lambda: generations.exists() and list(generations.iterdir()))
        workers, jobs = workers_of(launched.pid), children(launched.pid)
        assert len(workers) == 2
        for process in (launched.pid, *workers, *jobs):
            os.kill(process, signal.SIGINT)
        _, stderr = launched.communicate(timeout=60)
    finally:
        launched.kill()
    assert launched.returncode == 130, stderr
    assert "interrupted; the same command continues" in stderr
    assert "died" not in stderr
    assert not any(line_of(worker) for worker in workers)


@pytest.mark.parametrize(("number", "continued"), [(signal.SIGINT, []), (signal.SIGKILL, [{8}])])
def test_only_a_worker_that_died_of_itself_is_continued(tmp_path, monkeypatch, number, continued):
    """Of two, 7 and 8. Whatever it was that ended one, Beam does not go on waiting for it."""
    forgiven, aborted = [], []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: SimpleNamespace(pid=7, wait=lambda: -number))
    monkeypatch.setattr(attempts, "forgive", lambda *given: forgiven.append(given[-1]))
    worker = SimpleNamespace(
        _closing=False, _job=local_processes._Job(2, OutputFolder(str(tmp_path)), 4, "launch", {8}), worker_id="1",
        control_api_service_descriptor=endpoints_pb2.ApiServiceDescriptor, control_conn=SimpleNamespace(abort=aborted.append),
    )  # fmt: skip
    local_processes._WorkerProcess._run(worker)
    assert forgiven == continued
    assert len(aborted) == 1


def test_only_the_process_that_died_is_blamed(tmp_path, monkeypatch):
    """Three deaths of process 7 while it had shard 0; process 8 had shard 1 each time, and 9, of a later death, neither."""
    folder, works = OutputFolder(str(tmp_path)), [WorkShard(shard, 2, "", "", 0, 1, 0, None) for shard in range(2)]
    for death in range(3):
        for work, process in zip(works, (7, 8)):
            monkeypatch.setattr(os, "getpid", lambda process=process: process)
            assert attempts.begin(folder, work, "launch") == death + 1
        for launched, stopped in (("another launch", {8}), ("launch", {8}), ("launch", {9})):
            attempts.forgive(folder, 2, launched, stopped)
    assert [attempts.given_up(folder, shard, 2, "launch") for shard in range(2)] == [True, False]
    assert "died 3 times" in attempts.read(folder, 0, 2)["error"]["message"]


@pytest.mark.parametrize(
    ("index", "count", "cores", "share"),
    [(0, 2, 8, [0, 1, 2, 3]), (1, 2, 8, [4, 5, 6, 7]), (2, 3, 4, [2, 3]), (1, 4, 2, [0]), (2, 4, 2, [1]), (3, 4, 2, [1])],
)
def test_each_process_has_its_share_of_the_cores(monkeypatch, index, count, cores, share):
    taken = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(cores)})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, mine: taken.extend(mine))
    monkeypatch.setattr(local_processes, "_gpus", lambda: [])
    local_processes.take_share(index, count)
    assert taken == share


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, mine: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    for index, gpu in ((0, "2"), (1, "5")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
        local_processes.take_share(index, 2)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu


def test_no_device_is_owned_twice(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(local_processes, "_chips", lambda: [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ConfigError, match="--direct_num_workers is 2 .* allowed: up to 1, a process for each GPU"):
        beam_options(PROCESSES)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    beam_options(PROCESSES)
    monkeypatch.setattr(local_processes, "_chips", lambda: ["/dev/accel0"])
    with pytest.raises(ConfigError, match="allowed: 1, since one process owns all TPU chips"):
        beam_options(PROCESSES)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    beam_options(PROCESSES)


def test_a_worker_is_tied_to_its_launcher_before_it_imports_anything_heavy():
    """What a killed launcher leaves behind lives for milliseconds, not for the seconds that Beam takes to import."""
    program = "import sys, pipeline.runners.local_worker; print({'apache_beam', 'jax', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_what_keeps_a_worker_from_working_is_one_line():
    program = (
        "import sys; sys.modules['pipeline.runners.local'] = None; from pipeline.runners import local_worker; "
        "sys.exit(local_worker.main())"
    )
    environment = {**os.environ, local_worker.PARENT: str(os.getpid())}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: a worker process cannot work: ModuleNotFoundError") and ended.stderr.count("\n") == 1
