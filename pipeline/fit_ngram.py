"""Fits a unigram or bigram draft to the target's tokens: from text, or from what the target generated.

    python -m pipeline.fit_ngram --config=FILE --output=DIR [--text_field=NAME | --generations=FOLDER] [--order=2]
        [--min_count=1] [--held_out=0.01] [--config.path.to.setting=value] [Beam options]

The text is the config's input: the field --text_field, by default the reference where the input has one. With
--generations it is a finished folder of `pipeline.generate` instead. DIR then is what model.draft may be. The same texts
give the same file, however they are cut into shards and whatever runs the job.

Exit status: 0 when the model is written, 1 when the job failed, 2 when something is wrong with the command or its input.
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
from pipeline.settings.flags import number
from transforms import storage

if typing.TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline.job.corpus import Corpus
    from transforms.ngram import FitSettings


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done: of which texts, what, and Beam's options."""

    corpus: Corpus
    settings: FitSettings
    options: PipelineOptions


def parse(args: Sequence[str]) -> Job:
    """Parses `args`, which exclude the program's name, and checks what they name.

    Raises:
      ConfigError, FolderError: with the setting, its value and what is allowed.
    """
    parser = fit_parser("fit_ngram", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--order", default="2", help="2 for a bigram, 1 for a unigram (default: %(default)s)")
    add("--min_count", default="1", help="pairs seen less often are not stored (default: %(default)s)")
    add("--held_out", default="0.01", help="share of the texts kept apart for a perplexity (default: %(default)s)")
    fitting = read_command(parser, args)
    own = fitting.own
    fitted = {
        "order": number("order", own.order, int, 1, 2),
        "min_count": number("min_count", own.min_count, int, 1),
        "held_out": number("held_out", own.held_out, float, 0, 0.5),
    }
    from decoding.drafts import ngram
    from transforms.ngram import FitSettings

    corpus, options = fitting.corpus(ngram.FILE)
    settings = FitSettings(output=fitting.parsed.output, **corpus.model, **fitted, about=corpus.about)
    return Job(corpus, settings, options)


def build_pipeline(root: beam.Pipeline, job: Job) -> None:
    """Adds the job to an empty pipeline."""
    import apache_beam as beam

    from transforms.ngram import FitNGram

    texts = root | beam.Create(job.corpus.items) | beam.Reshuffle() | "Read" >> beam.ParDo(job.corpus.reader)
    _ = texts | FitNGram(job.settings)


def print_fitted(console: Console, directory: str) -> None:
    """Prints what a fitted model is made of."""
    from decoding.drafts import ngram

    about = ngram.read_info(directory).about
    kind = {1: "unigram", 2: "bigram"}[about["order"]]
    pairs = f"{about['stored_pairs']:,} of {about['distinct_pairs']:,} distinct pairs"
    rows = [
        ("fitted", f"{kind} of {about['texts']:,} texts, {about['tokens']:,} tokens"),
        ("stored", f"{pairs}, {storage.list_tree(directory)[ngram.FILE]:,} bytes"),
    ]
    if about["failed"]:
        rows.append(("left out", f"{about['failed']:,} records that cannot be read"))
    if about["held_out_perplexity"] is not None:
        texts, tokens = about["held_out_texts"], about["held_out_tokens"]
        rows.append(("perplexity", f"{about['held_out_perplexity']:.1f} on {texts:,} held-out texts, {tokens:,} tokens"))
    console.print(facts(rows))
    console.print(f"--config.model.draft={directory}", soft_wrap=True, highlight=False, markup=False)


@command
def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    job = parse(args)
    run_pipeline(job.options, lambda root: build_pipeline(root, job))
    print_fitted(make_console(), job.settings.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
