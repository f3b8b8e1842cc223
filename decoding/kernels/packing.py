"""Weights as the products read them: panels of 48 columns, a column's weights in 32-bit words that lie side by side.

For a weight [K, N] the packed array is uint32[ceil(N / 48), words, 48]: word w of column c is at [c // 48, w, c % 48].
Columns beyond N are zeros. What the words of a column hold:

  float32          K words
  bfloat16         two weights a word, the first in the low half
  int8             the column's scale (float32), the sum of its integers (int32), then four integers a word
  Q8_0 Q4_0 Q5_0   GGUF's blocks of 32 weights, two and two: both scales (float16) in a word, then the blocks' other bytes
  Q4_1 Q5_1        GGUF's blocks of 32 weights, byte for byte
  Q4_K Q5_K Q6_K   GGUF's blocks of 256 weights, byte for byte; Q6_K's with two bytes of padding
"""

import contextlib
import dataclasses
import functools
import math
import mmap
import threading

import jax
import ml_dtypes
import numpy as np

COLUMNS = 48
FLOATS = ("float32", "bfloat16", "int8")
# Weights and bytes of a block in the file, by the names of the `gguf` package.
BLOCKS = {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q5_0": (32, 22), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
          "Q4_1": (32, 20), "Q5_1": (32, 24)}
KINDS = (*FLOATS, *BLOCKS)  # in the order of `Kind` in product.h


@functools.partial(jax.tree_util.register_dataclass, data_fields=["words"], meta_fields=["kind", "inputs", "outputs", "gated"])
@dataclasses.dataclass(frozen=True)
class PackedWeight:
    """A weight [inputs, outputs] in the form that `product` reads; a pytree with one leaf.

    Attributes:
      words: uint32[panels, words, 48], as above.
      kind: one of KINDS.
      gated: two weights of outputs / 2 columns each, the gate's first; each begins with a panel of its own.
    """

    words: jax.Array
    kind: str
    inputs: int
    outputs: int
    gated: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.inputs, self.outputs

    @property
    def nbytes(self) -> int:
        return self.words.nbytes


def pack(weight, kind: str, *, gated: bool = False) -> PackedWeight:
    """Packs a weight [K, N] of floats, rounding to bfloat16, or to int8 with one float32 scale max |w| / 127 per column.

    A column with a weight that is not finite has no such scale: its products in int8 are NaN.

    Args:
      weight: float[K, N], NumPy's or JAX's.
      kind: "float32", "bfloat16" or "int8".
      gated: whether the columns are a gate's and as many more.
    """
    if kind not in FLOATS:
        raise ValueError(f"kind is {kind!r}; floats are packed as one of {', '.join(FLOATS)}")
    weight = np.asarray(weight)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"a weight has two axes, [inputs, outputs], and no empty one; this one has shape {weight.shape}")
    columns = weight.T  # [N, K]
    if kind == "float32":
        words = _words(columns.astype(np.float32, copy=False))
    elif kind == "bfloat16":
        words = _words(columns.astype(ml_dtypes.bfloat16, copy=False))
    else:
        integers, scales = round_to_int8(columns)
        head = np.stack([scales.view(np.uint32), integers.sum(axis=1, dtype=np.int32).view(np.uint32)], axis=1)
        words = np.concatenate([head, _words(integers)], axis=1)
    return PackedWeight(_panels(words, gated), kind, *weight.shape, gated)


def round_to_int8(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8[N, K] and float32[N] scales, as of `pack`, of float[N, K]."""
    columns = columns.astype(np.float32, copy=False)
    scales = np.abs(columns).max(axis=1) / np.float32(127)
    scales = np.where(np.isfinite(scales), scales, np.float32(np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        integers = np.rint(columns / scales[:, None])
    return np.nan_to_num(integers, nan=0, posinf=0, neginf=0).clip(-127, 127).astype(np.int8), scales


def pack_blocks(blocks, kind: str, *, gated: bool = False) -> PackedWeight:
    """Packs a GGUF tensor [N, K], which is the weight [K, N] of a projection, without changing its blocks.

    Args:
      blocks: uint8[N, bytes], as `gguf.GGUFReader` gives a tensor's data.
      kind: one of BLOCKS.
      gated: as of `pack`.
    """
    if kind not in BLOCKS:
        raise ValueError(f"kind is {kind!r}; blocks are one of {', '.join(BLOCKS)}")
    size, nbytes = BLOCKS[kind]
    blocks = np.ascontiguousarray(blocks).view(np.uint8)
    if blocks.ndim != 2 or 0 in blocks.shape or blocks.shape[1] % nbytes:
        raise ValueError(f"{kind} has blocks of {nbytes} bytes along the last of two axes; got bytes of shape {blocks.shape}")
    outputs, inputs = blocks.shape[0], blocks.shape[1] // nbytes * size
    blocks = blocks.reshape(outputs, -1, nbytes)
    if size == 32:
        blocks = np.pad(blocks, [(0, 0), (0, blocks.shape[1] % 2), (0, 0)])
    if nbytes % 4 and size == 32:
        blocks = blocks.reshape(outputs, -1, 2, nbytes)
        scales, rest = blocks[..., :2].reshape(outputs, -1, 4), blocks[..., 2:].reshape(outputs, blocks.shape[1], -1)
        blocks = np.concatenate([scales, rest], axis=-1)
    else:
        blocks = np.pad(blocks, [(0, 0), (0, 0), (0, -nbytes % 4)])
    return PackedWeight(_panels(blocks.reshape(outputs, -1).view(np.uint32), gated), kind, inputs, outputs, gated)


def _words(columns: np.ndarray) -> np.ndarray:
    """uint32[N, words] of columns [N, K]; those that are unpacked are filled with zeros to groups of 64 elements."""
    if columns.itemsize < 4 and columns.shape[1] % 64:
        columns = np.pad(columns, [(0, 0), (0, -columns.shape[1] % 64)])
    return np.ascontiguousarray(columns).view(np.uint32)


def _panels(words: np.ndarray, gated: bool) -> jax.Array:
    """uint32[panels, words, 48] of words [N, words], or of each half of N."""
    if gated and len(words) % 2:
        raise ValueError(f"a gated weight has an even number of columns; this one has {len(words)}")
    halves = np.split(words, 2) if gated else [words]
    each = -(-len(halves[0]) // COLUMNS)
    panels = _zeros((len(halves) * each, words.shape[1], COLUMNS))
    for i, panel in enumerate(panels):
        columns = halves[i // each][i % each * COLUMNS :][:COLUMNS]
        panel[:, : len(columns)] = columns.T
    return jax.device_put(panels, jax.devices("cpu")[0])  # without a copy: the memory is aligned


_PAGE = 2 << 20
_REGION = 64 << 20
_lock = threading.Lock()
_free = np.empty(0, np.uint8)


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """uint32 zeros in large pages where the system has them, from which memory is read half as fast again.

    Weights lie one behind the other in regions, so that small ones do not take a large page each; a region is given back
    with the last of its weights. What of it no weight has touched takes no memory.
    """
    global _free
    nbytes = math.prod(shape) * 4
    taken = -(-nbytes // 64) * 64
    with _lock:
        if len(_free) < taken:
            size = -(-max(taken, _REGION) // _PAGE) * _PAGE
            region = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a kernel without them
                    region.madvise(mmap.MADV_HUGEPAGE)
            array = np.frombuffer(region, np.uint8)
            _free = array[-array.ctypes.data % _PAGE :][:size]
        mine, _free = _free[:nbytes], _free[taken:]
    return mine.view(np.uint32).reshape(shape)
