"""What a job needs of each chip's memory: from shapes alone, and as compiled."""

import dataclasses
import re
from collections.abc import Callable

import jax

import decoding
from decoding.drafts import as_draft
from decoding.sharding import Placement, mesh_of
from pipeline.planning.chips import GIB
from pipeline.planning.roofline import parameters, shard_bytes


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip.

    Attributes:
      parameters: of target and draft.
      states: resident caches and what else belongs to a row.
      staged: states of prefilled rows that wait for a slot.
      temporary: of the program that needs most; an estimate where `compiled` is False.
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
        held += sum(
            leaf.size * leaf.dtype.itemsize if whole else shard_bytes(leaf) for leaf in parameters(draft).values()
        )
    states = sum(map(shard_bytes, jax.tree.leaves(state_shapes(target, draft, config, max_positions))))
    staged = states * staged_rows // config.num_slots
    ways = mesh.shape["model"] if target.vocab_size % mesh.shape["model"] == 0 else 1
    rows = config.num_slots / mesh.shape.get("data", 1)
    logits = 4 * rows * (2 * max(config.gammas) + 1) * target.vocab_size / ways
    return Memory(held, states, staged, int(3 * logits) + GIB // 4)


def as_compiled(guess: Memory, programs: dict) -> Memory:
    """`guess` with the compiler's word for what programs need beside parameters and states: temporaries, their code."""
    extra = 0
    for name, program in programs.items():
        found = program.memory_analysis()
        added = found.output_size_in_bytes - found.alias_size_in_bytes if name[0] == "chunk" else 0
        extra = max(extra, found.temp_size_in_bytes + found.generated_code_size_in_bytes + added)
    return dataclasses.replace(guess, temporary=max(extra, 0), compiled=True)


def exhausted(error: Exception) -> float | None:
    """GiB that the compiler says a program that does not fit would have used; None where the error is another."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    found = re.search(r"Used ([\d.]+)([GMK]) of", text)
    return float(found[1]) / {"G": 1, "M": 1024, "K": 1024**2}[found[2]] if found else float("inf")


def largest(fits: Callable[[int], bool], multiple: int, limit: int = 1 << 14) -> int:
    """The largest multiple of `multiple` up to `limit` that fits, by bisection; 0 where not even one does."""
    low, high = 0, limit // multiple
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * multiple) else (low, middle - 1)
    return low * multiple
