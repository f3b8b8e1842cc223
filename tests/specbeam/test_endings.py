"""A process that has read a folder ends in order: no thread of Arrow's is left with a file of Python's."""

import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "testdata" / "earlier" / "generated"
RUNS = 12


def test_reading_a_folder_is_no_reason_to_abort():
    read = "import sys, specbeam; specbeam.read(sys.argv[1])"
    ended = [subprocess.run([sys.executable, "-c", read, FOLDER], check=False).returncode for _ in range(RUNS)]
    assert ended == [0] * RUNS
