"""Text to token ids and back, by the tokeniser that lies beside a model.

This lives in `transforms` because workers tokenise and detokenise, and `decoding` deals in token ids only. Four file
formats are read: sentencepiece (`spiece.model`, `tokenizer.model`), the tokenizers library's `tokenizer.json`, BERT's
`vocab.txt`, and what is inside a `.gguf` file. Where a directory holds several, they are tried in this order:
sentencepiece is what T5 was trained with.
"""

import json
from collections.abc import Sequence
from typing import Protocol

from transforms import gguf_vocabulary, storage
from transforms.vocabularies import SentencePieceTokenizer, TokenizerError, from_json, from_wordpiece, panics_are_errors

__all__ = ["Tokenizer", "TokenizerError", "find_tokenizer", "load_tokenizer", "tokenizer_config"]

NAMES = ("spiece.model", "tokenizer.model", "tokenizer.json", "vocab.txt")
_SUFFIXES = (".model", ".json", ".txt", ".gguf")


class Tokenizer(Protocol):
    """What the transforms need of a tokeniser. Instances are used by one thread at a time.

    Attributes:
      sha256: the tokeniser's identity in a run's fingerprint.
      begin: ids that belong before every text of a decoder-only model, as the file says; mostly none, or one.
    """

    sha256: str
    begin: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with no special token added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. Ids that stand for no piece (a model's padded vocabulary has some) are left out."""

    def pieces(self) -> list[str]:
        """The piece of every id, in order."""


def find_tokenizer(path: str) -> str | None:
    """The tokeniser file that `path` means: itself, or the one in that directory; None where there is none."""
    if path.endswith(_SUFFIXES):
        return path if storage.exists(path) else None
    for name in NAMES:
        candidate = storage.join(path, name)
        if storage.exists(candidate):
            return candidate
    return None


def tokenizer_config(path: str) -> dict:
    """The `tokenizer_config.json` beside a tokeniser's file; {} where there is none."""
    beside = storage.join(path.rpartition("/")[0], "tokenizer_config.json")
    return json.loads(storage.read_bytes(beside)) if storage.exists(beside) else {}


def load_tokenizer(path: str) -> Tokenizer:
    """Loads the tokeniser at `path`, a file or a directory holding one.

    Raises:
      TokenizerError: there is none, or it cannot be read.
    """
    found = find_tokenizer(path)
    if found is None:
        names = ", ".join(NAMES)
        raise TokenizerError(
            f"no tokeniser at {path!r}: expected one of {names} there, or the path of such a file or of a .gguf file"
        )
    try:
        with panics_are_errors():
            return _load(found)
    except Exception as error:
        raise TokenizerError(f"the tokeniser {found!r} cannot be read: {error}") from error


def _load(path: str) -> Tokenizer:
    if path.endswith(".gguf"):
        return gguf_vocabulary.from_gguf(path)
    data = storage.read_bytes(path)
    if path.endswith(".json"):
        return from_json(data)
    config = tokenizer_config(path)
    if path.endswith(".txt"):
        return from_wordpiece(data, config.get("do_lower_case"))
    tokenizer = SentencePieceTokenizer(data)
    if not config.get("add_bos_token"):
        return tokenizer
    begin = tokenizer.pieces().index(token_text(config.get("bos_token")))
    return SentencePieceTokenizer(data, (begin,))


def token_text(token: str | dict | None) -> str:
    """A special token of a `tokenizer_config.json`: text, or an object with its content."""
    return (token.get("content", "") if isinstance(token, dict) else token) or ""
