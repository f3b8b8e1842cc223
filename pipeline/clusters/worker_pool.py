"""Starts a Python worker for every job whose task manager on this machine asks for one: Beam's EXTERNAL environment.

    python -m pipeline.clusters.worker_pool --port=50000

One such pool runs on every machine that has an accelerator, a TPU VM for instance, in the environment of variables that
its workers shall have. Jobs name it as `--environment_type=EXTERNAL --environment_config=localhost:50000`: the address is
looked up by each task manager on its own machine. It listens on localhost only.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent import futures

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer, kill_process_gracefully

from pipeline.clusters.worker import WORKER


def serve(port: int) -> tuple[grpc.Server, BeamFnExternalWorkerPoolServicer, int]:
    """Starts the pool on a port of localhost, 0 for a free one. Returns its server, the pool, and the port.

    Raises:
      OSError: the port is in use.
    """
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    pool = BeamFnExternalWorkerPoolServicer(use_process=True, container_executable=WORKER)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        port = server.add_insecure_port(f"localhost:{port}")
    except RuntimeError as error:
        raise OSError(f"port {port} of localhost is in use, perhaps by another worker pool") from error
    server.start()
    return server, pool, port


def main(args: Sequence[str]) -> int:
    """Serves until it is interrupted or terminated. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.clusters.worker_pool", allow_abbrev=False)
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
    for process in pool._worker_processes.values():
        kill_process_gracefully(process)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
