"""A slice of several hosts as one worker: the first host has the work and the results, the others follow.

Every host of a slice runs the same programs on the same inputs (JAX's multi-controller way): a host that did not would leave
the others waiting in a collective. The first one therefore tells the others what it is about to decode, and only it returns
anything, so that what is written is written once.

    jax.distributed.initialize()                       # on every host
    build = lambda _: decoding.Generator(decoding.load_model(path, mesh=sharding.make_mesh(model=jax.device_count())), ...)
    if jax.process_index() == 0:
        with slices.Leader(build) as generator:
            generator.generate(inputs, example_ids)
    else:
        slices.follow(build)                           # returns when the leader has left

Whatever the host decides must be decided alike everywhere: γ = "auto" measures on each host by itself and is refused.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from decoding.config import DecodingConfig, Generation
from decoding.engine import EngineReport, Generator
from decoding.hints import Hints

# Bytes of one broadcast; of one size, so that it is compiled once.
_BLOCK = 1 << 16

Build = Callable[[Mapping], Generator]


def broadcast(message: dict | None) -> dict:
    """The first host's message on every host; all of them must call this.

    Args:
      message: JSON; None on the others.
    """
    data = json.dumps(message).encode() if message is not None else b""
    size = int(_send(np.frombuffer(np.int64(len(data)).tobytes(), np.uint8)).view(np.int64)[0])
    blocks = [_send(np.frombuffer(data[at : at + _BLOCK], np.uint8)) for at in range(0, size, _BLOCK)]
    return json.loads(b"".join(block.tobytes() for block in blocks)[:size])


def _send(data: np.ndarray) -> np.ndarray:
    """uint8[_BLOCK] that begins with the first host's data."""
    block = np.zeros((_BLOCK,), np.uint8)
    block[: len(data)] = data
    return np.asarray(multihost_utils.broadcast_one_to_all(block)).astype(np.uint8)


def check(config: DecodingConfig) -> None:
    """Raises ValueError where hosts would not decide alike."""
    if config.gamma == "auto":
        raise ValueError(
            'decoding.gamma is "auto"; allowed: a number on a slice of several hosts, each of which would measure by itself'
        )


class Leader:
    """A `Generator` of a whole slice, on its first host. As thread-safe as that."""

    def __init__(self, build: Build, arguments: Mapping | None = None):
        """
        Args:
          build: makes the generator on every host, on the slice's mesh.
          arguments: JSON that `build` is called with on every host.
        """
        self._lock, arguments = threading.Lock(), dict(arguments or {})
        broadcast({"do": "build", "arguments": arguments})
        self._generators = [build(arguments)]
        self.config, self.costs = self._generators[0].config, self._generators[0].costs

    def generate(
        self, inputs: Sequence[Sequence[int]], example_ids: Sequence[str], hints: Hints | None = None
    ) -> list[Generation]:
        """As of `Generator`."""
        return self.generate_with_report(inputs, example_ids, hints)[0]

    def generate_with_report(
        self, inputs: Sequence[Sequence[int]], example_ids: Sequence[str], hints: Hints | None = None
    ) -> tuple[list[Generation], EngineReport]:
        """As of `Generator`."""
        return self._generate(0, inputs, example_ids, hints)

    def _generate(self, which: int, inputs, example_ids, hints):
        plain = lambda many: [np.asarray(tokens).tolist() for tokens in many]
        message = {
            "do": "generate", "which": which, "inputs": plain(inputs), "example_ids": list(example_ids),
            "hints": None if hints is None else [plain(own) for own in hints],
        }  # fmt: skip
        with self._lock:
            broadcast(message)
            return self._generators[which].generate_with_report(inputs, example_ids, hints)

    def plain(self) -> "Plain":
        """As of `Generator`."""
        with self._lock:
            broadcast({"do": "plain"})
            self._generators.append(self._generators[0].plain())
            return Plain(self, len(self._generators) - 1)

    def close(self) -> None:
        """Lets the others go."""
        with self._lock:
            broadcast({"do": "leave"})

    def __enter__(self) -> "Leader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Plain:
    """The slice's generator that decodes plainly."""

    def __init__(self, leader: Leader, which: int):
        self._leader, self._which = leader, which
        self.config = leader._generators[which].config

    def generate_with_report(
        self, inputs: Sequence[Sequence[int]], example_ids: Sequence[str], hints: Hints | None = None
    ) -> tuple[list[Generation], EngineReport]:
        """As of `Generator`."""
        return self._leader._generate(self._which, inputs, example_ids, hints)


def follow(build: Build) -> int:
    """Does what the leader does, on every other host, until it leaves: how many batches that were.

    What the leader's arguments make a `ValueError` there makes one here, and is no reason to stop.
    """
    assert jax.process_index() > 0, "the first host leads"
    generators, batches = [], 0
    while (message := broadcast(None))["do"] != "leave":
        if message["do"] == "build":
            generators.append(build(message["arguments"]))
        elif message["do"] == "plain":
            generators.append(generators[0].plain())
        else:
            batches += 1
            try:
                generator = generators[message["which"]]
                generator.generate_with_report(message["inputs"], message["example_ids"], message["hints"])
            except ValueError:
                continue
    return batches
