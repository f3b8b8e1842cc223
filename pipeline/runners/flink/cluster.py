"""A Flink cluster on this machine, of a job manager and task managers, without containers.

    python -m pipeline.runners.flink.cluster start --task_managers=2 --slots=1 --folder=DIR
    python -m pipeline.runners.flink.cluster status --folder=DIR
    python -m pipeline.runners.flink.cluster stop --folder=DIR

`start` fetches Flink and Beam's runner with Maven once, and on a folder whose cluster has lost task managers starts those
again. Where it fails or is interrupted, it ends what it has begun. Everything listens on localhost only. A job uses the
cluster with `--runner=FlinkRunner --flink_master=localhost:PORT`. docs/flink.md is the guide.

Exit status: 0, or 2 where something is wrong with the command or the machine.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from pipeline.runners.flink.jars import BEAM_VERSION, FLINK_VERSION, default_cache, fetch
from pipeline.runners.flink.options import HAS_BEAM, ask, worker_variables
from pipeline.settings import ConfigError

_STATE = "cluster.json"
_START_SECS = 90
_STOP_SECS = 10

# Flink's own list for Java 17: its serialisers look into these.
_OPENS = [
    *(f"java.base/java.{name}" for name in ("lang", "net", "io", "nio", "lang.reflect", "text", "time", "util")),
    *(f"java.base/java.util.{name}" for name in ("concurrent", "concurrent.atomic", "concurrent.locks")),
    "java.base/sun.nio.ch",
]
_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"


@dataclasses.dataclass(frozen=True)
class Process:
    """A process that `start` began: its id, and the clock tick of its start, which no later process of that id has."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return _start_tick(self.pid) == self.started


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What cluster.json says.

    Attributes:
      port: of the REST interface and its web page.
      rpc_port: that task managers find the job manager at.
      slots: of each task manager.
      job_manager, task_managers: their processes.
    """

    port: int
    rpc_port: int
    slots: int
    job_manager: Process
    task_managers: tuple[Process, ...]

    @property
    def master(self) -> str:
        return f"localhost:{self.port}"

    @property
    def processes(self) -> tuple[Process, ...]:
        return (*self.task_managers, self.job_manager)


def start(folder: pathlib.Path, *, task_managers: int, slots: int, port: int, cache: pathlib.Path) -> Cluster:
    """Starts a cluster, or those of its task managers that are gone. Returns when all of them are ready.

    Raises:
      ConfigError: it runs already, the port is in use, Java or Maven is missing, or it does not come up.
    """
    if shutil.which("java") is None:
        raise ConfigError("no Java is installed, which Flink needs (Debian: apt-get install default-jre-headless)")
    known = read(folder)
    if known and known.job_manager.alive:
        kept = tuple(process for process in known.task_managers if process.alive)
        lost = len(known.task_managers) - len(kept)
        if not lost:
            raise ConfigError(f"the cluster of {str(folder)!r} runs already, at {known.master}")
        lib = fetch(cache)
        print(f"{lost} of {len(known.task_managers)} task managers are gone; starting them again", flush=True)
        return _add_task_managers(folder, lib, dataclasses.replace(known, task_managers=kept), lost, before=known)
    lib = fetch(cache)
    stop(folder)  # of a cluster whose job manager is gone, task managers may be left
    if not _is_free(port):
        raise ConfigError(f"--port is {port}, which is in use; allowed: a free one, or 0 for any")
    folder.mkdir(parents=True, exist_ok=True)
    port, rpc_port = port or _free_port(), _free_port()
    (folder / "conf").mkdir(exist_ok=True)
    settings = cluster_settings(folder, port=port, rpc_port=rpc_port, slots=slots)
    (folder / "conf" / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    job_manager = _java(folder, lib, "job_manager", _JOB_MANAGER, heap_mb=384)
    cluster = Cluster(port, rpc_port, slots, job_manager, ())
    return _add_task_managers(folder, lib, cluster, task_managers, before=None)


def cluster_settings(folder: pathlib.Path, *, port: int, rpc_port: int, slots: int) -> dict[str, str | int]:
    """Flink's settings. Its own start scripts, which derive memory sizes, are not used; so all are given."""
    return {
        HAS_BEAM: BEAM_VERSION,
        "rest.address": "localhost",
        "rest.bind-address": "127.0.0.1",
        "rest.port": port,
        "jobmanager.rpc.address": "localhost",
        "jobmanager.rpc.port": rpc_port,
        "jobmanager.bind-host": "127.0.0.1",
        "taskmanager.host": "localhost",
        "taskmanager.bind-host": "127.0.0.1",
        "taskmanager.rpc.port": 0,
        "taskmanager.numberOfTaskSlots": slots,
        "taskmanager.cpu.cores": slots,
        "taskmanager.memory.framework.heap.size": "128m",
        "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.jvm-metaspace.size": "256m",
        "taskmanager.memory.jvm-overhead.min": "192m",
        "taskmanager.memory.jvm-overhead.max": "192m",
        "taskmanager.memory.task.heap.size": f"{128 + 64 * slots}m",
        "taskmanager.memory.task.off-heap.size": "64m",
        "taskmanager.memory.network.min": "64m",
        "taskmanager.memory.network.max": "64m",
        "taskmanager.memory.managed.size": f"{64 * slots}m",
        "io.tmp.dirs": str(folder / "tmp"),
        "web.upload.dir": str(folder / "tmp"),
        # A lost task manager is noticed in seconds, and a machine that is merely busy for a while is not taken for one.
        "heartbeat.interval": 2000,
        "heartbeat.timeout": 30000,
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": 10,
        # By then a lost task manager is known to be lost. Tasks that are sent to it fail at once, and Beam's side of Flink,
        # when its tasks are cancelled while their workers start, may forget such a worker.
        "restart-strategy.fixed-delay.delay": "6 s",
    }


def _add_task_managers(
    folder: pathlib.Path, lib: pathlib.Path, cluster: Cluster, number: int, *, before: Cluster | None
) -> Cluster:
    """The cluster with so many more, once all are ready; where that fails, whatever is not of `before` is ended."""
    try:
        for _ in range(number):
            added = _java(folder, lib, "task_manager", _TASK_MANAGER, heap_mb=256 + 64 * cluster.slots)
            cluster = dataclasses.replace(cluster, task_managers=(*cluster.task_managers, added))
            _write(folder, cluster)
        _wait_until_ready(folder, cluster)
    except BaseException:
        _end([process for process in cluster.processes if before is None or process not in before.processes])
        if before:
            _write(folder, before)
        else:
            (folder / _STATE).unlink(missing_ok=True)
        raise
    return cluster


def _wait_until_ready(folder: pathlib.Path, cluster: Cluster) -> None:
    end = time.monotonic() + _START_SECS
    while True:
        gone = [process.pid for process in cluster.processes if not process.alive]
        ready = 0
        with contextlib.suppress(ConfigError):
            ready = ask(f"http://{cluster.master}", "overview")["taskmanagers"]
        if not gone and ready >= len(cluster.task_managers):
            return
        if gone or time.monotonic() > end:
            why = "a process of it died" if gone else f"{ready} of {len(cluster.task_managers)} task managers joined in time"
            raise ConfigError(f"the cluster did not come up: {why}; its logs are in {str(folder)!r}")
        time.sleep(0.5)


def _java(folder: pathlib.Path, lib: pathlib.Path, name: str, main_class: str, *, heap_mb: int) -> Process:
    (folder / "tmp").mkdir(exist_ok=True)
    number = len(list(folder.glob(f"{name}*.log")))
    command = ["java", f"-Xmx{heap_mb}m", "-XX:MaxMetaspaceSize=256m", "-XX:MaxDirectMemorySize=256m", "-XX:+UseSerialGC"]
    command += ["-XX:TieredStopAtLevel=1", f"-Djava.io.tmpdir={folder / 'tmp'}"]
    command += [f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS]
    command += ["-cp", f"{lib}/*", main_class, "--configDir", str(folder / "conf")]
    environment = {**os.environ, **worker_variables(os.environ)}
    with open(folder / f"{name}_{number}.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    return Process(process.pid, _start_tick(process.pid) or 0)


def stop(folder: pathlib.Path) -> int:
    """Ends all processes of the cluster; their workers end with them. Returns how many there were."""
    cluster = read(folder)
    ended = _end(cluster.processes if cluster else ())
    (folder / _STATE).unlink(missing_ok=True)
    return ended


def _end(processes: Sequence[Process]) -> int:
    alive = [process for process in processes if process.alive]
    for number, patience in ((signal.SIGTERM, _STOP_SECS), (signal.SIGKILL, _STOP_SECS)):
        for process in alive:
            if process.alive:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(process.pid, number)
        end = time.monotonic() + patience
        while any(process.alive for process in alive) and time.monotonic() < end:
            time.sleep(0.1)
    return len(alive)


def read(folder: pathlib.Path) -> Cluster | None:
    """The cluster that was started with `folder`, None where there is none."""
    try:
        values = json.loads((folder / _STATE).read_text())
    except FileNotFoundError:
        return None
    return Cluster(
        **{
            **values,
            "job_manager": Process(**values["job_manager"]),
            "task_managers": tuple(Process(**process) for process in values["task_managers"]),
        }
    )


def _write(folder: pathlib.Path, cluster: Cluster) -> None:
    temporary = folder / (_STATE + ".new")
    temporary.write_text(json.dumps(dataclasses.asdict(cluster), indent=1) + "\n")
    temporary.replace(folder / _STATE)


def _start_tick(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None where it has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(args: Sequence[str]) -> int:
    """Runs the command line `args`. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.runners.flink.cluster", allow_abbrev=False)
    parser.add_argument("command", choices=("start", "stop", "status", "fetch"))
    parser.add_argument("--folder", type=pathlib.Path, help="of the cluster's state, logs and temporary files")
    parser.add_argument("--task_managers", type=int, default=2, help="processes; each has Python workers of its own")
    parser.add_argument("--slots", type=int, default=1, help="of each; one where a worker owns an accelerator")
    parser.add_argument("--port", type=int, default=8081, help="of the web page and of --flink_master; 0 for a free one")
    parser.add_argument("--cache", type=pathlib.Path, default=default_cache(), help="folder of Flink's jars")
    given = parser.parse_args(args)
    try:
        if given.command == "fetch":
            print(f"Flink is in {fetch(given.cache)}")
            return 0
        if given.folder is None:
            raise ConfigError(f"--folder is missing; {given.command} needs the cluster's folder")
        for name in ("task_managers", "slots"):
            if getattr(given, name) < 1:
                raise ConfigError(f"--{name} is {getattr(given, name)}; allowed: 1 or more")
        return _run(given)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(given: argparse.Namespace) -> int:
    folder = given.folder.absolute()
    if given.command == "start":
        cluster = start(folder, task_managers=given.task_managers, slots=given.slots, port=given.port, cache=given.cache)
        print(f"Flink {FLINK_VERSION} runs at http://{cluster.master}: {len(cluster.task_managers)} task managers")
        print(f"Jobs use it with --runner=FlinkRunner --flink_master={cluster.master}")
        return 0
    cluster = read(folder)
    if cluster is None:
        raise ConfigError(f"no cluster was started with --folder {str(given.folder)!r}")
    if given.command == "stop":
        print(f"{stop(folder)} processes ended")
        return 0
    print(f"job manager: process {cluster.job_manager.pid} {_said(cluster.job_manager)}, http://{cluster.master}")
    for process in cluster.task_managers:
        print(f"task manager: process {process.pid} {_said(process)}, {cluster.slots} slots")
    return 0 if all(process.alive for process in cluster.processes) else 2


def _said(process: Process) -> str:
    return "runs" if process.alive else "is gone"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
