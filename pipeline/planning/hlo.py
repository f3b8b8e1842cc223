"""What a compiled program does in its loop: which copies it makes and what it sends between chips.

Read from the text of XLA's optimised program, whose instructions look like

    %copy.3 = bf16[1,64,256,64]{3,2,1,0:T(8,128)(2,1)} copy(%get-tuple-element.9), ...

Instructions inside a fusion are no memory traffic of their own; what the fusion as a whole writes is.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_OPERAND = re.compile(r"%?([\w.\-]+)")
_CALLED = re.compile(r"(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count[^\d]*(\d+)')
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an instruction's result: `order` is its dimensions from the innermost out, `space` 0 is main memory."""

    dtype: str
    dims: tuple[int, ...]
    order: str
    space: int

    @property
    def bytes(self) -> int:
        return math.prod(self.dims) * _BYTES.get(self.dtype, 4)


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    line: str
    root: bool

    @property
    def operand(self) -> str:
        """Name of the first one."""
        first = _OPERAND.search(self.line.split(f" {self.opcode}(", 1)[1])
        return first[1] if first else ""

    @property
    def called(self) -> list[str]:
        branches = [name.strip(" %") for group in _BRANCHES.findall(self.line) for name in group.split(",")]
        return [name for _, name in _CALLED.findall(self.line)] + branches


def _shape(dtype: str, dims: str, layout: str) -> Shape:
    space = _SPACE.search(layout)
    order = layout[1:].split(":")[0].rstrip("}")
    return Shape(dtype, tuple(int(n) for n in dims.split(",") if n), order, int(space[1]) if space else 0)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one iteration.

    Attributes:
      counts: how many of each kind.
      bytes: of their results, all kinds together.
    """

    counts: dict[str, int]
    bytes: int


class Program:
    """A compiled program's computations, by name."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        self._shapes: dict[str, tuple[Shape, ...]] = {}
        current: list[Instruction] | None = None
        for line in text.splitlines():
            if current is None or not line.startswith(" "):
                if head := _HEAD.match(line):
                    current = self.computations.setdefault(head[2], [])
                    self.entry = head[2] if head[1] else self.entry
                continue
            if match := _INSTRUCTION.match(line):
                shapes = tuple(
                    _shape(dtype, dims, layout) for dtype, dims, layout in _SHAPE.findall(match[3])
                )
                current.append(Instruction(match[2], match[4], shapes, line, bool(match[1])))
                self._shapes[match[2]] = shapes

    def loop_body(self) -> str:
        """The body of the program's largest loop: a chunk's iteration. Raises ValueError where there is none."""
        bodies = [
            name
            for instruction in self.computations[self.entry]
            if instruction.opcode == "while"
            for kind, name in _CALLED.findall(instruction.line)
            if kind == "body"
        ]
        if not bodies:
            raise ValueError("the program has no loop")
        return max(bodies, key=lambda name: sum(1 for _ in self._reached(name, 1)))

    def _reached(self, computation: str, times: int) -> Iterable[tuple[Instruction, int]]:
        """Instructions run by a computation, fusions not entered, and how often: loops of known length count."""
        for instruction in self.computations.get(computation, ()):
            yield instruction, times
            if instruction.opcode in ("fusion", "reduce", "sort", "scatter", "map", "reduce-window", "custom-call"):
                continue
            trips = _TRIPS.search(instruction.line) if instruction.opcode == "while" else None
            for name in instruction.called:
                yield from self._reached(name, times * (int(trips[1]) if trips else 1))

    def copies(self, caches: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[list[str], int]:
        """Instructions in the loop that copy or lay out anew a whole cache.

        Args:
          caches: dtype ("bf16") and shape on one chip of every cache.

        Returns:
          Their names; and how many others move a cache as it is between main and on-chip memory, which is how it is read.
        """
        key = lambda dtype, dims: (dtype, tuple(sorted(n for n in dims if n > 1)))
        wanted = {key(*cache) for cache in caches}
        copied, moved = [], 0
        for instruction, _ in self._reached(self.loop_body(), 1):
            opcode = instruction.opcode
            if opcode == "fusion":
                inner = [i for name in instruction.called for i in self.computations.get(name, ()) if i.root]
                opcode = inner[0].opcode if inner else opcode
            if opcode not in ("copy", "copy-start", "transpose") or not instruction.shapes:
                continue
            result = instruction.shapes[0]
            if key(result.dtype, result.dims) not in wanted:
                continue
            if opcode == "copy-start":
                source = instruction.shapes[1]
            else:
                source = self._shapes.get(instruction.operand, (None,))[0]
            if source and source.dims == result.dims and source.order == result.order and source.space != result.space:
                moved += 1
            else:
                copied.append(instruction.name)
        return copied, moved

    def collectives(self) -> Traffic:
        """What one iteration of the loop sends."""
        counts, total = collections.Counter(), 0
        for instruction, times in self._reached(self.loop_body(), 1):
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                counts[kind] += times
                shapes = instruction.shapes
                if instruction.opcode.endswith("-start") and kind != "all-reduce":
                    # Operands are listed before the results, and scalars of the transfer's own after them.
                    shapes = [shape for shape in shapes if shape.dims]
                    shapes = shapes[len(shapes) // 2 :]
                total += times * sum(shape.bytes for shape in shapes)
        return Traffic(dict(counts), total)
