"""A job on a slice of several hosts: the same command on every host, run by the first and followed by the others.

    python -m pipeline.on_slice --config=configs/wmt_ende_t5_xxl.py --config.model.mesh=data:1,model:16 --output=...
        [--coordinator=HOST:PORT --hosts=4 --host=0]

On Cloud TPU the hosts find each other; elsewhere --coordinator names a port that the first is to listen on, --hosts their
number and --host which one this is. The first host reads, decodes with all of the slice's chips (`decoding.slices`), and
writes; a job of many slices is one such command per slice and per part of the input.

Exit status: as of `pipeline.generate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Mapping, Sequence

from decoding.config import DecodingConfig
from pipeline import generate
from pipeline.settings import ConfigError, help_text, parse_command_line
from pipeline.settings.flags import Parser

if typing.TYPE_CHECKING:
    from decoding import Generator, slices
    from transforms.costs import Costs
    from transforms.models import Models

_leader: slices.Leader | None = None


def build(arguments: Mapping) -> Generator:
    """On every host, from what the first one tells."""
    from transforms.decode import load_generator
    from transforms.models import Models

    config = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments["config"].items()}
    return load_generator(Models(**arguments["models"]), DecodingConfig(**config))


def lead(models: Models, config: DecodingConfig, costs: Costs | None) -> slices.Leader:
    """The factory of the first host's job. Its pipeline runs in this process, which holds one leader."""
    from decoding import slices

    global _leader
    _leader = slices.Leader(build, {"models": dataclasses.asdict(models), "config": dataclasses.asdict(config)})
    return _leader


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], str]:
    """The flags of this command, the job's, and its mesh.

    Raises:
      ValueError: with the setting and what is allowed.
    """
    parser = Parser(prog="python -m pipeline.on_slice", allow_abbrev=False, add_help=False)
    parser.add_argument("--coordinator")
    parser.add_argument("--hosts", type=int)
    parser.add_argument("--host", type=int)
    own, job = parser.parse_known_args(list(argv))
    named = [own.coordinator, own.hosts, own.host]
    if any(one is not None for one in named) and None in named:
        raise ConfigError("--coordinator, --hosts and --host are given together, or none of them")
    command = parse_command_line(job)
    if not command.config.model.mesh:
        raise ConfigError('model.mesh is ""; allowed: data:D,model:M with D x M the chips of all hosts')
    for flag in (argument.split("=", 1)[0] for argument in command.beam_args):
        if flag in ("--runner", "--direct_running_mode"):
            raise ConfigError(f"{flag} is given; allowed: none, as a slice's first host runs the pipeline in its own process")
    # Only now: what is wrong with the command itself is said without waiting for JAX.
    from decoding import slices

    slices.check(command.config.decoding)
    return own, job, command.config.model.mesh


def main(argv: Sequence[str]) -> int:
    if "--help" in argv:
        print(help_text(__doc__))
        return 0
    try:
        own, job, mesh = parse(argv)
        import jax

        from decoding import sharding, slices

        jax.distributed.initialize(own.coordinator, own.hosts, own.host)
        sharding.make_mesh(*sharding.parse_mesh(mesh))  # now that all chips are known
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if jax.process_index():
        slices.follow(build)
        return 0
    try:
        return generate.main(job, factory=lead)
    finally:
        if _leader is None:
            slices.broadcast({"do": "leave"})
        else:
            _leader.close()


if __name__ == "__main__":
    from pipeline import on_slice  # whose leader the job's pickled factory finds; __main__'s would be another

    sys.exit(on_slice.main(sys.argv[1:]))
