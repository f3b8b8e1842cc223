"""Killed anywhere, the same command finishes the job: every example once, and what an undisturbed run yields.

Launches are forked from one process that has imported everything, so that a kill falls into the job and not into its
imports. What is killed is the launcher, the job's process under it, which the launcher then starts again, or one of the
worker processes under that. `make soak` does it 200 times.
"""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from pipeline import generate
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, summary
from tests.scaleout.processes import children, line_of, wait_for
from transforms.folder import read_manifest
from transforms.parts import check_part
from transforms.storage import OutputFolder

LAUNCHPAD = """
import json, os, sys
from pipeline import generate
from pipeline.job import progress, run
from pipeline.runners import options, supervise
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
        self.pid = self._process.pid
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


def victims(launchpad: Launchpad, launcher: int, kind: str) -> list[int]:
    """Process ids of the launcher itself, of its job's process, or of that one's worker processes.

    None where the launcher has ended: its id may by now be that of somebody else's process.
    """
    if launcher not in children(launchpad.pid):
        return []
    jobs = children(launcher)
    if kind == "worker":
        return [worker for job in jobs for worker in children(job) if b"pipeline.runners.local" in line_of(worker)]
    return [launcher] if kind == "launcher" else jobs


def kill_at_random(
    launchpad: Launchpad, args: list[str], rng: random.Random, seconds: float, kinds: Sequence[str]
) -> tuple[str, int]:
    """Starts the command and kills one of its processes at a random moment. Returns which kind, and the exit status.

    "nobody" is killed where there is no such process yet, or "too late" where there is none any more.
    """
    launcher, kind = launchpad.start(args), rng.choice(kinds)
    time.sleep(rng.uniform(0, seconds))
    below = descendants(launcher)
    found = victims(launchpad, launcher, kind)
    if not found:
        return "nobody" if launcher in children(launchpad.pid) else "too late", launchpad.status()
    try:
        os.kill(rng.choice(found), signal.SIGKILL)
    except ProcessLookupError:
        kind = "nobody"
    status = launchpad.status()
    wait_for(lambda: not any(line_of(process) for process in below), 120)  # they die with their launcher
    return kind, status


def descendants(process: int) -> list[int]:
    below = children(process)
    return [*below, *(one for child in below for one in descendants(child))]


PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
IN_ONE, IN_SEVERAL = ("launcher", "job"), ("launcher", "job", "worker")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kills", "options", "kinds"),
    [
        pytest.param(6, (), IN_ONE, marks=pytest.mark.slow),
        pytest.param(110, (), IN_ONE, marks=pytest.mark.soak),
        pytest.param(65, ("--direct_num_workers=2",), IN_ONE, marks=pytest.mark.soak),
        pytest.param(25, PROCESSES, IN_SEVERAL, marks=pytest.mark.soak),
    ],
    ids=["a few", "one thread", "two threads", "two processes"],
)
def test_killed_and_continued(command, tmp_path, kills, options, kinds, capsys):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    args = command("--config.shards.examples_per_shard=2", "--config.decoding.gamma=auto", *options)
    alone = command("--config.shards.examples_per_shard=2", "--config.decoding.gamma=auto", output=undisturbed)
    assert generate.main(alone, fakes.factory()) == 0
    expected, reference = files(undisturbed), rows(undisturbed)
    launchpad, rng, survived = Launchpad(), random.Random(kills), {}
    for _ in range(2):  # the second without what a first one has to do
        start = time.monotonic()
        launchpad.start(args)
        assert launchpad.status() == 0
        seconds = time.monotonic() - start
        shutil.rmtree(out)
    killed, finished = collections.Counter(), 0
    while sum(killed[kind] for kind in kinds) < kills:
        kind, status = kill_at_random(launchpad, args, rng, seconds, kinds)
        killed[kind] += 1
        if kind == "too late":  # launches have become faster than the first ones
            seconds *= 0.9
        assert kind != "launcher" or status in (0, -signal.SIGKILL)  # 0: it had just ended
        parts = sorted((out / "generations").glob("*.parquet")) if (out / "generations").exists() else []
        for part in parts:
            check_part(str(part), read_manifest(OutputFolder(str(out))).fingerprint)  # every part that is there is whole
        assert survived.items() <= {part: part.stat().st_mtime_ns for part in parts}.items()
        survived = {part: part.stat().st_mtime_ns for part in parts}
        if status == 0:
            assert_undisturbed(out, expected, reference, undisturbed)
            shutil.rmtree(out)
            finished, survived = finished + 1, {}
    launchpad.start(args)
    assert launchpad.status() == 0
    launchpad.close()
    assert_undisturbed(out, expected, reference, undisturbed)
    assert all(killed[kind] for kind in kinds), killed
    with capsys.disabled():
        print(f"\n{dict(killed)} killed at up to {seconds:.1f} s, {finished + 1} folders compared, 0 rows differ")


def assert_undisturbed(out, expected, reference, undisturbed):
    """Every file, every row once, and the totals, are those of a run that nobody disturbed."""
    assert files(out) == expected
    assert_same_rows(reference, rows(out))
    totals = [summary(folder) for folder in (undisturbed, out)]
    for total in totals:
        total.pop("timings"), total.pop("finished"), total.pop("compilations")
    assert totals[0] == totals[1]
