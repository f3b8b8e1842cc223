"""Killed anywhere, the same command finishes the job: every example once, and what an undisturbed run yields.

Launches are forked from one process that has imported everything, so that a kill falls into the job and not into its
imports. What is killed is the launcher, or the worker process under it, which the launcher then starts again.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from pipeline import generate
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, summary

LAUNCHPAD = """
import json, os, sys
from pipeline import generate, manifest, progress, runners, supervise  # noqa: F401
from tests.pipeline import fakes
job = lambda args, launch: generate.main(args, fakes.factory(delay_secs=0.05), launch)
print("ready", flush=True)
for line in sys.stdin:
    launcher = os.fork()
    if launcher == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(supervise.supervise(job, json.loads(line)))
    print(launcher, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1]), flush=True)
"""


class Launchpad:
    """Starts commands one after the other, each in a process of its own."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHPAD],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"

    def start(self, args: list[str]) -> int:
        """Process id of the launcher."""
        print(json.dumps(args), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def status(self) -> int:
        """Exit status of the launcher, the negative signal where it was killed. Waits for its end."""
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def worker_of(launcher: int) -> int | None:
    try:
        children = pathlib.Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def kill_at_random(launchpad: Launchpad, args: list[str], rng: random.Random, seconds: float) -> tuple[str, int]:
    """Starts the command and kills its launcher or its worker at a random moment. Returns which, and the exit status."""
    launcher, victim = launchpad.start(args), rng.choice(["launcher", "worker"])
    time.sleep(rng.uniform(0, seconds))
    worker = worker_of(launcher)
    process = launcher if victim == "launcher" else worker
    if process is None:
        return "nobody", launchpad.status()
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        victim = "nobody"
    status = launchpad.status()
    deadline = time.monotonic() + 10
    while worker and os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        time.sleep(0.01)  # it dies with its launcher
    return victim, status


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(30, marks=pytest.mark.soak)])
def test_killed_and_continued(command, tmp_path, kills):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    args = command("--config.shards.examples_per_shard=2", "--config.decoding.gamma=auto")
    assert generate.main(command(*args[2:], output=undisturbed), fakes.factory()) == 0
    expected, reference = files(undisturbed), rows(undisturbed)
    launchpad, rng, survived = Launchpad(), random.Random(kills), {}
    for _ in range(2):  # the second without what a first one has to do
        start = time.monotonic()
        launchpad.start(args)
        assert launchpad.status() == 0
        seconds = time.monotonic() - start
        shutil.rmtree(out)
    killed = {"launcher": 0, "worker": 0, "nobody": 0}
    while killed["launcher"] + killed["worker"] < kills:
        victim, status = kill_at_random(launchpad, args, rng, seconds)
        killed[victim] += 1
        assert victim != "launcher" or status in (0, -signal.SIGKILL)  # 0: it had just ended
        parts = sorted((out / "generations").glob("*.parquet")) if (out / "generations").exists() else []
        for part in parts:
            pq.read_table(part)  # every part that is there is whole
        assert survived.items() <= {part: part.stat().st_mtime_ns for part in parts}.items()
        survived = {part: part.stat().st_mtime_ns for part in parts}
        if status == 0:
            assert_undisturbed(out, expected, reference, undisturbed)
            shutil.rmtree(out)
            survived = {}
    launchpad.start(args)
    assert launchpad.status() == 0
    launchpad.close()
    assert_undisturbed(out, expected, reference, undisturbed)
    assert killed["launcher"] and killed["worker"], killed
    print(f"{killed} in {seconds:.1f} s each")


def assert_undisturbed(out, expected, reference, undisturbed):
    assert files(out) == expected
    assert_same_rows(reference, rows(out))
    totals = [summary(folder) for folder in (undisturbed, out)]
    for total in totals:
        total.pop("timings"), total.pop("finished")
    assert totals[0] == totals[1]
