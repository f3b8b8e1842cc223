"""Sentencepiece models, with the tokens around them as transformers reads and writes them."""

import hashlib
from collections.abc import Mapping, Sequence

from transforms.text.added_tokens import AddedToken
from transforms.text.vocabularies import TokenizerError, panics_are_errors

# What is put before the parts of a text that is cut at added tokens: what sentencepiece itself puts before a text, or as
# transformers' Llama has it, a space before every part, the first or none, unless one is there.
PREFIXES = OWN, ALWAYS, FIRST, NEVER = ("own", "always", "first", "never")


class SentencePieceTokenizer:
    """A `Tokenizer` over a sentencepiece model.

    Args:
      model: the bytes of its file.
      begin: see `Tokenizer`.
      added: tokens that are recognised where a text spells them out, by id; sentencepiece itself never does so with its
        control pieces. Special ones are left out of texts.
      prefix: one of `PREFIXES`.
    """

    def __init__(
        self, model: bytes, begin: tuple[int, ...] = (), added: Mapping[int, AddedToken] | None = None, prefix: str = OWN
    ):
        self.begin, self._added, self._prefix = begin, dict(added or {}), prefix
        self._spaced = processor(model, prefix != NEVER)
        self._bare = self._spaced if prefix == OWN else processor(model, False)
        self.size = self._spaced.GetPieceSize()
        self._drops_space = _drops_space(self._spaced)
        self._splitter = splitter(self._added)
        self._ids = {self._splitter.token_to_id(token.content): i for i, token in self._added.items()}
        own = all(i < self.size for i in self._added) and prefix == OWN
        told = b"" if own else repr((sorted(self._added.items()), prefix)).encode()
        self.sha256 = hashlib.sha256(model + (repr(begin).encode() if begin else b"") + told).hexdigest()

    def encode(self, text: str) -> list[int]:
        with panics_are_errors():
            parts = self._splitter.encode(text, add_special_tokens=False)
        ids = []
        for i, (start, end) in zip(parts.ids, parts.offsets):
            if i in self._ids:
                ids.append(self._ids[i])
                continue
            has_space = text[start] in " ▁" or (start and self._prefix == FIRST)
            ids += (self._bare if has_space else self._spaced).EncodeAsIds(text[start:end])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text, run = "", []
        for i in map(int, ids):
            if i not in self._added:
                if 0 <= i < self.size:
                    run.append(i)
                continue
            text, run = text + self._decode(run, bool(text)), []
            if not self._added[i].special:
                text += self._added[i].content
        return text + self._decode(run, bool(text))

    def _decode(self, run: list[int], inside: bool) -> str:
        """The text of ordinary pieces. Sentencepiece drops a space that they begin with, which is right at the start only."""
        if not run:
            return ""
        text = self._spaced.DecodeIds(run)
        dropped = inside and self._drops_space and self._spaced.IdToPiece(run[0]).startswith("▁")
        return " " + text if dropped else text

    def pieces(self) -> list[str]:
        pieces = self._spaced.IdToPiece(list(range(self.size)))
        pieces += [""] * (max(self._added, default=-1) + 1 - self.size)
        for i, token in self._added.items():
            pieces[i] = token.content
        return pieces


def _drops_space(processor) -> bool:
    """Whether decoding leaves out the space that the first piece begins with."""
    from sentencepiece import sentencepiece_model_pb2 as protos

    spec = protos.ModelProto.FromString(processor.serialized_model_proto()).normalizer_spec
    return spec.add_dummy_prefix or spec.remove_extra_whitespaces


def processor(model: bytes, dummy_prefix: bool):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as protos

    found = sentencepiece.SentencePieceProcessor()
    found.LoadFromSerializedProto(model)
    if not dummy_prefix:
        proto = protos.ModelProto.FromString(model)
        proto.normalizer_spec.add_dummy_prefix = False
        found.LoadFromSerializedProto(proto.SerializeToString())
    return found


def controls(model: bytes) -> dict[str, int]:
    """Ids of a model's control pieces and of its unknown one, which it never reads from a text.

    Raises:
      TokenizerError: it is no sentencepiece model.
    """
    try:
        found = processor(model, True)
    except Exception as error:
        what = "of tiktoken, beside which a tokenizer.json is needed" if _is_tiktoken(model) else "broken, or of another kind"
        raise TokenizerError(f"it is no sentencepiece model but {what} ({error})") from error
    size = found.GetPieceSize()
    return {found.IdToPiece(i): i for i in range(size) if found.IsControl(i) or found.IsUnknown(i)}


def _is_tiktoken(data: bytes) -> bool:
    """Whether a file has lines of base64 and a rank, as Llama 3's original tokenizer.model."""
    first = data[:200].partition(b"\n")[0].split(b" ")
    return len(first) == 2 and first[1].strip().isdigit()


def splitter(added: Mapping[int, AddedToken]):
    """A tokeniser of the tokenizers library that knows these tokens, and one more for whatever lies between them."""
    import tokenizers

    found = tokenizers.Tokenizer(tokenizers.models.WordLevel({"": 0}, unk_token=""))
    found.add_tokens([tokenizers.AddedToken(**token._asdict(), normalized=False) for token in added.values()])
    return found
