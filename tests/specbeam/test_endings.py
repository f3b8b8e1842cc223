"""A process that has read a folder ends in order: no thread of Arrow's is left with a file of Python's."""

import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "testdata" / "earlier" / "generated"
RUNS = 12


def test_reading_a_folder_is_no_reason_to_abort():
    read = "import sys, specbeam; specbeam.read(sys.argv[1])"
    ended = [subprocess.run([sys.executable, "-c", read, FOLDER], check=False).returncode for _ in range(RUNS)]
    assert ended == [0] * RUNS


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_a_folder_leaves_nothing_to_arrows_threads():
    """They would be as many as a part has columns, and may outlive `read`: one process in a hundred aborted on a busy machine."""
    code = (
        "import os, sys, pyarrow, specbeam; pyarrow.set_cpu_count(100); specbeam.read(sys.argv[1]); "
        "print(len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run([sys.executable, "-c", code, FOLDER], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 5  # the interpreter's, its allocator's and those of files
