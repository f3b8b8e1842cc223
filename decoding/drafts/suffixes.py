"""The file of a corpus draft: a text's tokens, and its places in the order of what stands before them.

A suffix array, mirrored: the place i has the key tokens[i], tokens[i - 1], ..., DEPTH of them, so that all places where the
last tokens of some text stand are neighbours, whichever of them are looked for, and what follows each is tokens[i + 1] and
on.  Ties are in the order of places.  Texts are divided by a token that the vocabulary lacks; the last token of a text, which
nothing follows, is no place.

One file, `index.safetensors`: "tokens" uint16[N], or uint32[N] of a large vocabulary, and "places" uint32[M]: 6 or 8 bytes a
token.  It is mapped into memory, not read.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from decoding.checkpoints import storage
from decoding.checkpoints.storage import CheckpointError

FILE = "index.safetensors"
DEPTH = 8  # tokens that places are ordered by, and so the longest match
_KEY, _ALIGNMENT = "specbeam", 64
_KINDS = {"U16": np.dtype("<u2"), "U32": np.dtype("<u4")}
_BLOCK = 1 << 22
_MOST_TOKENS = 1 << 31  # places are int32 on devices


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """What a file says of itself.

    Attributes:
      vocab_size, start_id, eos_id: of the model that it was made for.
      about: whatever its maker was told, for people and checks.
    """

    vocab_size: int
    start_id: int
    eos_id: int
    about: Mapping[str, Any]


def token_type(vocab_size: int) -> np.dtype:
    """Of tokens of such a vocabulary, and of the one that divides texts, `vocab_size` itself."""
    return _KINDS["U16" if vocab_size < 1 << 16 else "U32"]


def divided(texts: Iterable[Sequence[int]], vocab_size: int) -> np.ndarray:
    """Texts one after the other, each followed by the token that divides them.

    Raises:
      ValueError: a token is not in the vocabulary.
    """
    parts = [np.zeros(0, np.int64)]
    for text in texts:
        tokens = np.asarray(text, np.int64)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise ValueError(f"a text has tokens from {tokens.min()} to {tokens.max()}; allowed: 0 to {vocab_size - 1}")
        parts += [tokens, [vocab_size]]
    return np.concatenate(parts).astype(token_type(vocab_size))


def cut_points(counts: np.ndarray, most: int) -> np.ndarray:
    """Where the vocabulary is cut so that about `most` places begin with tokens of each piece: from 0 to V, increasing.

    Args:
      counts: int64[V], places by their first token.
    """
    ends = np.cumsum(counts)
    wanted = np.arange(most, ends[-1] if len(ends) else 0, most)
    return np.unique(np.concatenate([[0], np.searchsorted(ends, wanted) + 1, [len(counts)]]))


def count_places(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """int64[V], places by the token that stands there."""
    counts = np.zeros(vocab_size, np.int64)
    for _, block in _blocks(tokens):
        here = block[: len(block) - 1][block[1:] < vocab_size]
        counts += np.bincount(here[here < vocab_size], minlength=vocab_size)[:vocab_size]
    return counts


def sorted_places(tokens: np.ndarray, vocab_size: int, low: int, high: int) -> np.ndarray:
    """Places whose token is from `low` to `high` - 1, in order: uint32[n].

    Memory follows n, 40 bytes for each, and not the text, which may be mapped.
    """
    found = []
    for start, block in _blocks(tokens):
        here = block[: len(block) - 1]
        found.append(start + np.flatnonzero((here >= low) & (here < min(high, vocab_size)) & (block[1:] < vocab_size)))
    places = np.concatenate([np.zeros(0, np.int64), *found])
    bits = 8 * token_type(vocab_size).itemsize
    keys = []
    for first in range(0, DEPTH, 64 // bits):
        key = np.zeros(len(places), np.uint64)
        for back in range(first, min(first + 64 // bits, DEPTH)):
            token = np.where(places >= back, tokens[np.maximum(places - back, 0)], vocab_size)
            key = key << np.uint64(bits) | token.astype(np.uint64)
        keys.append(key)
    return places[np.lexsort(keys[::-1])].astype(np.uint32)  # stable, and the first key is the last to be sorted by


def _blocks(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of a text with their beginnings, each with one token of the next."""
    for start in range(0, len(tokens), _BLOCK):
        yield start, np.asarray(tokens[start : start + _BLOCK + 1])


def write(
    path: str,
    tokens: Iterable[np.ndarray],
    places: Iterable[np.ndarray],
    sizes: tuple[int, int],
    info: IndexInfo,
) -> None:
    """Writes a local file from pieces.

    Args:
      path: of the file.
      tokens, places: pieces.
      sizes: of all tokens, and of all places.
      info: what it says of itself.

    Raises:
      ValueError: there is no place, or there are too many tokens.
    """
    if not 0 < sizes[1] <= sizes[0] < _MOST_TOKENS:
        raise ValueError(f"an index of {sizes[0]} tokens and {sizes[1]} places; allowed: 1 to {_MOST_TOKENS - 1}")
    kind = "U16" if info.vocab_size < 1 << 16 else "U32"
    ends = np.cumsum([sizes[0] * _KINDS[kind].itemsize, 4 * sizes[1]]).tolist()
    special = {"vocab_size": info.vocab_size, "start_id": info.start_id, "eos_id": info.eos_id}
    header = json.dumps({
        "__metadata__": {_KEY: json.dumps({**info.about, **special}, sort_keys=True)},
        "tokens": {"dtype": kind, "shape": [sizes[0]], "data_offsets": [0, ends[0]]},
        "places": {"dtype": "U32", "shape": [sizes[1]], "data_offsets": ends},
    }).encode()  # fmt: skip
    header += b" " * (-(len(header) + 8) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for piece in tokens:
            file.write(np.ascontiguousarray(piece, _KINDS[kind]).data)
        for piece in places:
            file.write(np.ascontiguousarray(piece, "<u4").data)
        written = file.tell() - 8 - len(header)
    if written != ends[1]:
        raise ValueError(f"the pieces have {written} bytes, not {ends[1]}")


def save(directory: str, tokens: np.ndarray, info: IndexInfo) -> None:
    """Makes the index of a text in memory, as from `divided`, and writes it into a directory, local or gs://."""
    places = sorted_places(tokens, info.vocab_size, 0, info.vocab_size)
    with storage.written_locally(directory) as local:
        os.makedirs(local, exist_ok=True)
        write(os.path.join(local, FILE), [tokens], [places], (len(tokens), len(places)), info)


def is_index(directory: str) -> bool:
    """Whether a directory, local or gs://, holds an index."""
    return storage.exists(storage.join(directory, FILE))


def read_info(directory: str) -> IndexInfo:
    """Describes an index.

    Raises:
      CheckpointError: there is no such file, or it is something else.
    """
    return _mapped(directory, head_bytes=1 << 20)[0]


def read(directory: str) -> tuple[IndexInfo, np.ndarray, np.ndarray]:
    """An index: what it says of itself, tokens and places, both mapped.

    Raises:
      CheckpointError: there is no such file, or it is something else, or damaged.
    """
    return _mapped(directory)


def _mapped(directory: str, head_bytes: int | None = None) -> tuple[IndexInfo, np.ndarray, np.ndarray]:
    path = storage.join(directory, FILE)
    try:
        with storage.local_file(path, head_bytes) as local, open(local, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            about = json.loads(header["__metadata__"][_KEY])
            info = IndexInfo(*(about.pop(name) for name in ("vocab_size", "start_id", "eos_id")), about)
            arrays = (
                np.memmap(local, _KINDS[one["dtype"]], "r", 8 + length + one["data_offsets"][0], tuple(one["shape"]))
                for one in (header["tokens"], header["places"])
            )
            return info, *arrays
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; pipeline.fit_index writes such a file") from error
    except (LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise CheckpointError(f"{path} is not an index as pipeline.fit_index writes it: {error}") from error
