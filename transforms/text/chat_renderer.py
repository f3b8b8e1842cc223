"""Renders chat templates in a process of its own, within limits of time and memory.

A template comes with a checkpoint, which is data: its sandbox keeps it from what it must not touch, and these limits keep
it from looping or growing for ever, which a sandbox does not. Run as a script, this is that process; it reads requests
from its standard input, one JSON object a line, and answers each with another.

What templates may use is what transformers gives them.
"""

import contextlib
import datetime
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading

CPU_SECONDS = 5  # for one prompt; a real template takes a millisecond
MEMORY_BYTES = 2 << 30
LONGEST = 64 << 20  # characters of a prompt


class RenderError(ValueError):
    """A template that fails, or takes too long or too much memory."""


class Renderer:
    """A renderer process, started when it is needed, and again where it ended. Calls take turns."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def render(self, source: str, variables: dict, date: str | None) -> str:
        """A prompt.

        Args:
          source: the template.
          variables: what it may refer to, as JSON has it.
          date: what `strftime_now` shows: YYYY-MM-DD, "" for today, None for a template that shall not know it.

        Raises:
          RenderError: it failed; the message says how.
        """
        request = json.dumps({"source": source, "variables": variables, "date": date}).encode() + b"\n"
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(request)
                self._process.stdin.flush()
            answer = self._process.stdout.readline()
            code = None if answer.endswith(b"\n") else self._process.wait()
        if code == -signal.SIGXCPU:
            raise RenderError(f"it takes more than {CPU_SECONDS} seconds")
        if code is not None:
            raise RenderError(f"it broke the process that renders it, of {MEMORY_BYTES >> 30} GiB memory (exit code {code})")
        told = json.loads(answer)
        if "error" in told:
            raise RenderError(told["error"])
        return told["text"]

    def _start(self) -> subprocess.Popen:
        command = [sys.executable, "-I", os.path.abspath(__file__)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )


@functools.lru_cache(maxsize=4)
def _compile(source: str, date: str | None):
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the model says, for training; here its body is the text that it is."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser):
            next(parser.stream)
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body)

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format):
        return (datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()).strftime(format)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    if date is not None:
        environment.globals["strftime_now"] = strftime_now
    return environment.from_string(source)


def _answer(request: dict) -> dict:
    try:
        text, size = [], 0
        for piece in _compile(request["source"], request["date"]).generate(**request["variables"]):
            text.append(piece)
            size += len(piece)
            if size > LONGEST:
                return {"error": f"it makes more than {LONGEST} characters"}
        return {"text": "".join(text)}
    except ImportError as error:
        return {"error": f"chat templates need the extra 'gguf' of specbeam ({error})"}
    except MemoryError:
        return {"error": f"it takes more than {MEMORY_BYTES >> 30} GiB of memory"}
    except Exception as error:  # a template may raise whatever it likes
        return {"error": f"{type(error).__name__}: {error!s:.1000}"}


def _serve() -> None:
    with contextlib.suppress(ValueError, OSError):  # not every system has the limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1, hard))
        answer = _answer(json.loads(line))
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
