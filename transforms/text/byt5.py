"""ByT5's tokeniser: a token is a byte."""

import hashlib
from collections.abc import Mapping, Sequence

from transforms.text.added_tokens import AddedToken, token_text
from transforms.text.sentencepieces import splitter
from transforms.text.vocabularies import panics_are_errors

_SPECIAL = ("<pad>", "</s>", "<unk>")  # before the 256 bytes
_SENTINELS = 125


def is_byt5(config: Mapping) -> bool:
    """Whether a tokenizer_config.json is all that there is of ByT5's tokeniser."""
    return config.get("tokenizer_class") == "ByT5Tokenizer"


class ByteTokenizer:
    """A `Tokenizer` of bytes.

    Args:
      config: its tokenizer_config.json.
    """

    begin: tuple[int, ...] = ()

    def __init__(self, config: Mapping):
        added = {i: AddedToken(text, lstrip=True, rstrip=True) for i, text in enumerate(_SPECIAL)}
        self.size = len(_SPECIAL) + 256
        count = config.get("extra_ids") or _SENTINELS
        added |= {self.size + i: AddedToken(f"<extra_id_{i}>") for i in range(count)}
        told = config.get("added_tokens_decoder")
        if isinstance(told, dict):
            added |= {int(i): AddedToken(token_text(one), lstrip=bool(one.get("lstrip")), rstrip=bool(one.get("rstrip")))
                      for i, one in told.items()}  # fmt: skip
        self._added, self._splitter = added, splitter(added)
        self._ids = {self._splitter.token_to_id(token.content): i for i, token in added.items()}
        self.sha256 = hashlib.sha256(b"ByT5" + repr(sorted(added.items())).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        with panics_are_errors():
            parts, ids = self._splitter.encode(text, add_special_tokens=False), []
        for i, (start, end) in zip(parts.ids, parts.offsets):
            ids += [self._ids[i]] if i in self._ids else [len(_SPECIAL) + byte for byte in text[start:end].encode()]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        values = (int(i) - len(_SPECIAL) for i in ids if int(i) not in self._added)
        return bytes(value for value in values if 0 <= value < 256).decode("utf-8", errors="ignore")

    def pieces(self) -> list[str]:
        found = {len(_SPECIAL) + byte: f"<0x{byte:02X}>" for byte in range(256)}
        found |= {i: token.content for i, token in self._added.items()}
        return [found.get(i, "") for i in range(max(found) + 1)]
