"""Starts a Python worker for every job whose task manager on this machine asks for one: Beam's EXTERNAL environment.

    python -m pipeline.runners.worker_pool --port=50000

One such pool runs on every machine that has an accelerator, a TPU VM for instance, in the environment of variables that
its workers shall have. Jobs name it as `--environment_type=EXTERNAL --environment_config=localhost:50000`: the address is
looked up by each task manager on its own machine. It listens on localhost only.
"""

import argparse
import collections
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent import futures

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from pipeline.runners.beam_internals import ProcessPool
from pipeline.runners.worker import BEGUN, WORKER

_ENDPOINTS = ("logging_endpoint", "artifact_endpoint", "provision_endpoint", "control_endpoint")
_LAST_LINES = 8  # of what a worker has said, for an error
_COPY_SECS = 2.0


class WorkerPool(ProcessPool):
    """Beam's pool of processes, which says so where one dies before it has begun: runners wait for those for ever.

    From where a worker has begun, it says itself what keeps it from working; see `pipeline.runners.worker`.
    """

    def StartWorker(self, start_worker_request, unused_context):
        name = start_worker_request.worker_id
        urls = (f"--{kind}={getattr(start_worker_request, kind).url}" for kind in _ENDPOINTS)
        try:
            reader, writer = os.pipe()
            with open(reader, "rb") as begun:
                with open(writer, "wb") as told:  # closed here, so that it ends with the worker
                    process = subprocess.Popen(
                        [WORKER, f"--id={name}", *urls],
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        text=True,
                        errors="replace",
                        env={**os.environ, BEGUN: str(told.fileno())},
                        pass_fds=[told.fileno()],
                    )
                self.processes[name] = process
                last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
                copying = threading.Thread(target=_copy, args=(process.stderr, last), daemon=True)
                copying.start()
                if begun.read(1):
                    return beam_fn_api_pb2.StartWorkerResponse()
            status = process.wait()
            copying.join(_COPY_SECS)
            reason = f"exit status {status}: {' '.join(' '.join(last).split())}"
        except OSError as error:
            reason = str(error)
        text = f"the worker pool on {socket.gethostname()} cannot start a worker: {reason}"
        print(text, file=sys.stderr, flush=True)
        return beam_fn_api_pb2.StartWorkerResponse(error=text)


def _copy(lines: Iterable[str], last: collections.deque) -> None:
    for line in lines:
        sys.stderr.write(line)
        sys.stderr.flush()
        last.append(line)


def serve(port: int) -> tuple[grpc.Server, WorkerPool, int]:
    """Starts the pool on a port of localhost, 0 for a free one. Returns its server, the pool, and the port.

    Raises:
      OSError: the port is in use.
    """
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    pool = WorkerPool()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        port = server.add_insecure_port(f"localhost:{port}")
    except RuntimeError as error:
        raise OSError(f"port {port} of localhost is in use, perhaps by another worker pool") from error
    server.start()
    return server, pool, port


def main(args: Sequence[str]) -> int:
    """Serves until it is interrupted or terminated. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.runners.worker_pool", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=50000)
    given = parser.parse_args(args)
    os.environ.setdefault("SPECBEAM_PYTHON", sys.executable)
    try:
        server, pool, port = serve(given.port)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    print(f"worker pool at localhost:{port}", flush=True)
    ended.wait()
    server.stop(0).wait()  # from here on no worker is started
    pool.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
