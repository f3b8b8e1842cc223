"""Whether a job fits a TPU slice, how fast it can be there at most, and what it costs, before anyone pays for one.

    python -m pipeline.plan --config=configs/wmt_ende_t5_xxl.py --topology=v4:2x2x1 [--config.path.to.setting=value]
        [--chips=1] [--mesh=data:1,model:4] [--num_slots=8 | max] [--alpha=0.8] [--price=3.22] [--json=FILE]
        [--target=t5-v1.1-xxl] [--draft=t5-v1.1-small] [--split_draft] [--programs=all | loop | none]
        [--layer_overhead_us=0]

The job's programs are compiled for the described slice by libtpu (`pip install 'specbeam[tpu]'`), with shapes in place of
weights: no TPU is needed and nothing is allocated. Without libtpu, or with --programs=none, needs are estimated from
shapes, and the report says so. --target and --draft replace the config's models by presets of published shapes, so that
no checkpoint is needed. Without --topology the passes of the config's models are measured on this machine instead.
docs/tpu.md says what the numbers are and what they leave out.

Exit status: 0 when it fits (or was measured), 1 when it does not fit, 2 when something is wrong with the command.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import decoding
from decoding import DecodingConfig, sharding, theory
from decoding.checkpoints import CheckpointError, architecture, find_checkpoint
from decoding.checkpoints.load import DTYPES
from decoding.engine import Generator, max_positions
from decoding.models.presets import PRESETS
from pipeline.config import NAMED_DRAFTS, ConfigError, JobConfig, parse_command_line
from pipeline.measurement import PassTimer
from pipeline.planning import chips, hlo, memory, roofline

_LONGEST = 16  # γ that the best is looked for among
_TRIES = 5


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of the same names; `mesh` is (data, model)."""

    topology: chips.Topology | None
    mesh: tuple[int, int]
    num_slots: int | None
    alpha: float
    price: float
    split_draft: bool
    programs: str
    overhead: float
    json: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(message)


def parse(args: Sequence[str]) -> tuple[JobConfig, Settings]:
    """Parses `args`, which exclude the program's name.

    Raises:
      ConfigError: with the setting, its value and what is allowed.
    """
    parser = _Parser(prog="python -m pipeline.plan", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--topology", default="", help="slice to plan for, for example v4:2x2x1; without it passes are measured here")
    add("--chips", type=int, default=0, help="of the slice that are used (default: all)")
    add("--mesh", default="", help="data:D,model:M (default: data:1, the model over all chips)")
    add("--num_slots", default="", help='in place of decoding.num_slots; "max" for the most that fit')
    add("--alpha", type=float, default=0.8, help="acceptance rate that speed is predicted for (default: %(default)s)")
    add("--price", type=float, default=0.0, help="of one chip for an hour")
    add("--target", default="", help="preset in place of model.target")
    add("--draft", default="", help="preset in place of model.draft")
    add("--split_draft", action="store_true", help="split the draft like the target; else every chip has all of it")
    add("--programs", choices=("all", "loop", "none"), default="all", help="what is compiled (default: %(default)s)")
    add("--layer_overhead_us", type=float, default=0.0, help="microseconds per layer added to every pass")
    add("--json", default="", help="file to write the results to as well")
    own, others = parser.parse_known_args(list(args))
    for flag in ("target", "draft"):
        if name := getattr(own, flag):
            if name not in PRESETS:
                raise ConfigError(f"--{flag} is {name!r}; allowed: {', '.join(PRESETS)}")
            others.append(f"--config.model.{flag}=preset:{name}")
    command = parse_command_line([*others, "--output=."])
    if command.beam_args:
        raise ConfigError(f"unknown arguments: {' '.join(command.beam_args)}")
    if not 0 <= own.alpha <= 1:
        raise ConfigError(f"--alpha is {own.alpha}; allowed: 0 to 1")
    if own.price < 0 or own.layer_overhead_us < 0:
        raise ConfigError("--price and --layer_overhead_us must be at least 0")
    if own.num_slots not in ("", "max") and not (own.num_slots.isdigit() and int(own.num_slots)):
        raise ConfigError(f'--num_slots is {own.num_slots!r}; allowed: a whole number of at least 1, or "max"')
    topology = chips.parse_topology(own.topology) if own.topology else None
    slots = None if own.num_slots == "max" else int(own.num_slots or command.config.decoding.num_slots)
    settings = Settings(
        topology, parse_mesh(own.mesh, own.chips, topology), slots, own.alpha, own.price, own.split_draft, own.programs,
        own.layer_overhead_us * 1e-6, own.json,
    )  # fmt: skip
    if slots and slots % settings.mesh[0]:
        raise ConfigError(f"--num_slots is {slots}; allowed: multiples of {settings.mesh[0]}, the mesh's axis 'data'")
    return command.config, settings


def parse_mesh(text: str, used: int, topology: chips.Topology | None) -> tuple[int, int]:
    """(data, model). Raises ConfigError where it is not as large as the chips that are used."""
    if topology is None:
        return (1, 1)
    if not 0 <= used <= topology.chips:
        raise ConfigError(f"--chips is {used}; allowed: 1 to {topology.chips}, which {topology.name} has")
    count = used or topology.chips
    if not text:
        return (1, count)
    try:
        data, ways = sharding.parse_mesh(text)
    except ValueError:
        data = ways = 0
    if data * ways != count:
        raise ConfigError(
            f"--mesh is {text!r}; allowed: data:D,model:M with D x M = {count}, the chips that are used of {topology.name}"
        )
    return data, ways


def abstract_models(config: JobConfig):
    """Target and draft with shapes for weights; the draft None where there is none.

    Raises:
      ConfigError: a model cannot be found.
    """

    def model(setting: str, path: str):
        try:
            if name := path.rpartition("preset:")[2] if "preset:" in path else "":
                return architecture.abstract_model(name, DTYPES[config.model.dtype])
            return architecture.abstract(find_checkpoint(path).config, DTYPES[config.model.dtype])
        except (CheckpointError, OSError) as error:
            raise ConfigError(f"{setting} is {path!r}: {error}") from error

    target, name = model("model.target", config.model.target), config.model.draft
    if not name or config.decoding.gammas == (0,):
        return target, None
    return target, decoding.load_draft(name, target) if name in NAMED_DRAFTS else model("model.draft", name)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A job on a slice: what is split how.

    Attributes:
      target, draft: abstract, on the mesh; a draft without one is copied to every chip.
    """

    topology: chips.Topology
    mesh: jax.sharding.Mesh
    target: object
    draft: object
    config: DecodingConfig

    def at(self, slots: int) -> "Plan":
        return dataclasses.replace(self, config=dataclasses.replace(self.config, num_slots=slots))

    @property
    def caches(self) -> list[tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every cache on one chip."""
        states = memory.state_shapes(self.target, self.draft, self.config, max_positions(self.config))
        short = {"bfloat16": "bf16", "float32": "f32"}
        leaves = [leaf for leaf in jax.tree.leaves(states) if len(leaf.shape) == 4]
        return sorted({(short[leaf.dtype.name], leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves})

    def guess(self) -> memory.Memory:
        """Needs from shapes alone."""
        rows = max(1, min(self.config.num_slots, 4096 // self.config.max_input_tokens))
        return memory.from_shapes(self.target, self.draft, self.config, max_positions(self.config), rows)

    def compile(self, which: str) -> dict:
        """Compiled programs by name: "all", or "loop" for the chunks."""
        lowered = Generator.lowered(self.target, self.draft, self.config)
        names = [name for name in lowered if name[0] == "chunk" or (which == "all" and name != "empty")]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return dict(zip(names, pool.map(lambda name: lowered[name]().compile(), names)))

    def work(self, model, positions: int) -> roofline.Work:
        mesh = self.mesh
        if sharding.mesh_of(model) is None:  # whole on every chip: as on one, for the slots of its group
            mesh = jax.sharding.AbstractMesh((mesh.shape["data"], 1), ("data", "model"))
        config = self.config
        return roofline.step_work(
            model, mesh, slots=config.num_slots, positions=positions, input_length=config.max_input_tokens,
            max_decode_tokens=config.max_decode_tokens, max_positions=max_positions(config),
        )  # fmt: skip


def make_plan(config: JobConfig, settings: Settings) -> Plan:
    """Raises ConfigError where models or the slice cannot be used."""
    topology, (data, ways) = settings.topology, settings.mesh
    if chips.has_compiler():
        mesh = sharding.make_mesh(data, ways, chips.devices(topology)[: data * ways])
    else:
        mesh = jax.sharding.AbstractMesh((data, ways), ("data", "model"))
    target, draft = abstract_models(config)
    target = sharding.shard(target, mesh)
    if draft is not None and settings.split_draft and hasattr(draft, "step"):
        draft = sharding.shard(draft, mesh)
    slots = settings.num_slots or data
    return Plan(topology, mesh, target, draft, dataclasses.replace(config.decoding, num_slots=slots))


def needs(plan: Plan, which: str) -> tuple[memory.Memory, dict]:
    """What a plan needs of each chip's memory, and its compiled programs.

    Where the compiler itself runs out of the chip's memory, its figure is taken.
    """
    guess = plan.guess()
    if which == "none" or not chips.has_compiler():
        return guess, {}
    try:
        programs = plan.compile(which)
    except jax.errors.JaxRuntimeError as error:
        used = memory.exhausted(error)
        if used is None:
            raise
        known = guess.parameters + guess.states + guess.staged
        beyond = plan.topology.chip.memory + 1 - known
        found = int(used * chips.GIB) - known if used < float("inf") else beyond
        return dataclasses.replace(guess, temporary=max(found, beyond), compiled=True), {}
    return memory.as_compiled(guess, programs), programs


def most_slots(plan: Plan, which: str) -> tuple[Plan, memory.Memory, dict]:
    """The plan with the most slots that fit.

    Bisected on exact shapes and a straight line of temporaries, whose slope comes from compiled programs: every answer is
    compiled in turn, and the line corrected, until one fits.
    """
    groups, limit = plan.mesh.shape["data"], plan.topology.chip.memory
    step = math.lcm(8, groups)
    first, slope = needs(plan.at(step), which)[0].temporary, 0.0

    def fits(slots: int, slope: float) -> bool:
        temporary = first + slope * (slots - step)
        return dataclasses.replace(plan.at(slots).guess(), temporary=int(temporary)).total <= limit

    for _ in range(_TRIES):
        slots = memory.largest(functools.partial(fits, slope=slope), step) or groups
        found, programs = needs(plan.at(slots), which)
        if found.total <= limit or slots <= step:
            break
        slope = (found.temporary - first) / (slots - step)
    return plan.at(slots), found, programs


def predict(plan: Plan, settings: Settings) -> dict:
    """Rooflines of the passes, and what follows from them for the given α."""
    chip, ways, gamma = plan.topology.chip, plan.mesh.shape["model"], max(plan.config.gammas)

    def seconds(model, positions: int) -> float:
        if not hasattr(model, "step"):
            return 0.0
        shared = 1 if sharding.mesh_of(model) is None else ways
        return plan.work(model, positions).seconds(chip, shared, settings.overhead)

    plain = seconds(plan.target, 1)
    draft = seconds(plan.draft, 1) if plan.draft is not None else 0.0
    rate = lambda gamma: theory.expected_tokens(settings.alpha, gamma) / (gamma * draft + seconds(plan.target, gamma + 1))
    best = max(range(_LONGEST + 1) if plan.draft is not None else [0], key=rate)
    found = {
        "target_seconds": plain,
        "verify_seconds": seconds(plan.target, gamma + 1),
        "draft_seconds": draft,
        "c": draft / plain,
        "gamma": gamma,
        "alpha": settings.alpha,
        "speedup": rate(gamma) * plain,
        "best_gamma": best,
        "best_speedup": rate(best) * plain,
        "tokens_per_second": plan.config.num_slots * rate(gamma),
        "plain_tokens_per_second": plan.config.num_slots / plain,
    }
    used = plan.mesh.size
    if settings.price:
        for name in ("", "plain_"):
            hours = 1e6 / found[f"{name}tokens_per_second"] / 3600
            found[f"{name}cost_per_million_tokens"] = settings.price * used * hours
    return found


def advice(plan: Plan, settings: Settings, short: int) -> str:
    """What would make a plan fit."""
    limit, ways = plan.topology.chip.memory, plan.mesh.shape["model"]
    said = []
    fewer = memory.largest(lambda slots: plan.at(slots).guess().total + short // 8 <= limit, plan.mesh.shape["data"])
    if 0 < fewer < plan.config.num_slots:
        said.append(f"--num_slots={fewer}")
    if plan.target.embedding.get_value().dtype == jnp.float32:
        said.append('--config.model.dtype=bfloat16 (half the bytes)')
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in roofline.parameters(plan.target).values())
    wider = ways * 2
    while wider < 4096 and held / wider + plan.guess().states * ways / wider > 0.85 * limit:
        wider *= 2
    said.append(f"a slice of {max(wider * plan.mesh.shape['data'], 4)} or more chips with model:{wider}")
    return "; ".join(said)


def run(config: JobConfig, settings: Settings) -> dict:
    """The whole plan as plain data."""
    began = time.monotonic()
    plan = make_plan(config, settings)
    which = settings.programs
    if settings.num_slots is None:
        plan, found, programs = most_slots(plan, which)
    else:
        found, programs = needs(plan, which)
    limit = plan.topology.chip.memory
    short = found.total - limit
    result = {
        "topology": plan.topology.name,
        "chips": plan.mesh.size,
        "mesh": dict(plan.mesh.shape),
        "num_slots": plan.config.num_slots,
        "draft": "none" if plan.draft is None else "split" if sharding.mesh_of(plan.draft) else "on every chip",
        "undivided": sharding.undivided(plan.target.config, plan.mesh),
        "memory": dataclasses.asdict(found) | {"total": found.total, "limit": limit, "fits": short <= 0},
        "predicted": predict(plan, settings),
        "programs": {
            " ".join(map(str, name)): _program(name, program, plan.caches) for name, program in programs.items()
        },
        "seconds": time.monotonic() - began,
    }
    if short > 0:
        result["memory"] |= {"short": short, "advice": advice(plan, settings, short)}
    return result


def _program(name, program, caches) -> dict:
    """What is known of one compiled program."""
    found = program.memory_analysis()
    told = {"argument_bytes": found.argument_size_in_bytes, "temporary_bytes": found.temp_size_in_bytes}
    if name[0] == "chunk":
        read = hlo.Program(program.as_text())
        traffic = read.collectives()
        copied, moved = read.copies(caches)
        told |= {"cache_copies": copied, "cache_moves": moved}
        told |= {"collectives": traffic.counts, "collective_bytes": traffic.bytes}
    return told


def measured(config: JobConfig, settings: Settings) -> dict:
    """Seconds of single passes of the config's models here, beside the roofline where the chip's peaks are known."""
    gamma, decoding_config = max(config.decoding.gammas), config.decoding
    slots = settings.num_slots or decoding_config.num_slots
    device = jax.devices()[0]
    chip = next((chip for word, chip in chips.GPUS.items() if word in device.device_kind), None)
    target, draft = abstract_models(config)
    room = max_positions(dataclasses.replace(decoding_config, num_slots=slots))
    result = {"device": device.device_kind, "num_slots": slots, "passes": []}
    seconds = {}
    for name, shape, widths in (("target", target, [1, gamma + 1]), ("draft", draft, [1])):
        if shape is None or not hasattr(shape, "step"):
            continue
        path = getattr(config.model, name)
        dtype = config.model.dtype
        if "preset:" in path:
            model = architecture.build(shape.config, DTYPES[dtype])
        else:
            model = decoding.load_model(path, dtype=dtype)
        timer = PassTimer(
            model, num_slots=slots, input_bucket=decoding_config.max_input_tokens, max_positions=room,
            positions=sorted(set(widths)),
        )  # fmt: skip
        example = np.full(decoding_config.max_input_tokens, max(model.eos_id, 2) + 1).tolist()
        found = timer.seconds(example, decoding_config.max_decode_tokens, sorted(set(widths)))
        for width in sorted(set(widths)):
            seconds[name, width] = found[width]
            one = {"model": name, "positions": width, "seconds": found[width]}
            if chip:
                mesh = jax.sharding.AbstractMesh((1, 1), ("data", "model"))
                work = roofline.step_work(
                    sharding.shard(shape, mesh), mesh, slots=slots, positions=width,
                    input_length=decoding_config.max_input_tokens,
                    max_decode_tokens=decoding_config.max_decode_tokens, max_positions=room,
                )  # fmt: skip
                one |= {"roofline": work.seconds(chip, 1), "ratio": found[width] / work.seconds(chip, 1)}
            result["passes"].append(one)
    if ("draft", 1) in seconds:
        c = seconds["draft", 1] / seconds["target", 1]
        cost = seconds["target", gamma + 1] / seconds["target", 1]
        result |= {
            "c": c,
            "alpha": settings.alpha,
            "speedup": theory.walltime_improvement_measured(settings.alpha, gamma, c, cost),
        }
    return result


# What is printed.


def _gib(count: float) -> str:
    return f"{count / chips.GIB:.2f} GiB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"


def report(result: dict, console: Console) -> None:
    """Prints a plan."""
    held, said = result["memory"], result["predicted"]
    table = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    add = table.add_row
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    add("slice", f"{result['topology']}, {result['chips']} chips used: {mesh}; draft: {result['draft']}")
    add("slots", str(result["num_slots"]))
    how = "compiled by libtpu" if held["compiled"] else "estimated from shapes, nothing was compiled"
    add("memory per chip", f"{_gib(held['total'])} of {_gib(held['limit'])} ({how})")
    for name in ("parameters", "states", "staged", "temporary"):
        add(f"  {name}", _gib(held[name]))
    for name, program in result["programs"].items():
        if "collectives" in program:
            copies = program["cache_copies"]
            shown = f"{len(copies)} ({', '.join(copies[:4])}, ...)" if len(copies) > 4 else ", ".join(copies) or "none"
            add(f"{name}", f"whole caches copied in the loop: {shown}")
            counts = ", ".join(f"{count} {kind}" for kind, count in program["collectives"].items()) or "no collectives"
            add("", f"{counts}, {program['collective_bytes'] / 1e6:.2f} MB per iteration")
    add("target pass", f"{_milliseconds(said['target_seconds'])} at least")
    add(f"over {said['gamma'] + 1} positions", f"{_milliseconds(said['verify_seconds'])} at least")
    add("draft pass", f"{_milliseconds(said['draft_seconds'])} at least; c = {said['c']:.4f}")
    add(f"speedup, α = {said['alpha']:g}", f"{said['speedup']:.2f} with γ = {said['gamma']}; "
        f"{said['best_speedup']:.2f} with γ = {said['best_gamma']}, the best")  # fmt: skip
    add("tokens per second", f"{said['tokens_per_second']:,.0f} at most, plain {said['plain_tokens_per_second']:,.0f}")
    if "cost_per_million_tokens" in said:
        plain = said["plain_cost_per_million_tokens"]
        add("per million tokens", f"{said['cost_per_million_tokens']:.3f} at least, plain {plain:.3f}, in the price's money")
    console.print(table)
    for line in result["undivided"]:
        console.print(line)
    if not held["fits"]:
        console.print(f"Does not fit: {_gib(held['short'])} too much on each chip. What would: {held['advice']}.")


def main(argv: Sequence[str]) -> int:
    console = Console()
    try:
        config, settings = parse(argv)
        if settings.topology is None:
            result = measured(config, settings)
        else:
            if not chips.has_compiler() and settings.programs != "none":
                console.print(
                    "libtpu is not installed (pip install 'specbeam[tpu]'): this is an estimate from shapes; nothing is "
                    "compiled, so temporaries are guessed and the loop is not looked at.",
                    markup=False,
                )
            result = run(config, settings)
    except (ConfigError, CheckpointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if settings.json:
        with open(settings.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    if settings.topology is None:
        for one in result["passes"]:
            beside = f", roofline {_milliseconds(one['roofline'])}, ratio {one['ratio']:.2f}" if "ratio" in one else ""
            print(f"{one['model']} over {one['positions']}: {_milliseconds(one['seconds'])}{beside}")
        print(", ".join(f"{name} {value}" for name, value in result.items() if name != "passes"))
        return 0
    report(result, console)
    return 0 if result["memory"]["fits"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
