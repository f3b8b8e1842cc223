"""The kinds of tokeniser that `transforms.tokenize` loads, over the sentencepiece and tokenizers libraries."""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

_MOST_TOKENS = 2**24  # beyond any vocabulary there is


class TokenizerError(ValueError):
    """A tokeniser that is missing, unreadable, does not fit its model, or breaks down over a text; one line says why."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split())[:2000])


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

    @property
    def size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=-1) + 1


def as_llama(data: bytes, prefix: str) -> bytes:
    """A `tokenizer.json` with the spaces of transformers' Llama, whatever the file has; a byte-level one as it is.

    Args:
      data: the file's bytes.
      prefix: before which parts of a text, cut at added tokens, a space is put: "always", "first" or "never".
    """
    found = json.loads(data)
    if b'"ByteLevel"' in data or not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        return data
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix != "never" else []
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prefix, "split": False}
    found |= {"normalizer": None, "pre_tokenizer": metaspace, "decoder": {"type": "Sequence", "decoders": decoders}}
    found["model"] |= {"fuse_unk": True, "byte_fallback": True}
    return json.dumps(found).encode()


def from_json(data: bytes, added: Iterable = (), special: Iterable[str] = ()) -> LibraryTokenizer:
    """The tokeniser of a `tokenizer.json`.

    Args:
      data: the file's bytes.
      added: `AddedToken`s that the files around it know of; those that it has itself stay as they are there.
      special: pieces that are special tokens according to these files.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= _MOST_TOKENS:
        raise TokenizerError(f"it has a token {largest}; allowed: ids below {_MOST_TOKENS}")
    tokenizer.no_truncation()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    new = [tokenizers.AddedToken(**token._asdict(), normalized=False) for token in added if token.content not in known]
    named = [text for text in special if text not in known and tokenizer.token_to_id(text) is not None]
    new += [tokenizers.AddedToken(text, special=True) for text in named]
    told = "".join(map(repr, new)).encode()
    for token in new:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    bare, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    first = next((i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare), 0)
    return LibraryTokenizer(tokenizer, hashlib.sha256(data + told).hexdigest(), tuple(whole[:first]))


def from_merges(
    data: bytes, merges: bytes, numbers: Mapping[str, int], added: Mapping[int, NamedTuple], spaced: bool, first: str = "<s>"
) -> LibraryTokenizer:
    """A byte-level tokeniser of pairs, GPT-2's and BART's, over vocab.json and merges.txt.

    Args:
      data, merges: the bytes of these files.
      numbers: id by piece, of the former.
      added: `AddedToken`s by id.
      spaced: whether a space is put before a text.
      first: what texts begin with, where there are BART's special tokens.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    lines = [line for line in merges.decode("utf-8").split("\n") if line and not line.startswith("#version")]
    pairs = [tuple(line.split(" ")) for line in lines]
    if not all(len(pair) == 2 for pair in pairs):
        raise TokenizerError("merges.txt has lines that are no pairs")
    tokenizer = tokenizers.Tokenizer(models.BPE(dict(numbers), pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    for _, token in sorted(added.items()):
        new = [tokenizers.AddedToken(**token._asdict(), normalized=False)]
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)(new)
    begin = (numbers[first],) if {"<s>", "</s>", first} <= set(numbers) else ()
    digest = hashlib.sha256(data + merges + repr((sorted(added.items()), spaced)).encode())
    return LibraryTokenizer(tokenizer, digest.hexdigest(), begin)


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
