"""Progress counts committed parts, quietly where nobody watches."""

import contextlib
import io
import logging
import shutil
import time

import pytest

from pipeline.job import progress
from pipeline.job import run as manifest
from pipeline.job.preflight import check_models
from pipeline.job.status import CHANNEL, Status
from pipeline.runners.supervise import Launch
from pipeline.settings import parse_command_line
from transforms import attempts
from transforms.records import WorkShard


def prepared(command, **kwargs):
    parsed = parse_command_line(command())
    return manifest.prepare(parsed.config, parsed.output, check_models(parsed.config), **kwargs)


def test_counts_what_this_launch_commits(command, finished, tmp_path):
    for part in (1, 3):
        (finished / "generations" / f"part-0000{part}-of-00004.parquet").rename(tmp_path / f"{part}")
    run = prepared(command)
    counter = progress._Counter(run)
    assert run.pending == (1, 3)
    assert progress._num_pending_records(run) == 8 + 6
    assert counter.update().examples == 0
    (tmp_path / "3").rename(finished / "generations" / "part-00003-of-00004.parquet")
    done = counter.update()
    assert (done.examples, done.parts) == (6, 1)
    text = progress.describe(run, done, 2.0)
    assert text.startswith(f"shards 3/4, {done.tokens / 2:,.0f} tok/s, α 0.")
    assert text.endswith(", 0:00:02 left")  # one of this launch's two shards took two seconds
    assert counter.update() == done


def test_a_part_that_cannot_be_read_for_a_moment(command, finished_run, tmp_path, monkeypatch):
    """Those that were read before it are counted once."""
    counter, read, calls = progress._Counter(prepared(command)), progress.read_footer, []
    shutil.copytree(finished_run / "generations", tmp_path / "out" / "generations")

    def read_or_fail(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError("not now")
        return read(*args)

    monkeypatch.setattr(progress, "read_footer", read_or_fail)
    with pytest.raises(OSError, match="not now"):
        counter.update()
    done = counter.update()
    assert (done.parts, done.examples) == (4, 30)


def test_a_shard_that_was_given_up_is_not_a_committed_one(command):
    run, launch = prepared(command), Launch(deaths=3)
    for _ in range(3):
        attempts.begin(run.folder, WorkShard(1, 4, "", "", 0, 8, 8, None), launch.id)
    run = prepared(command, launch=launch)
    assert (run.pending, run.committed, run.begun) == ((0, 2, 3), 0, 1)
    assert progress.describe(run, run.statistics(), 1.0).startswith("shards 0/4")


def test_lines_where_there_is_no_terminal(command, tmp_path, monkeypatch):
    run = prepared(command)
    stream = io.StringIO()
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.02)
    with contextlib.closing(Status(stream)) as status, progress.show_progress(run, status, stream):
        logging.getLogger(CHANNEL).info("loading the models")
        for done in range(1, 15):
            logging.getLogger(CHANNEL).info("compiling %d of %d", done, 14)
        logging.getLogger(CHANNEL).info("decoding")
        time.sleep(1)
    lines = stream.getvalue().splitlines()
    phases, counts = [[line for line in lines if ("shards" in line) == counted] for counted in (False, True)]
    assert phases == ["loading the models", "compiling 1 of 14", "decoding"]
    assert counts and set(counts) == {"0/30 examples, shards 0/4, 0 tok/s"}
    assert "\r" not in stream.getvalue()


def test_a_bar_on_a_terminal(command, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    run = prepared(command)
    with contextlib.closing(Status(stream)) as status:
        status.say("planning")
        monkeypatch.setattr(progress, "_TTY_SECONDS", 0.02)
        with progress.show_progress(run, status, stream):
            status.say("compiling 3 of 14")
            time.sleep(0.2)
            status.say("decoding")
            time.sleep(0.2)
    shown = stream.getvalue()
    assert "0/30 examples" in shown and shown.index("compiling 3 of 14") < shown.index("shards 0/4")
    assert shown.count("left") == 0 and "<" not in shown  # tqdm's own estimate is not shown beside ours
