"""What is compared: the command line's flags, the settings that they mean, and which are measured against which."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from decoding import DecodingConfig
from decoding.registry import RULES
from pipeline.settings import ConfigError, JobConfig, parse_command_line, refuse_placeholders
from pipeline.settings.flags import Parser, number

VARIED = {
    "gamma": "gammas",
    "num_slots": "num_slots",
    "verification": "verifications",
    "temperature": "temperatures",
    "draft_beams": "draft_beams",
}
"""BenchmarkOptions of the config that this job varies, and the flags that say over what."""


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """What is compared, and how often: the flags of the same names."""

    gammas: tuple[int | str, ...]
    num_slots: tuple[int, ...]
    verifications: tuple[str, ...]
    temperatures: tuple[float, ...]
    draft_beams: tuple[int, ...]
    repeats: int
    examples: int
    seed: int


def slots(count: int) -> str:
    """ "8 slots"."""
    return f"{count} slot{'s' if count != 1 else ''}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to decode the inputs."""

    num_slots: int
    temperature: float
    verification: str
    gamma: int | str
    draft_beams: int = 0  # 0 of plain decoding, and where there are no beams

    @property
    def same_tokens(self) -> bool:
        """Whether an exact decoder emits plain decoding's very tokens: at temperature 0, and where the rule has it so."""
        return self.temperature == 0 or RULES.get(self.verification).plain_tokens

    def config(self, base: DecodingConfig) -> DecodingConfig:
        """`base` with this setting's values. Raises ValueError where they do not go together."""
        return dataclasses.replace(base, **dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """Its way of decoding, for people, γ aside."""
        if self.gamma == 0:
            return f"plain, {self.verification}" if self.temperature > 0 and self.same_tokens else "plain"
        if self.draft_beams:
            return f"beams, u {self.draft_beams}"
        return self.verification if self.temperature > 0 else "greedy"

    def __str__(self) -> str:
        gamma = f", γ {self.gamma}" if self.gamma != 0 else ""
        return f"{slots(self.num_slots)}, temperature {self.temperature:g}, {self.name}{gamma}"


@dataclasses.dataclass(frozen=True)
class Group:
    """BenchmarkOptions of one batch size and temperature, with the plain one that their speedup is measured against."""

    plain: Setting
    speculative: tuple[Setting, ...]

    @property
    def settings(self) -> tuple[Setting, ...]:
        return (self.plain, *self.speculative)


def parse(args: Sequence[str]) -> tuple[JobConfig, str, BenchmarkOptions]:
    """Parses `args`, which exclude the program's name: the job's config, the output folder, and what to compare.

    Raises:
      ConfigError: with the setting, its value and what is allowed.
    """
    parser = Parser(
        prog="python -m pipeline.benchmark",
        usage="%(prog)s --config=FILE --output=DIR [--config.path.to.setting=value] [options]",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--gammas", default="0,1,2,4,7,auto", help="tokens drafted per iteration, or auto (default: %(default)s)")
    add("--num_slots", default="1,8,32", help="batch sizes (default: %(default)s)")
    add("--verifications", default="token,block", help="of token, block, coupled (default: %(default)s)")
    add("--temperatures", default="", help="0 is greedy (default: 0,1; with decoding.num_beams 0 alone)")
    add("--draft_beams", default="", help="with decoding.num_beams: the draft's (default: once and twice as many)")
    add("--repeats", default="7", help="after a first one that is not counted; at least 2 (default: %(default)s)")
    add("--examples", default="64", help="inputs, from the beginning (default: %(default)s)")
    add("--seed", default="0", help="of the order of runs (default: %(default)s)")
    own, others = parser.parse_known_args(list(args))
    for name, flag in VARIED.items():
        if stray := [arg for arg in others if arg.split("=", 1)[0] == f"--config.decoding.{name}"]:
            raise ConfigError(f"{stray[0]!r} is one value, and this job compares several; allowed: --{flag}=...")
    # The config's own γ and temperature play no part, and must not be refused for want of a draft, or with beams.
    command = parse_command_line([*others, "--config.decoding.gamma=0", "--config.decoding.temperature=0.0"])
    refuse_placeholders(command)
    if command.beam_args:
        raise ConfigError(f"{command.beam_args[0]!r} is not an option of this job; --help lists them")
    beams = command.config.decoding.num_beams
    if own.draft_beams and beams == 1:
        raise ConfigError(f"--draft_beams is {own.draft_beams!r}; allowed: with decoding.num_beams above 1")
    draft_beams, temperatures = own.draft_beams or f"{beams},{2 * beams}", "0,1" if beams == 1 else "0"
    settings = BenchmarkOptions(
        gammas=_several("gammas", own.gammas, _gamma, 'whole numbers from 0 to 64, or "auto"'),
        num_slots=_several("num_slots", own.num_slots, int, "whole numbers of at least 1"),
        verifications=_several("verifications", own.verifications, _verification, ", ".join(RULES.names())),
        temperatures=_several("temperatures", own.temperatures or temperatures, float, "numbers of at least 0"),
        draft_beams=(0,) if beams == 1 else _several("draft_beams", draft_beams, int, f"numbers of at least {beams}"),
        repeats=number("repeats", own.repeats, int, 2),
        examples=number("examples", own.examples, int, 1),
        seed=number("seed", own.seed, int, 0),
    )
    if not command.config.model.draft and settings.gammas != (0,):
        raise ConfigError(f"--gammas is {own.gammas!r} and model.draft is empty; allowed without a draft: 0")
    for group in group_settings(settings):
        for setting in group.settings:
            try:
                setting.config(command.config.decoding)
            except ValueError as error:
                raise ConfigError(str(error)) from error
    return command.config, command.output, settings


def _several(name: str, text: str, convert: Callable[[str], Any], allowed: str) -> tuple:
    """Comma-separated values, each once, in the order given."""
    try:
        values = tuple(dict.fromkeys(convert(one.strip()) for one in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"--{name} is {text!r}; allowed: {allowed}, separated by commas") from error
    return values


def _gamma(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _verification(text: str) -> str:
    if text not in RULES:
        raise ValueError(text)
    return text


def group_settings(settings: BenchmarkOptions) -> list[Group]:
    """A group for every batch size and temperature: plain decoding, asked for or not, and every γ and verification.

    At temperature 0 all verifications are the same comparison of argmaxes, and the first stands for all. A rule that
    emits plain decoding's very tokens (coupled sampling) draws in a way of its own, so above temperature 0 it has its own
    group, whose plain decoding draws in that way too.
    """
    own = [name for name in settings.verifications if RULES.get(name).plain_tokens]
    found = []
    for num_slots in settings.num_slots:
        for temperature in settings.temperatures:
            if temperature == 0:
                families = [settings.verifications[:1]]
            else:
                families = [tuple(name for name in settings.verifications if name not in own), *((name,) for name in own)]
            for names in filter(None, families):
                speculative = tuple(
                    Setting(num_slots, temperature, name, gamma, width)
                    for gamma in settings.gammas
                    if gamma != 0
                    for name in names
                    for width in settings.draft_beams
                )
                found.append(Group(Setting(num_slots, temperature, names[0], 0), speculative))
    return found
