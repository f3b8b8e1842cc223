"""The kinds of tokeniser that `transforms.tokenize` loads, over the sentencepiece and tokenizers libraries."""

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence


class TokenizerError(ValueError):
    """A tokeniser that is missing, unreadable, does not fit its model, or breaks down over a text."""


@contextlib.contextmanager
def panics_are_errors() -> Iterator[None]:
    """Around calls of a library written in Rust, whose panics are BaseExceptions, which nobody expects of one text.

    Raises:
      TokenizerError: the library panicked.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as panic:  # pyo3_runtime.PanicException, which cannot be imported
        raise TokenizerError(f"the tokeniser's library panicked: {panic}") from panic


class SentencePieceTokenizer:
    """A `Tokenizer` over a sentencepiece model.

    Args:
      model: the bytes of its file.
      begin: see `Tokenizer`.
      controls: control pieces that are recognised where a text spells them out, by piece; sentencepiece itself never
        does. What follows one is tokenised like a text of its own.
    """

    def __init__(self, model: bytes, begin: tuple[int, ...] = (), controls: Mapping[str, int] | None = None):
        import sentencepiece

        self.sha256 = hashlib.sha256(model + (repr(begin).encode() if begin else b"")).hexdigest()
        self.begin = begin
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self._size = self._processor.GetPieceSize()
        self._controls = dict(controls or {})
        longest_first = sorted(map(re.escape, self._controls), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(longest_first) + ")").split if longest_first else lambda text: [text]

    def encode(self, text: str) -> list[int]:
        ids = []
        for part in self._split(text):
            if part in self._controls:
                ids.append(self._controls[part])
            elif part:
                ids += self._processor.EncodeAsIds(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.DecodeIds([int(i) for i in ids if 0 <= i < self._size])

    def pieces(self) -> list[str]:
        return self._processor.IdToPiece(list(range(self._size)))


class LibraryTokenizer:
    """A `Tokenizer` over a `tokenizers.Tokenizer`, whose special tokens are recognised in texts and left out of them.

    Args:
      tokenizer: taken over.
      sha256, begin: see `Tokenizer`.
    """

    def __init__(self, tokenizer, sha256: str, begin: tuple[int, ...] = ()):
        self.sha256, self.begin, self._tokenizer = sha256, begin, tokenizer
        tokenizer.no_truncation()  # limits are ours to apply, so that a cut is always flagged
        tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        with panics_are_errors():
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        with panics_are_errors():
            return self._tokenizer.decode([int(i) for i in ids])

    def pieces(self) -> list[str]:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        pieces = [""] * (max(vocabulary.values(), default=-1) + 1)
        for piece, i in vocabulary.items():
            pieces[i] = piece
        return pieces


def from_json(data: bytes) -> LibraryTokenizer:
    """The tokeniser of a `tokenizer.json`."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    tokenizer.no_truncation()
    bare, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    first = next((i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare), 0)
    return LibraryTokenizer(tokenizer, hashlib.sha256(data).hexdigest(), tuple(whole[:first]))


def from_wordpiece(data: bytes, lowercase: bool | None = None) -> LibraryTokenizer:
    """BERT's tokeniser over a `vocab.txt`, one piece a line.

    Args:
      data: the file's bytes.
      lowercase: whether texts are lower-cased and stripped of accents; None where no ordinary piece has a capital.

    Raises:
      TokenizerError: the file is no such vocabulary.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    # Lines as in a file: str.splitlines would also cut at U+2028 and the like, which are pieces of some vocabularies.
    pieces = [line.removesuffix("\n") for line in io.StringIO(data.decode("utf-8"), newline=None)]
    if "[UNK]" not in pieces:
        raise TokenizerError("it has no piece [UNK], which a wordpiece vocabulary needs")
    specials = [piece for piece in pieces if re.fullmatch(r"\[[A-Za-z]+\d*\]", piece)]
    if lowercase is None:
        lowercase = all(piece == piece.lower() for piece in set(pieces) - set(specials))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(specials)
    return LibraryTokenizer(tokenizer, hashlib.sha256(data + str(lowercase).encode()).hexdigest())
