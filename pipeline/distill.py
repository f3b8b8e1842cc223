"""Trains a draft on the target's own texts, so that more of its guesses are kept.

    python -m pipeline.distill --config=configs/quickstart.py --output=DIR [--config.distill.generations=FOLDER]
        [--config.distill.start=new --config.distill.shape.d_model=128 ...] [--config.distill.recipe.steps=2000]

The texts are those of finished folders of `pipeline.generate`, each with its own sampling. Without any, the target first
answers the config's input plainly, in DIR/generated. DIR is a Hugging Face directory from the first look at α on: the best
weights so far, the tokeniser, and at the end distill.json, which says what they were made of. The same command on the same
folder continues where an earlier one stopped, to the same weights. docs/distill.md has more.

Exit status: 0 when the training is over, 1 when it failed, 2 when something is wrong with the command or its folders and
nothing was done, 130 when interrupted.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence

from pipeline.job.command import command
from pipeline.job.status import Status
from pipeline.job.terminal import facts, make_console
from pipeline.settings import ConfigError, help_text, parse_command_line, refuse_placeholders
from transforms import storage

GENERATED = "generated"


@command
def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    if "--help" in args:
        print(help_text(__doc__))
        return 0
    command = parse_command_line(args)
    refuse_placeholders(command)
    if command.beam_args:
        raise ConfigError(f"{command.beam_args[0]!r} is not understood; a training takes no Beam options")
    config, output = command.config, command.output
    if not config.distill.folders:
        from pipeline import generate

        generated = storage.join(output, GENERATED)
        own = ["--config.model.draft=", "--config.decoding.gamma=0", "--config.shards.baseline_fraction=0.0"]
        others = [arg for arg in args if not arg.startswith("--output")]
        if status := generate.main([*others, *own, f"--output={generated}"]):
            return status
        config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, generations=(generated,)))
    from pipeline.distilling import loop, prepare

    with contextlib.closing(Status()) as status:
        job = prepare.prepare(config, output)
        record = loop.train(job, status.say)
    show(record, output)
    return 0


def show(record: dict, output: str) -> None:
    """Prints what came of a training."""
    console = make_console()
    rows = [("draft", f"{record['parameters']:,} parameters, after {record['steps']:,} steps over {record['tokens']:,} tokens")]
    for before, after in zip(record["alpha"]["before"], record["alpha"]["after"]):
        was, now = (f"{alpha['mean']:.3f} [{alpha['low']:.3f}, {alpha['high']:.3f}]" for alpha in (before, after))
        rows.append((f"α, temperature {after['temperature']:g}", f"{was} before, {now} after, on {after['texts']:,} texts"))
    console.print(facts(rows))
    console.print(f"--config.model.draft={output}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
