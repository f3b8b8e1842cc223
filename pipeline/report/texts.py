"""Texts in the manner of the paper's Figure 1: each line a target call, each token with what became of it."""

import dataclasses
import itertools
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decoding.config import ACCEPTED, BONUS, CORRECTED, PLAIN, TOKEN_KINDS

MARKS = {ACCEPTED: ("", ""), CORRECTED: ("[", "]"), BONUS: ("{", "}"), PLAIN: ("", "")}
"""Around a token in plain text, by its source, so that nothing depends on a colour."""
KINDS = {source: (*TOKEN_KINDS[source], *marks) for source, marks in MARKS.items()}
"""By source of a token: its name, what it is, and its marks."""


@dataclasses.dataclass(frozen=True)
class Token:
    """A token as it is shown: its text, one of KINDS' names, what hovering says, and the marks around it."""

    text: str
    kind: str
    tip: str
    marks: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class ShownText:
    """A generation as it is shown.

    Attributes:
      title: which draft, and which run by what differs between them.
      example_id, inputs: what was decoded.
      direction: "ltr" or "rtl", of its letters.
      lines: its target calls.
    """

    title: str
    example_id: str
    inputs: str
    direction: str
    lines: tuple[tuple[Token, ...], ...]

    def to_plain(self) -> str:
        """The lines with marks in place of colours."""
        shown = []
        for number, line in enumerate(self.lines, 1):
            tokens = "".join(f"{token.marks[0]}{_one_line(token.text)}{token.marks[1]}" for token in line)
            shown.append(f"{number:3}  {tokens}\n")
        return "".join(shown)


def shown_text(text: Mapping[str, Any], decode: Callable[[list[int]], str] | None) -> ShownText:
    """Prepares an entry of analysis.json's "texts".

    Args:
      text: the entry.
      decode: token ids to text; None where the tokeniser is not there, and ids are shown.
    """
    row = text["row"]
    pieces = token_texts(row["output_tokens"], decode)
    tokens = [
        Token(
            piece,
            KINDS[source][0],
            tip(source, *(row[name][i] for name in ("target_logprob", "draft_logprob", "beta"))),
            KINDS[source][2:],
        )
        for i, (piece, source) in enumerate(zip(pieces, row["source"]))
    ]
    lines = tuple(
        tuple(token for _, token in group)
        for _, group in itertools.groupby(zip(row["iteration"], tokens), key=lambda pair: pair[0])
    )
    title = f"{text['draft']}, {text['called']}"
    return ShownText(title, row["example_id"], row["inputs"], direction("".join(pieces)), lines)


def token_texts(tokens: Sequence[int], decode: Callable[[list[int]], str] | None) -> list[str]:
    """What each token adds to the text, so that it can be seen; the ids where they cannot be decoded."""
    if decode is None:
        return [f" ‹{token}›" for token in tokens]
    return [text or "·" for text in added_texts(tokens, decode)]  # a token without letters, as the end of the text, too


def added_texts(tokens: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """What each token adds to the text. A character whose bytes are spread over tokens comes with the last of them."""
    found, shown = [], ""
    for i in range(len(tokens)):
        text = decode(list(tokens[: i + 1]))
        if text.endswith("\ufffd") and i + 1 < len(tokens):
            found.append("")
            continue
        found.append(text[len(shown) :] if text.startswith(shown) else f"‹{tokens[i]}›")
        shown = text
    return found


def tip(source: int, target_logprob: float | None, draft_logprob: float | None, beta: float | None) -> str:
    """ "p 0.913, q 0.871, β 0.958: accepted"; what is not known is left out."""
    parts = []
    for name, value in (("p", target_logprob), ("q", draft_logprob)):
        if value is not None and not math.isnan(value):
            parts.append(f"{name} {math.exp(value):.3f}")
    if beta is not None and not math.isnan(beta):
        parts.append(f"β {beta:.3f}")
    return f"{', '.join(parts)}: {KINDS[source][0]}" if parts else KINDS[source][0]


def direction(text: str) -> str:
    """ "rtl" where the first letter with a direction is written from right to left."""
    strong = (unicodedata.bidirectional(character) for character in text)
    return "rtl" if next((d for d in strong if d in ("L", "R", "AL")), "L") in ("R", "AL") else "ltr"


def _one_line(text: str) -> str:
    return text.replace("\n", "␤").replace("\r", "")
