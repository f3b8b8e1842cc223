"""Text to token ids and back, by the tokeniser that lies beside a model.

This lives in `transforms` because workers tokenise and detokenise, and `decoding` deals in token ids only. Two file
formats are read: sentencepiece (`spiece.model`, `tokenizer.model`) and the tokenizers library's `tokenizer.json`.
Where a directory holds both, sentencepiece is taken: it is what T5 was trained with.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

from transforms import storage

SENTENCEPIECE_NAMES = ("spiece.model", "tokenizer.model")
TOKENIZERS_NAMES = ("tokenizer.json",)


class TokenizerError(ValueError):
    """A tokeniser that is missing, unreadable, or does not fit its model."""


class Tokenizer(Protocol):
    """What the transforms need of a tokeniser. Instances are used by one thread at a time."""

    sha256: str  # of the tokeniser's file: its identity in a run's fingerprint

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with no special token added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. Ids that stand for no piece (a model's padded vocabulary has some) are left out."""

    def pieces(self) -> list[str]:
        """The piece of every id, in order."""


class SentencePieceTokenizer:
    """A `Tokenizer` over a sentencepiece model, given as the bytes of its file."""

    def __init__(self, model: bytes):
        import sentencepiece

        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self._size = self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.DecodeIds([int(i) for i in ids if 0 <= i < self._size])

    def pieces(self) -> list[str]:
        return self._processor.IdToPiece(list(range(self._size)))


class JsonTokenizer:
    """A `Tokenizer` over a `tokenizer.json`, given as the bytes of its file."""

    def __init__(self, model: bytes):
        import tokenizers

        self.sha256 = hashlib.sha256(model).hexdigest()
        self._tokenizer = tokenizers.Tokenizer.from_buffer(model)
        self._tokenizer.no_truncation()  # limits are ours to apply, so that a cut is always flagged
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids])

    def pieces(self) -> list[str]:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        pieces = [""] * (max(vocabulary.values(), default=-1) + 1)
        for piece, i in vocabulary.items():
            pieces[i] = piece
        return pieces


def find_tokenizer(path: str) -> str | None:
    """The tokeniser file that `path` means: itself, or the one in that directory; None where there is none."""
    if path.rsplit(".", 1)[-1] in ("model", "json"):
        return path if storage.exists(path) else None
    for name in SENTENCEPIECE_NAMES + TOKENIZERS_NAMES:
        candidate = storage.join(path, name)
        if storage.exists(candidate):
            return candidate
    return None


def load_tokenizer(path: str) -> Tokenizer:
    """Loads the tokeniser at `path`, a file or a directory holding one.

    Raises:
      TokenizerError: there is none, or it cannot be read.
    """
    found = find_tokenizer(path)
    if found is None:
        names = ", ".join(SENTENCEPIECE_NAMES + TOKENIZERS_NAMES)
        raise TokenizerError(f"no tokeniser at {path!r}: expected one of {names} there, or the path of such a file")
    make = JsonTokenizer if found.endswith(".json") else SentencePieceTokenizer
    try:
        return make(storage.read_bytes(found))
    except Exception as error:
        raise TokenizerError(f"the tokeniser {found!r} cannot be read: {error}") from error
