"""Beam's Python worker as a runner starts it on a machine that has SpecBeam installed: no container, nothing staged.

A runner starts it as `worker.sh --id=... --provision_endpoint=HOST:PORT ...` (environment type PROCESS), or asks
`pipeline.runners.worker_pool` to (EXTERNAL). It fetches the job's options, as the boot program of Beam's container does,
and becomes Beam's own worker.

It ends with whoever started it, also when that is killed: a worker that lives on would hold its accelerator.
"""

import argparse
import contextlib
import json
import os
import pathlib
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

import grpc
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from google.protobuf import json_format, text_format

WORKER = str(pathlib.Path(__file__).resolve().with_name("worker.sh"))
"""What runners start: one file, because they put arguments of their own after it."""
BEGUN = "SPECBEAM_BEGUN"
"""Names the file descriptor on which a worker tells the pool that has started it that it has begun."""
_PROVISION_TIMEOUT_SECS = 60
_PARENT_CHECK_SECS = 0.5
_FORGIVE_SECS = 1.5  # of the two that Beam gives a worker to end


def main(args: Sequence[str]) -> None:
    """Runs the worker until its runner has no more work for it."""
    _end_with_parent()
    if begun := os.environ.pop(BEGUN, ""):
        os.write(int(begun), b"1")
        os.close(int(begun))
    signal.signal(signal.SIGTERM, lambda *_: _end(1))  # how runners stop a worker, for another one's death perhaps
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("id", "provision_endpoint", "control_endpoint", "logging_endpoint"):
        parser.add_argument(f"--{name}", default="", required=name in ("id", "provision_endpoint"))
    given, _ = parser.parse_known_args(args)
    info = provision_info(given.provision_endpoint, given.id)
    environment = worker_environment(info, given.id, given.control_endpoint, given.logging_endpoint)
    os.environ.update(environment)
    status = 1
    try:
        from apache_beam.runners.worker import sdk_worker_main

        sdk_worker_main.main([])
        status = 0
    except (Exception, SystemExit) as error:  # the latter where the job's options are not Beam's here
        reason = f"worker {given.id} on {socket.gethostname()} cannot work: {type(error).__name__}: {error}"
        print(reason, file=sys.stderr, flush=True)
        control = endpoints_pb2.ApiServiceDescriptor()
        text_format.Parse(environment["CONTROL_API_SERVICE_DESCRIPTOR"], control)
        refuse_work(control.url, given.id, reason)
    finally:
        _end(status)


def refuse_work(control_endpoint: str, worker_id: str, reason: str) -> None:
    """Answers whatever the runner asks of the worker with `reason`, until it asks no more.

    A worker that just ended would be waited for, or reported by its exit status alone.
    """
    answers: queue.Queue = queue.Queue()
    with grpc.insecure_channel(control_endpoint) as channel:
        control = beam_fn_api_pb2_grpc.BeamFnControlStub(channel)
        with contextlib.suppress(grpc.RpcError):
            for asked in control.Control(iter(answers.get, None), metadata=[("worker_id", worker_id)]):
                answers.put(beam_fn_api_pb2.InstructionResponse(instruction_id=asked.instruction_id, error=reason))


def _end(status: int) -> NoReturn:
    """Ends this process at once, and its shards in progress as not begun: what stops a worker in order is not their doing.

    Threads of a decoder may be in the middle of something that nobody waits for any more.
    """
    if attempts := sys.modules.get("transforms.attempts"):
        forgiving = threading.Thread(target=attempts.forgive_own, daemon=True)
        forgiving.start()
        forgiving.join(_FORGIVE_SECS)
    sys.stderr.flush()
    os._exit(status)


def provision_info(endpoint: str, worker_id: str) -> beam_provision_api_pb2.ProvisionInfo:
    """What the runner says about the job.

    Raises:
      grpc.RpcError: no runner answers at `endpoint`.
    """
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        return service.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[("worker_id", worker_id)],
            timeout=_PROVISION_TIMEOUT_SECS,
            wait_for_ready=True,
        ).info


def worker_environment(
    info: beam_provision_api_pb2.ProvisionInfo, worker_id: str, control_endpoint: str, logging_endpoint: str
) -> dict[str, str]:
    """The variables that Beam's worker finds its job by. Endpoints of `info` go before those of the command line."""
    endpoints = {
        "CONTROL": info.control_endpoint.url or control_endpoint,
        "LOGGING": info.logging_endpoint.url or logging_endpoint,
        "STATUS": info.status_endpoint.url,
    }
    return {
        "WORKER_ID": worker_id,
        "PIPELINE_OPTIONS": json.dumps(json_format.MessageToDict(info.pipeline_options)),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        **{
            f"{name}_API_SERVICE_DESCRIPTOR": text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))
            for name, url in endpoints.items()
            if url
        },
    }


def _end_with_parent() -> None:
    """Ends this process once its parent is gone. (PR_SET_PDEATHSIG would end it with the parent's *thread*.)"""
    parent = int(os.environ.get("SPECBEAM_PARENT") or os.getppid())  # as it was before anything was imported

    def watch():
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECS)
        _end(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
