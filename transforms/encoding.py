"""A text as the target's input: what a job's records and the texts of `specbeam` become alike."""

from collections.abc import Sequence

from transforms import chat
from transforms.tokenize import Tokenizer, encode_start


class NoTokensError(ValueError):
    """A text that has no token."""


def encode_text(
    text: str | Sequence[int],
    tokenizer: Tokenizer,
    *,
    prefix: str = "",
    eos_id: int | None,
    max_input_tokens: int,
    chat_template: chat.ChatTemplate | None = None,
    empty_id: int | None = None,
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

    Raises:
      NoTokensError: nothing is left of the text.
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
    elif tokens and isinstance(text, str) and eos_id is None and chat_template is None:
        tokens = [*tokenizer.begin, *tokens]
    if not tokens:
        raise NoTokensError("the tokeniser yields no token for this text")
    if not isinstance(text, str) and tokens[-1] == eos_id:
        tokens = tokens[:-1]
    ending = [] if eos_id is None else [eos_id]
    room = max_input_tokens - len(ending)
    return [*tokens[:room], *ending], cut or len(tokens) > room
