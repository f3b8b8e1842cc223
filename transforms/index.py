"""Making the index of a corpus draft (`decoding.drafts.suffixes`): tokens joined, places sorted piece by piece, one file.

Texts are in the order of the input, so the same ones give the same file, however they are cut and whatever runs the job.  What
is on its way lies in a folder beside the file, and is deleted at the end; no worker holds more than one piece of the places.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from decoding.checkpoints import storage
from decoding.drafts import suffixes
from decoding.drafts.suffixes import IndexInfo, Piece

BUILDING = "building"
"""The folder of what is on its way."""

_PLACES_PER_PIECE = 1 << 21
_JOINED, _TOKENS = "joined", "tokens.npy"


@dataclasses.dataclass(frozen=True)
class IndexSettings:
    """What is made, and where.

    Attributes:
      output: a directory.
      vocab_size, start_id, eos_id: of the target.
      about: kept with it: where its texts come from.
    """

    output: str
    vocab_size: int
    start_id: int
    eos_id: int
    about: dict[str, Any]

    def path(self, name: str) -> str:
        """Of something on its way."""
        return storage.join(storage.join(self.output, BUILDING), name)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A written piece of the tokens: its number in the input, how many there are, of how many texts; records that failed."""

    number: int
    size: int
    texts: int
    failed: int


class WriteTokens(beam.DoFn):
    """(number, item) to `Tokens`, written: what the reader makes of the item."""

    def __init__(self, reader: beam.DoFn, settings: IndexSettings):
        self._reader, self._settings = reader, settings

    def setup(self):
        self._reader.setup()

    def process(self, element):
        number, item = element
        texts, failed = [], 0
        for read in self._reader.process(item):
            texts += [tokens for _, tokens in read.texts]
            failed += read.failed
        tokens = suffixes.divided(texts, self._settings.vocab_size)
        _save(self._settings.path(f"tokens-{number:06d}.npy"), tokens)
        yield Tokens(number, len(tokens), len(texts), failed)


def join(settings: IndexSettings, written: Sequence[Tokens]) -> Iterator[Piece]:
    """Joins the pieces of the tokens. Yields those of the places."""
    counts, kind = np.zeros(settings.vocab_size, np.int64), suffixes.token_type(settings.vocab_size)
    header = {"descr": kind.str, "fortran_order": False, "shape": (sum(one.size for one in written),)}
    with storage.written_locally(settings.path(_JOINED)) as local:
        os.makedirs(local, exist_ok=True)
        with open(os.path.join(local, _TOKENS), "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for one in sorted(written, key=lambda one: one.number):
                tokens = _load(settings.path(f"tokens-{one.number:06d}.npy"))
                counts += suffixes.count_places(tokens, settings.vocab_size)  # no place reaches over a piece's end
                file.write(tokens.tobytes())
    with _joined(settings) as tokens:
        before = functools.partial(suffixes.count_before, tokens, settings.vocab_size)
        yield from suffixes.cut(counts, before, _PLACES_PER_PIECE)


class SortPlaces(beam.DoFn):
    """Pieces to (piece, how many places), written in order."""

    def __init__(self, settings: IndexSettings):
        self._settings = settings

    def process(self, piece: Piece):
        with _joined(self._settings) as tokens:
            places = suffixes.sorted_places(tokens, self._settings.vocab_size, piece)
        _save(_path(self._settings, piece), places)
        yield piece, len(places)


@contextlib.contextmanager
def _joined(settings: IndexSettings) -> Iterator[np.ndarray]:
    """All tokens, mapped."""
    with storage.local_file(storage.join(settings.path(_JOINED), _TOKENS)) as local:
        yield np.load(local, mmap_mode="r")


def _path(settings: IndexSettings, piece: Piece) -> str:
    return settings.path(f"places-{piece.low:09d}-{piece.before_low:09d}.npy")


def finish(settings: IndexSettings, written: Sequence[Tokens], pieces: Sequence[tuple[Piece, int]]) -> str:
    """Writes the file of the pieces, and deletes these. Returns the directory.

    Raises:
      ValueError: there is no text to look things up in, or too much.
    """
    pieces = sorted(pieces)
    sizes = (sum(one.size for one in written), sum(size for _, size in pieces))
    counts = {
        "texts": sum(one.texts for one in written),
        "failed": sum(one.failed for one in written),
        "places": sizes[1],
    }
    info = IndexInfo(settings.vocab_size, settings.start_id, settings.eos_id, {**settings.about, **counts})
    with storage.written_locally(settings.output) as local:
        os.makedirs(local, exist_ok=True)
        scratch = os.path.join(local, f".{suffixes.FILE}")
        tokens = (
            _load(settings.path(f"tokens-{one.number:06d}.npy")) for one in sorted(written, key=lambda one: one.number)
        )
        places = (_load(_path(settings, piece)) for piece, _ in pieces)
        suffixes.write(scratch, tokens, places, sizes, info)
        os.replace(scratch, os.path.join(local, suffixes.FILE))
    storage.remove_directory(storage.join(settings.output, BUILDING))
    return settings.output


class FitIndex(beam.PTransform):
    """(number, item) of a corpus to the directory of its index."""

    def __init__(self, reader: beam.DoFn, settings: IndexSettings):
        super().__init__()
        self._reader, self._settings = reader, settings

    def expand(self, items):
        settings = self._settings
        written = beam.pvalue.AsList(items | "Tokens" >> beam.ParDo(WriteTokens(self._reader, settings)))
        once = items.pipeline | "Once" >> beam.Create([settings])
        pieces = once | "Join" >> beam.FlatMap(join, written) | beam.Reshuffle() | beam.ParDo(SortPlaces(settings))
        return once | "Finish" >> beam.Map(finish, written, beam.pvalue.AsList(pieces))


def _save(path: str, array: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, array)
    storage.write_bytes(path, data.getvalue())


def _load(path: str) -> np.ndarray:
    return np.load(io.BytesIO(storage.read_bytes(path)))
