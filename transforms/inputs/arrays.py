"""JSON arrays of records: cut into their elements' bytes, which then are read as JSON lines are.

Python's decoder finds where an element ends. It is given the bytes as Latin-1, in which JSON's own characters are what
they are in UTF-8 and every character is a byte, so that what it counts is bytes.
"""

import json
import re
from collections.abc import Iterator

from transforms.inputs.base import MAX_RECORD_BYTES, InputError

_BLOCK_BYTES = 1 << 22
_MOST_BYTES = 4 * MAX_RECORD_BYTES
_BLANKS = " \t\r\n"
_BLANK, _EMPTY = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n]*\]")
_BEGIN = re.compile("(?:\xef\xbb\xbf)?[ \\t\\r\\n]*\\[")  # after UTF-8's byte order mark
# Values are not needed: no numbers are made, of which some are refused, and no objects.
_DECODER = json.JSONDecoder(object_pairs_hook=len, parse_float=len, parse_int=len, parse_constant=len, strict=False)


class BrokenArray(InputError):
    """What is not a JSON array from its first to its last byte."""


def begins(head: bytes) -> bool:
    """Whether what begins with these bytes may be an array."""
    return bool(_BEGIN.match(head.decode("latin-1")))


def elements(stream, *, first: bool, whole: bool) -> Iterator[tuple[bytes, int]]:
    """(element, bytes that it takes in the file) of every element, with what is before the first and behind the last.

    Of an element longer than MAX_RECORD_BYTES one byte more than that is kept.

    Args:
      stream: an array, or a part of one that begins with it or behind a comma, and ends with it or behind a comma.
      first: whether it begins with the array.
      whole: whether it ends with it.

    Raises:
      BrokenArray: where no more elements can be told.
    """
    text, begin, position, number, ended, block_bytes = "", 0, None if first else 0, 0, False, _BLOCK_BYTES
    while True:
        if position is None and (match := _BEGIN.match(text)):
            position = match.end()
        if number == 0 and position and (match := _EMPTY.match(text, position)):
            _bytes_behind(text, match.end(), stream)
            return
        found = None if position is None else _element(text, position)
        if found is None:
            if ended and not whole and not text[begin:].strip(_BLANKS):
                return
            if ended or len(text) - begin > _MOST_BYTES:
                raise BrokenArray(f"no JSON array: it cannot be read from element {number + 1} on")
            block = stream.read(block_bytes)
            ended, text = not block, text[begin:] + block.decode("latin-1")
            position = None if position is None else position - begin
            begin, block_bytes = 0, min(2 * block_bytes, _MOST_BYTES)
            continue
        start, end, stop = found
        element = text[start : min(end, start + MAX_RECORD_BYTES + 1)].encode("latin-1")
        if text[stop] == "]":
            yield element, stop + 1 - begin + _bytes_behind(text, stop + 1, stream)
            return
        yield element, stop + 1 - begin
        begin = position = stop + 1
        number, block_bytes = number + 1, _BLOCK_BYTES


def _element(text: str, position: int) -> tuple[int, int, int] | None:
    """Where the element at `position` begins and ends and where its comma or bracket is; None where that is not there."""
    start = _BLANK.match(text, position).end()
    try:
        end = _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None
    stop = _BLANK.match(text, end).end()
    return (start, end, stop) if text[stop : stop + 1] in ("]", ",") else None


def _bytes_behind(text: str, position: int, stream) -> int:
    """How many blanks are behind the array's bracket; anything else is refused."""
    count, rest = 0, text[position:].encode("latin-1")
    while rest or (rest := stream.read(_BLOCK_BYTES)):
        if rest.strip():
            raise BrokenArray("no JSON array: something follows its closing bracket")
        count, rest = count + len(rest), b""
    return count
