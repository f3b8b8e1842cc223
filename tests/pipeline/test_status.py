"""What a job says of its phases, on a terminal and off it."""

import contextlib
import io
import logging
import time

from pipeline.job import status
from pipeline.job.status import CHANNEL, Status


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_what_is_over_at_once_says_nothing():
    stream = io.StringIO()
    with contextlib.closing(Status(stream)) as shown:
        shown.say("reading settings")
    time.sleep(2 * status._QUIET_SECONDS)
    assert stream.getvalue() == ""


def test_every_phase_has_a_line_where_lines_stay(monkeypatch):
    stream = io.StringIO()
    with contextlib.closing(Status(stream)) as shown:
        shown.say("reading settings")
        shown.say("planning")
        for done in range(1, 9):
            logging.getLogger(CHANNEL).info("compiling %d of 8", done)
        assert shown.text == "compiling 8 of 8"
        shown.say("decoding")
        time.sleep(2 * status._QUIET_SECONDS)
        shown.say("finishing")
    lines = stream.getvalue().splitlines()
    assert lines == ["reading settings", "planning", "compiling 1 of 8", "decoding", "finishing"]
    logging.getLogger(CHANNEL).info("nobody listens any more")
    assert stream.getvalue().splitlines() == lines


def test_a_long_phase_is_said_again(monkeypatch):
    monkeypatch.setattr(status, "_QUIET_SECONDS", 0.01)
    monkeypatch.setattr(status, "_LINE_SECONDS", 0.0)
    stream = io.StringIO()
    with contextlib.closing(Status(stream)) as shown:
        shown.say("compiling 1 of 3")
        time.sleep(0.1)
        shown.say("compiling 2 of 3")
        shown.say("compiling 2 of 3")
    assert stream.getvalue().splitlines() == ["compiling 1 of 3", "compiling 2 of 3"]


def test_one_line_is_replaced_on_a_terminal(monkeypatch):
    monkeypatch.setattr(status, "_QUIET_SECONDS", 0.01)
    stream = Terminal()
    with contextlib.closing(Status(stream)) as shown:
        shown.say("planning")
        time.sleep(0.1)
        shown.say("compiling 1 of 3")
        shown.say("compiling 2 of 3")
        since = shown.since
        shown.say("compiling 3 of 3")
        assert shown.since == since  # of the phase
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().split("\r\x1b[K") == ["", "planning ...", "compiling 1 of 3 ...", "compiling 2 of 3 ...",
                                                  "compiling 3 of 3 ...", ""]  # fmt: skip
