"""A shard that kills its process is tried again, set aside and reported; the others finish."""

import io
import json
import os
import pathlib
import signal
import sys
import time

import pytest

from pipeline import generate
from pipeline.runners.supervise import Launch, supervise
from tests.pipeline import fakes
from tests.pipeline.helpers import files, summary
from tests.scaleout.processes import children, launch


@pytest.mark.slow
def test_a_deadly_shard_is_set_aside_and_done_once_its_cause_is_gone(command, tmp_path):
    out = tmp_path / "out"
    launched = launch(command("--direct_num_workers=2"), "deadly=('input.jsonl:12',)")
    stdout, stderr = launched.communicate(timeout=900)
    assert launched.returncode == 1, stderr
    assert stderr.count("died of SIGKILL") == 3
    assert "os.fork" not in stderr  # no accelerator and no thread is in use when it forks
    total = summary(out)
    assert total["shards"]["committed"] == 3
    (missing,) = total["shards"]["missing"]
    assert missing["shard"] == 1
    assert missing["error"]["error_type"] == "ProcessDied"
    assert "died 3 times" in missing["error"]["message"]
    assert "_SUCCESS" not in files(out)
    assert "shard 1, attempt 3" in stdout
    assert generate.main(command(), fakes.factory()) == 0
    assert summary(out)["examples"] == 30
    assert not [name for name in files(out) if name.startswith("attempts")]


# In this process an accelerator is in use; the jobs of these tests do not touch it.
forks = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@forks
def test_death_before_any_shard_is_not_repeated(tmp_path):
    begun = []

    def job(args, launch):
        begun.append(launch)
        os.kill(os.getpid(), signal.SIGKILL)

    assert supervise(job, [f"--output={tmp_path}"]) == 128 + signal.SIGKILL
    assert begun == []  # it ran in another process


@forks
def test_status_and_arguments_pass_through(tmp_path):
    def job(args, launch):
        (tmp_path / "seen").write_text(json.dumps([args, launch.deaths]))
        return 3

    assert supervise(job, ["--a=b"]) == 3
    assert json.loads((tmp_path / "seen").read_text()) == [["--a=b"], 0]


@forks
@pytest.mark.parametrize("status", [0, 3])
def test_an_exit_in_the_middle_is_a_death(tmp_path, capfd, status):
    """As a library may call it: the job has not ended, whatever the status says."""
    notes = tmp_path / "attempts"
    notes.mkdir()

    def job(args, launch):
        (notes / "0.json").write_text(str(launch.deaths))
        if launch.deaths < 2:
            os._exit(status)
        return 0

    assert supervise(job, ["--output", str(tmp_path)]) == 0
    assert (notes / "0.json").read_text() == "2"
    assert capfd.readouterr().err.count(f"died by exit({status}) in its middle") == 2
    assert supervise(lambda args, launch: os._exit(status), [f"--output={tmp_path}"]) == (status or 1)


@forks
def test_a_closed_terminal_is_no_death():
    class Closed(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    def job(args, launch):
        sys.stdout = Closed()
        return 3

    assert supervise(job, []) == 3


def test_other_runners_are_left_alone():
    here = os.getpid()
    assert supervise(lambda args, launch: os.getpid() == here and launch.deaths == 0, ["--runner=Flink"])


@forks
def test_deaths_are_counted_until_there_are_too_many(tmp_path):
    notes = tmp_path / "attempts"
    notes.mkdir()

    def job(args, launch: Launch):
        (notes / f"{launch.deaths}.json").write_text(" ".join(args))
        os.kill(os.getpid(), signal.SIGKILL)

    assert supervise(job, [f"--output={tmp_path}"]) == 128 + signal.SIGKILL
    assert len(list(notes.iterdir())) == 10
    assert (notes / "0.json").read_text() == f"--output={tmp_path}"
    assert (notes / "9.json").read_text() == f"--output={tmp_path} --direct_num_workers=1"


def test_the_job_dies_with_its_supervisor(command, tmp_path):
    """So that a killed launcher leaves no process behind that works against the next launch."""
    parent = launch(command(), "delay_secs=30")
    begun = tmp_path / "out" / "attempts"
    deadline = time.monotonic() + 300
    while not (begun.exists() and list(begun.glob("part-*.json"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    (child,) = children(parent.pid)
    parent.kill()
    parent.wait()
    while os.path.exists(f"/proc/{child}") and _state(child) != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}") or _state(child) == "Z"


def _state(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"
