"""A real Flink cluster on this machine: the same rows as the local runner, and what is killed loses and doubles nothing.

One test has all that CI runs, so that one cluster is started, whatever the number of processes that run tests.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline import generate
from pipeline.runners.flink import cluster as flink
from pipeline.runners.flink import options as flink_options
from tests.pipeline.helpers import assert_same_rows, files, rows, run
from tests.scaleout.processes import launch, line_of, wait_for
from transforms.parts import read_footer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextlib.contextmanager
def flink_cluster(folder: pathlib.Path, task_managers: int) -> Iterator[flink.Cluster]:
    """A cluster with one slot in each task manager. At the end nothing of it is left, workers included."""
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {' and no '.join(missing)} to run Flink with")
    cluster = flink.start(folder, task_managers=task_managers, slots=1, port=0, cache=flink.default_cache())
    try:
        yield cluster
    finally:
        processes = flink.read(folder).processes
        workers = workers_of(processes)
        flink.stop(folder)
        assert not any(process.alive for process in processes)
        wait_for(lambda: not any(line_of(worker) for worker in workers), 20)


def options_for(cluster: flink.Cluster, parallelism: int) -> tuple[str, ...]:
    return ("--runner=FlinkRunner", f"--flink_master={cluster.master}", f"--parallelism={parallelism}")


def workers_of(processes) -> list[int]:
    """Ids of the Python workers that these task managers have started."""
    owners = {process.pid for process in processes}
    numbers = [int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdigit()]
    return [n for n in numbers if b"pipeline.runners.worker\0--id=" in line_of(n) and parent_of(n) in owners]


def parent_of(process: int) -> int:
    try:
        return int(pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def committed(folder: pathlib.Path) -> int:
    return len(list(folder.glob("generations/*.parquet")))


def attempts(folder: pathlib.Path) -> list[int]:
    """How often each shard had been begun when it was committed."""
    return [read_footer(str(part)).attempt for part in sorted(folder.glob("generations/*.parquet"))]


def manifest(folder: pathlib.Path) -> dict:
    """What does not depend on when and where a run was launched."""
    found = json.loads((folder / "manifest.json").read_text())
    return {name: value for name, value in found.items() if name not in ("started", "device", "sha256")}


def kill_one_in_use(folder: pathlib.Path) -> None:
    """Kills a task manager that has a Python worker, which would hold its accelerator if it lived on."""
    for victim in flink.read(folder).task_managers:
        if workers := workers_of([victim]):
            os.kill(victim.pid, signal.SIGKILL)
            wait_for(lambda: not any(line_of(worker) for worker in workers), 10)
            return
    raise AssertionError("no task manager has a worker")


@pytest.mark.slow
def test_the_same_rows_and_a_killed_task_manager(demo, command, tmp_path, capsys):
    folder = tmp_path / "flink"
    with flink_cluster(folder, 3) as cluster:
        on_flink = options_for(cluster, 2)
        assert generate.main(demo.arguments(tmp_path / "demo", *on_flink)) == 0
        demo.check(tmp_path / "demo")
        assert manifest(tmp_path / "demo") == manifest(demo.alone)

        shards = "--config.shards.examples_per_shard=1"
        run(command(shards, output=tmp_path / "alone"))
        launched = launch(command(shards, *on_flink, output=tmp_path / "killed"), "delay_secs=0.4")
        try:
            wait_for(lambda: committed(tmp_path / "killed") >= 2)
            kill_one_in_use(folder)  # the third takes over
            before = committed(tmp_path / "killed")
            _, stderr = launched.communicate(timeout=200)
        finally:
            launched.kill()
        assert launched.returncode == 0, stderr
        assert before < 30 and max(attempts(tmp_path / "killed")) >= 2  # it was disturbed
        assert files(tmp_path / "killed") == files(tmp_path / "alone")
        assert_same_rows(rows(tmp_path / "alone"), rows(tmp_path / "killed"))

        capsys.readouterr()
        start = ["start", f"--folder={folder}", "--port=0"]
        assert flink.main(["status", f"--folder={folder}"]) == 2
        assert "is gone" in capsys.readouterr().out
        assert flink.main(start) == 0
        assert "1 of 3 task managers are gone; starting them again" in capsys.readouterr().out
        assert flink.main(start) == 2
        assert f"runs already, at {cluster.master}" in capsys.readouterr().err


@pytest.mark.soak
def test_many_killed_task_managers_and_workers(command, tmp_path):
    """Whatever is killed, and however often: Flink recovers, or the same command finishes the folder."""
    rng, folder = random.Random(7), tmp_path / "flink"
    shards = "--config.shards.examples_per_shard=1"
    run(command(shards, output=tmp_path / "alone"))
    with flink_cluster(folder, 5) as cluster:
        for number in range(6):
            out = tmp_path / f"killed_{number}"
            arguments = command(shards, *options_for(cluster, 4), output=out)
            launched = launch(arguments, "delay_secs=1.0")
            try:
                wait_for(lambda out=out: committed(out) >= 1)
                if number % 2:
                    workers = workers_of(flink.read(folder).task_managers)
                    os.kill(rng.choice(workers), signal.SIGKILL)
                else:
                    kill_one_in_use(folder)
                _, stderr = launched.communicate(timeout=300)
            finally:
                launched.kill()
            if launched.returncode != 0:
                run(arguments)
            assert files(out) == files(tmp_path / "alone"), stderr
            assert_same_rows(rows(tmp_path / "alone"), rows(out))
            if not number % 2:
                assert flink.main(["start", f"--folder={folder}", "--port=0"]) == 0


@pytest.mark.soak
def test_a_worker_pool(command, tmp_path):
    """As on TPU VMs: a pool on each machine starts the workers of the task manager beside it."""
    pool = subprocess.Popen(
        [sys.executable, "-m", "pipeline.runners.worker_pool", "--port=0"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **flink_options.worker_variables(os.environ)},
    )  # fmt: skip
    try:
        address = pool.stdout.readline().split()[-1]
        run(command(output=tmp_path / "alone"))
        with flink_cluster(tmp_path / "flink", 2) as cluster:
            external = ("--environment_type=EXTERNAL", f"--environment_config={address}")
            run(command(*options_for(cluster, 2), *external, output=tmp_path / "out"))
        assert_same_rows(rows(tmp_path / "alone"), rows(tmp_path / "out"))
    finally:
        pool.terminate()
        assert pool.wait(timeout=30) == 0
