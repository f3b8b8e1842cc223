"""What a job is doing, from its first second: one line, replaced in place on a terminal, one more line elsewhere.

What only workers know (loading, "compiling 3 of 14") they log as INFO of the logger `CHANNEL`; where they are this very
process, `Status` hears it.
"""

import logging
import sys
import threading
import time

CHANNEL = "specbeam.status"
READING, PLANNING, STARTING = "reading settings", "planning", "starting"
WORKING = ("decoding", "scoring")  # when shards begin to come

_QUIET_SECONDS = 0.3  # what is over sooner, and was all, is not worth a line
_LINE_SECONDS = 30.0  # between two lines of one phase, where lines stay


class Status(logging.Handler):
    """Says one phase after the other.

    Attributes:
      text: the phase now, "compiling 3 of 14".
      since: when it began, of `time.monotonic`.
    """

    def __init__(self, stream=None):
        super().__init__(logging.INFO)
        self.is_terminal = (stream or sys.stderr).isatty()
        # Lines that stay are part of the report; what is wrong goes to stderr, alone.
        self._stream = stream or (sys.stderr if self.is_terminal else sys.stdout)
        self.text, self.since, self._said = "", time.monotonic(), -_LINE_SECONDS
        self._unsaid: list[str] = []
        self._timer: threading.Timer | None = None
        self._held = self._shown = False
        self._guard = threading.RLock()
        channel = logging.getLogger(CHANNEL)
        channel.setLevel(logging.INFO)
        channel.addHandler(self)
        channel.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())

    def say(self, text: str) -> None:
        """From now on the job is doing this. What it did before is said as well, if it has not been."""
        with self._guard:
            same_phase = text.split()[:1] == self.text.split()[:1]
            if text == self.text:
                return
            self.text = text
            if not same_phase:
                self.since = time.monotonic()
            if self.is_terminal:
                self._unsaid = [text]
            elif not same_phase or time.monotonic() - self._said >= _LINE_SECONDS:
                self._flush()
                self._unsaid.append(text)
            if self._timer is None:
                self._timer = threading.Timer(_QUIET_SECONDS, self._flush)
                self._timer.daemon = True
                self._timer.start()
            elif not self._timer.is_alive():
                self._flush()

    def _flush(self) -> None:
        with self._guard:
            for text in self._unsaid if not self._held else ():
                line = f"\r\x1b[K{text} ..." if self.is_terminal else f"{text}\n"
                print(line, end="", file=self._stream, flush=True)
                self._said, self._shown = time.monotonic(), True
            self._unsaid = []

    def hold(self) -> None:
        """Leaves the terminal's line to somebody else, who shows `text`. Elsewhere it changes nothing."""
        self.clear()
        self._held = self.is_terminal

    def release(self) -> None:
        """The terminal's line is its own again."""
        self._held = False

    def clear(self) -> None:
        """Empties the terminal's line, so that something else can be printed. What was not said yet stays so."""
        with self._guard:
            if self.is_terminal and self._shown and not self._held:
                print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._unsaid, self._shown = [], False

    def close(self) -> None:
        """Says nothing more."""
        if self._timer:
            self._timer.cancel()
        self.clear()
        logging.getLogger(CHANNEL).removeHandler(self)
        super().close()
