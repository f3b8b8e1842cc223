"""A worker process of the local runner: `python -m pipeline.runners.local_worker`, started by `pipeline.runners.local`.

It ends with its launcher, and is tied to that before it imports anything heavy: those seconds would outlive a killed one.
"""

import os
import signal
import sys

from pipeline.runners.supervise import die_with

PARENT = "SPECBEAM_WORKER_PARENT"
"""Names the launcher's process."""


def main() -> int:
    """Works until the launcher has no more to do. Returns the exit status."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as where `pipeline.runners.supervise` ends it
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback of each
    if sys.platform == "linux" and not die_with(int(os.environ[PARENT])):
        return 1
    try:
        from pipeline.runners.local import work

        work()
    except Exception as error:
        print(f"error: a worker process cannot work: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
