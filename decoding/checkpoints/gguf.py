"""GGUF files (llama.cpp's single-file format): read through the `gguf` package, dequantised tensor by tensor.

A file holds what a Hugging Face directory holds under other names, so its metadata becomes a Hugging Face config
(`gguf_config`) and its weights are joined as that family's are; the package knows the names. What llama.cpp's converter has
changed is undone here: for "llama" it interleaves the two halves of every query and key head, to Gemma's norms it adds the
1, and GPT-2's matrices it transposes.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from decoding import kernels
from decoding.checkpoints import architecture, gguf_config, storage
from decoding.checkpoints.checkpoint import Checkpoint
from decoding.checkpoints.fill import Source, check, linear, stream
from decoding.checkpoints.storage import CheckpointError
from decoding.models.base import Shape
from decoding.registry import FAMILIES

# Factors of Llama 3's rotation, which the config has; T5's bias of cross-attention in early checkpoints, which nothing reads.
IGNORED = frozenset([gguf_config.ROPE_FACTORS, "dec.blk.0.cross_attn_rel_b.weight"])

_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_HEAD_BYTES = 64 << 20  # of a remote file, for its metadata: vocabularies with their merges take up to 10 MB


class GgufFile:
    """An open file: its metadata, and `decoding.checkpoints.fill.Tensors` over its weights.

    Attributes:
      path: as the user named it, for messages.
      parts: how many files it is split over.
      shapes: of the tensors by name, outermost axis first.
    """

    def __init__(self, path: str, readers: Sequence):
        self.path, self.parts = path, len(readers)
        self._fields = readers[0].fields
        self._tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        self.shapes = {name: tuple(reversed(t.shape.tolist())) for name, t in self._tensors.items()}

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value as Python's number, text, truth value or list."""
        return self._fields[key].contents() if key in self._fields else default

    def require(self, key: str) -> Any:
        """As `get`. Raises CheckpointError where the file lacks it."""
        if key not in self._fields:
            raise CheckpointError(f"{self.path}: the metadata lacks {key!r}")
        return self.get(key)

    def blocks(self, name: str) -> tuple[np.ndarray, str]:
        """A weight [out, in] as one of `Blocks.columns`."""
        tensor = self._tensors[name]
        kind = tensor.tensor_type.name
        if kind in kernels.BLOCKS:
            return np.asarray(tensor.data).reshape(self.shapes[name][0], -1), kind
        return self.read(name).astype(np.float32, copy=False).T, "float32"

    def read(self, name: str) -> np.ndarray:
        import gguf

        tensor = self._tensors[name]
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            return np.array(tensor.data)  # the package's result would be a window on the file
        try:
            return gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise CheckpointError(f"{self.path}: {name} is stored as {tensor.tensor_type.name}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A weight [in, out] in the file's own form.

    Attributes:
      columns: of tensors side by side, the columns of each: its blocks uint8[out, bytes] and their kind, one of
        `kernels.BLOCKS`; or float32[in, out] and "float32".
      shape: of the whole.
    """

    columns: tuple[tuple[np.ndarray, str], ...]
    shape: tuple[int, int]


def is_gguf(path: str) -> bool:
    return path.endswith(".gguf")


@contextlib.contextmanager
def open_file(path: str, *, weights: bool = True) -> Iterator[GgufFile]:
    """Opens a file; one on gs:// is copied to local disk while the context lasts.

    Args:
      path: local or gs://.
      weights: False where only metadata and shapes are wanted; of a remote file the beginning is then enough.

    Raises:
      CheckpointError: no such file, not a whole GGUF file, or the `gguf` package is not installed.
    """
    head = None if weights else _HEAD_BYTES
    try:
        with contextlib.ExitStack() as stack:
            parts = [(part, stack.enter_context(storage.local_file(part, head))) for part in parts_of(path)]
            yield GgufFile(path, [_open(part, local) for part, local in parts])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def parts_of(path: str) -> tuple[str, ...]:
    """All files of a model that is split over several, by the name of any; the first has the metadata. Else the file."""
    named = _PART.fullmatch(path)
    if named is None:
        return (path,)
    return tuple(f"{named[1]}-{number:05d}-of-{named[2]}.gguf" for number in range(1, int(named[2]) + 1))


def _open(path: str, local: str):
    stat = os.stat(local)
    try:
        with open(local, "rb") as stream:
            if stream.read(len(storage.LFS_POINTER)) == storage.LFS_POINTER:
                raise ValueError("it is Git LFS's pointer to one (git lfs pull)")
        read = _read_header.__wrapped__ if "://" in path else _read_header  # a copy would stay on disk while it is kept
        return read(local, stat.st_size, stat.st_mtime_ns)
    except OSError:
        raise
    except ImportError as error:
        raise CheckpointError(f"{path}: GGUF files need the extra 'gguf' of specbeam ({error})") from error
    except Exception as error:  # the package raises whatever its reading of a foreign file leads to
        raise CheckpointError(f"{path} is not a whole GGUF file: {error}") from error


@functools.lru_cache(maxsize=8)  # a job opens its file for the model, the tokeniser and the chat template
def _read_header(local: str, size: int, modified_ns: int):
    """The package's reader; a vocabulary of 50,000 pieces takes it a second or two."""
    import gguf

    class StrictReader(gguf.GGUFReader):
        """The package's slices are silently short where a file ends early, and memory maps are slow to slice."""

        def _get(self, offset, dtype, count=1, override_order=None):
            self.data = self.data.view(np.ndarray)
            found = super()._get(offset, dtype, count, override_order)
            if len(found) != count:
                raise ValueError(f"{count} values of {np.dtype(dtype)} at byte {offset} lie beyond its end")
            return found

    reader = StrictReader(local)
    if reader.byte_order != "I":
        raise ValueError("its byte order is not this machine's")
    return reader


def find(path: str, given: str | Mapping | None) -> Checkpoint:
    """A file's checkpoint; its weights are read when they are asked for.

    Args:
      path: the file.
      given: an architecture, which must agree with the file's own.

    Raises:
      CheckpointError: not a whole GGUF file, or an architecture that is not supported.
    """
    with open_file(path, weights=False) as file:
        try:
            own = gguf_config.read_config(file)
        except CheckpointError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: the metadata cannot be used: {error}") from error
        raw, config = architecture.settle(own, path, given, tied="output.weight" not in file.shapes)

    def parameters(dtype) -> Iterator[tuple[str, np.ndarray]]:
        with open_file(path) as file:
            named, family = sources(config, raw["model_type"]), raw["model_type"]
            if dtype is not None:
                yield from stream(path, named, file, dtype, IGNORED)
                return
            check(path, named, file.shapes, IGNORED)
            for ours, source in named.items():
                if source.side_by_side or ours == "embedding":
                    yield ours, _in_blocks(file, source, config, family)
                else:
                    yield ours, np.asarray(source.combine(*(file.read(name) for name in source.names)))

    return Checkpoint(raw, config, parts_of(path), parameters)


def sources(config: Shape, family: str) -> dict[str, Source]:
    """Our parameter path -> its source, of a model of this `model_type`."""
    import gguf

    kind, layers = gguf_config.ARCHITECTURES[family], max(config.num_layers, getattr(config, "num_decoder_layers", 0))
    names = gguf.get_tensor_name_map(next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind), layers)

    def renamed(ours: str, source: Source) -> Source:
        if kind == "gpt2" and ours.endswith(".kernel"):
            into, out = source.shapes[0]
            source = linear(source.names, [out], into)
        theirs = tuple(names.get_name(name, try_suffixes=(".weight", ".bias")) or name for name in source.names)

        def combine(*tensors: np.ndarray) -> np.ndarray:
            if kind == "llama":
                tensors = [_halves_apart(name, tensor, config) for name, tensor in zip(theirs, tensors)]
            if getattr(config, "unit_offset", False):
                tensors = [tensor - 1 if "norm" in name else tensor for name, tensor in zip(theirs, tensors)]
            return source.combine(*tensors)

        return Source(theirs, source.shapes, combine, source.side_by_side)

    return {ours: renamed(ours, source) for ours, source in FAMILIES.get(family).sources(config).items()}


def _in_blocks(file: GgufFile, source: Source, config: Shape, family: str) -> Blocks:
    columns = []
    for name in source.names:
        values, kind = file.blocks(name)
        if family == "llama":  # a head's dimensions are rows of blocks, whole ones
            values = _halves_apart(name, values.T if kind == "float32" else values, config)
            values = values.T if kind == "float32" else values
        columns.append((values, kind))
    outs = [shape[0] for shape in source.shapes]
    return Blocks(tuple(columns), (source.shapes[0][1], sum(outs)) if source.side_by_side else source.shapes[0])


def _halves_apart(name: str, tensor: np.ndarray, config: Shape) -> np.ndarray:
    """Query and key weights [H * D, ...] with each head's dimensions as Hugging Face orders them."""
    heads = config.num_heads if ".attn_q." in name else config.num_kv_heads if ".attn_k." in name else None
    if heads is None:
        return tensor
    pairs = tensor.reshape(heads, config.head_dim // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)
