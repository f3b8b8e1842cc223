"""Text to token ids and back, by the tokeniser that lies beside a model.

This lives in `transforms` because workers tokenise and detokenise, and `decoding` deals in token ids only. These
formats are read: the tokenizers library's `tokenizer.json`; sentencepiece (`spiece.model`, `tokenizer.model`), also with
other numbers (Marian's `source.spm`, fairseq's `sentencepiece.bpe.model`, Pegasus); byte-level pairs (`vocab.json` with
`merges.txt`); BERT's `vocab.txt`; ByT5's bytes; and what is inside a `.gguf` file. Where a directory holds several,
`tokenizer.json` goes first, as in transformers: it has all that the others leave to the files around them.
"""

from collections.abc import Sequence
from typing import Protocol

from decoding.checkpoints.storage import LFS_POINTER
from transforms import storage
from transforms.text import byt5, gguf_vocabulary, renumbered, sentencepieces
from transforms.text.added_tokens import (
    CONFIG,
    AddedToken,
    Surroundings,
    beside,
    is_t5,
    read_added,
    read_object,
    read_surroundings,
)
from transforms.text.languages import Languages, languages_of
from transforms.text.sentencepieces import SentencePieceTokenizer
from transforms.text.vocabularies import (
    LibraryTokenizer,
    TokenizerError,
    as_llama,
    from_json,
    from_merges,
    from_wordpiece,
    panics_are_errors,
)

__all__ = ["Tokenizer", "TokenizerError", "encode_start", "find_languages", "find_tokenizer", "load_tokenizer"]

NAMES = (
    "tokenizer.json", renumbered.MARIAN, renumbered.FAIRSEQ, "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt"
)  # fmt: skip
_CHARS_PER_TOKEN, _LEAST_TOKENS, _MOST_CHARS = 16, 64, 1 << 20
_SUFFIXES = (".model", ".spm", ".json", ".txt", ".gguf")


class Tokenizer(Protocol):
    """What the transforms need of a tokeniser. Instances are used by one thread at a time.

    Attributes:
      sha256: the tokeniser's identity in a run's fingerprint.
      size: number of its own pieces; tokens added to them may lie beyond.
      begin: ids that belong before every text, as the file says; mostly none, or one.
    """

    sha256: str
    size: int
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
    config = storage.join(path, CONFIG)  # all that there is of a tokeniser without a vocabulary
    return config if byt5.is_byt5(read_object(config)) else None


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


def encode_start(tokenizer: Tokenizer, text: str, max_tokens: int) -> tuple[list[int], bool]:
    """Token ids of the beginning of a text, without tokenising more of it than their number calls for.

    A library takes 45 bytes for every character of what it is given, and a record may have 64 MiB. So a long text is
    given to it up to a place that yields at least twice as many tokens as are asked for: what a token is depends on what
    stands near it, and the first of them are the whole text's. A text that yields almost no tokens, of blanks
    say, is given up after `_MOST_CHARS`.

    Returns:
      At least the first `max_tokens` ids of the text, or all; and whether they are all.
    """
    size, most = _CHARS_PER_TOKEN * (max_tokens + _LEAST_TOKENS), max(_MOST_CHARS, _CHARS_PER_TOKEN * max_tokens)
    while size < len(text):
        ids = tokenizer.encode(text[:size])
        if len(ids) >= 2 * max_tokens + _LEAST_TOKENS or size >= most:
            return ids, False
        size = min(4 * size, most)
    return tokenizer.encode(text), True


def _load(path: str) -> Tokenizer:
    if path.endswith(".gguf"):
        return gguf_vocabulary.from_gguf(path)
    surroundings, name, data = read_surroundings(path), path.rpartition("/")[2], storage.read_bytes(path)
    if data.startswith(LFS_POINTER):
        raise TokenizerError("it is Git LFS's pointer to one (git lfs pull)")
    if path.endswith(".spm") or (name == renumbered.NUMBERS and renumbered.is_marian(path, surroundings)):
        return renumbered.from_marian(beside(path, renumbered.MARIAN), surroundings)
    if name == renumbered.FAIRSEQ:
        return renumbered.from_fairseq(path, surroundings)
    if name == CONFIG:
        return byt5.ByteTokenizer(surroundings.config)
    if name == renumbered.NUMBERS:
        return _from_merges(path, data, surroundings)
    if path.endswith(".model") and renumbered.is_pegasus(path, surroundings):
        return renumbered.from_pegasus(path, surroundings)
    if path.endswith(".json"):
        if _is_llama(surroundings, path):
            data = as_llama(data, _prefix(surroundings))
        return from_json(data, read_added(surroundings, path, {}).values(), surroundings.named().values())
    if path.endswith(".txt"):
        return from_wordpiece(data, surroundings.config.get("do_lower_case"))
    return _from_sentencepiece(path, data, surroundings)


def find_languages(path: str, tokenizer: Tokenizer) -> Languages | None:
    """The languages that a tokeniser has tokens for; None where it is not that of a model for many.

    Args:
      path: its file, as `find_tokenizer` gives it.
      tokenizer: what was loaded from there.
    """
    return None if path.endswith(".gguf") else languages_of(tokenizer.pieces(), path, read_surroundings(path))


def _from_merges(path: str, data: bytes, surroundings: Surroundings) -> LibraryTokenizer:
    merges = beside(path, "merges.txt")
    if not storage.exists(merges):
        raise TokenizerError("merges.txt is not beside it, nor a sentencepiece model")
    numbers = renumbered.read_numbers(path)
    spaced = bool(surroundings.config.get("add_prefix_space"))
    mask = {numbers[text]: AddedToken(text) for text in ("<mask>",) if text in numbers}  # BART's, whatever the files say
    first = surroundings.named().get("bos_token", "<s>") if surroundings.config.get("add_bos_token") else "<s>"  # OPT's is </s>
    added = mask | read_added(surroundings, path, numbers)
    return from_merges(data, storage.read_bytes(merges), numbers, added, spaced, first)


def _prefix(surroundings: Surroundings) -> str:
    """Where transformers' Llama puts a space: see `sentencepieces.PREFIXES`."""
    if surroundings.config.get("add_prefix_space") is False:
        return sentencepieces.NEVER
    return sentencepieces.ALWAYS if surroundings.config.get("legacy") else sentencepieces.FIRST


def _is_llama(surroundings: Surroundings, path: str) -> bool:
    """Whether transformers takes no more than vocabulary and merges of a `tokenizer.json`, as for this class."""
    named = surroundings.config.get("tokenizer_class") in ("LlamaTokenizer", "LlamaTokenizerFast")
    return named and read_object(beside(path, "config.json")).get("model_type", "llama") == "llama"


def _from_sentencepiece(path: str, data: bytes, surroundings: Surroundings) -> SentencePieceTokenizer:
    own, config = sentencepieces.controls(data), surroundings.config
    pieces = {piece: i for i, piece in enumerate(SentencePieceTokenizer(data).pieces())}
    added = {i: AddedToken(piece) for piece, i in own.items()} | read_added(surroundings, path, pieces)
    prefix = _prefix(surroundings) if config and not is_t5(surroundings, path) else sentencepieces.OWN
    begin: tuple[int, ...] = ()
    if config.get("add_bos_token"):
        bos = surroundings.named().get("bos_token", "<s>")
        begin = (next((i for i, token in added.items() if token.content == bos), None),)
        if None in begin:
            raise TokenizerError(f"{CONFIG} says that texts begin with {bos!r}, which is not one of its special tokens")
    return SentencePieceTokenizer(data, begin, added, prefix)
