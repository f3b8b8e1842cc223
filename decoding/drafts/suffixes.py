"""The file of a corpus draft: a text's tokens, and its places in the order of what stands before them.

A suffix array, mirrored: the place i has the key tokens[i], tokens[i - 1], ..., DEPTH of them, so that all places where the
last tokens of some text stand are neighbours, whichever of them are looked for, and what follows each is tokens[i + 1] and
on.  Ties are in the order of places.  Texts are divided by a token that the vocabulary lacks; the last token of a text, which
nothing follows, is no place.

One file, `index.safetensors`: "tokens" uint16[N], or uint32[N] of a large vocabulary, and "places" uint32[M]: 6 or 8 bytes a
token, each from a multiple of 64 bytes on.  It is mapped into memory, not read, and a processor's programs read it there: all
processes of a machine share one copy, of the pages that were looked at.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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
    parts = [np.asarray(text, np.int64) for text in texts]
    tokens = np.concatenate([np.zeros(0, np.int64), *parts])
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(f"a text has tokens from {tokens.min()} to {tokens.max()}; allowed: 0 to {vocab_size - 1}")
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return np.insert(tokens, ends, vocab_size).astype(token_type(vocab_size))


class Piece(NamedTuple):
    """Places that are sorted together: by their token, from `low` to `high` - 1, and by the one before it in the same way.

    Before a text stands V, the vocabulary's size.
    """

    low: int
    high: int
    before_low: int
    before_high: int


def cut(counts: np.ndarray, before: Callable[[int], np.ndarray], most: int) -> Iterator[Piece]:
    """Pieces of about `most` places, in order, and together all.

    Args:
      counts: int64[V], places by their token.
      before: of one of these tokens, places by the one before: int64[V + 1]. Asked where it alone has more than enough.
    """
    for low, high in itertools.pairwise(_cut_points(counts, most)):
        ends = _cut_points(before(low), most) if high == low + 1 and counts[low] > 2 * most else [0, len(counts) + 1]
        yield from (Piece(low, high, *pair) for pair in itertools.pairwise(ends))


def _cut_points(counts: np.ndarray, most: int) -> list[int]:
    ends = np.cumsum(counts)
    wanted = np.arange(most, ends[-1], most)
    return np.unique(np.concatenate([[0], np.searchsorted(ends, wanted) + 1, [len(counts)]])).tolist()


def count_places(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """int64[V], places by the token that stands there."""
    counts = np.zeros(vocab_size, np.int64)
    for _, here, _, places in _blocks(tokens, vocab_size):
        counts += np.bincount(here[places], minlength=vocab_size)
    return counts


def count_before(tokens: np.ndarray, vocab_size: int, token: int) -> np.ndarray:
    """int64[V + 1], places of one token by the token before."""
    counts = np.zeros(vocab_size + 1, np.int64)
    for _, here, before, places in _blocks(tokens, vocab_size):
        counts += np.bincount(before[places & (here == token)], minlength=vocab_size + 1)
    return counts


def sorted_places(tokens: np.ndarray, vocab_size: int, piece: Piece | None = None) -> np.ndarray:
    """Places of a piece, None for all, in order: uint32[n].

    Memory follows n, 40 bytes for each, and not the text, which may be mapped.
    """
    low, high, before_low, before_high = piece or Piece(0, vocab_size, 0, vocab_size + 1)
    found = [np.zeros(0, np.int64)]
    for start, here, before, places in _blocks(tokens, vocab_size):
        places &= (here >= low) & (here < high)
        if before_high - before_low <= vocab_size:
            places &= (before >= before_low) & (before < before_high)
        found.append(start + np.flatnonzero(places))
    places = np.concatenate(found)
    del found
    return places[_order(tokens, places, vocab_size)].astype(np.uint32)


def _order(tokens: np.ndarray, places: np.ndarray, vocab_size: int) -> np.ndarray:
    """The numbers of places, which increase, in the order of their keys, equal ones as they stand: uint64[n].

    A radix sort, the last tokens of the keys first. NumPy sorts integers with vector instructions, and their numbers not: so
    a digit is as many tokens as there is room for above a place's number in 64 bits, and is sorted together with it.
    """
    bits, room = np.uint64(vocab_size.bit_length()), np.uint64(len(places).bit_length())
    numbers, mask = np.arange(len(places), dtype=np.uint64), (np.uint64(1) << room) - np.uint64(1)
    order, width = numbers, (64 - int(room)) // int(bits)
    for end in range(DEPTH, 0, -width):
        digits = np.zeros(len(places), np.uint64)
        for back in range(max(end - width, 0), end):
            token = tokens.take(places - back, mode="clip")
            token[: np.searchsorted(places, back)] = vocab_size  # before the text
            digits <<= bits
            digits |= token
        if end < DEPTH:
            digits = digits[order]
        digits <<= room
        digits |= numbers
        digits.sort()
        digits &= mask
        order = order[digits] if end < DEPTH else digits
    return order


def _blocks(tokens: np.ndarray, vocab_size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Parts of a text: where they begin, their tokens, the tokens before these, and which are places."""
    for start in range(0, len(tokens) - 1, _BLOCK):
        part = np.asarray(tokens[max(start - 1, 0) : start + _BLOCK + 1])
        if not start:
            part = np.concatenate([part.dtype.type([vocab_size]), part])
        before, here, behind = part[:-2], part[1:-1], part[2:]
        yield start, here, before, (here < vocab_size) & (behind < vocab_size)


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
    size = sizes[0] * _KINDS[kind].itemsize
    padding = -size % _ALIGNMENT
    ends = np.cumsum([size, padding, 4 * sizes[1]]).tolist()
    special = {"vocab_size": info.vocab_size, "start_id": info.start_id, "eos_id": info.eos_id}
    header = json.dumps({
        "__metadata__": {_KEY: json.dumps({**info.about, **special}, sort_keys=True)},
        "tokens": {"dtype": kind, "shape": [sizes[0]], "data_offsets": [0, ends[0]]},
        "padding": {"dtype": "U8", "shape": [padding], "data_offsets": ends[:2]},
        "places": {"dtype": "U32", "shape": [sizes[1]], "data_offsets": ends[1:]},
    }).encode()  # fmt: skip
    header += b" " * (-(len(header) + 8) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for piece in tokens:
            file.write(np.ascontiguousarray(piece, _KINDS[kind]).data)
        file.write(bytes(padding))
        for piece in places:
            file.write(np.ascontiguousarray(piece, "<u4").data)
        written = file.tell() - 8 - len(header)
    if written != ends[2]:
        raise ValueError(f"the pieces have {written} bytes, not {ends[2]}")


def save(directory: str, tokens: np.ndarray, info: IndexInfo) -> None:
    """Makes the index of a text in memory, as from `divided`, and writes it into a directory, local or gs://."""
    places = sorted_places(tokens, info.vocab_size)
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
