"""What the speculation did: acceptance, predictions against measurements, and a report, from folders of finished jobs.

    python -m pipeline.analyze --inputs=out/sampled,out/scores,out/benchmark --output=out/report [Beam options]

Inputs are output folders of pipeline.generate, pipeline.score and pipeline.benchmark in any mix. Writes analysis.json
(every figure with its interval), report.html, report.md, tables/*.csv and figures/*.svg; docs/analysis.md says how to
read them. Without `--runner` it runs in this process.

Exit status: 0 when the report was written, 1 when the job failed, 2 when something is wrong with the command or its
inputs and nothing was written.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence

from pipeline.job.command import command, run_pipeline
from pipeline.job.terminal import make_console
from pipeline.settings import ConfigError, absolute
from pipeline.settings.flags import Parser
from transforms import storage
from transforms.folder import FolderError
from transforms.storage import OutputFolder


def parse(args: Sequence[str]) -> tuple[list[str], str, bool, list[str]]:
    """Parses `args`, which exclude the program's name: inputs, output, whether to allow unfinished ones, Beam options.

    Raises:
      ConfigError: a flag is missing.
    """
    parser = Parser(prog="python -m pipeline.analyze", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--inputs", default="", help="folders, separated by commas")
    parser.add_argument("--output", default="", help="folder of the report, local or on gs://")
    parser.add_argument("--allow_unfinished", action="store_true", help="analyse what there is of unfinished runs")
    own, others = parser.parse_known_args(list(args))
    inputs = [absolute(folder.strip()) for folder in own.inputs.split(",") if folder.strip()]
    if not inputs:
        raise ConfigError("--inputs is missing; give output folders of other jobs, separated by commas")
    if not own.output:
        raise ConfigError("--output is missing; give a folder for the report, local or gs://")
    return inputs, absolute(own.output), own.allow_unfinished, others


@command
def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    inputs, output, allow_unfinished, beam_args = parse(args)
    # Only now: what is wrong with the command itself is said without waiting for Beam.
    from pipeline.report.job import ANALYSIS, build_pipeline
    from pipeline.report.sources import open_sources
    from pipeline.runners.options import beam_options, first_local

    console, write = make_console(), _report_writer()
    options = beam_options(beam_args, {"--inputs": first_local(inputs), "--output": output})
    sources, notes = open_sources(inputs, allow_unfinished=allow_unfinished)
    _refuse_run(output)
    run_pipeline(options, functools.partial(build_pipeline, sources=sources, notes=notes, output=output))
    results = json.loads(OutputFolder(output).read(ANALYSIS))
    if results["problems"]:
        OutputFolder(output).delete([ANALYSIS])
        raise FolderError("; ".join(sorted(results["problems"])[:3]))
    write(results, OutputFolder(output))
    if not storage.is_remote(output):
        with contextlib.suppress(OSError):  # where atomic writes began
            os.rmdir(OutputFolder(output).path(storage.ATTEMPTS))
    for note in results["notes"]:
        console.print(f"note: {note}", style="bold", highlight=False, markup=False)
    console.print(f"Output: {OutputFolder(output).path('report.html')}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _report_writer() -> Callable[[dict, OutputFolder], None]:
    try:
        from pipeline.report.write import write
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the report needs {error.name}, which the extra `report` brings: install '.[report]'"
        ) from error
    return write


def _refuse_run(output: str) -> None:
    listing = OutputFolder(output).list()
    if storage.MANIFEST in listing or "benchmark.json" in listing:
        raise ConfigError(f"--output is {output!r}, which holds a run; allowed: an empty folder, or one of an earlier report")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
