"""The local runner's worker processes (--direct_running_mode=multi_processing), and what happens when one of them dies.

Beam starts the processes and then waits for their answers, for ever where one has died. Here a death is noticed: the job
ends, and where `pipeline.runners.supervise` has it, is continued in new processes. The shard of the dead process is
blamed, those of the others, which end with it, are not.

Each process loads its own models, and has its share of the processor's cores, or a GPU of its own. Sharing one model
(Beam's `share_model_across_processes`) is not offered: every result would be copied through a proxy, and threads of one
process share a model without.
"""

import contextlib
import dataclasses
import glob
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

from google.protobuf import text_format

from pipeline.runners.beam_internals import SubprocessSdkWorkerHandler, worker_processes_by
from pipeline.runners.local_worker import PARENT
from pipeline.runners.supervise import end_after_worker_death
from pipeline.settings import ConfigError
from transforms import attempts
from transforms.storage import OutputFolder

_SHARE = "SPECBEAM_WORKER_SHARE"


@dataclasses.dataclass
class _Job:
    """The job that worker processes are started for, and the ids of those that run."""

    count: int
    folder: OutputFolder
    num_shards: int
    launch: str
    running: set[int] = dataclasses.field(default_factory=set)
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def end_without(self, died: int) -> None:
        """Blames the process that died for its shard alone, and ends this process, if `pipeline.runners.supervise` has it."""
        self.running.remove(died)
        with contextlib.suppress(OSError):
            attempts.forgive(self.folder, self.num_shards, self.launch, self.running)
        end_after_worker_death()


_job: _Job | None = None


@contextlib.contextmanager
def worker_processes(count: int, folder: OutputFolder, num_shards: int, launch: str) -> Iterator[None]:
    """While the body runs a pipeline, Beam's worker processes are those of this module.

    Where one dies, this process ends for `pipeline.runners.supervise` to start the next, and else the pipeline raises.

    Args:
      count: how many there are.
      folder, num_shards, launch: of the run, for what is noted of its shards.
    """
    global _job
    _job = _Job(count, folder, num_shards, launch)
    try:
        with worker_processes_by(_WorkerProcess):
            yield
    finally:
        _job = None


class _WorkerProcess(SubprocessSdkWorkerHandler):
    """One worker process, which dies with this one."""

    def start_worker(self):
        self._closing, self._job = False, _job
        self.worker_thread = threading.Thread(name="run_worker", target=self._run, daemon=True)
        self.worker_thread.start()

    def close(self):
        self._closing = True
        super().close()

    def _run(self):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(self.control_api_service_descriptor()),
            "PIPELINE_OPTIONS": json.dumps({"default_sdk_harness_log_level": "WARNING"}),
            "WORKER_ID": self.worker_id,
            _SHARE: f"{next(self._job.numbers) % self._job.count}/{self._job.count}",
            PARENT: str(os.getpid()),
        }
        process = subprocess.Popen([sys.executable, "-m", "pipeline.runners.local_worker"], env=environment)
        self._job.running.add(process.pid)
        status = process.wait()
        if self._closing:
            return
        how = f"of {signal.Signals(-status).name}" if status < 0 else f"by exit({status})"
        if -status != signal.SIGINT:  # Ctrl-C, which this process has got as well: nothing is to be continued
            print(f"warning: worker process {process.pid} died {how}", file=sys.stderr, flush=True)
            self._job.end_without(process.pid)
        self.control_conn.abort(RuntimeError(f"worker process {process.pid} died {how}"))


def check(count: int) -> None:
    """Refuses more processes than there are devices to own.

    Raises:
      ConfigError: with how many there may be.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return
    if count > 1 and _chips():
        raise ConfigError(
            f"--direct_num_workers is {count} with --direct_running_mode=multi_processing; allowed: 1, since one process owns "
            "all TPU chips of a machine; model.mesh=data:N makes it use N of them"
        )
    if count > 1 and 0 < len(_gpus()) < count:
        raise ConfigError(
            f"--direct_num_workers is {count} with --direct_running_mode=multi_processing; allowed: up to {len(_gpus())}, a "
            "process for each GPU, or JAX_PLATFORMS=cpu in the environment"
        )


def _chips() -> list[str]:
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name: all GPUs that this process sees."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    return sorted(path.removeprefix("/dev/nvidia") for path in glob.glob("/dev/nvidia[0-9]*"))


def take_share(index: int, count: int) -> None:
    """Leaves this process its share of the machine, before JAX counts cores and devices: cores, and one of the GPUs."""
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[index * len(cores) // count : (index + 1) * len(cores) // count] or [cores[index * len(cores) // count]]
        os.sched_setaffinity(0, mine)
    if count > 1 and (gpus := _gpus()):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]


def _is_meaningful(record: logging.LogRecord) -> bool:
    """Not what every worker process says: that it can neither measure a model's memory nor find a pickled main module."""
    said = record.getMessage()
    return record.levelno >= logging.WARNING and "semi_persistent_directory" not in said and "Resource module" not in said


def work() -> None:
    """What a worker process does, once `pipeline.runners.local_worker` has tied it to its launcher."""
    index, count = map(int, os.environ[_SHARE].split("/"))
    take_share(index, count)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")  # as the launcher's, to the same place
    logging.getLogger().handlers[0].addFilter(_is_meaningful)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
