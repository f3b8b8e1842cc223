"""A text as the target's input: what a job's records and the texts of `specbeam` become alike."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from transforms import chat
from transforms.tokenize import Tokenizer, encode_start


class NoTokensError(ValueError):
    """A text that has no token."""


class LanguageError(ValueError):
    """A target language that a model does not have."""


@dataclasses.dataclass(frozen=True)
class Translation:
    """What stands around the inputs of a model that translates between many languages.

    Attributes:
      source: token of their language.
      after: whether it follows the end token, and is not in front.
      target: token that outputs have to begin with, put before all (see `DecodingConfig.first_from_input`); None for none.
      targets: such tokens by code, where every record says its own; empty where `target` is all records'.
    """

    source: int
    after: bool
    target: int | None
    targets: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def first(self, language: str) -> list[int]:
        """What is put before all, for a record of this target language.

        Raises:
          LanguageError: the model does not have it.
        """
        if not self.targets:
            return [] if self.target is None else [self.target]
        if language not in self.targets:
            raise LanguageError(f"the target language is {language!r:.100}; allowed: {known(self.targets)}")
        return [self.targets[language]]


def known(codes: Iterable[str], most: int = 12) -> str:
    """Codes for a message, of many the first."""
    codes = sorted(codes)
    return ", ".join(codes[:most]) + (f" and {len(codes) - most} more" if len(codes) > most else "")


def encode_text(
    text: str | Sequence[int],
    tokenizer: Tokenizer,
    *,
    prefix: str = "",
    eos_id: int | None,
    max_input_tokens: int,
    chat_template: chat.ChatTemplate | None = None,
    empty_id: int | None = None,
    translation: Translation | None = None,
    language: str = "",
) -> tuple[list[int], bool]:
    """Token ids of a text, and whether it was cut.

    Args:
      text: to be encoded, or its ids where they are known, with or without EOS.
      tokenizer: of the target.
      prefix: put before a text, as the task asks.
      eos_id: appended, and kept where the text is cut; None appends nothing (decoder-only models).
      max_input_tokens: at most so many ids are returned.
      chat_template: makes a prompt of a text, where given.
      empty_id: what an empty text becomes; None makes it an error.
      translation: for a model of many languages.
      language: code of what the text is translated into, where `translation` asks for it.

    Raises:
      NoTokensError: nothing is left of the text.
      LanguageError: the model does not have the language.
      Exception: whatever a tokeniser's library raises.
    """
    cut = False
    if not isinstance(text, str):
        tokens = [*text]
    elif chat_template is not None:
        tokens, cut = chat.encode(tokenizer, chat_template, text, prefix=prefix, max_tokens=max_input_tokens)
    else:
        tokens, whole = encode_start(tokenizer, prefix + text, max_input_tokens)
        cut = not whole
    if not tokens and empty_id is not None:
        tokens = [empty_id]
    elif tokens and isinstance(text, str) and chat_template is None and translation is None:
        tokens = [*tokenizer.begin, *tokens]
    if not tokens:
        raise NoTokensError("the tokeniser yields no token for this text")
    if not isinstance(text, str) and tokens[-1] == eos_id:
        tokens = tokens[:-1]
    beginning, ending = [], [] if eos_id is None else [eos_id]
    if translation is not None:
        own = [translation.source]
        beginning, ending = translation.first(language) + own * (not translation.after), ending + own * translation.after
    room = max_input_tokens - len(beginning) - len(ending)
    return [*beginning, *tokens[:room], *ending], cut or len(tokens) > room
