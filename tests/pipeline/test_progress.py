"""Progress counts committed parts, quietly where nobody watches."""

import io
import time

from pipeline import generate, manifest, progress
from pipeline.config import parse_command_line
from pipeline.preflight import check_models
from tests.pipeline import fakes


def prepared(command):
    parsed = parse_command_line(command())
    return manifest.prepare(parsed.config, parsed.output, check_models(parsed.config))


def test_counts_what_this_launch_commits(command, tmp_path):
    assert generate.main(command(), fakes.factory()) == 0
    for part in (1, 3):
        (tmp_path / "out" / "generations" / f"part-0000{part}-of-00004.parquet").rename(tmp_path / f"{part}")
    run = prepared(command)
    counter = progress._Counter(run)
    assert run.pending == (1, 3)
    assert progress._num_pending_records(run) == 8 + 6
    assert counter.update().examples == 0
    (tmp_path / "3").rename(tmp_path / "out" / "generations" / "part-00003-of-00004.parquet")
    done = counter.update()
    assert (done.examples, done.parts) == (6, 1)
    text = progress.describe(run, done, 2.0)
    assert text.startswith(f"shards 3/4, {done.tokens / 2:,.0f} tok/s, α 0.")
    assert text.endswith(", 0:00:02 left")  # one of this launch's two shards took two seconds
    assert counter.update() == done


def test_lines_where_there_is_no_terminal(command, tmp_path, monkeypatch):
    run = prepared(command)
    stream = io.StringIO()
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.02)
    with progress.show_progress(run, stream):
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "0/30 examples, shards 0/4, 0 tok/s"
    assert "\r" not in stream.getvalue()


def test_a_bar_on_a_terminal(command, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    run = prepared(command)
    with progress.show_progress(run, stream):
        time.sleep(0.1)
    assert "0/30" in stream.getvalue() and "shards 0/4" in stream.getvalue()
