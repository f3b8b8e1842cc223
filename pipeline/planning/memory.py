"""What a job needs of each chip's memory, from shapes alone and as compiled, and how much of it a program may use."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

import decoding
from decoding.drafts.base import as_draft
from decoding.sharding import Placement, mesh_of
from pipeline.planning import chips
from pipeline.planning.roofline import parameters, shard_bytes, whole_bytes


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip.

    Attributes:
      parameters: of target and draft.
      states: resident caches and what else belongs to a row.
      staged: states of prefilled rows that wait for a slot.
      temporary: arrays of the program that needs most, and the code of all; an estimate where `compiled` is False.
    """

    parameters: int
    states: int
    staged: int
    temporary: int
    compiled: bool = False

    @property
    def total(self) -> int:
        return self.parameters + self.states + self.staged + self.temporary


def state_shapes(target, draft, config: decoding.DecodingConfig, max_positions: int):
    """Abstract resident states of both models as the engine places them."""
    models = [target] if draft is None else [target, as_draft(draft)]
    place = Placement(mesh_of(target))
    shapes = jax.eval_shape(
        lambda: tuple(m.init_state(config.num_slots, config.max_input_tokens, max_positions) for m in models)
    )
    return place.states(models, shapes)


def from_shapes(target, draft, config: decoding.DecodingConfig, max_positions: int, staged_rows: int) -> Memory:
    """Needs by shapes; temporaries are guessed: a few arrays of logits."""
    mesh = mesh_of(target)
    held = sum(shard_bytes(leaf) for leaf in parameters(target).values())
    if draft is not None:
        whole = mesh_of(draft) is None
        held += sum(map(whole_bytes if whole else shard_bytes, parameters(draft).values()))
    states = sum(map(shard_bytes, jax.tree.leaves(state_shapes(target, draft, config, max_positions))))
    staged = states * staged_rows // config.num_slots
    ways = mesh.shape["model"] if target.vocab_size % mesh.shape["model"] == 0 else 1
    rows = config.num_slots / mesh.shape.get("data", 1)
    logits = 4 * rows * (2 * max(config.gammas) + 1) * target.vocab_size / ways
    return Memory(held, states, staged, int(3 * logits) + chips.GIB // 4)


def as_compiled(guess: Memory, programs: dict) -> Memory:
    """`guess` with the compiler's word for what programs need beside parameters and states.

    The code of all of them stays on the chip, arrays are of one at a time.
    """
    code = arrays = 0
    for name, program in programs.items():
        said = program.memory_analysis()
        added = said.output_size_in_bytes - said.alias_size_in_bytes if name[0] == "chunk" else 0
        code += said.generated_code_size_in_bytes
        arrays = max(arrays, said.temp_size_in_bytes + added)
    return dataclasses.replace(guess, temporary=code + arrays, compiled=True)


def usable(topology: chips.Topology) -> int:
    """Bytes of one chip that programs may use: libtpu's word on one that needs 2 TiB, as recorded where it is not there."""
    if not chips.has_compiler():
        return topology.chip.memory
    placed = jax.sharding.SingleDeviceSharding(chips.devices(topology)[0])
    huge = jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.bfloat16, sharding=placed)
    try:
        jax.jit(jnp.negative).trace(huge).lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        if said := exhausted(error):
            return said[1] or topology.chip.memory
        raise
    raise AssertionError(f"libtpu fits 2 TiB on a chip of {topology.name}")


def exhausted(error: Exception) -> tuple[int, int] | None:
    """Bytes that the compiler says a program that does not fit would have used, and those that it may use.

    Both 0 where it does not say; None where the error is another.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    # "Used 40.21G of 30.75G hbm", "the total memory required ... (2.00T) exceeds available HBM (30.75G)"
    said = re.search(r"([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT])\b", text)
    if not said:
        return 0, 0
    used, limit = (int(float(said[i]) * 1024 ** (1 + "KMGT".index(said[i + 1]))) for i in (1, 3))
    return used, limit


def largest(fits: Callable[[int], bool], multiple: int, limit: int = 1 << 14) -> int:
    """The largest multiple of `multiple` up to `limit` that fits, by bisection; 0 where not even one does."""
    low, high = 0, limit // multiple
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * multiple) else (low, middle - 1)
    return low * multiple
