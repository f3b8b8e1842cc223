"""Tokens told apart by where they came from, on a terminal."""

from __future__ import annotations

import typing
from collections.abc import Sequence

from rich.text import Text

from decoding.config import ACCEPTED, BONUS, CORRECTED, PLAIN, TOKEN_KINDS
from pipeline.report.texts import MARKS, added_texts

if typing.TYPE_CHECKING:
    from transforms.tokenize import Tokenizer

_COLOURS = {CORRECTED: "#E69F00", ACCEPTED: "#56B4E9", BONUS: "#CC79A7", PLAIN: "default"}  # for colour-blind readers, too
STYLES = {
    source: (": ".join(TOKEN_KINDS[source]), colour, *MARKS[source]) for source, colour in _COLOURS.items()
}  # fmt: skip
"""By source of a token: what it is, its colour, and the marks around it, so that no reader depends on the colour."""


def marked_text(tokens: Sequence[int], sources: Sequence[int], tokenizer: Tokenizer) -> Text:
    """The text of `tokens` with every token coloured and marked by its source."""
    text = Text()
    for new, source in zip(added_texts(tokens, tokenizer.decode), sources):
        if new:
            body, (_, colour, before, after) = new.lstrip(" "), STYLES[int(source)]
            text.append(new[: len(new) - len(body)])
            text.append(f"{before}{body}{after}", style=colour)
    return text
