"""Peaks and memory of accelerators, and topologies of TPUs that libtpu compiles for without one."""

import dataclasses
import importlib.util
import math
import os
import re

from pipeline.settings import ConfigError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: "v4".
      flops: bfloat16 operations per second.
      bandwidth: of its memory, bytes per second.
      memory: bytes that a program may use: of TPUs in libtpu's own words, less than the chip has (`memory.usable` asks
        again); of GPUs, for which nothing is planned, as published.
      link: bytes per second of one link to a neighbour, in one direction; 0 where chips are not linked here.
      config: libtpu's name of the configuration, "" for its default. Of v4, "megacore" is two cores as one device.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    link: float
    config: str = ""


# Speeds from Google's and NVIDIA's data sheets, memory from libtpu 0.0.52. A v4 or v5p chip has six links, a v5e or v6e four.
TPUS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 1228e9, int(30.75 * GIB), 50e9, "megacore"),
        Chip("v5e", 197e12, 819e9, int(15.75 * GIB), 50e9),
        Chip("v5p", 459e12, 2765e9, int(95.74 * GIB), 100e9, "megacore"),
        Chip("v6e", 918e12, 1638e9, int(31.25 * GIB), 100e9),
    )
}
# By a word of JAX's device_kind; the dense bfloat16 peak.
GPUS = {
    "H100": Chip("H100", 989e12, 3350e9, 80 * 10**9, 0.0),
    "H200": Chip("H200", 989e12, 4800e9, 141 * 10**9, 0.0),
    "A100": Chip("A100", 312e12, 2039e9, 80 * 10**9, 0.0),
    "L4": Chip("L4", 121e12, 300e9, 24 * 10**9, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind, side by side: "v4:2x2x1"."""

    name: str
    chip: Chip
    chips: int


def gpu(device_kind: str) -> Chip | None:
    """The GPU that JAX calls "NVIDIA A100-SXM4-80GB" or the like; None for one whose peaks are not known here."""
    return next((GPUS[word] for word in re.split(r"\W+", device_kind) if word in GPUS), None)


def parse_topology(text: str) -> Topology:
    """Raises ConfigError where it is no kind of TPU that is known, or no shape."""
    kind, _, shape = text.partition(":")
    if kind not in TPUS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise ConfigError(
            f"--topology is {text!r}; allowed: one of {', '.join(TPUS)}, a colon and the slice's shape, for example "
            "v4:2x2x1 or v5e:2x4"
        )
    return Topology(text, TPUS[kind], math.prod(map(int, shape.split("x"))))


def has_compiler() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def devices(topology: Topology) -> list:
    """Devices that programs can be compiled for, and nothing else.

    Raises:
      ConfigError: libtpu does not know such a topology.
    """
    # Where there is no TPU libtpu must not ask a metadata server which one it is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # a lock file keeps others away from a TPU, which there is not
    from jax.experimental import topologies

    options = {"chip_config_name": topology.chip.config} if topology.chip.config else {}
    try:
        described = topologies.get_topology_desc(topology.name, "tpu", **options).devices
    except Exception as error:
        raise ConfigError(
            f"--topology is {topology.name!r}, which libtpu refuses: {' '.join(str(error).split())[:300]}; allowed: whole "
            "hosts, that is shapes divisible by 2x2 (2x2x1)"
        ) from error
    assert len(described) == topology.chips, (topology, len(described))
    return list(described)
