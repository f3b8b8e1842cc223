"""Accelerators of Dataflow's workers: what `--accelerator=v5e:2x2` or `--accelerator=l4:1` stands for.

From Dataflow's pages on TPUs and GPUs. TPU names are those of `pipeline.plan --topology`.
"""

import dataclasses
import re
from collections.abc import Mapping

from pipeline.settings import ConfigError

_DRIVER = "install-nvidia-driver:5xx"  # the newest of the 5xx series; without a series it is an older one


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What one worker has.

    Attributes:
      name: as `--accelerator` has it, "v5e:2x2" or "l4:1".
      request: Dataflow's `worker_accelerator`.
      machine_type: of the worker's VM: required by a TPU, the least that a GPU fits otherwise.
      machine_family: what the machine type must begin with.
      devices: chips or GPUs, as JAX counts them.
      environment: what libtpu has to be told where there is no metadata of a TPU VM; empty for GPUs.
    """

    name: str
    request: str
    machine_type: str
    machine_family: str
    devices: int
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_tpu(self) -> bool:
        return self.request.startswith("type:tpu-")


def _tpu(name: str, dataflow_type: str, machine_type: str, libtpu_type: str) -> Accelerator:
    topology = name.partition(":")[2]
    sides = [int(side) for side in topology.split("x")]
    x, y, z = [*sides, 1][:3]
    environment = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": libtpu_type,
        "TPU_CHIPS_PER_HOST_BOUNDS": f"{x},{y},{z}",
        "TPU_HOST_BOUNDS": "1,1,1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    request = f"type:{dataflow_type};topology:{topology}"
    return Accelerator(name, request, machine_type, machine_type, x * y * z, environment)


def _gpus(name: str, dataflow_type: str, machine_types: Mapping[int, str]) -> list[Accelerator]:
    found = []
    for count, machine_type in machine_types.items():
        # Of A2 and A3 the machine type says how many GPUs there are; N1 and G2 come in several sizes.
        family = machine_type if machine_type[0] == "a" else machine_type.split("-")[0] + "-"
        request = f"type:{dataflow_type};count:{count};{_DRIVER}"
        found.append(Accelerator(f"{name}:{count}", request, machine_type, family, count))
    return found


# A v5e's libtpu type counts chips, a v6e's too; a v5p's counts cores, two to a chip.
ACCELERATORS: dict[str, Accelerator] = {
    one.name: one
    for one in [
        _tpu("v5e:1x1", "tpu-v5-lite-podslice", "ct5lp-hightpu-1t", "v5litepod-1"),
        _tpu("v5e:2x2", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", "v5litepod-4"),
        _tpu("v5e:2x4", "tpu-v5-lite-podslice", "ct5lp-hightpu-8t", "v5litepod-8"),
        _tpu("v6e:1x1", "tpu-v6e-slice", "ct6e-standard-1t", "v6e-1"),
        _tpu("v6e:2x2", "tpu-v6e-slice", "ct6e-standard-4t", "v6e-4"),
        _tpu("v6e:2x4", "tpu-v6e-slice", "ct6e-standard-8t", "v6e-8"),
        _tpu("v5p:2x2x1", "tpu-v5p-slice", "ct5p-hightpu-4t", "v5p-8"),
        *_gpus("t4", "nvidia-tesla-t4", {1: "n1-standard-8", 2: "n1-standard-16", 4: "n1-standard-32"}),
        *_gpus("l4", "nvidia-l4", {1: "g2-standard-8", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"}),
        *_gpus("a100", "nvidia-tesla-a100", {n: f"a2-highgpu-{n}g" for n in (1, 2, 4, 8)}),
        *_gpus("a100-80gb", "nvidia-a100-80gb", {n: f"a2-ultragpu-{n}g" for n in (1, 2, 4, 8)}),
        *_gpus("h100", "nvidia-h100-80gb", {8: "a3-highgpu-8g"}),
    ]
}


def by_name(name: str) -> Accelerator:
    """The accelerator that `--accelerator` names; a GPU without a number is one.

    Raises:
      ConfigError: Dataflow has none such.
    """
    found = ACCELERATORS.get(name) or ACCELERATORS.get(f"{name}:1")
    if found:
        return found
    if re.match(r"(tpu-)?v4\b", name):
        raise ConfigError(f"--accelerator is {name!r}; {NO_V4}")
    raise ConfigError(f"--accelerator is {name!r}; allowed: {', '.join(ACCELERATORS)}")


NO_V4 = (
    "Dataflow has no TPU v4. Hosts with one join as workers of Flink, an external worker pool on each: docs/flink.md. "
    "Allowed here: " + ", ".join(one.name for one in ACCELERATORS.values() if one.is_tpu)
)


def by_request(request: str) -> Accelerator | None:
    """The accelerator of a `worker_accelerator` that was written out; None for one that is not known here.

    Raises:
      ConfigError: a TPU that Dataflow does not have, in that topology or at all.
    """
    wanted = _parts(request)
    for known in ACCELERATORS.values():
        parts = _parts(known.request)
        if all(wanted.get(name) == parts.get(name) for name in ("type", "topology", "count")):
            return known
    kind = wanted.get("type", "")
    if kind.startswith("tpu-v4"):
        raise ConfigError(f"worker_accelerator is {request!r}; {NO_V4}")
    if kind.startswith("tpu-"):
        allowed = "; or ".join(known.request for known in ACCELERATORS.values() if known.is_tpu)
        raise ConfigError(f"worker_accelerator is {request!r}; allowed: {allowed}")
    return None


def _parts(request: str) -> dict[str, str]:
    return dict(part.partition(":")[::2] for part in request.split(";"))
