"""The command line of `pipeline.plan`."""

import dataclasses
import os
from collections.abc import Sequence

from decoding import config as decoding_config
from pipeline.planning import chips
from pipeline.settings import ConfigError, JobConfig, parse_command_line
from pipeline.settings.flags import Parser


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The flags of the same names; `mesh` is (data, model), `overhead` in seconds."""

    topology: chips.Topology | None
    mesh: tuple[int, int]
    num_slots: int | None
    alpha: float
    price: float
    split_draft: bool
    programs: str
    overhead: float
    json: str
    prepare: str = ""


def parse(args: Sequence[str]) -> tuple[JobConfig, PlanOptions]:
    """Parses `args`, which exclude the program's name.

    Raises:
      ConfigError: with the setting, its value and what is allowed.
    """
    parser = Parser(prog="python -m pipeline.plan", description="Plans a job for a TPU slice.", allow_abbrev=False)
    add = parser.add_argument
    add("--topology", default="", help="slice to plan for, for example v4:2x2x1; without it passes are measured here")
    add("--chips", type=int, default=0, help="of the slice that are used (default: all)")
    add("--mesh", default="", help="data:D,model:M (default: model.mesh, or data:1 and the model over all chips)")
    add("--num_slots", default="", help='in place of decoding.num_slots; "max" for the most that fit')
    add("--alpha", type=float, default=0.8, help="acceptance rate that speed is predicted for (default: %(default)s)")
    add("--price", type=float, default=0.0, help="of one chip for an hour")
    add("--target", default="", help="preset in place of model.target")
    add("--draft", default="", help="preset in place of model.draft")
    add("--split_draft", action="store_true", help="split the draft like the target; else every chip has all of it")
    add("--programs", choices=("all", "loop", "none"), default="all", help="what is compiled (default: %(default)s)")
    add("--layer_overhead_us", type=float, default=0.0, help="microseconds per layer added to every pass")
    add("--json", default="", help="file to write the results to as well")
    add("--prepare", default="", help="directory, also on gs://, to keep the job's compiled programs in for its workers")
    own, others = parser.parse_known_args(list(args))
    for flag in ("target", "draft"):
        if name := getattr(own, flag):
            from decoding.checkpoints.presets import PRESETS  # with all of checkpoints, and JAX

            if name not in PRESETS:
                raise ConfigError(f"--{flag} is {name!r}; allowed: {', '.join(PRESETS)}")
            others.append(f"--config.model.{flag}=preset:{name}")
    command = parse_command_line([*others, "--output=."])
    if command.beam_args:
        raise ConfigError(f"unknown arguments: {' '.join(command.beam_args)}")
    if own.json and not os.path.isdir(os.path.dirname(own.json) or "."):
        raise ConfigError(f"--json is {own.json!r}; allowed: a file in a folder that is there")
    if not 0 <= own.alpha <= 1:
        raise ConfigError(f"--alpha is {own.alpha}; allowed: 0 to 1")
    if own.price < 0 or own.layer_overhead_us < 0:
        raise ConfigError("--price and --layer_overhead_us must be at least 0")
    if own.num_slots not in ("", "max") and not (own.num_slots.isdigit() and int(own.num_slots)):
        raise ConfigError(f'--num_slots is {own.num_slots!r}; allowed: a whole number of at least 1, or "max"')
    if not own.topology and (own.mesh or own.chips or own.num_slots == "max"):
        raise ConfigError("--mesh, --chips and --num_slots=max are about a slice; allowed: with --topology")
    topology = chips.parse_topology(own.topology) if own.topology else None
    slots = None if own.num_slots == "max" else int(own.num_slots or command.config.decoding.num_slots)
    if own.mesh or not command.config.model.mesh:
        mesh = parse_mesh("--mesh", own.mesh, own.chips, topology)
    else:
        mesh = parse_mesh("model.mesh", command.config.model.mesh, own.chips, topology)
    options = PlanOptions(
        topology=topology,
        mesh=mesh,
        num_slots=slots,
        alpha=own.alpha,
        price=own.price,
        split_draft=own.split_draft,
        programs=own.programs,
        overhead=own.layer_overhead_us * 1e-6,
        json=own.json,
        prepare=own.prepare,
    )
    if own.prepare:
        _check_prepare(options, command.config)
    if slots and slots % options.mesh[0]:
        raise ConfigError(f"--num_slots is {slots}; allowed: multiples of {options.mesh[0]}, the mesh's axis 'data'")
    return command.config, options


def _check_prepare(options: PlanOptions, config: JobConfig) -> None:
    """Only programs that a job will ask for are worth keeping."""
    slots, topology = config.decoding.num_slots, options.topology
    if options.num_slots != slots:
        raise ConfigError(f"--num_slots is given with --prepare; allowed: the job's own, --config.decoding.num_slots={slots}")
    if options.split_draft:
        raise ConfigError("--split_draft is given with --prepare; allowed: without, since jobs have the draft on every chip")
    if topology is None:
        return
    if not chips.has_compiler():
        raise ConfigError("--prepare for --topology needs libtpu, which is not installed: it is in the extra 'tpu'")
    if options.mesh[0] * options.mesh[1] != topology.chips:
        raise ConfigError(
            f"--prepare is given with {options.mesh[0] * options.mesh[1]} of the {topology.chips} chips of {topology.name}; "
            "allowed: all of them, as a job's process has"
        )


def parse_mesh(flag: str, text: str, used: int, topology: chips.Topology | None) -> tuple[int, int]:
    """(data, model). Raises ConfigError where it is not as large as the chips that are used."""
    if topology is None:
        return (1, 1)
    if not 0 <= used <= topology.chips:
        raise ConfigError(f"--chips is {used}; allowed: 1 to {topology.chips}, which {topology.name} has")
    count = used or topology.chips
    if not text:
        return (1, count)
    try:
        data, ways = decoding_config.parse_mesh(text)
    except ValueError:
        data = ways = 0
    if data * ways != count:
        raise ConfigError(
            f"{flag} is {text!r}; allowed: data:D,model:M with D x M = {count}, the chips that are used of {topology.name}"
        )
    return data, ways
