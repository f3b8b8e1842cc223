"""Progress of a local run, from counting the parts that are committed."""

import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

from pipeline.job.run import Run
from pipeline.job.status import WORKING, Status
from transforms import storage
from transforms.parts import PartError, read_footer
from transforms.statistics.generations import Statistics

_TTY_SECONDS, _LINE_SECONDS = 0.5, 30.0
_BAR = "{n_fmt}/{total_fmt}{unit} |{bar}| {elapsed}{postfix}"  # tqdm's own has an estimate of the time left beside ours


class _Counter:
    """Statistics of the parts committed so far; each footer is read once."""

    def __init__(self, run: Run):
        self._folder, num_shards = run.folder, run.plan.num_shards
        self._pending = {storage.part_name(shard, num_shards, run.parts) for shard in run.pending}
        self.statistics = run.statistics()

    def update(self) -> Statistics:
        for name in self._pending & self._folder.list().keys():
            footer = read_footer(self._folder.path(name), type(self.statistics))
            self.statistics = self.statistics.merge(footer.statistics)
            self._pending.remove(name)
        return self.statistics


def describe(run: Run, done: Statistics, seconds: float) -> str:
    """ "shards 3/10, 1,234 tok/s, α 0.61, 0:04:10 left": of this launch, `seconds` after it began."""
    parts = [f"shards {run.committed + done.parts}/{run.plan.num_shards}", f"{done.tokens / max(seconds, 1e-9):,.0f} tok/s"]
    if brief := done.brief():
        parts.append(brief)
    if 0 < done.parts < len(run.pending):
        left = seconds / done.parts * (len(run.pending) - done.parts)
        parts.append(f"{datetime.timedelta(seconds=round(left))} left")
    return ", ".join(parts)


@contextlib.contextmanager
def show_progress(run: Run, status: Status, stream=None) -> Iterator[None]:
    """While the body runs, shows shards, examples, tokens per second, α so far and the time left.

    On a terminal as a bar, elsewhere as a line every 30 seconds. Until the first shard is there, and unless it is known to
    be decoded, it is what `status` says. Times count from when that began, where that is known.
    """
    stream = stream or sys.stderr
    tty = stream.isatty()
    stop, counter, started = threading.Event(), _Counter(run), time.monotonic()
    status.hold()
    bar = tqdm(
        total=_num_pending_records(run), unit=" examples", file=stream, disable=not tty, dynamic_ncols=True, bar_format=_BAR
    )

    def show() -> None:
        done, working = counter.update(), status.text in WORKING
        text = describe(run, done, time.monotonic() - (status.since if working else started))
        if not working and not done.parts:
            text = status.text
        handled = done.examples + done.num_errors
        if tty:
            bar.set_postfix_str(text, refresh=False)
            bar.n = handled
            bar.refresh()
        elif working or done.parts:
            total = "" if bar.total is None else f"/{bar.total:,}"
            print(f"{handled:,}{total} examples, {text}", file=stream, flush=True)

    def loop() -> None:
        while not stop.wait(_TTY_SECONDS if tty and not storage.is_remote(run.folder.root) else _LINE_SECONDS):
            with contextlib.suppress(OSError, PartError):  # progress is a courtesy; the next look may succeed
                show()

    thread = threading.Thread(target=loop, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if tty:
            with contextlib.suppress(OSError):
                show()
        bar.close()
        status.release()


def _num_pending_records(run: Run) -> int | None:
    if run.plan.num_records is None:  # cut by bytes: nobody has counted
        return None
    sizes = [
        min(run.plan.examples_per_shard, file.num_records - first)
        for file in run.plan.files
        for first in range(0, file.num_records, run.plan.examples_per_shard)
    ]
    return sum(sizes[shard] for shard in run.pending)
