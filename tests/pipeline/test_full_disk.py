"""A disk that is full, or a folder that is read-only: a clear error, no _SUCCESS, earlier parts intact, and resumable.

A full disk is a limit on the size of files: it needs no privileges, and fails a write in its middle as a full disk does.
"""

import contextlib
import os
import resource
import sys

import pytest

from pipeline import generate
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, run, summary
from transforms.storage import OutputFolder


@contextlib.contextmanager
def files_of_at_most(num_bytes: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def half_done(finished):
    """A folder with parts 0 and 3 of 4; yields its committed files with their times."""
    for name in ("_SUCCESS", "summary.json", *(f"generations/part-0000{i}-of-00004.parquet" for i in (1, 2))):
        (finished / name).unlink()
    return {path: path.stat().st_mtime_ns for path in (finished / "generations").iterdir()}


def assert_resumable(command, tmp_path, half_done, reference):
    out = tmp_path / "out"
    assert "_SUCCESS" not in files(out)
    assert {path: path.stat().st_mtime_ns for path in (out / "generations").iterdir()} == half_done
    assert not [name for name in files(out) if name.endswith(".tmp")]  # what was half written is gone
    run(command())
    assert files(out) == files(reference)
    assert_same_rows(rows(reference), rows(out))
    assert {path: path.stat().st_mtime_ns for path in half_done} == half_done


def test_parts_that_do_not_fit(command, tmp_path, half_done, finished_run, capsys):
    smallest = min(path.stat().st_size for path in half_done)
    with files_of_at_most(smallest - 1000):
        run(command(), expect=1)
    missing = summary(tmp_path / "out")["shards"]["missing"]
    assert [shard["shard"] for shard in missing] == [1, 2]
    assert all(shard["error"]["stage"] == "commit" and "File too large" in shard["error"]["message"] for shard in missing)
    assert "shard 1, attempt 1: commit: OSError: [Errno 27] File too large" in capsys.readouterr().out
    assert_resumable(command, tmp_path, half_done, finished_run)


def test_nothing_fits(command, tmp_path, half_done, finished_run, capsys):
    loads = fakes.loads
    with files_of_at_most(0):
        status = generate.main(command(), fakes.factory())
    assert status == 2 and fakes.loads == loads  # told at launch, before any model is loaded
    message = capsys.readouterr().err
    assert message.startswith("error: the output folder") and message.count("\n") == 1
    assert str(tmp_path / "out") in message and "File too large" in message
    assert_resumable(command, tmp_path, half_done, finished_run)


def test_a_disk_that_fills_up_at_the_end(command, tmp_path, half_done, finished_run, capsys, monkeypatch):
    put = OutputFolder.put

    def put_or_fail(self, name, data, **options):
        if name == "summary.json":
            raise OSError(28, "No space left on device", self.path(name))
        put(self, name, data, **options)

    monkeypatch.setattr(OutputFolder, "put", put_or_fail)
    run(command(), expect=1)
    monkeypatch.undo()
    message = capsys.readouterr().err
    assert "error: the job failed:" in message and "No space left on device" in message and "summary.json" in message
    assert "Traceback" not in message and "the same command continues" in message
    out = tmp_path / "out"
    assert "_SUCCESS" not in files(out) and len(list((out / "generations").iterdir())) == 4
    loads = fakes.loads
    run(command())
    assert fakes.loads == loads  # only the end was missing
    assert_same_rows(rows(finished_run), rows(out))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_folder_made_read_only(command, tmp_path, half_done, finished_run, capsys):
    out = tmp_path / "out"
    for folder in (out, *(path for path in out.iterdir() if path.is_dir())):
        folder.chmod(0o555)
    try:
        assert generate.main(command(), fakes.factory()) == 2
    finally:
        for folder in (out, *(path for path in out.iterdir() if path.is_dir())):
            folder.chmod(0o755)
    message = capsys.readouterr().err
    assert "cannot be written" in message and "Permission denied" in message and str(out) in message
    assert_resumable(command, tmp_path, half_done, finished_run)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a filesystem that takes no files from anybody")
def test_a_read_only_filesystem(command, capsys):
    loads, output = fakes.loads, "/sys/kernel/specbeam"
    assert generate.main(command(output=output), fakes.factory()) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert output in message and "cannot be written" in message
    assert fakes.loads == loads
