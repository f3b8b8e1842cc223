"""Killed anywhere, the same command finishes the job: every example once, and what an undisturbed run yields."""

import os
import random
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from pipeline import generate
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, summary

PROGRAM = (
    "import sys; from pipeline import generate; from tests.pipeline import fakes; "
    "sys.exit(generate.main(sys.argv[1:], fakes.factory(delay_secs=0.2)))"
)


def kill_at_random(args: list[str], out, rng: random.Random) -> None:
    """Starts the job and kills it at a random moment from shortly before its manifest until it should be done."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "manifest.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 4))
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_killed_and_continued(command, tmp_path, kills):
    undisturbed = tmp_path / "undisturbed"
    shards = "--config.shards.examples_per_shard=2"
    assert generate.main(command(shards, output=undisturbed), fakes.factory()) == 0
    expected = files(undisturbed)
    rng, out, survived = random.Random(kills), tmp_path / "out", {}
    for _ in range(kills):
        kill_at_random(command(shards), out, rng)
        parts = sorted((out / "generations").glob("*.parquet")) if (out / "generations").exists() else []
        for part in parts:
            pq.read_table(part)  # every part that is there is whole
        assert survived.items() <= {part: part.stat().st_mtime_ns for part in parts}.items()
        survived = {part: part.stat().st_mtime_ns for part in parts}
        if not kills > 3 and (out / "_SUCCESS").exists():
            break
        if (out / "_SUCCESS").exists():  # finished before it was killed: begin again
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            survived = {}
    assert generate.main(command(shards), fakes.factory()) == 0
    assert files(out) == expected
    assert_same_rows(rows(undisturbed), rows(out))
    totals = [summary(folder) for folder in (undisturbed, out)]
    for total in totals:
        total.pop("timings"), total.pop("finished")
    assert totals[0] == totals[1]
