"""Launching a job with a fake generator as a user does, and looking at its processes."""

import os
import pathlib
import subprocess
import sys
import time

_PROGRAM = (
    "import sys; from pipeline import generate; from pipeline.runners import supervise; from tests.pipeline import fakes; "
    "job = lambda args, launch: generate.main(args, fakes.factory({settings}), launch); "
    "sys.exit(supervise.supervise(job, sys.argv[1:]))"
)


def launch(args, settings="") -> subprocess.Popen:
    """Starts `pipeline.generate` under its supervisor. `settings` are those of `fakes.make_fake`."""
    program = _PROGRAM.format(settings=settings)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}  # libtpu, where it is installed without a TPU, has much to say
    return subprocess.Popen(
        [sys.executable, "-c", program, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def children(process: int) -> list[int]:
    """Processes that `process` has started, [] where it is gone."""
    try:
        tasks = pathlib.Path(f"/proc/{process}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def line_of(process: int) -> bytes:
    """The command line of a process, empty where it is gone."""
    try:
        return pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def wait_for(condition, seconds=120):
    """Returns what `condition()` yields once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
