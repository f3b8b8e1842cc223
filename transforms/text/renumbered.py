"""Sentencepiece models whose pieces a model numbers otherwise: Marian, M2M-100, mBART, NLLB and Pegasus.

Marian and M2M-100 have the numbers in a vocab.json. fairseq's other models move the pieces up by one, with special tokens of
their own in front and languages behind; Pegasus moves them up by 103.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from transforms import storage
from transforms.text import languages
from transforms.text.added_tokens import AddedToken, Surroundings, beside, read_object
from transforms.text.sentencepieces import controls, processor, splitter
from transforms.text.vocabularies import TokenizerError, panics_are_errors

MARIAN, FAIRSEQ, NUMBERS = "source.spm", "sentencepiece.bpe.model", "vocab.json"
TARGET = "target.spm"
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
_PEGASUS_OFFSET = 103
_DIRECTION = re.compile(r">>.+?<<")


class RenumberedTokenizer:
    """A `Tokenizer` over a sentencepiece model for inputs, one for outputs, and the numbers of their pieces.

    Args:
      source, target: bytes of the models' files.
      numbers: id by piece.
      added: tokens that are recognised where a text spells them out, by id; all are left out of texts.
      directions: a text may begin with a piece like ">>fra<<", which says into what it is translated.

    Raises:
      TokenizerError: a piece is no sentencepiece model's, or there is no "<unk>".
    """

    begin: tuple[int, ...] = ()

    def __init__(
        self,
        source: bytes,
        target: bytes,
        numbers: Mapping[str, int],
        added: Mapping[int, AddedToken],
        directions: bool = False,
    ):
        if "<unk>" not in numbers:
            raise TokenizerError("its vocabulary has no piece <unk>")
        for model in (source, target):
            controls(model)
        self._numbers, self._added, self._unknown = dict(numbers), dict(added), numbers["<unk>"]
        self._source, self._target = processor(source, True), processor(target, True)
        self._splitter = splitter(self._added)
        self._ids = {self._splitter.token_to_id(token.content): i for i, token in self._added.items()}
        self._pieces = {i: piece for piece, i in self._numbers.items()}
        self._directions = directions
        self.size = max(self._pieces) + 1
        told = json.dumps([sorted(self._numbers.items()), sorted(self._added.items()), directions])
        self.sha256 = hashlib.sha256(source + target + told.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        ids = []
        if self._directions and (found := _DIRECTION.match(text)):
            ids, text = [self._numbers.get(found[0], self._unknown)], text[found.end() :]
        with panics_are_errors():
            parts = self._splitter.encode(text, add_special_tokens=False)
        for i, (start, end) in zip(parts.ids, parts.offsets):
            if i in self._ids:
                ids.append(self._ids[i])
            else:
                ids += [self._numbers.get(piece, self._unknown) for piece in self._source.EncodeAsPieces(text[start:end])]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        pieces = [self._pieces[i] for i in map(int, ids) if i in self._pieces and i not in self._added]
        return self._target.DecodePieces(pieces).replace("▁", " ").strip()

    def pieces(self) -> list[str]:
        found = self._pieces | {i: token.content for i, token in self._added.items()}
        return [found.get(i, "") for i in range(max(found) + 1)]


def is_marian(path: str, surroundings: Surroundings) -> bool:
    """Whether a vocab.json is a Marian model's, of which its sentencepiece models may be missing."""
    return storage.exists(beside(path, TARGET)) or "marian" in _named(path, surroundings)


def is_pegasus(path: str, surroundings: Surroundings) -> bool:
    return "pegasus" in _named(path, surroundings)


def _named(path: str, surroundings: Surroundings) -> str:
    """The class of a tokeniser, or else the kind of the model."""
    name = surroundings.config.get("tokenizer_class") or read_object(beside(path, "config.json")).get("model_type")
    return name.lower() if isinstance(name, str) else ""


def from_marian(path: str, surroundings: Surroundings) -> RenumberedTokenizer:
    """The tokeniser of a Marian model's folder.

    Args:
      path: one of its files.

    Raises:
      TokenizerError: one of the other files is missing or broken.
    """
    for name in (MARIAN, TARGET, NUMBERS):
        if not storage.exists(beside(path, name)):
            raise TokenizerError(f"{name} is not beside it; a Marian model needs {MARIAN}, {TARGET} and {NUMBERS}")
    if surroundings.config.get("separate_vocabs"):
        raise TokenizerError("it has a vocabulary for either side; supported: one for both")
    numbers = read_numbers(beside(path, NUMBERS))
    named = {"<unk>", "</s>", "<pad>"} | set(surroundings.named().values())
    added = {numbers[text]: AddedToken(text) for text in named if text in numbers}
    return RenumberedTokenizer(*(storage.read_bytes(beside(path, name)) for name in (MARIAN, TARGET)), numbers, added, True)


def from_fairseq(path: str, surroundings: Surroundings) -> RenumberedTokenizer:
    """The tokeniser of an M2M-100, mBART or NLLB folder.

    Args:
      path: its sentencepiece.bpe.model.

    Raises:
      TokenizerError: it is broken, or nothing says which languages it has.
    """
    data = storage.read_bytes(path)
    if storage.exists(beside(path, NUMBERS)):
        numbers, mask = read_numbers(beside(path, NUMBERS)), []
    else:
        controls(data)
        own = processor(data, True)
        pieces = own.IdToPiece(list(range(3, own.GetPieceSize())))
        numbers, mask = {piece: i for i, piece in enumerate((*_FAIRSEQ, *pieces))}, ["<mask>"]
    named = dict.fromkeys((*_FAIRSEQ, *surroundings.named().values()))
    added = {numbers[text]: AddedToken(text) for text in named if text in numbers}
    first = max(numbers.values()) + 1
    codes = [] if any(map(languages.code_of, numbers)) else languages.tokens_of(path, surroundings)
    added |= {first + i: AddedToken(text) for i, text in enumerate((*codes, *mask))}
    return RenumberedTokenizer(data, data, numbers, added)


def from_pegasus(path: str, surroundings: Surroundings) -> RenumberedTokenizer:
    """The tokeniser of a Pegasus folder: padding, end and what only pretraining used stand before its pieces.

    Args:
      path: its spiece.model.

    Raises:
      TokenizerError: it is broken, or its pieces are moved by another number.
    """
    if surroundings.config.get("offset", _PEGASUS_OFFSET) != _PEGASUS_OFFSET:
        raise TokenizerError(f"its offset is {surroundings.config['offset']!r:.100}; supported: {_PEGASUS_OFFSET}")
    data = storage.read_bytes(path)
    controls(data)
    own = processor(data, True)
    special = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, _PEGASUS_OFFSET))]
    names = [*special, *own.IdToPiece(list(range(2, own.GetPieceSize())))]
    numbers = {piece: i for i, piece in enumerate(names)}
    added = {i: AddedToken(piece) for i, piece in enumerate([*special, "<unk>"])}
    return RenumberedTokenizer(data, data, numbers, added)


def read_numbers(path: str) -> dict[str, int]:
    """Id by piece of a vocab.json. Raises TokenizerError where it is none."""
    try:
        found = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict) or not all(type(i) is int and 0 <= i < 2**24 for i in found.values()) or not found:
        raise TokenizerError(f"{path} is no vocabulary; an object of pieces and their ids is needed")
    return found
