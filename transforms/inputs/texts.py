"""A record's id, text and reference, whatever its format."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transforms import records
from transforms.inputs.base import InputSpec, Raw, find_field, read_id
from transforms.records import ExampleError


@dataclasses.dataclass(frozen=True)
class TextRecord:
    """A record that has a text.

    Attributes:
      example_id, index, place: as of `transforms.records.Example`.
      raw: the record as it was, for errors/.
      inputs, targets: text, and reference or None.
      tokens: where the input has them instead of text.
      language: the code of the language that it is to be translated into; "" where records have none.
      hints: texts that its output nearly is.
    """

    example_id: str
    index: int
    place: str
    raw: str
    inputs: str
    targets: str | None
    tokens: list[int] | None = None
    language: str = ""
    hints: tuple[str, ...] = ()


def read_text(
    raw: Raw, spec: InputSpec, decode: Callable[[list[int]], str], *, may_be_empty: bool, may_be_list: bool
) -> TextRecord | ExampleError:
    """Takes id, text and reference out of a record, or says what is wrong with it.

    Args:
      raw: the record.
      spec: the input that it is of.
      decode: text of token ids, for SeqIO tasks that yield them instead.
      may_be_empty: whether an empty text is none that is wrong.
      may_be_list: whether a list is a text as well, as JSON.
    """
    example_id, fields, row = raw.place, spec.fields, raw.row

    def failed(error_type: str, message: str) -> ExampleError:
        return records.example_error(example_id, raw.index, records.READ, error_type, message, raw.place, raw.record)

    if row is None:
        return failed(*raw.problem)
    if fields.example_id:
        try:
            example_id = read_id(row, fields.example_id)
            example_id.encode()
        except KeyError:
            return failed("MissingField", f"no field {fields.example_id!r}, which gives the example's id")
        except (TypeError, UnicodeEncodeError) as error:
            example_id = raw.place
            return failed("WrongType", str(error))
    try:
        language = read_id(row, fields.language) if fields.language else ""
    except KeyError:
        return failed("MissingField", f"no field {fields.language!r}, which gives the target language")
    except TypeError as error:
        return failed("WrongType", str(error))
    try:
        inputs = find_field(row, fields.inputs)
    except KeyError:
        return failed("MissingField", f"no field {fields.inputs!r}; the record has: {', '.join(map(str, row))}")
    try:
        targets = find_field(row, fields.targets) if fields.targets else None
    except KeyError:
        targets = None
    texts, tokens = [], None
    for name, value in ((fields.inputs, inputs), (fields.targets, targets)):
        if value is None and name == fields.targets and name != fields.inputs:
            texts.append(None)
            continue
        if spec.format == "seqio" and _is_tokens(value):  # by the task's own vocabulary
            value = value.tolist()
            tokens = value if name == fields.inputs else tokens
            try:
                value = row.get(f"{name}_pretokenized", decode(value))
            except Exception as error:  # whatever a tokeniser's library raises concerns this record only
                return failed(type(error).__name__, str(error))
        try:
            if may_be_list and isinstance(value, list) and name == fields.inputs:
                value = json.dumps(value, ensure_ascii=False, default=_plain)
            elif isinstance(value, bytes):
                value = value.decode()
        except UnicodeDecodeError as error:
            return failed("InvalidUtf8", f"byte {error.start} of field {name!r} is not UTF-8: {error.reason}")
        if not isinstance(value, str):
            return failed("WrongType", f"field {name!r} holds {type(value).__name__}, not text")
        try:
            value.encode()
        except UnicodeEncodeError:
            return failed("InvalidText", f"field {name!r} holds half of a surrogate pair, which no UTF-8 text can")
        texts.append(value)
    if not texts[0].strip() and not may_be_empty:
        return failed("EmptyInput", f"field {fields.inputs!r} is empty")
    return TextRecord(example_id, raw.index, raw.place, raw.record, *texts, tokens, language, _hints(row, fields.hints))


def _hints(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """The texts of those fields. A hint can do no harm, so where a record has none, or no text there, it goes without."""
    found = []
    for name in names:
        with contextlib.suppress(KeyError, UnicodeError):
            value = find_field(row, name)
            value = value.decode() if isinstance(value, bytes) else value
            if isinstance(value, str) and value.encode():
                found.append(value)
    return tuple(found)


def _plain(value: Any) -> str:
    """What is in a list and not in JSON: Parquet's text, which is bytes, and its dates."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and np.issubdtype(value.dtype, np.integer)
