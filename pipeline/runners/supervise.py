"""Survives a job whose process dies: it runs in a child process, which is started again without what kills it.

An exception in a shard is caught where it happens. A segmentation fault, or the kernel's out-of-memory killer, takes the
whole process along, and Beam's in-process runner with it. So on Linux `python -m pipeline.generate` forks before anything
heavy is imported, and any thread or accelerator is in use. When the child dies of a signal, or a library
calls exit in its middle, the next one continues the folder. A shard that was begun three times in one launch and never
finished is set aside with that as its error, and the others go on. After a first death one thread decodes, so that a
shard is not blamed for its neighbour; of worker processes (`pipeline.runners.local`) it is known which one died.

What the child had started itself (Prism, worker processes) is left to this process when it dies, and ended.

An interrupt is this process' alone: the child and what it starts ignore it, as they inherit that. Since a job may be killed
anywhere, an interrupted one is: nothing of it is left to say anything but the one line that this process prints.
"""

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from transforms import storage

_MAX_DEATHS = 10
_LOCAL = ("fnapi", "direct", "switchingdirect", "prism")
_WANTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_WORKER_DIED = 75
_interrupted = threading.Event()  # of the innermost `interrupts`
_supervised = False  # whether this is a child that `supervise` started


@dataclasses.dataclass(frozen=True)
class Launch:
    """One command by a user, through all deaths of its process.

    Attributes:
      id: unique.
      deaths: how many processes it has lost so far.
      dry_run: whether the job is prepared and not run; the output folder stays as it is.
      seen: digest of what it found before it read anything, for the manifest; see `pipeline.job.seen`.
      began: when, of `time.monotonic`.
    """

    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    deaths: int = 0
    dry_run: bool = False
    seen: str = ""
    began: float = dataclasses.field(default_factory=time.monotonic)


def supervise(job: Callable[[Sequence[str], Launch], int], args: Sequence[str]) -> int:
    """Runs `job(args, launch)` in child processes until one of them ends by itself. Returns its exit status.

    Where workers are somebody else's, which has its own ways, and where there is no fork, it runs here.
    """
    if sys.platform != "linux" or not _works_here(args):
        status = job(args, Launch())
        if status == 130:  # threads of Beam may be in the middle of something that nobody waits for any more
            sys.stdout.flush()
            os._exit(status)
        return status
    launch, output = Launch(), _output_of(args)
    begun = _begun(output)
    while True:
        try:
            status, ended = _run_in_child(functools.partial(job, args, launch))
        except KeyboardInterrupt:
            return say_interrupted()
        if ended:
            return status
        launch = dataclasses.replace(launch, deaths=launch.deaths + 1)
        if status != _WORKER_DIED:  # that has been said
            cause = f"of {signal.Signals(-status).name}" if status < 0 else f"by exit({status}) in its middle"
            print(f"warning: the job's process died {cause}", file=sys.stderr, flush=True)
        before, begun = begun, _begun(output)
        if -status in _WANTED or begun == before or launch.deaths >= _MAX_DEATHS:
            why = "no shard was begun" if begun == before else "so it ends here"
            print(f"error: {why}; committed shards are kept, the same command continues", file=sys.stderr)
            return 128 - status if status < 0 else status or 1
        if launch.deaths == 1 and status != _WORKER_DIED:
            args = [*args, "--direct_num_workers=1"]


def say_interrupted(state: str = "") -> int:
    """Says in one line that the user has ended a command. Returns its exit status."""
    begin = "\n" if sys.stderr.isatty() else ""  # where the terminal shows ^C, and perhaps a bar
    print(f"{begin}interrupted{state}; the same command continues", file=sys.stderr, flush=True)
    return 130


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """While the body runs in the main thread, an interrupt sets the event, silences the log, and raises KeyboardInterrupt.

    What is raised Beam may take for a bundle's failure and turn into another error, and Python loses it in a destructor: the
    event, which `was_interrupted` looks at, tells.
    """
    global _interrupted
    interrupted = _interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield interrupted
        return

    def interrupt(*_):
        interrupted.set()
        logging.disable(logging.CRITICAL)
        sys.unraisablehook = lambda _: None  # which would tell of the one that a destructor has lost
        raise KeyboardInterrupt

    before, hook = signal.signal(signal.SIGINT, interrupt), sys.unraisablehook
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
        _interrupted = threading.Event()  # what was interrupted is over
        logging.disable(logging.NOTSET)


def was_interrupted() -> bool:
    """Whether the command that runs here has been interrupted, for loops that wait for somebody else's job."""
    return _interrupted.is_set()


def end_after_worker_death() -> None:
    """Ends this process, if `supervise` has it, which then starts the next one."""
    if _supervised:
        os._exit(_WORKER_DIED)


def die_with(parent: int) -> bool:
    """Has this process killed when the process `parent` ends. Returns whether that is still there."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def _works_here(args: Sequence[str]) -> bool:
    """Whether what decodes is this process, or one that it starts: without --runner, and with those of Beam on one machine."""
    names = [arg.split("=", 1)[1] for arg in args if arg.startswith("--runner=")]
    names += [value for flag, value in itertools.pairwise(args) if flag == "--runner"]
    return all(name.rsplit(".", 1)[-1].lower().removesuffix("runner") in _LOCAL for name in names)


def _children() -> set[int]:
    """Processes whose parent is this one."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as children:
            found |= set(map(int, children.read().split()))
    return found


def _end_orphans(known: set[int]) -> None:
    """Kills what a dead child has left: this process has inherited it."""
    while orphans := _children() - known:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _output_of(args: Sequence[str]) -> str:
    """What `--output=DIR` or `--output DIR` names; "" for neither."""
    values = [arg.split("=", 1)[1] for arg in args if arg.startswith("--output=")]
    values += [value for flag, value in itertools.pairwise(args) if flag == "--output"]
    return os.path.expanduser(values[0]) if values else ""


def _begun(output: str) -> dict[str, int]:
    """When each shard that is not committed was begun last. A remote folder is not looked at: it is never the same."""
    if storage.is_remote(output):
        return {uuid.uuid4().hex: 0}
    try:
        with os.scandir(os.path.join(output, storage.ATTEMPTS)) as notes:
            return {note.name: note.stat().st_mtime_ns for note in notes if note.name.endswith(".json")}
    except OSError:
        return {}


def _run_in_child(job: Callable[[], int]) -> tuple[int, bool]:
    """Runs `job` in a fork of this process.

    Returns:
      The child's exit status, or the negative number of the signal that it died of; and whether `job` came to its end.

    Raises:
      KeyboardInterrupt: this process was interrupted. The child and all that it has started have ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()  # an exit status alone does not tell an end from an exit in the middle
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    known = _children()
    handled = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)  # until it is known whom they are for
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _be_the_child(parent, writer, handled, job)
    interrupted = []

    def end_child(number: int, _) -> None:
        interrupted.append(number)
        os.kill(child, signal.SIGKILL)

    os.close(writer)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, end_child),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM)),
    }
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.set_blocking(reader, False)  # what the child has started may still hold the other end
        try:
            ended = os.read(reader, 5) == b"ended"
        except BlockingIOError:
            ended = False
    finally:
        _end_orphans(known)
        os.close(reader)
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted and not ended:
        raise KeyboardInterrupt
    return status, ended


def _be_the_child(parent: int, writer: int, handled: set[signal.Signals], job: Callable[[], int]) -> NoReturn:
    """Runs `job`, says on `writer` when it has ended, and exits with its status."""
    global _supervised
    status, _supervised = 1, True
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
        if die_with(parent):
            status = job()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os.write(writer, b"ended")
        os._exit(status)
