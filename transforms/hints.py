"""Hints of examples: texts that their outputs nearly are, from fields of their records or from an earlier run's folder.

A hint decides the speed alone (see `decoding.drafts.PromptLookupDraft`), so nothing about it can make a record fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from transforms.folder import read_manifest
from transforms.parts import read_rows
from transforms.records import Example
from transforms.storage import OutputFolder
from transforms.tokenize import Tokenizer, encode_start


@dataclasses.dataclass(frozen=True)
class HintSettings:
    """Which hints there are, and what becomes of them.

    Attributes:
      room: tokens of all hints of an example at most.
      eos_id: what ends an output.
      folder: of a finished run of `pipeline.generate` whose outputs, by example id, are hints; "" for none.
      fingerprint: of that run.
      by_text: whether it had another tokeniser, so that its texts are tokenised and not its tokens taken.
    """

    room: int
    eos_id: int
    folder: str = ""
    fingerprint: str = ""
    by_text: bool = False


class EarlierOutputs:
    """Finds outputs of a finished run by example id: an example's first sample.

    Equal inputs are mostly cut into equal shards, so the part of the same number is looked into first.  Only where it lacks
    an id are those of all parts read, once.
    """

    def __init__(self, settings: HintSettings):
        self._settings = settings
        folder = OutputFolder(settings.folder)
        self._paths = [folder.path(name) for name in read_manifest(folder).part_names()]
        self._parts: dict[str, int] | None = None

    @classmethod
    def of(cls, settings: HintSettings | None) -> EarlierOutputs | None:
        """None where there is no folder."""
        return cls(settings) if settings and settings.folder else None

    def find(self, ids: Sequence[str], shard: int) -> dict[str, str | np.ndarray]:
        """Texts, or tokens, of those of `ids` that the run has outputs of."""
        wanted = set(ids)
        found = self._read(shard, wanted) if shard < len(self._paths) else {}
        missing = wanted - found.keys()
        if missing and self._parts is None:
            columns = [self._rows(path, ["example_id"])["example_id"].to_pylist() for path in self._paths]
            self._parts = {name: part for part, names in enumerate(columns) for name in names}
        for part in sorted({self._parts[name] for name in missing if name in self._parts}) if missing else ():
            found |= self._read(part, missing)
        return found

    def _read(self, part: int, wanted: set[str]) -> dict[str, str | np.ndarray]:
        column = "prediction" if self._settings.by_text else "output_tokens"
        rows = self._rows(self._paths[part], ["example_id", "sample", column])
        rows = rows.filter(pc.equal(rows["sample"], 0))
        values = rows[column].to_pylist()
        return {name: value for name, value in zip(rows["example_id"].to_pylist(), values) if name in wanted}

    def _rows(self, path: str, columns: Sequence[str]):
        return read_rows(path, columns, self._settings.fingerprint)


def encode_hints(
    examples: Sequence[Example],
    texts: Mapping[str, Sequence[str]],
    tokenizer: Tokenizer,
    settings: HintSettings,
    earlier: EarlierOutputs | None,
    shard: int,
) -> list[Example]:
    """The examples with their hints: those of their records first, then the earlier output.

    Args:
      examples: of one shard.
      texts: their records' hints, by example id.
      tokenizer: of the target.
      settings: what becomes of hints.
      earlier: finds earlier outputs, None where there are none.
      shard: the shard's number.
    """
    outputs = {} if earlier is None else earlier.find([example.example_id for example in examples], shard)
    hinted = []
    for example in examples:
        found: list[np.ndarray] = []
        cut, room = 0, settings.room
        mine = [*texts.get(example.example_id, ()), *([outputs[example.example_id]] if example.example_id in outputs else ())]
        for i, hint in enumerate(mine):
            share = (room + 1) // (len(mine) - i) - 1  # what earlier ones leave is the later ones'
            tokens, whole = _tokens(hint, tokenizer, settings.eos_id, share)
            cut += not whole
            if tokens:
                found.append(np.asarray(tokens, np.int32))
                room -= len(tokens) + 1
        hinted.append(dataclasses.replace(example, hints=tuple(found), hints_cut=cut))
    return hinted


def _tokens(hint: str | Sequence[int], tokenizer: Tokenizer, eos_id: int, room: int) -> tuple[list[int], bool]:
    """Token ids of a hint as an output has them, at most `room`, and whether these are all."""
    if isinstance(hint, str):
        try:
            tokens, whole = encode_start(tokenizer, hint, max(room, 0))
        except Exception:  # whatever a tokeniser's library raises; the text is but a hint
            return [], True
        tokens = [*tokens, eos_id] if whole and tokens else tokens
    else:
        tokens, whole = list(hint), True
    return tokens[: max(room, 0)], whole and len(tokens) <= room
