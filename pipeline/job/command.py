"""How every command ends: what it raises becomes one line and an exit status, without credentials."""

from __future__ import annotations

import functools
import sys
import typing
from collections.abc import Callable

from pipeline.job.terminal import one_line
from pipeline.runners.supervise import interrupts, say_interrupted
from pipeline.settings import ConfigError
from transforms.folder import FolderError

if typing.TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

P = typing.ParamSpec("P")


class JobFailed(Exception):
    """A job that broke off, with what its runner says of it."""


def command(main: Callable[P, int]) -> Callable[P, int]:
    """`main`, which returns an exit status, for a command line.

    What is wrong with a command, its input or its folder ends it with 2, a job that broke off with 1, an interrupt with 130.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        with interrupts() as interrupted:
            try:
                return main(*args, **kwargs)
            except JobFailed as error:
                if interrupted.is_set():  # Beam takes it for a failure of what it was in
                    return say_interrupted()
                print("error: the job failed:", one_line(error), file=sys.stderr)
                return 1
            except (ConfigError, FolderError, OSError) as error:
                print("error:", one_line(error), file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return say_interrupted()

    return run


def run_pipeline(options: PipelineOptions, build: Callable[[beam.Pipeline], None]) -> None:
    """Builds a pipeline and runs it to its end.

    Raises:
      JobFailed: it broke off.
    """
    import apache_beam as beam

    try:
        pipeline = beam.Pipeline(options=options)
        build(pipeline)
        pipeline.run().wait_until_finish()
    except Exception as error:  # what the runner reports, often with the worker's traceback in its message
        raise JobFailed(one_line(error)) from error
