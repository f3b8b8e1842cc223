"""The command line of jobs that make a draft of texts, without training: `pipeline.fit_ngram` and `pipeline.fit_index`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence

from pipeline.settings import CommandLine, ConfigError, absolute, parse_command_line, refuse_placeholders
from pipeline.settings.flags import Parser

if typing.TYPE_CHECKING:
    import argparse

    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline.job.corpus import Corpus


@dataclasses.dataclass(frozen=True)
class FitCommand:
    """A parsed command.

    Attributes:
      own: flags of the job.
      parsed: its config, output and Beam's flags.
      generations: folder of a finished run whose texts are taken, "" for the config's input.
    """

    own: argparse.Namespace
    parsed: CommandLine
    generations: str

    def corpus(self, *made: str) -> tuple[Corpus, PipelineOptions]:
        """The texts, and Beam's options.

        Args:
          made: names of what the job writes into its output folder, which may hold nothing else.

        Raises:
          ConfigError, FolderError: with the setting, its value and what is allowed.
        """
        # Only now: what is wrong with the command itself is said without waiting for Beam.
        from pipeline.job.corpus import find_corpus, refuse_foreign
        from pipeline.runners.options import beam_options, paths_of

        config, output = self.parsed.config, self.parsed.output
        more = {"--generations": self.generations} if self.generations else {}
        options = beam_options(self.parsed.beam_args, paths_of(config, output) | more)
        refuse_foreign(output, *made)
        return find_corpus(config, output, self.generations, self.own.text_field), options


def fit_parser(job: str, description: str) -> Parser:
    """The flags that such jobs share; more may be added."""
    parser = Parser(
        prog=f"python -m pipeline.{job}",
        usage="%(prog)s --config=FILE --output=DIR [--config.path.to.setting=value] [options] [Beam options]",
        description=description,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--generations", default="", help="a finished output folder of pipeline.generate, instead of the config's input")
    add("--text_field", default="", help="field of the input's records (default: its reference, else its text)")
    return parser


def read_command(parser: Parser, args: Sequence[str]) -> FitCommand:
    """Parses `args`, which exclude the program's name.

    Raises:
      ConfigError: with the setting, its value and what is allowed.
    """
    own, others = parser.parse_known_args(list(args))
    # The config's own draft plays no part, and may be the very folder that is to be written.
    parsed = parse_command_line([*others, "--config.model.draft=", "--config.decoding.gamma=0"])
    refuse_placeholders(parsed)
    if own.generations and own.text_field:
        raise ConfigError(f"--text_field is {own.text_field!r}; allowed with --generations: nothing")
    return FitCommand(own, parsed, absolute(own.generations))
