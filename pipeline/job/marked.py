"""Tokens told apart by where they came from, on a terminal."""

from collections.abc import Sequence

from rich.text import Text

from transforms.tokenize import Tokenizer

# By source of a token: what it is, its colour (of a palette made for colour-blind readers), and the marks around it, so
# that no reader depends on the colour.
STYLES = {
    0: ("corrected: the target's own choice after it rejected the draft's", "#E69F00", "[", "]"),
    1: ("accepted: drafted, and the target agrees", "#56B4E9", "", ""),
    2: ("bonus: the target's next token after accepting all of the draft", "#CC79A7", "{", "}"),
    3: ("plain: decoded without a draft", "default", "", ""),
}


def marked_text(tokens: Sequence[int], sources: Sequence[int], tokenizer: Tokenizer) -> Text:
    """The text of `tokens` with every token coloured and marked by its source."""
    text, shown, pending = Text(), "", None
    for i, source in enumerate(sources):
        decoded = tokenizer.decode(tokens[: i + 1])
        if decoded.endswith("\ufffd"):  # a character's bytes are spread over tokens: show it with the last of them
            pending = source if pending is None else pending
            continue
        new, shown = decoded[len(shown) :], decoded
        _, colour, before, after = STYLES[int(source if pending is None else pending)]
        pending = None
        if new:
            body = new.lstrip(" ")
            text.append(new[: len(new) - len(body)])
            text.append(f"{before}{body}{after}", style=colour)
    return text
