"""An interrupt ends a command with one line and status 130, whoever gets it, and leaves no process behind."""

import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from pipeline import generate
from pipeline.runners.supervise import supervise
from tests.pipeline import fakes
from tests.pipeline.helpers import files, run
from tests.scaleout.processes import children, launch, line_of, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
forks = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
SAID = "interrupted; the same command continues"


def descendants(process: int) -> list[int]:
    below = children(process)
    return [*below, *(one for child in below for one in descendants(child))]


@pytest.mark.parametrize("options", [(), pytest.param(("--direct_num_workers=2",), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "whole_group", [pytest.param(True, id="Ctrl-C"), pytest.param(False, id="launcher alone", marks=pytest.mark.slow)]
)
def test_a_job_in_one_process(command, tmp_path, finished_run, whole_group, options):
    launched = launch(command("--config.shards.examples_per_shard=2", *options), "delay_secs=0.5")
    try:
        generations = tmp_path / "out" / "generations"
        wait_for(lambda: generations.exists() and list(generations.iterdir()))
        below = descendants(launched.pid)
        assert below
        for process in (launched.pid, *(below if whole_group else ())):
            os.kill(process, signal.SIGINT)
        _, stderr = launched.communicate(timeout=20)
    finally:
        launched.kill()
    assert launched.returncode == 130, stderr
    told = [line for line in stderr.splitlines() if "examples" not in line and line]  # but for progress
    assert told == [SAID]
    assert not any(line_of(process) for process in below)


@pytest.mark.parametrize(
    "whole_group",
    [
        pytest.param(True, id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param(False, id="launcher alone", marks=pytest.mark.soak),
    ],
)
def test_worker_processes(command, tmp_path, whole_group):
    options = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    launched = launch(command("--config.shards.examples_per_shard=2", *options), "delay_secs=0.5")
    try:
        generations = tmp_path / "out" / "generations"
        wait_for(lambda: generations.exists() and list(generations.iterdir()))
        # The job and two workers; a worker's own helper (`uname -p`) lives for a moment and is waited for.
        below = wait_for(lambda: len(found := descendants(launched.pid)) == 3 and found)
        for process in (launched.pid, *(below if whole_group else ())):
            os.kill(process, signal.SIGINT)
        _, stderr = launched.communicate(timeout=20)
    finally:
        launched.kill()
    assert launched.returncode == 130, stderr
    assert [line for line in stderr.splitlines() if "examples" not in line and line] == [SAID]
    assert not any(line_of(process) for process in below)


@forks
def test_the_launcher_ends_all_that_the_job_has_started(tmp_path, capfd):
    """A grandchild that ignores interrupts and would live for a minute."""
    note = tmp_path / "grandchild"

    def job(args, launch):
        if (grandchild := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        note.with_suffix(".new").write_text(str(grandchild))
        note.with_suffix(".new").rename(note)
        time.sleep(60)
        return 0

    def interrupt():
        wait_for(note.exists)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt).start()
    assert supervise(job, [f"--output={tmp_path}"]) == 130
    assert capfd.readouterr().err == SAID + "\n"
    assert not pathlib.Path(f"/proc/{note.read_text()}").exists()
    assert signal.getsignal(signal.SIGINT) is before


@forks
def test_an_interrupt_when_the_job_has_just_ended_changes_nothing(tmp_path):
    def job(args, launch):
        os.kill(os.getppid(), signal.SIGINT) if launch.deaths else None
        return 3

    assert supervise(job, [f"--output={tmp_path}"]) == 3


def test_where_nobody_supervises(command, tmp_path, finished_run, capfd):
    """Other runners, other systems: Beam turns the exception into an error of its own, with 36 lines of log."""

    class Interrupting(fakes.FakeGenerator):
        def generate_with_report(self, inputs, example_ids, hints=None):
            os.kill(os.getpid(), signal.SIGINT)
            return super().generate_with_report(inputs, example_ids)

    assert generate.main(command(), lambda models, config, costs: Interrupting(config, costs=costs)) == 130
    assert capfd.readouterr().err == SAID + "\n"
    run(command())
    assert files(tmp_path / "out") == files(finished_run)
