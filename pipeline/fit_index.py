"""Makes a corpus draft: an index of texts, in which a job looks up what followed its last tokens there.

    python -m pipeline.fit_index --config=FILE --output=DIR [--text_field=NAME | --generations=FOLDER]
        [--config.path.to.setting=value] [Beam options]

The text is the config's input: the field --text_field, by default the reference where the input has one. With
--generations it is a finished folder of `pipeline.generate` instead. DIR then is what model.draft may be. The same texts
give the same file, however they are cut into shards and whatever runs the job.

Exit status: 0 when the index is written, 1 when the job failed, 2 when something is wrong with the command or its input.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import typing
from collections.abc import Sequence

from rich.console import Console

from pipeline.job.command import command, run_pipeline
from pipeline.job.fitting import fit_parser, read_command
from pipeline.job.terminal import facts, make_console
from transforms import storage

if typing.TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline.job.corpus import Corpus
    from transforms.index import IndexSettings


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done: of which texts, what, and Beam's options."""

    corpus: Corpus
    settings: IndexSettings
    options: PipelineOptions


def parse(args: Sequence[str]) -> Job:
    """Parses `args`, which exclude the program's name, and checks what they name.

    Raises:
      ConfigError, FolderError: with the setting, its value and what is allowed.
    """
    fitting = read_command(fit_parser("fit_index", __doc__.splitlines()[0]), args)
    from decoding.drafts import suffixes
    from transforms.index import BUILDING, IndexSettings

    corpus, options = fitting.corpus(suffixes.FILE, f".{suffixes.FILE}", BUILDING)
    return Job(corpus, IndexSettings(fitting.parsed.output, **corpus.model, about=corpus.about), options)


def build_pipeline(root: beam.Pipeline, job: Job) -> None:
    """Adds the job to an empty pipeline."""
    import apache_beam as beam

    from transforms.index import FitIndex

    items = root | beam.Create(list(enumerate(job.corpus.items))) | beam.Reshuffle()
    _ = items | FitIndex(job.corpus.reader, job.settings)


def print_made(console: Console, directory: str) -> None:
    """Prints what an index is made of."""
    from decoding.drafts import suffixes

    about = suffixes.read_info(directory).about
    size = storage.list_tree(directory)[suffixes.FILE]
    rows = [("index", f"{about['texts']:,} texts, {about['places']:,} places, {size:,} bytes")]
    if about["failed"]:
        rows.append(("left out", f"{about['failed']:,} records that cannot be read"))
    console.print(facts(rows))
    console.print(f"--config.model.draft={directory}", soft_wrap=True, highlight=False, markup=False)


@command
def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    job = parse(args)
    run_pipeline(job.options, lambda root: build_pipeline(root, job))
    print_made(make_console(), job.settings.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
