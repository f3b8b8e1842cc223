"""Beam's Python worker as a runner starts it on a machine that has SpecBeam installed: no container, nothing staged.

A runner starts it as `worker.sh --id=... --provision_endpoint=HOST:PORT ...` (environment type PROCESS), or asks
`pipeline.clusters.worker_pool` to (EXTERNAL). It fetches the job's options, as the boot program of Beam's container does,
and becomes Beam's own worker.

It ends with whoever started it, also when that is killed: a worker that lives on would hold its accelerator.
"""

import argparse
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Sequence

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
from google.protobuf import json_format, text_format

WORKER = str(pathlib.Path(__file__).resolve().with_name("worker.sh"))
"""What runners start: one file, because they put arguments of their own after it."""
_PROVISION_TIMEOUT_SECS = 60
_PARENT_CHECK_SECS = 0.5


def main(args: Sequence[str]) -> None:
    """Runs the worker until its runner has no more work for it."""
    _end_with_parent()
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("id", "provision_endpoint", "control_endpoint", "logging_endpoint"):
        parser.add_argument(f"--{name}", default="", required=name in ("id", "provision_endpoint"))
    given, _ = parser.parse_known_args(args)
    info = provision_info(given.provision_endpoint, given.id)
    os.environ.update(worker_environment(info, given.id, given.control_endpoint, given.logging_endpoint))
    from apache_beam.runners.worker import sdk_worker_main

    status = 1
    try:
        sdk_worker_main.main([])
        status = 0
    except Exception as error:
        print(f"worker {given.id} ends: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)  # threads of a decoder may be in the middle of something that nobody waits for any more


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
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
