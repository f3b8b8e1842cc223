"""The safetensors format: eight bytes of length, a JSON header, and the tensors' bytes one after the other.

Read here and not by its library because that maps whole files, whose pages then count as resident beside the model
made of them, and reads local files only. Here each tensor is one ranged read, from disk and bucket alike.
"""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from decoding.checkpoints.storage import LFS_POINTER, CheckpointError, locate

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LONGEST_HEADER_BYTES = 100_000_000  # the library's own limit


class _Place(NamedTuple):
    """Where a tensor lies: bytes `start` to `end` of `file`."""

    file: str
    dtype: np.dtype
    start: int
    end: int


class SafeTensors:
    """`decoding.checkpoints.fill.Tensors` over safetensors files; a name must not be in two of them.

    Attributes:
      shapes: by name.

    Raises:
      CheckpointError: a file is not a whole safetensors file.
    """

    def __init__(self, files: Sequence[str]):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, _Place] = {}
        for file in files:
            try:
                self._read_header(file)
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read: {error}") from error
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error

    def _read_header(self, file: str) -> None:
        filesystem, inner = locate(file)
        size = filesystem.size(inner)
        head = filesystem.cat_file(inner, start=0, end=min(len(LFS_POINTER), size))
        length = int.from_bytes(head[:8], "little")
        if head == LFS_POINTER:
            raise ValueError("it is Git LFS's pointer to one (git lfs pull)")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER_BYTES):
            raise ValueError(f"its {size} bytes cannot hold a header of {length}")
        begin = 8 + length
        covered = 0
        for name, entry in json.loads(filesystem.cat_file(inner, start=8, end=begin)).items():
            if name == "__metadata__":
                continue
            if name in self.shapes:
                raise ValueError(f"{name} is in another file too")
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"{name} is of type {entry['dtype']!r}; supported: {', '.join(_DTYPES)}")
            dtype, shape, (start, end) = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
                raise ValueError(f"{name} of shape {list(shape)} takes bytes {start} to {end}; allowed: whole numbers from 0")
            if end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} of shape {list(shape)} and type {entry['dtype']} takes bytes {start} to {end}")
            self.shapes[name] = shape
            self._places[name] = _Place(file, dtype, begin + start, begin + end)
            covered = max(covered, end)
        if size != begin + covered:
            raise ValueError(f"it has {size} bytes, its header says {begin + covered}")

    def read(self, name: str) -> np.ndarray:
        place = self._places[name]
        filesystem, inner = locate(place.file)
        data = filesystem.cat_file(inner, start=place.start, end=place.end) if place.end > place.start else b""
        if len(data) != place.end - place.start:
            raise CheckpointError(f"{place.file} ended while {name} was read")
        return np.frombuffer(data, place.dtype).reshape(self.shapes[name])
